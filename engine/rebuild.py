"""A row file again from the records: after damage, and for another model.

Always true
  - Records and models are enough: the same seqs get the same rows, byte for byte in columns and features.
  - The file appears under its name only when it is whole and durable; a file that is mapped is never written.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from engine.catalog import Catalog, Record
from engine.columns import to_columns
from engine.embed.base import ModelSet
from engine.errors import CorruptionError
from engine.features import unpack
from engine.files import TMP_SUFFIX, sync_directory
from engine.publish import content_hash
from engine.rows import Rows, RowWriter
from ipc.event import Event, FeaturedEvent

CHUNK_ROWS = 1_024
_decode_event = msgspec.msgpack.Decoder(Event).decode


def rows_of(catalog: Catalog, models: ModelSet, lo: int, hi: int) -> Rows:
    """The rows of seqs [lo, hi) from their records. Raises CorruptionError where a record is missing or damaged."""
    records: list[Record] = []
    contents: list[bytes] = []
    events: list[Event] = []
    with catalog.read() as view:
        names = view.names()
        for seq, record in view.records(lo, hi):
            if seq != lo + len(records):
                break
            event = _decode_event(record.head)
            known = view.identity(event.event_id, event.source)
            records.append(record)
            events.append(event)
            contents.append(known[1] if known else content_hash(FeaturedEvent(event, record.features, record.raw)))
    if len(records) != hi - lo:
        raise CorruptionError(f"catalog records[{lo + len(records)}]", "the record is not there; restore a backup")
    features = unpack([r.features for r in records])
    vectors = {space: e.embed(events, features) for space, e in models.embedders.items()}
    return Rows(vectors, features, to_columns(events, contents, names))


def rebuild(catalog: Catalog, models: ModelSet, path: Path, number: int, rows: int, count: int) -> None:
    """Make row file `number` (of `rows` rows, the first `count` of them stored) at `path`. Raises OSError,
    CorruptionError; then there is nothing at `path` that was not there before."""
    tmp = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TMP_SUFFIX}")
    writer = RowWriter(tmp, number, rows)
    try:
        for at in range(0, count, CHUNK_ROWS):
            n = min(CHUNK_ROWS, count - at)
            first = number * rows + at
            writer.write(at, rows_of(catalog, models, first, first + n))
        writer.sync()
        tmp.rename(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    finally:
        writer.close()
    sync_directory(path.parent)
