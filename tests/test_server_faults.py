"""Faults of the system, and of the store, while the server serves: they touch whom they concern."""

from __future__ import annotations

import json
import os
import resource
import sys

import pytest

from lab.internet import Internet
from tests.running import Talker, serve

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
            assert talker.answer == "+OK 203.0.113.7 192.0.2.1 udp=4028"
        assert server.end() == 0
