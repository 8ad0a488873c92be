"""What a running server tells of itself: for people, for machines, for Prometheus."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from dtcp.server import certificate
from dtcp.server.counts import Counts
from dtcp.server.records import State, Tunnel
from dtcp.server.store import of_day
from dtcp.text import metric, size, span, table


def as_json(counts: Counts, tunnels: Sequence[Tunnel]) -> str:
    """All of it, for --status; `tunnels` are all that are not free."""
    told: dict[str, object] = {**vars(counts), "started": of_day(counts.started)}
    told["tunnels"] = [_tunnel(each) for each in tunnels]
    return json.dumps(told)


def _tunnel(tunnel: Tunnel) -> dict[str, object]:
    made, traffic = tunnel.made, tunnel.traffic
    address = made.grant.local if made else tunnel.holder.address if tunnel.holder else None
    return {
        "user": tunnel.user,
        "state": tunnel.state.value,
        "data": traffic.data if traffic else None,
        "type": made.type if made else None,
        "from": str(address) if address else None,
        "since": of_day(made.since) if made else None,
        "interface": made.interface if made else None,
        "address": str(made.grant.inner) if made and made.grant.inner else None,
        "prefixes": list(map(str, made.grant.prefixes)) if made else [],
        "udp": isinstance(tunnel.outer, int),
        "received": traffic.received if traffic else None,
        "sent": traffic.sent if traffic else None,
    }


def text(told: Mapping[str, object], now: float) -> list[str]:
    """The same as lines for a person."""
    tunnels = told["tunnels"]
    assert isinstance(tunnels, list)
    started = told["started"]
    assert isinstance(started, (int, float))
    up = sum(each["state"] == State.UP.value for each in tunnels)
    lines = [
        f"up for {span(now - started)}, {up} tunnels, {told['connections']} connections,"
        f" {told['logins']} logins, {told['refused']} refused"
    ]
    if told["unclaimed"]:
        lines.append(f"{told['unclaimed']} tunnels wait for their clients to come back")
    if told["not_taken"]:
        lines.append(f"the configuration was not taken: {told['not_taken']}")
    expires = told.get("certificate_expires")
    if isinstance(expires, (int, float)) and (warning := certificate.of_expiry(expires, now)):
        lines.append(warning)
    if tunnels:
        rows = [("USER", "FROM", "IF", "STATE", "DATA", "FOR", "IN", "OUT", "HAS")]
        rows += [
            (
                each["user"],
                (each["from"] or "-") + (" (udp)" if each["udp"] else ""),
                each["interface"] or "-",
                each["state"],
                each["data"] or "-",
                # One word for awk(1).
                span(now - each["since"]).replace(" ", "") if each["since"] else "-",
                size(each["received"]),
                size(each["sent"]),
                ",".join([*filter(None, [each["address"]]), *each["prefixes"]]) or "-",
            )
            for each in tunnels
        ]
        lines += table(rows)
    return lines


_METRICS = (
    ("connections", "gauge", "Open control connections."),
    ("unclaimed", "gauge", "Tunnels of an earlier run whose clients have not come back."),
    ("logins", "counter", "Logins that succeeded."),
    ("adopted", "counter", "Logins that took over a standing tunnel."),
    ("refused", "counter", "Logins that failed."),
    ("turned_away", "counter", "Connections turned away by a limit."),
)


def prometheus(counts: Counts, tunnels: Sequence[Tunnel]) -> str:
    """The same in Prometheus' text format."""
    lines = []
    for name, kind, what in _METRICS:
        full = f"dtcps_{name}_total" if kind == "counter" else f"dtcps_{name}"
        lines += metric(full, kind, what, [({}, getattr(counts, name))])
    up = sum(each.state is State.UP for each in tunnels)
    lines += metric("dtcps_tunnels", "gauge", "Tunnels that are up.", [({}, up)])
    started = round(of_day(counts.started), 3)
    lines += metric(
        "dtcps_start_time_seconds", "gauge", "When the server was started.", [({}, started)]
    )
    if counts.certificate_expires is not None:
        lines += metric(
            "dtcps_certificate_expiry_time_seconds",
            "gauge",
            "When the certificate of TLS expires.",
            [({}, counts.certificate_expires)],
        )
    for name, what in ("received", "Bytes from the user."), ("sent", "Bytes to the user."):
        lines += metric(
            f"dtcps_tunnel_{name}_bytes_total",
            "counter",
            what,
            [
                (
                    {"user": each.user, "interface": each.made.interface},
                    getattr(each.traffic, name),
                )
                for each in tunnels
                if each.made and each.traffic
            ],
        )
    return "\n".join(lines) + "\n"
