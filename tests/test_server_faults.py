"""Faults of the system and the store while the server runs: they affect only those concerned."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys

import pytest

from lab.internet import Internet
from tests.running import PREFIX, ROOT, Program, Talker, serve, set_users, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.parametrize("release", ["15.1"], indirect=True)]

STORE = "/var/db/dtcps/dtcps.db"

SQL = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1], timeout=10) as store:
    store.execute(sys.argv[2])
"""

TWICE = """
import hashlib, socket
with socket.create_connection(("192.0.2.1", 20200), 20, ("203.0.113.20", 0)) as sock:
    file = sock.makefile("rb")
    challenge = file.readline().split()[1].decode()
    digest = hashlib.md5(f"jun{challenge}hidden".encode()).hexdigest().upper()
    sock.sendall(f"tunnel jun {digest} host\\r\\n".encode() * 2)
    print(file.readline().decode().strip(), flush=True)
    print(file.read().decode().strip(), flush=True)
"""


def _sql(net: Internet, statement: str) -> None:
    net.server.run([sys.executable, "-c", SQL, STORE, statement])


def _fault(net: Internet, **rule: object) -> None:
    net.server.write("/run/freebsd/faults", json.dumps([rule]))


def test_a_store_that_fails_between_two_requests_ends_nobody_elses_tunnel(net: Internet) -> None:
    with serve(net) as server, Talker(net, "itojun", "secret", "network") as other:
        assert other.answer.startswith("+OK")
        mark = f"dtcps jun@203.0.113.20 pid {server.pid}"
        _fault(net, command="ifconfig", match=["create", mark], do="hang")
        net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
        said = net.client.popen([sys.executable, "-c", TWICE], stdout=-1)
        server.wait_for(f"ifconfig gif create .*{mark}")
        _sql(net, "ALTER TABLE user RENAME COLUMN password TO hidden")
        assert said.communicate(timeout=30)[0].splitlines() == [
            "-ERR internal error",
            "-ERR internal error",
        ]
        server.wait_for("the store cannot be read: .*no such column")
        _sql(net, "ALTER TABLE user RENAME COLUMN hidden TO password")
        assert other.process.poll() is None
        assert server.end() == 0


def test_no_descriptor_is_left_for_a_tunnel_over_udp(net: Internet) -> None:
    with serve(net, "-U") as server:
        free = min(set(range(1000)) - {int(fd) for fd in os.listdir(f"/proc/{server.pid}/fd")})
        before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (free + 1, before[1]))
        with Talker(net, "jun", "hidden", "tunnelonly udp=4028") as talker:
            assert talker.answer == "-ERR tunnel interface sold out"
        server.wait_for("jun: no socket over UDP: Too many open files")
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
        with Talker(net, "jun", "hidden", "tunnelonly udp=4028") as talker:
            assert re.fullmatch(
                r"\+OK 203.0.113.7 192.0.2.1 udp=4028 key=[0-9a-f]{32}", talker.answer
            )
        assert server.end() == 0


def test_a_take_down_leaves_alone_what_is_somebody_elses_by_now(net: Internet) -> None:
    with serve(net) as server:
        with Talker(net, "itojun", "secret", "network") as talker:
            assert talker.answer.startswith("+OK")
            net.server.run(["ifconfig", "gif0", "destroy"])
            net.server.run(["ifconfig", "gif0", "create"])
        server.wait_for("itojun: down")
        assert server.end() == 0
        assert "gif0" in net.server.run(["ifconfig", "-l"]).stdout


def test_a_roll_back_that_failed_is_told_and_tried_again(net: Internet) -> None:
    with serve(net) as server:
        rules = [
            {"command": "route", "match": ["add", "2001:db8:3c3::/48"], "do": "exit1"},
            {"command": "ifconfig", "match": ["gif0", "destroy"], "do": "exit1"},
        ]
        net.server.write("/run/freebsd/faults", json.dumps(rules))
        with Talker(net, "itojun", "secret", "network") as talker:
            assert talker.answer == "-ERR internal error"
        server.wait_for("itojun: could not be undone: ifconfig gif0 destroy: something went wrong")
        with Talker(net, "itojun", "secret", "network") as talker:
            assert talker.answer.startswith("+OK"), "\n".join(server.lines)
            gifs = re.findall(r"gif\d+", net.server.run(["ifconfig", "-l"]).stdout)
            assert len(gifs) == 1
        assert server.end() == 0


