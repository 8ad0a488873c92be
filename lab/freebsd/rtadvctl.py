"""rtadvctl(8): asks the rtadvd(8) that has the usual control socket; no option leads to another."""

from __future__ import annotations

import getopt
import socket
import sys

from .rtadvd import CONTROL_SOCKET

VERBS = ("show", "reload", "shutdown", "enable", "disable")


def main(arguments: list[str]) -> int:
    try:
        given, words = getopt.getopt(arguments, "v")
    except getopt.GetoptError as error:
        print(f"rtadvctl: illegal option -- {error.opt}", file=sys.stderr)
        given, words = [], []
    if not words or words[0] not in VERBS:
        print(*VERBS, sep="\n")
        return 1
    with socket.socket(socket.AF_UNIX) as control:
        try:
            control.connect(CONTROL_SOCKET)
        except OSError as error:
            print(f"rtadvctl: connect: {CONTROL_SOCKET}: {error.strerror}", file=sys.stderr)
            return 1
        control.sendall(" ".join([*words, *("-v" for _ in given[:1])]).encode())
        answer = "".join(iter(lambda: control.recv(4096).decode(), ""))
    if answer.startswith("!"):
        sys.stderr.write(answer[1:])
        return 1
    sys.stdout.write(answer)
    return 0
