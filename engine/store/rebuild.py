"""A row file again from the records: after damage, and for another model.

Always true
  - Records and models are enough: the same seqs get the same rows, byte for byte in columns and features.
  - A damaged record costs its own row only: that is left empty, and no answer can show it, for want of the record;
    the scrub has it built again when the record is back.
  - The file appears under its name only when it is whole and durable; a file that is mapped is never written.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine import features as feature_table
from engine.embed.base import ModelSet
from engine.errors import CorruptionError
from engine.files import TMP_SUFFIX, sync_directory
from engine.store.catalog import Catalog, View
from engine.store.columns import to_columns
from engine.store.publish import content_hash
from engine.store.record import Record
from engine.store.rows import Rows, RowWriter, empty_rows
from ipc.event import Event, FeaturedEvent

log = logging.getLogger(__name__)

CHUNK_ROWS = 1_024
_decode_event = msgspec.msgpack.Decoder(Event).decode


def rows_of(catalog: Catalog, models: ModelSet, lo: int, hi: int) -> Rows:
    """The rows of seqs [lo, hi) from their records; empty where a record is missing or damaged."""
    at: list[int] = []
    records: list[Record] = []
    contents: list[bytes] = []
    events: list[Event] = []
    with catalog.read() as view:
        names, manifest = view.names(), view.manifest()
        purged = {} if manifest is None else manifest.purged
        for seq in range(lo, hi):
            try:
                record = view.record(seq)
                if record is None and manifest is not None and seq // manifest.row_file_rows in purged:
                    continue
                if record is None:
                    raise CorruptionError(
                        f"catalog records[{seq}]",
                        "the record is not there; `flowkin backup restore BACKUP DIR` brings it back",
                    )
            except CorruptionError as e:
                log.error("row %d is left empty: %s", seq, e)
                continue
            event = _decode_event(record.head)
            at.append(seq - lo)
            records.append(record)
            events.append(event)
            contents.append(_content(view, event, record))
    features = feature_table.unpack([r.features for r in records])
    out = empty_rows(hi - lo)
    if at:
        for space, embedder in models.embedders.items():
            out.vectors[space][at] = embedder.embed(events, features)
        out.features[at] = features
        out.columns[at] = to_columns(events, contents, names)
    return out


def _content(view: View, event: Event, record: Record) -> bytes:
    """The hash of the source record, as its identity has it."""
    try:
        known = view.identity(event.event_id, event.source)
    except CorruptionError as e:
        log.error("%s", e)
        known = None
    return known[1] if known else content_hash(FeaturedEvent(event, record.features, record.raw))


def fill(
    catalog: Catalog, models: ModelSet, writer: RowWriter, first: int, count: int,
    alive: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Write rows [first, count) of a row file from their records; durable on return. No reader may look at those rows.
    Raises OSError."""
    for at in range(first, count, CHUNK_ROWS):
        alive()
        seq, n = writer.number * writer.rows + at, min(CHUNK_ROWS, count - at)
        writer.write(at, rows_of(catalog, models, seq, seq + n))
    writer.sync()


def rebuild(
    catalog: Catalog, models: ModelSet, path: Path, number: int, rows: int, count: int,
    alive: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Make row file `number` (of `rows` rows, the first `count` of them stored) at `path`. Raises OSError;
    then there is nothing at `path` that was not there before."""
    tmp = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TMP_SUFFIX}")
    writer = RowWriter(tmp, number, rows)
    try:
        fill(catalog, models, writer, 0, count, alive)
        tmp.rename(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    finally:
        writer.close()
    sync_directory(path.parent)
