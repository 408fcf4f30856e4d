"""Seconds until it goes on: `python -m bench.restart [--events 20000] [--kills 3]`.

ingest: SIGKILL to the ingest worker -> the next acknowledged event. reader: SIGKILL to one of several readers; back: ->
a reader of another pid answers in its place (stats); client: how long the next query of a client that was connected to
it took, sent again by the client once its connection broke. alone: SIGKILL to the only reader -> the next answer. Each
kill is the first of its role in its engine: the supervisor waits 0.1 s before a first restart, ever longer after more.

start: `flowkin serve` -> READY on a directory with so many events; clean: after an orderly stop; killed: after SIGKILL
to supervisor and workers, so that what came since the last checkpoint is replayed; cold: after an orderly stop, the
directory's files put out of the page cache. answer: -> the first answer to a query over all spaces.
query_similar: the whole process `flowkin query_similar ID --json`, median of 9.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.harness import FLOWKIN, Engine, arguments, engine, fill, report, sample, settle, synthetic
from engine.layout import Layout
from engine.run import heartbeat
from ipc.errors import ClientError
from ipc.event import FeaturedEvent
from ipc.messages import Options

GO_ON_S_MAX = 60.0
LOOK_S = 0.005
COMMANDS = 9
READERS = 4


def until(what: Callable[[], bool]) -> float:
    """Seconds until what() is true; an error of the client means not yet. Raises RuntimeError."""
    start_s = time.perf_counter()
    while time.perf_counter() - start_s < GO_ON_S_MAX:
        try:
            if what():
                return time.perf_counter() - start_s
        except ClientError:
            pass
        time.sleep(LOOK_S)
    raise RuntimeError(f"the engine does not go on within {GO_ON_S_MAX:.0f} s")


def kill(running: Engine, role: str) -> int:
    """SIGKILL; the pid."""
    beat = heartbeat.read(Layout(running.data_dir).heartbeat(role))
    assert beat is not None and beat.pid
    os.kill(beat.pid, signal.SIGKILL)
    return beat.pid


def ingest_again(running: Engine, events: Iterator[FeaturedEvent]) -> float:
    kill(running, "ingest")
    event = next(events)  # the same one each time: stored twice it would be a duplicate

    def stored() -> bool:
        with running.client(timeout_ms=10_000) as client:
            reply = client.ingest("synthetic", [event])
            return reply.accepted + reply.duplicates == 1

    return until(stored)


def reader_again(running: Engine, number: int, name: str) -> tuple[float, float]:
    """(seconds until another process serves in its place, seconds that a connected client's next query took)"""
    role = f"reader-{number}"
    path = Layout(running.data_dir).heartbeat(role)
    clients = [running.client() for _ in range(READERS)]
    for client in clients:  # one after the other, so one of them is connected to it
        client.ping()
    pid = kill(running, role)
    start_s = time.perf_counter()
    slowest_s = 0.0
    for client in clients:
        asked_s = time.perf_counter()
        client.query_similar(name, options=Options(space="chronos"))
        slowest_s = max(slowest_s, time.perf_counter() - asked_s)
    queried_s = time.perf_counter() - start_s

    def back() -> bool:
        with running.client() as one_more:  # it goes to the reader with the fewest: the new one, once that is ready
            one_more.ping()
        beat = heartbeat.read(path)
        return beat is not None and beat.pid not in (0, pid) and beat.generation > 0

    found_s = queried_s + until(back)
    for client in clients:
        client.close()
    return found_s, slowest_s


def alone_again(running: Engine, name: str) -> float:
    kill(running, "reader-0")

    def answers() -> bool:
        with running.client(timeout_ms=10_000) as client:
            return bool(client.query_similar(name, options=Options(space="chronos")).answers)

    return until(answers)


def first_answer(running: Engine, name: str) -> float:
    start_s = time.perf_counter()
    with running.client() as client:
        client.query_similar(name, options=Options(space="fused"))
    return running.started_s + time.perf_counter() - start_s


def put_out(folder: Path) -> None:
    """Drop the clean pages of all files below a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def command(running: Engine, name: str) -> float:
    """Seconds of one whole `flowkin query_similar`."""
    words = [str(FLOWKIN), "query_similar", name, "--json", "--data-dir", str(running.data_dir)]
    start_s = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start_s


def kill_all(running: Engine) -> None:
    """SIGKILL to supervisor and workers, as a power cut would."""
    pids = [w["pid"] for w in (running.stats()["ingest"], *running.stats()["readers"])]
    running.process.kill()
    running.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def starts(data_dir: Path, name: str, kills: int) -> dict[str, Any]:
    """Starts after an orderly stop, after a kill, and with a cold cache; seconds, a list each."""
    found: dict[str, list[float]] = {k: [] for k in ("clean", "clean_answer", "killed", "cold", "cold_answer")}
    for _ in range(kills):
        with engine(2, data_dir=data_dir) as running:
            found["clean"].append(running.started_s)
            found["clean_answer"].append(first_answer(running, name))
        put_out(data_dir)
        with engine(2, data_dir=data_dir) as running:
            found["cold"].append(running.started_s)
            found["cold_answer"].append(first_answer(running, name))
            kill_all(running)
        with engine(2, data_dir=data_dir) as running:
            found["killed"].append(running.started_s)
    return {key: [round(s, 3) for s in of] for key, of in found.items()}


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, default=20_000)
    parse.add_argument("--kills", type=int, default=3, help="of each kind, each in an engine of its own")
    parse.add_argument("--seed", type=int, default=13)
    args = parse.parse_args()
    found: dict[str, list[float]] = {k: [] for k in ("ingest", "reader_back", "reader_client", "alone")}
    with tempfile.TemporaryDirectory(prefix="flowkin-bench-") as folder:
        data_dir = Path(folder)
        events = synthetic(1 << 40, args.seed, texts=False)
        with engine(2, data_dir=data_dir) as running:
            fill(running, events, args.events)
            settle(running)
            (name,) = sample(running, 1, args.seed)
            commands = sorted(command(running, name) for _ in range(COMMANDS))
        for i in range(args.kills):
            with engine(READERS, data_dir=data_dir) as running:
                back_s, client_s = reader_again(running, i % READERS, name)
                found["reader_back"].append(back_s)
                found["reader_client"].append(client_s)
                found["ingest"].append(ingest_again(running, events))
            with engine(1, data_dir=data_dir) as running:
                found["alone"].append(alone_again(running, name))
        started = starts(data_dir, name, args.kills)
    figures: dict[str, Any] = {
        "after_kill_s": {key: [round(s, 3) for s in of] for key, of in found.items()}, "start_s": started,
        "query_similar_s": {"median": round(median(commands), 3), "min": round(commands[0], 3),
                            "max": round(commands[-1], 3)},
    }  # fmt: skip
    return report("restart", args, figures)


if __name__ == "__main__":
    sys.exit(main())
