"""rtadvd(8): tells the hosts on its interfaces that here is a router, and what their prefix is.

It follows the routing table, also for interfaces that are not there yet, and is silent until the
host forwards IPv6. rtadvctl(8) talks to it through the control socket: a line such as
"show -v em1", answered with the text to print; one that begins with "!" is an error.
"""

from __future__ import annotations

import fcntl
import getopt
import os
import random
import select
import signal
import socket
import sys
import time
from contextlib import suppress

from . import ndp, rtadvd_conf, store
from .advertiser import Advertiser
from .model import Host

CONF, PID_FILE = "/etc/rtadvd.conf", "/var/run/rtadvd.pid"
CONTROL_SOCKET = "/var/run/rtadvd.sock"

# In seconds. On the real one the first is as late as the next two: nobody wants to wait for it.
FIRST, RETRY = 1.0, 0.2
INITIAL_INTERVAL, INITIAL_COUNT = 16, 3
# At the end, one after another, if /run/freebsd/rtadvd-seconds says no other interval.
FAREWELL_INTERVAL, FAREWELL_COUNT = 3, 3
LOOK = 0.05  # how often to look what has become of the host


def main(arguments: list[str]) -> int:
    try:
        given, names = getopt.getopt(arguments, "c:C:dDfM:p:Rs")
    except getopt.GetoptError as error:
        print(f"rtadvd: illegal option -- {error.opt}", file=sys.stderr)
        return 1
    options = dict(given)
    if os.geteuid():
        return 0  # said to syslogd(8) only
    pid_file = options.get("-p", PID_FILE)
    held = open_pid_file(pid_file)
    if held is None:
        return 1
    host = store.load()
    store.unlock()
    if "-f" in options or detach():
        files = [pid_file, options.get("-C", CONTROL_SOCKET)]
        daemon = Daemon(files, options.get("-c", CONF), follows="-s" not in options)
        os.write(held, str(os.getpid()).encode())
        daemon.run(names, host)
    return 0


def open_pid_file(path: str) -> int | None:
    """pidfile_open(3): None if another one holds it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        limit = time.monotonic() + 1
        while not (pid := os.pread(file, 20, 0)) and time.monotonic() < limit:
            time.sleep(0.005)  # it has only just begun
        print(f"rtadvd: rtadvd already running, pid: {pid.decode()}", file=sys.stderr)
        return None
    os.ftruncate(file, 0)
    return file


def detach() -> bool:
    """daemon(3); whether this is the daemon. As on the real one its pid is not written yet."""
    if os.fork():
        return False
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    return True


class Daemon:
    def __init__(self, files: list[str], conf: str, follows: bool) -> None:
        self.files = files  # to remove in the end: pid file and control socket
        self.conf, self.follows = conf, follows
        self.served: dict[str, Advertiser] = {}
        self.seen = (-1, 0)  # which version of the model
        self.farewells = 0  # still to say
        self.farewell_due = 0.0
        self.ends = False
        self.sock = ndp.listen(ndp.SOLICITATION)
        # The socket of another one is taken from it without a word.
        with suppress(FileNotFoundError):
            os.unlink(files[1])
        self.control = socket.socket(socket.AF_UNIX)
        self.control.bind(files[1])
        os.chmod(files[1], 0o644)
        self.control.listen()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.end(at_once=True))
        signal.signal(signal.SIGHUP, lambda *_: self.reload())

    def run(self, names: list[str], host: Host) -> None:
        """Serve these interfaces of a host as it was when the command began."""
        for name in names:
            self.serve(name)
            self.served[name].look(host)
        while not self.ends or self.farewells:
            readable = select.select([self.sock, self.control], [], [], LOOK)[0]
            self.look()
            if self.sock in readable:
                self.answer(ndp.received_on(self.sock))
            if self.control in readable:
                self.attend()
            self.tell()

    def serve(self, name: str) -> None:
        settings = rtadvd_conf.read(self.conf, name)
        self.served[name] = Advertiser(name, settings, self.follows, due=time.time() + FIRST)
        self.seen = (-1, 0)

    def reload(self) -> None:
        for name, one in self.served.items():
            one.settings = rtadvd_conf.read(self.conf, name)
        self.seen = (-1, 0)

    def end(self, at_once: bool = False) -> None:
        """The files go at once. Who has been told of a router is then told that it leaves."""
        if self.ends:
            return
        self.ends = True
        for file in self.files:
            with suppress(FileNotFoundError):
                os.unlink(file)
        if any(one.sent for one in self.served.values()):
            self.farewells = FAREWELL_COUNT
            self.farewell_due = time.time() + farewell_interval()
        elif at_once:
            os._exit(0)

    def look(self) -> None:
        """The kernel's messages on the routing socket, as it were."""
        version = store.version()
        if version == self.seen:
            return
        self.seen = version
        host = store.load()
        for one in self.served.values():
            if one.look(host):
                one.due = time.time()
            one.listen(self.sock)

    def answer(self, index: int) -> None:
        for one in self.served.values():
            if index and one.joined == index and not self.ends:
                one.advertise(self.sock, one.settings.lifetime)

    def tell(self) -> None:
        now = time.time()
        if self.farewells and now >= self.farewell_due:
            for one in self.served.values():
                if one.sent:
                    one.advertise(self.sock, 0)
            self.farewells -= 1
            self.farewell_due = now + farewell_interval()
        for one in self.served.values():
            if not self.ends and now >= one.due:
                one.advertise(self.sock, one.settings.lifetime)
                one.due = now + self.pause(one)

    def pause(self, one: Advertiser) -> float:
        if not one.sent:
            return RETRY
        if one.sent < INITIAL_COUNT:
            return INITIAL_INTERVAL
        return random.uniform(one.settings.min_interval, one.settings.max_interval)

    def attend(self) -> None:
        """rtadvctl(8) asks. It waits for the answer, so it has said all."""
        connection, _ = self.control.accept()
        with connection, suppress(OSError):
            connection.settimeout(1)
            words = connection.recv(4096).decode().split()
            connection.sendall(self.obey(words).encode() if words else b"")

    def obey(self, words: list[str]) -> str:
        verbose = "-v" in words
        verb, *names = (word for word in words if word != "-v")
        if verb == "show":
            return self.show(names, verbose)
        if verb == "reload":
            self.reload()
        elif verb == "shutdown":
            self.end()
        for name in names:
            if verb == "enable" and name not in self.served:
                self.serve(name)
            elif verb == "disable":
                self.served.pop(name, None)
        self.look()
        return ""

    def show(self, names: list[str], verbose: bool) -> str:
        for name in names:
            if name not in self.served:
                return f"!show failed: invalid interface {name}.\n"
        return "".join(self.served[name].show(verbose) for name in names or self.served)


def farewell_interval() -> float:
    return float(store.word("rtadvd-seconds", str(FAREWELL_INTERVAL)))
