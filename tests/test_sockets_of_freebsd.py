"""A tunnel comes up where recvmsg(2) behaves as on FreeBSD."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.internet import Internet
from tests.running import ROOT, SERVER, Program, ping, serve

# For every Python that has it on its path.  Linux fills a buffer of CMSG_LEN; FreeBSD wants one of
# CMSG_SPACE, and drops what does not fit.
RECVMSG = """\
import os, socket

linux = socket.socket.recvmsg

def recvmsg(self, size, room=0, flags=0):
    data, came, flags, address = linux(self, size, 4096, flags)
    kept = []
    for level, kind, descriptors in came:
        if (room := room - socket.CMSG_SPACE(len(descriptors))) >= 0:
            kept.append((level, kind, descriptors))
            continue
        flags |= socket.MSG_CTRUNC
        for descriptor in memoryview(descriptors).cast("i"):
            os.close(descriptor)
    return data, kept, flags, address

socket.socket.recvmsg = recvmsg
"""


@pytest.fixture
def python_path(tmp_path: Path) -> Path:
    (tmp_path / "sitecustomize.py").write_text(RECVMSG)
    return tmp_path


def test_the_descriptors_are_lost_as_on_freebsd(python_path: Path) -> None:
    """What Python 3.11 did on 15.1: room for one descriptor is not enough for one."""
    script = """\
from socket import *
a, b = socketpair()
for receive in (lambda: recv_fds(b, 9, 1), lambda: recv_fds(b, 9, 2)):
    send_fds(a, [b"x"], [0])
    data, descriptors, flags, _ = receive()
    print(data, len(descriptors), flags & MSG_CTRUNC == MSG_CTRUNC)
"""
    words, path = [sys.executable, "-c", script], {"PYTHONPATH": str(python_path)}
    said = subprocess.run(words, env=path, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["b'x' 0 True", "b'x' 1 False"]


def test_a_tunnel_comes_up_all_the_same(net: Internet, python_path: Path) -> None:
    client = f"{sys.executable} {ROOT}/dtcpc.py -d -u itojun -t host {SERVER}"
    script = f"PYTHONPATH={python_path} exec {client}"
    with serve(net), Program(net.client, "tests/through", script) as program:
        program.wait_for("up after")
        assert ping(net.client)
        assert program.end() == 0
