"""The rc.d scripts, as installed by the port, under a stand-in for rc.subr (tests/rc.subr)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dtcp.client.conversation import CONNECT_TIME

from lab import SLOW
from lab.host import Host
from lab.internet import Internet
from lab.machine import machine
from lab.snapshot import difference
from tests.port import ROOT, Port, stage
from tests.running import DELEGATED, PREFIX, SERVER, identity, ping, serve, set_users, wait_until

GOOD = {"dtcpc_enable": "YES", "dtcpc_server": SERVER, "dtcpc_username": "itojun"}
SECOND = "192.0.2.3"  # the server's too: no two tunnels can have the same outer pair
AUTH = f"{SERVER}:itojun:secret\n{SECOND}:jun:hidden\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Port:
    """The port, installed, its rc.d scripts reading the stand-in."""
    installed = stage(tmp_path_factory.mktemp("rc"))
    installed.install()
    installed.use_stand_in()
    return installed


class Service:
    """One rc.d script with an rc.conf of its own."""

    def __init__(self, port: Port, directory: Path, name: str, host: Host | None = None) -> None:
        self.host = host
        self.prefix = port.prefix
        self.script = port.prefix / "etc/rc.d" / name
        self.auth = port.prefix / "etc/dtcpc.auth"
        self.auth.unlink(missing_ok=True)
        self.auth.write_text(AUTH)
        self.auth.chmod(0o600)
        self._conf = directory / "rc.conf"
        self.path = f"{directory}:{os.defpath}"
        self.release = host.release if host else "15.1"
        self.record = directory / "record"

    def configure(self, **variables: str) -> None:
        """Write rc.conf."""
        lines = (f"{name}={shlex.quote(text)}\n" for name, text in variables.items())
        self._conf.write_text("".join(lines))

    def record_instead(self) -> str:
        """A program that writes down its arguments; its path, for dtcpc_program."""
        program = self._conf.parent / "recorder"
        program.write_text(
            f"#!{sys.executable}\nimport sys\n"
            f"if '--check' not in sys.argv:\n"
            f"    open('{self.record}', 'w').write(' '.join(sys.argv[1:]))\n"
        )
        program.chmod(0o755)
        return str(program)

    def words(self, *words: str | Path) -> list[str]:
        conf = [f"RC_CONF={self._conf}", f"RC_RELEASE={self.release}"]
        return ["env", *conf, *map(str, words)]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`service NAME words...`."""
        return self.run_file(self.script, *words)

    def run_file(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        all_words = self.words(*words)
        if self.host is not None:
            return self.host.run(all_words, check=False, timeout=30)
        environment = {"PATH": self.path}
        return subprocess.run(
            all_words, env=environment, capture_output=True, text=True, timeout=30
        )

    def does(self, *words: str) -> str:
        """The same, where it must succeed without a warning; what it says."""
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    def refuses(self, *words: str) -> str:
        """The same, where it must fail and start nothing; what it says of it."""
        done = self.run(*words)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Starting" not in done.stdout
        return done.stderr.replace(f"{self.script}: WARNING: ", "")

    def pid(self, *profile: str) -> int:
        """The pid of what runs, as `status` has it."""
        found = re.search(r" is running as pid (\d+)\.$", self.does("status", *profile), re.M)
        assert found
        return int(found[1])

    def commands(self) -> list[str]:
        """The command lines of our programs that run."""
        assert self.host is not None
        ours = f" {self.prefix}/sbin/"  # whatever Python runs them
        lines = self.host.processes().values()
        return [line for line in lines if line[line.find(" ") :].startswith(ours)]


@pytest.fixture
def dtcpc(port: Port, tmp_path: Path) -> Service:
    """rc.d/dtcpc, where no network is needed."""
    return Service(port, tmp_path, "dtcpc")


@pytest.fixture
def client(port: Port, tmp_path: Path, net: Internet) -> Service:
    """rc.d/dtcpc on the client of the lab."""
    return Service(port, tmp_path, "dtcpc", net.client)


def is_up(service: Service, *profile: str) -> Callable[[], bool]:
    return lambda: "up for" in service.run("status", *profile).stdout


# --- what rc(8) reads -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dtcpc", "dtcps"])
def test_rcorder_and_service_find_what_they_look_for(name: str) -> None:
    text = (ROOT / "rc.d" / name).read_text()
    assert re.findall(r"^# ([A-Z]+): (.*)$", text, re.M) == [
        ("PROVIDE", name),
        ("REQUIRE", "DAEMON"),
        ("BEFORE", "LOGIN"),
        ("KEYWORD", "nojailvnet shutdown"),
    ]
    # service -e of 13.2 evaluates these two lines by themselves.
    assert re.findall(r"^(name|rcvar)=(.*)$", text, re.M) == [
        ("name", f'"{name}"'),
        ("rcvar", f'"{name}_enable"'),
    ]


@pytest.mark.hazard(55)
@pytest.mark.parametrize("name", ["dtcpc", "dtcps"])
def test_the_script_knows_the_program_and_nothing_of_python(port: Port, name: str) -> None:
    script = (port.prefix / "etc/rc.d" / name).read_text()
    assert f'\ncommand="{port.prefix}/sbin/{name}"\n' in script
    assert "command_interpreter" not in script
    assert sys.executable not in script


# --- the variables ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "-t network -Dl {} -u itojun tunnel.example.org"),
        ({"dtcpc_flags": "-t host"}, "-t host {} -u itojun tunnel.example.org"),
        ({"dtcpc_flags": ""}, "{} -u itojun tunnel.example.org"),
        (
            {"dtcpc_flags": '-R "2001:db8:: -prefixlen 32" -l'},
            "-R 2001:db8:: -prefixlen 32 -l {} -u itojun tunnel.example.org",
        ),
        ({"dtcpc_fib": "2"}, "-t network -Dl {} -F 2 -u itojun tunnel.example.org"),
        (
            {"dtcpc_server": SECOND, "dtcpc_username": "jun"},
            f"-t network -Dl {{}} -u jun {SECOND}",
        ),
        (
            {"dtcpc_flags": "-t host -P em1/1 -dal"},
            "-t host -P em1/1 -dal {} -u itojun tunnel.example.org",
        ),
        (
            {"dtcpc_flags": "-R '-net 2001:db8::/32' -A '::a:7 ::a:8 prefixlen 128'"},
            "-R -net 2001:db8::/32 -A ::a:7 ::a:8 prefixlen 128 {} -u itojun tunnel.example.org",
        ),
        ({"dtcpc_nice": "5"}, "-t network -Dl {} -u itojun tunnel.example.org"),
    ],
)
def test_the_old_variables_become_the_old_command_line(
    dtcpc: Service, more: dict[str, str], expected: str
) -> None:
    dtcpc.configure(**{**GOOD, "dtcpc_program": dtcpc.record_instead(), **more})
    said = dtcpc.run("start")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("Starting dtcpc.\n")
    assert ("setfib 2" in said.stdout) == ("dtcpc_fib" in more)
    own = f"-D -f /var/run/dtcpc.pid --auth-file {dtcpc.auth}"
    assert dtcpc.record.read_text() == expected.format(own)


