"""Dead letters: what their reasons have in common, how many there are, and the newest of them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import KeyFileError
from engine.limits import SOURCES_MAX
from engine.store import coverage, dead_letters
from engine.store.cipher import Cipher, NoKey
from engine.store.dead_letters import (
    BLOCK_BYTES,
    FILE_CHARS_MAX,
    OTHER,
    REASONS_MAX,
    Letter,
    Tally,
    common,
    newest,
    tallied,
)
from engine.store.publish import Submission
from ipc.messages import Reject
from tests.events import T0, make, several
from tests.store_fixture import Store


@pytest.mark.parametrize(
    ("reason", "group"),
    [
        ("port is not in 0..65535", "port is not in 0..65535"),
        ("'12/31' is not a date and time", "'...' is not a date and time"),
        ('"it\'s" is not an address', "'...' is not an address"),
        (r"'a\'b 7' is not an address", "'...' is not an address"),
        ("'cut off in the mid", "'...'"),
        ("83 columns, the header has 84", "N columns, the header has N"),
        ("a verdict's classification or the event's is out of range",) * 2,
        ("not utf-8, sha256 differs at 0xdeadBEEF", "not utf-8, sha256 differs at N"),
        ("Expected `int` <= 65535 - at `$.x[3]`", "Expected `int` <= N - at `$.x[N]`"),
        ("no  number:\n -1.5e-7", "no number: N"),
        ("", "(none)"),
        ("7" * 600, "N"),
        ("x" * 600, "x" * 120),
    ],
)
def test_what_reasons_have_in_common(reason: str, group: str) -> None:
    assert common(reason) == group


@given(st.text(max_size=512))
def test_a_group_is_short_and_one_line_whatever_the_reason_says(reason: str) -> None:
    group = common(reason)
    assert 0 < len(group) <= 120
    assert len(group.split("\n")) == 1


@given(st.integers(), st.text(max_size=40))
def test_numbers_and_quoted_values_make_no_new_group(number: int, word: str) -> None:
    assert common(f"{word!r} of column {abs(number)} is not a number") == "'...' of column N is not a number"


def test_tallies_are_bounded_and_name_the_newest() -> None:
    words = [f"{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(REASONS_MAX + 10)]
    tallies = tallied({}, [Reject("f", i, word) for i, word in enumerate(words)], 1)
    assert len(tallies) == REASONS_MAX + 1
    assert tallies[OTHER] == Tally(10, 1, "f", len(words) - 1)
    again = tallied(tallies, [Reject("d/" * 200, -1, words[0])], 2)
    assert again[words[0]].count == 2
    assert again[words[0]].at == 2
    assert len(again[words[0]].file) == FILE_CHARS_MAX + 3
    assert tallies[words[0]].count == 1


def submit(store: Store, rejects: list[Reject], source: str = "lab", **more: object) -> None:
    store.publisher.publish([Submission("ndjson", [], rejects, lambda outcome: None, source=source, **more)])  # type: ignore[arg-type]


def counted(store: Store) -> dict[tuple[str, str], int]:
    with store.catalog.read() as view:
        found = dead_letters.load(view, view.counters())
    assert found == store.publisher.letters
    return {(s, reason): t.count for s, some in found.items() for reason, t in some.items()}


def test_letters_are_counted_with_their_commit(store: Store) -> None:
    submit(store, [Reject("a", 1, "'x' is not a date"), Reject("a", 2, "'y' is not a date"), Reject("a", 3, "no ts")])
    submit(store, [Reject("b", 1, "no ts")], "other")
    store.publish([make(0)])
    store.publish([make(0, dst_port=99), make(1, src_ip="nowhere")])
    assert counted(store) == {
        ("lab", "'...' is not a date"): 2, ("lab", "no ts"): 1, ("other", "no ts"): 1,
        ("test", "event '...' is stored with other content; it was not changed"): 1,
        ("test", "'...' is not an address"): 1,
    }  # fmt: skip
    assert {s: c.rejected for s, c in store.publisher.counters.sources.items()} == {"lab": 3, "other": 1, "test": 2}
    assert len(list(newest(store.layout.dead_letters))) == 6
    before = store.publisher.letters
    store.close()
    again = Store(store.layout.data_dir)
    store.__dict__.update(again.__dict__)
    assert counted(store) and store.publisher.letters == before


def test_a_letter_of_a_batch_that_was_not_stored_is_there_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(store, [Reject("a", 1, "first")])

    def full(*args: object) -> None:
        raise OSError(28, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(type(store.catalog), "write", full)
        with pytest.raises(OSError, match="no space"):
            submit(store, [Reject("a", 2, "second")])
    assert [x.offset for x in newest(store.layout.dead_letters)] == [2, 1]
    assert sum(counted(store).values()) == 1
    submit(store, [Reject("a", 2, "second"), Reject("a", 3, "third")])
    assert [x.offset for x in newest(store.layout.dead_letters)] == [3, 2, 1]
    assert sum(counted(store).values()) == 3


def test_a_file_that_was_taken_away_begins_anew(store: Store) -> None:
    submit(store, [Reject("a", n, "x" * 100) for n in range(20)])
    store.layout.dead_letters.unlink()
    submit(store, [Reject("a", 20, "x")])
    submit(store, [Reject("a", 21, "x")])
    assert [x.offset for x in newest(store.layout.dead_letters)] == [21, 20]
    assert sum(counted(store).values()) == 22


def test_the_first_letters_of_all_are_there_once_too(store: Store) -> None:
    """A power failure may leave their bytes as garbage."""
    store.layout.dead_letters.write_bytes(b"garbage")
    submit(store, [Reject("a", 21, "x")])
    assert [x.offset for x in newest(store.layout.dead_letters)] == [21]
    assert b"garbage" not in store.layout.dead_letters.read_bytes()


def test_letters_of_a_catalog_that_was_taken_away_stay(tmp_path: Path) -> None:
    letters = tmp_path / "data" / "dead_letters.ndjson"
    with Store(tmp_path / "data") as store:
        submit(store, [Reject("a", 1, "x")])
    shutil.rmtree(tmp_path / "data" / "catalog")
    with Store(tmp_path / "data") as store:
        submit(store, [Reject("a", 2, "x")])
    assert [x.offset for x in newest(letters)] == [2, 1]


def test_sources_of_letters_are_bounded(store: Store) -> None:
    store.publisher.publish(
        [
            Submission("ndjson", [], [Reject("a", 1, "x")], lambda outcome: None, source=f"s{n}")
            for n in range(SOURCES_MAX + 5)
        ]
    )
    submit(store, [Reject("a", 1, "x")], "ü" * 128)
    store.publish(several(2))
    counters = store.publisher.counters
    assert len(counters.sources) == SOURCES_MAX + 1
    assert (counters.sources["(other)"].rejected, counters.sources["(other)"].events) == (6, 2)
    with store.catalog.read() as view:
        assert coverage.load(store.layout, view, counters).keys() == {"(other)"}
        found = dead_letters.facts(dead_letters.load(view, counters))
    assert (found["count"], len(found["reasons"]), found["reasons_more"]) == (SOURCES_MAX + 6, 100, SOURCES_MAX - 99)


@given(st.lists(st.integers(0, 70_000), max_size=12), st.booleans(), st.integers(1, 5_000))
def test_the_newest_are_the_lines_from_the_end(sizes: list[int], partial: bool, block: int) -> None:
    """Whatever lies on the edges of the blocks; a last line that is not whole, and one that is none, are left out."""
    lines = [msgspec.json.encode(Letter("2026", "f", i, "r", "A" * (n // 14))) + b"\n" for i, n in enumerate(sizes)]
    with tempfile.NamedTemporaryFile() as file, pytest.MonkeyPatch.context() as patched:
        patched.setattr(dead_letters, "BLOCK_BYTES", block)
        file.write(b"".join(line + b"not one\n" for line in lines) + (b'{"at":"2027","fi' if partial else b""))
        file.flush()
        assert [x.offset for x in newest(Path(file.name))] == list(range(len(sizes)))[::-1]


def test_only_the_end_of_a_large_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "letters"
    dead_letters.append(path, [Reject("f", n, "r", b"x" * 1_000) for n in range(3_000)], T0)
    assert path.stat().st_size > 4 * BLOCK_BYTES
    monkeypatch.setattr(dead_letters, "LOOK_BYTES_MAX", 2 * BLOCK_BYTES)
    found = [x.offset for x in newest(path)]
    assert found == list(range(2_999, 2_999 - len(found), -1))
    assert 0 < len(found) < 1_000


# ---- encrypted ----------------------------------------------------------------------------------------------------
SECRET = [Reject("/f", n, f"'SECRET{n}' is not an address", b"SECRET %d" % n) for n in range(4)]


def test_sealed_letters_tell_nothing_without_the_key_and_all_with_it(tmp_path: Path) -> None:
    cipher, path, clear = Cipher(bytes(32)), tmp_path / "letters", tmp_path / "clear"
    size = dead_letters.append(path, SECRET, T0, 0, cipher)
    dead_letters.append(clear, SECRET, T0, 0)
    blob = path.read_bytes()
    assert size == len(blob) and b"SECRET" not in blob and b"U0VDUkVU" not in blob
    assert b"SECRET" in clear.read_bytes()
    assert list(newest(path, cipher)) == list(newest(clear))
    assert dead_letters.damaged(path, size) == 0  # takes no key
    with pytest.raises(KeyFileError, match="are encrypted and no key is given"):
        list(newest(path))
    with pytest.raises(KeyFileError):
        list(newest(path, NoKey(cipher.key_id)))
    assert list(newest(path, Cipher(bytes(range(32))))) == []


def test_a_sealed_letter_that_was_changed_or_moved_is_not_shown(tmp_path: Path) -> None:
    cipher, path = Cipher(bytes(32)), tmp_path / "letters"
    size = dead_letters.append(path, SECRET, T0, 0, cipher)
    lines = path.read_bytes().splitlines()
    moved = msgspec.json.decode(lines[1], type=dead_letters.Sealed)
    moved.offset = 7
    bad = bytearray(lines[2])
    bad[bad.index(b"sealed") + 20] ^= 1
    path.write_bytes(b"\n".join([lines[0], moved.line().rstrip(), bytes(bad), lines[3], b""]))
    assert [x.offset for x in newest(path, cipher)] == [3, 0]
    assert dead_letters.damaged(path, size) == 1  # of the one that was moved the sum is right


def test_sealed_letters_are_purged_by_what_they_hold(tmp_path: Path) -> None:
    cipher, path = Cipher(bytes(32)), tmp_path / "letters"
    dead_letters.append(path, SECRET, T0, 0, cipher)
    before = path.read_bytes().splitlines(keepends=True)
    removed, left, size = dead_letters.rewritten(path, lambda x: x.data == b"SECRET 2", lambda: None, cipher)
    assert (removed, left, size) == (1, 3, path.stat().st_size)
    assert path.read_bytes() == b"".join(before[:2] + before[3:])
