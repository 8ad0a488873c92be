"""The small internet, left up for trying things by hand: shells on its hosts, one at a time.

A shell does its own job control in a process group that it makes the terminal's, so that ^C and ^Z
reach the command that runs in it, and no process of the lab. Between two shells we do the same.

    python -m lab.hands MARK RELEASE

is what runs in the enclosure; by MARK, anything unique, it is found from outside.
"""

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lab import SLOW, enclosure
from lab.demo import CHECKOUT, DELEGATED, PASSWORD, PICTURE, SERVER_PREFIX, USER
from lab.host import Host
from lab.internet import FAR6, SERVER_NAME, Internet
from lab.machine import machine

HOSTS = ("client", "server", "router", "far")
QUESTION = f"Next host ({', '.join(HOSTS)}; or quit)? "

_PROGRAMS = ("dtcpc", "dtcps", "dtcpauth")
_LOG = "/var/run/dtcps.log"
_TERMINAL = 0

_INTRODUCTION = f"""\
{PICTURE}
Client and server speak FreeBSD {{release}}. On the server dtcps runs, and has the
user {USER}, to whom {DELEGATED} belongs. The client's password file has
the line {SERVER_NAME}:{USER}:{PASSWORD}

To try:

   client# dtcpc -Dl -t host -u {USER} {SERVER_NAME}
   client# dtcpc --status
   client# ping -c 3 {FAR6}
   client# ifconfig gif0
   client# kill $(cat /var/run/dtcpc.pid)
   server# dtcps --status
   server# tail {_LOG}
   router# tcpdump -n -i eth0 ip proto 41

A shell on the client follows; after its `exit` comes the next host. `quit`
there, or Ctrl-D, ends everything. In a second terminal, as root, this opens a
shell on the router (likewise {", ".join(name for name in HOSTS if name != "router")}):

   {{command}}
"""

# $0: what goes to the front of PATH; then the shell.
_IN_FRONT = 'PATH=$0:$PATH; exec "$@"'


def main(release: str) -> int:
    """Build the internet, and let somebody at the terminal try things until he quits.

    Returns 0, or 64 without a terminal, or a status of ``enclosure.run``.
    """
    try:
        group, settings = os.tcgetpgrp(_TERMINAL), termios.tcgetattr(_TERMINAL)
    except (OSError, termios.error):
        print("demo: shells need a terminal on standard input: do not redirect it", file=sys.stderr)
        return os.EX_USAGE
    try:
        return enclosure.run([sys.executable, "-m", "lab.hands", str(os.getpid()), release])
    finally:
        # Those that had it are dead, and so may the terminal be.
        with suppress(OSError, termios.error):
            _hand_over(group, settings)


def _inside(mark: str, release: str) -> int:
    try:
        with tempfile.TemporaryDirectory() as directory, Internet(release) as net:
            shells = _write_shells(net, Path(directory))
            _start_server(net)
            outside = machine.from_outside(f"lab.hands {mark}", [str(shells["router"])])
            print(_INTRODUCTION.format(release=release, command=outside), flush=True)
            _visit(shells)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"demo: FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _write_shells(net: Internet, directory: Path) -> dict[str, Path]:
    """For each host the program, for whichever terminal, that is a shell on it."""
    programs = directory / "bin"
    programs.mkdir()
    for name in _PROGRAMS:
        _write(programs / name, [sys.executable, str(CHECKOUT / f"{name}.py")], '"$@"')
    # bash, where there is one: Debian's sh(1) has no history and no arrow keys.
    bash = shutil.which("bash")
    shell = [bash, "--norc", "--noprofile", "-i"] if bash else ["sh", "-i"]
    shells = {}
    for name in HOSTS:
        host: Host = getattr(net, name)
        shells[name] = directory / name
        # In HOME shells and editors leave their history: /run is the host's own.
        _write(
            shells[name],
            host.argv(["sh", "-c", _IN_FRONT, str(programs), *shell]),
            setup=f"""
                unset BASH_ENV ENV HISTFILE PROMPT_COMMAND
                export HOME=/run PS1='{name}# ' TMPDIR={shlex.quote(tempfile.gettempdir())}
                """,
        )
    return shells


def _write(path: Path, words: list[str], more: str = "", setup: str = "") -> None:
    path.write_text(f"#!/bin/sh\n{setup}\nexec {shlex.join(words)} {more}\n")
    path.chmod(0o755)


def _start_server(net: Internet) -> None:
    add = [sys.executable, str(CHECKOUT / "dtcpauth.py"), "add", "-P", DELEGATED, USER]
    net.server.run(add, input=f"{PASSWORD}\n")
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER_NAME}:{USER}:{PASSWORD}\n")
    serve = [sys.executable, str(CHECKOUT / "dtcps.py"), "-D", SERVER_PREFIX]
    dtcps = net.server.popen(
        ["sh", "-c", f'exec "$@" >{_LOG} 2>&1', "sh", *serve],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    limit = time.monotonic() + 20 * SLOW
    while "listening on port" not in (said := net.server.run(["cat", _LOG], check=False).stdout):
        if dtcps.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"dtcps does not listen: {said}")
        time.sleep(0.05)


def _visit(shells: dict[str, Path]) -> None:
    """A shell on one host after the other, until there is no next one."""
    threading.Thread(target=_end_with_terminal, daemon=True).start()
    # Nobody would wake us. A handler, unlike SIG_IGN, is not inherited by the shells.
    for number in signal.SIGTSTP, signal.SIGQUIT:
        signal.signal(number, lambda *_: None)
    # Whoever started us may have ignored it, as a shell does in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = termios.tcgetattr(_TERMINAL)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    _hand_over(os.getpgrp(), settings)
    name: str | None = HOSTS[0]
    while name is not None:
        shell = subprocess.Popen([shells[name]])
        while shell.returncode is None:
            # ^C before the shell has made the terminal its own.
            with suppress(KeyboardInterrupt):
                shell.wait()
        # One that was killed has not given it back.
        _hand_over(os.getpgrp(), settings)
        name = _ask()


def _ask() -> str | None:
    """The next host."""
    while True:
        try:
            answer = input(QUESTION).strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            continue
        if answer == "quit":
            return None
        if answer in HOSTS:
            return answer
        if answer:
            print(f"{answer}: there is no such host")


def _hand_over(group: int, settings: list[Any]) -> None:
    """Let a process group have the terminal, with these settings; ours need not have it now."""
    # SIGTTOU would ask us to wait until we have.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        os.tcsetpgrp(_TERMINAL, group)
        termios.tcsetattr(_TERMINAL, termios.TCSANOW, settings)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_terminal() -> NoReturn:
    """End as soon as the terminal is closed: what runs in a shell may ignore it (SIGHUP)."""
    poll = select.poll()
    poll.register(_TERMINAL, 0)
    # Not every terminal wakes those who wait for nothing but its end.
    while not poll.poll(1000):
        pass
    os._exit(128 + signal.SIGHUP)


if __name__ == "__main__":
    sys.exit(_inside(*sys.argv[1:]))
