"""`make demo SERVER=1`: all that the README lets a newcomer type works, and nothing stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pexpect
import pytest

from lab import SLOW, hands
from lab.internet import FAR6, SERVER4
from lab.machine import machine
from tests.running import ROOT

BY_HAND = [sys.executable, "-m", "lab", "demo", "--server"]
PROMPT = rf"\r\n(?:{'|'.join(hands.HOSTS)})# |{re.escape(hands.QUESTION)}"
TUNNEL = "dtcpc -Dl -t host -u itojun tunnel.example.org"


class Terminal:
    """A terminal at which somebody types."""

    def __init__(self, *words: str) -> None:
        self.child = pexpect.spawn(
            words[0],
            [*words[1:]],
            cwd=str(ROOT),
            encoding="utf-8",
            timeout=20 * SLOW,
            dimensions=(24, 200),
            env={**os.environ, "TERM": "dumb"},  # without the escape sequences of line editing
        )

    def expect(self, pattern: str) -> str:
        """Wait for it; what came before."""
        self.child.expect(pattern)
        return str(self.child.before)

    def type(self, line: str, until: str = PROMPT) -> list[str]:
        """Type a line; what it shows until the next prompt."""
        self.child.sendline(line)
        return [each.rstrip() for each in self.expect(until).splitlines()[1:]]

    def interrupt(self) -> None:
        self.child.sendintr()
        self.expect(PROMPT)

    @property
    def prompt(self) -> str:
        return str(self.child.after).strip()

    def status(self) -> int | None:
        self.expect_end()
        self.child.close()
        return self.child.exitstatus

    def expect_end(self) -> None:
        self.child.expect(pexpect.EOF)


@contextmanager
def at_terminal(*words: str) -> Iterator[Terminal]:
    terminal = Terminal(*words)
    try:
        yield terminal
    finally:
        terminal.child.close(force=True)


@pytest.fixture
def terminal(enclosed: None) -> Iterator[Terminal]:
    """With a shell on the client."""
    with at_terminal(*BY_HAND) as found:
        found.expect(PROMPT)
        yield found


def until_nothing_is_left(before: dict[str, set[str]]) -> None:
    limit = time.monotonic() + 20 * SLOW
    # What another test had left to end may have ended.
    while left := [
        each for what, found in machine.traces().items() for each in found - before[what]
    ]:
        assert time.monotonic() < limit, left
        time.sleep(0.05)


def until_up(terminal: Terminal) -> None:
    limit = time.monotonic() + 20 * SLOW
    while not any("up" in line for line in terminal.type("dtcpc --status")):
        assert time.monotonic() < limit
        time.sleep(0.2)


def readme() -> tuple[list[str], list[list[str]]]:
    """The lines that it says to type, with their prompts; what it says that each shows."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("## Trying it by hand\n")[2].partition("\n## ")[0]
    typed: list[str] = []
    shown: list[list[str]] = []
    for line in re.findall(r"(?m)^    (.+)", section):
        if re.match(r"make |\w+# |Next host ", line):
            typed.append(line)
            shown.append([])
        else:
            shown[-1].append(line)
    return typed, shown


def in_order(wanted: list[str], lines: list[str]) -> bool:
    """Whether these are among the lines, whatever time, counts and columns they have."""
    number = r"(?<![\w.:])\d+(\.\d+)?(?=(m?s)?(?![\w.:/%]))"
    there = iter([" ".join(re.sub(number, "N", line).split()) for line in lines])
    return all(" ".join(re.sub(number, "N", line).split()) in there for line in wanted)


def test_what_the_readme_says_is_shown_when_it_is_typed(enclosed: None) -> None:
    typed, shown = readme()
    assert typed.pop(0).startswith("make demo SERVER=1")
    with at_terminal(*BY_HAND) as terminal:
        terminal.expect(PROMPT)
        for line, lines in zip(typed, shown[1:], strict=True):
            prompt, _, words = line.rpartition("? ") if "? " in line else line.partition("# ")
            assert terminal.prompt.rstrip("?#") == prompt, line
            if words == "quit":
                terminal.child.sendline(words)
                break
            limit = time.monotonic() + 20 * SLOW
            # Who reads and types is slower than this.
            while not in_order(lines, said := terminal.type(words)):
                assert time.monotonic() < limit, (line, said)
                time.sleep(0.2)
        assert terminal.status() == 0


def test_an_interrupt_ends_the_command_and_nothing_else(terminal: Terminal) -> None:
    terminal.type(TUNNEL)
    until_up(terminal)
    terminal.type(f"ping {SERVER4}", until="icmp_seq=1")
    terminal.interrupt()
    assert terminal.prompt == "client#"
    terminal.type("exit")
    assert terminal.prompt == hands.QUESTION.strip()
    terminal.interrupt()
    assert terminal.prompt == hands.QUESTION.strip()
    terminal.child.sendcontrol("\\")
    assert terminal.type("elsewhere")[-1] == "elsewhere: there is no such host"
    terminal.type("server")
    assert "itojun" in "".join(terminal.type("dtcps --status"))
    terminal.type("exit")
    terminal.type("client")
    assert ", 0% packet loss" in "".join(terminal.type(f"ping -c 1 {FAR6}"))


