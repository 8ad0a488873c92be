"""docs/tls.md: what it says to type works, and what it says that one sees is what is said."""

from __future__ import annotations

import re
import shlex
import ssl
import sys
from pathlib import Path

import pytest
from dtcp import tls

from lab.host import Host
from lab.internet import Internet
from tests.certificates import Authority, Certificate, self_signed
from tests.running import ROOT, SERVER, Program, serve
from tests.test_tls_login import cases

PAGE = (ROOT / "docs/tls.md").read_text()
OWN = PAGE[PAGE.index("## A server of your own") : PAGE.index("## A certificate that everybody")]
SAMPLE = "sha256:1f0c..."  # on the page; every certificate has another one
CONFIG = "/usr/local/etc/dtcps.conf"
ROWS = re.findall("^\\| `(.*?)` \\| (77|75|1) \\|", PAGE, re.M)
REQUIRED = "the server refuses: TLS is required here; use --tls"

[LINES] = re.findall("`:\n\n((?: {8}tls-.* = .*\n)+)", OWN)
LINES = re.sub("(?m)^ +", "", LINES)  # of dtcps.conf
CERTIFICATE, KEY = re.findall("= (/.*)", LINES)

# service(8), as far as the page goes.
SERVICE = f"""#!/bin/sh
[ "$*" = "dtcps reload" ] && exec {sys.executable} {ROOT}/dtcps.py --reload
"""


def typed(host: Host, line: str) -> str:
    """Type a line of the page; what it prints.  Raises CommandFailed."""
    words = shlex.split(line)
    words = ["dtcps", "--reload"] if words == ["service", "dtcps", "reload"] else words
    if words[0] in ("dtcpc", "dtcps"):
        words = [sys.executable, str(ROOT / f"{words[0]}.py"), *words[1:]]
    return host.run(words, timeout=60).stdout


def flags(line: str) -> list[str]:
    """What a line of rc.conf gives to dtcpc, which is to stay in the foreground."""
    [text] = re.findall('dtcpc_flags="(.*)"', line)
    return [{"-Dl": "-l"}.get(word, word) for word in shlex.split(text)]


def mode(host: Host, path: str) -> str:
    return host.run(["ls", "-l", path]).stdout[:10]


@pytest.mark.lab
def test_a_server_of_ones_own(net: Internet) -> None:
    umask, make, check, reload, fingerprint = re.findall("^ +server# (.*)", OWN, re.M)
    [test] = re.findall("^ +client# (.*)", OWN, re.M)
    [rc_conf] = re.findall("^ +(dtcpc_flags=.*)", OWN, re.M)
    [required] = re.findall("^ +(tls-required = .*)", OWN, re.M)
    with serve(net) as server:
        net.server.run(["sh", "-c", f"{umask}; {make}"])
        assert re.findall("-keyout ([^ ]+) -out ([^ ]+)", make) == [(KEY, CERTIFICATE)]
        assert mode(net.server, KEY) == "-rw-------"
        net.server.write(CONFIG, LINES)
        assert typed(net.server, check) == ""
        assert typed(net.server, reload) == ""
        told = typed(net.server, fingerprint).strip()
        assert re.fullmatch("sha256:[0-9a-f]{64}", told)
        assert SAMPLE in test
        shown = typed(net.client, test.replace(SAMPLE, told))
        assert re.search("^TLS .* TLSv1.3, .* certificate valid for 36[0-9]{2} days", shown, re.M)
        assert re.search("^packets back ", shown, re.M)

        # As openssl(1) prints it, it is the same.
        words = ["openssl", "x509", "-fingerprint", "-sha256", "-noout", "-in", CERTIFICATE]
        with_colons = net.server.run(words).stdout.strip().partition("=")[2]

        net.server.write(CONFIG, f"{LINES}{required}\n")
        typed(net.server, reload)
        assert SAMPLE in rc_conf
        for each in (told, f"sha256:{with_colons}"):
            words = [*flags(rc_conf.replace(SAMPLE, each)), "-u", "itojun", SERVER]
            with Program(net.client, "dtcpc", *words) as client:
                client.wait_for("packets pass")
                assert client.end() == 0
        with Program(net.client, "dtcpc", "-t", "host", "-u", "itojun", SERVER) as client:
            assert client.status() == 77
            assert client.lines[-1].endswith(f": {REQUIRED}")
        assert server.end() == 0


