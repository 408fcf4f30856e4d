"""Followed files: growth, rotation, restarts. Every line is returned, and what is returned twice has the same id."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.errors import SourceError
from engine.sources import follow
from engine.sources.base import SourceSpec
from engine.sources.follow import QUIET_POLLS, Batch, FileState, Follower
from ipc.messages import Reject
from tests.unit.test_eve import ALERT, FLOW, HTTP
from tests.unit.test_eve import lines as eve_lines


def line(i: int) -> bytes:
    return b'{"ts": %d, "text": "%s"}\n' % (i, b"x" * 60)


def lines(first: int, last: int) -> bytes:
    return b"".join(map(line, range(first, last)))


class Watch:
    """A follower that is restarted at will, with what an engine would have stored: states, and events by id."""

    def __init__(self, path: Path, pattern: str = "*", format: str = "ndjson") -> None:
        self.path, self.pattern, self.format = path, pattern, format
        self.states: dict[str, FileState] = {}
        self.ids: dict[str, int] = {}
        self.repeats = 0
        self.rejects: list[Reject] = []
        self.follower = self.make()

    def make(self) -> Follower:
        return Follower(self.path, SourceSpec("s"), self.format, self.pattern, self.states)

    def restart(self) -> None:
        self.follower.close()
        self.follower = self.make()

    def take(self, batches: list[Batch]) -> None:
        for batch in batches:
            self.states[batch.key] = msgspec.msgpack.decode(msgspec.msgpack.encode(batch.state), type=FileState)
            self.rejects += batch.parsed.rejects
            for item in batch.parsed.events:
                self.repeats += item.event.event_id in self.ids
                self.ids[item.event.event_id] = item.event.ts

    def poll(self, max_bytes: int = 1 << 20) -> None:
        while True:
            self.take(self.follower.poll(max_bytes))
            if not self.follower.behind:
                return

    @property
    def seen(self) -> list[int]:
        return sorted(self.ids.values())


@pytest.fixture(params=["directory", "file"])
def watch(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Watch]:
    made = Watch(tmp_path if request.param == "directory" else tmp_path / "eve.json")
    yield made
    made.follower.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "eve.json"


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as f:
        f.write(data)


def test_growth_partial_lines_and_restarts(watch: Watch, log: Path) -> None:
    watch.poll()
    append(log, lines(0, 3) + line(3)[:10])
    watch.poll()
    assert watch.seen == [0, 1, 2]
    watch.restart()
    watch.poll()
    append(log, line(3)[10:])
    watch.poll()
    append(log, lines(4, 50))
    watch.poll(max_bytes=100)
    assert watch.seen == list(range(50)) and not watch.repeats and not watch.rejects
    assert watch.follower.poll() == []
    watch.restart()
    assert watch.follower.poll() == []  # nothing new, nothing to store
    (state,) = watch.states.values()
    assert state.offset == log.stat().st_size and state.path == "eve.json"


def test_identical_lines_keep_their_ids_over_a_restart(watch: Watch, log: Path) -> None:
    append(log, line(1) * 3)
    watch.poll()
    watch.restart()
    append(log, line(1) * 2)
    watch.poll()
    assert len(watch.ids) == 5 and not watch.repeats


def test_renamed_while_running(watch: Watch, log: Path) -> None:
    append(log, lines(0, 40))
    watch.poll()
    append(log, lines(40, 45))
    log.rename(log.with_name("eve.json.1"))
    append(log, lines(100, 103))
    append(log.with_name("eve.json.1"), lines(45, 47))  # the writer has not noticed yet
    watch.poll()
    assert watch.seen == [*range(47), 100, 101, 102] and not watch.repeats


def test_renamed_while_down(watch: Watch, log: Path) -> None:
    append(log, lines(0, 40))
    watch.poll()
    watch.follower.close()
    append(log, lines(40, 45))
    log.rename(log.with_name("eve.json.1"))
    append(log, lines(100, 103))
    watch.restart()
    watch.poll()
    assert watch.seen == [*range(45), 100, 101, 102] and not watch.repeats


def test_compressed_while_down(watch: Watch, log: Path) -> None:
    append(log, lines(0, 40))
    watch.poll()
    watch.follower.close()
    append(log, lines(40, 45))
    log.with_name("eve.json.1.gz").write_bytes(
        gzip.compress(log.read_bytes()[:2_000]) + gzip.compress(log.read_bytes()[2_000:])
    )
    log.unlink()
    append(log, lines(100, 103))
    watch.restart()
    watch.poll()
    assert watch.seen == [*range(45), 100, 101, 102] and not watch.repeats
    watch.restart()
    assert watch.follower.poll() == []


def test_compressed_while_running(watch: Watch, log: Path) -> None:
    append(log, lines(0, 40))
    watch.poll()
    old = log.with_name("eve.json.1")
    log.rename(old)
    append(log, lines(100, 103))
    packed = gzip.compress(old.read_bytes())
    log.with_name("eve.json.1.gz").write_bytes(packed[:300])  # half written
    watch.poll()
    append(log.with_name("eve.json.1.gz"), packed[300:])
    watch.poll()
    old.unlink()
    for _ in range(2 * QUIET_POLLS):
        watch.poll()
    append(log, lines(103, 105))
    watch.poll()
    assert watch.seen == [*range(40), *range(100, 105)] and not watch.rejects and not watch.repeats


@pytest.mark.parametrize("down", [False, True])
def test_copied_and_truncated(watch: Watch, log: Path, down: bool) -> None:
    append(log, lines(0, 40))
    watch.poll()
    if down:
        watch.follower.close()
    append(log, lines(40, 45))
    shutil.copyfile(log, log.with_name("eve.json.1"))
    os.truncate(log, 0)
    if down:
        watch.restart()
    watch.poll()
    append(log, lines(100, 190))  # longer than before
    watch.poll()
    assert watch.seen == [*range(45), *range(100, 190)] and not watch.repeats


def test_truncated_and_outgrown_between_two_looks(watch: Watch, log: Path) -> None:
    append(log, lines(0, 10))
    watch.poll()
    log.write_bytes(lines(50, 90))
    watch.poll()
    assert watch.seen == [*range(10), *range(50, 90)]


def test_two_files_with_the_same_beginning_are_two(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    append(tmp_path / "a.json", line(0))
    append(tmp_path / "b.json", line(0))
    watch.poll()
    assert len(watch.states) == 2
    append(tmp_path / "a.json", lines(1, 40))
    append(tmp_path / "b.json", lines(100, 140))
    watch.poll()
    watch.restart()
    append(tmp_path / "b.json", line(140))
    watch.poll()
    assert watch.seen == [*range(40), *range(100, 141)]
    watch.follower.close()


def test_archives_in_a_directory_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "old.json.gz").write_bytes(gzip.compress(lines(0, 100)[:-1]))
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(lines(200, 300))[:-20])
    (tmp_path / "bad.json.gz").write_bytes(gzip.compress(lines(400, 410)) + b"junk")
    watch = Watch(tmp_path)
    watch.poll(max_bytes=500)
    assert watch.seen[:100] == list(range(100))
    assert watch.seen[-10:] == list(range(400, 410))
    assert [r.reason for r in watch.rejects] == ["gzip: something else follows after 1 members"]
    assert watch.rejects[0].file == str(tmp_path / "bad.json.gz")
    watch.restart()
    watch.poll()
    assert not watch.repeats and len(watch.rejects) == 1
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(lines(200, 300)))
    watch.poll()
    assert watch.seen == [*range(100), *range(200, 300), *range(400, 410)] and not watch.repeats
    watch.follower.close()


def test_only_regular_files_beneath_the_directory(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.json").write_bytes(line(1))
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.json").write_bytes(line(2))
    (root / "link.json").symlink_to(tmp_path / "secret.json")
    (root / "dir").symlink_to(tmp_path / "far")
    os.mkfifo(root / "pipe.json")
    (root / "sub" / "good.json").write_bytes(line(3))
    (root / "other.txt").write_bytes(line(4))
    watch = Watch(root, "*.json")
    watch.poll()
    assert watch.seen == [3]
    watch.follower.close()


def test_a_file_that_nothing_reads_is_one_reject(tmp_path: Path) -> None:
    watch = Watch(tmp_path, format="auto")
    append(tmp_path / "notes.txt", b"hello\n")
    watch.poll()
    assert not watch.rejects  # too short to tell
    append(tmp_path / "notes.txt", b"hello\n" * 20_000)
    append(tmp_path / "eve.json", b'{"event_id": "a", "ts": 5}\n')
    for _ in range(3):
        watch.poll()
        append(tmp_path / "notes.txt", b"hello\n")
    assert [r.reason.split(":")[0] for r in watch.rejects] == ["notes.txt"] and watch.seen == [5]
    watch.follower.close()


def test_gone_files_are_let_go_with_their_last_line(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    append(tmp_path / "a.json", lines(0, 2) + line(2)[:-1])
    watch.poll()
    (tmp_path / "a.json").unlink()
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(QUIET_POLLS + 1):
        watch.poll()
    assert watch.seen == [0, 1, 2]
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before - 1
    watch.follower.close()


@pytest.mark.parametrize("open_max", [1, 3])
def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_max: int) -> None:
    monkeypatch.setattr(follow, "OPEN_FILES_MAX", open_max)
    watch = Watch(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for round_ in range(3):
        for i in range(10):
            append(tmp_path / f"{i}.json", lines(1000 * i + 5 * round_, 1000 * i + 5 * round_ + 5))
        watch.poll()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + open_max
    assert watch.seen == [1000 * i + j for i in range(10) for j in range(15)] and not watch.repeats
    for i in range(10):
        (tmp_path / f"{i}.json").unlink()
    watch.poll()
    watch.follower.close()


def test_text_that_waits_is_joined_over_a_restart_and_a_rotation(watch: Watch, log: Path) -> None:
    watch.format = "eve"
    watch.restart()
    append(log, eve_lines(ALERT, HTTP, ALERT, {**FLOW, "flow_id": 70}))
    texts: dict[str, str] = {}

    def poll() -> None:
        for batch in watch.follower.poll():
            watch.take([batch])
            for item in batch.parsed.events:
                texts.setdefault(item.event.event_id, item.event.text)

    poll()
    (state,) = watch.states.values()
    assert state.offset == len(eve_lines(ALERT)) and len(texts) == 3
    watch.follower.close()
    append(log, eve_lines(FLOW, ALERT))
    log.rename(log.with_name("eve.json.1"))
    watch.restart()
    poll()
    assert len(texts) == 5 and list(texts.values()).count("evil.example | /a?b | curl") == 1
    assert watch.states[next(iter(watch.states))].offset == log.with_name("eve.json.1").stat().st_size


def test_a_missing_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        Follower(tmp_path / "none" / "eve.json", SourceSpec("s")).poll()
