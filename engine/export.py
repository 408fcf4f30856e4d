"""Stored events out again: NDJSON, Parquet, and the files of the older C++ system.

Always true
  - NDJSON and Parquet come from a running engine through its query socket; the legacy files are read from the data
    directory itself. Nothing of the store is changed.
  - NDJSON and Parquet are written to an open file; that it is there whole or not at all is its owner's business. The
    legacy files appear under their names only when they are whole.
  - Legacy: position i of chronos.faiss, sbert.faiss and attack.faiss is the event with faiss_idx i in metadata.db.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec
import numpy as np

from engine.embed.base import DIMS, SPACES
from engine.errors import CorruptionError, NotReadyError, SourceError
from engine.features import NAMES, unpack
from engine.layout import Layout
from engine.sources.ndjson import dump
from engine.store.catalog import Catalog
from engine.store.cipher import Cipher
from engine.store.rows import RowMap
from ipc.errors import BadRequestError
from ipc.event import Annotation, Event
from ipc.messages import Filter, Stored

if TYPE_CHECKING:
    from ipc.client import Client

PAGE_EVENTS = 500
LEGACY_ROWS = 1_024

LEGACY_SCHEMA = """
CREATE TABLE events(
  faiss_idx INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, classification TEXT NOT NULL,
  discrepancy_score REAL NOT NULL, timestamp INTEGER NOT NULL, trace_id TEXT, source_ip TEXT, dest_ip TEXT,
  timestamp_ms INTEGER, pb_artifact_path TEXT, firewall_action TEXT, firewall_timestamp INTEGER, firewall_score REAL,
  created_at INTEGER);
CREATE INDEX idx_event_id ON events(event_id);
CREATE INDEX idx_classification ON events(classification);
CREATE INDEX idx_discrepancy ON events(discrepancy_score);
CREATE INDEX idx_timestamp ON events(timestamp);
CREATE INDEX idx_trace_id ON events(trace_id);
CREATE INDEX idx_source_ip ON events(source_ip);
CREATE INDEX idx_dest_ip ON events(dest_ip);
"""


def stored_events(client: Client, wanted: Filter | None = None) -> Iterator[Stored]:
    """The events of the engine that pass a filter, in order of seq, with features and raw record."""
    after, limit = -1, PAGE_EVENTS
    while True:
        try:
            found = client.list(filter=wanted, after_seq=after, limit=limit, features=True, raw=True)
        except BadRequestError:
            if limit == 1:
                raise
            limit //= 2  # long records: so many do not fit into a reply
            continue
        limit = min(PAGE_EVENTS, 2 * limit)
        yield from found.events
        if found.next_seq < 0:
            return
        after = found.next_seq


def export_ndjson(
    client: Client, file: IO[bytes], wanted: Filter | None = None, advance: Callable[[int], None] = lambda n: None
) -> int:  # fmt: skip
    """One event a line, with its 105 features by name and its annotation. Returns how many."""
    n = 0
    for stored in stored_events(client, wanted):
        assert isinstance(stored.event, Event)
        note = stored.annotation if isinstance(stored.annotation, Annotation) else None
        file.write(dump(stored.event, unpack([stored.features])[0], note, stored.raw))
        n += 1
        advance(1)
    return n


def export_parquet(
    client: Client, file: IO[bytes], wanted: Filter | None = None, advance: Callable[[int], None] = lambda n: None
) -> int:  # fmt: skip
    """One row an event: its fields, a column for each feature, label and firewall action. Returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number, real = pa.string(), pa.int64(), pa.float64()
    fields = {
        "seq": number, "event_id": text, "source": text, "sensor": text, "kind": text, "ts": pa.timestamp("ns", "UTC"),
        "ts_start": pa.timestamp("ns", "UTC"), "src_ip": text, "dst_ip": text, "src_port": number, "dst_port": number,
        "proto": number, "classification": text, "family": text, "family_raw": text, "fast_score": real,
        "ml_score": real, "final_score": real, "discrepancy": real, "decision": text, "trace_id": text,
        "community_id": text, "text": text, "coverage": number, "label": text, "labelled_by": text,
        "firewall_action": text,
    }  # fmt: skip
    schema = pa.schema([*fields.items(), *((name, pa.float32()) for name in NAMES)])
    n = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        page: list[Stored] = []

        def flush() -> None:
            rows = [_flat(stored) for stored in page]
            columns: list[Any] = [pa.array([row[name] for row in rows], kind) for name, kind in fields.items()]
            features = unpack([stored.features for stored in page])
            columns += [pa.array(features[:, i]) for i in range(len(NAMES))]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            page.clear()

        for stored in stored_events(client, wanted):
            page.append(stored)
            n += 1
            advance(1)
            if len(page) == PAGE_EVENTS:
                flush()
        if page:
            flush()
    return n


