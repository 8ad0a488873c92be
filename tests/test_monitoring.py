"""docs/monitoring.md and etc/grafana.json: the metrics are those that the programs print."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from dtcp.status import STATES, Facts, as_prometheus
from dtcp.text import metric

from lab.internet import Internet
from tests.certificates import self_signed
from tests.running import ROOT, login, serve

PAGE = (ROOT / "docs/monitoring.md").read_text()
DASHBOARD = json.loads((ROOT / "etc/grafana.json").read_text())
DTCPC = [sys.executable, str(ROOT / "dtcpc.py")]

NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
VALUE = r"[0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?"

FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode())"


def samples(lines: list[str]) -> dict[str, dict[str, float]]:
    """Prometheus' text format, strictly read: by metric, the values by their labels."""
    found: dict[str, dict[str, float]] = {}
    name, kind = "", ""
    for line in lines:
        if begun := re.fullmatch(rf"# HELP ({NAME}) \S.*\.", line):
            name, kind = begun[1], ""
            assert name not in found
            found[name] = {}
        elif typed := re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge)", line):
            assert (typed[1], kind) == (name, "")
            kind = typed[2]
            assert name.endswith("_total") == (kind == "counter")
        else:
            labels = rf'{NAME}="(?:[^"\\]|\\[\\n"])*"'
            sample = re.fullmatch(rf"({NAME})(?:{{({labels}(?:,{labels})*)}})? ({VALUE})", line)
            assert sample, line
            assert sample[1] == name
            assert kind
            assert (sample[2] or "") not in found[name]
            found[name][sample[2] or ""] = float(sample[3])
    return found


UP = Facts("up", 1, reconnects=2, since=1.5, data="passing", rtt_ms=12.5)


def test_what_is_up() -> None:
    facts = UP._replace(since=time.monotonic() - 65, bytes_in=10, bytes_out=20)
    told = samples(as_prometheus(facts, "dtcpc"))
    alone = {name: values for name, values in told.items() if name != "dtcpc_state"}
    values = {name: each.pop('tunnel="dtcpc"') for name, each in alone.items()}
    assert abs(values.pop("dtcpc_up_since_timestamp_seconds") - (time.time() - 65)) < 30
    assert values == {
        "dtcpc_up": 1,
        "dtcpc_packets_passing": 1,
        "dtcpc_rtt_seconds": 0.0125,
        "dtcpc_received_bytes_total": 10,
        "dtcpc_sent_bytes_total": 20,
        "dtcpc_reconnects_total": 2,
    }


@pytest.mark.parametrize("state", STATES)
def test_one_state_holds_and_only_up_is_up(state: str) -> None:
    """What was measured of a tunnel that has gone is not told as if it were of one that is."""
    facts = None if state == "not running" else UP._replace(state=state)
    told = samples(as_prometheus(facts, "dtcpc"))
    expected = {f'tunnel="dtcpc",state="{each}"': float(each == state) for each in STATES}
    assert told["dtcpc_state"] == expected
    for name in ("dtcpc_up", "dtcpc_packets_passing"):
        assert told[name] == {'tunnel="dtcpc"': float(state == "up")}
    for name in ("dtcpc_rtt_seconds", "dtcpc_up_since_timestamp_seconds"):
        assert bool(told[name]) == (state == "up")


@pytest.mark.parametrize("data", ["unproven", "silent", None])
def test_packets_pass_only_when_some_came_back(data: str | None) -> None:
    told = samples(as_prometheus(UP._replace(data=data), "dtcpc"))
    assert told["dtcpc_packets_passing"] == {'tunnel="dtcpc"': 0}


def test_whatever_a_file_is_called_is_one_label() -> None:
    [*_, line] = metric("m", "gauge", "What.", [({"a": 'x"y\\z\n'}, 1)])
    assert line == r'm{a="x\"y\\z\n"} 1'


def test_the_dashboard_is_one() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    # There is no data source but the one to be chosen.
    [source] = DASHBOARD["templating"]["list"]
    assert {panel["datasource"]["uid"] for panel in panels} == {f"${{{source['name']}}}"}
    assert all(target["expr"].count("(") == target["expr"].count(")") for target in _targets())


