"""Tells others how the tunnel is: --status, by way of the ledger, and the script of -s."""

from __future__ import annotations

from dtcp.daemon import Log
from dtcp.errors import Error
from dtcp.ledger import Ledger
from dtcp.status import Facts
from dtcp.system import System

SCRIPT_TIME = 10.0  # seconds that the script of -s may take


class News:
    """The facts (`facts`), and who is told of them."""

    def __init__(
        self, facts: Facts, script: str | None, system: System, ledger: Ledger | None, log: Log
    ) -> None:
        self._script = script
        self._system = system
        self._ledger = ledger
        self._log = log
        self._script_told_up = False
        self.tell(facts)

    def tell(self, facts: Facts) -> None:
        """Take these facts for those that hold."""
        self.facts = facts
        if self._ledger is not None:
            try:
                self._ledger.tell(self.facts)
            except Error as error:  # --status will be behind, the tunnel is not worse for it
                self._log.error(str(error))

    def is_down(self) -> None:
        """The tunnel has been taken down: whoever was told that it is up should know."""
        if self._script_told_up:
            self.run_script("down")
        self.tell(self.facts._replace(interface=None, lines=()))

    def run_script(self, event: str) -> None:
        """Run the administrator's script.  What comes of it is the administrator's business."""
        if not self._script:
            return
        self._script_told_up = event != "down"
        facts = self.facts
        environment = {
            "DTCP_INTERFACE": facts.interface,
            "DTCP_SERVER": facts.server,
            "DTCP_USER": facts.user,
            "DTCP_TYPE": facts.type,
            "DTCP_LOCAL": facts.local,
            "DTCP_REMOTE": facts.remote,
            "DTCP_INNER": facts.inner,
            "DTCP_PEER": facts.peer,
            "DTCP_PREFIXES": " ".join(facts.prefixes),
            "DTCP_MTU": str(facts.mtu),
            "DTCP_DATA": facts.data,
            "DTCP_RTT_MS": f"{facts.rtt_ms:.1f}" if facts.rtt_ms is not None else None,
        }
        given = {name: text for name, text in environment.items() if text is not None}
        try:
            self._system.commands.hook((self._script, event), given, SCRIPT_TIME)
        except Error as error:
            self._log.error(str(error))
