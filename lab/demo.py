"""A demonstration for newcomers: a tunnel comes up, is used, and goes away again.

Everything shown really happens while it is shown, and every claim is checked:
the first one that fails ends the demo with one line and status 1.
"""

import os
import queue
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lab import SLOW, enclosure
from lab.capture import Packet
from lab.host import Host
from lab.internet import CLIENT4, FAR6, SERVER4, SERVER6, SERVER_NAME, Internet
from lab.machine import FREEBSD, machine
from lab.snapshot import difference

TYPES = ("host", "tunnelonly", "network")

CHECKOUT = Path(__file__).resolve().parents[1]
_WIDTH = 80  # of the terminal, if the output is none or does not know
USER, PASSWORD = "itojun", "correct horse"
SERVER_PREFIX = "2001:db8:1::"  # type host: the pairs of addresses come from it
DELEGATED = "2001:db8:3c3::/48"  # type network: routed to the user
_DELEGATED_ADDRESS = "2001:db8:3c3::1"
_OTHER4 = "203.0.113.8"  # the client's address for a while
_GATEWAY4 = "203.0.113.1"
_ICMPV6 = 58

PICTURE = f"""\
    client                router                server            far host
   (FreeBSD)        (the IPv4 internet)        (FreeBSD)     (the IPv6 internet)
 +-----------+      +-----------------+      +-----------+      +-----------+
 |   dtcpc   |em0 --|                 |-- em0|   dtcps   |em1 --|           |
 +-----------+      +-----------------+      +-----------+      +-----------+
 {CLIENT4}      203.0.113.1 192.0.2.254    {SERVER4}
       |                                     {SERVER6}   {FAR6}
       |                                           |
       +=== gif0: IPv6 packets in IPv4 packets ====+
"""


class _Failed(Exception):
    """A claim did not hold; the text says which and why."""


