"""A snapshot finds what numpy finds over its vectors, whatever is indexed, filtered, or new."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.embed.base import DIMS, SPACES
from engine.errors import NotReadyError
from engine.search import snapshot as snapshot_module
from engine.search.snapshot import Snapshot, Snapshots
from engine.store import index, tiers
from engine.store.columns import COLUMNS
from engine.store.counters import Names
from engine.store.index import MappedIndex
from engine.store.manifest import IndexFile, Manifest
from engine.store.rows import RowMap, Rows, RowWriter
from tests.conftest import FILLED
from tests.events import several
from tests.store_fixture import ROWS, Store
from tests.wait import eventually


def vectors(snapshot: Snapshot, space: str) -> np.ndarray:  # type: ignore[type-arg]
    return snapshot.vectors(space, np.arange(snapshot.count)).astype(np.float64)


@settings(max_examples=60)
@given(
    space=st.sampled_from(SPACES), k=st.integers(1, 450), share=st.floats(0, 1), seed=st.integers(0, 1000),
    filtered=st.booleans(),
)  # fmt: skip
def test_search_never_gives_fewer_or_farther_than_brute_force(
    full: Store, space: str, k: int, share: float, seed: int, filtered: bool
) -> None:
    """Never fewer than min(k, allowed), no row twice, none that is not allowed, exact distances in order; and recall 1
    where the answer says exact."""
    snapshot = full.snapshot()
    rng = np.random.default_rng(seed)
    allowed = rng.random(FILLED) < share if filtered else None
    data = vectors(snapshot, space)
    queries = (data[rng.integers(0, FILLED, 3)] + rng.normal(0, 0.1, (3, data.shape[1]))).astype(np.float32)
    matched = FILLED if allowed is None else int(allowed.sum())
    found = snapshot.search(space, queries, k, allowed)
    assert len(found) == 3
    for query, candidates in zip(queries, found, strict=True):
        d = np.sqrt(((data - query) ** 2).sum(1))
        assert len(candidates.seqs) == min(k, matched)
        assert len(set(candidates.seqs.tolist())) == len(candidates.seqs)
        assert allowed is None or allowed[candidates.seqs].all()
        assert np.allclose(candidates.distances, d[candidates.seqs], rtol=1e-12, atol=1e-12)
        order = np.lexsort((-candidates.seqs, candidates.distances))
        assert (order == np.arange(len(order))).all()
        best = np.sort(d if allowed is None else d[allowed])[: min(k, matched)]
        if candidates.exact:
            assert np.allclose(candidates.distances, best, rtol=1e-6, atol=1e-6)


def test_many_matches_go_through_the_index(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bound for "few" lowered, so that a filter meets the indexes of this small store."""
    monkeypatch.setattr(snapshot_module, "EXACT_MATCHES_MAX", 10)
    snapshot = full.snapshot()
    rng = np.random.default_rng(5)
    for share in (0.3, 0.7, 0.97, 1.0):
        allowed = rng.random(FILLED) < share
        for space in SPACES:
            query = snapshot.vectors(space, np.array([77]))
            (found,) = snapshot.search(space, query, 20, allowed)
            assert len(found.seqs) == 20
            assert allowed[found.seqs].all()


