"""Publish one generation, all or nothing.

Always true
  - One process publishes (it holds writer.lock). A batch is stored whole or not at all; what is stored is visible.
  - The same identity with the same source record again is a no-op, but that a damaged record is put back by it; with
    another record it is refused and counted. One whose record is gone is new.
  - A seq is given to one event for ever. The context tracker and the waiting firewall actions (engine/store/actions.py)
    move on only when the commit succeeded.
In this order, each step durable before the next
  1. dead letters: appended, fdatasync; rows: pwrite, fdatasync (a new row file: written, synced and renamed before);
     during a switch of models (engine/store/switch.py) the rows of the other version, too
  2. one LMDB commit: records, ids, texts, offsets, extent, counters, coverage, names, tracker, actions and what they
     are joined to, manifest  <- the publish
  3. counter: bump; losing this only makes a reader late
A death before 2 leaves letters and rows past the committed count, which the next publish overwrites.
"""

from __future__ import annotations

import collections
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec
import numpy as np
import xxhash
import zstandard
from msgspec import Struct

from engine import features as feature_table
from engine.context import Tracker
from engine.embed import models as embed_models
from engine.embed.base import ModelSet
from engine.embed.text import TextEmbedder
from engine.errors import (
    BadRecordError,
    BadRequestError,
    CorruptionError,
    EngineError,
    NoSpaceError,
    NotFoundError,
)
from engine.failpoint import failpoint
from engine.featurize import derive_features, featurize
from engine.layout import Layout
from engine.limits import FAMILIES_MAX, LABEL_HISTORY_MAX, SOURCE_BYTES_MAX, SOURCES_MAX
from engine.normalize import complete
from engine.store import actions as firewall
from engine.store import checkpoint, coverage, dead_letters
from engine.store.actions import Actions, Hit, Plan
from engine.store.append import Extent, RowAppender
from engine.store.catalog import Batch, Catalog, View, card_key, id_key, seq_key
from engine.store.columns import to_columns
from engine.store.counter import Counter
from engine.store.counters import Counters, Names, SourceCounters, counted_as
from engine.store.manifest import IndexFile, Manifest, SealedRows, Switch
from engine.store.memo import fresh_texts
from engine.store.record import join_record
from engine.store.room import is_full
from engine.store.rows import RowMap, Rows
from engine.store.stages import Stages
from ipc.event import Annotation, Event, FeaturedEvent, FirewallAction
from ipc.messages import Reject

log = logging.getLogger(__name__)

ID_BYTES_MAX = 255
_encode = msgspec.msgpack.Encoder().encode


class Submission(Struct):
    """Events on their way in from one message or one source. offsets: states of followed files to be stored in the same
    commit, b"": to be forgotten. done: called with the outcome when all is durable and visible, or with the error.
    actions: of a firewall, about these events or others. not_ip: packets of a capture that are no IP."""

    format: str
    events: list[FeaturedEvent]
    rejects: list[Reject]
    done: Callable[[Outcome | Exception], None]
    offsets: dict[bytes, bytes] = {}
    source: str = ""
    actions: list[FirewallAction] = []
    not_ip: int = 0

    @property
    def size(self) -> int:
        return len(self.events) + len(self.actions)


class Outcome(NamedTuple):
    generation: int
    accepted: int
    duplicates: int
    rejects: list[Reject]  # with those that publishing added
    joined: int = 0  # firewall actions said of events
    waiting: int = 0  # firewall actions that have met no event yet, of all submissions


def say_if_full(e: OSError, what: str = "batch") -> None:
    """Raises NoSpaceError where the disk is full. what: was not stored."""
    if is_full(e):
        raise NoSpaceError(f"the disk is full ({e.strerror}); the {what} was not stored; free some space") from e


class _Accepted(NamedTuple):
    """key: of its identity, in `ids`."""

    key: bytes
    event: Event
    features: bytes
    raw: bytes
    content: bytes
    format: str
    again: bool  # its identity is still there of an event that retention removed, or whose record is gone


