"""The context's state in the catalog, in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import CorruptionError
from engine.store import checkpoint
from engine.store.catalog import Catalog, seq_key
from engine.store.checkpoint import KEY, PIECE_BYTES


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    folder = tmp_path / "catalog"
    folder.mkdir()
    opened = Catalog(folder, write=True, map_size=1 << 24)
    yield opened
    opened.close()


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 8, PIECE_BYTES - 7, 2 * PIECE_BYTES - 8, 50_000])
def test_the_context_comes_back_whole_whatever_was_there_before(catalog: Catalog, size: int) -> None:
    states = [bytes(i % 251 for i in range(n)) for n in (size, 9 * PIECE_BYTES, size)]
    for seq, state in enumerate(states):
        with catalog.write() as batch:
            checkpoint.put(batch, seq, state)
        with catalog.read() as view:
            assert checkpoint.stored(view) == (seq, state)


def test_a_context_stored_in_one_piece_by_an_older_flowkin_is_read(catalog: Catalog) -> None:
    with catalog.read() as view:
        assert checkpoint.stored(view) is None
    with catalog.write() as batch:
        batch.put("tracker", KEY, seq_key(7) + bytes(50_000))
    with catalog.read() as view:
        assert checkpoint.stored(view) == (7, bytes(50_000))


@pytest.mark.parametrize("gone", [1, 2, -1])
def test_a_context_that_lacks_a_piece_is_refused(catalog: Catalog, gone: int) -> None:
    with catalog.write() as batch:
        checkpoint.put(batch, 7, bytes(5 * PIECE_BYTES))
        keys = list(batch.keys("tracker"))
        assert keys[0] == KEY
        batch.delete("tracker", keys[gone])
    with catalog.read() as view, pytest.raises(CorruptionError, match="piece"):
        checkpoint.stored(view)


def test_a_context_that_is_stored_again_and_again_takes_no_more_pages(catalog: Catalog) -> None:
    """Records come and go between: whatever is free lies scattered."""
    pages, rows = [], 20
    for step in range(120):
        with catalog.write() as batch:
            for seq in range(step * rows, (step + 1) * rows):
                batch.put("records", seq_key(seq), bytes(1_000))
            for seq in range(max(0, (step - 10) * rows), max(0, (step - 9) * rows)):
                batch.delete("records", seq_key(seq))
            checkpoint.put(batch, step, bytes(400_000 + 4_096 * (step % 7)))
        pages.append(catalog.env.info()["last_pgno"])
    assert pages[-1] <= pages[30] + 10
