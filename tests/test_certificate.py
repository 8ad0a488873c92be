"""dtcps --check and --fingerprint with certificates of every kind, and what is told of an end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dtcp.server.certificate import DAY, of_expiry
from dtcp.server.store import Store

from tests.certificates import Authority, Certificate, self_signed
from tests.running import ROOT


class Place:
    """A directory with a configuration, a store, and certificates."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "dtcps.conf"
        (directory / "db").mkdir(mode=0o700)
        self.store = directory / "db/dtcps.db"
        Store(str(self.store), create=True).close()
        self.good = self_signed(directory)
        self.name(self.good)

    def name(self, certificate: Certificate, more: str = "") -> None:
        """Have the configuration name this one."""
        self.config.write_text(
            f"store = {self.store}\ntls-certificate = {certificate.path}\n"
            f"tls-key = {certificate.key}\n{more}"
        )

    def dtcps(self, option: str) -> tuple[int, str, str]:
        """Its exit status, and what it says on standard output and standard error."""
        words = [sys.executable, str(ROOT / "dtcps.py"), option, "--config", str(self.config)]
        done = subprocess.run(words, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def test_a_good_one(place: Place) -> None:
    assert place.dtcps("--check") == (0, "", "")
    place.good.key.chmod(0o640)
    key = place.good.key
    why = f"dtcps: {key}: accessible by others; chmod 600 {key}\n"
    assert place.dtcps("--check") == (0, "", why)


def _missing(place: Place) -> str:
    place.good.path.unlink()
    return f"{place.good.path}: No such file or directory"


def _no_key(place: Place) -> str:
    place.good.key.unlink()
    return f"{place.good.key}: No such file or directory"


def _no_file(place: Place) -> str:
    place.good.path.unlink()
    place.good.path.mkdir()
    return f"{place.good.path}: not a regular file"


def _no_pem(place: Place) -> str:
    place.good.path.write_text("nonsense\n")
    return f"{place.good.path}, {place.good.key}: no certificate and key in PEM"


def _half(place: Place) -> str:
    place.good.path.write_text(place.good.path.read_text()[:300])
    return f"{place.good.path}, {place.good.key}: no certificate and key in PEM"


def _not_its_key(place: Place) -> str:
    other = self_signed(place.directory, "other.example.org")
    place.name(Certificate(place.good.path, other.key))
    return f"{other.key}: not the key of {place.good.path}"


def _rsa(place: Place, bits: int) -> Certificate:
    made = Certificate(place.directory / "rsa.pem", place.directory / "rsa.key")
    words = ("req", "-x509", "-newkey", f"rsa:{bits}", "-nodes", "-days", "99", "-subj", "/CN=x")
    openssl(*words, "-keyout", str(made.key), "-out", str(made.path))
    made.key.chmod(0o600)
    return made


def _key_of_another_kind(place: Place) -> str:
    other = _rsa(place, 2048)
    place.name(Certificate(place.good.path, other.key))
    return f"{other.key}: not the key of {place.good.path}"


def _weak(place: Place) -> str:
    weak = _rsa(place, 1024)
    place.name(weak)
    return f"{weak.path}: too weak: ee key too small"


def _encrypted(place: Place) -> str:
    key = place.directory / "encrypted.key"
    words = ("ec", "-in", str(place.good.key), "-aes256", "-passout", "pass:secret")
    openssl(*words, "-out", str(key))
    place.name(Certificate(place.good.path, key))
    return f"{key}: the key must not be encrypted"


def _alone(place: Place) -> str:
    place.config.write_text(f"store = {place.store}\ntls-certificate = {place.good.path}\n")
    return f"{place.config}: tls-certificate and tls-key go together"


@pytest.mark.parametrize(
    "spoil",
    [
        *(_missing, _no_key, _no_file, _no_pem, _half, _not_its_key, _key_of_another_kind, _weak),
        *(_encrypted, _alone),
    ],
)
def test_a_bad_one_is_named(place: Place, spoil: Callable[[Place], str]) -> None:
    why = spoil(place)
    assert place.dtcps("--check") == (1, "", f"dtcps: {why}\n")


def test_an_expired_one_is_a_warning(place: Place) -> None:
    place.name(Authority(place.directory).certificate(ends="20210101000000Z"))
    why = "dtcps: the certificate of tls-certificate has expired\n"
    assert place.dtcps("--check") == (0, "", why)


@pytest.mark.parametrize(
    ("left", "when"),
    [
        (15 * DAY, ""),
        (15 * DAY - 1, "expires in 14 days"),
        (14 * DAY, "expires in 14 days"),
        (2 * DAY - 1, "expires in 1 day"),
        (DAY, "expires in 1 day"),
        (DAY - 1, "expires within a day"),
        (1, "expires within a day"),
        (0, "has expired"),
        (-3 * DAY, "has expired"),
    ],
)
def test_what_is_told_of_its_end(left: float, when: str) -> None:
    now = 1_800_000_000.0
    assert of_expiry(now + left, now) == (
        f"the certificate of tls-certificate {when}" if when else ""
    )


def test_the_fingerprint_is_that_of_openssl(place: Place) -> None:
    # Neither the key nor the store has to be there.
    place.good.key.unlink()
    place.store.unlink()
    assert place.dtcps("--fingerprint") == (0, f"{place.good.fingerprint}\n", "")
    chain = place.good.path.read_text() + self_signed(place.directory, "a.example").path.read_text()
    expected = place.good.fingerprint
    place.good.path.write_text(f"Words before it.\n{chain}")
    assert place.dtcps("--fingerprint") == (0, f"{expected}\n", "")


def test_no_fingerprint(place: Place) -> None:
    place.good.path.write_text("nonsense\n")
    why = f"dtcps: {place.good.path}: no certificate in PEM\n"
    assert place.dtcps("--fingerprint") == (1, "", why)
    place.config.write_text(f"store = {place.store}\n")
    why = "dtcps: there is no tls-certificate in the configuration\n"
    assert place.dtcps("--fingerprint") == (1, "", why)
    place.config.unlink()
    assert place.dtcps("--fingerprint") == (1, "", f"dtcps: {place.config}: no such file\n")