class ConflictError(BadRecordError):
    """A known identity with another source record: refused, there is no upsert."""


def content_hash(item: FeaturedEvent) -> bytes:
    """xxh3_128 of the source record; of the event itself where a program sent none."""
    return xxhash.xxh3_128_digest(item.raw or _encode((item.event, item.features)))


class Publisher:
    """The writing end of a data directory. Owned by the ingest worker; not for threads."""

    def __init__(
        self, layout: Layout, catalog: Catalog, counter: Counter, models: ModelSet, tracker: Tracker, checkpointed: int
    ) -> None:
        """`tracker` must have seen every stored event, its stored state those before `checkpointed`: see
        engine/store/recover.py."""
        self.layout, self.catalog, self.counter, self.models, self.tracker = layout, catalog, counter, models, tracker
        with catalog.read() as view:
            manifest = view.manifest()
            assert manifest is not None
            self.manifest: Manifest = manifest
            self.names: Names = view.names()
            self.counters: Counters = view.counters()
            self.coverage, self.counters.counted = coverage.stored(view, self.counters)
            self.letters = dead_letters.load(view, self.counters)
            self.actions = Actions.load(view)
        self.other: ModelSet | None = None  # of a switch: it embeds what comes, too
        self.stages = Stages(layout)
        self._rows, self._other_rows = (RowAppender(layout, self.stages.lap) for _ in range(2))
        self.checkpointed = checkpointed  # the next seq of the tracker's stored state; a start goes on there
        self._checkpoint_bytes = 0
        self._compress = zstandard.ZstdCompressor(level=1).compress  # of a record, level 3 saves nothing more
        counter.value = self.manifest.generation

    def warm(self) -> None:
        """The first vectors of a process take 40 to 60 ms of CPU: no event shall wait for that."""
        for space, embedder in self.models.embedders.items():
            if space != TextEmbedder.name:
                embedder.embed([], feature_table.empty(1))

    def load_text(self) -> None:
        """The same of new sentences, 0.1 s of CPU and 90 MB to be read. For a thread. Raises ModelError."""
        text = self.models.embedders[TextEmbedder.name]
        if isinstance(text, TextEmbedder):
            text.model.load()

    def close(self) -> None:
        self._rows.close()
        self._other_rows.close()

    # ---- events -------------------------------------------------------------------------------------------------

    def publish(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Store what is new of all submissions in one generation. Raises NoSpaceError, OSError: nothing was stored."""
        self.stages.start()
        accepted: list[_Accepted] = []
        outcomes: list[tuple[int, int, list[Reject]]] = []
        refused: dict[str, list[Reject]] = {}  # by the source that they are counted under
        actions: dict[FirewallAction, tuple[int, str]] = {}  # the submission that brought it, and its source
        counters = msgspec.msgpack.decode(_encode(self.counters), type=Counters)
        batch_ids: dict[bytes, bytes] = {}
        damaged: dict[int, FeaturedEvent] = {}  # seqs of stored records that cannot be read, and what came again
        with self.catalog.read() as view:
            for number, submission in enumerate(submissions):
                first, duplicates, rejects = len(accepted), 0, list(submission.rejects)
                self._refuse(refused, counters, submission.source or submission.format, rejects)
                if submission.not_ip:
                    self._count(counters, submission.source or submission.format).not_ip += submission.not_ip
                for item in submission.events:
                    try:
                        new = self._admit(item, submission.format, view, batch_ids, damaged)
                    except BadRecordError as e:
                        rejects.append(Reject(submission.source, -1, e.reason, item.raw[: 1 << 16]))
                        self._refuse(refused, counters, item.event.source, rejects[-1:])
                        counters.conflicts += isinstance(e, ConflictError)
                        continue
                    if new is None:
                        duplicates += 1
                        self._count(counters, item.event.source).duplicates += 1
                    else:
                        accepted.append(new)
                for action in submission.actions:
                    by = submission.source or submission.format
                    try:
                        actions.setdefault(firewall.completed(action), (number, by))
                    except BadRecordError as e:
                        rejects.append(Reject(submission.source, -1, e.reason, _encode(action)))
                        self._refuse(refused, counters, by, rejects[-1:])
                outcomes.append((len(accepted) - first, duplicates, rejects))
        offsets = {k: v for s in submissions for k, v in s.offsets.items()}
        first = self.manifest.count
        said = [(by, action) for action, (_, by) in actions.items()]
        plan = self.actions.plan(said, [a.event for a in accepted], first, self.layout, self.manifest, self.names)
        joined = [0] * len(submissions)
        self.stages.lap("admit")
        if accepted or offsets or plan or counters != self.counters:
            ends = list(accumulate(stored for stored, _, _ in outcomes))
            letters = self._keep_letters(refused, counters)
            self.stages.lap("sync")
            for hit in self._store(accepted, offsets, counters, letters, plan, damaged):
                # An event of this batch counts where it came from, one that was stored where the action came from.
                arrives = hit.seq >= first
                joined[bisect_right(ends, hit.seq - first) if arrives else actions[hit.waiting.action][0]] += 1
        waiting = self.actions.unmet
        return [Outcome(self.manifest.generation, *rest, n, waiting) for rest, n in zip(outcomes, joined, strict=True)]

    def _admit(
        self, item: FeaturedEvent, format_name: str, view: View, batch_ids: dict[bytes, bytes],
        damaged: dict[int, FeaturedEvent],
    ) -> _Accepted | None:  # fmt: skip
        """The completed event, or None for one that is stored already; into `damaged` if its record cannot be read.
        Raises BadRecordError, ConflictError."""
        event = complete(item, count=False)
        if len(event.event_id.encode()) > ID_BYTES_MAX or len(event.source.encode()) > SOURCE_BYTES_MAX:
            raise BadRecordError(f"event_id is over {ID_BYTES_MAX} or source over {SOURCE_BYTES_MAX} bytes")
        key, content = id_key(event.event_id, event.source), content_hash(item)
        known = batch_ids.get(key)
        again = False
        if known is None and (stored := view.identity(event.event_id, event.source)):
            seq, known = stored
            try:  # only what can be shown is acknowledged as stored
                again = seq < self.manifest.first_seq or view.head(seq) is None
            except CorruptionError:
                if known == content:
                    damaged[seq] = item
            known = None if again else known
        if known == content:
            return None
        if known is not None:
            raise ConflictError(f"event {event.event_id!r} is stored with other content; it was not changed")
        batch_ids[key] = content
        return _Accepted(key, event, item.features, item.raw, content, format_name, again)

    def _refuse(
        self, refused: dict[str, list[Reject]], counters: Counters, source: str, rejects: Sequence[Reject]
    ) -> None:
        if rejects:
            self._count(counters, source).rejected += len(rejects)
            refused.setdefault(counted_as(counters, source), []).extend(rejects)

    def _keep_letters(
        self, refused: Mapping[str, Sequence[Reject]], counters: Counters
    ) -> dict[str, dead_letters.Tallies]:
        """Append the dead letters, so that no commit counts one that is not there; the tallies of their sources. Raises
        NoSpaceError, OSError."""
        if not refused:
            return {}
        at = time.time_ns()
        rejects = [r for some in refused.values() for r in some]
        try:
            counters.letter_bytes = dead_letters.append(
                self.layout.dead_letters, rejects, at, counters.letter_bytes, self.catalog.cipher
            )
            failpoint("letters.appended")
        except OSError as e:
            say_if_full(e)
            raise
        return {source: dead_letters.tallied(self.letters.get(source, {}), r, at) for source, r in refused.items()}

    def _store(
        self, accepted: list[_Accepted], offsets: dict[bytes, bytes], counters: Counters,
        letters: dict[str, dead_letters.Tallies], plan: Plan, damaged: Mapping[int, FeaturedEvent],
    ) -> list[Hit]:  # fmt: skip
        """Commit all of it; what the plan's actions were newly said of."""
        lap = self.stages.lap
        names = self._with_names(accepted)
        events = [a.event for a in accepted]
        features = feature_table.unpack([a.features for a in accepted])
        overlay = self.tracker.overlay()
        if accepted:
            featurize(events, features, overlay, lambda: lap("features"))
            counters.late, counters.unplaced = overlay.late, overlay.unplaced
        lap("context")
        present = np.isfinite(features).sum(1)
        for event, n in zip(events, present.tolist(), strict=True):
            event.coverage = n
        columns = to_columns(events, [a.content for a in accepted], names)
        lap("append")
        vectors = {}
        for space, embedder in self.models.embedders.items():
            vectors[space] = embedder.embed(events, features)
            lap(space)
        first = self.manifest.count
        extents: list[Extent] = []
        given_up: dict[str, Any] = {}
        if accepted:
            extents, given_up = self._append(first, events, Rows(vectors, features, columns))
        failpoint("publish.synced")
        manifest = msgspec.structs.replace(
            self.manifest, generation=self.manifest.generation + 1, count=first + len(accepted),
            names_count=names.count, filled=self._filled(first + len(accepted)), **given_up,
        )  # fmt: skip
        checkpointed, context = self.checkpointed, b""
        dumping = self.tracker.dumping
        if dumping is None and checkpoint.due(self.manifest, self.checkpointed, self._checkpoint_bytes):
            dumping = self.tracker.begin_dump(first)
        if dumping is not None:
            if dumping.step(checkpoint.SLICE_BYTES + checkpoint.SLICE_EVENT_BYTES * len(accepted)):
                checkpointed, context = dumping.seq, dumping.whole()
            lap("checkpoint")
        with self.catalog.write() as batch:
            seqs = [seq_key(seq) for seq in range(first, first + len(accepted))]
            records = [
                join_record(_encode(a.event), blob, self._compress(a.raw))
                for a, blob in zip(accepted, feature_table.pack_rows(features), strict=True)
            ]
            batch.put_new("records", list(zip(seqs, records, strict=True)), append=True)
            for seq, item in damaged.items():
                batch.put("records", seq_key(seq), self._put_back(seq, item))
            for a in accepted:
                if a.again:
                    batch.delete("ids", a.key)
            ids = [(a.key, seq + a.content) for a, seq in zip(accepted, seqs, strict=True)]
            batch.put_new("ids", sorted(ids))  # random keys double the cost of a commit; sorted they do not
            counters.record_bytes += sum(map(len, records))
            for family, n in collections.Counter(e.family for e in events).items():
                counters.families[family] = counters.families.get(family, 0) + n
            for source, n in collections.Counter(e.source for e in events).items():
                self._count(counters, source).events += n
            for extent in extents:
                batch.put_extent(*extent)
            for key, vector in sorted(fresh_texts(self.models)):
                batch.put("texts", key, vector)
            for key, value in offsets.items():
                if value:
                    batch.put("offsets", key, value)
                else:
                    batch.delete("offsets", key)
            if names is not self.names:
                batch.put_names(names)
            if context:
                checkpoint.put(batch, checkpointed, context)
            covered = self._cover(batch, manifest, names, counters)
            for name, tallies in letters.items():
                dead_letters.put(batch, name, tallies)
            joined = self.actions.write(plan, batch)
            counters.actions_joined += len(joined)
            counters.actions_unmet += self.actions.left_alone(plan)
            counters.actions_cut += plan.cut
            counters.actions_waiting = self.actions.unmet_after(plan)
            batch.put_counters(counters)
            batch.put_manifest(manifest)
            failpoint("publish.before_commit")
            lap("records")
        failpoint("publish.committed")
        lap("commit")
        if context:
            self.tracker.dumping = None
        self.tracker.merge(overlay)
        lap("context")
        self.actions.adopt(plan)
        self.names, self.counters, self.checkpointed = names, counters, checkpointed
        self._checkpoint_bytes = len(context) or self._checkpoint_bytes
        self.coverage |= covered
        self.letters |= letters
        self.adopt(manifest)
        self.stages.stored(len(accepted))
        lap("publish")
        return joined

    def _put_back(self, seq: int, item: FeaturedEvent) -> bytes:
        """The record of a stored event again, from its source. Its family and its features with the context are those
        of its row; where that cannot be read, or was left empty, the context is missing, and the row is built again
        from the record (engine/maintain/scrub.py)."""
        event, rows = item.event, self.manifest.row_file_rows
        number, row = divmod(seq, rows)
        try:
            file = RowMap(self.layout.row_file(*self.manifest.row_file(number)), number, rows)
            known = not file.wrong(row, ()) and seq not in file.gone
        except (OSError, CorruptionError):
            known = False
        if known:
            features = file.features[row : row + 1]
            event.family = self.names.families[file.families[row]]
        else:
            features = feature_table.unpack([item.features])
            derive_features([event], features, self.tracker)
        event.coverage = int(np.isfinite(features).sum())
        log.warning("record %d was damaged and is put back: it came again", seq)
        return join_record(_encode(event), feature_table.pack_rows(features)[0], self._compress(item.raw))

    def _filled(self, count: int) -> dict[int, int]:
        """When row files were full, with those that become it when there are `count` events."""
        rows, now_ns = self.manifest.row_file_rows, time.time_ns()
        fresh = range(self.manifest.count // rows, count // rows)
        return {**self.manifest.filled, **dict.fromkeys(fresh, now_ns)} if fresh else self.manifest.filled

    def _cover(
        self, batch: Batch, manifest: Manifest, names: Names, counters: Counters,
        alive: Callable[[], None] = lambda: None, least: int = 0,
    ) -> dict[str, coverage.Coverage]:  # fmt: skip
        """Count and store what the sources fill, where enough events are not yet counted; what changed."""
        if manifest.count - counters.counted < (least or coverage.COUNT_EVENTS):
            return {}
        try:
            found = coverage.grown(self.layout, manifest, names, counters, self.coverage, counters.counted, alive)
        except (OSError, CorruptionError) as e:  # the row file is mended first; no event waits for that
            log.warning("%s; what the sources fill is counted later", e)
            return {}
        for source, value in found.items():
            coverage.put(batch, source, value)
        if not counters.counted:
            counters.uncounted = sum(manifest.purged.values())
        counters.uncounted += max(0, manifest.first_seq - counters.counted)
        counters.counted = manifest.count
        return found

    def count_coverage(self, alive: Callable[[], None], least: int = 0) -> None:
        """Where so many are not counted: the directory is older than the counting, a value of it is damaged, or some
        are about to be removed."""
        if self.manifest.count - self.counters.counted < (least or coverage.COUNT_EVENTS):
            return
        counters = msgspec.structs.replace(self.counters)
        with self.catalog.write() as batch:
            covered = self._cover(batch, self.manifest, self.names, counters, alive, least)
            batch.put_counters(counters)
        self.counters = counters
        self.coverage |= covered

    def _append(self, first: int, events: Sequence[Event], rows: Rows) -> tuple[list[Extent], dict[str, Any]]:
        """Write the rows from seq `first` on and sync them, in both versions during a switch: the extents written, and
        what changes in the manifest where the other version failed. Raises NoSpaceError, OSError."""
        try:
            extents = self._rows.append(self.manifest, self.manifest.row_file_rows, first, rows)
        except OSError as e:
            say_if_full(e)
            raise
        switch = self.manifest.switch
        if switch is not None:
            try:
                self._append_other(first, events, rows, switch)
            except (OSError, EngineError) as e:  # no event waits for a switch
                log.error("the switch to %s is given up, %s stays in use: %s", switch.to.model, self.manifest.model, e)
                return extents, self.manifest.given_up()
        return extents, {}

    def _append_other(self, first: int, events: Sequence[Event], rows: Rows, switch: Switch) -> None:
        assert self.other is not None
        vectors = {  # what a sentence becomes is the same in all versions (models.card_of)
            space: rows.vectors[space] if space == TextEmbedder.name else embedder.embed(events, rows.features)
            for space, embedder in self.other.embedders.items()
        }
        self._other_rows.append(switch.to, self.manifest.row_file_rows, first, rows._replace(vectors=vectors))
        failpoint("model.both")

    def _with_names(self, accepted: list[_Accepted]) -> Names:
        """The dictionary with this batch's new words; the same object where there are none."""
        families, sources = list(self.names.families), list(self.names.sources)
        known_families, known_sources = set(families), {name for name, _ in sources}
        for a in accepted:
            if a.event.family not in known_families:
                if len(families) < FAMILIES_MAX:
                    families.append(a.event.family)
                    known_families.add(a.event.family)
                else:
                    a.event.family = families[0]
            if a.event.source not in known_sources:
                if len(sources) >= SOURCES_MAX:
                    raise BadRequestError(f"there are {SOURCES_MAX} sources already; use fewer source names")
                sources.append((a.event.source, a.format))
                known_sources.add(a.event.source)
        names = Names(families, sources)
        return names if names.count != self.names.count else self.names

    @staticmethod
    def _count(counters: Counters, source: str) -> SourceCounters:
        return counters.sources.setdefault(counted_as(counters, source), SourceCounters())

    def adopt(self, manifest: Manifest) -> None:
        """It is committed."""
        self.manifest = manifest
        self.counter.value = manifest.generation
        failpoint("publish.bumped")

    # ---- what changes after the fact ------------------------------------------------------------------------------

    def annotate(self, name: str, label: str, by: str) -> int:
        """Give an event a label in a generation of its own, which is returned; the last LABEL_HISTORY_MAX of an event
        are kept. Raises NotFoundError."""
        if "\0" in label:
            raise BadRequestError("a label cannot hold a NUL character")
        now = time.time_ns()
        with self.catalog.write() as batch:
            seq = batch.find(name)
            if seq is None or seq < self.manifest.first_seq:
                raise NotFoundError(f"no event {name!r}; nothing was changed; `flowkin recent` lists some")
            old = batch.annotation(seq)
            new = msgspec.structs.replace(old or Annotation())
            new.label, new.labelled_by, new.labelled_at = label, by, now
            labels = [at for at, entry in enumerate(new.history) if entry[2] == "label"]
            dropped = set(labels[: max(0, len(labels) + 1 - LABEL_HISTORY_MAX)])
            kept = (entry for at, entry in enumerate(new.history) if at not in dropped)
            new.history = [*kept, (now, by, "label", label)]
            batch.put_annotation(seq, old, new)
            manifest = msgspec.structs.replace(self.manifest, generation=self.manifest.generation + 1)
            batch.put_manifest(manifest)
        failpoint("label.committed")
        self.adopt(manifest)
        return manifest.generation

    # ---- derived files and models ---------------------------------------------------------------------------------

    def swap_in(self, indexes: Sequence[IndexFile], sealed: Sequence[SealedRows] = ()) -> None:
        """Name new index files (in place, durable) in a new generation; they replace those that they cover, and those
        that reach below what is left. Not those that one which was merged meanwhile covers."""
        failpoint("index.built")
        named, begin = self.manifest.indexes, self.manifest.first_seq
        whole = [old for old in named if old.lo >= begin and old.file not in self.manifest.stale]
        indexes = [new for new in indexes if new.hi > begin and not any(old.covers(new) for old in whole)]
        kept = [old for old in whole if not any(new.covers(old) for new in indexes)]
        kept += [old for old in named if old not in whole and not any(new.overlaps(old) for new in indexes)]
        sealed = [s for s in sealed if s.number >= self.manifest.first]
        numbers = {s.number for s in sealed}
        left = {i.file for i in kept}
        self.commit_manifest(
            indexes=sorted([*kept, *indexes], key=lambda i: (i.space, i.lo)),
            stale=[file for file in self.manifest.stale if file in left],
            sealed=[*(s for s in self.manifest.sealed if s.number not in numbers), *sealed],
        )
        failpoint("index.committed")

    def drop_indexes(self, files: Sequence[str]) -> None:
        """Stop naming damaged index files; their rows are served exactly until they are indexed again."""
        gone = set(files)
        self.commit_manifest(
            indexes=[i for i in self.manifest.indexes if i.file not in gone],
            stale=[file for file in self.manifest.stale if file not in gone],
        )

    def replace_rows(self, number: int, revision: int, sealed: Sequence[SealedRows]) -> None:
        """Name a row file that was built again; the indexes over its rows are made anew."""
        failpoint("rows.built")
        self.close()
        lo, hi = number * self.manifest.row_file_rows, (number + 1) * self.manifest.row_file_rows
        left = [i for i in self.manifest.indexes if i.hi <= lo or hi <= i.lo]
        self.commit_manifest(
            revisions={**self.manifest.revisions, number: revision},
            sealed=[*(s for s in self.manifest.sealed if s.number != number), *sealed],
            indexes=left, stale=[file for file in self.manifest.stale if file in {i.file for i in left}],
        )  # fmt: skip
        failpoint("rows.committed")

    def embed_also(self, models: ModelSet, switch: Switch) -> None:
        """From the next event on write rows in the version of a switch, too. Its row file is there on return, so that
        nobody else makes it. Raises OSError, CorruptionError."""
        number = max(self.manifest.first, switch.since // self.manifest.row_file_rows)
        self._other_rows.open(switch.to, self.manifest.row_file_rows, number)
        self.other = models

    def embed_alone(self) -> None:
        """There is no switch any more."""
        self._other_rows.close()
        self.other = None

    def use(self, models: ModelSet, **changes: object) -> None:
        """Embed with another version from now on, by a commit of these changes of the manifest."""
        self.commit_manifest(**changes)
        self._rows.close()
        self.models = models
        self.embed_alone()

    def checkpoint(self) -> None:
        """Store the tracker's state, so that the next start has nothing to replay. Raises NoSpaceError, OSError: the
        one before is still the stored one."""
        with self.catalog.write() as batch:
            checkpoint.put(batch, self.manifest.count, self.tracker.dump())
        self.checkpointed = self.manifest.count
        self.tracker.dumping = None  # it is of before

    def know_cards(self) -> None:
        """Of the versions that there are: from now on a card that is another one is damaged."""
        new: dict[bytes, bytes] = {}
        with self.catalog.read() as view:
            for version in embed_models.versions(self.layout.models):
                try:
                    if not view.card(version):
                        new[card_key(version)] = embed_models.card_sha256(self.layout.model(version))
                except EngineError as e:
                    log.error("%s", str(e))
        if new:
            with self.catalog.write() as batch:
                for key, digest in new.items():
                    batch.put("meta", key, digest)

    def commit_manifest(self, **changes: object) -> None:
        """A generation of its own. Raises NoSpaceError, OSError: nothing was changed."""
        manifest = msgspec.structs.replace(self.manifest, generation=self.manifest.generation + 1, **changes)
        with self.catalog.write() as batch:
            batch.put_manifest(manifest)
        self.adopt(manifest)
