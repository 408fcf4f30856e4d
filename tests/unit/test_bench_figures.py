"""How the benches judge what they measured: targets, what moved between commits, when an index was swapped in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import reload, targets
from bench.compare import chance, compare
from bench.targets import TARGETS, Target, is_of, summary
from engine.store.manifest import IndexFile, Manifest

SYNTHETIC = {"data": "synthetic", "events": 100_000}
RATIO = Target("peers", "peers.*.at.32.ratio", 3, SYNTHETIC, at_least=True)

Keep = Callable[..., None]


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keep:
    """Appends a line to a bench's results."""
    monkeypatch.setattr(targets, "RESULTS", tmp_path)

    def line(bench: str, config: dict[str, Any], **figures: Any) -> None:
        head = {"bench": bench, "at": "2026-11-28", "commit": "abc", "machine": {"load_before": 0.5}, "config": config}
        with (tmp_path / f"{bench}.jsonl").open("a") as file:
            file.write(json.dumps(head | figures) + "\n")

    return line


def peer(ratio: float, recall: float = 1.0) -> dict[str, Any]:
    return {"recall_at_10": recall, "at": {"32": {"ratio": ratio}}}


# ---- targets --------------------------------------------------------------------------------------------------------


def test_a_target_is_held_against_the_newest_line_of_its_configuration(keep: Keep) -> None:
    keep("peers", {"data": "synthetic", "events": 100_000}, peers={"redis": peer(4.0)})
    keep("peers", {"data": "synthetic", "events": 100_000}, peers={"redis": peer(1.8)})
    keep("peers", {"data": "cic", "events": 100_000}, peers={"redis": peer(5.71)})
    keep("peers", {"data": "synthetic", "events": 1_000}, peers={"redis": peer(9.0)})
    line, count = summary([RATIO])
    assert line.startswith(" NO") and " is 1.8 " in line and "data=synthetic events=100000" in line
    assert count == "0 of 1 met, 1 not, 0 of these without a figure"


def test_a_peer_that_does_not_find_the_neighbours_is_left_out_and_named(keep: Keep) -> None:
    peers = {"fast": peer(0.5, recall=0.727), "good": peer(3.2), "broken": {"left_out": "no package"}}
    keep("peers", SYNTHETIC, peers=peers)
    line, left_out, _ = summary([RATIO])
    assert line.startswith("yes") and " is 3.2 " in line
    assert "fast (recall@10 0.727)" in left_out and "broken (no package)" in left_out and "good" not in left_out


def test_no_figure_counts_as_not_met(keep: Keep) -> None:
    keep("slow", {"rounds": 5}, other=1)
    lines = summary([Target("slow", "p99_ratio", 1.2, {"rounds": 3}), RATIO])
    assert [line[:5] for line in lines[:2]] == ["  ?  ", "  ?  "]
    assert "not in the run of 2026-11-28 abc (rounds=5)" in lines[0]
    assert "no such run is kept (data=synthetic events=100000)" in lines[1]
    assert lines[-1] == "0 of 2 met, 2 not, 2 of these without a figure"


@pytest.mark.parametrize(
    "config, wanted, good",
    [
        ({"events": 10}, {"events": 10}, True),
        ({"events": 1_000}, {"events": 10}, False),
        ({"rate": 500.0}, {"rate": 500}, True),
        ({}, {"events": 10}, False),
        ({"seconds": 12.0}, {"seconds": 10}, True),
        ({"seconds": 0.5}, {"seconds": 10}, False),
        ({"events": [10, 1_000]}, {"events": {1_000}}, True),
        ({"events": [10]}, {"events": {10, 1_000}}, False),
        ({"only": None}, {"only": {"cic"}}, True),
        ({"only": ["eve"]}, {"only": {"cic"}}, False),
        ({"only": ["cic"]}, {"only": []}, False),
    ],
)
def test_which_run_a_target_is_meant_for(config: dict[str, Any], wanted: dict[str, Any], good: bool) -> None:
    assert is_of(config, wanted) == good


def test_every_target_says_which_run_it_is_meant_for() -> None:
    assert all(target.config for target in TARGETS)


