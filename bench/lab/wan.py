"""The distance to the outside: two TAP devices, and between them a delay, a little jitter and rare loss.

Always true
  - Frames of one outside host never overtake each other in one direction.
  - Stdlib only; run as a script in the router's namespace, it dies with the recorder (PDEATHSIG).
The kernels of small virtual machines often lack the netem queue; this needs nothing but /dev/net/tun.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time
from collections.abc import Callable

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
FRAME_BYTES_MAX = 2048
QUEUE_FRAMES_MAX = 20_000
LOSS = 0.001


def open_tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def outside_host(frame: bytes, outward: bool) -> int:
    """A small number that stands for the outside host of this frame; 0 for what is not IP."""
    ethertype = frame[12:14]
    if ethertype == b"\x08\x00":
        at = 30 if outward else 26
        return int.from_bytes(frame[at : at + 4])
    if ethertype == b"\x86\xdd" and frame[20] != 58:  # neighbour discovery stays prompt
        at = 38 if outward else 22
        return int.from_bytes(frame[at + 8 : at + 16])
    return 0


def main(seed: int, clock: Callable[[], float] = time.monotonic) -> None:
    taps = (open_tap("wan0"), open_tap("wan1"))
    print("READY", flush=True)
    rng = random.Random(seed)
    delay_s: dict[int, float] = {0: 0.0002}
    last_due: dict[tuple[int, int], float] = {}
    queue: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        wait_s = max(0.0, queue[0][0] - clock()) if queue else 1.0
        for fd in select.select(taps, [], [], wait_s)[0]:
            side = taps.index(fd)
            try:
                frame = os.read(fd, FRAME_BYTES_MAX)
            except BlockingIOError:
                continue
            host = outside_host(frame, outward=side == 0)
            if host not in delay_s:
                delay_s[host] = random.Random(seed * 1_000_003 + host).uniform(0.003, 0.030)
            if len(queue) >= QUEUE_FRAMES_MAX or (host and rng.random() < LOSS):
                continue
            due = max(clock() + delay_s[host] * rng.uniform(1.0, 1.15), last_due.get((side, host), 0.0))
            last_due[side, host] = due
            count += 1
            heapq.heappush(queue, (due, count, taps[1 - side], frame))
        while queue and queue[0][0] <= clock():
            _, _, out, frame = heapq.heappop(queue)
            try:
                os.write(out, frame)
            except OSError:
                pass  # the other end is not up yet, or its queue is full: a lost frame, as on any wire


if __name__ == "__main__":
    main(int(sys.argv[1]))
