"""The source distribution is the whole checkout; the wheel has the programs and their manual."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import dtcp
import pytest

from tests.port import ROOT, needs

BUILD = """\
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def run(directory: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, what: str, target: Path) -> Path:
    """Build a distribution, as pip does but with the setuptools at hand."""
    words = (sys.executable, "-c", BUILD, f"build_{what}", str(target))
    return target / run(source, *words).splitlines()[-1]


def sources() -> set[str]:
    """The files of the checkout, or of the unpacked source distribution that this is."""
    if (ROOT / ".git").exists():
        lines = run(ROOT, needs("git", "git"), "-c", "safe.directory=*", "ls-files").splitlines()
    else:
        lines = (ROOT / "dtcpc.egg-info/SOURCES.txt").read_text().splitlines()
    return {line for line in lines if ".egg-info/" not in line and (ROOT / line).exists()}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    directory = tmp_path_factory.mktemp("sdist")
    copy = directory / "checkout"
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    with tarfile.open(build(copy, "sdist", directory)) as archive:
        archive.extractall(directory, filter="data")
    return directory / f"dtcpc-{dtcp.__version__}"


def test_the_source_distribution_is_the_whole_checkout(unpacked: Path) -> None:
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {name for name in files if ".egg-info/" not in name} == sources() | {"PKG-INFO"}
    for name in sources() - {"setup.cfg"}:  # setuptools adds two lines to it
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes(), name
        assert (unpacked / name).stat().st_mode & 0o111 == (ROOT / name).stat().st_mode & 0o111


def test_the_commands_of_the_lab_find_the_rest_of_it(unpacked: Path) -> None:
    # In a checkout they are links, of which setuptools makes copies.
    for command in (unpacked / "lab/freebsd/bin").iterdir():
        found = f"import runpy; runpy.run_path({str(command)!r}); import lab; print(lab.__file__)"
        assert run(unpacked, sys.executable, "-ISc", found) == f"{unpacked}/lab/__init__.py\n"


def test_what_pip_installs_from_it_runs_and_has_its_manual(unpacked: Path, tmp_path: Path) -> None:
    wheel = build(unpacked, "wheel", tmp_path)
    words = "install", "-q", "--no-deps", "--no-index", "--no-warn-script-location"
    run(tmp_path, sys.executable, "-m", "pip", *words, "--prefix", str(tmp_path), str(wheel))
    for page in (ROOT / "man").iterdir():
        installed = tmp_path / f"share/man/man{page.suffix[1:]}" / page.name
        assert installed.read_bytes() == page.read_bytes()
    (library,) = tmp_path.glob("lib*/python*/site-packages")
    for program in ("dtcpauth", "dtcpc", "dtcps"):
        command = "env", f"PYTHONPATH={library}", str(tmp_path / "bin" / program), "--version"
        assert run(tmp_path, *command) == f"{program} {dtcp.__version__}\n"


def test_the_metadata_are_those_of_the_license_and_the_port(unpacked: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    author = setup["metadata"]["author"]
    assert author in (ROOT / "LICENSE").read_text()
    lines = (unpacked / "PKG-INFO").read_text().splitlines()
    assert f"Author: {author}" in lines
    assert f"Version: {dtcp.__version__}" in lines
    assert "License: BSD-2-Clause" in lines or "License-Expression: BSD-2-Clause" in lines
