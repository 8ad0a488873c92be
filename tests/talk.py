"""A DTCP client of ten lines, to try the server with: `talk.py SERVER USER PASSWORD TYPE [FROM]`.

Prints the server's replies, line by line, and stays until its standard input ends.  It creates no
tunnel and shares no code with the programs under test.
"""

from __future__ import annotations

import hashlib
import socket
import sys


def main(server: str, user: str, password: str, tunnel_type: str, source: str = "") -> None:
    with socket.create_connection((server, 20200), source_address=(source, 0)) as sock:
        lines = sock.makefile("r", newline="\r\n")
        challenge = lines.readline().split()[1]
        digest = hashlib.md5((user + challenge + password).encode()).hexdigest()
        sock.sendall(f"tunnel {user} {digest.upper()} {tunnel_type}\r\n".encode())
        print(lines.readline().rstrip(), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
