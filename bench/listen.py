"""What a detector's socket refuses while the engine is busy: `python -m bench.listen [--rates 2000,10000]`.

A writer in a process of its own sends real EVE records (../shared/data, each with a time and a flow_id of its own) as a
live Suricata does: by the clock, without ever waiting, and what the socket would block for is refused and gone. The
engine stores them meanwhile; with --queries it answers so many a second besides. A refused record is the detector's
loss; a dropped one is the engine's, which has 64 MiB of them waiting.

gap_ms: the longest that bytes lay in the socket with none of them taken, to the writer's TICK_S. late_ms: the longest
that the writer itself was kept from sending, after which it sends what is due in one burst. drain_cpu_s: of the process
that reads the socket, where that is one of its own.
"""

from __future__ import annotations

import fcntl
import gzip
import re
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

from bench.harness import Child, ChildSide, Engine, arguments, engine, fill, report, sample, synthetic

EVE = Path(__file__).resolve().parents[2] / "shared" / "data" / "eve_generated"
RECORD_BYTES_MIN = 550  # shorter ones are left out, so that a record has some 1 KB
HEAD = re.compile(rb'\{"timestamp":"[^"]*","flow_id":\d+')
TICK_S = 0.0005
STORED_S_MAX = 300.0
WARM_EVENTS = 2_000


def records() -> Iterator[bytes]:
    """What follows timestamp and flow_id in each real record, again and again."""
    rests = []
    for path in sorted(EVE.rglob("*.json.gz")):
        for line in gzip.decompress(path.read_bytes()).splitlines(keepends=True):
            head = HEAD.match(line)
            if head is not None and len(line) >= RECORD_BYTES_MIN:
                rests.append(line[head.end() :])
    return cycle(rests)


def writer(side: ChildSide) -> None:
    """Send `rate` records a second for `seconds`."""
    rate, total = side.job["rate"], int(side.job["rate"] * side.job["seconds"])
    rests, number = records(), int(side.job["first_flow_id"])
    sent = refused = size = 0
    gap_s = late_s = 0.0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(side.job["path"])
        side.ready()
        start_s = taken_s = time.monotonic()
        waiting = 0
        while sent + refused < total:
            now_s = time.monotonic()
            before, waiting = waiting, _waiting(sock)
            if not waiting or waiting < before:
                taken_s = now_s
            gap_s = max(gap_s, now_s - taken_s)
            late_s = max(late_s, now_s - start_s - (sent + refused) / rate)
            head = b'{"timestamp":"%b","flow_id":' % datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+0000").encode()
            for _ in range(min(total, int((now_s - start_s) * rate)) - sent - refused):
                number += 1
                record = b"%b%d%b" % (head, number, next(rests))
                try:
                    begun = sock.send(record, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    refused += 1
                    continue
                if begun < len(record):
                    sock.sendall(record[begun:])
                sent += 1
                size += len(record)
            waiting = _waiting(sock)
            time.sleep(TICK_S)
        took_s = time.monotonic() - start_s
    side.done({
        "offered": total, "offered_per_s": round(total / took_s, 1), "record_bytes": round(size / max(1, sent)),
        "refused": refused, "refused_share": round(refused / total, 5), "gap_ms": round(gap_s * 1e3, 2),
        "late_ms": round(late_s * 1e3, 2),
    })  # fmt: skip


def _waiting(sock: socket.socket) -> int:
    """Memory held by what the other side has not read."""
    held: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return held


def listening(running: Engine) -> dict[str, Any]:
    """The counts of the one listening source."""
    counts: dict[str, Any] = running.stats()["listening"][0]
    return counts


def settled(running: Engine, records_before: int, sent: int) -> dict[str, Any]:
    """The counts once all that was sent is stored or dropped."""
    start_s = time.monotonic()
    while time.monotonic() - start_s < STORED_S_MAX:
        counts = listening(running)
        waiting = counts["records"] - counts["stored"] - counts["dropped"] - counts["lost"]
        if counts["records"] - records_before == sent and not waiting:
            return counts
        time.sleep(0.2)
    raise RuntimeError(f"not all was stored after {STORED_S_MAX:.0f} s: {counts}")


def drain_cpu_s(running: Engine) -> float | None:
    """CPU seconds of the engine's listening process."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if b"engine.run.drain" in (path / "cmdline").read_bytes() and _descends(path.name, running.process.pid):
                return (int(fields[11]) + int(fields[12])) / 100
        except (OSError, ValueError):
            continue
    return None


def _descends(pid: str, ancestor: int) -> bool:
    while int(pid) > 1 and int(pid) != ancestor:
        pid = (Path("/proc") / pid / "stat").read_text().rpartition(")")[2].split()[1]
    return int(pid) == ancestor


def one(running: Engine, args: Any, rate: float, number: int, names: list[str]) -> dict[str, Any]:
    """A run at one rate."""
    before, cpu_s = listening(running), drain_cpu_s(running)
    job = {
        "path": str(running.data_dir / "run/eve.sock"), "rate": rate, "seconds": args.seconds,
        "first_flow_id": number << 40,
    }  # fmt: skip
    load = None
    if args.queries:
        load = Child("bench.generator", {
            "space": "chronos", "collapse": False, "connections": 8, "deadline_ms": 60_000, "names": names,
            "path": str(running.data_dir / "run/query.sock"), "rate_qps": args.queries, "seconds": args.seconds,
        })  # fmt: skip
    found: dict[str, Any] = Child("bench.listen", job).result()
    if load is not None:
        found["queries"] = {k: v for k, v in load.result().items() if k in ("qps", "p50_ms", "p99_ms", "failures")}
    after = settled(running, before["records"], found["offered"] - found["refused"])
    found |= {name: after[name] - before[name] for name in ("dropped", "stored")}
    if cpu_s is not None:
        found["drain_cpu_s"] = round((drain_cpu_s(running) or cpu_s) - cpu_s, 2)
    return found


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--rates", default="2000,10000", help="records a second, one run each")
    parse.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parse.add_argument("--runs", type=int, default=3, help="of each rate")
    parse.add_argument("--queries", type=float, default=0.0, help="queries a second meanwhile")
    parse.add_argument("--readers", type=int, default=2)
    args = parse.parse_args()
    if args.child:
        writer(ChildSide())
        return 0
    figures: dict[str, Any] = {}
    number = 0
    with engine(args.readers, settings=("sources.eve.listen=eve.sock", "sources.eve.format=eve")) as running:
        fill(running, synthetic(WARM_EVENTS, 1, texts=False), WARM_EVENTS)
        names = sample(running, 500, 1)
        for rate in map(float, args.rates.split(",")):
            runs = []
            for _ in range(args.runs):
                number += 1
                runs.append(one(running, args, rate, number, names))
            figures[f"rate_{rate:.0f}"] = {f"run_{i}": run for i, run in enumerate(runs, 1)}
    return report("listen", args, figures)


if __name__ == "__main__":
    sys.exit(main())
