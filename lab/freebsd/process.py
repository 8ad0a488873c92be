"""Starts other programs.  To import subprocess(3) would take longer than most of them do."""

from __future__ import annotations

import os
import sys

SIGKILL = 9  # signal(3), too, takes long


def run(words: list[str], text: str = "") -> tuple[str, str]:
    """Run a program that reads ``text``; what it says on standard output and standard error.

    The streams are files in memory, of any length: nobody waits for anybody.
    """
    files = [os.memfd_create(name) for name in ("input", "output", "error")]
    try:
        os.write(files[0], text.encode())
        os.lseek(files[0], 0, os.SEEK_SET)
        streams = [(os.POSIX_SPAWN_DUP2, file, stream) for stream, file in enumerate(files)]
        pid = os.posix_spawn(words[0], words, {}, file_actions=streams)
        os.waitpid(pid, 0)
        output, error = (os.pread(file, os.fstat(file).st_size, 0).decode() for file in files[1:])
    finally:
        for file in files:
            os.close(file)
    return output, error


def start(script: str, words: list[str], descriptors: list[int]) -> int:
    """Start one of our own scripts as a daemon; its process id.

    Behind its words it gets the numbers of the descriptors, and no other stays open in it.
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, stream, "/dev/null", os.O_RDWR, 0) for stream in range(3)
    ]
    actions += [(os.POSIX_SPAWN_CLOSE, n) for n in range(3, 256) if n not in descriptors]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    path = os.path.join(os.path.dirname(__file__), script)
    program = [sys.executable, "-IS", path, *words, *map(str, descriptors)]
    return os.posix_spawn(program[0], program, {}, file_actions=actions, setsid=True)
