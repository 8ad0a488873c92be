"""What a running dtcpc tells of itself (--status): the facts, for people and for machines.  No I/O.

The ledger keeps them for other processes.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from dtcp.text import metric, size, span

NOT_RUNNING = "not running"
STATES = ("connecting", "up", "waiting", "testing", NOT_RUNNING)


class Facts(NamedTuple):
    """What a running dtcpc tells of itself.

    Points in time are in seconds of the monotonic clock, which nobody sets, and which is the same
    for all processes of a host.
    """

    state: str  # one of STATES; testing: --test
    pid: int = 0
    server: str = ""
    user: str = ""
    type: str = ""
    mtu: int | None = None
    reconnects: int = 0
    last_reason: str | None = None  # of the last one
    next_attempt: float | None = None  # when waiting
    since: float | None = None  # the tunnel is up
    lines: tuple[str, ...] = ()  # about the tunnel, for people
    interface: str | None = None
    local: str | None = None  # the outer addresses
    remote: str | None = None
    inner: str | None = None  # the inner addresses
    peer: str | None = None
    prefixes: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    lan: tuple[str, ...] = ()  # `interface address/length`
    data: str | None = None  # do packets pass: unproven, passing or silent
    rtt_ms: float | None = None  # there and back through the tunnel, when last measured
    transport: str | None = None  # gif (protocol 41) or udp
    bytes_in: int | None = None  # through the tunnel interface, as whoever asks finds them
    bytes_out: int | None = None


def read(found: Any) -> Facts | None:
    """The facts as a ledger has them, also one of an earlier version; None if there are none."""
    if not isinstance(found, dict) or "state" not in found:
        return None
    facts: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each
        for name, each in found.items()
        if name in Facts._fields
    }
    return Facts(**facts)


def as_json(facts: Facts | None) -> dict[str, object]:
    """The facts for machines, with the time of day in seconds since the epoch."""
    if facts is None:
        return {"state": NOT_RUNNING}
    day = _start_of_clock()
    return facts._asdict() | {
        name: moment and day + moment
        for name, moment in (("since", facts.since), ("next_attempt", facts.next_attempt))
    }


def _start_of_clock() -> float:
    """The time of day at which the monotonic clock was 0."""
    return time.time() - time.monotonic()


def as_prometheus(facts: Facts | None, tunnel: str) -> list[str]:
    """The facts in Prometheus' text format; by the name `tunnel` it is told from others."""
    now = facts or Facts(NOT_RUNNING)
    is_up = now.state == "up"
    rtt = now.rtt_ms / 1000 if is_up and now.rtt_ms is not None else None
    since = round(_start_of_clock() + now.since, 3) if is_up and now.since is not None else None
    states = [({"tunnel": tunnel, "state": each}, int(each == now.state)) for each in STATES]
    lines = metric("dtcpc_state", "gauge", "1 for the state that it is in.", states)
    for name, kind, what, value in (
        ("up", "gauge", "Whether the tunnel is up.", int(is_up)),
        (
            "packets_passing", "gauge", "Whether packets came back through it when last seen to.",
            int(is_up and now.data == "passing"),
        ),
        ("rtt_seconds", "gauge", "Time there and back through it, when last measured.", rtt),
        ("received_bytes_total", "counter", "Bytes that came through it.", now.bytes_in),
        ("sent_bytes_total", "counter", "Bytes that went through it.", now.bytes_out),
        ("reconnects_total", "counter", "How often it was lost and came back.", now.reconnects),
        ("up_since_timestamp_seconds", "gauge", "When it came up.", since),
    ):  # fmt: skip
        lines += metric(f"dtcpc_{name}", kind, what, [({"tunnel": tunnel}, value)])
    return lines


def as_text(facts: Facts | None) -> list[str]:
    """The facts as lines for people, the first of which says the most."""
    if facts is None:
        return [NOT_RUNNING]
    now = time.monotonic()
    head = {
        "up": f"up for {span(now - (facts.since or now))}{_passing(facts)}",
        "waiting": f"trying again {_when((facts.next_attempt or now) - now)}",
        "testing": "being tested",
    }.get(facts.state, "logging in")
    lines = [f"{head}: {facts.server} as {facts.user}, type {facts.type}", *facts.lines]
    if facts.bytes_in is not None:
        lines.append(f"{size(facts.bytes_in)} bytes in, {size(facts.bytes_out)} bytes out")
    if facts.state == "waiting" and facts.last_reason:
        lines.append(f"because: {facts.last_reason}")
    elif facts.reconnects:
        lines.append(f"logged in again {facts.reconnects} times, last: {facts.last_reason}")
    return [*lines, f"pid {facts.pid}"]


def _when(seconds: float) -> str:
    return f"in {span(seconds)}" if seconds >= 1 else "now"


def _passing(facts: Facts) -> str:
    """Whether packets pass, as far as is known."""
    match facts.data:
        case "passing":
            return f", packets pass ({facts.rtt_ms:.0f} ms)" if facts.rtt_ms else ", packets pass"
        case "unproven":
            return ", nothing has come back yet"
        case "silent":
            return ", nothing comes back"
    return ""