def test_without_enable_nothing_is_started(dtcpc: Service) -> None:
    dtcpc.configure(**GOOD | {"dtcpc_enable": "NO", "dtcpc_program": dtcpc.record_instead()})
    assert "Set dtcpc_enable to YES in /etc/rc.conf" in dtcpc.does("start")
    assert dtcpc.does("faststart") == ""
    assert not dtcpc.record.exists()
    dtcpc.does("onestart")
    assert dtcpc.record.exists()


def test_without_anything_in_rc_conf_it_is_not_enabled(dtcpc: Service) -> None:
    dtcpc.configure()
    assert "Set dtcpc_enable to YES in /etc/rc.conf" in dtcpc.does("start")
    assert '\ndtcpc_enable="NO"\n' in dtcpc.does("rcvar")
    assert dtcpc.does("describe") == "IPv6 tunnel from a DTCP server\n"


@pytest.mark.parametrize(("jailed", "expected"), [("0", "kldload if_gif\n"), ("1", "")])
def test_in_a_jail_no_module_is_asked_for(dtcpc: Service, jailed: str, expected: str) -> None:
    dtcpc.configure(**GOOD, dtcpc_program=dtcpc.record_instead())
    sysctl = dtcpc.record.parent / "sysctl"
    sysctl.write_text(f"#!/bin/sh\necho {jailed}\n")
    sysctl.chmod(0o755)
    assert dtcpc.does("start") == f"{expected}Starting dtcpc.\n"


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dtcpc_server": ""}, "dtcpc_server is not set: the name or the IPv4 address of a"),
        ({"dtcpc_server": "two words"}, 'dtcpc_server="two words" is not the name or'),
        ({"dtcpc_server": "-x"}, 'dtcpc_server="-x" is not the name or'),
        ({"dtcpc_server": "2001:db8::1"}, "dtcpc_server: server: '2001:db8::1': DTCP runs"),
        ({"dtcpc_server": "192.0.2.300"}, "dtcpc_server: server: invalid IPv4 address"),
        ({"dtcpc_username": ""}, "dtcpc_username is not set: the user name there"),
        ({"dtcpc_username": "a:b"}, "dtcpc_username: -u: invalid DTCP"),
        ({"dtcpc_username": "$(id)"}, 'dtcpc_username="$(id)" is not the user name there'),
        ({"dtcpc_flags": "-x"}, "dtcpc_flags: unrecognized arguments: -x\n"),
        ({"dtcpc_flags": "-m 9000"}, "dtcpc_flags: -m: '9000' is"),
        ({"dtcpc_flags": "--dry-run"}, "dtcpc_flags: --dry-run excludes"),
        ({"dtcpc_flags": "--help"}, "dtcpc_flags: usage: "),
        ({"dtcpc_flags": "--status"}, "dtcpc_flags: --check excludes"),
        ({"dtcpc_flags": "--test"}, "dtcpc_flags: --test excludes"),
        ({"dtcpc_flags": "-s /nowhere"}, "dtcpc_flags: -s: /nowhere: not an executable file"),
        ({"dtcpc_flags": "other.example.org"}, "dtcpc_flags: unrecognized arguments"),
        ({"dtcpc_fib": "x"}, 'dtcpc_fib="x" is not the number of a FIB'),
        ({"dtcpc_fib": "1; touch /run/x"}, 'dtcpc_fib="1; touch /run/x" is not the number of'),
        ({"dtcpc_fib": "65536"}, "dtcpc_fib or dtcpc_flags: -F: '65536'"),
        *(
            ({"dtcpc_flags": flags}, "dtcpc_flags: a character of sh(1) in it; quote it, or")
            for flags in (
                "-l; touch /run/x",
                "-l && touch /run/x",
                "-l | touch /run/x",
                "-l -s $(touch /run/x)",
                "-l -s `touch /run/x`",
                '-l -s "$(touch /run/x)"',
                "-l >/run/x",
                "-l\ntouch /run/x",
                "-l 'a' ; touch /run/x 'b'",
                "-l \\; touch /run/x",
                '-l "\'"; touch /run/x; "\'"',
                "-l 'x",
                "-l\n",
                "-l #",
            )
        ),
        (
            {"dtcpc_authfile": "/nowhere"},
            "dtcpc_authfile: /nowhere: no such file; it needs mode 600, and a line "
            f"{SERVER}:itojun:PASSWORD\n",
        ),
        ({"dtcpc_authfile": "/no where"}, 'dtcpc_authfile="/no where" is not the path of a file'),
        (
            {"dtcpc_username": "jun"},
            "dtcpc_server, dtcpc_username or dtcpc_authfile: {auth}: "
            f"has no line {SERVER}:jun:PASSWORD\n",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_name_of_the_variable(
    dtcpc: Service, wrong: dict[str, str], said: str
) -> None:
    dtcpc.configure(**GOOD | wrong)
    message = dtcpc.refuses("start")
    assert message.startswith(said.replace("{auth}", str(dtcpc.auth)))
    assert not Path("/run/x").exists()  # nothing was evaluated
    # That line, and the one of rc.subr.
    assert message.endswith("failed precmd routine for dtcpc\n")
    assert message.count("\n") == 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("readable", "readable by others; chmod 600 {auth}, if it is the password file"),
        ("directory", "not a regular file"),
        ("link", "is a symbolic link"),
        ("missing", "no such file; it needs mode 600, and a line {server}:itojun:PASSWORD"),
        ("empty", "line 1 has an empty password"),
    ],
)
def test_a_password_file_that_cannot_be_used_is_named(
    dtcpc: Service, spoil: str, said: str
) -> None:
    dtcpc.configure(**GOOD)
    if spoil == "readable":
        dtcpc.auth.chmod(0o640)
    elif spoil == "empty":
        dtcpc.auth.write_text(f"{SERVER}:itojun:\n")
    else:
        dtcpc.auth.unlink()
    if spoil == "directory":
        dtcpc.auth.mkdir(mode=0o700)
    elif spoil == "link":
        dtcpc.auth.symlink_to("elsewhere")
    try:
        message = dtcpc.refuses("start")
    finally:
        if spoil == "directory":
            dtcpc.auth.rmdir()
    why = said.format(auth=dtcpc.auth, server=SERVER)
    assert message.startswith(f"dtcpc_authfile: {dtcpc.auth}: {why}\n")


