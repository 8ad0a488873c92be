"""The manual pages say what the programs do, to the last option and message; lint is silent."""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dtcp import errors, plan, wire
from dtcp.client import backoff, news, options, probe
from dtcp.server import admission, certificate, database, limits, presence, settings, store

import dtcpauth
import dtcpc
import dtcps
from tests.port import packing_list
from tests.running import ROOT

PAGES = sorted((ROOT / "man").glob("*.[1-9]"))
PROGRAMS = [(options, "dtcpc"), (dtcps, "dtcps")]
# What every program answers to, and no usage line has to tell.
EVERYWHERE = {"-h", "--help", "--version"}


def _mandoc(*words: str) -> str:
    if shutil.which("mandoc") is None:
        pytest.fail("mandoc: not found; on Debian, apt-get install mandoc", pytrace=False)
    return subprocess.run(["mandoc", *words], capture_output=True, text=True, check=False).stdout


def _source(page: str) -> str:
    return (ROOT / "man" / page).read_text(encoding="ascii")


def _section(page: str, title: str) -> str:
    """The source of one section of a page, quotes in it undone."""
    _, _, rest = _source(page).partition(f"\n.Sh {title}\n")
    assert rest, f"{page} has no section {title}"
    return rest.partition("\n.Sh ")[0] + "\n"


def _rendered(page: str) -> str:
    """The words of a page as a reader sees them, single blanks between."""
    text = _mandoc("-T", "ascii", "-O", "width=500", str(ROOT / "man" / page))
    return " ".join(re.sub(".\b", "", text).split())


# --- lint -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lint_is_silent(page: Path) -> None:
    """But for references to pages that are FreeBSD's and not of the machine we test on."""
    ours = {each.name for each in PAGES}
    lines = [
        line
        for line in _mandoc("-T", "lint", str(page)).splitlines()
        if not (found := re.search(r"referenced manual not found: Xr (\S+) (\d)", line))
        or (found[1].startswith("dtcp") and f"{found[1]}.{found[2]}" not in ours)
    ]
    assert lines == []


def test_there_are_pages() -> None:
    assert {"dtcpauth.8", "dtcpc.8", "dtcps.8", "dtcpc.auth.5"} <= {page.name for page in PAGES}


# --- options ----------------------------------------------------------------------------------


def _spread(words: list[str]) -> set[str]:
    """`-acd` and `--long` to single options."""
    options: set[str] = set()
    for word in words:
        options |= {word} if word.startswith("--") else {f"-{letter}" for letter in word[1:]}
    return options


def _in_synopsis(program: str) -> set[str]:
    return _spread(
        [f"-{word}" for word in re.findall(r"Fl (\S+)", _section(f"{program}.8", "SYNOPSIS"))]
    )


def _in_list(program: str) -> set[str]:
    words = re.findall(r"^\.It Fl (\S+)", _options(program), re.MULTILINE)
    return _spread([f"-{word}" for word in words])


def _options(program: str) -> str:
    """The list of options, up to the next subsection: others list flags too."""
    text = _section(f"{program}.8", "DESCRIPTION").partition("The options are as follows:\n")[2]
    return text.partition("\n.Ss ")[0]


