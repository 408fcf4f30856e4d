"""What systemd is told and what it hands us; without systemd all of it is nothing.

Always true
  - Nothing here fails a start: a notification that cannot be sent is lost.
  - The supervisor passes none of these variables on to its workers.
"""

from __future__ import annotations

import os
import socket

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
LISTEN_FDS_START = 3


def notify(text: str) -> None:
    """READY=1, WATCHDOG=1, RELOADING=1, STOPPING=1, STATUS=...; several lines at once are allowed."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), address)
    except OSError:
        pass


def watchdog_s() -> float | None:
    """How often systemd wants to hear WATCHDOG=1 (half of its patience); None: not at all."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6


def listeners() -> dict[str, socket.socket]:
    """Sockets that systemd listens on for us, by FileDescriptorName= ("query", "write"), non-blocking."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    count = int(os.environ.get("LISTEN_FDS", "0") or 0)
    sockets = {}
    for fd, name in zip(range(LISTEN_FDS_START, LISTEN_FDS_START + count), names, strict=False):
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        sock.setblocking(False)
        sockets[name] = sock
    return sockets