def test_without_a_file_named_it_is_that_of_the_manual(dtcpc: Service) -> None:
    dtcpc.configure(**GOOD, dtcpc_authfile="", dtcpc_program=dtcpc.record_instead())
    dtcpc.does("start")
    assert "--auth-file" not in dtcpc.record.read_text()


def test_what_is_not_about_rc_conf_is_said_as_it_is(dtcpc: Service) -> None:
    program = dtcpc.record.with_name("broken")
    program.write_text("#!/nowhere/python3.11\n")
    program.chmod(0o755)
    dtcpc.configure(**GOOD, dtcpc_program=str(program))
    message = dtcpc.refuses("start")
    assert str(program) in message.splitlines()[0]
    assert "dtcpc_flags" not in message


def test_a_profile_that_nobody_knows(dtcpc: Service) -> None:
    dtcpc.configure(**GOOD, dtcpc_profiles="home work")
    assert dtcpc.refuses("start", "hom") == 'no profile "hom"; dtcpc_profiles has: home work\n'
    dtcpc.configure(**GOOD)
    assert dtcpc.refuses("start", "home") == 'no profile "home"; dtcpc_profiles has: none\n'


def test_a_profile_with_an_impossible_name(dtcpc: Service) -> None:
    dtcpc.configure(**GOOD, dtcpc_profiles="home at-work")
    said = dtcpc.refuses("start")
    assert said == 'dtcpc_profiles: "at-work" is not a name of letters, digits and _\n'


