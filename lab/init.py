"""Process 1 of an enclosure: prepare it, run one command, exit with its status.

When process 1 of a pid namespace exits, for whatever reason, the kernel kills
every other process in it, and the namespaces, interfaces and mounts go with
the last of them. That is the whole cleanup: there is no code for it.

Started by ``enclosure.run`` as a standalone script, without the package and
without site-packages, so that it starts quickly:

    python -I -S init.py FD COMMAND [ARGUMENT ...]

FD is the read end of a pipe whose other end only the supervisor holds.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from typing import NoReturn

# FreeBSD has a /var/db, Linux usually does not, and the machine must not be changed: so we use our
# own /var, with the machine's directories in it. $1: where to build it.
_VAR = """
set -e
mkdir "$1"
mount -t tmpfs -o mode=755 tmpfs "$1"
for entry in /var/*; do
    if [ -L "$entry" ]; then
        cp -P "$entry" "$1"
    elif [ -d "$entry" ]; then
        mkdir "$1/${entry##*/}"
        mount --rbind "$entry" "$1/${entry##*/}"
    fi
done
mkdir "$1/db"
mount --move "$1" /var
rmdir "$1"
"""


def main() -> NoReturn:
    lifeline, command = int(sys.argv[1]), sys.argv[2:]
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    # ^C goes to everyone at the terminal. The supervisor handles it; here it
    # must merely not cause a traceback. A handler, unlike SIG_IGN, is not
    # inherited by the command.
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    _prepare()
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        print(f"lab: {command[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    while True:
        # Orphans of the whole enclosure end up here as well.
        pid, status = os.wait()
        if pid == child.pid:
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def _end_with(lifeline: int) -> None:
    """Exit as soon as the supervisor is gone.

    The kernel takes care of that (``PR_SET_PDEATHSIG``) unless the supervisor
    died just before that was set; the pipe has no such race.
    """
    os.read(lifeline, 1)
    os._exit(1)


def _prepare() -> None:
    """Give the enclosure its own files and loopback interface."""
    # Mounts are private here (unshare --propagation private).
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
    if not os.path.islink("/var/run"):
        subprocess.run(["mount", "--bind", "/run", "/var/run"], check=True)
    if not os.path.isdir("/var/db"):
        subprocess.run(["sh", "-c", _VAR, "sh", "/run/var"], check=True)
    # Temporary files too. Not /tmp: the checkout itself may be there.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm"], check=True)
    os.environ["TMPDIR"] = "/dev/shm"
    socket.sethostname("lab")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


if __name__ == "__main__":
    main()
