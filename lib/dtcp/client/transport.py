"""What carries the tunnel's packets: protocol 41 (gif), UDP, or whichever passes (auto)."""

from __future__ import annotations

import argparse

from dtcp.client.probe import FIRST_LIMIT

PATIENCE = 8.0  # seconds without a packet, after which auto tries the other


class Transport:
    """For auto: protocol 41 first, UDP (as -U -n) when nothing comes back, and what passes is kept.

    When nothing comes back over UDP either, the far end may not answer, and nothing is known:
    then it is protocol 41 again, as it would be without auto.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        """What is tried stands in `options`: udp, nat and announced."""
        self._options = options
        self._nat: bool = options.nat
        self._is_auto = options.transport == "auto"
        self._in_vain = 0  # so many have been tried since packets passed

    @property
    def name(self) -> str:
        """What is used, or tried: gif or udp."""
        return "udp" if self._options.udp else "gif"

    @property
    def has_other(self) -> bool:
        """Whether it makes sense to try the other one, should nothing come back."""
        return self._is_auto and self._in_vain < 2

    @property
    def on_trial(self) -> bool:
        """Whether this is the other one, and has not been seen to work yet."""
        return self._is_auto and self._in_vain == 1

    @property
    def limit(self) -> float:
        """Seconds that the first packet has for coming back."""
        return PATIENCE if self._is_auto and self._in_vain == 0 else FIRST_LIMIT

    def passes(self) -> None:
        """A packet has come back."""
        self._in_vain = 0

    def anew(self) -> None:
        """The network has changed: what was tried before means nothing."""
        self._in_vain = 0

    def change(self) -> None:
        """Try the other one, from the next login on."""
        options = self._options
        self._in_vain += 1
        options.udp = not options.udp
        options.nat = options.udp or self._nat
        options.announced = (options.nat_port or 0) if options.udp else None
