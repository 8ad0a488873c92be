"""The benchmark's own parts: its table, and the commands that do nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dtcp.look import Look

from bench import start, stubs
from bench.figures import Figure, not_measured, results, table
from tests.running import ROOT


def test_the_table_says_what_was_not_met_and_what_was_not_measured() -> None:
    figures = [
        Figure("speed", "9 ms", "another, 3 ms", 3.0, "at most 2 times", False),
        Figure("size", "1 MB | 2 MB", "", None, "", None),
        not_measured("taste", "nobody was there"),
    ]
    assert table(figures).splitlines() == [
        "[NO] speed: 9 ms",
        "        another, 3 ms; ratio 3.00; goal at most 2 times",
        "[--] size: 1 MB | 2 MB",
        "        ",
        "[--] taste: not measured",
        "        nobody was there",
    ]
    lines = results(figures, quick=True, seconds=1.0).splitlines()
    assert lines[-5:] == [
        "| figure | measured | against | ratio | goal | met |",
        "| --- | --- | --- | --- | --- | --- |",
        "| speed | 9 ms | another, 3 ms | 3.00 | at most 2 times | NO |",
        "| size | 1 MB \\| 2 MB |  |  |  |  |",
        "| taste | not measured | nobody was there |  |  |  |",
    ]


def test_round_trips_are_not_the_clients_fault() -> None:
    parts = [start.Times(0.010, 0.009), start.Times(0.008, 0.007), start.Times(0.060, 0.060)]
    figure = start._beyond("far", start.Times(0.110, 0.100), parts, 10, 0.040)
    assert figure.measured == "110 ms (best 100 ms)"
    assert "3 round trips 60 ms" in figure.against
    assert figure.against.endswith(": 32 ms (best 24 ms) beyond")
    assert figure.met
    assert not start._beyond("near", start.Times(0.110, 0.100), parts[:2], 10, 0.060).met


def test_a_server_is_as_far_away_as_it_was_told() -> None:
    with socket.create_server(("", 0)) as free:
        port, trip = free.getsockname()[1], 0.1
    words = ["kame", "--port", str(port), "--user", "u", "--password", "p"]
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/servers.py"), *words, "--round-trip", str(trip)],
        stderr=subprocess.PIPE,
    )
    try:
        assert server.stderr is not None
        assert server.stderr.readline() == b"ready\n"
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), 15) as client:
            assert client.recv(100).startswith(b"+OK ")
            greeted = time.monotonic()
            client.sendall(b"ping\r\n")
            assert client.recv(100).startswith(b"+OK ")
            assert greeted - begun >= 2 * trip  # TCP's handshake, and the greeting
            assert time.monotonic() - greeted >= trip
    finally:
        server.kill()
        server.communicate()


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    return stubs.make(tmp_path, first="0")


def run(commands: Path, line: str) -> tuple[int, str]:
    """The exit status of a command, and its standard output."""
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env={"PATH": f"{commands}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def test_the_stubs_remember_an_interface(commands: Path) -> None:
    create = "ifconfig gif create group dtcp description 'dtcpc me@there pid 7' mtu 1400"
    assert run(commands, create) == (0, "gif0\n")
    assert run(commands, f"{create} tunnel 192.0.2.1 203.0.113.7") == (0, "gif1\n")
    assert run(commands, "ifconfig gif0 tunnel 203.0.113.7 192.0.2.1") == (0, "")
    assert (
        run(commands, "ifconfig gif0 inet6 2001:db8:1::6 2001:db8:1::5 prefixlen 128 alias")[0] == 0
    )
    status, shown = run(commands, "ifconfig gif0")
    assert status == 0
    assert "mtu 1400\n\tdescription: dtcpc me@there pid 7\n" in shown
    assert "\ttunnel inet 203.0.113.7 --> 192.0.2.1\n" in shown
    assert "\tinet6 2001:db8:1::6 --> 2001:db8:1::5 prefixlen 128\n" in shown
    assert "tunnel inet 192.0.2.1 --> 203.0.113.7\n" in run(commands, "ifconfig -a")[1]
    assert run(commands, "ifconfig gif0 destroy") == (0, "")
    assert run(commands, "ifconfig gif0") == (1, "")
    assert "gif0" not in run(commands, "ifconfig -a")[1]


def test_the_stubs_remember_a_route(commands: Path) -> None:
    get = "route -n get -inet6 default"
    assert run(commands, get) == (1, "")
    assert run(commands, "route -n add -inet6 default -interface gif0")[0] == 0
    shown = run(commands, get)[1]
    assert "destination: ::\n" in shown
    assert "interface: gif0\n" in shown
    assert run(commands, "route -n delete -inet6 default -interface gif0")[0] == 0
    assert run(commands, get) == (1, "")
    assert run(commands, "route -n add -inet6 2001:db8:1::/48 ::1 -reject")[0] == 0
    assert "REJECT" in run(commands, "route -n get -inet6 2001:db8:1::/48")[1]


def test_the_stubs_look_at_everything_as_slowly_as_in_a_crowd(tmp_path: Path) -> None:
    commands = stubs.make(tmp_path, first="0", crowd=5000)
    for look in ("ifconfig -a", "netstat -i -b -n -W", "netstat -rnW -f inet6"):
        assert run(commands, f"timeout 1 {look}")[0] == 124
    status, shown = run(commands, "timeout 10 netstat -I gif0 -b -n -W")
    assert status == 0
    assert Look(lambda words: shown).traffic("gif0") == (104, 104)


def test_what_the_stubs_remember_can_be_forgotten(commands: Path) -> None:
    assert run(commands, "ifconfig gif create mtu 1280") == (0, "gif0\n")
    stubs.forget(commands)
    assert run(commands, "ifconfig gif create mtu 1280") == (0, "gif0\n")