def main(kind: str, release: str) -> int:
    """Show a tunnel of type ``kind`` between two hosts of FreeBSD ``release``.

    Returns 0 if everything shown was true, 1 if not, or a status of
    ``enclosure.run``, in which the demo runs itself.
    """
    if not enclosure.inside():
        words = [sys.executable, "-m", "lab", "demo", "--type", kind, "--release", release]
        return enclosure.run(words)
    try:
        _Demo(kind, release).show()
    except BrokenPipeError:
        # The reader has closed the pipe; nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (_Failed, OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class _Demo:
    def __init__(self, kind: str, release: str) -> None:
        self._kind = kind
        self._release = release
        self._chapter = 0
        self._last = ""  # what was printed last: "prompt", "quote", ...
        self._width = _terminal_width()
        self._plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ

    def show(self) -> None:
        began = time.monotonic()
        self._note(
            f"A DTCP tunnel, from the first line to the last: type {self._kind},"
            f" both ends speaking FreeBSD {self._release}."
        )
        with Internet(self._release) as net:
            self._net = net
            self._write_files()
            self._show_network()
            before = {host: host.snapshot() for host in self._hosts}
            self._show_client_before()
            with net.router.capture("eth0", "ip proto 41") as capture, ExitStack() as programs:
                server = programs.enter_context(self._start_server())
                client = programs.enter_context(self._start_client(server))
                self._show_tunnel()
                self._show_ping()
                if self._kind == "network":
                    self._show_delegation()
                self._show_outer_packets(capture.packets)
                self._show_healing(client, server)
                self._stop(client, server)
            self._show_equal(before)
        self._put("")
        self._note(
            f"Shown in {time.monotonic() - began:.1f} s: a tunnel negotiated, configured, used,"
            " healed and taken down, and no trace of it left."
        )
        other = next(kind for kind in reversed(TYPES) if kind != self._kind)
        if FREEBSD:
            self._note(f"Try next: python3 -m lab demo --type {other}")
        else:
            self._note(f"Try next: make demo TYPE={other}; make demo RELEASE=13.2; make test")

    @property
    def _hosts(self) -> tuple[Host, ...]:
        return self._net.client, self._net.router, self._net.server, self._net.far

    def _write_files(self) -> None:
        """What the client's administrator has prepared."""
        path = "/usr/local/etc/dtcpc.auth"
        self._net.client.write(path, f"{SERVER_NAME}:{USER}:{PASSWORD}\n")

    # The chapters, in order.

    def _show_network(self) -> None:
        self._heading("The network")
        self._put("picture", PICTURE.rstrip())
        ping = self._net.client.run(machine.ping(FAR6, 1, 1), check=False)
        self._check("before the tunnel the far host cannot be reached", ping.returncode != 0)

    def _show_client_before(self) -> None:
        self._heading("The client before")
        self._show_interfaces_and_routes()

    def _start_server(self) -> "_Program":
        self._heading("The server starts")
        self._note("It gets a user first, whose password comes on standard input.")
        prefix = ["-P", DELEGATED] if self._kind == "network" else []
        words = ["add", *prefix, USER]
        command = [sys.executable, str(CHECKOUT / "dtcpauth.py"), *words]
        self._net.server.run(command, input=f"{PASSWORD}\n")
        self._prompt(self._net.server, " ".join(["dtcpauth", *words]))
        server = _Program(self._net.server, "dtcps.py", ["-D", SERVER_PREFIX])
        self._prompt(self._net.server, f"dtcps -D {SERVER_PREFIX}")
        server.wait_for("listening on port", self._quote)
        return server

    def _start_client(self, server: "_Program") -> "_Program":
        self._heading("The client logs in and configures the tunnel")
        self._note(">> is sent, << is received, # is a command that runs on the client.")
        self._note(f"Its password file has the line {SERVER_NAME}:{USER}:(the same password).")
        options = ["-d", "-l", "-t", self._kind, "-u", USER]
        if self._kind == "network":
            options += ["-A", f"{_DELEGATED_ADDRESS}/128"]
        words = [*options, SERVER_NAME]
        client = _Program(self._net.client, "dtcpc.py", words)
        self._prompt(self._net.client, " ".join(["dtcpc", *words]))
        try:
            client.wait_for(r"dtcpc: up after", self._quote)
        finally:
            self._show_log(server)  # especially if the server is to blame
        said = "\n".join(client.lines)
        self._check(
            "the server challenged, the client answered, the server granted",
            re.search(rf"<< \+OK [0-9A-F]{{32}} (?s:.*)>> tunnel {USER} (?s:.*)<< \+OK ", said),
        )
        self._check("the commands were seen as they ran", "# ifconfig gif" in said)
        self._check("the password was not", PASSWORD not in said)
        return client

    def _show_tunnel(self) -> None:
        self._heading("The client with its tunnel")
        seen = self._show_run(self._net.client, ["ifconfig", "gif0"])
        self._check(
            "the outer pair is right",
            f"tunnel inet {CLIENT4} --> {SERVER4}" in seen,
        )
        routes = self._show_run(self._net.client, ["netstat", "-rn", "-f", "inet6"])
        self._check("IPv6 goes through it", re.search(r"^default\s.*\sgif0", routes, re.M))

    def _show_ping(self) -> None:
        if self._kind == "tunnelonly":
            self._heading("A ping through the tunnel to its other end")
            self._note(
                "This type gives a link and no addresses: the ping goes to the link-local address"
                " of the server's gif0."
            )
        else:
            self._heading("A ping through the tunnel to the far host")
        self._ping(self._net.client, self._target())

    def _show_delegation(self) -> None:
        self._heading("The delegated prefix")
        routes = self._show_run(self._net.server, ["netstat", "-rn", "-f", "inet6"], DELEGATED)
        self._check(
            f"the server routes {DELEGATED} into the tunnel",
            re.search(rf"^{DELEGATED}\s.*\sgif0", routes, re.M),
        )
        self._note("From the far host to an address of that prefix, which the client has:")
        self._ping(self._net.far, _DELEGATED_ADDRESS)

    def _show_outer_packets(self, packets: Sequence[Packet]) -> None:
        self._heading("What the IPv4 internet saw of it")
        # Without data are those by which dtcpc sees that packets pass.
        echoes = [packet for packet in packets if _echo(packet) and len(packet.payload) > 48]
        if len(echoes) < 2:
            raise _Failed(f"the router saw only {len(echoes)} packets of the ping")
        self._note("tcpdump was listening on the router. The first request and the first reply:")
        self._prompt(self._net.router, "tcpdump -ntv -i eth0 ip proto 41")
        for packet in echoes[:2]:
            self._quote(packet.text)
        request, reply = echoes[:2]
        self._check(
            f"protocol 41 from {CLIENT4} to {SERVER4}, an echo request inside",
            (request.proto, request.src, request.dst, _echo(request))
            == (41, CLIENT4, SERVER4, "request"),
        )
        self._check(
            "and the reply the other way",
            (reply.proto, reply.src, reply.dst, _echo(reply)) == (41, SERVER4, CLIENT4, "reply"),
        )

    def _show_healing(self, client: "_Program", server: "_Program") -> None:
        self._heading("What happens to a tunnel, and how it heals")
        client.said()
        self._note("Somebody puts the interface down, as `service netif restart` does:")
        self._hurt(["ifconfig gif0 down"], client, "put back what was missing")
        self._note("The client's IPv4 address changes, as with a provider that gives a new one:")
        self._hurt(self._change_address(CLIENT4, _OTHER4), client, "up after")
        self._show_log(server)
        seen = self._show_run(self._net.client, ["ifconfig", "gif0"], "tunnel")
        self._check(
            "the same interface has the new outer pair",
            f"tunnel inet {_OTHER4} --> {SERVER4}" in seen,
        )

    def _hurt(self, commands: Sequence[str], client: "_Program", healed: str) -> None:
        """Run the commands on the client, and show how long it takes until packets pass again."""
        for command in commands:
            self._prompt(self._net.client, command)
        begun = time.monotonic()
        self._net.client.run(["sh", "-ec", "\n".join(commands)])
        client.wait_for(healed, self._quote)
        while self._net.client.run(machine.ping(self._target(), 1, 1), check=False).returncode:
            if time.monotonic() > begun + 30 * SLOW:
                raise _Failed("no packet passes any more")
        self._check(f"packets pass again after {time.monotonic() - begun:.1f} s", True)

    @staticmethod
    def _change_address(before: str, after: str) -> list[str]:
        return [
            f"ifconfig em0 inet {after}/24 alias",
            # FreeBSD deletes the route itself along with the address it was made with.
            "route -n delete default",
            f"ifconfig em0 inet {before} -alias",
            f"route -n add default {_GATEWAY4}",
        ]

    def _stop(self, client: "_Program", server: "_Program") -> None:
        self._heading("The take-down")
        self._prompt(self._net.client, f"kill -TERM {client.pid}")
        status = client.terminate(self._quote)
        self._show_log(server)
        self._prompt(self._net.server, f"kill -TERM {server.pid}")
        server_status = server.terminate(self._quote)
        self._check("client and server ended with status 0", status == server_status == 0)
        self._note("The client gets its old IPv4 address back.")
        self._net.client.run(["sh", "-c", "\n".join(self._change_address(_OTHER4, CLIENT4))])

    def _show_equal(self, before: dict[Host, dict[str, list[str]]]) -> None:
        self._heading("Before and after, compared")
        self._show_interfaces_and_routes()
        for host in self._hosts:
            after = host.snapshot()
            changes = difference(before[host], after)
            for line in changes:
                self._quote(f"{host.name}: {line}")
            facts = ", ".join(
                f"{len(after[name])} {name}" if after[name] else f"no {name}"
                for name in ("interfaces", "addresses", "IPv4 routes", "IPv6 routes", "processes")
            )
            self._check(f"{host.name} is as it was, with {facts}", not changes)
        self._note(
            "Compared were also: rules, settings and files, and what FreeBSD's commands show."
        )

    # What they are made of.

    def _show_interfaces_and_routes(self) -> None:
        self._show_run(self._net.client, ["ifconfig", "-a"])
        self._show_run(self._net.client, ["netstat", "-rn", "-f", "inet6"])

    def _show_log(self, program: "_Program") -> None:
        """What a program has printed in the meantime."""
        if lines := program.said():
            self._note("Meanwhile the server:")
            for line in lines:
                self._quote(line)

    def _target(self) -> str:
        """What can be reached through the tunnel."""
        if self._kind != "tunnelonly":
            return FAR6
        self._wait_for_link_locals()
        return self._link_local_of_server()

    def _link_local_of_server(self) -> str:
        seen = self._net.server.run(["ifconfig", "gif0"]).stdout
        found = re.search(r"inet6 (fe80::[0-9a-f:]+)%gif0", seen)
        if found is None:
            raise _Failed(f"the server's gif0 has no link-local address:\n{seen}")
        return f"{found[1]}%gif0"

    def _wait_for_link_locals(self) -> None:
        """Both ends first do duplicate address detection; on FreeBSD this takes a second."""
        limit = time.monotonic() + 10 * SLOW
        for host in self._net.client, self._net.server:
            while "tentative" in host.run(["ifconfig", "gif0"]).stdout:
                if time.monotonic() > limit:
                    raise _Failed(f"the link-local address of gif0 on {host.name} stays tentative")
                time.sleep(0.1)

    def _ping(self, host: Host, target: str) -> None:
        said = self._show_run(host, machine.ping(target, 3, 2), check=False)
        # Linux leaves out the second "packets".
        replied = re.search(r"\b3 packets transmitted, 3 (packets )?received", said)
        self._check("three requests, three replies", replied)

    def _show_run(
        self, host: Host, words: Sequence[str], only: str = "", *, check: bool = True
    ) -> str:
        """Run a command, show it and its lines (those that contain ``only``), return them."""
        self._prompt(host, " ".join(words) + (f" | grep {only}" if only else ""))
        lines = host.run(words, check=check).stdout.splitlines()
        lines = [line for line in lines if only in line]
        self._quote("\n".join(lines))
        return "\n".join(lines)

    def _heading(self, text: str) -> None:
        self._chapter += 1
        self._put("")
        self._put("")
        self._put("heading", self._colour("1", f"{self._chapter}. {text}"))

    def _note(self, text: str) -> None:
        for line in self._wrapped(text, ""):
            self._put("note", line)

    def _prompt(self, host: Host, words: str) -> None:
        name = f"{host.name}#"
        first, *more = self._wrapped(f"{name} {words}", "   ", "    ")
        self._put("prompt", "\n".join([first.replace(name, self._colour("36", name), 1), *more]))

    def _quote(self, text: str) -> None:
        """Show what a program printed."""
        for line in _squeezed(text.expandtabs().splitlines(), self._width - 6):
            for piece in self._wrapped(line, "      ", "    "):
                self._put("quote", piece)

    def _check(self, claim: str, holds: object) -> None:
        """A claim that is shown if it holds, and ends the demo if not."""
        if not holds:
            raise _Failed(f"not so: {claim}")
        first, *more = self._wrapped(claim, "        ")
        self._put("check", "   " + self._colour("32", "[ok]") + first[7:])
        for line in more:
            self._put("check", line)

    def _wrapped(self, line: str, indent: str, hanging: str = "") -> list[str]:
        """A line, indented and wrapped to the width; nothing for an empty one."""
        indent += " " * (len(line) - len(line.lstrip()))
        wrapper = _Wrapper(
            self._width,
            initial_indent=indent,
            subsequent_indent=indent + hanging,
            break_on_hyphens=False,
        )
        return wrapper.wrap(line.strip())

    def _colour(self, code: str, text: str) -> str:
        return text if self._plain else f"\x1b[{code}m{text}\x1b[0m"

    def _put(self, kind: str, line: str = "") -> None:
        """Print a line, after a blank one if something else begins."""
        goes_on = kind == self._last != "prompt" or (self._last, kind) == ("prompt", "quote")
        if self._last and kind and not goes_on:
            print()
        print(line, flush=True)
        self._last = kind