def test_routes_that_refuse_survive_a_reload_that_fails(net: Internet) -> None:
    with serve(net) as server:
        _fault(net, command="route", match=["add", "2001:db8:7::/48"], do="exit1")
        net.server.write("/usr/local/etc/dtcps.conf", "unreachable = 2001:db8:7::/48\n")
        server.send(signal.SIGHUP)
        server.wait_for("nothing was changed: ")
        shown = net.server.run(["route", "-n", "get", "-inet6", "2001:db8:1::/64"]).stdout
        assert "REJECT" in shown
        assert server.end() == 0


def test_a_reload_checks_what_the_start_checks_and_refusals_are_told(net: Internet) -> None:
    with serve(net) as server:
        net.server.write("/usr/local/etc/dtcps.conf", "prefix = 2001:db8:3c3::/64\n")
        server.send(signal.SIGHUP)
        server.wait_for("nothing was changed: itojun has 2001:db8:3c3::/48, which overlaps prefix")
        with Talker(net, "jun", "hidden", "network") as talker:
            assert talker.answer.startswith("-ERR")
            server.wait_for(f"203.0.113.7: jun: {re.escape(talker.answer[5:])}")
        assert server.end() == 0


def test_a_tunnel_in_another_fib_is_not_the_one_that_was(net: Internet) -> None:
    net.server.run(["sysctl", "net.fibs=3"])
    with serve(net, "-F", "1") as server, Talker(net, "itojun", "secret", "host") as talker:
        assert talker.answer.startswith("+OK")
        server.end(signal.SIGKILL)
    with serve(net, "-F", "2") as server, Talker(net, "itojun", "secret", "host") as talker:
        assert talker.answer.startswith("+OK")
        assert not any("as it was" in line for line in server.lines)
        assert server.end() == 0


@pytest.mark.parametrize("words", [("-c", "-i", "gif3"), ("-o",)])
def test_a_kept_interface_is_free_again_after_a_kill(net: Internet, words: tuple[str, ...]) -> None:
    """One that was being made: the store does not know it."""
    name = "gif3" if "-c" in words else "gif0"
    net.server.run(["ifconfig", name, "create"])
    mark = ["group", "dtcp", "description", "dtcps jun@203.0.113.9 pid 7"]
    net.server.run(["ifconfig", name, *mark, "up", "tunnel", "192.0.2.1", "203.0.113.9"])
    with serve(net, *words) as server:
        server.wait_for(f"removing {name}, which")
        server.wait_for(f"# ifconfig {name} down")

        def gets_it() -> bool:  # not before the loop has heard of it
            with Talker(net, "itojun", "secret", "network"):
                return any(f"itojun: up: {name} to" in line for line in server.lines)

        wait_until("it is free", gets_it)
        assert server.end() == 0


def test_status_waits_for_no_login(net: Internet) -> None:
    names = ["u1", "u2", "u3", "u4"]  # as many as there are workers
    for number, _ in enumerate(names, 20):
        net.client.run(["ifconfig", "em0", "inet", f"203.0.113.{number}/32", "alias"])
    set_users(net.server, "".join(f"{name}:secret\n" for name in names))
    # All of them hang for longer than it takes to start them, and to ask.
    with Program(net.server, "tests/hasty", "run.LIMIT=30", "dtcps", "-d", PREFIX) as server:
        server.wait_for("listening")
        rules = [
            {"command": "ifconfig", "match": ["gif", "create"], "do": "hang", "nth": nth}
            for nth in range(1, 5)
        ]
        net.server.write("/run/freebsd/faults", json.dumps(rules))
        for number, name in enumerate(names, 20):
            own = f"203.0.113.{number}"
            words = [str(ROOT / "tests/talk.py"), "192.0.2.1", name, "secret", "tunnelonly", own]
            net.client.popen([sys.executable, *words], stdin=-1, stdout=-1)
        for name in names:
            server.wait_for(f"ifconfig gif create .*dtcps {name}@")
        shown = net.server.run([sys.executable, str(ROOT / "dtcps.py"), "--status"]).stdout
        hanging = [each for each in names if not any(f"{each}: the tun" in x for x in server.lines)]
        assert shown.startswith("up for ")
        assert hanging == names
        assert server.end() == 0