def test_one_bad_profile_does_not_keep_the_other_from_starting(dtcpc: Service) -> None:
    dtcpc.configure(
        dtcpc_enable="YES",
        dtcpc_profiles="home work",
        dtcpc_work_server=SECOND,
        dtcpc_work_username="jun",
        dtcpc_flags="-l",
        dtcpc_work_flags="-t host",
        dtcpc_program=dtcpc.record_instead(),
    )
    done = dtcpc.run("start")
    assert done.returncode == 1
    assert "dtcpc_home_server is not set" in done.stderr
    assert "Starting dtcpc_work.\n" in done.stdout
    own = f"-D -f /var/run/dtcpc_work.pid --auth-file {dtcpc.auth}"
    assert dtcpc.record.read_text() == f"-t host {own} -u jun {SECOND}"


def test_a_profile_can_be_switched_off(dtcpc: Service) -> None:
    dtcpc.configure(
        **GOOD,
        dtcpc_profiles="home work",
        dtcpc_work_enable="NO",
        dtcpc_program=dtcpc.record_instead(),
    )
    said = dtcpc.does("start")
    assert "Starting dtcpc_home." in said
    assert "Cannot 'start' dtcpc_work. Set dtcpc_work_enable to YES" in said


def test_enabled_is_answered_for_each_profile(dtcpc: Service) -> None:
    dtcpc.configure(**GOOD, dtcpc_profiles="home work", dtcpc_work_enable="NO")
    assert [dtcpc.run("enabled", *name).returncode for name in ((), ("home",), ("work",))] == [
        *(0, 0, 1)
    ]
    dtcpc.configure(**GOOD | {"dtcpc_enable": "NO"})
    assert dtcpc.run("enabled").returncode == 1


@pytest.mark.parametrize(("release", "status"), [("15.1", 1), ("13.2", 0)])
def test_status_of_what_is_not_enabled_is_that_of_the_release(
    dtcpc: Service, release: str, status: int
) -> None:
    dtcpc.release = release
    dtcpc.configure(**GOOD | {"dtcpc_enable": "NO"})
    done = dtcpc.run("status")
    assert (done.returncode, done.stderr) == (status, "")
    refused = "Cannot 'status' dtcpc. Set dtcpc_enable to YES in /etc/rc.conf or use 'onestatus'"
    expected = "dtcpc is not running.\n" if status else refused
    assert done.stdout.startswith(expected)
    assert dtcpc.run("onestatus").stdout == "dtcpc is not running.\n"


@pytest.mark.parametrize("words", [(), ("nosuch",)])
def test_a_verb_that_there_is_not_shows_those_that_there_are(
    dtcpc: Service, words: tuple[str, ...]
) -> None:
    dtcpc.configure(**GOOD, dtcpc_profiles="home work")
    done = dtcpc.run(*words)
    assert done.returncode == 1
    assert "Usage: " in done.stderr
    assert {"reload", "test", "status", "poll"} <= set(re.split(r"\W", done.stderr))


# --- real tunnels -----------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.lab
def test_a_tunnel_from_start_to_stop(net: Internet, client: Service) -> None:
    client.configure(**GOOD)
    with serve(net) as server:
        before = net.client.snapshot()
        assert client.does("start") == "kldload if_gif\nStarting dtcpc.\n"
        own = f"-D -f /var/run/dtcpc.pid --auth-file {client.auth}"
        program = f"{sys.executable} {client.prefix}/sbin/dtcpc"
        assert client.commands()[0] == f"{program} -t network -Dl {own} -u itojun {SERVER}"
        wait_until("the tunnel", is_up(client))
        pid = net.client.read("/var/run/dtcpc.pid").strip()
        said = client.does("status")
        assert said.startswith(f"dtcpc is running as pid {pid}.\n")
        assert f"{DELEGATED} delegated" in said

        assert client.refuses("start") == f"dtcpc already running?  (pid={pid}).\n"

        client.does("reload")
        wait_until("another login", lambda: sum("itojun: up" in x for x in server.lines) == 2)

        said = client.does("restart")
        assert said.startswith(f"Stopping dtcpc.\nWaiting for PIDS: {pid}.\n")
        assert said.endswith("Starting dtcpc.\n")
        assert net.client.read("/var/run/dtcpc.pid").strip() != pid
        wait_until("the tunnel", is_up(client))

        poll = net.client.popen(client.words(client.script, "poll"), stdout=subprocess.DEVNULL)
        assert client.does("stop").startswith("Stopping dtcpc.\n")
        assert poll.wait(10) == 0
    assert net.client.snapshot() == before

    done = client.run("status")
    assert (done.returncode, done.stdout) == (1, "dtcpc is not running.\n")
    for verb in ("stop", "reload"):
        assert client.refuses(verb) == "dtcpc not running? (check /var/run/dtcpc.pid).\n"
    assert client.does("faststop") == ""


