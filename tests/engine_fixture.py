"""A real engine for tests: `flowkin serve` as a process, a client, its pids, and a check that nothing is left.

Always true
  - The engine has a session of its own, so that every process it starts is known by its session id.
  - `close` stops it and asserts: exit status 0, no process, no socket, nothing of its own in /dev/shm, no fd of ours
    left open. What others put into /dev/shm meanwhile (a bench beside, another test) is theirs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.embed.base import SPACES
from engine.layout import Layout
from engine.run import heartbeat
from engine.store.catalog import Catalog
from engine.store.manifest import Manifest
from engine.store.rows import RowMap
from engine.store.tiers import mergeable
from ipc.client import Client
from ipc.event import FeaturedEvent
from ipc.messages import Answer, Found, Ingested, Options, Stored
from tests.one_thread import ONE_THREAD
from tests.wait import eventually

ROOT = Path(__file__).parents[1]
START_S = 60.0
SHM = Path("/dev/shm")
SMALL = {"FLOWKIN_STORE__ROW_FILE_ROWS": "64"}


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would steer an engine, its threads included, and with what this test asks for."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLOWKIN_", "ENGINE_")) and k not in ONE_THREAD}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"} | (more or {})


def processes(session: int) -> dict[int, str]:
    """Living processes of a session: pid -> command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):
            continue
    return found


def shared(pids: Iterable[int]) -> set[Path]:
    """What these processes have open or mapped in /dev/shm."""
    found = set[str]()
    for pid in pids:
        with contextlib.suppress(OSError):
            found |= {
                line.split(None, 5)[5]
                for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
                if str(SHM) in line
            }
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(str(fd.readlink()))
    return {Path(path) for path in found if path.startswith(f"{SHM}/")}


