"""The model of a disk: what a power failure may leave, small enough to be counted by hand."""

from __future__ import annotations

import random

import pytest

from tests.power.disk import GARBAGE, Disk, Picture
from tests.power.trace import Create, Operation, Rename, Resize, Sync, SyncRange, Unlink, Write

OLD, NEW = b"o" * 512, b"n" * 512


def disk(*operations: Operation) -> Disk:
    made = Disk()
    for operation in operations:
        made.apply(operation)
    return made


def states(*operations: Operation) -> list[Picture]:
    found: list[Picture] = []
    for picture in disk(*operations).states():
        if picture not in found:
            found.append(picture)
    return found


WRITTEN = (Create("f"), Write("f", 0, OLD * 2), Sync("f"), Sync(""))


def test_what_is_synced_stays() -> None:
    assert states(*WRITTEN) == [{"f": OLD * 2}]


def test_a_synced_file_without_a_synced_name_may_be_gone() -> None:
    assert states(*WRITTEN[:3]) == [{"f": OLD * 2}, {}]


def test_a_synced_name_says_nothing_of_what_is_in_the_file() -> None:
    left = states(Create("f"), Write("f", 0, NEW), Sync(""))
    assert {"f": b""} in left and {"f": NEW} in left and {"f": bytes(512)} in left
    drawn = [disk(Create("f"), Write("f", 0, NEW), Sync("")).draw(random.Random(n)) for n in range(200)]
    assert {"f": GARBAGE * 512} in drawn


def test_a_write_is_old_or_new_sector_by_sector() -> None:
    left = states(*WRITTEN, Write("f", 0, NEW * 2))
    assert sorted(picture["f"] or b"" for picture in left) == sorted([OLD * 2, NEW * 2, OLD + NEW, NEW + OLD])


def test_writes_are_kept_in_any_subset() -> None:
    left = states(*WRITTEN, Write("f", 0, NEW), Write("f", 512, NEW))
    assert sorted(picture["f"] or b"" for picture in left) == sorted([OLD * 2, NEW * 2, OLD + NEW, NEW + OLD])


@pytest.mark.parametrize("resize", [Resize("f", 512), Resize("f", 2048, keep=True), Resize("f", 2048)])
def test_a_size_may_be_any_that_the_file_had(resize: Resize) -> None:
    sizes = {len(picture["f"] or b"") for picture in states(*WRITTEN, resize, Write("f", 512, NEW))}
    assert sizes == {1024, resize.size, max(resize.size, 1024)}


def test_a_rename_leaves_the_old_file_or_the_new_one() -> None:
    assert states(*WRITTEN, Create("t"), Write("t", 0, NEW), Sync("t"), Rename("t", "f")) == [
        {"f": NEW}, {"f": OLD * 2, "t": NEW}, {"f": OLD * 2},
    ]  # fmt: skip


def test_a_removal_may_be_lost() -> None:
    assert states(*WRITTEN, Unlink("f")) == [{}, {"f": OLD * 2}]


def test_a_lost_folder_takes_all_along() -> None:
    made = (Create("d", folder=True), Create("d/f"), Write("d/f", 0, OLD), Sync("d/f"), Sync("d"))
    assert states(*made) == [{"d": None, "d/f": OLD}, {}]
    assert states(*made, Sync("")) == [{"d": None, "d/f": OLD}]


def test_a_synchronous_write_makes_durable_its_own_bytes_only() -> None:
    """As LMDB writes its meta page."""
    left = states(*WRITTEN, Write("f", 512, NEW), Write("f", 0, b"meta"), SyncRange("f", 0, 4))
    meta = b"meta" + OLD[4:]
    assert left == [{"f": meta + NEW}, {"f": meta + OLD}]


def test_a_synchronous_write_is_in_what_comes_later_of_the_same_sector() -> None:
    left = states(*WRITTEN, Write("f", 0, NEW * 2), Write("f", 0, b"meta"), SyncRange("f", 0, 4))
    assert all((picture["f"] or b"").startswith(b"meta") for picture in left)
    assert {"f": b"meta" + NEW[4:] + NEW} in left and {"f": b"meta" + OLD[4:] + OLD} in left


def test_a_drawn_state_depends_on_the_seed_alone() -> None:
    made = disk(*WRITTEN, Write("f", 0, NEW * 2), Create("t"))
    assert [made.draw(random.Random(n)) for n in range(50)] == [made.draw(random.Random(n)) for n in range(50)]


def test_a_move_to_another_folder_leaves_one_name_both_or_none() -> None:
    made = (*WRITTEN, Create("d", folder=True), Sync(""), Rename("f", "d/g"))
    left = states(*made)
    assert len(left) == 4
    assert {"d": None} in left and {"d": None, "d/g": OLD * 2, "f": OLD * 2} in left
    assert states(*made, Sync("d")) == [{"d": None, "d/g": OLD * 2}, {"d": None, "d/g": OLD * 2, "f": OLD * 2}]


def test_a_file_with_two_names_has_one_content() -> None:
    made = disk(*WRITTEN, Write("f", 0, NEW * 2), Create("d", folder=True), Sync(""), Rename("f", "d/g"))
    drawn = [made.draw(random.Random(n)) for n in range(100)]
    assert all(picture["f"] == picture["d/g"] for picture in drawn if {"f", "d/g"} <= picture.keys())
