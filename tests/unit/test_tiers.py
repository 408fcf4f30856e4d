"""Which row files are indexed next, and which indexes become one."""

from __future__ import annotations

import pytest

from engine.embed.base import SPACES
from engine.store import tiers
from engine.store.manifest import IndexFile, Manifest
from engine.store.tiers import early, mergeable, unindexed

ROWS = 64


def manifest(count: int, *covered: tuple[int, int], spaces: tuple[str, ...] = SPACES) -> Manifest:
    """Indexes over row files [first, end) in each space."""
    indexes = [
        IndexFile(space, first * ROWS, end * ROWS, f"{space}-{first}-{end}", 0, b"", "ivf_flat", 8)
        for first, end in covered
        for space in spaces
    ]
    return Manifest(row_file_rows=ROWS, model="v", count=count, indexes=indexes)


def test_a_full_row_file_is_indexed_and_one_that_is_written_to_is_not() -> None:
    assert unindexed(manifest(ROWS - 1)) == []
    assert unindexed(manifest(2 * ROWS + 5)) == [0, 1]
    assert unindexed(manifest(6 * ROWS, (0, 4), (5, 6))) == [4]
    assert unindexed(manifest(2 * ROWS, (0, 1), (1, 2))) == []


def test_a_row_file_that_one_space_has_no_index_over_is_indexed() -> None:
    assert unindexed(manifest(ROWS, (0, 1), spaces=SPACES[1:])) == [0]


@pytest.mark.parametrize(
    ("files", "covered", "due"),
    [
        (1, [(0, 1)], None),
        (2, [(0, 1), (1, 2)], range(2)),
        (3, [(0, 2), (2, 3)], None),
        (4, [(0, 2), (2, 3), (3, 4)], range(4)),
        (4, [(0, 1), (1, 2), (2, 3), (3, 4)], range(4)),
        (4, [(0, 4)], None),
        (6, [(0, 4), (4, 5), (5, 6)], range(4, 6)),
        (6, [(0, 4), (4, 6)], None),
        (8, [(0, 4), (4, 6), (6, 8)], range(8)),
        (8, [(0, 4), (4, 8)], range(8)),
        (12, [(0, 8), (8, 10), (10, 12)], range(8, 12)),
        (3, [(1, 2), (2, 3)], None),  # 1 and 2 do not begin at a multiple of 2; 0 is not indexed
        (4, [(0, 2), (2, 3)], None),
    ],
)
def test_indexes_become_one_where_they_lie_side_by_side(
    files: int, covered: list[tuple[int, int]], due: range | None
) -> None:
    assert mergeable(manifest(files * ROWS + 3, *covered)) == due


def test_where_so_many_cannot_be_merged_fewer_are() -> None:
    each = manifest(64 * ROWS, *((n, n + 1) for n in range(64)))
    assert mergeable(each) == range(64)
    assert mergeable(each, 32) == range(32)
    assert mergeable(manifest(64 * ROWS, (0, 32), (32, 64)), 32) is None


def test_nothing_is_merged_that_one_space_searches_exactly() -> None:
    whole = manifest(2 * ROWS, (0, 1), (1, 2))
    whole.indexes.pop()
    assert mergeable(whole) is None


@pytest.mark.parametrize("files", [*range(1, 20), 61, 64, 130])
def test_merging_comes_to_an_end_with_few_indexes(files: int) -> None:
    covered, merges = [(n, n + 1) for n in range(files)], 0
    while due := mergeable(manifest(files * ROWS, *covered)):
        covered = [c for c in covered if not (due[0] <= c[0] and c[1] <= due[-1] + 1)] + [(due[0], due[-1] + 1)]
        merges += 1
        assert merges <= files + 6
    assert len(covered) == files // 64 + (files % 64).bit_count()


@pytest.mark.parametrize(
    ("count", "covered", "due"),
    [
        (15, [], None),
        (16, [], (0, 16)),
        (ROWS - 1, [(0, 16)], (16, 32)),
        (ROWS - 1, [(0, 16), (16, 32), (32, 48)], None),  # the rest comes with the whole
        (ROWS, [(0, 16)], None),
        (ROWS + 40, [(0, ROWS), (ROWS, ROWS + 16)], (ROWS + 16, ROWS + 32)),
    ],
)
def test_the_row_file_that_is_filled_is_indexed_in_parts(
    count: int, covered: list[tuple[int, int]], due: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "EARLY_ROWS", 16)
    indexes = [IndexFile(s, lo, hi, f"{s}-{lo}-{hi}", 0, b"", "ivf_half", 8) for lo, hi in covered for s in SPACES]
    of = Manifest(row_file_rows=ROWS, model="v", count=count, indexes=indexes)
    assert early(of) == due
    whole = {lo // ROWS for lo, hi in covered if hi - lo == ROWS}
    assert unindexed(of) == [n for n in range(count // ROWS) if n not in whole]
    assert mergeable(of) is None


def test_small_row_files_are_indexed_when_they_are_full() -> None:
    assert early(manifest(ROWS - 1)) is None
