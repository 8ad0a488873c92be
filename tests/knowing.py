"""A client's end that has the password, as root and the speaking process together do."""

from __future__ import annotations

from collections.abc import Callable

from dtcp import wire


class Client(wire.Client):
    """Answers a challenge at once, and does not mention it."""

    def __init__(
        self,
        user: str,
        password: str,
        tunnel_type: str,
        now: float,
        *,
        udp: int | None = None,
        key: bytes | None = None,
        trace: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(user, tunnel_type, now, udp=udp, key=key, trace=trace)
        self._secret = user, password

    def receive(self, data: bytes, now: float) -> list[wire.ClientEvent]:
        events = super().receive(data, now)
        for event in events:
            if isinstance(event, wire.Challenged):
                user, password = self._secret
                self.answer(wire.digest(user, event.challenge, password))
        return [event for event in events if not isinstance(event, wire.Challenged)]
