"""Certificates to try TLS with, made by openssl(1): good ones, and bad ones of each kind."""

from __future__ import annotations

import re
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

NAME = "tunnel.example.org"

_CA = """\
[ca]
default_ca = here
[here]
new_certs_dir = {directory}
database = {directory}/index.txt
rand_serial = yes
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
"""


class Certificate(NamedTuple):
    """Its files, and what identifies it."""

    path: Path
    key: Path

    @property
    def fingerprint(self) -> str:
        """As openssl(1) has it, in our form."""
        words = ["x509", "-in", str(self.path), "-noout", "-fingerprint", "-sha256"]
        said = _openssl(*words).strip().partition("=")[2]
        return f"sha256:{said.replace(':', '').lower()}"


def _openssl(*words: str) -> str:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def self_signed(directory: Path, name: str = NAME) -> Certificate:
    """One that its owner has made, for ten years."""
    made = Certificate(directory / f"{name}.self.pem", directory / f"{name}.self.key")
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "3650", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
        *("-keyout", str(made.key), "-out", str(made.path)),
    )
    return made


def that_ends_never(certificate: Certificate) -> Certificate:
    """One with no time where the time of its end is (and a signature that fits no more)."""
    made = Certificate(certificate.path.with_suffix(".never.pem"), certificate.key)
    octets = ssl.PEM_cert_to_DER_cert(certificate.path.read_text())
    _, end = re.findall(rb"[0-9]{12,14}Z", octets)
    octets = octets.replace(end, b"never".ljust(len(end), b"!"))
    made.path.write_text(ssl.DER_cert_to_PEM_cert(octets))
    return made


class Authority:
    """Somebody whose signature counts for who has `store` as his system's store."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._own = self_signed(directory, "authority.example.org")
        self.store = self._own.path
        (directory / "index.txt").touch()
        (directory / "ca.cnf").write_text(_CA.format(directory=directory))

    def certificate(
        self, name: str = NAME, begins: str = "20200101000000Z", ends: str = "20991231235959Z"
    ) -> Certificate:
        """One for `name`, a host's or an address; between these times (GeneralizedTime)."""
        stem = f"{self._directory}/{name}.{begins}.{ends}"
        made = Certificate(Path(f"{stem}.pem"), Path(f"{stem}.key"))
        request = f"{stem}.csr"
        kind = "IP" if name.replace(".", "").isdecimal() else "DNS"
        _openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-subj", f"/CN={name}", "-addext", f"subjectAltName={kind}:{name}"),
            *("-keyout", str(made.key), "-out", request),
        )
        _openssl(
            *("ca", "-batch", "-notext", "-config", str(self._directory / "ca.cnf")),
            *("-cert", str(self._own.path), "-keyfile", str(self._own.key)),
            *("-startdate", begins, "-enddate", ends, "-in", request),
            *("-out", str(made.path)),
        )
        return made
