"""The network around this host at the moment: its own addresses, the server's, and what changes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from dtcp import daemon, run
from dtcp.cli import Failure
from dtcp.errors import FAILED, TRY_AGAIN

RESOLVE_TIME = 30.0  # seconds that the name service may take


def own_address(to: IPv4Address | None) -> IPv4Address | None:
    """The address that this host has on its way to `to` (None: to anywhere), now."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            # Sends nothing, so any port will do; 192.0.2.1 stands for anywhere (RFC 5737).
            sock.connect((str(to or "192.0.2.1"), 9))
            address = IPv4Address(sock.getsockname()[0])
    except OSError:
        return None
    return None if address.is_unspecified else address


def is_here(address: IPv4Address | IPv6Address) -> bool:
    """Whether this host has that address.  Raises OSError: no more descriptors for now."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(address), 0))
        except OSError:
            return False
        return True


def resolve(server: str, signals: daemon.Signals) -> list[IPv4Address]:
    """The IPv4 addresses of the server, in the resolver's order.  Raises Failure, Stopped."""
    try:
        return [IPv4Address(server)]
    except ValueError:
        pass
    import threading

    # The resolver may take minutes and cannot be interrupted: it gets a thread of its own, which
    # tells us through a pipe that it has finished.
    answers: list[list[IPv4Address] | socket.gaierror] = []
    done, finish = os.pipe()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(server, None, socket.AF_INET, socket.SOCK_STREAM)
            answers.append(list(dict.fromkeys(IPv4Address(each[4][0]) for each in found)))
        except socket.gaierror as error:
            passing = error.errno == socket.EAI_AGAIN
            answers.append(error if passing else _over_ipv6(server) or error)
        except Exception as error:  # nobody else would hear of it
            answers.append(socket.gaierror(socket.EAI_FAIL, str(error)))
        finally:
            os.close(finish)

    try:
        threading.Thread(target=ask, daemon=True).start()
    except RuntimeError as error:  # no more threads for now
        os.close(done)
        os.close(finish)
        raise Failure(f"{server}: {error}", TRY_AGAIN) from None
    end = time.monotonic() + RESOLVE_TIME
    while not answers and (left := end - time.monotonic()) > 0:
        signals.check()
        signals.wait([done], left)
    os.close(done)
    if not answers:
        raise Failure(f"{server}: no answer from the name service", TRY_AGAIN)
    answer = answers[0]
    if isinstance(answer, socket.gaierror):
        temporary = answer.errno == socket.EAI_AGAIN
        raise Failure(f"{server}: {answer.strerror}", TRY_AGAIN if temporary else FAILED)
    return answer


def _over_ipv6(server: str) -> socket.gaierror | None:
    """That the name has IPv6 addresses, which do not help, if so."""
    try:
        socket.getaddrinfo(server, None, socket.AF_INET6, socket.SOCK_STREAM)
    except socket.gaierror:
        return None
    text = "has IPv6 addresses only; DTCP is spoken over IPv4"
    return socket.gaierror(socket.EAI_NONAME, text)


def is_news(said: bytes) -> bool:
    """Whether what `route -n monitor` has said means that something may have changed.

    On 13.2 it also tells of each `route get`, our own looks included.
    """
    return set(re.findall(rb"RTM_\w+", said)) != {b"RTM_GET"}


class Monitor:
    """`route -n monitor`, whose output means that it is time to look again.

    What it says differs wholly between releases.  It runs for as long as we do, and `sh` would wake
    up once a second for that; so it is started without.
    """

    # By hand, for subprocess is large, and would stay in memory for this alone.
    def __init__(self, log: Callable[[str], None]) -> None:
        """Start it; `log` gets the command as a person would type it.  Raises Failure, OSError."""
        words = ["route", "-n", "monitor"]
        program = run.which(words[0])
        if program is None:
            raise Failure(f"{words[0]}: no such command in {run.path()}")
        log(" ".join(words))
        self._output, output = os.pipe()
        try:
            self._pid = os.posix_spawn(
                program,
                [program, *words[1:]],
                run.usual_environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 2),
                ],
                setpgroup=0,  # away from the terminal's ^C
                setsigdef=[signal.SIGPIPE],  # which Python ignores
            )
        except OSError:
            os.close(self._output)
            raise
        finally:
            os.close(output)

    def fileno(self) -> int:
        """Becomes readable when it has said something, or has ended."""
        return self._output

    def read(self) -> bytes:
        """What it has said; nothing: it has ended."""
        return os.read(self._output, 65536)

    def end(self) -> None:
        """End it, and see it gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._output)
