"""Retention: the oldest row files leave whole, by age and by size.

Always true
  - Events leave in order of arrival, a full row file at a time; the one that is written to stays. `first` of the
    manifest only grows, and a seq below it is never given again.
  - From the commit on that moves `first`, no reader sees what lies before it. What is left of it in the catalog is no
    event any more: an identity that comes again is new.
  - An event is as old as its row file: since the last event of that was stored.
In this order, each step durable before the next
  1. the tracker's state is stored, if the stored one would need events that leave (engine/store/recover.py)
  2. one commit: `first`, without the row files before it and the indexes over these alone  <- they are gone; an index
     that reaches below is searched without them until it is replaced (engine/store/tiers.py)
  3. row files and indexes are unlinked; a reader that has them open gives them up with its next generation
  4. slices of SLICE_EVENTS, a commit each: records, identities, annotations, marks, extents, remembered sentences
A death after 2: the next start unlinks what nothing names. After any slice: the records that are left below `first` say
where to go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from engine.config import Retention
from engine.embed.text import TextEmbedder, memo_key
from engine.errors import CorruptionError
from engine.failpoint import failpoint
from engine.features import unpack
from engine.layout import Layout
from engine.limits import FORMAT_REMOVED
from engine.store import gc
from engine.store.catalog import Batch, View, id_key, seq_key
from engine.store.counters import Counters
from engine.store.manifest import Embedded, Manifest
from engine.store.publish import Publisher
from engine.store.record import Record
from ipc.event import Event

SLICE_EVENTS = 64  # deleted in one commit of 2.5 ms, between which events are stored
DAY_NS = 86_400_000_000_000

Named = TypeVar("Named", Manifest, Embedded)
_decode_event = msgspec.msgpack.Decoder(Event).decode


# ---- what is due --------------------------------------------------------------------------------------------------
def due(layout: Layout, view: View, manifest: Manifest, settings: Retention, now_ns: int) -> int:
    """The number of the first row file that stays."""
    first, full = manifest.first, manifest.count // manifest.row_file_rows
    if settings.days:
        while first < full and filled_ns(layout, manifest, first) <= now_ns - settings.days * DAY_NS:
            first += 1
    if settings.bytes_max and first < full:
        taken = taken_bytes(layout, view, manifest)
        each = taken * manifest.row_file_rows // max(1, manifest.events)  # what a row file and its records take
        over = taken - each * (first - manifest.first) - settings.bytes_max
        first += min(full - first, max(0, -(-over // max(1, each))))
    return first


def filled_ns(layout: Layout, manifest: Manifest, number: int) -> int:
    """When row file `number` was full; of one that an older flowkin filled, when it was last written to."""
    known = manifest.filled.get(number)
    return layout.row_file(*manifest.row_file(number)).stat().st_mtime_ns if known is None else known


def taken_bytes(layout: Layout, view: View, manifest: Manifest) -> int:
    """By what is there to stay: row files and indexes of the model in use, and the pages of the catalog that hold
    something, without the share in them of what left already and is only being removed: it would cost events that are
    to stay. Nor does what is being built count, which takes the place of something, nor the rows of another model."""
    names, taken = gc.named(layout, msgspec.structs.replace(manifest, kept=None, switch=None)), 0
    for path in (folder / name for folder in (layout.rows, layout.indexes) for name in names):
        with contextlib.suppress(FileNotFoundError):
            taken += path.lstat().st_blocks * 512
    first_seq = manifest.first_seq
    for index in manifest.indexes:
        taken -= index.size * max(0, first_seq - index.lo) // (index.hi - index.lo)
    left, used = max(0, first_seq - view.oldest()), view.used_bytes()
    return taken + used - used * left // max(1, left + manifest.events)


# ---- leaving ------------------------------------------------------------------------------------------------------
def hide(publisher: Publisher, first: int) -> int:
    """The row files before `first` leave; how many events. Raises NoSpaceError, OSError: nothing was changed."""
    publisher.count_coverage(lambda: None, least=1)  # what left stays counted
    old = publisher.manifest
    first_seq = first * old.row_file_rows
    if publisher.checkpointed < first_seq:
        publisher.checkpoint()
    kept, switch = old.kept, old.switch
    if kept is not None:
        kept = _without(kept, first, first_seq) if kept.count >= first_seq else None
    if switch is not None:
        to = _without(switch.to, first, first_seq)
        switch = msgspec.structs.replace(switch, to=msgspec.structs.replace(to, count=max(to.count, first_seq)))
    now = _without(old, first, first_seq)
    publisher.commit_manifest(
        first=first, revisions=now.revisions, sealed=now.sealed, indexes=now.indexes, kept=kept, switch=switch,
        filled={n: at for n, at in old.filled.items() if n >= first},
        purged={n: rows for n, rows in old.purged.items() if n >= first},
        stale=[file for file in old.stale if file in {i.file for i in now.indexes}],
        format_version=max(old.format_version, FORMAT_REMOVED),
    )  # fmt: skip
    failpoint("leave.hidden")
    gc.release(publisher.layout, old, publisher.manifest)
    failpoint("leave.unlinked")
    return old.events - publisher.manifest.events


def _without(of: Named, first: int, first_seq: int) -> Named:
    """What it names, but for the row files before `first` and the indexes over these alone."""
    return msgspec.structs.replace(
        of, revisions={n: r for n, r in of.revisions.items() if n >= first},
        sealed=[s for s in of.sealed if s.number >= first], indexes=[i for i in of.indexes if i.hi > first_seq],
    )  # fmt: skip


def sweep(publisher: Publisher) -> int:
    """Delete one slice of what left; how many seqs it was, 0 where nothing is left. Raises NoSpaceError, OSError."""
    manifest = publisher.manifest
    with publisher.catalog.read() as view:
        lo = view.oldest()
    hi = min(lo + SLICE_EVENTS, manifest.first_seq)
    if lo >= hi:
        return 0
    counters = msgspec.structs.replace(publisher.counters, families=dict(publisher.counters.families))
    with publisher.catalog.write() as batch:
        forget(publisher, batch, range(lo, hi), counters)
        batch.put_counters(counters)
    publisher.counters = counters
    failpoint("leave.swept")
    return hi - lo


def forget(
    publisher: Publisher, batch: Batch, seqs: Sequence[int], counters: Counters, *, extents: bool = True
) -> None:
    """Delete all that the catalog holds of these events, and count them off; extents, too, where their rows go. A
    sentence that other events say as well is embedded again when it next comes. A value that cannot be read costs a
    look at every identity, or at every mark; the family and size of such a record stay counted, its sentence stays."""
    events: list[Event] = []
    records: list[Record] = []
    nameless: set[bytes] = set()  # keys of records that do not say any more whose they are,
    unsaid: set[bytes] = set()  # and of annotations that do not say what they were
    for seq in seqs:
        key, record, note = seq_key(seq), None, None
        try:  # what cannot be read leaves no less
            note = batch.annotation(seq)
        except CorruptionError:
            unsaid.add(key)
        try:
            record = batch.record(seq)
        except CorruptionError:
            nameless.add(key)
        if record is not None:
            event = _decode_event(record.head)
            events.append(event)
            records.append(record)
            counters.record_bytes -= record.size
            counters.families[event.family] = counters.families.get(event.family, 0) - 1
            try:
                identity = batch.identity(event.event_id, event.source)
            except CorruptionError:  # it may be that of an event that came again, which is then no duplicate next time
                identity = seq, b""
            if identity is not None and identity[0] == seq:  # it may have come again
                batch.delete("ids", id_key(event.event_id, event.source))
        batch.delete("records", key)
        if extents:
            batch.delete("extents", key)
        batch.delete_annotation(seq, note)
    for name in list(batch.names_of(nameless)) if nameless else ():
        batch.delete("ids", name)
    for mark in [mark for mark in batch.keys("marks") if mark[-8:] in unsaid] if unsaid else ():
        batch.delete("marks", mark)
    counters.families = {family: n for family, n in counters.families.items() if n > 0}
    text = publisher.models.embedders[TextEmbedder.name]
    if records and isinstance(text, TextEmbedder):
        features = unpack([r.features for r in records])
        _forget_texts(batch, {text.sentence(e, f) for e, f in zip(events, features, strict=True)})


def _forget_texts(batch: Batch, sentences: Iterable[str]) -> None:
    for key in sorted(map(memo_key, sentences)):
        batch.delete("texts", key)


def retain(publisher: Publisher, settings: Retention) -> int:
    """Let what is due leave; how many events."""
    with publisher.catalog.read() as view:
        first = due(publisher.layout, view, publisher.manifest, settings, time.time_ns())
    return hide(publisher, first) if first > publisher.manifest.first else 0
