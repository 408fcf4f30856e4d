"""Indexes against brute force; what a damaged or a filtered one gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import CorruptionError
from engine.store import index
from engine.store.index import MappedIndex, search_rows
from tests.store_fixture import flip

N, DIM, LO = 1_024, 16, 4_096


def vectors(n: int = N, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 5, (8, DIM))
    return (centres[rng.integers(0, 8, n)] + rng.normal(0, 1, (n, DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> MappedIndex:
    path = tmp_path_factory.mktemp("index") / "attack-0000"
    made = index.build([vectors()])
    assert (made.kind, made.groups) == ("ivf_half", None)
    size, checksum = index.write(made, path)
    assert index.checksum(path) == checksum
    assert path.stat().st_mode & 0o777 == 0o400
    return MappedIndex(path, size, checksum, LO, LO + N, made.nprobe)


def brute(queries, k, allowed=None):  # type: ignore[no-untyped-def]
    d = ((queries[:, None, :].astype(np.float64) - vectors()[None].astype(np.float64)) ** 2).sum(2)
    if allowed is not None:
        d[:, ~allowed] = np.inf
    order = np.argsort(d, 1, kind="stable")[:, :k]
    return np.take_along_axis(d, order, 1), order


def test_an_index_finds_what_brute_force_finds(mapped: MappedIndex) -> None:
    mapped.touch()
    queries = vectors(50, seed=1)
    found = mapped.search(queries, 10, None, N)
    assert found is not None
    distances, seqs = found
    expected, _ = brute(queries, 10)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert ((seqs >= LO) & (seqs < LO + N)).all()
    rows = vectors()[seqs - LO].astype(np.float64)
    own = np.sqrt(((queries[:, None] - rows) ** 2).sum(2))
    assert (np.sort(own)[:, :10] <= np.sqrt(expected[:, -1:]) * (1 + 1e-9)).mean() >= 0.98
    far = np.abs(own - np.sqrt(distances.astype(np.float64)))
    assert far.max() > 0 and (far <= mapped.rounding * np.linalg.norm(rows, axis=2) + 1e-6).all()


def test_no_vector_is_farther_from_where_it_is_than_its_rounding(tmp_path: Path) -> None:
    """Also where one number is most of it, and that as far between two such floats as can be."""
    rng = np.random.default_rng(8)
    data = rng.normal(0, 1e-3, (N, DIM)).astype(np.float32)
    data[:, 0] = (1 + 2.0**-11) * 2.0 ** rng.integers(-3, 8, N)
    made = index.build([data])
    assert made.kind == "ivf_half"
    opened = MappedIndex(tmp_path / "i", *index.write(made, tmp_path / "i"), LO, LO + N, made.index.nlist)
    found = opened.search(data, 1, None, N)
    assert found is not None
    distances, seqs = found
    rows = data[seqs - LO].astype(np.float64)
    own = np.sqrt(((data[:, None] - rows) ** 2).sum(2))
    far = np.abs(own - np.sqrt(distances.astype(np.float64))) / np.linalg.norm(rows, axis=2)
    assert 0.9 * opened.rounding < far.max() <= 1.001 * opened.rounding


def test_vectors_that_16_bits_do_not_hold_are_kept_whole(tmp_path: Path) -> None:
    data = vectors() * np.float32(10_000)
    made = index.build([data])
    assert made.kind == "ivf_flat"
    opened = MappedIndex(tmp_path / "i", *index.write(made, tmp_path / "i"), LO, LO + N, made.nprobe)
    found = opened.search(data[:20], 1, None, N)
    assert opened.rounding == 0 and found is not None and (found[0] == 0).all()


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_a_filter_gives_allowed_rows_only_or_leaves_it_to_the_rows(mapped: MappedIndex, share: float) -> None:
    rng = np.random.default_rng(2)
    allowed = rng.random(N) < share
    queries = vectors(20, seed=3)
    found = mapped.search(queries, 10, allowed, int(allowed.sum()))
    if found is None:
        assert share < 0.5
        return
    _distances, seqs = found
    assert allowed[seqs - LO].all()
    expected, _ = brute(queries, 10, allowed)
    own = np.sort(((queries[:, None] - vectors()[seqs - LO]).astype(np.float64) ** 2).sum(2))
    assert (own[:, :10] <= expected[:, -1:] * (1 + 1e-9)).mean() >= 0.95


def test_more_than_the_lists_hold_is_left_to_the_rows(mapped: MappedIndex) -> None:
    assert mapped.search(vectors(1, seed=4), N, None, N) is None


def flooded(n: int, distinct: int, seed: int = 5) -> np.ndarray:  # type: ignore[type-arg]
    """n rows of `distinct` vectors, one of which half of the rows have."""
    rng = np.random.default_rng(seed)
    return vectors(distinct)[np.where(rng.random(n) < 0.5, 0, rng.integers(0, distinct, n))]


@pytest.mark.parametrize(("n", "distinct", "kind"), [(2_000, 300, "flat_grouped"), (14_000, 9_000, "ivf_flat_grouped")])
def test_equal_rows_are_one_entry_and_all_found(tmp_path: Path, n: int, distinct: int, kind: str) -> None:
    data = flooded(n, distinct)
    made = index.build([data[:700], data[700:1_000], data[1_000:]])
    assert (made.kind, made.index.ntotal) == (kind, len(np.unique(data, axis=0)))
    size, checksum = index.write(made, tmp_path / "i")
    assert index.checksum(tmp_path / "i") == checksum and (tmp_path / "i").stat().st_size == size
    opened = MappedIndex(tmp_path / "i", size, checksum, LO, LO + n, made.nprobe)
    opened.touch()
    assert opened.exact == (kind == "flat_grouped") and 0 < opened.scanned(n) <= made.index.ntotal
    for k in (5, 50):
        found = opened.search(data[[3, 17, 40]], k, None, n)
        assert found is not None
        distances, seqs = found
        for i, row in enumerate((3, 17, 40)):
            exact = np.sort(((data.astype(np.float64) - data[row]) ** 2).sum(1))[:k]
            assert (distances[i] <= exact[-1] * (1 + 1e-4) + 1e-4).mean() >= (1.0 if opened.exact else 0.95)
            assert len(set(seqs[i].tolist())) == k
            equal = np.flatnonzero((data == data[row]).all(1))
            assert seqs[i][: len(equal)].tolist() == (LO + equal[::-1][:k]).tolist()  # the newest first


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_a_filter_over_groups_gives_allowed_rows_of_them(tmp_path: Path, share: float) -> None:
    data = flooded(2_000, 300)
    made = index.build([data])
    opened = MappedIndex(tmp_path / "i", *index.write(made, tmp_path / "i"), LO, LO + 2_000, made.nprobe)
    allowed = np.random.default_rng(6).random(2_000) < share
    k, queries = 60, data[[3, 17, 40]]
    found = opened.search(queries, k, allowed, int(allowed.sum()))
    wanted = np.flatnonzero(allowed)
    exact = np.sort(((data[wanted].astype(np.float64)[None] - queries[:, None]) ** 2).sum(2), axis=1)
    if len(wanted) < k:
        assert found is not None and (found[1] >= 0).sum(1).tolist() == [len(wanted)] * 3
    assert found is not None
    n = min(k, len(wanted))
    assert allowed[found[1][:, :n] - LO].all()
    assert np.allclose(found[0][:, :n], exact[:, :n], rtol=1e-4, atol=1e-4)


def test_vectors_of_one_hash_are_not_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    data = flooded(400, 20)
    assert index.grouped([data]) is not None
    monkeypatch.setattr(index, "_hashes", lambda part: (0 for _ in part))
    assert index.grouped([data]) is None


@pytest.mark.parametrize("what", ["starts", "rows", "entries"])
def test_groups_that_disagree_with_themselves_are_refused(tmp_path: Path, what: str) -> None:
    data = flooded(500, 40)
    made = index.build([data])
    assert made.groups is not None
    starts, rows = made.groups.starts.copy(), made.groups.rows.copy()
    if what == "starts":
        starts[3] = starts[5]
    elif what == "rows":
        rows[7] = 500
    else:
        starts = starts[:-1]
    written = index.write(made._replace(groups=index.Groups(starts, rows)), tmp_path / "i")
    with pytest.raises(CorruptionError, match="groups"):
        MappedIndex(tmp_path / "i", *written, 0, 500, made.nprobe)


@pytest.mark.parametrize("what", ["size", "one bit", "garbage", "another count"])
def test_a_file_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "index"
    size, checksum = index.write(index.build([vectors(128)]), path)
    hi = 128
    if what == "size":
        size += 1
    elif what == "garbage":
        path.unlink()
        path.write_bytes(b"\x01" * size)
        checksum = index.checksum(path)
    elif what == "one bit":
        flip(path, size // 2, 1)
    else:
        hi = 129
    with pytest.raises(CorruptionError, match=str(path)):
        MappedIndex(path, size, checksum, 0, hi, 8)
    with pytest.raises(OSError):
        MappedIndex(tmp_path / "none", size, checksum, 0, hi, 8)


def test_positions_that_a_damaged_index_makes_up_are_dropped(mapped: MappedIndex) -> None:
    """Its ids may say anything: no seq leaves that is not in the range."""

    class Lying:
        nlist, d = mapped._index.nlist, DIM

        def search(self, queries, k, params):  # type: ignore[no-untyped-def]
            positions = np.tile(np.array([5, N, 1 << 40, -1]), (len(queries), 1))
            return np.zeros((len(queries), 4), np.float32), positions

    real, mapped._index = mapped._index, Lying()
    found = mapped.search(vectors(2), 1, None, N)
    mapped._index = real
    assert found is not None
    assert found[1].tolist() == [[LO + 5, -1, -1, -1]] * 2
    assert np.isinf(found[0][:, 1:]).all()


@settings(max_examples=40)
@given(n=st.integers(1, 40), k=st.integers(1, 50), nan=st.sets(st.integers(0, 39)), seed=st.integers(0, 99))
def test_exact_search_is_brute_force_and_skips_damaged_rows(n: int, k: int, nan: set[int], seed: int) -> None:
    rows = vectors(n, seed)
    for i in nan:
        if i < n:
            rows[i] = np.nan
    queries = vectors(3, seed + 1)
    distances, positions = search_rows(queries, rows, k)
    assert distances.shape == positions.shape == (3, min(k, n))
    good = [i for i in range(n) if i not in nan]
    for d, p, query in zip(distances, positions, queries, strict=True):
        wanted = np.sort(((rows[good].astype(np.float64) - query) ** 2).sum(1))[: min(k, n)]
        assert np.allclose(d[: len(wanted)], wanted, rtol=1e-4)
        assert np.isinf(d[len(wanted) :]).all()
        assert (p[len(wanted) :] == -1).all()
        assert set(p[: len(wanted)].tolist()) <= set(good)
