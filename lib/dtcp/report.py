"""What a running server tells of itself: for people, for machines, for Prometheus.  No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dtcp.store import Tunnel


class Traffic(NamedTuple):
    """Bytes through an interface since it was made."""

    received: int
    sent: int


class Counts(NamedTuple):
    """What has happened since the server was started, and what there is now."""

    started: float  # seconds since the epoch
    connections: int = 0
    logins: int = 0
    adopted: int = 0
    refused: int = 0  # logins that failed
    turned_away: int = 0  # connections
    unclaimed: int = 0  # tunnels whose clients have not come back yet


def facts(
    counts: Counts, tunnels: Sequence[Tunnel], traffic: Mapping[str, Traffic]
) -> dict[str, object]:
    """All of it, fit for JSON."""
    told: dict[str, object] = dict(counts._asdict())
    told["tunnels"] = [_tunnel(tunnel, traffic.get(tunnel.interface)) for tunnel in tunnels]
    return told


def _tunnel(tunnel: Tunnel, traffic: Traffic | None) -> dict[str, object]:
    grant = tunnel.grant
    return {
        "user": tunnel.user,
        "type": tunnel.type,
        "from": str(grant.local),
        "since": tunnel.since,
        "interface": tunnel.interface,
        "address": str(grant.inner) if grant.inner else None,
        "prefixes": list(map(str, grant.prefixes)),
        "udp": grant.ports is not None,
        "received": traffic.received if traffic else None,
        "sent": traffic.sent if traffic else None,
    }


def text(told: Mapping[str, object], now: float) -> list[str]:
    """The same as lines for a person."""
    tunnels = told["tunnels"]
    assert isinstance(tunnels, list)
    started = told["started"]
    assert isinstance(started, (int, float))
    lines = [
        f"up for {_span(now - started)}, {len(tunnels)} tunnels, {told['connections']} connections,"
        f" {told['logins']} logins, {told['refused']} refused"
    ]
    if told["unclaimed"]:
        lines.append(f"{told['unclaimed']} tunnels wait for their clients to come back")
    if tunnels:
        rows = [("USER", "FROM", "IF", "FOR", "IN", "OUT", "HAS")]
        rows += [
            (
                each["user"],
                each["from"] + (" (udp)" if each["udp"] else ""),
                each["interface"],
                _span(now - each["since"]),
                _bytes(each["received"]),
                _bytes(each["sent"]),
                ",".join([*filter(None, [each["address"]]), *each["prefixes"]]) or "-",
            )
            for each in tunnels
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (f"{word:<{width}}" for word, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
    return lines


def _span(seconds: float) -> str:
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours >= 48:
        return f"{hours // 24}d"
    if minutes >= 120:
        return f"{hours}h"
    return f"{minutes}m" if minutes else f"{max(0, int(seconds))}s"


def _bytes(count: int | None) -> str:
    if count is None:
        return "?"
    size = float(count)
    for unit in ("", "k", "M", "G"):
        if size < 1000:
            return f"{size:.0f}{unit}" if not unit or size >= 10 else f"{size:.1f}{unit}"
        size /= 1000
    return f"{size:.1f}T"


_METRICS = (
    ("connections", "gauge", "Open control connections."),
    ("unclaimed", "gauge", "Tunnels of an earlier run whose clients have not come back."),
    ("logins", "counter", "Logins that succeeded."),
    ("adopted", "counter", "Logins that took over a standing tunnel."),
    ("refused", "counter", "Logins that failed."),
    ("turned_away", "counter", "Connections turned away by a limit."),
)


def prometheus(
    counts: Counts, tunnels: Sequence[Tunnel], traffic: Mapping[str, Traffic]
) -> list[str]:
    """The same as lines of Prometheus' text format 0.0.4.

    User names need no escaping: wire.USER has nothing that does.
    """
    lines = []
    for name, kind, what in _METRICS:
        full = f"dtcps_{name}_total" if kind == "counter" else f"dtcps_{name}"
        lines += [f"# HELP {full} {what}", f"# TYPE {full} {kind}"]
        lines.append(f"{full} {getattr(counts, name)}")
    lines += ["# HELP dtcps_tunnels Tunnels that stand.", "# TYPE dtcps_tunnels gauge"]
    lines.append(f"dtcps_tunnels {len(tunnels)}")
    lines += [
        "# HELP dtcps_start_time_seconds When the server was started.",
        "# TYPE dtcps_start_time_seconds gauge",
        f"dtcps_start_time_seconds {counts.started:.3f}",
    ]
    for name, what in (("received", "Bytes from the user."), ("sent", "Bytes to the user.")):
        full = f"dtcps_tunnel_{name}_bytes_total"
        lines += [f"# HELP {full} {what}", f"# TYPE {full} counter"]
        lines += [
            f'{full}{{user="{tunnel.user}",interface="{tunnel.interface}"}}'
            f" {getattr(traffic[tunnel.interface], name)}"
            for tunnel in tunnels
            if tunnel.interface in traffic
        ]
    return lines
