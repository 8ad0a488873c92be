"""docs/tls.md: what it says to type works, and what it says that one sees is what is said."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from lab.host import Host
from lab.internet import Internet
from tests.running import ROOT, serve

PAGE = (ROOT / "docs/tls.md").read_text()
OWN = PAGE[PAGE.index("## A server of your own") : PAGE.index("## A certificate that everybody")]
SAMPLE = "sha256:1f0c..."  # on the page; every certificate has another one
CONFIG = "/usr/local/etc/dtcps.conf"


def typed(host: Host, line: str) -> str:
    """Type a line of the page; what it prints.  Raises CommandFailed."""
    words = shlex.split(line)
    words = ["dtcps", "--reload"] if words == ["service", "dtcps", "reload"] else words
    if words[0] in ("dtcpc", "dtcps"):
        words = [sys.executable, str(ROOT / f"{words[0]}.py"), *words[1:]]
    return host.run(words, timeout=60).stdout


@pytest.mark.lab
def test_a_server_of_ones_own(net: Internet) -> None:
    umask, make, check, reload, fingerprint = re.findall("^ +server# (.*)", OWN, re.M)
    [config] = re.findall("`:\n\n((?: {8}tls-.* = .*\n)+)", OWN)
    [test] = re.findall("^ +client# (.*)", OWN, re.M)
    with serve(net):
        net.server.run(["sh", "-c", f"{umask}; {make}"])
        [key] = re.findall("-keyout ([^ ]+)", make)
        assert net.server.run(["ls", "-l", key]).stdout.startswith("-rw-------")
        net.server.write(CONFIG, re.sub("(?m)^ +", "", config))
        assert typed(net.server, check) == ""
        assert typed(net.server, reload) == ""
        told = typed(net.server, fingerprint).strip()
        assert re.fullmatch("sha256:[0-9a-f]{64}", told)
        assert SAMPLE in test
        shown = typed(net.client, test.replace(SAMPLE, told))
        assert re.search("^TLS .* TLSv1.3, .* certificate valid for 36[0-9]{2} days", shown, re.M)
        assert re.search("^packets back ", shown, re.M)


def test_what_one_sees_is_what_is_said() -> None:
    said = " ".join(
        re.sub(r'"\s*f?"', "", (ROOT / f"lib/dtcp/{name}.py").read_text())
        for name in ("tls", "wire", "client/conversation")
    )
    rows = re.findall("^\\| `(.*?)` \\| (77|75|1) \\|", PAGE, re.M)
    assert len(rows) == 10
    for message, _ in rows:
        for part in re.split("WHY|TEXT|sha256|not that|was closed.*|was not over.*|[.;]", message):
            assert part.strip() in said, message


@pytest.mark.parametrize("name", ["tls-required", "tls-certificate", "tls-key"])
def test_the_keys_are_those_of_the_configuration(name: str) -> None:
    assert name in PAGE
    assert f'"{name}"' in (ROOT / "lib/dtcp/server/settings.py").read_text()
