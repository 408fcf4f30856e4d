"""Steps on a data directory, in a process that dies or whose disk fails at a failpoint:
python -m tests.process.steps DIR STEP...; without arguments, one such process for each line of JSON that comes in.

Always true
  - Each step that was done is told in one line, "STEP GENERATION": the acknowledgement.
  - A step that was committed and not acknowledged may be done again, as by a client who heard nothing: it changes
    nothing then.
  - Where the disk is full the step is tried once more, as the worker goes on; any other error ends the process, as it
    ends the worker.
  - Who asks for one process after another by lines has each of them forked from one that has loaded all it needs and
    used none of it (no thread, no file): it saves most of what such a process costs, which is to start Python.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from engine import failpoint
from engine.errors import NoSpaceError
from engine.layout import Layout
from engine.maintain import backup, migrate, retention, take
from engine.store import gc, lock, switch
from engine.store.catalog import CURRENT, Catalog
from engine.store.cipher import Cipher
from engine.store.keys import read_key
from engine.store.publish import Submission
from engine.store.rows import _offsets
from ipc.messages import Reject
from tests.engine_fixture import ROOT, environment
from tests.events import blocked, several
from tests.one_thread import ONE_THREAD
from tests.store_fixture import OTHER, ROWS, Store, configured, flip


class Steps:
    def __init__(self, data_dir: Path) -> None:
        self.layout, self._store = Layout(data_dir), None
        self.home, self.restored = data_dir.with_name("backups"), data_dir.with_name("restored")
        self.lock = -1  # where the process holds it

    @property
    def store(self) -> Store:
        """Open while a step needs it: a backup is taken from beside."""
        if self._store is None:
            self._store = Store(self.layout.data_dir, self.key_file())
        return self._store

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def do(self, step: str) -> int:
        """The generation then; 0 for a step beside the store."""
        name, *rest = step.split(":")
        getattr(self, name)(step, *rest)
        return self._store.generation if self._store is not None else 0

    # ---- what is published

    def publish(self, step: str, first: str, count: str) -> None:
        self.store.publish(several(int(count), int(first)), {b"file": step.encode()})

    def send(self, step: str, first: str, count: str) -> None:
        """Events, two dead letters and what a firewall did about events before, of and after these; all of one file,
        which is read on from its offset."""
        at, n = int(first), int(count)
        with self.store.catalog.read() as view:
            if bytes(view.get("offsets", b"file") or b"") == step.encode():
                return
        actions = [blocked(number, after_s=0) for number in range(at - 10, at + n + 10)]
        rejects = [Reject("file", number, f"bad {number}") for number in (at, at + 1)]
        self.store.publisher.publish(
            [Submission("ndjson", several(n, at), rejects, lambda outcome: None, {b"file": step.encode()}, "test",
                        actions)]
        )  # fmt: skip

    def label(self, step: str, number: str, label: str) -> None:
        with self.store.catalog.read() as view:
            seq = view.find(f"e{int(number):06d}")
            assert seq is not None
            known = view.annotation(seq)
        if known is None or known.label != label:
            self.store.publisher.annotate(f"e{int(number):06d}", label, "ana")

    # ---- what is derived

    def index(self, step: str) -> None:
        self.store.index()

    def merge(self, step: str) -> None:
        """And what is merged away goes."""
        self.store.merge()
        gc.collect(self.layout, self.store.publisher.manifest)

    def harm(self, step: str) -> None:
        """A bad sector in the row file that is written to; the next start finds it."""
        manifest = self.store.publisher.manifest
        path, stored = self.layout.row_file(*manifest.row_file(manifest.row_files - 1)), manifest.count % ROWS
        assert stored
        self.close()
        flip(path, _offsets(ROWS)["attack"] + 3)
        assert self.store

    # ---- what leaves

    def retain(self, step: str, files: str) -> None:
        retention.hide(self.store.publisher, int(files))

    def sweep(self, step: str) -> None:
        while retention.sweep(self.store.publisher):
            pass

    def leave(self, step: str, files: str) -> None:
        self.store.leave(int(files))

    def purge(self, step: str, *numbers: str) -> None:
        self.store.purge(ids=[f"e{int(number):06d}" for number in numbers])

    def compact(self, step: str) -> None:
        self.store.compact()

    # ---- a switch of models

    def begin(self, step: str) -> None:
        manifest = self.store.publisher.manifest
        if manifest.switch is None and manifest.model != OTHER:
            self.store.begin_switch()

    def go_on(self, step: str) -> None:
        if self.store.publisher.manifest.switch is not None:
            self.store.go_on()

    def finish(self, step: str) -> None:
        """Begun again where it was given up."""
        self.begin(step)
        if self.store.publisher.manifest.switch is not None:
            while self.store.go_on():
                pass
            switch.finish(self.store.publisher)

    # ---- keys

    def keys(self) -> dict[str, Path]:
        """Two key files by the ids of their keys; made at the first look."""
        found = {}
        for name in ("a", "b"):
            path = self.layout.data_dir.with_name(f"{name}.key")
            if not path.exists():
                path.touch(0o600)
                path.write_text(name * 64)
            found[Cipher(read_key(path)).key_id] = path
        return found

    def key_file(self) -> Path | None:
        """Of the key that the directory is encrypted with; None of one that is not."""
        if not (self.layout.catalog / CURRENT).exists():
            return None
        catalog = Catalog(self.layout.catalog, write=False, map_size=1 << 30, lock=False)
        try:
            with catalog.read() as view:
                manifest = view.manifest()
        finally:
            catalog.close()
        return self.keys()[manifest.key_id] if manifest is not None and manifest.key_id else None

    def migrate(self, step: str, to: str) -> None:
        """To one of the keys, or to plain."""
        self.close()
        old, new = self.key_file(), next((path for path in self.keys().values() if path.stem == to), None)
        if self.lock >= 0:
            os.close(self.lock)
        try:
            migrate.run(
                self.layout, configured(self.layout.data_dir, new), to=migrate.PLAIN if new is None else "",
                from_key_file=str(old) if old not in (None, new) else "",
            )  # fmt: skip
        finally:
            if self.lock >= 0:
                self.lock = lock.hold(self.layout.writer_lock, wait_s=1.0)

    # ---- backups

    def backups(self) -> list[str]:
        return list(backup.found(self.home)) if self.home.exists() else []

    def create(self, step: str, name: str) -> None:
        self.close()
        if name not in self.backups():
            take.create(self.layout, self.home, name, map_size=1 << 30)

    def delete(self, step: str, name: str) -> None:
        if name in self.backups():
            backup.delete(self.home / name)

    def restore(self, step: str, name: str) -> None:
        if not self.restored.exists():
            backup.restore(self.home / name, self.restored)

STEPS_S_MAX = 120  # of one process


def main(data_dir: Path, steps: list[str]) -> int:
    layout = Layout(data_dir)
    layout.make()
    with Steps(data_dir) as to:
        to.lock = lock.hold(layout.writer_lock, wait_s=1.0)
        for step in steps:
            try:
                generation = to.do(step)
            except (OSError, NoSpaceError) as e:
                if not isinstance(e, NoSpaceError) and e.errno != errno.ENOSPC:
                    raise
                generation = to.do(step)
            print(step, generation, flush=True)  # the acknowledgement
    return 0


class Forked:
    """Processes that do steps, one after another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.process.steps"], env=environment(ONE_THREAD), cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=120)
        assert self._process.returncode == 0

    def run(self, data_dir: Path, steps: Sequence[str], armed: str) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([armed, str(data_dir), *steps]), file=self._process.stdin, flush=True)
        return subprocess.CompletedProcess(steps, *json.loads(self._process.stdout.readline()))


def serve() -> int:
    """A line [ENGINE_FAILPOINT, DIR, STEP...] in, a line [returncode, stdout, stderr] out."""
    while text := sys.stdin.readline():
        armed, data_dir, *steps = json.loads(text)
        assert threading.active_count() == 1
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            if (pid := os.fork()) == 0:
                signal.alarm(STEPS_S_MAX)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os._exit(alone(Path(data_dir), steps, armed))
            _, status = os.waitpid(pid, 0)
            written = [file.seek(0) or file.read() for file in (out, err)]
        print(json.dumps([os.waitstatus_to_exitcode(status), *written]), flush=True)
    return 0


def alone(data_dir: Path, steps: list[str], armed: str) -> int:
    """What a new interpreter with this environment would do."""
    try:
        os.environ["ENGINE_FAILPOINT"] = armed
        importlib.reload(failpoint)  # in place: whoever has imported the function comes by here
        return main(data_dir, steps)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]) if sys.argv[1:] else serve())
