"""Clients that do not behave beside those that do: `python -m bench.slow --bad N --rate Q --seconds S --rounds R`.

N connections each that send half a frame, a byte a second; that ask for more than the kernel keeps for them and never
read; that read a byte a second. One that the engine closes is there again a second later, and asks again: that work is
in the figures, too, and grows with --asks. Half a frame is closed after sockets.patience_ms (10 s), replies that nobody
reads after that to twice that: of the latter none is within the 12 s of a load. In each round the same open loop runs
alone and beside them, first one, then the other, in an order that changes: what else the machine does falls on both.
p99_ratio: the median of the p99 beside them over the p99 alone, round by round; so p50_ratio. Target: at most 1.2.
p99s_ms: of each round. The p99 of 12 s is what the slowest 120 ms of them were, one stall of a core: where the rounds
alone differ by more than the target among themselves, the ratio says nothing. closed: how often the engine closed one.
"""

from __future__ import annotations

import select
import socket
import statistics
import sys
from contextlib import suppress
from typing import Any

from bench.harness import Child, ChildSide, Engine, arguments, engine, fill, report, sample, settle, synthetic
from bench.load import NAMES, run
from ipc.frames import frame
from ipc.messages import PROTOCOL_VERSION, Hello, List, encode

KINDS = ("half", "never", "slow")
HELLO = frame(encode(Hello(PROTOCOL_VERSION, "slow")))
HALF = b"\x40\x42\x0f\x00"  # of a frame of 1,000,000 bytes


class Bad:
    """One connection of a kind, again and again."""

    def __init__(self, path: str, kind: str, asks: int) -> None:
        self.path, self.kind, self.closed = path, kind, 0
        lists = (List(n, limit=200, features=True, raw=True) for n in range(1, asks + 1))
        self.says = HELLO + (HALF if kind == "half" else b"".join(frame(encode(one)) for one in lists))
        self.open()

    def open(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)
        self.sock.setblocking(False)
        with suppress(OSError):
            self.sock.send(self.says)

    def turn(self) -> None:
        """A second later."""
        poll = select.poll()
        poll.register(self.sock, 0)
        if poll.poll(0):
            self.sock.close()
            self.closed += 1
            self.open()
        with suppress(OSError):
            if self.kind == "half":
                self.sock.send(b"x")
            elif self.kind == "slow":
                self.sock.recv(1)


def behave_badly() -> int:
    side = ChildSide()
    peers = [Bad(side.job["path"], kind, side.job["asks"]) for kind in KINDS for _ in range(side.job["bad"])]
    side.ready()
    while not side.asked_to_stop(1.0):
        for peer in peers:
            peer.turn()
    side.done(sum(peer.closed for peer in peers))
    return 0


def beside(running: Engine, bad: int, asks: int, load: Any) -> tuple[dict[str, Any], int]:
    """The load's figures, and how often one of them was closed."""
    child = Child("bench.slow", {"path": str(running.data_dir / "run/query.sock"), "bad": bad, "asks": asks})
    try:
        found = load()
    finally:
        closed = child.stop()
    return found, closed


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, default=10_000)
    parse.add_argument("--connections", type=int, default=32)
    parse.add_argument("--readers", type=int, default=2)
    parse.add_argument("--rate", type=float, default=400.0, help="queries a second, well below what can be answered")
    parse.add_argument("--bad", type=int, default=20, help="connections of each kind")
    parse.add_argument("--asks", type=int, default=4, help="pages of 200 events that each of them asks for")
    parse.add_argument("--seconds", type=float, default=12.0, help="of each load; half a frame is closed after 10 s")
    parse.add_argument("--rounds", type=int, default=5)
    parse.add_argument("--space", default="chronos")
    parse.add_argument("--seed", type=int, default=1)
    if "--child" in sys.argv[1:]:
        return behave_badly()
    args = parse.parse_args()
    options = {"space": args.space, "collapse": False, "connections": args.connections, "deadline_ms": 60_000}
    alone: list[dict[str, Any]] = []
    with_bad: list[dict[str, Any]] = []
    closed = 0
    with engine(args.readers) as running:
        fill(running, synthetic(1 << 40, args.seed, texts=False), args.events)
        settle(running)
        names = sample(running, NAMES, args.seed)
        run(running, names, options, 0.0, 1.0)  # warm

        def load() -> dict[str, Any]:
            return run(running, names, options, args.rate, args.seconds)

        for number in range(args.rounds):
            for bad in (False, True) if number % 2 == 0 else (True, False):
                if bad:
                    found, times = beside(running, args.bad, args.asks, load)
                    with_bad.append(found)
                    closed += times
                else:
                    alone.append(load())
    figures: dict[str, Any] = {"closed": closed}
    for name in ("p50_ms", "p99_ms"):
        ratios = [b[name] / a[name] for a, b in zip(alone, with_bad, strict=True)]
        figures[f"{name[:3]}_ratio"] = round(statistics.median(ratios), 3)
        figures[f"{name[:3]}_ratios"] = [round(ratio, 3) for ratio in ratios]
    for kind, of in (("alone", alone), ("beside", with_bad)):
        figures[kind] = {name: statistics.median(one[name] for one in of) for name in ("p50_ms", "p99_ms", "qps")}
        figures[kind] |= {name: sum(one[name] for one in of) for name in ("failures", "lost", "unanswered")}
        figures[kind]["p99s_ms"] = [one["p99_ms"] for one in of]
    return report("slow", args, figures)


if __name__ == "__main__":
    sys.exit(main())
