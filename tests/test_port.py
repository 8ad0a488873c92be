"""The FreeBSD port in Makefile: read, staged and installed by bmake.

tests/port/bsd.port.mk stands in for FreeBSD's framework.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dtcp
import pytest

from tests.port import ROOT, Port, make, needs, packing_list, stage

MAKEFILE = (ROOT / "Makefile").read_text()

# In the order that the Porter's Handbook asks for (chapter 15), an empty line between two blocks.
BLOCKS = [
    "PORTNAME DISTVERSION PORTREVISION CATEGORIES MASTER_SITES DISTFILES",
    "MAINTAINER COMMENT WWW",
    "LICENSE LICENSE_FILE",
    "RUN_DEPENDS TEST_DEPENDS",
    "USES USE_RC_SUBR",
    "CONFLICTS_INSTALL",
    "FILESDIR NO_ARCH NO_BUILD",
    "PLIST_FILES PORTDOCS PORTEXAMPLES",
    "OPTIONS_DEFINE OPTIONS_DEFAULT",
    "SERVER_DESC",
    "SERVER_RUN_DEPENDS",
    # What is ours, and then what an option adds.
    "BYTECODE",
    "COMPLETION",
    "PYTEST",
    "PROGRAMS LIBRARY MANUALS SAMPLES",
    "USE_RC_SUBR PLIST_FILES PORTEXAMPLES PROGRAMS LIBRARY MANUALS SAMPLES",
]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Port:
    """The port, staged and installed."""
    staged = stage(tmp_path_factory.mktemp("port"))
    staged.install()
    return staged


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=30, env={"PATH": "/bin"})


# --- the Makefile -----------------------------------------------------------------------------


def test_the_variables_stand_in_the_order_of_the_handbook() -> None:
    blocks = [re.findall(r"^(\w+)[?+]?=", block, re.M) for block in MAKEFILE.split("\n\n")]
    used = {name for block in blocks for name in block}
    expected = [[name for name in block.split() if name in used] for block in BLOCKS]
    assert [block for block in blocks if block] == expected


def test_the_lines_are_as_portlint_wants_them() -> None:
    assert MAKEFILE.endswith("\n\n.include <bsd.port.mk>\n")
    assert "\n\n\n" not in MAKEFILE
    within = False  # a line that goes on
    for line in MAKEFILE.splitlines():
        assert line == line.rstrip()
        assert line.isascii()
        assert re.match(r"\t+\S" if within or line[:1] == "\t" else r"[\w.#{}-]|$", line), line
        if assigned := re.match(r"\w+[?+]?=(\s*)", line):
            assert re.fullmatch(r"\t+", assigned[1]), line
        within = line.endswith("\\") and (within or bool(assigned) or line[0] == "\t")
        # What is one word cannot be broken, as most dependencies.
        words = line.removesuffix("\\").partition("=\t")[2] or line.removesuffix("\\")
        assert len(line.expandtabs()) <= 80 or len(words.split()) == 1, line


def test_every_option_is_described() -> None:
    for option in make("-V", "OPTIONS_DEFINE").split():
        if option not in ("DOCS", "EXAMPLES"):  # which the framework describes
            assert 10 < len(make("-V", f"{option}_DESC").strip()) <= 50
    chosen = set(make("-V", "OPTIONS_DEFAULT").split())
    assert chosen <= set(make("-V", "OPTIONS_DEFINE").split())


def test_who_submits_it_is_told_what_is_missing() -> None:
    assert make("-V", "WWW") == "\n"
    assert "WWW=" in MAKEFILE
    assert "`WWW`" in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_variable_is_set_somewhere() -> None:
    names = set(re.findall(r"\$\{(\w+)[}:]", MAKEFILE)) - {"PREFIX"}
    names -= set(re.findall(r"^\.for (\w+) in", MAKEFILE, re.M))
    empty = [name for name in sorted(names) if make("-V", name) == "\n"]
    assert not empty


def test_the_version_is_that_of_the_library() -> None:
    assert make("-V", "DISTVERSION").strip() == dtcp.__version__


def test_the_comment_is_a_phrase_in_one_line() -> None:
    comment = make("-V", "COMMENT").strip()
    assert len(comment) <= 70
    assert not comment.endswith(".")
    assert not re.match(r"(A|An|The|dtcpc) ", comment)


def test_sh_comes_for_the_python_of_the_port() -> None:
    depends = make("PYTHON_SUFFIX=312", "-V", "${RUN_DEPENDS:M*py-sh*}").strip()
    assert depends == "py312-sh>=2.2:devel/py-sh@py312"


def test_a_category_that_the_framework_does_not_know_is_refused() -> None:
    with pytest.raises(AssertionError, match="category ipv6 not in list of valid categories"):
        make("CATEGORIES=net ipv6", "check-categories")


def test_it_does_not_go_with_the_old_port() -> None:
    assert make("-V", "CONFLICTS_INSTALL").strip() == "dtcp"


# --- what is installed ------------------------------------------------------------------------


def test_the_packing_list_is_what_is_installed(port: Port) -> None:
    assert sorted(entry.path for entry in packing_list()) == sorted(port.staged())


def test_nothing_that_is_there_for_users_is_forgotten() -> None:
    listed = {Path(entry.path).name.removesuffix(".gz") for entry in packing_list()}
    there = {
        path.name.removesuffix(".in")
        for name in ("docs", "etc", "man", "rc.d")
        for path in (ROOT / name).iterdir()
    }
    programs = {path.stem for path in ROOT.glob("dtcp*.py")}
    assert programs >= {"dtcpc", "dtcps"}
    assert (there | programs) - {"completion.py", "program"} <= listed
    library = {str(path.relative_to(ROOT / "lib")) for path in (ROOT / "lib").rglob("*.py")}
    assert {f"libexec/dtcpc/{each}" for each in library} <= {each.path for each in packing_list()}


@pytest.mark.parametrize(
    ("option", "gone"),
    [
        ("SERVER", r"dtcps|dtcpauth|dtcp/server/|examples/dtcpc/server\."),
        ("DOCS", "^share/doc/"),
        ("EXAMPLES", "^share/examples/"),
    ],
)
def test_without_an_option_its_files_are_gone_and_the_rest_is_there(
    tmp_path: Path, option: str, gone: str
) -> None:
    choice = f"WITHOUT={option}"
    all_paths = {entry.path for entry in packing_list()}
    port = stage(tmp_path, choice)
    paths = {entry.path for entry in packing_list(choice)}
    assert paths == set(port.staged())
    assert paths == {path for path in all_paths if not re.search(gone, path)}
    assert paths < all_paths


def test_a_router_without_the_server_needs_no_sqlite_and_runs_the_client(tmp_path: Path) -> None:
    assert "sqlite3" in make("-V", "${RUN_DEPENDS}")
    assert "sqlite3" not in make("WITHOUT=SERVER", "-V", "${RUN_DEPENDS}")
    port = stage(tmp_path, "WITHOUT=SERVER")
    port.install()
    loaded = "-c", "import sys, dtcpc; sys.exit('sqlite3' in sys.modules)"
    assert (
        run("env", f"PYTHONPATH={port.prefix}/libexec/dtcpc", sys.executable, *loaded).returncode
        == 0
    )
    checked = run(port.prefix / "sbin/dtcpc", "--check", "-u", "jun", "tunnel.example.org")
    assert "has no line" in checked.stderr or "no password" in checked.stderr, checked.stderr


def test_what_can_hold_a_password_is_for_root_only(port: Port) -> None:
    samples = {entry.path: entry for entry in packing_list() if entry.path.endswith(".sample")}
    assert all(entry.sample for entry in samples.values())
    modes = {
        path: entry.mode or 0o777 & port.staged()[path].stat().st_mode
        for path, entry in samples.items()
    }
    assert modes == {
        "etc/dtcpc.auth.sample": 0o600,
        "etc/dtcps.conf.sample": 0o644,
    }
    assert (port.prefix / "etc/dtcpc.auth").stat().st_mode & 0o777 == 0o600


def test_the_modes_of_the_others_are_those_of_the_framework(port: Port) -> None:
    for path, file in port.staged().items():
        places = ("sbin/", "etc/rc.d/", "etc/periodic/", "share/examples/")
        runs = path.startswith(places) and not path.endswith((".conf", ".json", ".tcsh"))
        assert file.stat().st_mode & 0o777 == (0o555 if runs else 0o644), path


def test_samples_hold_nothing_that_works(port: Port) -> None:
    for file in (port.prefix / "etc").glob("*.sample"):
        assert all(line.startswith("#") for line in file.read_text().splitlines()), file


def test_nothing_tells_of_the_stage_or_of_another_prefix(port: Port) -> None:
    for path, file in port.staged().items():
        if not path.endswith(".gz"):
            data = file.read_bytes()
            rest = data.split(b"\n", 1)[1] if path.startswith("sbin/") else data
            assert str(port.stage).encode() not in data, path
            assert b"/usr/local" not in rest, path
            assert not re.search(rb"%%[A-Z_]+%%", data), path


def test_what_is_executable_names_an_interpreter_that_stage_qa_accepts(port: Port) -> None:
    for path, file in port.staged().items():
        if file.stat().st_mode & 0o111:
            first = file.read_text().split("\n")[0]
            ours = sys.executable if path.startswith("sbin/") else "/bin/sh"
            assert first == f"#!{ours}", path


def test_in_the_manual_pages_neither(port: Port) -> None:
    for path in port.staged():
        if path.startswith("share/man/"):
            shown = subprocess.run(
                ["gzip", "-dc", port.prefix / path], capture_output=True, text=True, check=True
            ).stdout
            assert "/usr/local" not in shown, path


@pytest.mark.parametrize("program", ["dtcpauth", "dtcpc", "dtcps"])
def test_the_programs_run_from_where_they_are_installed(port: Port, program: str) -> None:
    path = port.prefix / "sbin" / program
    version = run(path, "--version")
    assert (version.stdout, version.stderr) == (f"{program} {dtcp.__version__}\n", "")
    shown = run(path, "--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"usage: {program} ")
    assert run(path, "--nonsense").returncode == 64


def _modules(port: Port, program: str) -> dict[str, str]:
    """Where the code of each of our modules came from, as Python itself tells with -v."""
    said = run(sys.executable, "-v", port.prefix / "sbin" / program, "--version").stderr
    private = f"{port.prefix}/libexec/dtcpc/"
    found = re.findall(rf"^# code object from '?{private}([\w./-]+)'?$", said, re.M)
    return {re.sub(r"__pycache__/|\.cpython-\d+|\.pyc?$", "", path): path for path in found}


@pytest.mark.parametrize("program", ["dtcpc", "dtcps"])
def test_nothing_is_compiled_when_a_program_starts(port: Port, program: str) -> None:
    modules = _modules(port, program)
    assert {program, "dtcp/__init__", "dtcp/cli", "dtcp/system"} <= modules.keys()
    assert [path for path in modules.values() if not path.endswith(".pyc")] == []


def test_the_byte_code_depends_on_no_file_times_and_a_changed_source_counts(
    port: Port, tmp_path: Path
) -> None:
    copy = Port(tmp_path / "prefix", tmp_path / "stage")
    shutil.copytree(port.prefix, copy.prefix)
    program = copy.prefix / "sbin/dtcpc"
    program.chmod(0o755)
    program.write_text(program.read_text().replace(str(port.prefix), str(copy.prefix)))
    source = copy.prefix / "libexec/dtcpc/dtcp/__init__.py"
    os.utime(source, (1, 1))
    assert _modules(copy, "dtcpc")["dtcp/__init__"].endswith(".pyc")

    before = sorted(copy.prefix.rglob("*"))
    source.write_text(source.read_text().replace(dtcp.__version__, "0.0.patched"))
    assert run(program, "--version").stdout == "dtcpc 0.0.patched\n"
    assert sorted(copy.prefix.rglob("*")) == before


def test_a_traceback_names_the_files_where_they_are(port: Port) -> None:
    for path, file in port.staged().items():
        if path.endswith(".pyc"):
            source = re.sub(r"__pycache__/(\w+)\.cpython-\d+\.pyc$", r"\1.py", path)
            assert f"{port.prefix}/{source}".encode() in file.read_bytes()


def test_the_programs_know_the_files_of_their_prefix(port: Port) -> None:
    assert f"{port.prefix}/etc/dtcpc.auth" in run(
        port.prefix / "sbin/dtcpc", "--help"
    ).stdout.replace("\n" + 24 * " ", "")


def test_running_them_leaves_nothing_that_is_in_no_packing_list(port: Port) -> None:
    for program in ("dtcpc", "dtcps"):
        run(port.prefix / "sbin" / program, "--status")
        run(port.prefix / "sbin" / program, "--help")
    listed = {port.prefix / entry.path for entry in packing_list()}
    listed |= {port.prefix / e.path.removesuffix(".sample") for e in packing_list() if e.sample}
    assert {file for file in port.prefix.rglob("*") if file.is_file()} == listed


# --- what is read -----------------------------------------------------------------------------


def test_the_message_is_short_and_names_what_is_there() -> None:
    found = re.search(r"<<EOM\n(.*)^EOM$", (ROOT / "pkg-message").read_text(), re.S | re.M)
    assert found
    lines = found[1].splitlines()
    assert len(lines) < 12
    assert max(map(len, lines)) < 80
    listed = {entry.path for entry in packing_list()}
    listed |= {path.removesuffix(".sample") for path in listed}
    names = re.findall(r"/usr/local/(\S+)", found[1])
    assert names
    assert set(names) <= listed
    for page, section in re.findall(r"([\w.]+)\(([58])\)", found[1]):
        assert f"share/man/man{section}/{page}.{section}.gz" in listed


def test_the_description_is_prose_in_short_lines() -> None:
    text = (ROOT / "pkg-descr").read_text()
    lines = text.splitlines()
    assert max(map(len, lines)) < 80
    assert 3 < len(lines) <= 24
    assert text == text.strip() + "\n"
    assert text.isascii()
    assert not re.search(r"://|^WWW|^Author|\t| $|\n\n\n", text, re.MULTILINE)
    assert all(part.endswith(".") for part in text.strip().split("\n\n"))


# --- what else is installed -------------------------------------------------------------------


# As ipfw(8) lists them: another tunnel's, and those of an earlier run for gif3.
IPFW_RULES = """\
00100 allow ip from any to any via lo0
04100 allow ip4 from 192.0.2.9 to 203.0.113.7 proto ipv6 in // dtcpc gif31
04101 allow ip4 from 192.0.2.1 to 203.0.113.6 proto ipv6 in // dtcpc gif3
04101 allow ip4 from 203.0.113.6 to 192.0.2.1 proto ipv6 out // dtcpc gif3
65535 deny ip from any to any"""


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A directory with commands that only write down how they were called."""
    for name in ("ipfw", "pfctl", "kldstat"):
        command = tmp_path / name
        command.write_text(
            f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/said\n'
            f'case "$*" in *"-f -") sed "s/^/  /" >>{tmp_path}/said ;;\n'
            # To ipfw(8) that would be IPv6.
            f'*" 41 from "*) exit 65 ;;\n'
            f"list) echo '{IPFW_RULES}' ;;\n"
            f'"-q list "*) [ "$3" -le 4101 ] ;; esac\n'
        )
        command.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            "up",
            [
                "ipfw list",
                "ipfw -q delete 4101",
                *(f"ipfw -q list {number}" for number in (4100, 4101, 4102)),
                *(
                    f"ipfw -q add 4102 allow ip4 from {ends} // dtcpc gif3"
                    for ends in (
                        "192.0.2.1 to 203.0.113.7 proto 41 in",
                        "203.0.113.7 to 192.0.2.1 proto 41 out",
                    )
                ),
                "pfctl -q -a dtcpc/gif3 -f -",
                "  pass in quick inet proto 41 from 192.0.2.1 to 203.0.113.7",
                "  pass out quick inet proto 41 from 203.0.113.7 to 192.0.2.1",
            ],
        ),
        ("down", ["ipfw list", "ipfw -q delete 4101", "pfctl -q -a dtcpc/gif3 -F rules"]),
    ],
)
def test_the_example_opens_the_firewall_for_the_tunnel_and_closes_it(
    port: Port, commands: Path, event: str, expected: list[str]
) -> None:
    facts = {
        "DTCP_INTERFACE": "gif3",
        "DTCP_LOCAL": "203.0.113.7",
        "DTCP_REMOTE": "192.0.2.1",
        "PATH": f"{commands}:{os.defpath}",
    }
    script = port.prefix / "share/examples/dtcpc/firewall.sh"
    subprocess.run([script, event], env=facts, check=True)  # none was refused
    said = (commands / "said").read_text().splitlines()
    assert [line for line in said if not line.startswith("kldstat")] == expected


def test_the_daily_report_is_silent_until_it_is_wanted(port: Port) -> None:
    done = run(port.prefix / "etc/periodic/daily/425.status-dtcpc")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.lab  # on FreeBSD shellcheck needs a Haskell compiler, and Linux has had its say
def test_shellcheck_has_nothing_to_say() -> None:
    scripts = [
        "rc.d/dtcpc",
        "rc.d/dtcps",
        "etc/firewall.sh",
        "etc/server.ipfw",
        "etc/425.status-dtcpc",
        "tests/rc.subr",
    ]
    done = subprocess.run(
        [needs("shellcheck", "shellcheck"), *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout + done.stderr == ""
