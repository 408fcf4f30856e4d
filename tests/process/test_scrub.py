"""A running engine whose files are damaged under it: it notices, mends, and answers all the while."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.store import quarantine
from engine.store.rows import _offsets
from ipc.errors import ClientError
from tests.engine_fixture import Engine, Starter, answers, ask, stored_ids
from tests.events import ids, several
from tests.store_fixture import ROWS, flip
from tests.wait import eventually

ASKED = ["e000003", "e000070", "e000129"]
EVENTS = 200  # three full row files and one that is written to


def first_scrub(engine: Engine) -> None:
    """Every start begins with one; what is damaged afterwards waits for the next."""
    eventually(lambda: engine.facts()["scrub"] is not None, within_s=60)


@pytest.fixture
def ready(start: Starter) -> Engine:
    engine = start()
    engine.ingest(several(EVENTS))
    engine.indexed(3)
    first_scrub(engine)
    opened(engine)
    return engine


def opened(engine: Engine) -> None:
    """Every reader has the indexes open: one that meets a damaged file first has it mended before a test looks."""
    count = sum(index.space == "attack" for index in engine.manifest().indexes)
    clients = [engine.client() for _ in range(4)]  # dealt out to the readers in turns

    def all_open() -> bool:
        return all(f" {count} indexes" in ask(client, "e000005", space="attack").plan for client in clients)

    eventually(all_open, within_s=30, every_s=0.1)


def doctor(engine: Engine, *flags: str) -> dict[str, Any]:
    report: dict[str, Any] = msgspec.json.decode(engine.cli("doctor", "--json", *flags).stdout)
    report["findings"] = [f for f in report["findings"] if "are left on its disk" not in f["detail"]]
    return report


def wanted(engine: Engine) -> dict[str, list[tuple[int, float]]]:
    return answers(engine.client(), ASKED, top_k=20, collapse=False)


def same(engine: Engine, expected: dict[str, list[tuple[int, float]]]) -> bool:
    try:
        return wanted(engine) == expected
    except ClientError:  # of a reader that died
        return False


def test_what_the_doctor_finds_the_engine_mends_when_asked(ready: Engine) -> None:
    engine, expected = ready, wanted(ready)
    before = engine.manifest()
    bad = next(i for i in before.indexes if i.lo == 128)
    flip(engine.layout.index_file(bad.file), bad.size // 2)
    flip(engine.layout.row_file(*before.row_file(0)), _offsets(ROWS)["chronos"] + 5 * 512 + 3, 0x40)
    found = {f["object"] for f in doctor(engine, "--deep")["findings"] if f["severity"] == "problem"}
    assert found == {str(engine.layout.index_file(bad.file)), str(engine.layout.row_file(*before.row_file(0)))}
    (fix, *rest) = doctor(engine, "--deep", "--fix")["findings"]
    assert fix["fixed"] and fix["detail"].endswith("mended 2 of 2 damaged files and values")
    assert not [f for f in rest if f["severity"] == "problem"]
    scrub = engine.facts()["scrub"]
    assert (scrub["damaged"], scrub["mended"], scrub["left"]) == (2, 2, 0)
    assert (scrub["structure"], scrub["unchecked"]) == ([], "")
    assert engine.manifest().revisions == {0: 1}
    assert {path.name.partition("-")[2] for path, _ in quarantine.listed(engine.layout)} == {
        bad.file, engine.layout.row_file(*before.row_file(0)).name,
    }  # fmt: skip
    eventually(lambda: wanted(engine) == expected, every_s=0.1)
    assert stored_ids(engine.client()) == ids(several(EVENTS))


def test_what_a_reader_meets_is_mended_before_the_next_scrub_is_due(ready: Engine) -> None:
    engine, expected = ready, wanted(ready)
    flip(engine.layout.row_file(*engine.manifest().row_file(3)), _offsets(ROWS)["attack"] + 3 * 256 + 2, 0x10)
    hits = ask(engine.client(), "e000199", space="attack", top_k=199, collapse=False).hits
    assert 195 not in [hit.seq for hit in hits] and len(hits) == 198
    eventually(lambda: engine.manifest().revisions == {3: 1}, within_s=60, every_s=0.1)
    eventually(lambda: wanted(engine) == expected, every_s=0.1)


def cut_index(engine: Engine) -> Path:
    """To one page, while it is mapped: what lies beyond kills who looks at it (SIGBUS)."""
    path = engine.layout.index_file(next(i.file for i in engine.manifest().indexes if i.space == "sbert" and i.lo == 0))
    path.chmod(0o600)
    os.truncate(path, 4_096)
    return path


def cut_rows(engine: Engine) -> Path:
    path = engine.layout.row_file(*engine.manifest().row_file(3))
    os.truncate(path, 4_096)
    return path


@pytest.mark.parametrize("cut", [cut_index, cut_rows])
def test_readers_that_a_cut_file_kills_come_back_without_it(ready: Engine, cut: Any) -> None:
    """Two die, the files are looked at, and before long the answers are the same again."""
    engine = ready
    expected = answers(engine.client(), ASKED, top_k=20, collapse=False, space="sbert")
    path = cut(engine)

    def died() -> bool:
        for name in ASKED:
            try:
                ask(engine.client(2_000), name, top_k=20, collapse=False, space="sbert")
            except ClientError:
                continue
        return "killed by SIGBUS" in engine.log

    eventually(died, within_s=30, every_s=0.1)

    def whole() -> bool:
        try:
            return answers(engine.client(2_000), ASKED, top_k=20, collapse=False, space="sbert") == expected
        except ClientError:
            return False

    eventually(whole, within_s=60, every_s=0.2)
    eventually(lambda: not path.exists(), within_s=30)
    assert "do not restart" not in engine.log and "is given up" not in engine.log
    assert engine.ingest(several(5, 1_000)).accepted == 5
    eventually(lambda: all(engine.pids()), within_s=30)


def test_a_catalog_whose_structure_is_damaged_answers_and_stores_nothing(start: Starter) -> None:
    engine = start()
    engine.ingest(several(100))
    assert engine.stop() == 0
    path = engine.layout.catalog / "catalog.0"
    blob = bytearray(path.read_bytes())
    pages = [at for at in range(0, len(blob), 4_096) if blob[at + 10] == 2]  # leaves
    page = next(at for at in pages if b"e000050\0test" in blob[at : at + 4_096])
    at = blob.index(b"e000050\0test", page) - 2  # the size of the key, two bytes before it
    blob[at] ^= 0x10
    path.write_bytes(blob)
    engine.start()
    with pytest.raises(ClientError, match=r"structure is damaged.*nothing is stored any more.*flowkin backup restore"):
        engine.ingest(several(5, 1_000))
    assert len(ask(engine.client(), "e000003", top_k=5).hits) == 5
    report = doctor(engine, "--deep")
    assert [f["object"] for f in report["findings"] if f["severity"] == "problem"][:1] == ["catalog structure"]
