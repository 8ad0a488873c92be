"""What the tests share: a small internet each, for every release of FreeBSD we support.

On FreeBSD that is the release of the machine; tests that cannot run there are excluded by name.
"""

import os
import signal
from collections.abc import Generator, Iterator

import hypothesis
import pluggy
import pytest

from lab import enclosure
from lab.internet import Internet
from lab.machine import FREEBSD, machine
from tests import left_out, selection, trust
from tests.selection import Rows

LEFT_OUT = pytest.StashKey[list[str]]()  # the reason for each test that is left out
ROWS = pytest.StashKey[Rows]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("selection", "which tests, and which rows of their tables")
    group.addoption("--all", action="store_true", help="everything, not a sample (see SAMPLE)")
    group.addoption("--check", action="store_true", help="what `make check` takes")
    group.addoption("--row", help="of the tables only this row")


def pytest_configure(config: pytest.Config) -> None:
    trust.configure(config)
    # How long an example takes is not what is tested: on a busy machine any may take long.
    hypothesis.settings.register_profile("dtcp", deadline=None)
    hypothesis.settings.load_profile("dtcp")
    config.stash[selection.NUMBER] = selection.sample_number()
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
    config.stash[selection.FOUND] = [*items]
    if not config.getoption("--all"):
        number, proven = config.stash[selection.NUMBER], selection.lab_is_proven()
        _keep(config, items, selection.choose(items, number, lab_is_proven=proven))
    if config.getoption("--check"):
        _keep(config, items, selection.for_check(items))
    if FREEBSD:
        reasons = {item: reason for item in items if (reason := left_out.why(item))}
        config.stash[LEFT_OUT] = list(reasons.values())
        _keep(config, items, [item for item in items if item not in reasons])
    # They mostly wait: one after the other while the rest runs, instead of at the end.
    items.sort(key=lambda item: not any(map(item.get_closest_marker, ("long", "whole"))))


def _keep(config: pytest.Config, items: list[pytest.Item], kept: list[pytest.Item]) -> None:
    left = set(items).difference(kept)
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = kept


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    """A row that failed names itself, and how to run it alone."""
    report = (yield).get_result()
    rows = item.stash.get(ROWS, None)
    if report.when == "call" and report.failed and rows is not None and rows.failed:
        report.sections.append(("rows that failed, alone", rows.how_to_repeat()))


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> Iterator[Rows]:
    """`for row in rows(table)`: those that are due in this run."""
    marker = request.node.get_closest_marker("turns")
    found = Rows(request.config, request.node.nodeid, marker.args[0] if marker else 1)
    request.node.stash[ROWS] = found
    yield found
    found.close()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not config.getoption("--all"):
        number = config.stash[selection.NUMBER]
        terminalreporter.write_line(f"a sample was taken: SAMPLE={number} takes the same again")
    reasons = config.stash.get(LEFT_OUT, None)
    for line in left_out.summary(reasons or []):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """A program that runs in the test's own process changes it, and must not for the next one."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """So it is with these: dtcpc ignores SIGINT in the end, and so would all that we start."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


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
