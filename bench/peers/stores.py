"""A peer from the bench's side: its environment, its processes, what they answer.

Each has a virtual environment of its own outside the tree (~/.cache/flowkin-bench/NAME, or FLOWKIN_BENCH_CACHE), made
at the first run from pinned packages; several kinds of one package set share one. Whatever goes wrong in a peer is
PeerError: it is left out of the table with that reason, and the others go on.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from bench.harness import MIB, ROOT, percentiles_ms
from bench.peers import chroma, embedded, pgvector, redis
from bench.peers.base import Peer

CACHE = Path(os.environ.get("FLOWKIN_BENCH_CACHE") or Path.home() / ".cache" / "flowkin-bench")
CALL_S_MAX = 420.0
INSTALL_S_MAX = 600.0
PROCESSES = 2  # that ask a server; one where there is none

PEERS: dict[str, tuple[str, type[Peer]]] = {  # name: environment, class
    "redis_int8": ("redis", redis.Int8), "redis_float32": ("redis", redis.Float32),
    "pgvector_hnsw": ("pgvector", pgvector.Hnsw), "pgvector_ivfflat": ("pgvector", pgvector.IvfFlat),
    "chroma": ("chroma", chroma.Server), "lancedb": ("lancedb", embedded.Lance),
    "qdrant_local": ("qdrant", embedded.Qdrant), "milvus_lite": ("milvus", embedded.Milvus),
}  # fmt: skip


class PeerError(Exception):
    """Why a peer cannot be measured."""


def python_of(name: str, kind: type[Peer]) -> Path:
    """The interpreter of its environment, installed where it is not. Raises PeerError."""
    home = CACHE / name
    python, ready = home / "bin" / "python", home / "installed.json"
    if ready.exists() and json.loads(ready.read_text()) == list(kind.packages):
        return python
    try:
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=INSTALL_S_MAX)
        install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *kind.packages]
        done = subprocess.run(install, capture_output=True, text=True, timeout=INSTALL_S_MAX)
    except (subprocess.SubprocessError, OSError) as e:
        raise PeerError(f"its environment cannot be made: {e}") from e
    if done.returncode:
        raise PeerError(f"does not install: {done.stderr.strip().splitlines()[-1:]}")
    ready.write_text(json.dumps(kind.packages))
    return python


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Call:
    """One worker process (bench/peers/worker.py); a call is sent with `send` and its result taken with `take`."""

    def __init__(self, python: Path, kind: type[Peer], folder: Path, port: int) -> None:
        words = [str(python), "-m", "bench.peers.worker", kind.__module__, kind.__name__, str(folder), str(port)]
        outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"ANONYMIZED_TELEMETRY": "False"}
        self.log = (folder / "worker.log").open("ab")
        self.process = subprocess.Popen(
            words, cwd=ROOT, env=outside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )
        self.folder = folder

    def send(self, do: str, **job: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **job}).encode() + b"\n")
        self.process.stdin.flush()

    def take(self) -> Any:
        """Raises PeerError where it fails, ends or says nothing for CALL_S_MAX."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], CALL_S_MAX)[0]:
            raise PeerError(f"no answer in {CALL_S_MAX:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            last = (self.folder / "worker.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise PeerError(f"its process ended: {' '.join(last)[:200]}")
        found = json.loads(line)
        if isinstance(found, dict) and "error" in found:
            raise PeerError(found["error"][:300])
        return found

    def do(self, what: str, **job: Any) -> Any:
        self.send(what, **job)
        return self.take()

    def stop(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


class Store:
    """A peer that runs and holds the data in `exported` (see bench/peers/base.Data)."""

    def __init__(self, name: str, exported: Path) -> None:
        self.environment, self.kind = PEERS[name]
        self.exported = exported
        self.effort = self.kind.efforts[0]
        self._folder = tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True)
        self._calls: list[Call] = []

    def __enter__(self) -> Self:
        """Raises PeerError."""
        try:
            folder, python, port = Path(self._folder.name), python_of(self.environment, self.kind), free_port()
            (folder / "store").mkdir()
            for file in self.exported.iterdir():
                (folder / file.name).symlink_to(file)
            for _ in range(1 if self.kind.embedded else PROCESSES):
                self._calls.append(Call(python, self.kind, folder, port))
            for call in self._calls:
                call.take()
            self.pids = self._calls[0].do("serve") or [self._calls[0].process.pid]
            self.load_s = round(self._calls[0].do("load"), 1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for call in reversed(self._calls):  # the first has the server
            call.stop()
        self._folder.cleanup()

    def answers(self, seqs: list[int], effort: int) -> list[list[str]]:
        """The ids that each question by the event at `seq` is answered with; sets the effort for what follows."""
        self.effort = effort
        found: list[list[str]] = self._calls[0].do("answers", positions=seqs, effort=effort)
        return found

    def run(self, seqs: list[int], connections: int, seconds: float) -> dict[str, Any]:
        """One closed load."""
        calls = self._calls[: min(connections, len(self._calls))]
        for i, call in enumerate(calls):
            part = connections // len(calls) + (i < connections % len(calls))
            own = seqs[i * len(seqs) // len(calls) :] + seqs[: i * len(seqs) // len(calls)]
            call.send("run", positions=own, effort=self.effort, connections=part, seconds=seconds)
        found = [call.take() for call in calls]
        latency_s = [x for one in found for x in one["latency_s"]]
        figures: dict[str, Any] = {
            "qps": round(sum(len(one["latency_s"]) / one["took_s"] for one in found), 1), **percentiles_ms(latency_s)
        }  # fmt: skip
        if not self.kind.embedded:
            figures["client_cpu_share"] = round(sum(one["cpu_s"] / one["took_s"] for one in found), 3)
        return figures

    def memory_mib(self) -> float:
        """pss of the server and its children, or of the process that asks where there is no server."""
        return pss_mib(self.pids)


def pss_mib(pids: list[int]) -> float:
    """Of these processes and all that they started."""
    return round(sum(map(_pss_mib, _family(pids))), 1)


def _family(pids: list[int]) -> list[int]:
    found, left = list[int](), list(pids)
    while left:
        found.append(pid := left.pop())
        with suppress(OSError):  # it has ended meanwhile
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                left += map(int, task.read_text().split())
    return found


def _pss_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) * 1024 / MIB for line in lines if line.startswith("Pss:"))
