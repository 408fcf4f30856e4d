"""Mend damaged values of the catalog: what follows from other values is written again, what does not is named.

Always true
  - Records and annotations follow from nothing: they stay as they are, refused whenever they are asked for, until a
    backup or their source brings them back. Of an event that left on purpose nothing is missed. Everything else follows
    from them, or from what the writing process holds in memory, or is only remembered to save work.
  - Nothing is mended where the structure of the catalog is damaged (Catalog.damage): a write on top might destroy more.
  - One commit for each table, without a generation: answers are the same, or more complete.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from engine.embed.models import CARD
from engine.errors import CorruptionError
from engine.store import checkpoint, coverage, dead_letters
from engine.store.catalog import Batch, View, card_key, id_key, seq_key
from engine.store.manifest import Manifest
from engine.store.publish import Publisher, content_hash
from engine.store.rebuild import CHUNK_ROWS
from ipc.event import Annotation, Event, FeaturedEvent

log = logging.getLogger(__name__)

PRIMARY = ("records", "annotations")  # tables

Alive = Callable[[], None]

_decode_event = msgspec.msgpack.Decoder(Event).decode


def values(
    publisher: Publisher, bad: Sequence[tuple[str, bytes]], alive: Alive = lambda: None
) -> list[tuple[str, bytes]]:
    """Write again what can be of these (table, key); what cannot. `alive` is called in long steps. Raises NoSpaceError,
    OSError, CorruptionError."""
    tables: dict[str, list[bytes]] = {}
    for table, key in bad:
        tables.setdefault(table, []).append(key)
    left: list[tuple[str, bytes]] = []
    for table, keys in tables.items():
        if table in PRIMARY:
            with publisher.catalog.read() as view:
                left += [(table, key) for key in keys if not _gone(publisher.manifest, view, key)]
            continue
        with publisher.catalog.write() as batch:
            kept = list(_MENDERS[table](publisher, batch, keys, alive))
        left += [(table, key) for key in kept]
        if len(keys) > len(kept):
            log.warning("catalog %s: %d damaged values are mended", table, len(keys) - len(kept))
    return left


def _gone(manifest: Manifest, view: View, key: bytes) -> bool:
    """Did this event leave meanwhile, by retention or a purge?"""
    seq = int.from_bytes(key, "big")
    purged = seq // manifest.row_file_rows in manifest.purged and not view.has("records", key)
    return len(key) == 8 and (seq < manifest.first_seq or purged)


def _forget(table: str, publisher: Publisher, batch: Batch, keys: Sequence[bytes], alive: Alive) -> Iterator[bytes]:
    for key in keys:
        batch.delete(table, key)
    yield from ()


def _tracker(publisher: Publisher, batch: Batch, keys: Sequence[bytes], alive: Alive) -> Iterator[bytes]:
    yield from _forget("tracker", publisher, batch, keys, alive)
    checkpoint.put(batch, publisher.manifest.count, publisher.tracker.dump())  # newer than `checkpointed`: no harm


def _ids(publisher: Publisher, batch: Batch, keys: Sequence[bytes], alive: Alive) -> Iterator[bytes]:
    """Identities from the records. The hash of an event that came without a source record is not known any more: sent
    again it is a conflict, and still not stored twice."""
    yield from _forget("ids", publisher, batch, keys, alive)
    for seq in range(publisher.manifest.first_seq, publisher.manifest.count):
        if seq % CHUNK_ROWS == 0:
            alive()
        try:
            record = batch.record(seq)
        except CorruptionError:
            continue
        if record is None:
            continue
        event = _decode_event(record.head)
        key = id_key(event.event_id, event.source)
        if batch.get("ids", key) is None:
            content = content_hash(FeaturedEvent(event, record.features, record.raw))
            batch.put("ids", key, seq_key(seq) + content)


def _marks(publisher: Publisher, batch: Batch, keys: Sequence[bytes], alive: Alive) -> Iterator[bytes]:
    """The index of annotations from these."""
    yield from _forget("marks", publisher, batch, keys, alive)
    notes: list[tuple[int, Annotation]] = []
    for key in list(batch.keys("annotations")):
        try:
            note = batch.annotation(int.from_bytes(key, "big"))
        except CorruptionError:
            continue
        if note is not None:
            notes.append((int.from_bytes(key, "big"), note))
    for seq, note in notes:
        batch.put_marks(seq, None, note)


def _meta(publisher: Publisher, batch: Batch, keys: Sequence[bytes], alive: Alive) -> Iterator[bytes]:
    for key in keys:
        what, _, name = key.partition(b"\0")
        source = name.decode("utf-8", "replace")
        match what:
            case b"manifest":
                batch.put_manifest(publisher.manifest)
            case b"names":
                batch.put_names(publisher.names)
            case b"counters":
                batch.put_counters(publisher.counters)
            case b"coverage" if source in publisher.coverage:
                coverage.put(batch, source, publisher.coverage[source])
            case b"letters" if source in publisher.letters:
                dead_letters.put(batch, source, publisher.letters[source])
            case b"card" if source == publisher.models.version:
                batch.put("meta", card_key(source), bytes.fromhex(publisher.models.sha256[CARD]))
            case b"action":
                yield key  # a firewall said it once: its log has it
                batch.delete("meta", key)
            case _:  # of a key that is damaged itself, or of what comes again by itself
                batch.delete("meta", key)


_MENDERS: dict[str, Callable[[Publisher, Batch, Sequence[bytes], Alive], Iterator[bytes]]] = {
    "ids": _ids, "marks": _marks, "meta": _meta, "tracker": _tracker,
    # sentences are embedded again, followed files read again (what is stored is known), extents only said
    "texts": partial(_forget, "texts"), "offsets": partial(_forget, "offsets"), "extents": partial(_forget, "extents"),
}  # fmt: skip
