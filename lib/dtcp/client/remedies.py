"""What to do about a stage of --test that has failed, by what was said of it.  No I/O."""

from __future__ import annotations

import argparse
import re

from dtcp.errors import TRY_AGAIN, Error
from dtcp.grant import BehindNat

_PASSES = ("sold out|busy|going down|internal", "that passes: try again in a few minutes")

# For each stage patterns of what may have been said, in the order in which they are tried; and the
# remedy, with what of the command line belongs in it.
_REMEDIES: dict[str, tuple[tuple[str, str], ...]] = {
    "name": (
        ("no answer|[Tt]emporary", "no name server answers: is the network up? see resolv.conf(5)"),
        ("", "no IPv4 address has that name: is it spelled right? it must have an A record"),
    ),
    "TCP": (
        ("has no TLS", "install a Python with its module ssl"),
        ("refused", "nothing listens there: is it the right server, and the right port (-p)?"),
        (
            "timed out",
            "what is sent to TCP port {port}, or the answer, is dropped: by a packet filter here,"
            " there or between; or the server is down",
        ),
        ("", "this host has no way there: is its network up? (route -n get {server})"),
    ),
    "greeting": (
        (
            "offers no TLS",
            "the server has no tls-certificate, or somebody on the way cuts the offer out: do not"
            " go on without --tls before you know which",
        ),
        (
            "no DTCP server|no challenge|neither",
            "something else listens there: is it the right server, and the right port (-p)?",
        ),
        (
            "refuses",
            "the server wants nobody, or not from this address, for now: try again in a minute",
        ),
        (
            "no answer|closed|broke",
            "the server, or what is in front of it, does not speak with us: see its log",
        ),
    ),
    "TLS": (
        (
            "expired|not yet valid",
            "the server's administrator must renew it; or the clock of this host is wrong: see"
            " date(1)",
        ),
        (
            "its fingerprint is",
            "if `dtcps --fingerprint` on the server prints that one, give it with"
            " --tls-fingerprint; otherwise somebody else answers",
        ),
        ("refuses TLS", "the log of the server says why; or somebody on the way answers for it"),
        (
            "unexpected data",
            "somebody on the way puts in words of his own; nothing was said to him",
        ),
        _PASSES,
        (
            "no answer|closed|broke|makes no sense|has failed",
            "what is in front of the server may not let TLS through, or something else answers",
        ),
    ),
    "login": (
        (
            "authentication failed",
            "user {user} or the password is wrong: compare {file} with the server's users",
        ),
        (
            "unsupported tunnel type|no tunnels of type",
            "this user gets no tunnel of type {type} there: choose another with -t",
        ),
        ("TLS is required", "log in with --tls, or --tls-fingerprint"),
        ("no route", "this user has no prefix there: the server's administrator must give one"),
        (
            r"over UDP \(-U\)",
            "user and password are right; the server has UDP off, or knows nothing of it: leave"
            " out -U",
        ),
        ("makes no sense", "nothing of it was used: tell the server's administrator"),
        _PASSES,
        ("use -U", "only one user at an address can have protocol 41; the others take -U -n"),
        ("refuses", "ask the server's administrator"),
    ),
    "interface": (
        (
            "has the outer pair",
            "end what has made it, or remove it with `ifconfig IF destroy`; several tunnels to one"
            " server take -U",
        ),
        ("could not be made", "nothing is left of it; run the command by hand to see more"),
    ),
    "routes": (
        (
            "already in table|File exists",
            "somebody else's route: delete that one, or choose other destinations with -R",
        ),
        ("no router answered", ""),  # says what to do
        ("", "nothing is left of it; run the command by hand to see more"),
    ),
    "LAN": (("", "nothing is left of it; run the command by hand to see more"),),
}
_OTHERWISE = "that may pass: try again"


def remedy(options: argparse.Namespace, stage: str, error: Error) -> str:
    """What to do about an error in that stage; nothing, when it says so itself."""
    if isinstance(error, BehindNat):
        return ""
    for pattern, text in _REMEDIES.get(stage, ()):
        if re.search(pattern, str(error)):
            return text.format(
                server=options.server,
                port=options.port,
                user=options.user,
                type=options.type,
                file=options.auth_file or "the password file",
            )
    return _OTHERWISE if error.status == TRY_AGAIN else ""