@pytest.mark.long
@pytest.mark.lab
def test_the_tunnel_of_rc_conf_is_tested(net: Internet, client: Service) -> None:
    """Before it is started, and while it runs; what is wrong in rc.conf is said as at a start."""
    client.configure(**GOOD)
    with serve(net):
        before = net.client.snapshot()
        said = client.does("test").splitlines()
        assert [line.split("  ")[0] for line in (said[0], said[-1])] == ["name", "path MTU"]
        assert difference(before, net.client.snapshot()) == []
        client.configure(**GOOD | {"dtcpc_username": "jun"})
        assert "has no line" in client.refuses("test")
        client.configure(**GOOD)
        client.does("start")
        wait_until("the tunnel", is_up(client))
        pid = client.pid()
        assert client.does("test").startswith("running ")
        assert client.pid() == pid
        net.server.run(["ifconfig", "gif0", "down"])
        done = client.run("test")
        assert done.returncode
        assert "packets back" in done.stdout.splitlines()[-2]
        client.does("stop")


def test_the_test_is_that_of_each_tunnel(dtcpc: Service) -> None:
    dtcpc.configure(
        **GOOD, dtcpc_profiles="home work", dtcpc_work_fib="2", dtcpc_program=dtcpc.record_instead()
    )
    own = "-t network -Dl -D -f /var/run/dtcpc_{}.pid --auth-file " + str(dtcpc.auth)
    assert dtcpc.does("test", "home") == ""
    assert dtcpc.record.read_text() == f"{own.format('home')} -u itojun {SERVER} --test"
    assert dtcpc.does("test") == "setfib 2\n"
    assert dtcpc.record.read_text() == f"{own.format('work')} -F 2 -u itojun {SERVER} --test"


@pytest.mark.lab
def test_start_does_not_wait_for_the_network_and_stop_neither(
    net: Internet, client: Service
) -> None:
    net.router.run(machine.link("eth1", up=False))  # packets vanish
    client.configure(**GOOD)
    begun = time.monotonic()
    client.does("start")
    assert time.monotonic() - begun < CONNECT_TIME * SLOW
    said = client.does("status")  # it runs, and tells that there is no tunnel
    assert "is running" in said
    assert "up for" not in said
    begun = time.monotonic()
    client.does("stop")
    assert time.monotonic() - begun < 10 * SLOW
    assert not client.commands()


@pytest.mark.lab
def test_a_restart_with_a_bad_rc_conf_stops_nothing(net: Internet, client: Service) -> None:
    client.configure(**GOOD)
    client.does("start")
    running = client.pid()
    client.configure(**GOOD | {"dtcpc_flags": "-x"})
    assert "dtcpc_flags: unrecognized arguments: -x" in client.refuses("restart")
    assert client.pid() == running
    client.does("stop")


@pytest.mark.lab
def test_what_the_check_does_not_see_stops_the_start_as_well(
    net: Internet, client: Service
) -> None:
    client.configure(**GOOD, dtcpc_flags="-t network -P em7/1")
    done = client.run("start")
    assert done.returncode == 1
    assert "dtcpc: -P: em7: no such interface\n" in done.stderr
    assert "failed to start dtcpc" in done.stderr
    assert not client.commands()


@pytest.mark.lab
def test_two_profiles(net: Internet, client: Service) -> None:
    net.server.run(["ifconfig", "em0", "inet", f"{SECOND}/32", "alias"])
    client.configure(
        dtcpc_enable="YES",
        dtcpc_profiles="home work",
        dtcpc_flags="-t host -l",
        dtcpc_home_server=SERVER,
        dtcpc_home_username="itojun",
        dtcpc_work_server=SECOND,
        dtcpc_work_username="jun",
        dtcpc_work_flags="-t tunnelonly -l -R 2001:db8:77::/48",
    )
    with serve(net):
        before = net.client.snapshot()
        assert client.does("start").replace("kldload if_gif\n", "") == (
            "Starting dtcpc_home.\nStarting dtcpc_work.\n"
        )
        wait_until("home", is_up(client, "home"))
        wait_until("work", is_up(client, "work"))
        assert ping(net.client)

        said = client.does("status")
        assert re.findall(r"^(dtcpc_\w+) is running", said, re.M) == ["dtcpc_home", "dtcpc_work"]
        pids = re.findall(r"pid (\d+)", said)

        client.does("restart", "work")
        wait_until("work", is_up(client, "work"))
        again = re.findall(r"as pid (\d+)", client.does("status"))
        assert again[0] == pids[0]
        assert again[1] not in pids

        daily = client.prefix / "etc/periodic/daily/425.status-dtcpc"
        report = client.run_file("env", "daily_status_dtcpc_enable=YES", daily)
        assert report.returncode == 1
        assert "dtcpc_work is running" in report.stdout

        client.does("stop", "home")
        done = client.run("status")
        assert done.returncode == 1
        assert "dtcpc_home is not running.\ndtcpc_work is running" in done.stdout
        assert client.run_file("env", "daily_status_dtcpc_enable=YES", daily).returncode == 3
        client.does("faststop")
    assert net.client.snapshot() == before


