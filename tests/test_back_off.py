"""How long a client waits before it tries again."""

from __future__ import annotations

import pytest
from dtcp.client.backoff import LONGEST, STABLE_TIME, BackOff


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [1000.0]
    monkeypatch.setattr("dtcp.client.backoff.time.monotonic", lambda: time[0])
    return time


def _tries_until(back_off: BackOff, now: list[float], end: float) -> list[float]:
    """The waits of a client that fails at once every time, until an attempt comes after `end`."""
    waits = []
    while now[0] < end:
        waits.append(back_off.next(now[0]))
        now[0] += waits[-1]
    return waits


@pytest.mark.hazard(18)
@pytest.mark.parametrize("gone", [1, 5, 10, 11, 12, 13, 15, 20, 30, 60, 120, 200, 600, 3600])
def test_the_wait_is_never_much_longer_than_the_trouble_was(now: list[float], gone: float) -> None:
    back_off = BackOff()
    back_off.up()
    now[0] += STABLE_TIME
    lost = now[0]
    waits = _tries_until(back_off, now, lost + gone)
    assert waits[0] == 0.0
    assert now[0] - lost - gone <= min(LONGEST, 1.4 * gone + 2)
    assert all(0.75 <= wait <= 2 for wait in waits[1:7])
    # Twelve seconds of short waits, the doubled ones, the long ones.
    assert len(waits) <= 18 + 9 + gone / (LONGEST * 0.75)


@pytest.mark.hazard(18)
def test_who_flaps_is_left_alone_until_he_is_stable(now: list[float]) -> None:
    back_off = BackOff()
    waits = []
    for _ in range(40):
        waits.append(back_off.next(now[0]))
        now[0] += waits[-1]
        back_off.up()
        now[0] += 1
    assert min(waits[30:]) >= LONGEST * 0.75
    now[0] += STABLE_TIME
    assert back_off.next(now[0]) == 0.0


@pytest.mark.hazard("C5")
def test_who_was_refused_waits_longest(now: list[float]) -> None:
    assert BackOff().next(now[0], most=True) == LONGEST
