"""What a server has seen since it was started."""

from __future__ import annotations

import os
import time


class Counts:
    """All of it is told (dtcp.server.report)."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.started = time.monotonic()
        self.connections = 0
        self.logins = 0
        self.adopted = 0
        self.refused = 0  # logins that failed
        self.turned_away = 0  # connections
        self.unclaimed = 0  # tunnels whose clients have not come back yet
        self.reloads = 0  # of the configuration, whatever came of them
        self.reloading = False
        self.not_taken = ""  # why the last one has changed nothing
        self.certificate_expires: float | None = None  # if there is one; seconds since the Epoch