@pytest.mark.lab
def test_at_boot_the_script_is_sourced_by_rc(net: Internet, client: Service) -> None:
    client.configure(**GOOD, dtcpc_profiles="home")
    boot = f"(set faststart; . {client.script}); echo and on"
    done = client.run_file("sh", "-c", boot, "/etc/rc")
    assert done.stdout == "kldload if_gif\nand on\n"
    assert client.does("status").startswith("dtcpc_home is running as pid ")
    client.does("stop")


# --- what has changed since it was started ----------------------------------------------------


@contextmanager
def upgraded(service: Service) -> Iterator[None]:
    """The program has another interpreter from here on, as after an upgrade of Python."""
    program = service.prefix / "sbin" / service.script.name
    text = program.read_text()
    interpreter = service.record.with_name("new") / "bin/python3.99"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    for name in ("pyvenv.cfg", "lib"):  # it looks for these beside it, in a virtual environment
        if sys.prefix != sys.base_prefix:
            (interpreter.parent.parent / name).symlink_to(Path(sys.prefix, name))
    program.chmod(0o755)
    program.write_text(text.replace(sys.executable, str(interpreter), 1))
    try:
        yield
    finally:
        program.write_text(text)


@pytest.mark.lab
@pytest.mark.hazard(55)
def test_after_an_upgrade_of_python_it_is_found_all_the_same(
    net: Internet, client: Service
) -> None:
    client.configure(**GOOD)
    with serve(net):
        client.does("start")
        wait_until("the tunnel", is_up(client))
        first = client.pid()
        with upgraded(client):
            assert client.pid() == first
            assert "up for" in client.does("status")
            assert client.refuses("start") == f"dtcpc already running?  (pid={first}).\n"
            client.does("reload")
            said = client.does("restart")
            assert said.startswith(f"Stopping dtcpc.\nWaiting for PIDS: {first}.\n")
            assert client.pid() != first
            poll = net.client.popen(client.words(client.script, "poll"), stdout=subprocess.DEVNULL)
            client.does("stop")
            assert poll.wait(10) == 0
            assert not client.commands()


@pytest.mark.lab
@pytest.mark.hazard(55)
def test_it_is_stopped_while_there_is_no_python_at_all(net: Internet, client: Service) -> None:
    """As in the middle of an upgrade."""
    client.configure(**GOOD)
    client.does("start")
    with upgraded(client):
        client.record.with_name("new").joinpath("bin/python3.99").unlink()
        done = client.run("status")
        assert done.returncode == 0
        assert done.stdout.startswith("dtcpc is running as pid ")
        client.does("stop")
    assert not client.commands()


@pytest.mark.lab
@pytest.mark.hazard(55)
def test_a_server_is_found_after_an_upgrade_too(net: Internet, dtcps: Service) -> None:
    dtcps.configure(dtcps_enable="YES", dtcps_prefix=PREFIX)
    dtcps.does("start")
    first = dtcps.pid()
    with upgraded(dtcps):
        assert dtcps.pid() == first
        assert "already running" in dtcps.refuses("start")
        dtcps.does("reload")
        assert "Starting dtcps." in dtcps.does("restart")
        assert dtcps.pid() != first
        dtcps.does("stop")
    assert not dtcps.commands()


