"""ngctl(8): one command from its arguments, or a script of them with -f."""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Callable, Container

from . import ksocket, linux, store
from .model import EPERM, Host, Refused
from .netgraph import Graph, Node

EX_USAGE, EX_NOINPUT, EX_NOHOST, EX_OSERR = 64, 66, 68, 71
ENOSYS = "Function not implemented"

USAGE = {
    True: "[-j jail] [-d] [-f filename] [-n nodename] [command [argument ...]]",
    False: "[-d] [-f file] [-n name] [command ...]",
}
# Messages with an answer, and their numbers: ng_iface(4), ng_ksocket(4).
QUESTIONS = {
    "iface": {"getifname": 1},
    "ksocket": {"getname": 5, "getpeername": 6},
    "socket": {},
}
ORDERS = {"ksocket": ("bind", "connect")}


def main(arguments: list[str]) -> int:
    host = store.load()
    linux.observe(host)
    try:
        given, words = getopt.getopt(arguments, "df:n:" + ("j:" if host.netlink else ""))
    except getopt.GetoptError as error:
        return fail(f"illegal option -- {error.opt}", usage(host), EX_USAGE)
    options = dict(given)
    if "-j" in options:
        return fail(f'jail "{options["-j"]}" not found', status=EX_NOHOST)
    if os.geteuid() or host.jail == "plain" or "ng_socket" in host.lacks:
        reason = EPERM if os.geteuid() else "Protocol not supported"
        return fail(f"can't create node: {reason}")
    try:
        script = read(options["-f"]) if "-f" in options else None
    except OSError as error:
        return fail(f"{options['-f']}: {error.strerror}", status=EX_NOINPUT)
    graph = Graph(host)
    # The node that is this command; it is gone with its hooks when the command ends.
    itself = graph.make("socket", options.get("-n", f"ngctl{os.getpid()}"))
    try:
        return run(Command(graph, itself), script, words)
    finally:
        graph.remove(itself)
        store.save(host)
        graph.save()


def read(script: str) -> str:
    if script == "-":
        return sys.stdin.read()
    with open(script) as file:
        return file.read()


def run(command: Command, script: str | None, words: list[str]) -> int:
    if script is None and not words:
        return fail("no command specified", usage(command.graph.host), EX_USAGE)
    if script is None:
        return command.run(words)
    for number, line in enumerate(script.splitlines(), 1):
        words = line.split()
        if words and not words[0].startswith("#") and command.run(words):
            return fail(f"line {number}: error in file")
    return 0


def usage(host: Host) -> str:
    return f"usage: ngctl {USAGE[host.netlink]}\n"


def fail(message: str, more: str = "", status: int = EX_OSERR) -> int:
    sys.stderr.write(f"ngctl: {message}\n{more}")
    return status


class Command:
    def __init__(self, graph: Graph, itself: Node) -> None:
        self.graph, self.itself = graph, itself

    def run(self, words: list[str]) -> int:
        verb, *rest = words
        if verb not in VERBS:
            return fail(f'"{verb}": unknown command')
        method, counts, synopsis = VERBS[verb]
        if len(rest) not in counts:
            return fail(f"usage: {verb} {synopsis}")
        try:
            method(self, *rest)
        except Refused as no:
            return fail(f"{'shutdown' if verb == 'shutdown' else 'send msg'}: {no}")
        sys.stdout.flush()
        return 0

    def find(self, path: str) -> Node:
        return self.graph.find(path, self.itself)

    def show_all(self) -> None:
        nodes = self.graph.listed()
        print(f"There are {len(nodes)} total nodes:")
        for node in nodes:
            print(described(node))

    def show(self, path: str) -> None:
        node = self.find(path)
        print(described(node))
        row = "  {:<15s} {:<15s} {:<12s} {:<15s} {:<15s}".format
        if node.hooks:
            print(row("Local hook", "Peer name", "Peer type", "Peer ID", "Peer hook"))
            print(row("----------", "---------", "---------", "-------", "---------"))
        for hook, (_, peer_hook) in node.hooks.items():
            peer = self.graph.peer(node, hook)
            print(row(hook, peer.name or "<unnamed>", peer.type, f"{peer.id:08x}", peer_hook))

    def mkpeer(self, *words: str) -> None:
        path, kind, hook, peer_hook = words if len(words) == 4 else (".", *words)
        self.graph.mkpeer(self.find(path), kind, hook, peer_hook)

    def name(self, path: str, name: str) -> None:
        self.graph.rename(self.find(path), name)

    def rmhook(self, *words: str) -> None:
        path, hook = words if len(words) == 2 else (".", *words)
        self.graph.disconnect(self.find(path), hook)

    def shutdown(self, path: str) -> None:
        self.graph.remove(self.find(path))

    def msg(self, path: str, *words: str) -> None:
        node = self.find(path)
        message = " ".join(words).split()
        number = QUESTIONS[node.type].get(message[0])
        if number is None and message[0] not in ORDERS.get(node.type, ()):
            raise Refused(ENOSYS)
        if node.type == "iface":
            interface = self.graph.interface(node)
            answer = f'"{interface.name}"' if interface else ""
        else:
            answer = ksocket.ask(node.id, " ".join(message))
        if number is not None:
            print(f'Rec\'d response "{message[0]}" ({number}) from "[{node.id:x}]:":')
            print(f"Args:\t{answer}")


def described(node: Node) -> str:
    name = node.name or "<unnamed>"
    hooks = len(node.hooks)
    return f"  Name: {name:<15s} Type: {node.type:<15s} ID: {node.id:08x}   Num hooks: {hooks}"


ANY = range(2, 1000)
VERBS: dict[str, tuple[Callable[..., None], Container[int], str]] = {
    "list": (Command.show_all, (0,), ""),
    "show": (Command.show, (1,), "path"),
    "info": (Command.show, (1,), "path"),
    "mkpeer": (Command.mkpeer, (3, 4), "[path] type hook peerhook"),
    "name": (Command.name, (2,), "path name"),
    "rmhook": (Command.rmhook, (1, 2), "[path] hook"),
    "shutdown": (Command.shutdown, (1,), "path"),
    "msg": (Command.msg, ANY, "path command [argument ...]"),
}
