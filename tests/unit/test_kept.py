"""What a reader keeps of the events that were in its last answers."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.embed.base import FUSED, SPACES
from engine.kept import ENTRY_BYTES, Kept, KeptEvents
from engine.manifest import Manifest
from engine.query import Answering, stored_question
from ipc.messages import Answer, Options, encode
from tests.store_fixture import Store

HEAD = bytes(100)
ONE = len(HEAD) + ENTRY_BYTES
MANIFEST = Manifest(row_file_rows=64, model="v1")


def test_what_was_asked_for_least_lately_goes_first() -> None:
    kept = KeptEvents(3 * ONE)
    for seq in (1, 2, 3):
        kept.put(seq, Kept(HEAD, seq))
    assert kept.get(1) == Kept(HEAD, 1)
    kept.put(4, Kept(HEAD, 4))
    assert [kept.get(seq) is not None for seq in (1, 2, 3, 4)] == [True, False, True, True]


@given(st.integers(0, 10 * ONE), st.lists(st.tuples(st.integers(0, 50), st.integers(0, 400))))
def test_never_more_bytes_than_it_may_hold(bytes_max: int, puts: list[tuple[int, int]]) -> None:
    kept, sizes = KeptEvents(bytes_max), dict[int, int]()
    for seq, size in puts:
        if kept.get(seq) is None:
            kept.put(seq, Kept(bytes(size), 0))
            sizes[seq] = size + ENTRY_BYTES
        assert sum(sizes[seq] for seq in sizes if kept.get(seq) is not None) <= bytes_max


def test_nothing_is_kept_beyond_the_snapshot_that_had_it() -> None:
    kept = KeptEvents(10 * ONE)
    changes = ({"epoch": 1}, {"revisions": {0: 1}}, {"first": 1}, {"purges": 1})
    for change in changes:
        kept.follow(MANIFEST)
        kept.put(7, Kept(HEAD, 0))
        kept.follow(msgspec.structs.replace(MANIFEST, generation=9, count=1_000))
        assert kept.get(7) is not None, "more events leave what is stored as it was"
        kept.follow(msgspec.structs.replace(MANIFEST, **change))
        assert kept.get(7) is None, change


def test_answers_are_the_same_with_and_without(full: Store) -> None:
    kept, models, snapshot = KeptEvents(1 << 20), full.publisher.models, full.snapshot()
    asked = [(f"e{n:06d}", Options(space=space)) for n in (3, 42, 3) for space in (*SPACES, FUSED)]

    def answers(*more: KeptEvents) -> list[bytes]:
        with full.catalog.read() as view:
            questions = [stored_question(name, options, snapshot, view, models, *more) for name, options in asked]
            found = Answering(snapshot, models, view, *more).answer(questions)
        assert all(isinstance(one, Answer) for one in found)
        return [encode(msgspec.structs.replace(one, took_us=0)) for one in found if isinstance(one, Answer)]

    without = answers()
    assert [answers(kept), answers(kept)] == [without, without]
    assert kept.get(42) is not None
