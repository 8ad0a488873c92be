"""What the newcomer is shown is true, in every type and release, or said not to be."""

import re

import pytest

from lab import demo
from lab.machine import machine

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("enclosed")]


@pytest.mark.parametrize("kind", demo.TYPES)
def test_everything_shown_holds(kind: str, release: str, capfd: pytest.CaptureFixture[str]) -> None:
    status = demo.main(kind, release)
    said = capfd.readouterr()
    assert (status, said.err) == (0, "")
    assert re.search("3 packets transmitted, 3 (packets )?received", said.out)
    assert "proto IPv6 (41)" in said.out
    assert "\x1b" not in said.out
    assert max(map(len, said.out.splitlines())) <= 100


def test_what_does_not_hold_ends_it_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "FAR6", "2001:db8:0:ff::dead")
    assert demo.main("host", machine.RELEASES[0]) == 1
    said = capfd.readouterr()
    assert said.err == "\ndemo: FAILED: not so: three requests, three replies\n"
    assert "The take-down" not in said.out
