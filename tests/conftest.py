"""What the tests share: a small internet each, in every release of FreeBSD we speak."""

from collections.abc import Iterator

import pytest

from lab import enclosure
from lab.internet import Internet


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the enclosure needs Linux: `-m "not lab"` leaves it out."""
    for item in items:
        if "enclosed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.lab)


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
