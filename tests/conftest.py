"""What the tests share: a small internet each, in every release of FreeBSD we speak."""

from collections.abc import Iterator

import pytest

from lab import enclosure
from lab.internet import Internet
from tests import trust


def pytest_configure(config: pytest.Config) -> None:
    trust.configure(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the enclosure needs Linux: `-m "not lab"` leaves it out.

    The hazards that a test proves go into its report.
    """
    for item in items:
        if "enclosed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.lab)
        for mark in item.iter_markers("hazard"):
            item.user_properties.append(("hazard", mark.args))


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


@pytest.fixture(params=["15.1", "13.2"])
def release(request: pytest.FixtureRequest) -> str:
    """The FreeBSD release whose commands the hosts speak."""
    return str(request.param)


@pytest.fixture
def net(release: str, enclosed: None) -> Iterator[Internet]:
    """A fresh internet: client, router, server and a far host."""
    with Internet(release) as internet:
        yield internet
