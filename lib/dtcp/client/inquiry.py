"""--status: what a running instance tells of itself, asked for by another process.

Whether one runs is seen by the lock on the pid file or, by those who may not read that, on the
state file, which is there for a group as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat

from dtcp import cli, daemon, run, status
from dtcp.cli import Failure
from dtcp.errors import FAILED, NOT_ALLOWED, OK, CommandFailed
from dtcp.ledger import Ledger
from dtcp.look import Look
from dtcp.status import Facts


def show_status(options: argparse.Namespace) -> int:
    """Print what the running instance tells of itself; OK when its tunnel is up.

    Raises Failure, PidFileError, LedgerError.
    """
    facts = _facts(options.pid_file, f"{options.files}.state")
    if facts is not None and facts.interface:
        with contextlib.suppress(CommandFailed):
            look = Look(run.Commands(lambda line: None, run.run).run)
            received, sent = look.traffic(facts.interface)
            facts = facts._replace(bytes_in=received, bytes_out=sent)
    if options.json:
        import json

        cli.show(json.dumps(status.as_json(facts), indent=1))
    elif options.prometheus:
        cli.show("\n".join(status.as_prometheus(facts, os.path.basename(options.files))))
    else:
        cli.show("\n".join(status.as_text(facts)))
    return OK if facts is not None and facts.state == "up" else FAILED


def _facts(pid_file: str, state_file: str) -> Facts | None:
    """The facts; None: nothing runs.  Raises Failure, PidFileError, LedgerError."""
    try:
        runs = bool(daemon.running(pid_file))
    except PermissionError:
        try:
            if not os.path.exists(state_file):
                raise
            runs = daemon.running(state_file) is not None
        except PermissionError:
            raise _not_allowed(state_file) from None
    return Ledger(state_file).facts() if runs else None


def _not_allowed(state_file: str) -> Failure:
    """Who would be allowed to read that file."""
    import grp

    group = ""
    with contextlib.suppress(OSError, KeyError):  # there is none yet, or it is of no known group
        info = os.stat(state_file)
        if info.st_mode & stat.S_IRGRP:
            group = f", or a member of group {grp.getgrgid(info.st_gid).gr_name}"
    return Failure(f"{state_file}: not allowed; become root{group}", NOT_ALLOWED)
