"""What the tests share: a small internet each, in every release of FreeBSD we speak.

On FreeBSD that is the release of the machine; what cannot be tried there is left out by name.
"""

import os
import signal
from collections.abc import Iterator

import pytest

from lab import enclosure
from lab.internet import Internet
from lab.machine import FREEBSD, machine
from tests import left_out, trust

LEFT_OUT = pytest.StashKey[list[str]]()  # the reason for each test that is left out


def pytest_configure(config: pytest.Config) -> None:
    trust.configure(config)
    # nohup(1), and a shell in the background, have them ignored in us and whatever we start.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whatever needs the enclosure needs root: `-m "not lab"` leaves it out.

    The hazards that a test proves go into its report.
    """
    for item in items:
        if "enclosed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.lab)
        for mark in item.iter_markers("hazard"):
            item.user_properties.append(("hazard", mark.args))
    if FREEBSD:
        reasons = {item: reason for item in items if (reason := left_out.why(item))}
        config.hook.pytest_deselected(items=list(reasons))
        items[:] = [item for item in items if item not in reasons]
        config.stash[LEFT_OUT] = list(reasons.values())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    reasons = config.stash.get(LEFT_OUT, None)
    for line in left_out.summary(reasons or []):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """A program that runs in the test's own process changes it, and must not for the next one."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> trust.Figure:
    """`figure(promise, what, value)`: what this test shows, for docs/trust.md."""

    def say(promise: str, what: str, value: int | str) -> None:
        request.node.user_properties.append(("figure", (promise, what, value)))

    return say


@pytest.fixture
def enclosed() -> None:
    """For tests that make processes, interfaces or mounts: nothing may outlive the run."""
    if not enclosure.inside():
        pytest.fail(enclosure.OUTSIDE, pytrace=False)


@pytest.fixture(params=["real"] if FREEBSD else machine.RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """The FreeBSD release whose commands the hosts speak: on FreeBSD always its own."""
    return machine.RELEASES[0] if FREEBSD else str(request.param)


@pytest.fixture
def net(release: str, enclosed: None) -> Iterator[Internet]:
    """A fresh internet: client, router, server and a far host."""
    with Internet(release) as internet:
        yield internet