# ---- what moved -----------------------------------------------------------------------------------------------------


def lines(*values: float) -> list[dict[str, Any]]:
    return [{"bench": "b", "machine": {}, "config": {}, "qps": value} for value in values]


def test_the_chance_that_ranges_lie_apart() -> None:
    assert [round(1 / chance(n, n)) for n in range(1, 6)] == [1, 3, 10, 35, 126]
    assert chance(3, 5) == chance(5, 3) == 2 / 56


def test_ranges_of_few_runs_that_lie_apart_have_not_moved_for_sure() -> None:
    (found,) = compare(lines(100, 102), lines(110, 112), 0.3)
    assert (found.moved, found.sure, found.chance) == (False, False, 1 / 3)
    (found,) = compare(lines(100, 101, 102), lines(110, 111, 112), 0.3)
    assert (found.moved, found.sure) == (False, False)
    (found,) = compare(lines(100, 102), lines(140, 142), 0.3)
    assert (found.moved, found.sure) == (True, False)


def test_ranges_of_enough_runs_that_lie_apart_have_moved() -> None:
    (found,) = compare(lines(100, 101, 102, 103), lines(104, 105, 106, 107), 0.3)
    assert (found.moved, found.sure) == (True, True)
    (found,) = compare(lines(100, 101, 102, 103), lines(103, 105, 106, 107), 0.3)
    assert (found.moved, found.sure) == (False, True)


# ---- the swap-in of an index ----------------------------------------------------------------------------------------


def test_a_plan_says_what_was_searched() -> None:
    ways = "3 indexes + 6224 rows exact, 40 candidates, 9000 scanned"
    assert reload.searched(f"no filter; chronos: {ways}") == (3, 6_224)
    assert reload.searched(f"no filter; chronos: exact, {ways}") == (3, 6_224)
    with pytest.raises(RuntimeError):
        reload.searched("no filter; sbert: 3 indexes + 6224 rows exact")


def test_an_index_over_a_whole_row_file_is_swapped_in_where_fewer_rows_are_compared_exactly() -> None:
    """It takes the place of three over parts, so that there are fewer indexes. One query in 0.1 s, full after 4 s."""
    at_s = np.arange(100) / 10
    latency_s = np.full(100, 0.001)
    latency_s[71] = 0.021
    searched = np.column_stack([np.where(at_s < 7, 3, 1), 5_000 + 40 * np.arange(100) - np.where(at_s < 7, 0, 4_096)])
    searched[10:, 1] -= 500  # fewer before the row file was full: that is another index
    found = reload.judge(at_s, latency_s, searched, full_s=4.0)
    assert found["build_to_swap_s"] == 3.0 and found["stall_ms"] == pytest.approx(20)
    assert found["indexes"] == [3, 1] and found["rows_exact"] == [5_000 + 40 * 69 - 500, 5_000 + 40 * 70 - 4_596]
    assert len(found["before_s"]) == 38 and len(found["near_s"]) == 11
    with pytest.raises(RuntimeError, match="no index was swapped in"):
        reload.judge(at_s[:70], latency_s[:70], searched[:70], full_s=4.0)


def test_the_index_that_reaches_the_edge_is_none_over_a_part() -> None:
    def manifest(*indexes: tuple[str, int, int]) -> Manifest:
        files = [IndexFile(space, lo, hi, f"{space}-{lo}", 0, b"", "ivf", 1) for space, lo, hi in indexes]
        return Manifest(row_file_rows=16_384, model="v4", indexes=files)

    parts = [("chronos", lo, lo + 4_096) for lo in (0, 4_096, 8_192)]
    assert not reload.reaches(manifest(*parts, ("attack", 0, 16_384), ("chronos", 16_384, 20_480)), 16_384)
    assert reload.reaches(manifest(("chronos", 0, 16_384)), 16_384)
    assert reload.reaches(manifest(("chronos", 0, 32_768)), 16_384)


def test_there_is_always_room_to_feed_before_the_edge() -> None:
    assert reload.edge_after(10_000) == 16_384
    assert reload.edge_after(14_784) == 16_384
    assert reload.edge_after(14_785) == 32_768
