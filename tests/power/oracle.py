"""What was promised before the power failed, and whether a directory that it left keeps it.

Always true
  - A promise is made by a reply that left the ingest worker before the failure. What it is compared with is what the
    recorded engine had at its end: nothing there ever changes but the two annotations, each made by one step.
  - A directory is opened by what a start runs (engine/store/recover.py) and read by what a reader runs.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import msgspec
import numpy as np

from engine.embed import models
from engine.embed.base import ModelSet
from engine.embed.models import SCRATCH_PREFIX
from engine.files import TMP_SUFFIX
from engine.store import dead_letters, index
from engine.store.manifest import Embedded, Manifest
from engine.store.publish import Submission
from engine.store.record import join_record
from engine.store.rows import REGIONS, RowMap
from ipc.event import Event
from ipc.messages import Done, Ingested, Reject
from tests.events import make
from tests.heard import heard
from tests.power.disk import GARBAGE, Picture
from tests.power.trace import Acknowledged, Migrated, Operation, Rename
from tests.power.workload import ADDED, ANNOTATED_BY, STEPS, SWITCHED, Recording
from tests.store_fixture import OTHER, ROWS, Store

NEW = 900_000  # number of the event that is appended to what is left
ASK_EVERY = 8  # states are asked a question, too
NAMES = "data/catalog/CURRENT"  # the catalog in use


class Promise(NamedTuple):
    """What was acknowledged: the generation that the reply to each step told, and migrations. named: how often CURRENT
    was made or replaced, so how many of these may be there without that."""

    generations: tuple[int, ...] = ()
    migrations: int = 0
    named: int = 0

    @property
    def steps(self) -> int:
        return len(self.generations)

    @property
    def generation(self) -> int:
        return self.generations[-1] if self.generations else 0

    def kept(self, may_lose: int) -> int:
        """Steps that are there where the last commits may be gone."""
        return sum(generation <= self.generation - may_lose for generation in self.generations)

    def after(self, reply: Ingested | Done) -> Promise:
        step = STEPS[self.steps]
        if isinstance(reply, Ingested):
            assert (reply.accepted, reply.duplicates, reply.rejected) == (len(step.events), 0, step.rejects)
        return self._replace(generations=(*self.generations, reply.generation))


def promises(recording: Recording) -> Iterator[tuple[Operation, Promise]]:
    """Each operation, and what is promised once it is done."""
    promise = Promise(recording.generations)
    for operation in recording.operations:
        if isinstance(operation, Acknowledged):
            promise = promise.after(operation.reply)
        elif isinstance(operation, Migrated):
            promise = promise._replace(migrations=promise.migrations + 1)
        elif isinstance(operation, Rename) and operation.to == NAMES:
            promise = promise._replace(named=promise.named + 1)
        yield operation, promise
    assert promise.steps == recording.steps


class Oracle:
    """Knows the end of a recording; checks states in a folder of its own, one at a time."""

    def __init__(self, recording: Recording, folder: Path, *, may_lose: int = 0) -> None:
        """may_lose: acknowledged commits that may be gone, the last ones (durability "meta")."""
        self.folder, self.may_lose, self.steps = folder, may_lose, STEPS[: recording.steps]
        end = folder / "end"
        shutil.copytree(recording.data_dir, end, ignore=shutil.ignore_patterns("run"))
        self.letters = (end / "dead_letters.ndjson").read_bytes().splitlines(keepends=True)
        with Store(end) as store:
            self.records, self.annotations = _stored(store)
            manifest = store.publisher.manifest
            self.rows = {  # by epoch and number: of the version in use and of the one before
                of.row_file(number)[:2]: _cells(RowMap(store.layout.row_file(*of.row_file(number)), number, ROWS))
                for of in _versions(manifest)
                for number in range(-(-of.count // ROWS))
            }
        assert (manifest.model == OTHER) == (manifest.kept is not None) == (len(self.steps) > SWITCHED)
        shutil.rmtree(end)
        assert self.annotations.keys() == {seq for seq, step in ANNOTATED_BY.items() if step < len(self.steps)}
        self.counts = list(itertools.accumulate((len(step.events) for step in self.steps), initial=0))
        assert len(self.records) == self.counts[-1]
        assert len(self.letters) == sum(step.rejects for step in self.steps)
        self._checked = 0
        self._shared: dict[bytes, Path] = {}

    def check(self, picture: Picture, promise: Promise) -> list[str]:
        """What is wrong with this state; empty where all is kept."""
        with self._laid_out(picture, promise) as data_dir:
            return self._started(data_dir, promise)

    def _started(self, data_dir: Path, promise: Promise, key_file: Path | None = None) -> list[str]:
        """What is wrong after a start."""
        with heard() as said, _models_once():
            try:
                store = Store(data_dir, key_file)
            except Exception as e:
                return [f"refused: {e!r}", *said]
            try:
                return [*self._look(store, promise), *self._go_on(store), *said]
            finally:
                store.close()

    @contextmanager
    def _laid_out(self, picture: Picture, promise: Promise) -> Iterator[Path]:
        self._checked += 1
        root = self.folder / str(self._checked)
        try:
            yield self._lay_out(root, picture, promise)
        finally:
            shutil.rmtree(root)

    def _lay_out(self, root: Path, picture: Picture, promise: Promise) -> Path:
        """The picture, and of what mappings write anything that there may be."""
        root.mkdir()
        for path, content in picture.items():
            if content is None:
                (root / path).mkdir(mode=0o700)
            else:
                self._write(root / path, content, shared=path.startswith("data/models/"))
        if "data/catalog" in picture and (lock := (b"", b"\0", GARBAGE)[self._checked % 3]):
            (root / "data/catalog/catalog.0-lock").write_bytes(lock * 32_768)
        counter = (b"", bytes(8), promise.generation.to_bytes(8, "little"))[self._checked % 7 % 3]
        if "data" in picture and counter:  # not there, as it was made, or as new as was announced; or of another size
            (root / "data/generation").write_bytes(counter.ljust((4096, 100)[self._checked % 2], b"\0"))
        return root / "data"

    def _write(self, path: Path, content: bytes, *, shared: bool) -> None:
        """shared: what nobody writes to is written once, and linked."""
        if not shared:
            path.write_bytes(content)
            return
        if content not in self._shared:
            self._shared[content] = self.folder / f"shared-{len(self._shared)}"
            self._shared[content].write_bytes(content)
        path.hardlink_to(self._shared[content])

    def _look(self, store: Store, promise: Promise) -> Iterator[str]:
        """What is there against what was written and what was promised."""
        records, annotations = _stored(store)
        manifest, count = store.publisher.manifest, len(records)
        if records != self.records[:count]:
            yield "a record is not as it was written"
        if count not in self.counts:
            yield f"half a batch: {count} events"
        kept = promise.kept(self.may_lose)
        if count < self.counts[kept]:
            yield f"lost: {self.counts[kept] - count} acknowledged events"
        if manifest.generation < promise.generation - self.may_lose:
            yield f"lost: generation {promise.generation}, there is {manifest.generation}"
        for seq, blob in annotations.items():
            if blob != self.annotations[seq]:
                yield f"the annotation of {seq} is not as it was written"
        if lost := {seq for seq, step in ANNOTATED_BY.items() if step < kept} - annotations.keys():
            yield f"lost: annotations of {lost}"
        with store.catalog.read() as view:
            entries = {t: view.txn.stat(store.catalog.tables[t])["entries"] for t in ("records", "ids")}
            if entries != {"records": manifest.events, "ids": manifest.events} or count != manifest.events:
                yield f"{entries} where the manifest says {manifest.events}"
            for seq, blob in enumerate(records):
                event = _event(blob)
                found = view.identity(event.event_id, event.source)
                if found is None or found[0] != seq:
                    yield f"event {seq} is not found by its identity"
        if manifest.model != OTHER and kept > SWITCHED:
            yield f"lost: the switch of models, {manifest.model} is in use"
        if OTHER not in models.versions(store.layout.models) and promise.steps > ADDED:  # no commit, so never lost
            yield "lost: a model version"
        for of in _versions(manifest):
            yield from self._look_at(store, of)
        names = [path.name for path in store.layout.data_dir.rglob("*")]
        if left := [name for name in names if TMP_SUFFIX in name or name.startswith(SCRATCH_PREFIX)]:
            yield f"left over: {left}"
        if not _letters(store).startswith(b"".join(self.letters[: sum(step.rejects for step in STEPS[:kept])])):
            yield "lost: dead letters"
        if count > 5 and self._checked % ASK_EVERY == 0:
            hits = store.ask(_event(records[count - 1]).event_id, top_k=3, collapse=False).hits
            if len(hits) != 3 or not all(hit.seq < count for hit in hits):
                yield "a question is not answered"

    def _look_at(self, store: Store, of: Manifest | Embedded) -> Iterator[str]:
        """The files of one model version."""
        sealed = {s.number: s.checksum for s in of.sealed}
        for number in range(store.publisher.manifest.first, -(-of.count // ROWS)):
            name = of.row_file(number)
            file = RowMap(store.layout.row_file(*name), number, ROWS)
            stored = min(ROWS, of.count - number * ROWS)
            if file.bad_rows(stored) or not all(
                np.array_equal(cells[:stored], self.rows[name[:2]][region][:stored])
                for region, cells in _cells(file).items()
            ):
                yield f"rows of {file.path.name} are not as they were written"
            if number in sealed and file.checksum() != sealed[number]:
                yield f"{file.path.name} disagrees with its checksum"
        for one in of.indexes:
            if index.checksum(store.layout.index_file(one.file)) != one.checksum:
                yield f"index {one.file} disagrees with its checksum"

    def _go_on(self, store: Store) -> Iterator[str]:
        """A client sends again what it may have sent before: the last that is there, the first that is not; then
        something new."""
        sent = [event for step in self.steps for event in step.events]
        count = store.publisher.manifest.count
        again = copy.deepcopy(sent[max(0, count - 1) : count + 1])  # a publish completes them in place
        rejects = [Reject("file", 0, "bad")]
        submissions = [Submission("ndjson", again, [], lambda outcome: None, source="test"),
                       Submission("ndjson", [make(NEW)], rejects, lambda outcome: None, source="test")]  # fmt: skip
        first, new = store.publisher.publish(submissions)
        if (first.accepted, first.duplicates) != (int(count < len(sent)), int(count > 0)):
            yield f"sent again: {first.accepted} accepted, {first.duplicates} duplicates"
        manifest = store.publisher.manifest
        number, row = divmod(manifest.count - 1, ROWS)
        file = RowMap(store.layout.row_file(*manifest.row_file(number)), number, ROWS)
        if new.accepted != 1 or manifest.count != count + first.accepted + 1 or file.bad_rows(row + 1):
            yield "the next append is not there"
        for line in store.layout.dead_letters.read_bytes().splitlines():
            try:
                json.loads(line)
            except ValueError:
                yield "a dead letter is torn"


def _stored(store: Store) -> tuple[list[bytes], dict[int, bytes]]:
    """Records in order of seq, and annotations by seq."""
    with store.catalog.read() as view:
        found = list(view.records(0, 1 << 40))
        assert [seq for seq, _ in found] == list(range(len(found)))
        annotations = {int.from_bytes(key, "big"): bytes(blob) for key, blob in view.scan("annotations")}
    return [join_record(*record) for _, record in found], annotations


def _letters(store: Store) -> bytes:
    """The dead letters as they are where nothing is encrypted."""
    path, cipher = store.layout.dead_letters, store.catalog.cipher
    if not path.exists():
        return b""
    if cipher is None:
        return path.read_bytes()
    return b"".join(letter.line() for letter in reversed([*dead_letters.newest(path, cipher)]))


def _versions(manifest: Manifest) -> list[Manifest | Embedded]:
    """The model version in use, the one before, and the one that is being switched to."""
    others = manifest.kept, manifest.switch and manifest.switch.to
    return [manifest, *(other for other in others if other is not None)]


@cache
def _event(record: bytes) -> Event:
    return msgspec.msgpack.decode(record[4 : 4 + int.from_bytes(record[:4], "little")], type=Event)


def _cells(file: RowMap) -> dict[str, np.ndarray]:
    """uint8 [rows, bytes] by region."""
    found = {}
    for region in REGIONS:
        given = file.vectors[region] if region in file.vectors else getattr(file, region)
        found[region] = np.ascontiguousarray(given).view(np.uint8).reshape(ROWS, -1)
    return found


@contextmanager
def scratch(within: Path | None = None) -> Iterator[Path]:
    """A folder for an oracle, in `within` or else in memory, where its own syncs take no time; but not beside tests
    that run at the same time: they look whether anything is left in there."""
    shm = Path("/dev/shm")
    if within is None and os.access(shm, os.W_OK) and "PYTEST_XDIST_WORKER" not in os.environ:
        within = shm
    with tempfile.TemporaryDirectory(dir=within, prefix="flowkin-power-") as folder:
        yield Path(folder)


_made: dict[tuple[tuple[str, bytes], ...], ModelSet] = {}
_from_files = models.from_files


@contextmanager
def _models_once() -> Iterator[None]:
    """The same files make the same embedders; a start of each state reads them, but does not make them again."""

    def from_files(files: dict[str, bytes], internal: Sequence[str] = models.CIDRS_INTERNAL) -> ModelSet:
        key = (("internal", repr(internal).encode()), *sorted(files.items()))
        if key not in _made:
            _made[key] = _from_files(files, internal)
        return _made[key]

    with patch("engine.embed.models.from_files", from_files):
        yield