class _Wrapper(textwrap.TextWrapper):
    """Breaks lists of words without spaces, such as an interface's options, as well."""

    wordsep_simple_re = re.compile(r"(\s+|(?<=,)(?=[A-Z]))")


def _squeezed(lines: Sequence[str], width: int) -> list[str]:
    """A table with less space between its columns, if it is too wide."""
    squeezed = list(lines)
    place = max(map(len, squeezed), default=0)
    while place > 0 and max(map(len, squeezed)) > width:
        place -= 1
        if all(line[place : place + 2].isspace() or len(line) <= place for line in squeezed):
            squeezed = [line[:place] + line[place + 1 :] for line in squeezed]
    return squeezed


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _WIDTH
    except OSError:
        return _WIDTH


class _Program:
    """One of our programs, running in a host; its output is shown as it comes."""

    def __init__(self, host: Host, file: str, words: Sequence[str]) -> None:
        self._name = file
        self.lines: list[str] = []
        self._coming: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = host.popen(
            [sys.executable, str(CHECKOUT / file), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "_Program":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._reader.join(1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._coming.put(line.rstrip("\n"))
        self._coming.put(None)

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self) -> list[str]:
        """Its lines since the last look, without waiting for more."""
        count = self._coming.qsize()
        return [line for _ in range(count) if (line := self._next(time.monotonic())) is not None]

    def wait_for(self, pattern: str, show: Callable[[str], None], seconds: float = 20) -> None:
        """Show its lines as they come, up to the first that contains ``pattern``."""
        limit = time.monotonic() + seconds * SLOW
        while (line := self._next(limit)) is not None:
            show(line)
            if re.search(pattern, line):
                return
        raise _Failed(f"{self._name} ended with status {self._process.wait()}")

    def terminate(self, show: Callable[[str], None], seconds: float = 10) -> int:
        """Ask it to exit, show its last lines, and return its status."""
        limit = time.monotonic() + seconds * SLOW
        self._process.terminate()
        while (line := self._next(limit)) is not None:
            show(line)
        return self._process.wait()

    def _next(self, limit: float) -> str | None:
        try:
            line = self._coming.get(timeout=max(0, limit - time.monotonic()))
        except queue.Empty:
            raise _Failed(f"{self._name} says nothing more, and was expected to") from None
        if line is not None:
            self.lines.append(line)
        return line


def _echo(packet: Packet) -> str:
    """Whether there is an ICMPv6 echo in an outer packet: "request", "reply" or ""."""
    inner = packet.payload
    if packet.proto != 41 or len(inner) < 48 or inner[6] != _ICMPV6:
        return ""
    return {128: "request", 129: "reply"}.get(inner[40], "")
