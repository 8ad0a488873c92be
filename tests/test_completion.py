"""What completes our command lines in a shell, made from the parsers of the programs."""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from dtcp import wire
from dtcp.client import options
from dtcp.server import imports

import dtcpauth
import dtcps
from tests.port import ROOT, needs

PARSERS = {"dtcpc": options.parser, "dtcps": dtcps.parser, "dtcpauth": dtcpauth.parser}
COMMANDS: dict[str, argparse.ArgumentParser] = next(
    action.choices
    for action in dtcpauth.parser()._actions
    if isinstance(action, argparse._SubParsersAction)
)

Complete = Callable[[str], list[str]]


@functools.cache
def completion(shell: str, program: str) -> str:
    words = [sys.executable, str(ROOT / "etc/completion.py"), shell, program]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


@pytest.fixture
def complete(tmp_path: Path) -> Complete:
    """What an interactive bash makes of the last word of a line: all that it could be."""
    for program in PARSERS:
        (tmp_path / program).write_text(completion("bash", program))
    ifconfig = tmp_path / "ifconfig"
    ifconfig.write_text('#!/bin/sh\n[ "$*" = -l ] && echo em0 em1 gif0\n')
    ifconfig.chmod(0o755)
    (tmp_path / "hosts").write_text("192.0.2.1 tunnel.example.org\n")
    for name in ("dtcpc.auth", "dtcpc b.auth"):
        (tmp_path / name).touch()

    def ask(line: str) -> list[str]:
        bash = pexpect.spawn(
            needs("bash", "bash"),
            ["--norc", "--noprofile", "-i"],
            cwd=str(tmp_path),
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "TERM": "dumb", "HISTFILE": ""},
            dimensions=(24, 1000),
            encoding="utf-8",
            timeout=30,
        )
        bash.sendline(
            "HOSTFILE=hosts; " + "".join(f". ./{each}; " for each in PARSERS) + "PS1='<'\\>"
        )
        bash.expect("<>$")
        # Readline puts in all that is possible (M-*), and the words go to a file, one a line.
        bash.send(f"{line}\x1b*\x01printf '%s\\n' \x05 >said\r")
        bash.expect("\n<>$")
        bash.sendline("exit")
        bash.expect(pexpect.EOF)
        bash.close()
        before = line.split(" ")[:-1]
        said = (tmp_path / "said").read_text().splitlines()
        assert said[: len(before)] == before
        return sorted(said[len(before) :])

    return ask


@pytest.mark.parametrize("program", PARSERS)
def test_bash_knows_every_option(complete: Complete, program: str) -> None:
    assert complete(f"{program} -") == sorted(options_of(PARSERS[program]()))


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_knows_the_options_of_each_command(complete: Complete, command: str) -> None:
    assert complete(f"dtcpauth --store x {command} -") == sorted(options_of(COMMANDS[command]))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dtcpc tunn", ["tunnel.example.org"]),
        ("dtcpc --tr", ["--transport"]),
        ("dtcpc -t ", sorted(wire.TYPES)),
        ("dtcpc -l -t tunnel", ["tunnelonly", "tunnelroute"]),
        ("dtcpc -t host -r s", ["solicit", "static"]),
        ("dtcpc -i ", ["em0", "em1", "gif0"]),
        ("dtcpc -s ./dtcpc", ["./dtcpc", "./dtcpc b.auth", "./dtcpc.auth"]),
        ("dtcpc --auth-file dtcpc.", ["dtcpc.auth"]),
        ("dtcpc -m ", []),  # a number: no file is offered
        ("dtcps --st", ["--status"]),
        ("dtcps --config hos", ["hosts"]),
        ("dtcpauth --store ifc", ["ifconfig"]),
        ("dtcpauth --store x ", sorted(COMMANDS)),
        ("dtcpauth import ", sorted(imports.KINDS)),
        ("dtcpauth import --replace json dtcpc.", ["dtcpc.auth"]),
        ("dtcpauth delete ", []),
    ],
)
def test_bash_completes(complete: Complete, line: str, words: list[str]) -> None:
    assert complete(line) == words


# How an option is spelled for each.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "fish": lambda option: f"-l {option[2:]}" if option[1] == "-" else f"-s {option[1:]}",
    "tcsh": lambda option: option[1:],
    "zsh": lambda option: option,
}


@pytest.mark.parametrize("shell", SPELLINGS)
@pytest.mark.parametrize("program", PARSERS)
def test_the_other_shells_are_told_of_the_same_options(shell: str, program: str) -> None:
    text = completion(shell, program)
    parsers = [PARSERS[program](), *(COMMANDS.values() if program == "dtcpauth" else ())]
    for option in set().union(*map(options_of, parsers)):
        word = re.escape(SPELLINGS[shell](option))
        assert re.search(rf"(?<![\w-]){word}(?![\w-])", text), option
