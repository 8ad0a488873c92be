"""The nodes of netgraph(4): ng_iface(4), ng_ksocket(4), and the ng_socket(4) that is ngctl itself.

Kept between two commands in /run/freebsd/netgraph.json, beside the model.
"""

from __future__ import annotations

from . import as_json, ksocket, links, linux, relay, store
from .model import EEXIST, EINVAL, EPERM, Host, Interface, Refused, naturals
from .record import dataclass, field

ENOENT = "No such file or directory"
EADDRINUSE = "Address already in use"
EPFNOSUPPORT = "Protocol family not supported"

TYPES = ("iface", "ksocket")
IFACE_HOOKS = ("inet", "inet6")
KSOCKET_HOOK = "inet/dgram/udp"
NAME_MAX = 31


@dataclass
class Node:
    id: int
    type: str
    name: str = ""
    hooks: dict[str, tuple[int, str]] = field(default_factory=dict)  # id and hook of the peer
    driver: str = ""  # of an iface: the name its interface was born with
    process: list[int] = field(default_factory=list)  # of a ksocket: see relay.is_alive


class Graph:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.nodes: dict[int, Node] = {}
        self.last = 0
        try:
            kept = as_json.loads(store.read("netgraph.json"))
        except FileNotFoundError:
            return
        self.last = kept["last"]
        for values in kept["nodes"]:
            values["hooks"] = {hook: (peer, its) for hook, (peer, its) in values["hooks"].items()}
            self.nodes[values["id"]] = Node(**values)
        for node in list(self.nodes.values()):
            gone = node.type == "iface" and not self.interface(node)
            if gone or (node.process and not relay.is_alive(node.process)):
                self.remove(node)

    def save(self) -> None:
        kept = {"last": self.last, "nodes": [vars(node) for node in self.nodes.values()]}
        store.write("netgraph.json", as_json.dumps(kept))

    def make(self, kind: str, name: str = "") -> Node:
        self.last += 1
        self.nodes[self.last] = Node(self.last, kind, name)
        return self.nodes[self.last]

    def listed(self) -> list[Node]:
        """In the kernel's order: it keeps them in sixteen heaps, the youngest on top."""
        return sorted(self.nodes.values(), key=lambda node: (node.id % 16, -node.id))

    def interface(self, node: Node) -> Interface | None:
        interfaces = self.host.interfaces.values()
        return next((i for i in interfaces if i.driver == node.driver), None)

    def peer(self, node: Node, hook: str) -> Node:
        if hook not in node.hooks:
            raise Refused(ENOENT)
        return self.nodes[node.hooks[hook][0]]

    def find(self, path: str, here: Node) -> Node:
        """``name:``, ``[1e]:`` or ``.:``, and hooks to follow from there; without colon from here.

        A name of full length is accepted by none.
        """
        name, colon, hooks = path.rpartition(":")
        if len(name) >= NAME_MAX:
            raise Refused(EINVAL)
        named = [n for n in self.nodes.values() if name in (n.name, f"[{n.id:x}]") and name]
        if colon and name != "." and not named:
            raise Refused(ENOENT)
        node = named[0] if named else here
        for hook in hooks.split(".") if hooks not in ("", ".") else []:
            node = self.peer(node, hook)
        return node

    def mkpeer(self, node: Node, kind: str, hook: str, peer_hook: str) -> None:
        if kind not in TYPES or f"ng_{kind}" in self.host.lacks:
            # The kernel tries to load it (ng_socket(4)), which is not for a jail to do.
            raise Refused(EPERM if self.host.jail else ENOENT)
        new = self.make(kind)
        try:
            if hook in node.hooks:
                raise Refused(EEXIST)
            if kind == "iface" and peer_hook not in IFACE_HOOKS:
                raise Refused(EPFNOSUPPORT)
            if kind == "ksocket" and peer_hook != KSOCKET_HOOK:
                raise Refused(EINVAL)
        except Refused:
            del self.nodes[new.id]
            raise
        node.hooks[hook] = new.id, peer_hook
        new.hooks[peer_hook] = node.id, hook
        if kind == "iface":
            used = {i.driver for i in self.host.interfaces.values()}
            new.driver = next(f"ng{n - 1}" for n in naturals() if f"ng{n - 1}" not in used)
            new.name = new.driver
            links.attach(self.host, new.driver, "ng")
            self.host.errands.append(f"tuntap add dev {new.driver} mode tun")
            linux.project(self.host)
        else:
            interface = self.interface(node) if hook == "inet6" else None
            new.process = ksocket.start(new.id, interface.name if interface else "")

    def rename(self, node: Node, name: str) -> None:
        name = name[:NAME_MAX]
        if any(n.name == name and n is not node for n in self.nodes.values()):
            raise Refused(EADDRINUSE)
        node.name = name

    def disconnect(self, node: Node, hook: str) -> None:
        """A ksocket is for its one hook, and goes with it."""
        peer = self.peer(node, hook)
        _, peer_hook = node.hooks.pop(hook)
        del peer.hooks[peer_hook]
        for end in (node, peer):
            if end.type == "ksocket":
                self.remove(end)

    def remove(self, node: Node) -> None:
        if self.nodes.pop(node.id, None) is None:
            return
        for hook in list(node.hooks):
            peer_id, peer_hook = node.hooks.pop(hook)
            peer = self.nodes[peer_id]
            del peer.hooks[peer_hook]
            if peer.type == "ksocket":
                self.remove(peer)
        if node.process:
            ksocket.stop(node.process)
        interface = self.interface(node) if node.type == "iface" else None
        if interface:
            self.host.errands.append(f"link del {interface.name}")
            links.forget(self.host, interface)
            linux.project(self.host)
