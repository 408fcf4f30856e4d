"""More than the engine can answer: `python -m bench.overload --events N --connections C --readers R --deadline-ms D`.

In each round a closed loop (as fast as replies come), then an open one at 1, 2 and 3 times what the first closed loop
reached, whatever becomes of the requests before. peak_good_qps: the median of the closed loops. goodput_qps: answers
within D of when their request was due; what comes later is of no use to who asked. share_of_peak: its median over that.
Target: at 3 times at least 0.9.
refused: of all requests, by code. unanswered, lost: requests without a reply, connections that broke; both to be 0.
The generator shares the cores with the engine: its part (client_cpu_share) grows with what it sends. reader_cpu_us:
CPU of the readers for each answer in time, what is spent on refusals included; share_by_cpu: at the peak over this,
which is what the engine itself loses.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import Any

from bench.harness import Engine, arguments, engine, fill, report, sample, settle, synthetic
from bench.load import NAMES, run

TIMES = (1, 2, 3)
PEAK = ("good_qps", "p50_ms", "p99_ms", "reader_cpu_us", "client_cpu_share")
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(running: Engine) -> float:
    """CPU seconds of all readers so far."""
    total = 0
    for reader in running.stats()["readers"]:
        with open(f"/proc/{reader['pid']}/stat") as file:  # noqa: PTH123
            fields = file.read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def measured(
    running: Engine, names: list[str], options: dict[str, Any], rate_qps: float, seconds: float
) -> dict[str, Any]:
    """One load; reader_cpu_us beside its figures."""
    before_s = cpu_s(running)
    found = run(running, names, options, rate_qps, seconds)
    good = max(1.0, found["good_qps"] * seconds)
    return found | {"reader_cpu_us": round((cpu_s(running) - before_s) / good * 1e6, 1)}


def summed(rounds: list[dict[str, Any]], peak: dict[str, float]) -> dict[str, Any]:
    """The median of each figure of one load over the rounds; what was refused or lost is summed."""
    names = ("p50_ms", "p99_ms", "reader_cpu_us", "client_cpu_share")
    good_qps = statistics.median(one["good_qps"] for one in rounds)
    figures: dict[str, Any] = {"goodput_qps": good_qps, "share_of_peak": round(good_qps / peak["good_qps"], 3)}
    figures |= {name: statistics.median(one.get(name, 0.0) for one in rounds) for name in names}
    figures["sent_late_p99_ms"] = statistics.median(one["sent_late"]["p99_ms"] for one in rounds)
    figures["share_by_cpu"] = round(peak["reader_cpu_us"] / figures["reader_cpu_us"], 3)
    sent = sum(one["sent"] for one in rounds)
    codes = {code for one in rounds for code in one["refused"]}
    figures["refused"] = {c: round(sum(one["refused"].get(c, 0) for one in rounds) / sent, 3) for c in sorted(codes)}
    return figures | {name: sum(one[name] for one in rounds) for name in ("lost", "unanswered", "sent")}


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, default=20_000)
    parse.add_argument("--connections", type=int, default=64)
    parse.add_argument("--readers", type=int, default=2)
    parse.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--deadline-ms", type=int, default=1_000)
    parse.add_argument("--space", default="chronos")
    parse.add_argument("--seed", type=int, default=1)
    args = parse.parse_args()
    options = {"space": args.space, "collapse": False, "connections": args.connections, "deadline_ms": args.deadline_ms}
    peaks: list[dict[str, Any]] = []
    found: dict[int, list[dict[str, Any]]] = {times: [] for times in TIMES}
    with engine(args.readers) as running:
        fill(running, synthetic(1 << 40, args.seed, texts=False), args.events)
        settle(running)
        names = sample(running, NAMES, args.seed)
        run(running, names, options, 0.0, 1.0)  # warm
        for _ in range(args.rounds):
            peaks.append(measured(running, names, options, 0.0, args.seconds))
            for times in TIMES:
                found[times].append(measured(running, names, options, times * peaks[0]["good_qps"], args.seconds))
                time.sleep(0.5)  # what is left of it goes
    peak = {name: statistics.median(one[name] for one in peaks) for name in PEAK}
    figures = {f"peak_{name}": value for name, value in peak.items()} | {"peaks_qps": [p["good_qps"] for p in peaks]}
    return report("overload", args, figures | {f"offered_{n}": summed(of, peak) for n, of in found.items()})


if __name__ == "__main__":
    sys.exit(main())
