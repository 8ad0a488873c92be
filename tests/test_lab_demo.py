"""What the demo shows is true, for every type and release, or the demo says it is not."""

import re
import sys

import pexpect
import pytest

from lab import SLOW, demo
from lab.machine import machine
from tests.running import ROOT

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("enclosed")]


@pytest.mark.turns(3)
@pytest.mark.parametrize("kind", demo.TYPES)
def test_everything_shown_holds(kind: str, release: str, capfd: pytest.CaptureFixture[str]) -> None:
    status = demo.main(kind, release)
    said = capfd.readouterr()
    assert (status, said.err) == (0, "")
    assert re.search("3 packets transmitted, 3 (packets )?received", said.out)
    assert "proto IPv6 (41)" in said.out
    assert "\x1b" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert re.search("^ +Destination +Gateway +Flags +Netif Expire$", said.out, re.M)


def test_a_terminal_has_lines_as_long_as_it_is_wide() -> None:
    words = ["-m", "lab", "demo", "--type", "network"]
    with pexpect.spawn(
        sys.executable, words, cwd=str(ROOT), timeout=60 * SLOW, dimensions=(24, 120)
    ) as terminal:
        terminal.expect(pexpect.EOF)
    said = re.sub("\x1b[^m]*m", "", terminal.before.decode())
    assert terminal.exitstatus == 0
    assert 100 < max(map(len, said.splitlines())) <= 120


def test_what_does_not_hold_ends_it_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "FAR6", "2001:db8:0:ff::dead")
    assert demo.main("host", machine.RELEASES[0]) == 1
    said = capfd.readouterr()
    assert said.err == "\ndemo: FAILED: not so: three requests, three replies\n"
    assert "The take-down" not in said.out