HOLD = """
import fcntl, time
file = open("/var/run/dtcpc.pid")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""


@pytest.mark.lab
@pytest.mark.hazard(55, 65)
@pytest.mark.parametrize("mode", ["600", "644"])
def test_whom_a_stale_pid_file_names_is_left_alone(
    net: Internet, client: Service, mode: str
) -> None:
    """Also while somebody holds its lock, who may have read it."""
    client.configure(**GOOD)
    bystander = net.client.popen(["sleep", "60"])
    net.client.write("/var/run/dtcpc.pid", f"{bystander.pid}\n")
    net.client.run(["chmod", mode, "/var/run/dtcpc.pid"])
    stranger = net.client.popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE)
    assert stranger.stdout is not None
    stranger.stdout.readline()
    assert client.refuses("stop") == "dtcpc not running? (check /var/run/dtcpc.pid).\n"
    assert client.run("status").stdout == "dtcpc is not running.\n"
    assert bystander.poll() is None
    for each in (stranger, bystander):
        each.kill()
        each.communicate()


def profiles(*names: str, **more: str) -> dict[str, str]:
    """An rc.conf with these profiles, which have different users and servers."""
    facts = {"home": (SERVER, "itojun"), "work": (SECOND, "jun")}
    conf = {"dtcpc_enable": "YES", "dtcpc_profiles": " ".join(names), "dtcpc_flags": "-t host -l"}
    for name in names:
        conf[f"dtcpc_{name}_server"], conf[f"dtcpc_{name}_username"] = facts[name]
    return conf | more


@pytest.mark.lab
@pytest.mark.hazard(56)
def test_a_profile_that_has_gone_from_rc_conf_can_be_seen_and_stopped(
    net: Internet, client: Service
) -> None:
    client.configure(**profiles("home", "work"))
    client.does("start")
    work = client.pid("work")
    client.configure(**profiles("home"))
    assert client.pid("work") == work
    assert f"dtcpc_work is running as pid {work}." in client.does("status")
    for verb in ("start", "restart", "reload"):
        said = client.refuses(verb, "work")
        assert said == 'no profile "work"; dtcpc_profiles has: home\n'
    assert client.pid("work") == work
    poll = net.client.popen(client.words(client.script, "poll", "work"), stdout=subprocess.PIPE)
    waiting = f"Waiting for PIDS: {work}"
    assert poll.stdout is not None
    assert poll.stdout.read(len(waiting)) == waiting
    said = client.does("stop", "work")
    assert said == f"Stopping dtcpc_work.\nWaiting for PIDS: {work}.\n"
    poll.communicate(timeout=10)
    assert poll.returncode == 0
    assert client.refuses("stop", "work") == 'no profile "work"; dtcpc_profiles has: home\n'
    assert client.pid("home")
    client.does("stop")
    assert not client.commands()


@pytest.mark.lab
@pytest.mark.hazard(56)
@pytest.mark.parametrize("verb", ["stop", "faststop", "onestop", "restart"])
def test_what_has_gone_from_rc_conf_ends_with_the_others(
    net: Internet, client: Service, verb: str
) -> None:
    client.configure(**GOOD)  # one without a profile, too
    client.does("start")
    client.configure(**profiles("home", "work"))
    client.does("start")
    client.configure(**profiles("home"))
    home = client.pid("home")
    said = client.does(verb)
    assert re.findall(r"^Stopping (\w+)\.$", said, re.M) == ["dtcpc_work", "dtcpc", "dtcpc_home"]
    if verb == "restart":
        assert client.pid("home") != home
        client.does("stop")
    assert not client.commands()


@pytest.mark.lab
@pytest.mark.hazard(56)
def test_the_last_profile_that_has_gone_ends_too(net: Internet, client: Service) -> None:
    client.configure(**profiles("work"))
    client.does("start")
    client.configure(**GOOD)
    assert client.run("stop").stdout.startswith("Stopping dtcpc_work.\n")
    assert not client.commands()


@pytest.mark.lab
@pytest.mark.hazard(33, 65)
@pytest.mark.parametrize("name", ["dtcpc", "dtcps"])
def test_who_may_not_look_is_told_so_by_status(
    net: Internet, port: Port, tmp_path: Path, name: str
) -> None:
    service = Service(port, tmp_path, name, net.client)
    service.configure(**GOOD, dtcps_enable="YES")
    path = f"/var/run/{name}.pid"
    net.client.write(path, "1\n")
    net.client.run(["chown", "4321", path])
    # Of root's rights these are the ones to read what is others'.
    unable = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    done = service.run_file(*unable, service.script, "status")
    assert (done.returncode, done.stdout) == (1, "")
    warning = f"{service.script}: WARNING: {path}: not allowed; become root\n"
    assert done.stderr == warning
    # rc.subr(8) goes on as if nothing ran, but the reason has been said.
    done = service.run_file(*unable, service.script, "stop")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{warning}{name} not running? (check {path}).\n"


@pytest.mark.lab
@pytest.mark.hazard(82)
def test_a_status_that_is_not_read_to_its_end_says_nothing_more(
    net: Internet, client: Service
) -> None:
    client.configure(**GOOD)
    client.does("start")
    done = client.run_file("sh", "-c", f"{client.script} status | head -1")
    assert done.stdout == f"dtcpc is running as pid {client.pid()}.\n"
    assert done.stderr == ""
    client.does("stop")


# --- the server -------------------------------------------------------------------------------


@pytest.fixture
def dtcps(port: Port, tmp_path: Path, net: Internet) -> Service:
    """rc.d/dtcps on the server of the lab, with users."""
    service = Service(port, tmp_path, "dtcps", net.server)
    set_users(net.server, "itojun:secret\n")
    return service


@pytest.mark.lab
def test_a_server_from_start_to_stop(
    net: Internet, port: Port, dtcps: Service, tmp_path: Path
) -> None:
    dtcps.configure(dtcps_enable="YES", dtcps_prefix=PREFIX)
    assert dtcps.does("start") == "kldload if_gif\nStarting dtcps.\n"
    program = f"{sys.executable} {dtcps.prefix}/sbin/dtcps"
    assert dtcps.commands() == [f"{program} {PREFIX}"]
    assert dtcps.does("status").startswith("dtcps is running as pid ")
    assert "already running" in dtcps.refuses("start")

    client = Service(port, tmp_path, "dtcpc", net.client)
    client.configure(**GOOD, dtcpc_flags="-t host")
    client.does("start")
    wait_until("the tunnel", is_up(client))
    assert ping(net.client)
    client.does("stop")

    dtcps.configure(dtcps_enable="YES", dtcps_prefix=PREFIX)
    dtcps.does("configtest")
    dtcps.does("stop")
    assert dtcps.run("status").stdout == "dtcps is not running.\n"
    assert not dtcps.commands()


@pytest.mark.lab
def test_a_restart_leaves_the_tunnels_and_one_that_would_fail_the_server(
    net: Internet, port: Port, dtcps: Service, tmp_path: Path
) -> None:
    good = {"dtcps_enable": "YES", "dtcps_prefix": PREFIX}
    dtcps.configure(**good)
    dtcps.does("start")
    client = Service(port, tmp_path, "dtcpc", net.client)
    client.configure(**GOOD, dtcpc_flags="-t host -Dl")
    client.does("start")
    wait_until("the tunnel", is_up(client))
    index = identity(net.server, "gif0")

    dtcps.configure(**good, dtcps_flags="-x")
    assert "mend dtcps_flags" in dtcps.refuses("restart")
    assert dtcps.run("status").returncode == 0  # it runs as before

    dtcps.configure(**good)
    assert "Starting dtcps." in dtcps.does("restart")
    said = f"{port.prefix}/sbin/dtcps --status".split()
    wait_until("itojun is back", lambda: "itojun" in net.server.run([sys.executable, *said]).stdout)
    assert identity(net.server, "gif0") == index
    assert "itojun" in dtcps.does("status")
    client.configure(**GOOD, dtcpc_flags="-t host -Dl")
    client.does("stop")
    dtcps.configure(**good)
    dtcps.does("stop")
    assert "gif0" not in net.server.run(["ifconfig", "-l"]).stdout


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ""),
        ({"dtcps_tunif": "gif", "dtcps_unit_min": "10"}, "-i gif10"),
        ({"dtcps_unit_min": "10"}, "-i gif10"),
        ({"dtcps_tunif": "gif"}, "-i gif0"),
        ({"dtcps_fib": "2", "dtcps_prefix": PREFIX}, f"-F 2 {PREFIX}"),
    ],
)
def test_the_old_variables_of_the_server(
    port: Port, tmp_path: Path, variables: dict[str, str], expected: str
) -> None:
    service = Service(port, tmp_path, "dtcps")
    service.configure(dtcps_enable="YES", dtcps_program=service.record_instead(), **variables)
    said = service.run("start")
    assert said.returncode == 0, said.stderr
    assert ("setfib 2" in said.stdout) == ("dtcps_fib" in variables)
    assert service.record.read_text() == expected


@pytest.mark.lab
def test_a_reload_says_whether_the_file_was_taken(net: Internet, dtcps: Service) -> None:
    config = dtcps.prefix / "etc/dtcps.conf"
    dtcps.configure(dtcps_enable="YES", dtcps_prefix=PREFIX)
    assert dtcps.refuses("reload") == "dtcps: not running\n"
    dtcps.does("start")
    assert dtcps.does("reload") == ""
    for text, why in (
        ("mtu = 7\n", f"{config}:1: '7' is not a number from 1280 to 8192"),
        # Which --check does not see.
        ("listen = 192.0.2.1\n", "listen cannot change while we run: restart"),
        ("metrics = 127.0.0.1:20200\n", "metrics: listen on 127.0.0.1 port 20200: Address"),
    ):
        config.write_text(text)
        assert dtcps.refuses("reload").startswith(f"dtcps: nothing was changed: {why}")
        assert f"the configuration was not taken: {why}" in dtcps.does("status")
    config.unlink()
    dtcps.does("reload")
    assert "was not taken" not in dtcps.does("status")
    dtcps.does("stop")


@pytest.mark.lab
@pytest.mark.turns(3)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dtcps_flags": "-x"}, "mend dtcps_flags or another variable of dtcps in"),
        ({"dtcps_prefix": "2001:db8::/120"}, "mend dtcps_flags or another variable of dtcps in"),
        ({"dtcps_flags": "--config /x"}, "dtcps: /x: no such file"),
        ({"dtcps_flags": "-U; touch /run/x"}, "dtcps_flags: a character of sh(1) in it"),
        ({"dtcps_flags": "-U\n"}, "dtcps_flags: a character of sh(1) in it"),
        ({"dtcps_prefix": "$(touch /run/x)"}, "dtcps_prefix: a character of sh(1) in it"),
        ({"dtcps_tunif": "tap"}, "mend dtcps_flags or another variable of dtcps in"),
        ({"dtcps_unit_min": "1;touch /run/x"}, 'dtcps_unit_min="1;touch /run/x" is not the name'),
        ({"dtcps_fib": "1;touch /run/x"}, 'dtcps_fib="1;touch /run/x" is not the number of a FIB'),
        ({"dtcps_flags": "-dU"}, "dtcps_flags: -dU keeps dtcps in the foreground; leave it out"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    dtcps: Service, wrong: dict[str, str], said: str
) -> None:
    dtcps.configure(dtcps_enable="YES", **wrong)
    done = dtcps.run("start")
    assert done.returncode == 1
    assert said in done.stderr
    assert not dtcps.commands()
    assert dtcps.host is not None
    assert not dtcps.host.run(["ls", "/run/x"], check=False).stdout  # nothing was evaluated
