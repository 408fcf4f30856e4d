"""50,000 frames and a share of them for every other target, the same at every run. By hand a million: make fuzz"""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

from tests.fuzz.__main__ import everything
from tests.fuzz.mutate import MSGPACK, TEXT, mutated
from tests.fuzz.run import attempt
from tests.fuzz.targets import CORPUS, TARGETS, Target

FRAMES, SEED = 50_000, 11


def test_hostile_bytes_cost_an_error_of_the_layer_and_nothing_else() -> None:
    figures = everything(FRAMES, SEED, 2)
    assert [found for of in figures.values() for found in of["findings"]] == []
    assert figures["frames"]["inputs"] == FRAMES and figures.keys() == set(TARGETS)


def test_a_seed_draws_the_same_inputs() -> None:
    def some(seed: int) -> list[bytes]:
        return [mutated(Random(f"{seed}/{i}"), [b"abc" * 9, b"{}"], (*TEXT, *MSGPACK)) for i in range(50)]

    assert some(1) == some(1) != some(2)
    assert all(a != b for a, b in itertools.pairwise(some(1)))


def test_another_exception_is_a_finding_and_the_own_is_none() -> None:
    def run(data: bytes) -> None:
        raise ValueError(data) if data else KeyError("x")

    target = Target(run, [], [], (ValueError,))
    assert attempt(target, b"x") == ""
    assert attempt(target, b"").startswith("KeyError: 'x' (test_fuzz.py:")


def test_every_corpus_is_of_a_target_and_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)
    assert all(path.stat().st_size < 8_192 for path in Path(CORPUS).rglob("*") if path.is_file())
