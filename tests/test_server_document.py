"""docs/server.md to the letter: what it says to type is typed, on hosts of the lab."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pexpect
import pytest

from lab import SLOW
from lab.host import Host
from lab.internet import FAR6, Internet
from lab.snapshot import difference
from tests.port import ROOT, Port, stage
from tests.running import wait_until

pytestmark = pytest.mark.lab

PAGE = (ROOT / "docs/server.md").read_text()
STEPS = PAGE[PAGE.index("## Step by step") : PAGE.index("## When it does not work")]
SAMPLE = "0nWsMdeMJHtdYbwLB0pG"  # the password of the page; dtcpauth makes another one

# sysrc(8) and service(8), as far as the page goes; $RC_CONF stands for /etc/rc.conf.
SYSRC = f"""#!{sys.executable}
import os, shlex, sys
with open(os.environ["RC_CONF"], "a") as file:
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        file.write(f"{{name}}={{shlex.quote(value)}}\\n")
"""
SERVICE = """#!/bin/sh
name=$1; shift
exec "$(dirname "$0")/../etc/rc.d/$name" "$@"
"""


class Cut(NamedTuple):
    """One way to cut up a prefix: a column of the page's table, and its configuration."""

    pairs: str
    fixed: str
    config: str


def cuts() -> dict[str, Cut]:
    (_, *lengths), _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", PAGE[: PAGE.index("## Step by step")], re.M)
    )
    configs = re.findall(r"With the (/\d+), .*is:\n\n((?: {8}.*\n)+)", STEPS)
    return {
        length: Cut(rows[0][column], rows[1][column], re.sub("(?m)^ +", "", config))
        for column, (length, config) in enumerate(configs, 1)
        if lengths[column - 1].endswith(length)
    }


CUTS = cuts()


def test_the_page_has_what_is_tried_here() -> None:
    assert list(CUTS) == ["/40", "/48"]
    assert len(re.findall("^ +server# ", STEPS, re.M)) >= 9
    assert len(re.findall("^ +client# ", STEPS, re.M)) >= 8


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Port:
    """The port, installed, with stand-ins for commands of FreeBSD's base that the lab lacks."""
    installed = stage(tmp_path_factory.mktemp("page"))
    installed.install()
    installed.use_stand_in()
    for name, text in (("sysrc", SYSRC), ("service", SERVICE)):
        file = installed.prefix / "sbin" / name
        file.write_text(text)
        file.chmod(0o755)
    return installed


class Terminal:
    """root's terminal on a host."""

    def __init__(self, host: Host, prefix: Path) -> None:
        environment = ["RC_CONF=/run/rc.conf", f"RC_RELEASE={host.release}", "PS1=ready> "]
        script = f"PATH={shlex.quote(str(prefix))}/sbin:$PATH exec sh -i"
        words = host.argv(["env", *environment, "sh", "-c", script])
        self._spawned = pexpect.spawn(words[0], words[1:], encoding="utf-8", timeout=60 * SLOW)
        self._spawned.setwinsize(24, 1000)
        self._spawned.expect_exact("ready> ")

    def type(self, line: str) -> str:
        """What a command shows, which must succeed."""
        shown = self._answer(line)
        assert self._answer("echo $?").split() == ["0"], f"{line}\n{shown}"
        return shown

    def _answer(self, line: str) -> str:
        self._spawned.sendline(line)
        self._spawned.expect_exact("ready> ")
        text = str(self._spawned.before).replace("\r\n", "\n")
        return text.partition("\n")[2]  # after the echo

    def close(self) -> None:
        self._spawned.close(force=True)


@pytest.fixture
def terminals(net: Internet, port: Port) -> Iterator[dict[str, Terminal]]:
    made = {}
    for host in (net.server, net.client):
        host.write("/run/rc.conf", "")
        made[host.name] = Terminal(host, port.prefix)
    yield made
    for terminal in made.values():
        terminal.close()


@pytest.mark.parametrize("length", list(CUTS))
def test_a_server_and_its_first_client(
    net: Internet, port: Port, terminals: dict[str, Terminal], length: str
) -> None:
    cut = CUTS[length]
    before = net.client.snapshot()
    (port.prefix / "etc/dtcps.conf").write_text(cut.config)
    (port.prefix / "etc/dtcpc.auth").unlink(missing_ok=True)
    passwords: dict[str, str] = {}
    shown: dict[str, str] = {}
    for host, line in re.findall(r"^ +(server|client)# (.*)$", STEPS, re.M):
        typed = line.replace("/usr/local", str(port.prefix)).replace("www.freebsd.org", FAR6)
        typed = typed.replace(CUTS["/40"].fixed, cut.fixed)
        typed = typed.replace(SAMPLE, passwords.get("itojun", SAMPLE))
        if "--status" in line:
            wait_until("up", lambda: "up" in terminals["client"].type("dtcpc --status || :"))
        shown[line] = said = terminals[host].type(typed)
        if "--random" in line:
            passwords[line.split()[-1]] = said.strip()
    assert set(passwords) == {"itojun", "jun"}
    assert shown["dtcps --check"] == ""
    assert "path MTU" in shown["dtcpc --test -t host -u itojun tunnel.example.org"]
    assert "failed" not in shown["dtcpc --test -t host -u itojun tunnel.example.org"]
    assert "3 packets transmitted, 3 " in shown["ping -6 -c 3 www.freebsd.org"]
    address = re.search(r"itojun .*\s(\S+)\n", shown["dtcps --status"])
    assert address
    assert address[1].startswith(cut.pairs.removesuffix(":/64"))

    # The others of the table: the fixed prefix, and one out of the pool.
    terminals["client"].type("service dtcpc stop")
    for user, prefix in (("jun", cut.fixed), ("itojun", cut.config.split()[5].split("/")[0])):
        words = f"tunnel.example.org:{user}:{passwords[user]}"
        terminals["client"].type(f"echo {words} >/run/auth")
        command = f"dtcpc --test -t network --auth-file /run/auth -u {user} tunnel.example.org"
        said = terminals["client"].type(command)
        assert f"granted: type network, {prefix.split('/')[0]}" in said, said
    terminals["client"].type("rm /run/auth /run/rc.conf")
    terminals["server"].type("service dtcps stop")
    net.client.write("/run/rc.conf", "")
    assert difference(before, net.client.snapshot()) == []