def test_the_plan_covers_every_row_once(full: Store) -> None:
    snapshot = full.snapshot()
    for space in SPACES:
        plan = snapshot._plan[space]
        covered = [seq for lo, hi, _ in plan for seq in range(lo, hi)]
        assert covered == list(range(FILLED))
        assert snapshot.unindexed(space) == FILLED % ROWS
        assert all(lo // ROWS == (hi - 1) // ROWS for lo, hi, index in plan if index is None)


def test_a_snapshot_does_not_change_and_the_next_shares_its_files(store: Store) -> None:
    store.publish(several(100))
    old = store.snapshot()
    store.publish(several(100, 100))
    with store.catalog.read() as view:
        new = store.snapshots.refresh(view)
        assert store.snapshots.refresh(view) is new
    assert (old.count, new.count) == (100, 200)
    assert (old.generation + 1, len(new.files)) == (new.generation, 4)
    assert new.files[0] is old.files[0]
    assert new.files[1] is old.files[1]  # rows past the old count are not looked at by the old one
    (found,) = old.search("attack", old.vectors("attack", np.array([5])), 500)
    assert len(found.seqs) == 100
    assert sum(len(columns) for _, columns in old.columns()) == 100


def test_an_index_is_taken_over_when_it_is_open_and_its_rows_are_exact_until_then(store: Store) -> None:
    store.publish(several(130))
    before = store.snapshot()
    store.index()
    with store.catalog.read() as view:
        at_once = store.snapshots.refresh(view)
    query = before.vectors("chronos", np.array([3]))
    expected = before.search("chronos", query, 10)[0]
    assert expected.exact
    assert at_once.search("chronos", query, 10)[0].seqs.tolist() == expected.seqs.tolist()
    after = store.snapshot()
    assert after.unindexed("chronos") == 2
    assert not after.search("chronos", query, 10)[0].exact


def test_a_merged_index_is_taken_over_when_it_is_open_and_those_it_replaces_serve_until_then(store: Store) -> None:
    store.publish(several(4 * ROWS + 2))
    store.index()
    before = store.snapshot()
    store.merge()
    with store.catalog.read() as view:
        at_once = store.snapshots.refresh(view)
    assert at_once.generation > before.generation
    assert [at_once.unindexed(space) for space in SPACES] == [2, 2, 2]
    after = store.snapshot()
    assert [after.indexed(space) for space in SPACES] == [1, 1, 1]
    assert [after.unindexed(space) for space in SPACES] == [2, 2, 2]
    for space in SPACES:
        data = vectors(after, space)
        for snapshot in (before, at_once, after):
            (found,) = snapshot.search(space, data[[3]].astype(np.float32), 10)
            expected = np.sort(np.sqrt(((data - data[3]) ** 2).sum(1)))[:10]
            assert (found.distances <= expected[-1] * (1 + 1e-6)).mean() >= 0.9


def test_rows_are_indexed_before_their_file_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where such an index ends at the last event, and others come after it; the whole takes the place of all."""
    monkeypatch.setattr(tiers, "EARLY_ROWS", 16)
    for count, left in ((144, 0), (5, 5), (20, 9), (25, 2)):
        first = store.publisher.manifest.count
        store.publish(several(count, first))
        added = store.snapshot()
        store.index()
        store.index_early()
        indexed = store.snapshot()
        for snapshot in (added, indexed):
            for space in SPACES:
                covered = [seq for lo, hi, _ in snapshot._plan[space] for seq in range(lo, hi)]
                assert covered == list(range(first + count))
            newest = snapshot.vectors("attack", np.arange(first, first + count))
            for seq, found in zip(range(first, first + count), snapshot.search("attack", newest, 5), strict=True):
                assert found.distances[0] == 0 and seq in found.seqs
        assert [indexed.unindexed(space) for space in SPACES] == [left] * 3
    store.check()


def test_a_purge_of_rows_that_were_indexed_early_leaves_nothing_of_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "EARLY_ROWS", 16)
    store.publish(several(180))
    store.index()
    store.index_early()
    before = {i.file for i in store.publisher.manifest.indexes}
    store.purge(ids=["e000130"])
    manifest = store.publisher.manifest
    assert manifest.stale == [] and all(i.hi <= 2 * ROWS for i in manifest.indexes)
    gone = before - {i.file for i in manifest.indexes}
    assert len(gone) == 9 and not gone & {path.name for path in store.layout.indexes.iterdir()}
    assert tiers.early(manifest) == (128, 144)
    store.index_early()
    assert [store.snapshot().unindexed(space) for space in SPACES] == [4, 4, 4]
    store.check()


def test_indexes_of_other_rows_do_not_serve_meanwhile(store: Store) -> None:
    """A row file that was built again has another name; nothing over the old one is kept."""
    store.publish(several(2 * ROWS))
    store.index()
    before = store.snapshot()
    assert before.indexed("attack") == 2
    old = before.manifest.indexes
    later = msgspec.structs.replace(
        before.manifest, generation=before.generation + 1, revisions={0: 1},
        indexes=[msgspec.structs.replace(i, file=f"{i.file}-new") for i in old],
    )  # fmt: skip
    assert store.snapshots._indexes(later, before) == {}
    same = msgspec.structs.replace(later, revisions={})
    assert set(store.snapshots._indexes(same, before)) == set(old)


def test_an_index_that_cannot_be_opened_leaves_its_rows_exact(store: Store) -> None:
    store.publish(several(130))
    store.index()
    for file in store.publisher.manifest.indexes:
        if file.lo == 0:
            store.layout.index_file(file.file).unlink()
    snapshot = store.snapshot()
    assert {space: snapshot.unindexed(space) for space in SPACES} == dict.fromkeys(SPACES, ROWS + 2)
    (found,) = snapshot.search("attack", snapshot.vectors("attack", np.array([3])), 130)
    assert len(found.seqs) == 130


def test_an_empty_store_answers_with_nothing(store: Store) -> None:
    snapshot = store.snapshot()
    for space, dim in (("attack", 64), ("sbert", 384)):
        (found,) = snapshot.search(space, np.zeros((1, dim), np.float32), 5)
        assert len(found.seqs) == 0
        (found,) = snapshot.search(space, np.zeros((1, dim), np.float32), 5, np.zeros(0, np.bool_))
        assert len(found.seqs) == 0


def test_before_the_birth_there_is_no_snapshot(store: Store) -> None:
    class Nothing:
        def get(self, table: str, key: bytes) -> None:
            return None

    with pytest.raises(NotReadyError):
        Snapshots(store.layout).refresh(Nothing())  # type: ignore[arg-type]


def test_closing_while_indexes_are_opened_ends(store: Store) -> None:
    store.publish(several(200))
    store.index()
    snapshots = Snapshots(store.layout)
    with store.catalog.read() as view:
        snapshots.refresh(view)
    snapshots.close()
    eventually(lambda: snapshots.current is None)


@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4])
def test_rows_nearer_to_each_other_than_16_bits_tell_are_found_in_their_order(tmp_path: Path, apart: float) -> None:
    """400 of 2,048 rows lie about `apart` from one point of length 100, where such floats are up to 0.06 apart."""
    rng, n = np.random.default_rng(7), 2_048
    rows = Rows(
        {s: rng.normal(0, 10, (n, DIMS[s])).astype(np.float32) for s in SPACES},
        np.zeros((n, 105), np.float32), np.zeros(n, COLUMNS),
    )  # fmt: skip
    attack = rows.vectors["attack"]
    flood = rng.choice(n, 400, replace=False)
    point = 100 * attack[flood[0]] / np.linalg.norm(attack[flood[0]])
    attack[flood] = point + rng.normal(0, apart, (400, DIMS["attack"]))
    writer = RowWriter(tmp_path / "rows", 0, n)
    writer.write(0, rows)
    writer.close()
    made = index.build([attack])
    assert made.kind == "ivf_half"
    size, checksum = index.write(made, tmp_path / "i")
    file = IndexFile("attack", 0, n, "i", size, checksum, made.kind, made.index.nlist)
    opened = MappedIndex(tmp_path / "i", size, checksum, 0, n, made.index.nlist)
    manifest = Manifest(count=n, row_file_rows=n, model="m", indexes=[file])
    snapshot = Snapshot(manifest, Names([], []), [RowMap(tmp_path / "rows", 0, n)], {file: opened})
    for query in (attack[flood[:3]], point.astype(np.float32)[None], attack[:2]):
        for one, found in zip(query, snapshot.search("attack", query, 10), strict=True):
            exact = np.sqrt(((attack.astype(np.float64) - one.astype(np.float64)) ** 2).sum(1))
            assert found.distances.tolist() == pytest.approx(np.sort(exact)[:10].tolist(), rel=1e-9, abs=1e-12)
