"""The small internet.

  lan host --- client --- (nat) --- router --- server --- far
               FreeBSD               IPv4      FreeBSD    IPv6

The client and the server use FreeBSD's commands and are set up with them.
Between them there is only IPv4; beyond the server there is only IPv6. So an
IPv6 packet from the client reaches the far host through a tunnel or not at all.
"""

import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from lab import SLOW, enclosure
from lab.host import CommandFailed, Host
from lab.machine import End, machine

CLIENT4 = "203.0.113.7"  # em0
CLIENT4_BEHIND_NAT = "198.51.100.7"  # em0, with nat=True
SERVER_NAME = "tunnel.example.org"
SERVER4 = "192.0.2.1"  # em0
SERVER6 = "2001:db8:0:ff::1"  # em1
FAR6 = "2001:db8:0:ff::2"

_ETC = {
    "hosts": f"127.0.0.1 localhost\n::1 localhost\n{SERVER4} {SERVER_NAME}\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "resolv.conf": "# This internet has no name servers.\n",
}


class Internet:
    """The hosts and the wires, as a context manager; several can coexist.

    Args:
        release: the FreeBSD release of client and server, one of ``machine.RELEASES``.
        lan: whether there is a host behind the client (``lan``, at its em1)
            that listens to router advertisements.
        nat: whether the client sits behind a NAT box (``nat``).

    Raises:
        RuntimeError: we are not in an enclosure.
    """

    client: Host
    server: Host
    router: Host
    far: Host
    lan: Host
    nat: Host

    def __init__(
        self, release: str = machine.RELEASES[0], *, lan: bool = False, nat: bool = False
    ) -> None:
        if not enclosure.inside():
            raise RuntimeError(enclosure.OUTSIDE)
        self._release = release
        self._with_lan = lan
        self._with_nat = nat
        self._closing = ExitStack()

    def __enter__(self) -> "Internet":
        # If something fails halfway, what exists is closed at once.
        with ExitStack() as stack:
            etc = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for name, text in _ETC.items():
                (etc / name).write_text(text)
            self._make_hosts(stack, etc)
            self._lay_wires()
            self._configure()
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()

    def _make_hosts(self, stack: ExitStack, etc: Path) -> None:
        def host(name: str, release: str | None = None) -> Host:
            made = Host(name, etc, release)
            stack.callback(made.close)
            return made

        self.client = host("client", self._release)
        self.server = host("server", self._release)
        self.router = host("router")
        self.far = host("far")
        if self._with_lan:
            self.lan = host("lan")
        if self._with_nat:
            self.nat = host("nat")

    def _lay_wires(self) -> None:
        client_side = self.nat if self._with_nat else self.client
        wires = [
            (client_side, "eth1" if self._with_nat else "em0", self.router, "eth0"),
            (self.router, "eth1", self.server, "em0"),
            (self.server, "em1", self.far, "eth0"),
        ]
        if self._with_nat:
            wires.append((self.client, "em0", self.nat, "eth0"))
        if self._with_lan:
            wires.append((self.client, "em1", self.lan, "eth0"))
        machine.join(
            [
                (End(host.place, name, _ether(host, name)), End(peer.place, far, _ether(peer, far)))
                for host, name, peer, far in wires
            ]
        )

    def _configure(self) -> None:
        client = "198.51.100.7/24" if self._with_nat else "203.0.113.7/24"
        gateway = "198.51.100.1" if self._with_nat else "203.0.113.1"
        scripts = {
            self.client: f"""
                ifconfig em0 inet {client} up
                route -n add default {gateway}
                """,
            # no_dad: do not wait a second for that address in every test.
            self.server: """
                ifconfig em0 inet 192.0.2.1/24 up
                ifconfig em1 inet6 2001:db8:0:ff::1 prefixlen 64 no_dad up
                route -n add default 192.0.2.254
                sysctl net.inet6.ip6.forwarding=1
                """,
        }
        if self._with_lan:
            scripts[self.client] += "ifconfig em1 up\n"
        scripts |= {
            getattr(self, name): setup
            for name, setup in machine.SETUPS.items()
            if name in vars(self)
        }
        # The hosts do not wait for each other.
        running = {
            host: host.popen(["sh", "-ec", script], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
            for host, script in scripts.items()
        }
        for host, script in running.items():
            out, err = script.communicate(timeout=30 * SLOW)
            if script.returncode != 0 or err:
                raise CommandFailed(script.returncode, f"set-up of {host.name}", out, err)


def _ether(host: Host, interface: str) -> str:
    """An address from the documentation block: the same in every run."""
    number = ["client", "server", "router", "far", "lan", "nat"].index(host.name)
    return f"00:00:5e:00:53:{number:x}{interface[-1]}"
