"""Packets as captured by an independent witness: tcpdump.

tcpdump writes what it captures to a pipe; the few fields that tests need are
parsed here, and the descriptions are tcpdump's own.
"""

import ipaddress
import os
import select
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from lab import SLOW

_FILE_HEADER = struct.Struct("=IHHiIII")
_RECORD_HEADER = struct.Struct("=IIII")
# Bytes before the IP header, by link type: a family (gif of FreeBSD), Ethernet, bare IP (TUN).
_LINK_HEADER = {0: 4, 1: 14, 12: 0, 101: 0}


@dataclass(frozen=True)
class Packet:
    """One captured packet; addresses and fields are those of the outermost IP header."""

    src: str
    dst: str
    proto: int  # 41: IPv6 in IPv4; in IPv6 packets the next header
    ttl: int
    df: bool  # don't fragment; always False in IPv6, which has no such bit
    length: int  # bytes after the IP header
    payload: bytes  # those bytes
    text: str  # tcpdump's description


class Capture:
    """A running capture, used as a context manager.

    Args:
        argv: makes the words that run a command in the host.
        interface: where to listen.
        filter: which packets, as in pcap-filter(7); empty: all.
    """

    def __init__(
        self, argv: Callable[[Sequence[str]], list[str]], interface: str, filter: str = ""
    ) -> None:
        self._argv = argv
        self._words = ["tcpdump", "-i", interface, "-n", "-p", "--immediate-mode", "-U", "-w", "-"]
        if filter:
            self._words += ["--", filter]
        self._seen = b""

    def __enter__(self) -> "Capture":
        self._tcpdump = subprocess.Popen(
            self._argv(self._words), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._tcpdump.stdout is not None
        assert self._tcpdump.stderr is not None
        # It says "listening on" when it really does.
        said = b""
        while not said.endswith(b"\n") or b"listening on" not in said:
            line = self._tcpdump.stderr.readline()
            if not line:
                raise RuntimeError(f"lab: {said.decode(errors='replace').strip()}")
            said += line
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._read(0)
        self._tcpdump.kill()
        self._tcpdump.communicate()

    def wait(self, count: int, timeout: float = 15) -> list[Packet]:
        """The packets so far, once there are ``count`` of them.

        Args:
            count: how many packets to expect.
            timeout: seconds to wait for them.

        Raises:
            TimeoutError: fewer arrived; the text lists those that did.
        """
        limit = time.monotonic() + timeout * SLOW
        while len(self._records()) < count:
            left = limit - time.monotonic()
            if left <= 0:
                texts = "".join(f"\n{packet.text}" for packet in self.packets)
                raise TimeoutError(f"{len(self._records())} packets instead of {count}{texts}")
            self._read(left)
        return self.packets

    @property
    def packets(self) -> list[Packet]:
        """The packets captured so far."""
        self._read(0)
        records = self._records()
        if not records:
            return []
        link = _FILE_HEADER.unpack_from(self._seen)[6]
        texts = self._texts()
        return [
            _packet(record[_LINK_HEADER[link] :], text)
            for record, text in zip(records, texts, strict=True)
        ]

    def _read(self, timeout: float) -> None:
        """Read what tcpdump has written, waiting at most ``timeout`` seconds for something."""
        assert self._tcpdump.stdout is not None
        if self._tcpdump.stdout.closed:
            return
        pipe = self._tcpdump.stdout.fileno()
        while select.select([pipe], [], [], timeout)[0]:
            some = os.read(pipe, 65536)
            if not some:
                return
            self._seen += some
            timeout = 0

    def _records(self) -> list[bytes]:
        """The frames that have arrived completely."""
        records = []
        at = _FILE_HEADER.size
        while at + _RECORD_HEADER.size <= len(self._seen):
            length = _RECORD_HEADER.unpack_from(self._seen, at)[2]
            at += _RECORD_HEADER.size
            if at + length > len(self._seen):
                break
            records.append(self._seen[at : at + length])
            at += length
        return records

    def _texts(self) -> list[str]:
        """tcpdump's description of each packet, of one or more lines."""
        words = ["tcpdump", "-r", "-", "-n", "-t", "-v"]
        said = subprocess.run(words, input=self._seen, capture_output=True, check=True)
        texts: list[str] = []
        for line in said.stdout.decode(errors="replace").splitlines():
            if line.startswith((" ", "\t")) and texts:
                texts[-1] += f"\n{line}"
            else:
                texts.append(line)
        return texts


def _packet(octets: bytes, text: str) -> Packet:
    if octets[0] >> 4 == 4:
        length, fragment, ttl, proto = struct.unpack_from("!2xH2xHBB", octets)
        header = (octets[0] & 15) * 4
        src, dst = octets[12:16], octets[16:20]
        df = bool(fragment & 0x4000)
        length -= header
    else:
        length, proto, ttl = struct.unpack_from("!4xHBB", octets)
        header = 40
        src, dst = octets[8:24], octets[24:40]
        df = False
    return Packet(
        src=str(ipaddress.ip_address(src)),
        dst=str(ipaddress.ip_address(dst)),
        proto=proto,
        ttl=ttl,
        df=df,
        length=length,
        payload=octets[header : header + length],
        text=text,
    )