def _in_usage(parser: argparse.ArgumentParser) -> set[str]:
    return _spread(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", parser.format_usage()))


def _in_help(parser: argparse.ArgumentParser) -> set[str]:
    lines = re.findall(r"^  (-.*?)(?:  |$)", parser.format_help(), re.MULTILINE)
    return {word for line in lines for word in re.findall(r"(?:^|, )(--?[A-Za-z][\w-]*)", line)}


@pytest.mark.parametrize(("module", "program"), PROGRAMS)
def test_the_same_options_everywhere(module: object, program: str) -> None:
    parser = module.parser()  # type: ignore[attr-defined]
    taken = {option for action in parser._actions for option in action.option_strings}
    assert "-p" in taken
    assert _in_help(parser) == taken
    assert _in_synopsis(program) | EVERYWHERE == taken
    assert _in_list(program) | EVERYWHERE == taken
    assert _in_usage(parser) | EVERYWHERE == taken


@pytest.mark.parametrize(("module", "program"), PROGRAMS)
def test_the_help_is_in_groups_and_fits_a_terminal(module: object, program: str) -> None:
    text = module.parser().format_help()  # type: ignore[attr-defined]
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert len(titles) > 3
    assert not {"positional arguments", "options"} & set(titles)
    assert max(map(len, text.splitlines())) < 80


def test_the_same_commands_and_options_of_dtcpauth_everywhere() -> None:
    top = dtcpauth.parser()
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    blocks = re.split(r"^\.Nm$", _section("dtcpauth.8", "SYNOPSIS"), flags=re.MULTILINE)
    synopsis = {}
    for block in blocks:
        if found := re.search(r"^\.Cm (\w+)$", block, re.MULTILINE):
            synopsis[found[1]] = _spread([f"-{each}" for each in re.findall(r"Fl (\S+)", block)])
    assert set(synopsis) == set(commands.choices)
    everything = set(EVERYWHERE)
    for name, parser in commands.choices.items():
        taken = {option for action in parser._actions for option in action.option_strings}
        assert _in_help(parser) == taken
        assert _in_usage(parser) | {"-h", "--help"} == taken
        assert synopsis[name] | {"-h", "--help"} == taken | {"--store"}
        everything |= taken | {"--store"}
    assert _in_list("dtcpauth") | EVERYWHERE == everything
    named = re.findall(r"^\.It Cm (\w+)$", _section("dtcpauth.8", "DESCRIPTION"), re.MULTILINE)
    assert set(commands.choices) <= set(named)


@pytest.mark.parametrize("program", ["dtcpauth", "dtcpc", "dtcps"])
def test_the_list_of_options_is_in_order(program: str) -> None:
    words = re.findall(r"^\.It Fl (\S+)", _options(program), re.MULTILINE)
    assert words == sorted(words, key=lambda word: (word[0] == "-", word.lower(), word.isupper()))


# --- the other facts --------------------------------------------------------------------------


def test_the_keys_of_the_configuration() -> None:
    keys = set(settings._KEYS)
    page = _section("dtcps.conf.5", "DESCRIPTION")
    named = re.findall(r"^\.It Cm (\S+)", page, re.MULTILINE)
    assert named == sorted(keys)
    assert all(re.search(rf"^\.Cm {key} ", page, re.M) for key in settings._FIXED)
    assert {each.replace("-", "_") for each in keys} == set(settings.Settings._fields)
    starred = set(re.findall(r"^\.It Cm (\S+) No \*", page, re.MULTILINE))
    assert starred == set(settings._SEVERAL)
    sample = (ROOT / "etc/dtcps.conf.sample").read_text().replace("%%PREFIX%%", "/usr/local")
    examples_of = re.findall(r"^#([a-z-]+) = (.*)$", sample, re.MULTILINE)
    assert {key for key, _ in examples_of} == keys
    # What is no example is the default, and all of it can be used as it is.
    said, _ = settings.parse("\n".join(f"{key} = {value}" for key, value in examples_of), "sample")
    defaults = settings.Settings()
    examples = {"prefix", "delegate", "unreachable", "metrics", "tls-certificate", "tls-key"}
    for key in keys - examples:
        name = key.replace("-", "_")
        assert getattr(said, name) == getattr(defaults, name)
        text = page.partition(f".It Cm {key}\n")[2].partition("\n.It")[0]
        shown = {False: ".Cm no\nby default"}.get(default := getattr(defaults, name), str(default))
        assert key == "listen" or shown in text, key


def test_the_environment_of_the_script() -> None:
    code = set(
        re.findall(
            r"\bDTCP_[A-Z_]+\b", (ROOT / "lib/dtcp/client/news.py").read_text(encoding="utf-8")
        )
    )
    named = set(re.findall(r"^\.It Ev (DTCP_\w+)", _source("dtcpc.8"), re.MULTILINE))
    assert code == named
    assert code
    assert set(re.findall(r"\bDTCP_\w+", _source("dtcpc.8"))) <= code


@pytest.mark.parametrize(
    ("program", "statuses"),
    [
        ("dtcpc", (errors.OK, errors.FAILED, errors.USAGE, errors.TRY_AGAIN, errors.NOT_ALLOWED)),
        ("dtcpauth", (errors.OK, errors.FAILED, errors.USAGE, errors.NOT_ALLOWED)),
        ("dtcps", (errors.OK, errors.FAILED, errors.USAGE, errors.NOT_ALLOWED)),
    ],
)
def test_the_exit_statuses(program: str, statuses: tuple[int, ...]) -> None:
    named = re.findall(r"^\.It (.*)$", _section(f"{program}.8", "EXIT STATUS"), re.MULTILINE)
    assert sorted(map(int, named)) == sorted(statuses)


_STEM = options.PID_FILE.removesuffix(".pid")


@pytest.mark.parametrize(
    ("page", "files"),
    [
        (
            "dtcpc.8",
            {
                options.AUTH_FILE,
                options.PID_FILE,
                f"{_STEM}.state",
                f"{_STEM}.rtadvd.pid",
                f"{_STEM}.rtadvd.sock",
            },
        ),
        ("dtcps.8", {store.PATH, dtcps.PID_FILE, dtcps.SOCKET, settings.PATH}),
        ("dtcps.conf.5", {settings.PATH, f"{settings.PATH}.sample"}),
        ("dtcpauth.8", {store.PATH}),
        ("dtcpc.auth.5", {options.AUTH_FILE}),
    ],
)
def test_the_default_files(page: str, files: set[str]) -> None:
    listed = set(re.findall(r"^\.It Pa (\S+)", _section(page, "FILES"), re.MULTILINE))
    assert files <= listed <= files | _installed()
    # And no other spelling of them anywhere else.
    named = set(re.findall(r"/(?:usr/local/etc|var/run)/dtcp[\w.]+\w", _source(page)))
    assert named <= files | {f"{_STEM}_home.pid"}


# Files and directories of FreeBSD itself, and two that an example of -f makes up.
_NOT_OURS = {
    *("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/bin/sh", "/dev/null"),
    *("/boot/kernel", "/etc/pccard_ether", "/etc/rc.conf"),
    *("/var/run/home.pid", "/var/run/home.state"),
    *("/length", "/metrics"),  # of a prefix, and of a URL
}


def _installed() -> set[str]:
    """Every file that the port installs, samples in use as well, and their directories."""
    paths = {Path("/usr/local", entry.path) for entry in packing_list()}
    paths |= {path.with_suffix("") for path in paths if path.suffix == ".sample"}
    return {str(each) for path in paths for each in (path, *path.parents)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = set(re.findall(r"(?<![\w/:\[-])/[a-z]{3,}[\w./-]*\w", page.read_text(encoding="ascii")))
    # See test_the_default_files.
    made = {each for each in named if each.startswith(("/var/run/dtcp", "/var/db/dtcp"))}
    assert named
    assert named - made - _NOT_OURS <= _installed()


@pytest.mark.parametrize("program", ["dtcpc", "dtcps"])
def test_the_variables_of_rc_conf_and_the_commands(program: str) -> None:
    script = (ROOT / "rc.d" / program).read_text(encoding="ascii")
    told = set(re.findall(rf"^# ({program}_[a-z]+(?:_min)?)=", script, re.MULTILINE))
    code = re.sub(r"(?m)^\s*#.*$", "", script)
    read = set(re.findall(rf"\$\{{?({program}_[a-z_]+)", code))
    # By name, so that one tunnel of several can have its own.
    read |= {f"{program}_{word}" for word in re.findall(r"_(?:value|check_word) ([a-z]+)", code)}
    assert {f"{program}_enable", f"{program}_flags"} <= read == told
    page = _section(f"{program}.8", "DESCRIPTION").partition(".Ss Starting with the system\n")[2]
    assert set(re.findall(rf"^\.It Va ({program}_\w+)$", page, re.MULTILINE)) == read
    (commands,) = re.findall(r'^extra_commands="(.*)"$', script, re.MULTILINE)
    for command in ("start", "stop", "restart", "status", "poll", *commands.split()):
        assert re.search(rf"^\.Cm {command}\b", page, re.MULTILINE), command


@pytest.mark.parametrize(
    ("page", "number"),
    [
        ("dtcpc.8", wire.PORT),
        ("dtcpc.8", options.UDP_PORT),
        ("dtcpc.8", plan.MTU_LEAST),
        ("dtcpc.8", plan.MTU_MOST),
        ("dtcpc.8", f"{backoff.LONGEST:.0f} seconds"),
        ("dtcpc.8", f"{backoff.SOON:.0f} seconds after a loss"),
        ("dtcpc.8", f"gone for {dtcpc.GONE_TIME:.0f} seconds"),
        ("dtcpc.8", f"no server for {dtcpc.GIVE_UP_TIME / 60:.0f} minutes"),
        ("dtcpc.8", f"takes {probe.FIRST_LIMIT:.0f} seconds if none is"),
        ("dtcpc.8", f"come back in {probe.FIRST_LIMIT:.0f} s"),
        ("dtcpc.8", f"every {probe.KEEP_ALIVE:.0f} seconds"),
        ("dtcpc.8", f"Every {wire.PING_INTERVAL:.0f} seconds"),
        ("dtcpc.8", f"within {wire.PING_TIME:.0f} seconds"),
        ("dtcpc.8", f"It may take {news.SCRIPT_TIME:.0f} seconds"),
        ("dtcpauth.8", f"fewer than {dtcpauth.SHORT} letters"),
        ("dtcpauth.8", f"fewer than {dtcpauth.FEW} different letters"),
        ("dtcpauth.8", f"for {database.PATIENCE:.0f} s"),
        ("dtcps.8", wire.PORT),
        ("dtcps.8", dtcps.UDP_PORT),
        ("dtcps.conf.5", f"{wire.AUTH_TIME:.0f} seconds to log in"),
        ("dtcps.conf.5", f"at most {wire.LINE_LIMIT} bytes"),
        ("dtcps.conf.5", f"after {wire.IDLE_TIME:.0f} seconds without a word"),
        ("dtcps.conf.5", f"{limits.LINES} lines a second"),
        ("dtcps.conf.5", f"longer than {limits.LONGEST_PENALTY:.0f} seconds"),
        ("dtcps.conf.5", f"{admission.STRANGERS} connections without a login"),
        ("dtcps.conf.5", f"{admission.STRANGERS_HERE} from one address"),
        ("dtcps.conf.5", f"{limits.FAILURES} logins may fail"),
        ("dtcps.8", f"{admission.STRANGERS} connections may be there without a login"),
        ("dtcps.8", f"{admission.STRANGERS_HERE} from one address"),
        ("dtcps.8", f"{limits.FAILURES} logins have failed at an address within a minute"),
        ("dtcps.8", f"{limits.LONGEST_PENALTY:.0f} seconds at most"),
        ("dtcps.8", f"within {presence.TIME:.0f} seconds"),
        ("dtcps.8", f"From {certificate.DAYS_AHEAD} days before it expires"),
        ("dtcps.8", f"more than {limits.LINES} a second"),
        ("dtcps.8", f"{settings.Settings().connections} connections"),
        ("dtcps.8", f"within {wire.AUTH_TIME:.0f} seconds"),
        ("dtcps.8", f"every {wire.IDLE_TIME:.0f} seconds"),
        ("dtcps.8", f"{wire.LINE_LIMIT} bytes"),
    ],
)
def test_the_numbers(page: str, number: object) -> None:
    assert re.search(rf"(?<!\d){number}(?!\d)", _rendered(page))


# --- messages ---------------------------------------------------------------------------------

_RAISED = {
    "SettingsError",
    "StoreError",
    "_Invalid",
    "NotAllowed",
    "PoolError",
    "Failure",
    "PasswordError",
    "PidFileError",
    "LedgerError",
    "GrantError",
    "PlanError",
    "ProtocolError",
    "CommandFailed",
    "NoOutput",
    "Changed",
    "error",
    "Lost",
    "_lost",
    "Nonsense",
    "NotMade",
    "StageFailed",
    "ArgumentTypeError",
    "Invalid",
    "TlsError",
    "Untrusted",
    "Insecure",
}
_CALLED = {
    "notice",
    "take_down",
    "_warn",
    "append",
}  # of a parser, a log, a client, remarks


def _texts(node: ast.expr) -> list[str]:
    """The fixed parts of a string, the longest first."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        parts = [part for value in node.values for part in _texts(value)]
        return sorted(parts, key=len, reverse=True)
    return []


def _calls(node: ast.AST, without: frozenset[str]) -> Iterator[ast.Call]:
    """The calls below a node, but for what lies in functions and classes of these names."""
    for child in ast.iter_child_nodes(node):
        if getattr(child, "name", None) not in without:
            if isinstance(child, ast.Call):
                yield child
            yield from _calls(child, without)


def _messages(path: str, without: frozenset[str]) -> list[str]:
    """The longest fixed part of every message in a file."""
    found = []
    for call in _calls(ast.parse((ROOT / path).read_text(encoding="utf-8")), without):
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        if name in _RAISED or (name in _CALLED and isinstance(call.func, ast.Attribute)):
            # The second word of CommandFailed is the text, the first one of all others.
            for each in call.args[name == "CommandFailed" :][:1]:
                found += _texts(each)[:1]
    return [" ".join(text.split()).strip(" :;,\"'(") for text in found]


def _library(*names: str) -> tuple[str, ...]:
    return tuple(f"lib/dtcp/{name}" for name in names)


# All but those of dtcps.conf(5), of dtcpauth(8), and of a command that cannot be run.
SERVER = [
    f"lib/dtcp/server/{path.stem}"
    for path in sorted((ROOT / "lib/dtcp/server").glob("*.py"))
    if path.stem not in ("copies", "imports", "pools", "settings", "shell", "words")
]


@pytest.mark.parametrize(
    ("page", "modules", "without"),
    [
        (
            "dtcpc.8",
            (
                "dtcpc",
                *_library("cli", "daemon", "grant", "ledger", "password", "private"),
                *_library("client/inquiry", "client/network", "client/options", "client/survey"),
                *_library("client/passage", "client/trial"),
            ),
            (),
        ),
        (
            "dtcpc.8",
            (
                *_library("client/conversation", "client/speaker", "client/tunnel"),
                *_library("plan", "run", "system", "wire"),
            ),
            ("Session",),
        ),
        (
            "dtcpauth.8",
            (
                "dtcpauth",
                "lib/dtcp/password",
                *(
                    f"lib/dtcp/server/{each}"
                    for each in ("copies", "database", "imports", "pools", "store", "words")
                ),
            ),
            # No file of passwords, no pools, and no tunnels.
            ("read_private", "from_file", "pairs", "prefixes", "remember"),
        ),
        (
            "dtcps.8",
            ("dtcps", *_library("daemon", "tls"), *SERVER),
            ("put", "_give", "delete", "prometheus", "verify", "check_copy", "_untrusted"),
        ),
        ("dtcps.conf.5", ("lib/dtcp/server/settings", "lib/dtcp/server/pools"), ()),
    ],
)
def test_every_message_is_explained(
    page: str, modules: tuple[str, ...], without: tuple[str, ...]
) -> None:
    text = _rendered(page)
    messages = [
        each for module in modules for each in _messages(f"{module}.py", frozenset(without))
    ]
    assert len(messages) > 10
    assert [each for each in messages if len(each) > 8 and each not in text] == []
