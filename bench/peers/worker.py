"""One process of a peer's load, in the peer's own environment: `python -m bench.peers.worker MODULE CLASS FOLDER PORT`.

One JSON line in, one out: {"do": ..., ...} -> its result, or {"error": ...}. The one that is told to serve keeps the
server; it and the server end with stdin. A load is closed: each connection is a thread that asks again at its answer.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Thread
from typing import Any

from bench.peers.base import Data, Peer

READY_S_MAX = 60.0


class Worker:
    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.server: subprocess.Popen[bytes] | None = None

    def serve(self) -> list[int]:
        """Start the server, where there is one; the pids whose memory is the store's."""
        words = self.peer.serve()
        if words:
            with (self.peer.home / "log").open("wb") as log:
                self.server = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            self._wait_until_ready(self.server)
        return [self.server.pid] if self.server else []

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        until_s = time.monotonic() + READY_S_MAX
        while True:
            try:
                return self.peer.ready()
            except Exception:
                if server.poll() is not None or time.monotonic() > until_s:
                    raise
                time.sleep(0.1)

    def load(self) -> float:
        start_s = time.perf_counter()
        self.peer.load()
        return time.perf_counter() - start_s

    def answers(self, positions: list[int], effort: int) -> list[list[str]]:
        self.peer.tune(effort)
        ask = self.peer.connect(effort)
        return [self.peer.names(ask(i)) for i in positions]

    def run(self, positions: list[int], effort: int, connections: int, seconds: float) -> dict[str, Any]:
        """Each connection for so many seconds; latencies in seconds, CPU seconds of this process."""
        latency_s: list[list[float]] = [[] for _ in range(connections)]
        errors: list[Exception] = []
        barrier = Barrier(connections + 1)

        def work(number: int) -> None:
            try:
                ask, took_s = self.peer.connect(effort), latency_s[number]
                ask(positions[number])  # the statement is prepared, the connection is open
                barrier.wait()
                at, now_s = number * len(positions) // connections, time.perf_counter()
                until_s = now_s + seconds
                while now_s < until_s:
                    ask(positions[at % len(positions)])
                    at, before_s, now_s = at + 1, now_s, time.perf_counter()
                    took_s.append(now_s - before_s)
            except BrokenBarrierError:
                pass
            except Exception as e:
                errors.append(e)
                barrier.abort()

        threads = [Thread(target=work, args=(i,)) for i in range(connections)]
        for thread in threads:
            thread.start()
        with suppress(BrokenBarrierError):  # a connection failed: its error is raised below
            barrier.wait()
        start_s, cpu_s = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        took_s = time.perf_counter() - start_s
        return {
            "latency_s": [x for one in latency_s for x in one], "took_s": took_s, "cpu_s": time.process_time() - cpu_s
        }  # fmt: skip

    def stop(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)  # to PostgreSQL: now; SIGTERM would wait for connections
            try:
                self.server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()


def main() -> int:
    module, kind, folder, port = sys.argv[1:]
    out = sys.stdout
    sys.stdout = sys.stderr  # what packages print is not an answer
    home = Path(folder)
    worker = Worker(getattr(import_module(module), kind)(home / "store", int(port), Data(home)))
    try:
        print(json.dumps("READY"), file=out, flush=True)
        for line in sys.stdin:
            job = json.loads(line)
            try:
                found = getattr(worker, job.pop("do"))(**job)
            except Exception as e:
                found = {"error": f"{type(e).__name__}: {e}"}
            print(json.dumps(found), file=out, flush=True)
    finally:
        worker.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