def _targets() -> list[dict[str, str]]:
    return [target for panel in DASHBOARD["panels"] for target in panel["targets"]]


def _named(text: str) -> set[str]:
    return set(re.findall(r"\bdtcp[cs]_[a-z_]+", text))


@pytest.mark.lab
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_every_metric_that_is_named_is_told_by_client_and_server(
    net: Internet, tmp_path: Path
) -> None:
    [config] = re.findall(r"`(metrics = \S+)`", PAGE)
    ours = self_signed(tmp_path)
    net.server.write("/usr/local/etc/dtcps.pem", ours.path.read_text())
    net.server.write("/usr/local/etc/dtcps.key", ours.key.read_text())
    tls = "tls-certificate = /usr/local/etc/dtcps.pem\ntls-key = /usr/local/etc/dtcps.key\n"
    net.server.write("/usr/local/etc/dtcps.conf", f"{config}\n{tls}")
    with serve(net) as server, login(net.client, "-t", "host") as client:
        client.wait_for("packets pass")
        shown = net.client.run([*DTCPC, "--status", "--prometheus"]).stdout
        url = f"http://{config.split()[-1]}/metrics"
        answer = net.server.run([sys.executable, "-c", FETCH, url]).stdout
        told = samples(f"{shown.strip()}\n{answer.strip()}".split("\n"))
        assert client.end() == 0
        assert server.end() == 0
    assert all(told.values()), "without a sample"
    tables = re.findall(r"^\| `(dtcp[cs]_\w+)` \| (\w+) \|", PAGE, re.M)
    assert {name for name, _ in tables} == told.keys()
    assert all((kind == "counter") == name.endswith("_total") for name, kind in tables)
    targets = "\n".join(target["expr"] for target in _targets())
    assert len(_named(targets)) > 8
    assert _named(targets) <= told.keys()
    # Names that are no metrics: of a check, and of variables of rc.conf(5).
    rest = _named(PAGE) - told.keys()
    assert rest <= {"dtcpc_flags", "dtcpc_home"}


def _commands() -> dict[str, str]:
    """The command lines of the page, by what runs them."""
    [cron] = re.findall(r"^    \* \* \* \* \* root (.*)$", PAGE, re.M)
    [nagios] = re.findall(r"^    command\[\w+\]=(.*)$", PAGE, re.M)
    monit, monit_server = re.findall(r'^    check program \w+ with path "(.*)"$', PAGE, re.M)
    assert monit_server == "/usr/local/sbin/dtcps --status"
    [prepare] = re.findall(r"^    client# (install .*)$", PAGE, re.M)
    return {"cron": cron, "nagios": nagios, "monit": monit, "prepare": prepare}


@pytest.mark.lab
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_the_examples_tell_a_tunnel_that_is_up_from_none(net: Internet) -> None:
    commands = _commands()
    collected = "/var/db/node_exporter/dtcpc.prom"

    def run(what: str) -> int:
        line = commands[what].replace("/usr/local/sbin/dtcpc", shlex.join(DTCPC))
        done = net.client.run(["sh", "-c", f"umask 022; {line}"], check=False)
        assert done.stderr == ""
        return done.returncode

    def collect() -> dict[str, dict[str, float]]:
        assert run("cron") == 0
        assert net.client.run(["ls", "/var/db/node_exporter"]).stdout == "dtcpc.prom\n"
        # Whoever node_exporter runs as can read it.
        assert net.client.run(["find", collected, "-perm", "644"]).stdout
        return samples(net.client.read(collected).splitlines())

    assert run("prepare") == 0
    assert (run("monit"), run("nagios")) == (1, 2)
    assert collect()["dtcpc_up"] == {'tunnel="dtcpc"': 0}
    with serve(net), login(net.client, "-t", "host") as client:
        client.wait_for("packets pass")
        assert (run("monit"), run("nagios")) == (0, 0)
        told = collect()
        assert told["dtcpc_up"] == told["dtcpc_packets_passing"] == {'tunnel="dtcpc"': 1}
        client.send(signal.SIGTERM)
        assert client.status() == 0
        assert (run("monit"), run("nagios")) == (1, 2)
    net.client.run(["rm", "-r", "/var/db/node_exporter"])
