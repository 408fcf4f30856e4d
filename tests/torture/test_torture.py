"""The oracle of the torture would notice, its table is whole, and twenty kills of it. By the hour: make torture"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.normalize import complete
from engine.store.publish import Submission
from ipc.messages import ErrorCode, Failure, Ingested, Reject, Stored
from tests.engine_fixture import environment
from tests.store_fixture import Store
from tests.torture.faults import Faults
from tests.torture.oracle import FOLLOWED, Batch, Book, Oracle, difference, sent, spoiled
from tests.torture.schedule import WEIGHTS, draw
from tests.torture.verify import in_clear
from tests.torture.writer import judge


def test_a_seed_draws_the_same_faults_each_once_before_any_comes_again() -> None:
    first, again, other = (list(itertools.islice(draw(seed), 100)) for seed in (7, 7, 8))
    assert first == again != other
    assert {step.fault for step in first[: len(WEIGHTS)]} == WEIGHTS.keys()
    assert all(callable(getattr(Faults, fault)) for fault in WEIGHTS)


def test_the_oracle_knows_what_is_lost_and_what_is_half_there(tmp_path: Path) -> None:
    book, oracle = Book(tmp_path / "oracle"), Oracle(tmp_path / "oracle")
    for batch in (Batch(0, 3), Batch(3, 2), Batch(5, 4)):
        book.send(batch)
    book.acknowledge(Batch(0, 3), 2)
    book.finding("seen")
    oracle.look()
    assert (oracle.generation, oracle.next, oracle.events, oracle.findings) == (2, 9, 3, ["'seen'"])
    assert oracle.open() == [Batch(3, 2), Batch(5, 4)]
    known = oracle.acknowledged
    assert oracle.broken({0, 1, 2, 3, 4, FOLLOWED}, known) == []
    assert [text.partition(":")[0] for text in oracle.broken({0, 1, 5}, known)] == ["half a batch"] * 2
    assert [text.partition(":")[0] for text in oracle.broken(set(), known)] == ["lost"]
    with (tmp_path / "oracle").open("a") as file:
        file.write("A 3 2")  # killed in the middle
    assert oracle.look().acknowledged == [Batch(0, 3, 2)]
    Book(tmp_path / "oracle").send(Batch(9, 1))
    again = Oracle(tmp_path / "oracle").look()
    assert (again.next, again.acknowledged) == (10, [Batch(0, 3, 2)])


def test_the_oracle_knows_what_was_purged_and_that_the_oldest_leave_first(tmp_path: Path) -> None:
    book, oracle = Book(tmp_path / "oracle"), Oracle(tmp_path / "oracle")
    batches = [Batch(first, 100, generation) for generation, first in enumerate(range(0, 1_000, 100), 2)]
    for batch in batches:
        book.send(batch)
        book.acknowledge(batch, batch.generation)
    known, everything = oracle.look().acknowledged, set(range(1_000))
    assert oracle.broken(everything, known, retains=True) == []
    oracle.asked.add(300)
    half = everything - set(range(350, 400))
    assert oracle.may_be_gone(known[3]) and not oracle.may_be_gone(known[2])
    assert oracle.broken(half, known) == []
    assert oracle.broken(half, known, [300]) == [f"purged, and there: {known[3]}"]
    assert oracle.broken(everything - set(range(300, 400)), known, [300]) == []
    assert oracle.broken(half - {0}, known)[0].startswith("half a batch")
    left = set(range(550, 1_000))
    assert oracle.broken(left, known, retains=True) == []
    assert len(oracle.broken(left, known)) == 5
    assert oracle.broken(left - set(range(900, 1_000)), known, retains=True) == [f"lost: {known[9]}"]
    assert oracle.broken(left - {950}, known, retains=True) == [f"half a batch: 99 of {known[9]}"]


def test_the_oracle_knows_an_event_that_is_not_as_it_was_sent() -> None:
    item = sent(3)
    stored = Stored(0, complete(sent(3), count=False), None, item.features, item.raw)
    assert difference(stored, whole=True) == ""
    features = bytearray(item.features)
    features[3] ^= 1
    assert difference(Stored(0, stored.event, None, bytes(features), item.raw), whole=True)
    assert difference(Stored(0, stored.event, None, item.features, item.raw[1:]), whole=True)
    stored.event.dst_port = 1  # type: ignore[union-attr]
    assert difference(stored)


def test_an_answer_that_says_half_of_a_batch_was_there_is_a_finding(tmp_path: Path) -> None:
    book, batch, oracle = Book(tmp_path / "oracle"), Batch(0, 3), Oracle(tmp_path / "oracle")
    assert not judge(book, oracle, batch, Failure(1, ErrorCode.NO_SPACE, ""))
    assert judge(book, oracle, batch, Ingested(1, 2, 0, 3, 0))
    assert Oracle(tmp_path / "oracle").look().findings == []
    assert judge(book, oracle, batch, Ingested(1, 2, 1, 2, 0))
    assert not judge(book, oracle, batch, Failure(1, ErrorCode.INTERNAL, ""))
    assert judge(book, oracle, Batch(0, 3, 2), Ingested(1, 2, 0, 3, 0))
    assert len(Oracle(tmp_path / "oracle").look().findings) == 2
    assert judge(book, oracle, Batch(0, 3, 2), Ingested(1, 3, 3, 0, 0))
    assert len(Oracle(tmp_path / "oracle").look().findings) == 3
    oracle.let_go(batch)
    assert judge(book, oracle, Batch(0, 3, 2), Ingested(1, 3, 3, 0, 0))
    assert len(Oracle(tmp_path / "oracle").look().findings) == 3, "what was purged may be stored anew"


def test_what_is_sent_again_after_it_left_does_not_make_others_lost(tmp_path: Path) -> None:
    book, oracle = Book(tmp_path / "oracle"), Oracle(tmp_path / "oracle")
    batches = [Batch(first, 500, 1 + first) for first in range(0, 5_000, 500)]
    for batch in batches:
        book.send(batch)
        book.acknowledge(batch, batch.generation)
    book.send_again(batches[1])
    oracle.let_go(None)
    there = set(range(500, 1_000)) | set(range(3_000, 5_000))  # the second was stored anew
    assert oracle.retains and oracle.broken(there, batches, retains=True) == []


@pytest.mark.parametrize("encrypted", [False, True])
def test_words_of_events_and_dead_letters_in_the_clear_are_found(tmp_path: Path, encrypted: bool) -> None:
    key_file = tmp_path / "key"
    key_file.touch(0o600)
    key_file.write_text("6b" * 32)
    rejects = [Reject("file", n, "no JSON", spoiled(n)) for n in (1, 10, 100)]
    with Store(tmp_path / "data", key_file if encrypted else None) as store:
        store.publisher.publish([Submission("ndjson", [sent(1)], rejects, lambda outcome: None, source="torture")])
    assert list(in_clear(tmp_path / "data", encrypted=encrypted)) == []
    found = list(in_clear(tmp_path / "data", encrypted=not encrypted))
    files = ("catalog/catalog", "dead_letters.ndjson")
    assert all(any(name in finding for finding in found) for name in files), found


KILLS = 20


def test_twenty_kills_and_nothing_is_lost(record_property: Callable[[str, object], None]) -> None:
    """The real thing, as briefly as so many kills can be: an hour of it is run by hand."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "tests.torture",
        "--brief",
        "--kills",
        str(KILLS),
        "--minutes",
        "1",
        "--json",
    ]
    done = subprocess.run([*command, "--seed", "1"], env=environment(), capture_output=True, text=True, check=False)
    figures = json.loads(done.stdout)
    assert figures["findings"] == [] and done.returncode == 0
    assert figures["kills"] >= KILLS and figures["acknowledged"] > 0 and figures["checks"]["look_up"] > 0
    record_property("kills", figures["kills"])