@pytest.mark.lab
def test_the_hook_gives_the_server_another_one(
    net: Internet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As dehydrated calls it; then a client that trusts who has signed needs no fingerprint."""
    [hook] = re.findall("^ +(#!/bin/sh\n(?: +.*\n)+)", PAGE, re.M)
    [path] = re.findall("^ +HOOK=(.*)", PAGE, re.M)
    [rc_conf] = re.findall('^ +(dtcpc_flags=.* --tls")', PAGE, re.M)
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.store))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    before, after = self_signed(tmp_path), authority.certificate()
    net.server.write(CERTIFICATE, before.path.read_text())
    net.server.write(KEY, before.key.read_text())
    net.server.write(CONFIG, LINES)
    net.server.write(path, hook.replace("\n    ", "\n"), mode=0o755)
    net.server.write("/run/bin/service", SERVICE, mode=0o755)
    words = [*flags(rc_conf), "-u", "itojun", SERVER]
    with serve(net) as server:
        for what, expected in (("deploy_challenge", before), ("deploy_cert", after)):
            _hook(net.server, path, what, after)
            assert typed(net.server, "dtcps --fingerprint").strip() == expected.fingerprint
        assert mode(net.server, KEY) == "-rw-------"
        with Program(net.client, "dtcpc", *words) as client:
            client.wait_for("packets pass")
            assert client.end() == 0
        assert server.end() == 0


def _hook(host: Host, path: str, what: str, new: Certificate) -> None:
    files = (new.key, new.path, new.path, "/nonexistent/chain.pem")
    words = [path, what, SERVER, *map(str, files), "1795780800"]
    host.run(["sh", "-c", 'PATH=/run/bin:$PATH exec "$0" "$@"', *words])


def test_each_of_the_two_variables_replaces_half_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusted() -> int:
        return len(tls.for_client(pinned=False).get_ca_certs())

    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path).store))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    directory = ssl.get_default_verify_paths().capath
    with_the_systems = trusted()
    monkeypatch.setenv("SSL_CERT_DIR", directory or str(tmp_path / "none"))
    assert trusted() == with_the_systems
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    assert trusted() == 1
    hashed = directory and any(
        re.fullmatch(r"[0-9a-f]{8}\.0", x.name) for x in Path(directory).iterdir()
    )
    assert with_the_systems > 1 or not hashed


def _pattern(message: str) -> str:
    return re.sub(r"WHY|TEXT|sha256:\\\.\\\.\\\.|\\\.\\\.\\\.", ".*", re.escape(message))


def test_what_one_sees_is_what_is_said(tmp_path: Path) -> None:
    """Each line of the table in the sources, and with its status among what is tried of it."""
    said = " ".join(
        re.sub(r'"\s*f?"', "", (ROOT / f"lib/dtcp/{name}.py").read_text())
        for name in ("tls", "wire", "client/conversation", "client/speaker")
    )
    tried = list(cases(tmp_path, Authority(tmp_path)).values())
    elsewhere = {
        REQUIRED,
        "this Python has no TLS, on which --tls insists",
        "TLS has failed: WHY",
    }
    assert len(ROWS) == 12
    for message, status in ROWS:
        for part in re.split(
            "WHY|TEXT|sha256|not that|the server refuses: |was closed.*|was not over.*|"
            "the reply to stls|within.*|[.;]",
            message,
        ):
            assert part.strip() in said, message
        found = {str(each.status) for each in tried if re.fullmatch(_pattern(message), each.why)}
        assert found == (set() if message in elsewhere else {status}), message


def test_nothing_that_is_tried_of_it_is_missing(tmp_path: Path) -> None:
    patterns = [_pattern(message) for message, _ in ROWS]
    for name, case in cases(tmp_path, Authority(tmp_path)).items():
        if "TLS" in case.why or "stls" in case.why or "certificate" in case.why:
            assert any(re.fullmatch(each, case.why) for each in patterns), name


def test_the_manual_has_the_same_messages() -> None:
    manual = (ROOT / "man/dtcpc.8").read_text()
    for message, _ in ROWS:
        head, _, rest = message.replace("sha256:...", "sha256:HEX").partition("not that of")
        assert f'.It "SERVER: {head}' in manual, message
        assert not rest or f"not that of{rest.partition(';')[0]}" in manual, message


@pytest.mark.parametrize("name", ["tls-required", "tls-certificate", "tls-key"])
def test_the_keys_are_those_of_the_configuration(name: str) -> None:
    assert name in PAGE
    assert f'"{name}"' in (ROOT / "lib/dtcp/server/settings.py").read_text()