def open_files() -> set[str]:
    """What this process holds open of sockets, maps and files under test."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = str(fd.readlink())
        except OSError:
            continue
        if not target.startswith(("/dev/", "pipe:", "anon_inode:", "/proc/")):
            found.add(f"{fd.name} {target}")
    return found


def cli(*args: object, data_dir: Path | None = None, env: dict[str, str] | None = None, stdin: bytes = b"",
        timeout_s: float = 120.0, run: Sequence[str] = ("-m", "cli")) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """The real command line, as a process. run: what Python is told to run."""
    command = [sys.executable, "-P", *run, *map(str, args)]
    if data_dir is not None:
        command += ["--data-dir", str(data_dir)]
    done = subprocess.run(
        command, input=stdin, capture_output=True, env=environment(env), timeout=timeout_s, check=False
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    )


class Engine:
    """One engine on one data directory; may be started and stopped several times."""

    def __init__(
        self, data_dir: Path, *, readers: int = 2, env: dict[str, str] | None = None, under: Sequence[str] = ()
    ) -> None:
        """under: what stands before the command, such as a tracer that is no parent of it."""
        self.layout, self.under = Layout(data_dir), under
        self.data_dir, self.readers, self.env = data_dir, readers, SMALL | (env or {})
        self.process: subprocess.Popen[bytes] | None = None
        self.sessions: list[int] = []
        self.clients: list[Client] = []
        self._shm = set[Path]()  # what its processes had there when they ended
        self._files = open_files()

    # ---- life

    def start(self, *flags: str, ready: bool = True) -> Engine:
        self.log_file = self.data_dir.with_name(f"{self.data_dir.name}.{len(self.sessions)}.log")
        command = [*self.under, sys.executable, "-P", "-m", "cli", "serve", "--data-dir", str(self.data_dir),
                   "--readers", str(self.readers), *flags]  # fmt: skip
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment(self.env), stdin=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        self.sessions.append(self.process.pid)
        if ready:
            eventually(lambda: self.is_ready() or self.process.poll() is not None, within_s=START_S)  # type: ignore[union-attr]
            assert self.process.poll() is None, self.log
        return self

    def is_ready(self) -> bool:
        return any(text.startswith("READY pid=") for text in self.log.splitlines())

    @property
    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    def stop(self, number: int = signal.SIGTERM, within_s: float = 30.0) -> int:
        assert self.process is not None
        self._close_clients()
        self._shm |= shared(processes(self.process.pid))
        self.process.send_signal(number)
        status = self.process.wait(within_s)
        session, self.process = self.process.pid, None
        if self.under:  # a tracer ends after what it traced
            eventually(lambda: not processes(session))
        return status

    def kill(self) -> None:
        """SIGKILL to every process at once: what a power cut leaves to the page cache."""
        assert self.process is not None
        self._close_clients()
        self._shm |= shared(processes(self.process.pid))
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        session, self.process = self.process.pid, None
        eventually(lambda: not processes(session))

    def close(self) -> None:
        """Stop it, and see that nothing is left."""
        failed = ""
        if self.process is not None:
            status = self.stop()
            failed = f"exit status {status}\n" if status else ""
        self._close_clients()
        with contextlib.suppress(AssertionError):  # a child that was just being started sees that its parent is gone
            eventually(lambda: not any(processes(session) for session in self.sessions))
        left = {pid: what for session in self.sessions for pid, what in processes(session).items()}
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        sockets = [p.name for p in self.layout.run.glob("*.sock")] if self.layout.run.exists() else []
        shm = {path for path in self._shm if path.exists() and not path.is_relative_to(self.data_dir)}
        files = {f for f in open_files() - self._files if str(self.data_dir) in f or "socket:" in f}
        assert not (failed or left or sockets or shm or files), (
            f"{failed}processes {left}, sockets {sockets}, /dev/shm {shm}, open files {files}\n{self.log}"
        )

    def _close_clients(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()

    # ---- talking to it

    def client(self, timeout_ms: int = 20_000) -> Client:
        """A client of its own, closed with the engine."""
        self.clients.append(Client.for_data_dir(self.data_dir, timeout_ms=timeout_ms))
        return self.clients[-1]

    def cli(self, *args: object, **more: Any) -> subprocess.CompletedProcess[str]:
        return cli(*args, data_dir=self.data_dir, env=self.env, **more)

    def json(self, *args: object, **more: Any) -> Any:
        """A command's --json document; it must succeed."""
        done = self.cli(*args, "--json", **more)
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout)

    def ingest(self, items: Sequence[FeaturedEvent], source: str = "test") -> Ingested:
        return self.client().ingest("ndjson", items, source=source)

    def pid(self, role: str) -> int:
        beat = heartbeat.read(self.layout.heartbeat(role))
        return beat.pid if beat is not None else 0

    def pids(self) -> list[int]:
        return [self.pid(f"reader-{i}") for i in range(self.readers)]

    def replaced(self, role: str, old: int, within_s: float = 30.0) -> int:
        """The pid of the worker that took the place of `old`, once it is ready."""

        def look() -> int:
            pid = self.pid(role)
            born = self.log.rfind(f"{role} started, pid {pid}")
            return pid if pid not in (0, old) and born >= 0 and self.log.find(f"{role} is ready", born) >= 0 else 0

        return eventually(look, within_s=within_s)

    def facts(self) -> dict[str, Any]:
        with self.client() as client:
            return client.stats().facts

    def indexed(self, files: int, within_s: float = 60.0) -> None:
        """Wait until `files` full row files have their indexes, and those that can be are merged."""

        def look() -> bool:
            manifest = self.manifest()
            there = sum(i.hi - max(i.lo, manifest.first_seq) for i in manifest.indexes if i.space == SPACES[0])
            return there >= files * 64 and mergeable(manifest) is None

        eventually(look, within_s=within_s)
        self.facts()  # a reader that is asked sees them, and opens them

    # ---- what is on disk

    def manifest(self) -> Manifest:
        catalog = Catalog(self.layout.catalog, write=False, map_size=1 << 30)
        try:
            with catalog.read() as view:
                found = view.manifest()
        finally:
            catalog.close()
        assert found is not None
        return found

    def row_maps(self) -> list[RowMap]:
        manifest = self.manifest()
        return [
            RowMap(self.layout.row_file(*manifest.row_file(n)), n, manifest.row_file_rows) for n in manifest.numbers
        ]


def all_events(client: Client, **more: Any) -> list[Stored]:
    """Every stored event, in order."""
    out: list[Stored] = []
    after = -1
    while True:
        page: Found = client.list(after_seq=after, limit=500, **more)
        out += page.events
        if page.next_seq < 0:
            return out
        after = page.next_seq


def stored_ids(client: Client) -> list[str]:
    return [stored.event.event_id for stored in all_events(client)]  # type: ignore[union-attr]


def shape(answer: Answer) -> list[tuple[int, float]]:
    """What must be the same in two answers to one question."""
    return [(hit.seq, hit.distance) for hit in answer.hits]


def ask(client: Client, event_id: str, **options: Any) -> Answer:
    return client.query_similar(event_id, options=Options(**options)).answers[0]


def answers(client: Client, names: Iterable[str], **options: Any) -> dict[str, list[tuple[int, float]]]:
    return {name: shape(ask(client, name, **options)) for name in names}


Starter = Callable[..., Engine]
