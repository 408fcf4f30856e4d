"""Stored events out again."""

from __future__ import annotations

import base64
import io
import json
import sqlite3
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from cli.files import whole
from engine.embed.base import SPACES
from engine.errors import CorruptionError, SourceError
from engine.export import PAGE_EVENTS, export_legacy, export_ndjson, export_parquet, stored_events
from engine.features import NAMES
from engine.sources.base import SourceSpec
from engine.sources.ndjson import NdjsonAdapter
from engine.store.rows import _offsets
from ipc.errors import BadRequestError
from ipc.messages import ErrorCode, Found, Stored
from tests.conftest import FILLED
from tests.engine_fixture import Engine
from tests.events import T0, blocked, make, several
from tests.store_fixture import ROWS, Store, flip


def test_ndjson_comes_in_again_as_the_same_events(filled: Engine) -> None:
    out = io.BytesIO()
    assert export_ndjson(filled.client(), out) == FILLED
    adapter = NdjsonAdapter(SourceSpec("x"))
    parsed = adapter.feed(out.getvalue(), 0)
    rest = adapter.finish()
    events = [*parsed.events, *rest.events]
    assert [*parsed.rejects, *rest.rejects] == []
    assert [e.event.event_id for e in events] == [f"e{n:06d}" for n in range(FILLED)]
    assert {e.event.source for e in events} == {"test"}
    stored = list(stored_events(filled.client()))
    for one, item in zip(stored, events, strict=True):
        assert item.features == one.features


def test_a_filter_leaves_out_what_does_not_pass(filled: Engine, tmp_path: Path) -> None:
    """Under the words of `flowkin list`; what is left is what that lists."""
    ports = sorted({event.dst_port for stored in stored_events(filled.client()) if (event := stored.event)})
    given = ("--dst-port", str(ports[0]), "--until", "2100-01-01")
    listed = [event["event_id"] for event in filled.json("list", "--all", *given)["events"]]
    assert 0 < len(listed) < FILLED
    lines, table = tmp_path / "some.ndjson", tmp_path / "some.parquet"
    assert filled.json("export", "--ndjson", lines, *given)["events"] == len(listed)
    assert [json.loads(line)["event_id"] for line in lines.read_text().splitlines()] == listed
    filled.json("export", "--parquet", table, *given)
    assert pq.read_table(table)["event_id"].to_pylist() == listed


def test_parquet_has_a_row_an_event_and_a_column_a_feature(filled: Engine, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    advanced: list[int] = []
    with whole(path) as file:
        assert export_parquet(filled.client(), file, advance=advanced.append) == FILLED == sum(advanced)
    table = pq.read_table(path)
    assert table.num_rows == FILLED
    assert set(NAMES) <= set(table.column_names)
    assert table["event_id"][7].as_py() == "e000007"
    assert table["dst_port"].to_pylist()[:4] == [80, 22, 443, 53]
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


def test_long_records_are_asked_for_in_smaller_pages() -> None:
    """500 records do not fit into one reply when they are long: an export asks for fewer and goes on."""
    asked: list[int] = []

    class Client:
        def list(self, *, filter: None, after_seq: int, limit: int, features: bool, raw: bool) -> Found:
            asked.append(limit)
            if limit > 60:
                raise BadRequestError(ErrorCode.BAD_REQUEST, "the answer is too long")
            last = min(after_seq + limit, 299)
            events = [Stored(n, make(n).event) for n in range(after_seq + 1, last + 1)]
            return Found(1, 1, events, [], last if last < 299 else -1)

    found = list(stored_events(Client()))  # type: ignore[arg-type]
    assert [s.seq for s in found] == list(range(300))
    assert asked[0] == PAGE_EVENTS


def test_one_record_that_fits_into_no_reply_is_an_error() -> None:
    class Client:
        def list(self, **more: object) -> Found:
            raise BadRequestError(ErrorCode.BAD_REQUEST, "the answer is too long")

    with pytest.raises(BadRequestError):
        list(stored_events(Client()))  # type: ignore[arg-type]


def test_legacy_files_hold_what_the_store_holds(store: Store, tmp_path: Path) -> None:
    store.publish([*several(100), make(3, source="elsewhere")])
    store.publish([], actions=[blocked(5)])
    store.catalog.env.sync()
    folder = tmp_path / "out"
    store.snapshots.close()
    store.publisher.close()
    expected = {s: store.files()[0].vectors[s].copy() for s in SPACES}
    store.catalog.close()  # LMDB is open once a process
    assert export_legacy(store.layout, folder) == 101
    assert sorted(p.name for p in folder.iterdir()) == ["attack.faiss", "chronos.faiss", "metadata.db", "sbert.faiss"]
    for space in SPACES:
        index = faiss.read_index(str(folder / f"{space}.faiss"))
        assert index.ntotal == 101
        assert np.array_equal(index.reconstruct_n(0, ROWS), expected[space])
    with sqlite3.connect(folder / "metadata.db") as db:
        rows = db.execute("SELECT faiss_idx, event_id, timestamp, firewall_action FROM events ORDER BY 1").fetchall()
    db.close()
    assert [r[0] for r in rows] == list(range(101))
    assert rows[5][1:] == ("e000005", make(5).event.ts, "BLOCK")
    assert rows[100][1] == "elsewhere/e000003"
    with pytest.raises(SourceError, match="holds"):
        export_legacy(store.layout, folder)


def test_legacy_does_not_export_damaged_rows(store: Store, tmp_path: Path) -> None:
    store.publish(several(70))
    store.snapshots.close()
    store.publisher.close()
    store.catalog.close()
    flip(store.layout.row_file(0, 1), _offsets(ROWS)["attack"] + 5)
    with pytest.raises(CorruptionError, match="disagree"):
        export_legacy(store.layout, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_dead_letters_are_private_lines(tmp_path: Path) -> None:
    from engine.store import dead_letters
    from ipc.messages import Reject

    path = tmp_path / "dead.ndjson"
    dead_letters.append(path, [Reject("a\nb", 5, "no JSON", b"\x00\xff\n")], T0)
    dead_letters.append(path, [Reject("c", -1, "x")], T0)
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(x["file"], x["offset"], x["reason"]) for x in lines] == [("a\nb", 5, "no JSON"), ("c", -1, "x")]
    assert base64.b64decode(lines[0]["record"]) == b"\x00\xff\n"
    assert lines[0]["at"].endswith("+00:00")
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        dead_letters.append(path, [Reject("c", -1, "x")], T0)