@pytest.mark.alone
def test_a_command_can_be_stopped_and_go_on(terminal: Terminal) -> None:
    # Before it runs, the shell has the terminal, and cannot be stopped.
    terminal.type("sh -c 'echo here; exec sleep 1000'", until="\nhere")
    terminal.child.sendcontrol("z")
    terminal.expect(PROMPT)
    assert "sleep 1000" in "".join(terminal.type("jobs"))
    terminal.type("fg", until="exec sleep 1000")
    terminal.interrupt()
    assert "".join(terminal.type("jobs")) == ""
    # Nothing out there would wake the lab.
    terminal.type("exit")
    terminal.child.sendcontrol("z")
    terminal.type("server")
    assert terminal.prompt == "server#"


def test_a_shell_that_is_killed_is_not_the_end(terminal: Terminal) -> None:
    terminal.type("kill -9 $$")
    assert terminal.prompt == hands.QUESTION.strip()
    terminal.type("client")
    assert terminal.type("echo here") == ["here"]


def test_every_host_has_its_shell_and_leaves_no_history_in_the_home_directory(
    terminal: Terminal,
) -> None:
    for name in hands.HOSTS:
        assert terminal.prompt == f"{name}#"
        assert terminal.type("hostname; echo $HOME; pwd") == [name, "/run", "/"]
        terminal.type("exit")
        terminal.type(hands.HOSTS[(hands.HOSTS.index(name) + 1) % len(hands.HOSTS)])


def test_a_second_terminal_has_a_shell_too(enclosed: None) -> None:
    with at_terminal(*BY_HAND) as first, at_terminal("sh", "-i") as second:
        said = first.expect(PROMPT)
        command = said[said.index("a second terminal") :].splitlines()[3].strip()
        second.type(command)
        assert second.prompt == "router#"
        second.type("tcpdump -c 1 -n -i eth0 icmp", until="listening on")
        first.type(f"ping -c 1 {SERVER4}")
        assert f"203.0.113.7 > {SERVER4}: ICMP echo request" in second.expect(PROMPT)
        second.interrupt()
        first.type("exit")
        first.child.sendline("quit")
        assert first.status() == 0
        # The shell went with the lab: this is the one from which it was started.
        second.child.sendline("exit 3")
        second.child.sendline("exit 3")
        assert second.status() == 3


@pytest.mark.alone
@pytest.mark.turns(2)
@pytest.mark.parametrize("how", ["quit", "end of file"])
def test_nothing_is_left_when_the_last_shell_ends(enclosed: None, how: str) -> None:
    before = machine.traces()
    with at_terminal(*BY_HAND) as terminal:
        terminal.expect(PROMPT)
        terminal.type(TUNNEL)
        terminal.child.sendeof()
        terminal.expect(PROMPT)
        if how == "quit":
            terminal.child.sendline("quit")
        else:
            terminal.child.sendeof()
        assert terminal.status() == 0
    until_nothing_is_left(before)


@pytest.mark.alone
@pytest.mark.turns(2)
@pytest.mark.parametrize("leader", ["the lab", "a shell that tells nobody"])
def test_nothing_is_left_when_the_terminal_is_closed(enclosed: None, leader: str) -> None:
    before = machine.traces()
    words = BY_HAND if leader == "the lab" else ["sh", "-c", '"$@"; true', "sh", *BY_HAND]
    with at_terminal(*words) as terminal:
        terminal.expect(PROMPT)
        # To this one SIGHUP means something else.
        terminal.type(TUNNEL.replace("-Dl", "-dl"), until="up after")
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), terminal.child.child_fd)
        until_nothing_is_left(before)


@pytest.mark.alone
@pytest.mark.turns(2)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_is_killed(enclosed: None, number: signal.Signals) -> None:
    before = machine.traces()
    with at_terminal(*BY_HAND) as terminal:
        terminal.expect(PROMPT)
        terminal.child.kill(number)
        terminal.expect_end()
        terminal.child.wait()
    if number == signal.SIGKILL:
        # On FreeBSD the next run clears what is left.
        subprocess.run([sys.executable, "-m", "lab", "run", "true"], cwd=ROOT, check=True)
    until_nothing_is_left(before)


@pytest.mark.alone
@pytest.mark.turns(2)
@pytest.mark.parametrize("how", ["quit", "killed"])
def test_the_terminal_is_given_back(enclosed: None, how: str) -> None:
    script = '"$@"; stty -a; read answer; echo got $answer'
    with at_terminal("sh", "-c", script, "sh", *BY_HAND) as terminal:
        terminal.expect(PROMPT)
        if how == "killed":
            child = subprocess.check_output(["pgrep", "-P", str(terminal.child.pid)])
            os.kill(int(child), signal.SIGTERM)
        else:
            terminal.type("exit")
            terminal.child.sendline("quit")
        settings = terminal.expect(r"-tostop.*\n")
        assert not re.search(r"-(echo|icanon)\b", settings)
        terminal.type("hello", until="got hello")


def test_without_a_terminal_it_says_so_and_makes_nothing() -> None:
    done = subprocess.run(BY_HAND, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, done.stdout) == (64, b"")
    assert done.stderr.startswith(b"demo: ")
    assert done.stderr.count(b"\n") == 1
