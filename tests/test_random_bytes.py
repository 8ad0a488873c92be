"""A hundred thousand conversations with each end, in which anything may be wrong.

Whatever is sent, and however it is split: the outcome is documented, nothing else is raised,
nothing piles up.  `SEED=word` in the environment generates different conversations.
"""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from tests.conversations import SEED, TYPES, chance, client_says, server_says
from tests.outcomes import of_client, of_session
from tests.trust import Figure

CONVERSATIONS = 100_000
SHARES = 10  # each commit has another one


def converse(name: str, share: int, one: Callable[[str, int], str]) -> Counter[str]:
    """Have a share of the conversations; how often each thing came of one."""
    each = CONVERSATIONS // SHARES
    seen: Counter[str] = Counter()
    before = None
    for number in range(share * each, (share + 1) * each):
        try:
            seen[one(name, number)] += 1
        except Exception as error:
            raise AssertionError(f"in conversation {number} of SEED={SEED}: {error!r}") from error
        if number == share * each + each // 10:  # everything that is kept once is there now
            before = _kept()
    assert before is not None
    blocks, descriptors = _kept()
    assert descriptors == before[1]
    assert blocks - before[0] < each // 10, f"{blocks - before[0]} blocks of memory more"
    return seen


def _kept() -> tuple[int, int]:
    """Blocks of memory and descriptors in use."""
    gc.collect()
    return sys.getallocatedblocks(), len(os.listdir("/dev/fd"))


def _with_client(name: str, number: int) -> str:
    r = chance(name, number)
    tunnel_type, udp, nat = r.choice(TYPES), r.choice((None, None, 4028, 0)), r.random() < 0.2
    return of_client(server_says(r), tunnel_type, udp, nat)


def _with_session(name: str, number: int) -> str:
    r = chance(name, number)
    challenge = r.randbytes(16).hex().upper()
    answers = ("accept",) * 3 + ("refuse", "wait")
    return of_session(client_says(r, challenge), challenge, lambda: r.choice(answers))


PROMISE = "Whatever bytes come, what comes of them is documented, and nothing piles up"

# What must come of some conversations at least, or they do not go deep enough.
OF_CLIENT = {
    *("granted", "refused", "refused for now", "lost", "behind a NAT", "nothing"),
    *("protocol: this is no DTCP server", "protocol: no challenge in the greeting"),
    *("protocol: neither +OK nor -ERR", "granted, protocol: a reply nobody asked for"),
    *("protocol: unexpected data before the login", "protocol: a line of more than 512 bytes"),
    "protocol: unexpected data behind the reply to the login",
    *("protocol: a carriage return or NUL inside a line", "granted, lost"),
}


@pytest.mark.long
@pytest.mark.hazard(2, 3, 4, 6, 7, 8, 13)
@pytest.mark.turns(SHARES)
@pytest.mark.parametrize("share", range(SHARES))
def test_a_client_makes_something_documented_of_any_server(share: int, figure: Figure) -> None:
    seen = converse("client", share, _with_client)
    assert OF_CLIENT - set(seen) == set()
    assert (
        sum(n for came, n in seen.items() if came.startswith("granted")) > sum(seen.values()) / 20
    )
    assert len([each for each in seen if each.startswith("grant: ")]) > 5
    figure(PROMISE, "conversations with the client", sum(seen.values()))


OF_SERVER = {
    *("open", "open, with a tunnel", "ended: the client closed the connection"),
    *("ended: the client said quit", "ended: timed out", "ended: too many failed logins"),
    *("ended: too many invalid commands", "protocol: a carriage return or NUL inside a line"),
    *("protocol: too much at once", "protocol: a line of more than 512 bytes"),
}


@pytest.mark.long
@pytest.mark.hazard(37, 38, 39, 40, 46, 47)
@pytest.mark.turns(SHARES)
@pytest.mark.parametrize("share", range(SHARES))
def test_a_session_makes_something_documented_of_any_client(share: int, figure: Figure) -> None:
    seen = converse("server", share, _with_session)
    assert OF_SERVER - set(seen) == set()
    assert seen["open, with a tunnel"] > sum(seen.values()) / 20
    figure(PROMISE, "conversations with the server", sum(seen.values()))
