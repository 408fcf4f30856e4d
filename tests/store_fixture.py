"""A data directory opened in this process: publish, index, ask, break, reopen. No sockets, no workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np

from engine.config import CIDRS_INTERNAL, Config, load
from engine.embed import models as embed_models
from engine.embed.base import DIMS
from engine.embed.linear import LinearEmbedder
from engine.embed.text import TextModel
from engine.layout import Layout
from engine.limits import ROW_FILE_ROWS_MIN
from engine.maintain import purge, retention
from engine.maintain.build import Built, build_indexes
from engine.maintain.compact import Compacting
from engine.search.query import Answering, Question, stored_question
from engine.search.snapshot import Snapshot, Snapshots
from engine.store import coverage, gc, switch, tiers
from engine.store.catalog import Catalog, View
from engine.store.manifest import IndexFile, SealedRows
from engine.store.memo import load_models
from engine.store.publish import Outcome, Publisher, Submission
from engine.store.rebuild import fill, rows_of
from engine.store.recover import open_store
from engine.store.rows import REGIONS, RowMap, RowWriter
from ipc.event import Event, FeaturedEvent, FirewallAction
from ipc.messages import Answer, Answers, Filter, Options, decode_reply, encode
from tests.events import several
from tests.wait import eventually

ROWS = ROW_FILE_ROWS_MIN
OTHER = "v0-other"  # a second model version, see other_model


@cache
def _text_model() -> TextModel:
    return TextModel()


def closed(data_dir: Path, *submissions: Submission) -> Path:
    """A data directory of 150 events, two row files full and indexed, then what is submitted; closed, to be copied."""
    with Store(data_dir) as store:
        store.publish(several(150))
        store.index()
        if submissions:
            store.publisher.publish(submissions)
    return data_dir


async def all_replaced(within_s: float) -> bool:
    return True


def configured(data_dir: Path, key_file: Path | None = None, **flags: Any) -> Config:
    """The settings of a Store. flags: `network__internal=[...]`, and others."""
    given = {"data_dir": str(data_dir), "store.row_file_rows": ROWS, "store.map_size_gib": 1}
    given |= {name.replace("__", "."): value for name, value in flags.items()}
    return load(env={}, flags=given | ({"store.key_file": str(key_file)} if key_file else {}))


class Store:
    """The writing end, and what a reader would see of it."""

    def __init__(self, data_dir: Path, key_file: Path | None = None, **flags: Any) -> None:
        self.config = configured(data_dir, key_file, **flags)
        self.layout = Layout(data_dir)
        self.layout.make()
        with patch("engine.embed.text.TextModel", _text_model):  # one session for all stores of this process
            self.publisher: Publisher = open_store(self.layout, self.config)
        self.catalog = self.publisher.catalog
        self.snapshots = Snapshots(self.layout)

    def close(self) -> None:
        self.snapshots.close()
        self.publisher.close()
        self.catalog.close()
        self.publisher.counter.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def generation(self) -> int:
        return self.publisher.manifest.generation

    # ---- writing

    def publish(
        self, items: Sequence[FeaturedEvent], offsets: dict[bytes, bytes] | None = None,
        actions: Sequence[FirewallAction] = (), source: str = "test",
    ) -> Outcome:  # fmt: skip
        submission = Submission(
            "ndjson", list(items), [], lambda outcome: None, offsets or {}, source, list(actions)
        )  # fmt: skip
        outcome = self.publisher.publish([submission])[0]
        if (ahead := self.publisher._rows._ahead) is not None:
            ahead[1].join()  # what is on the disk then is the same each time
        return outcome

    def index(self) -> None:
        """Index every full row file that has none, as the child does."""
        for number in tiers.unindexed(self.publisher.manifest):
            self._index([number])

    def index_early(self) -> None:
        """Index what is due of the row file that is being filled."""
        while part := tiers.early(self.publisher.manifest):
            self._index([part[0] // ROWS], part)

    def merge(self) -> None:
        """Then make one index of several, until there is nothing to merge."""
        while numbers := tiers.mergeable(self.publisher.manifest):
            self._index(numbers)

    def _index(self, numbers: Sequence[int], part: tuple[int, int] | None = None) -> None:
        built = build_indexes(self.layout, [self.publisher.manifest.row_file(n) for n in numbers], ROWS, part)
        assert not built.bad_rows
        self.publisher.swap_in([IndexFile(*i) for i in built.indexes], [SealedRows(*s) for s in built.sealed])

    def split(self) -> None:
        """Indexes over what is left, in the place of one that reaches below."""
        while ranges := tiers.split(self.publisher.manifest):
            built = [
                build_indexes(self.layout, [self.publisher.manifest.row_file(n) for n in numbers], ROWS)
                for numbers in ranges
            ]
            self.publisher.swap_in(
                [IndexFile(*i) for one in built for i in one.indexes],
                [SealedRows(*s) for one in built for s in one.sealed],
            )
        gc.collect(self.layout, self.publisher.manifest)

    def purge(self, wanted: Filter | None = None, ids: Sequence[str] = (), **more: bool) -> dict[str, Any]:
        return asyncio.run(purge.purge(self.publisher, wanted, ids, **more))

    def begin_switch(self, version: str = OTHER) -> None:
        other_model(self.layout)
        with patch("engine.embed.text.TextModel", _text_model):
            models = load_models(self.layout.model(version), self.catalog, CIDRS_INTERNAL)
        switch.begin(self.publisher, models, switch.target(self.layout, self.publisher.manifest, version))

    def go_on(self) -> bool:
        """One step of a switch, as engine/maintain/upkeep.py does it; False when all rows are there."""
        under_way, other = self.publisher.manifest.switch, self.publisher.other
        assert under_way is not None and other is not None
        to = under_way.to
        if under_way.done:
            return False
        number, first = divmod(to.count, ROWS)
        end = min((number + 1) * ROWS, under_way.since)
        writer = RowWriter(self.layout.row_file(*to.row_file(number)), number, ROWS)
        fill(self.catalog, other, writer, first, end - number * ROWS)
        writer.close()
        full = end == (number + 1) * ROWS
        built = build_indexes(self.layout, [to.row_file(number)], ROWS) if full else Built()
        assert not built.bad_rows
        sealed, indexes = [SealedRows(*s) for s in built.sealed], [IndexFile(*i) for i in built.indexes]
        switch.advance(self.publisher, end, 0.5, sealed, indexes)
        return True

    def switch(self, version: str = OTHER) -> None:
        """From beginning to end."""
        self.begin_switch(version)
        if self.publisher.manifest.switch is not None:
            while self.go_on():
                pass
            switch.finish(self.publisher)

    def leave(self, first: int, slices: int = 1 << 30) -> None:
        """The row files before `first` leave, and so many slices of their records."""
        if first > self.publisher.manifest.first:
            retention.hide(self.publisher, first)
        while slices and retention.sweep(self.publisher):
            slices -= 1

    def compacting(self, rolled: Callable[[float], Awaitable[bool]] = all_replaced) -> Compacting:
        """rolled: replaces the confined readers, as the supervisor does."""
        worker = SimpleNamespace(layout=self.layout, config=self.config, rolled=rolled)
        return Compacting(worker, self.publisher)  # type: ignore[arg-type]

    def compact(self) -> dict[str, Any]:
        return asyncio.run(self.compacting().run())

    # ---- reading

    def snapshot(self) -> Snapshot:
        """With every index open."""

        def look() -> Snapshot | None:
            with self.catalog.read() as view:
                snapshot = self.snapshots.refresh(view)
            return None if self.snapshots.opening() else snapshot

        return eventually(look)

    def answer(self, questions: Sequence[Question], snapshot: Snapshot | None = None) -> list[Answer]:
        snapshot = snapshot or self.snapshot()
        with self.catalog.read() as view:
            found = Answering(snapshot, self.publisher.models, view).answer(questions)
        for one in found:
            if isinstance(one, Exception):
                raise one
        reply = decode_reply(encode(Answers(1, snapshot.generation, found)))  # type: ignore[arg-type]
        assert isinstance(reply, Answers)
        return reply.answers

    def ask(self, name: str, **options: Any) -> Answer:
        snapshot = self.snapshot()
        with self.catalog.read() as view:
            question = stored_question(name, Options(**options), snapshot, view, self.publisher.models)
        return self.answer([question], snapshot)[0]

    def ids(self) -> list[str]:
        with self.catalog.read() as view:
            heads = [record.head for _, record in view.records(self.publisher.manifest.first_seq, 1 << 40)]
        return [msgspec.msgpack.decode(head, type=Event).event_id for head in heads]

    def files(self) -> list[RowMap]:
        manifest = self.publisher.manifest
        return [RowMap(self.layout.row_file(*manifest.row_file(n)), n, ROWS) for n in manifest.numbers]

    def check(self) -> None:
        """Everything agrees: counts, identities, coverage, and every row with what its record gives; nothing is left of
        what left."""
        self.leave(0)
        manifest = self.publisher.manifest
        with self.catalog.read() as view:
            assert view.manifest() == manifest
            entries = {t: view.txn.stat(self.catalog.tables[t])["entries"] for t in ("records", "ids")}
            assert entries == {"records": manifest.events, "ids": manifest.events}
            assert all(first >= manifest.first_seq for first, _, _ in view.extents())
            assert sum(self.publisher.counters.families.values()) == manifest.events
            for seq, record in view.records(manifest.first_seq, manifest.count):
                event = msgspec.msgpack.decode(record.head, type=Event)
                found = view.identity(event.event_id, event.source)
                assert found is not None and found[0] == seq
            assert coverage.stored(view, view.counters())[1] == view.counters().counted
            if not manifest.first and not manifest.purged:  # it goes on counting what left
                self._check_coverage(view)
        assert self.publisher.counter.value == manifest.generation
        for number, file in zip(manifest.numbers, self.files(), strict=True):
            assert len(file.gone) == manifest.purged.get(number, 0)
            lo, stored = number * ROWS, min(ROWS, manifest.count - number * ROWS)
            assert file.bad_rows(stored) == []
            expected = rows_of(self.catalog, self.publisher.models, lo, lo + stored)
            for region in REGIONS:
                given = file.vectors[region] if region in file.vectors else getattr(file, region)
                want = expected.vectors[region] if region in expected.vectors else getattr(expected, region)
                assert np.array_equal(given[:stored].view(np.uint8), np.ascontiguousarray(want).view(np.uint8)), region

    def _check_coverage(self, view: View) -> None:
        """What is counted of each source against its records, one by one."""
        counters = view.counters()
        counted = coverage.load(self.layout, view, counters)
        assert 0 <= self.publisher.manifest.count - counters.counted < coverage.COUNT_EVENTS
        assert {s: c.events for s, c in self.publisher.coverage.items()} == {
            s: c.events for s, c in coverage.stored(view, counters)[0].items()
        }
        features: dict[str, list[bytes]] = {}
        for _, record in view.records(0, 1 << 40):
            source = msgspec.msgpack.decode(record.head, type=Event).source
            features.setdefault(source, []).append(record.features)
        events = {source: c.events for source, c in counters.sources.items() if c.events}
        assert events == {source: len(blobs) for source, blobs in features.items()}
        assert counted.keys() == features.keys()
        for source, blobs in features.items():
            cells = np.array([np.frombuffer(b, "<f4") for b in blobs], np.float64)
            there = ~np.isnan(cells)
            low, high = (np.where(there, cells, fill) for fill in (np.inf, -np.inf))
            found = counted[source]
            assert found.events == len(blobs)
            assert found.present.tolist() == there.sum(0).tolist()
            assert found.zeros.tolist() == (cells == 0).sum(0).tolist()
            assert np.nan_to_num(found.low, nan=np.inf).tolist() == low.min(0).tolist()
            assert np.nan_to_num(found.high, nan=-np.inf).tolist() == high.max(0).tolist()


def other_model(layout: Layout) -> Path:
    """A second version: the shipped one, its linear spaces seen from elsewhere."""
    path = layout.model(OTHER)
    if path.exists():
        return path
    base = embed_models.load(embed_models.shipped())
    made = {}
    for space, embedder in base.embedders.items():
        if isinstance(embedder, LinearEmbedder):
            weights = np.zeros((DIMS[space], 2 * len(embedder.columns)), np.float32)
            weights[: len(embedder.weights)] = embedder.weights * np.float32(0.5)  # without the networks
            embedder = LinearEmbedder(
                space, OTHER, embedder.columns, embedder.center, embedder.scale, weights, embedder.calibration
            )
        made[space] = embedder
    data = embed_models.Data(description="for tests")
    return embed_models.save(
        layout.models, embed_models.to_files(made, fusion=base.fusion, data=data, metrics={}, seed=0)
    )


def damage(catalog: Catalog, table: str, key: bytes) -> None:
    """One damaged byte of a stored value."""
    with catalog.write() as batch:
        value = bytearray(batch.txn.get(key, db=catalog.tables[table]))
        value[len(value) // 2] ^= 0x10
        batch.txn.put(key, bytes(value), db=catalog.tables[table])


def flip(path: Path, at: int, bits: int = 0x10) -> None:
    """One damaged byte, in place, as a bad disk would."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bits]))
    path.chmod(mode)
