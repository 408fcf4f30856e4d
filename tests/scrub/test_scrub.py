"""A few damages of each kind, the same at every run; that the cases would notice; and heads of the catalog bit by bit.

By hand more of them: python -m tests.scrub --bits 1000 --truncations 200
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from engine.store.structure import check
from tests.events import several
from tests.scrub.case import Case, Mended, send
from tests.scrub.damage import HARMLESS, PAGE, WEIGHTS, Damage, Places, draw, kind_of
from tests.scrub.look import Seen, look
from tests.scrub.pool import cases
from tests.scrub.store import Known, build
from tests.store_fixture import Store

BITS, TRUNCATIONS, SEED = 20, 8, 31


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Known]]:
    whole = tmp_path_factory.mktemp("scrub") / "whole"
    yield whole, build(whole)


def test_no_damage_breaks_a_promise(
    made: tuple[Path, Known], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    whole, known = made
    damages = [*draw(whole, SEED, BITS, TRUNCATIONS)]
    done = [*cases(whole, known, damages, tmp_path, 2)]
    assert [(case.damage, case.broken()) for case in done if case.broken()] == []
    assert {case.damage.kind for case in done} == WEIGHTS.keys()
    assert len({case.outcome for case in done}) > 3
    record_property("damages", len(done))


def test_a_seed_draws_the_same_damages(made: tuple[Path, Known]) -> None:
    whole, _ = made
    assert [*draw(whole, 1, 50, 10)] == [*draw(whole, 1, 50, 10)] != [*draw(whole, 2, 50, 10)]
    assert {kind_of(d.file) for d in draw(whole, 1, 200, 0)} == WEIGHTS.keys()


def test_a_whole_directory_is_whole_and_what_is_known_of_it_is_compared(
    made: tuple[Path, Known], tmp_path: Path
) -> None:  # fmt: skip
    whole, known = made
    assert look(whole, known).whole
    other = msgspec.structs.replace(known, records=[(b"x", *known.records[0][1:]), *known.records[1:]])
    assert "record 0" in look(whole, other).wrong
    distances = {what: {seq: d + (seq == 3) for seq, d in of.items()} for what, of in known.distances.items()}
    seen = look(whole, msgspec.structs.replace(known, distances=distances))
    assert any("distance of 3" in what for what in seen.wrong)
    answers = {what: [*hits, (1, 0.0)] for what, hits in known.answers.items()}
    assert look(whole, msgspec.structs.replace(known, answers=answers)).missing
    shutil.copytree(whole, tmp_path / "data")
    sent = send(tmp_path / "data")
    assert (sent.wrong, sent.said, sent.refused) == ([], [], "")


def test_what_a_case_calls_broken() -> None:
    def case(place: str = "rows", look: Seen | None = None, again: Seen | None = None, file: str = "rows/x", **more):  # type: ignore[no-untyped-def]
        empty = Mended(), again or Seen(), Mended()
        made = Case(Damage(file, 0, 0), place, look or Seen(), *empty)
        return msgspec.structs.replace(made, **more).broken()

    noticed = Mended(said=["mended"])
    assert case() == ["nobody noticed; []"]
    assert case(place=HARMLESS[0]) == []
    assert case(place=HARMLESS[0], look=Seen(missing=["record 1"]))
    assert case(mend=noticed) == []
    assert case(mend=noticed, look=Seen(wrong=["record 1"])) == ["look: record 1"]
    assert case(mend=noticed, again=Seen(missing=["record 1"]))[0].startswith("not whole again")
    forgotten = Seen(missing=["offset of 'eve'"])
    assert case(mend=noticed, again=forgotten)[0].startswith("not whole again")
    assert case(mend=Mended(said=["mended: catalog offsets: 1 damaged values are mended"]), again=forgotten) == []
    assert case(mend=Mended(refused="no way out")) and case(mend=Mended(left=["rows"]))
    assert case(mend=noticed, died={"look": "SIGSEGV"}) == ["look died: SIGSEGV"]
    assert case(mend=noticed, died={"look": "SIGSEGV"}, file="indexes/x") == []
    assert case(mend=noticed, died={"mend": "SIGSEGV"}, file="indexes/x") == ["mend died: SIGSEGV"]


def test_every_bit_of_the_head_in_use_is_seen_or_means_nothing(tmp_path: Path) -> None:
    """Magic, version, both trees, the last page, the transaction: one flipped bit of them is never passed over. One of
    the transaction's makes it the one before; what was published by it the counter knows (engine/store/recover.py)."""
    with Store(tmp_path / "data") as store:
        store.publish(several(10))
    places, path = Places(tmp_path / "data"), tmp_path / "catalog"
    blob = bytearray(places.blob)
    unseen = []
    for at in range(places.pages.current * PAGE, places.pages.current * PAGE + 160):
        for bit in range(8):
            if places.of(Damage("catalog/catalog.0", at, bit)) in HARMLESS:
                continue
            blob[at] ^= 1 << bit
            path.write_bytes(blob)
            blob[at] ^= 1 << bit
            if not check(path):
                unseen.append((at % PAGE, bit))
    assert set(unseen) <= {(144, 1)}