def _flat(stored: Stored) -> dict[str, Any]:
    assert isinstance(stored.event, Event)
    note = stored.annotation if isinstance(stored.annotation, Annotation) else Annotation()
    return {
        "seq": stored.seq, **msgspec.structs.asdict(stored.event), "label": note.label, "labelled_by": note.labelled_by,
        "firewall_action": note.firewall_action,
    }  # fmt: skip


def export_legacy(
    layout: Layout, folder: Path, advance: Callable[[int], None] = lambda n: None, *, cipher: Cipher | None = None
) -> int:
    """chronos.faiss, sbert.faiss, attack.faiss (plain flat L2) and metadata.db (SQLite, WAL) in `folder`.

    timestamp is ns, timestamp_ms ms since 1970 UTC, firewall_timestamp and created_at s. Identity there is event_id
    alone: an id that a second source bears again is written source/event_id. Raises SourceError where `folder` holds
    one of the files already.
    """
    import faiss

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = [*(f"{space}.faiss" for space in SPACES), "metadata.db"]
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise SourceError(f"{folder} holds {', '.join(there)} already; nothing was written; name an empty directory")
    catalog = Catalog(layout.catalog, write=False, map_size=1 << 30, cipher=cipher)
    mark = secrets.token_hex(4)
    try:
        with catalog.read() as view:
            manifest = view.manifest()
        if manifest is None:
            raise NotReadyError(f"{layout.data_dir} is not born yet; start the engine once")
        with contextlib.closing(sqlite3.connect(folder / f"metadata.db.{mark}")) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(LEGACY_SCHEMA)
            position = 0
            for lo in range(manifest.first_seq, manifest.count, LEGACY_ROWS):
                hi = min(lo + LEGACY_ROWS, manifest.count)
                with catalog.read() as view, db:
                    for seq, record in view.records(lo, hi):
                        event = msgspec.msgpack.decode(record.head, type=Event)
                        _legacy_row(db, position, event, view.annotation(seq) or Annotation())
                        position += 1
                advance(hi - lo)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for space in SPACES:
            index = faiss.IndexFlatL2(DIMS[space])
            for number in manifest.numbers:
                rows = RowMap(layout.row_file(*manifest.row_file(number)), number, manifest.row_file_rows)
                stored = min(rows.rows, manifest.count - rows.first_seq)
                if rows.bad_rows(stored):
                    raise CorruptionError(str(rows.path), "rows disagree with their checksums; nothing was written; "
                                          "restart the engine, it builds them again")  # fmt: skip
                vectors = rows.vectors[space][:stored]
                if number in manifest.purged:
                    vectors = np.delete(vectors, rows.gone - rows.first_seq, 0)
                index.add(np.ascontiguousarray(vectors))
            faiss.write_index(index, str(folder / f"{space}.faiss.{mark}"))
        for name in names:
            (folder / f"{name}.{mark}").rename(folder / name)
        return position
    finally:
        catalog.close()
        for path in folder.glob(f"*.{mark}*"):
            path.unlink()


def _legacy_row(db: sqlite3.Connection, position: int, event: Event, note: Annotation) -> None:
    taken = db.execute("SELECT 1 FROM events WHERE event_id = ?", (event.event_id,)).fetchone()
    event_id = f"{event.source}/{event.event_id}" if taken else event.event_id
    db.execute(
        "INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            position, event_id, event.classification, event.discrepancy, event.ts, event.trace_id or None,
            event.src_ip or None, event.dst_ip or None, event.ts // 1_000_000, None, note.firewall_action or None,
            note.firewall_ts // 1_000_000_000 or None, event.final_score, event.ts // 1_000_000_000,
        ),
    )  # fmt: skip
