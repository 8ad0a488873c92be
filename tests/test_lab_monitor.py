"""The lab's `route monitor`: the same events in the words of each release."""

from __future__ import annotations

import re
import subprocess

import pytest

from lab.host import Host
from lab.internet import Internet
from tests.running import wait_until

pytestmark = [pytest.mark.proves_lab, pytest.mark.lab, pytest.mark.usefixtures("enclosed")]

DONE = """
    ifconfig em0 inet 10.99.0.9/24 alias
    ifconfig em0 inet 10.99.0.9 -alias
    ifconfig em0 inet6 fd99::77/64
    ifconfig em0 inet6 fd99::77 -alias
    ifconfig gif7 create
    ifconfig gif7 inet6 -ifdisabled up
    route -n add -inet6 2001:db8:80::/48 -interface gif7
    route -n delete -inet6 2001:db8:80::/48
    route -n add 10.0.0.0/8 203.0.113.1
    ifconfig gif7 destroy
"""
# In this order, others may come between. N is a number.
SAID = {
    "15.1": [
        "add/repl addr 10.99.0.9/24 iface em0 ",
        "delete addr 10.99.0.9/24 iface em0 ",
        "add/repl addr fd99::77/64 iface em0 ",
        "delete addr fd99::77/64 iface em0 ",
        "add/repl iface iface#N gif7 admin DOWN oper DOWN mtu 1280 ",
        "add/repl route 2001:db8:80::/48 iface gif7 mtu 1280 table inet6.0",
        "delete route 2001:db8:80::/48 iface gif7 mtu 1280 table inet6.0",
        "add/repl route 10.0.0.0/8 gw 203.0.113.1 iface em0 mtu 1500 table inet.0",
        "delete iface iface#N gif7 admin DOWN oper DOWN mtu 1280 ",
    ],
    "13.2": [
        "got message of size 124 on DATE\n"
        "RTM_NEWADDR: address being added to iface: len 124, metric 0, flags:\n"
        "sockaddrs: <NETMASK,IFP,IFA,BRD>\n"
        " 255.255.255.0 em0:0.0.5e.0.53.0 10.99.0.9 10.99.0.255",
        "got message of size 124 on DATE\n"
        "RTM_DELADDR: address being removed from iface: len 124, metric 0, flags:\n"
        "sockaddrs: <NETMASK,IFP,IFA,BRD>\n"
        " 255.255.255.0 em0:0.0.5e.0.53.0 10.99.0.9 10.99.0.255",
        "got message of size 140 on DATE\n"
        "RTM_NEWADDR: address being added to iface: len 140, metric 0, flags:<HOST>\n"
        "sockaddrs: <NETMASK,IFP,IFA>\n"
        " ffff:ffff:ffff:ffff:: em0:0.0.5e.0.53.0 fd99::77",
        "got message of size 140 on DATE\n"
        "RTM_DELADDR: address being removed from iface: len 140, metric 0, flags:\n"
        "sockaddrs: <NETMASK,IFP,IFA>\n"
        " ffff:ffff:ffff:ffff:: em0:0.0.5e.0.53.0 fd99::77",
        "got message of size 24 on DATE\n"
        "RTM_IFANNOUNCE: interface arrival/departure: len 24, if# N, what: arrival",
        "got message of size 232 on DATE\n"
        "RTM_ADD: Add Route: len 232, pid: N, seq N, errno 0, flags:<UP,DONE,STATIC>\n"
        "locks:  inits: \n"
        "sockaddrs: <DST,GATEWAY,NETMASK>\n"
        " 2001:db8:80:: link#N ffff:ffff:ffff::",
        "got message of size 232 on DATE\n"
        "RTM_DELETE: Delete Route: len 232, pid: N, seq N, errno 0, flags:<DONE,STATIC>\n"
        "locks:  inits: \n"
        "sockaddrs: <DST,GATEWAY,NETMASK>\n"
        " 2001:db8:80:: link#N ffff:ffff:ffff::",
        " 10.0.0.0 203.0.113.1 255.0.0.0",
        "got message of size 24 on DATE\n"
        "RTM_IFANNOUNCE: interface arrival/departure: len 24, if# N, what: departure",
    ],
}


def sh(host: Host, script: str) -> str:
    return host.run(["sh", "-ec", script]).stdout


def pattern(said: str) -> str:
    words = re.escape(said).replace("DATE", r"\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}")
    return re.sub(r"(?<=[#\ ])N\b", r"\\d+", words)


def test_it_tells_the_news_at_once_and_without_end(net: Internet, release: str) -> None:
    host = net.client
    monitor = host.popen(["sh", "-c", "exec route -n monitor >/run/news"])
    news = ""

    def heard(said: str) -> bool:
        nonlocal news
        news = host.run(["cat", "/run/news"], check=False).stdout
        return bool(re.search(f"^{said}$", news, re.M | re.S))

    def listening() -> bool:
        sh(host, "ip address add 192.0.2.77/32 dev lo; ip address del 192.0.2.77/32 dev lo")
        return heard(".*192.0.2.77.*")

    wait_until("it listens", listening)
    sh(host, DONE)
    front = r"\d\d:\d\d:\d\d\.\d{3} PID    0 " if release == "15.1" else ""
    everything = "\n(?:.*\n)?".join(front + pattern(said) for said in SAID[release])
    wait_until("all of it", lambda: heard(f".*{everything}.*"))
    # Paragraphs begin with an empty line, lines follow each other.
    assert (("\n\ngot message" in news), ("\n\n" in news)) == ((release == "13.2"),) * 2
    assert monitor.poll() is None


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_it_ends_when_nobody_reads_on(net: Internet) -> None:
    monitor = net.client.popen(["route", "-n", "monitor"], stdout=subprocess.PIPE)
    assert monitor.stdout
    monitor.stdout.close()

    def ended() -> bool:
        sh(net.client, "ip address add 192.0.2.77/32 dev lo; ip address del 192.0.2.77/32 dev lo")
        return monitor.poll() is not None

    wait_until("its end", ended)
