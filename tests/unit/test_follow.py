"""Followed files: growth, rotation, restarts. Every line is returned, and what is returned twice has the same id."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from engine.errors import SourceError
from engine.sources import follow, look
from engine.sources.base import SourceSpec
from engine.sources.follow import QUIET_POLLS, Batch, FileState, Follower
from ipc.messages import Reject
from tests.events import T0, S
from tests.packets import UDP, P, pcap
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
            if batch.state is None:
                del self.states[batch.key]
                continue
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


@pytest.mark.parametrize("middle", ["eve.json.1", "eve.json-20260101", "eve.1.json", "eve.json.1.gz"])
@pytest.mark.parametrize("down", [True, False])
def test_one_that_came_and_was_rotated_between_two_looks_is_read(
    watch: Watch, log: Path, middle: str, down: bool
) -> None:
    append(log.with_name("eve.json.7"), lines(900, 905))  # from before we followed
    os.utime(log.with_name("eve.json.7"), (1_000_000, 1_000_000))
    append(log.with_name("eve-audit.json"), lines(800, 805))  # another one's
    watch.poll()
    append(log, lines(0, 40))
    watch.poll()
    if down:
        watch.follower.close()
    append(log, lines(40, 45))
    log.rename(log.with_name("eve.json.2"))
    data = lines(100, 103)
    log.with_name(middle).write_bytes(gzip.compress(data) if middle.endswith(".gz") else data)
    append(log, lines(200, 203))
    if down:
        watch.restart()
    watch.poll()
    others = [*range(800, 805), *range(900, 905)] if watch.path.is_dir() else []  # a directory's are all ours
    assert watch.seen == [*range(45), 100, 101, 102, 200, 201, 202, *others] and not watch.repeats
    watch.restart()
    assert watch.follower.poll() == []


def test_one_that_was_rotated_before_the_first_line_was_seen_is_read(watch: Watch, log: Path) -> None:
    log.touch()
    watch.poll()
    append(log, lines(0, 4))
    log.rename(log.with_name("eve.json.1"))
    log.touch()
    watch.poll()
    assert watch.seen == [0, 1, 2, 3]


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


@pytest.mark.parametrize("name", ["a.pcap", "a.pcap.gz"])
def test_a_capture_that_grows_after_a_silence_is_read_anew(tmp_path: Path, name: str) -> None:
    """Its flows reach back: of what comes after the first bytes nothing could be made."""

    def capture(flows: int) -> bytes:
        data = pcap([P(T0 + n * S, src_port=2000 + n, dst_port=53, proto=UDP) for n in range(flows)])
        return gzip.compress(data, mtime=0) if name.endswith("gz") else data

    def quiet(looks: int) -> None:
        for _ in range(looks):
            watch.poll()

    watch = Watch(tmp_path, format="pcap")
    (tmp_path / name).write_bytes(capture(30))
    quiet(QUIET_POLLS + 1)
    assert len(watch.ids) == 30
    (tmp_path / name).write_bytes(capture(60))
    quiet(2 * QUIET_POLLS + 1)
    assert len(watch.ids) == 60 and not watch.rejects
    repeats = watch.repeats
    assert repeats == 30  # their ids keep them from being stored twice
    watch.restart()
    quiet(QUIET_POLLS + 1)
    assert watch.repeats == repeats  # nothing new is nothing read
    watch.restart()
    (tmp_path / name).write_bytes(capture(61))
    quiet(QUIET_POLLS + 1)
    watch.follower.close()
    assert len(watch.ids) == 60 + name.endswith("gz")  # an archive is whole, of the other more may come
    watch.restart()
    quiet(2 * QUIET_POLLS + 1)
    assert len(watch.ids) == 61 and not watch.rejects
    watch.follower.close()


def test_a_capture_that_is_compressed_after_it_was_read_is_the_same_file(tmp_path: Path) -> None:
    """Else what was purged of it would come back."""
    capture = tmp_path / "a.pcap"
    capture.write_bytes(pcap([P(T0 + n * S, src_port=2000 + n, dst_port=53, proto=UDP) for n in range(30)]))
    watch = Watch(tmp_path, format="pcap")
    for _ in range(QUIET_POLLS + 1):
        watch.poll()
    assert len(watch.ids) == 30
    (tmp_path / "a.pcap.gz").write_bytes(gzip.compress(capture.read_bytes()))
    capture.unlink()
    for _ in range(QUIET_POLLS + 1):
        watch.poll()
    watch.restart()
    watch.poll()
    assert len(watch.ids) == 30 and not watch.repeats and not watch.rejects
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


class Joined(Watch):
    """An EVE log in a directory; texts by source port."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, format="eve")
        self.texts: dict[int, str] = {}

    def take(self, batches: list[Batch]) -> None:
        super().take(batches)
        for item in (item for batch in batches for item in batch.parsed.events if item.event.kind == "flow"):
            self.texts.setdefault(item.event.src_port or 0, item.event.text)

    def offsets(self) -> list[tuple[int, bool]]:
        """Of the files in the order in which they came; is it done?"""
        return [(state.offset, bool(state.done_size)) for state in self.states.values()]


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Joined]:
    made = Joined(tmp_path)
    yield made
    made.follower.close()


def said(i: int) -> bytes:
    return eve_lines({**HTTP, "flow_id": i, "http": {"url": f"/{i}"}})


def flow(i: int) -> bytes:
    return eve_lines({**FLOW, "flow_id": i, "src_port": i})


@pytest.mark.parametrize("then", ["at once", "let go", "killed"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_rotated_log_keeps_its_place_until_its_last_text_is_taken(
    joined: Joined, log: Path, then: str, packed: bool
) -> None:
    append(log, flow(1) * 3 + said(2) + flow(3) + said(4))
    joined.poll()
    waits, size = len(flow(1) * 3), log.stat().st_size
    old = log.with_name("eve.json.1.gz" if packed else "eve.json.1")
    log.rename(old)
    if packed:
        data = old.read_bytes()
        old.unlink()  # another inode, as gzip has it
        old.write_bytes(gzip.compress(data))
        os.utime(old, (1_000_000, 1_000_000))
    append(log, said(5))
    for flow_id, rest in ((2, waits + len(said(2) + flow(3))), (4, size)):
        for _ in range(QUIET_POLLS + 3 if then == "let go" else 1):
            joined.poll()
        assert joined.offsets() == [(waits, False), (0, False)]
        if then == "killed":
            joined.restart()
        append(log, flow(flow_id))
        joined.poll()
        waits = rest
    assert joined.offsets()[0][0] == size
    append(log, flow(5))
    for _ in range(QUIET_POLLS + 3):
        joined.poll()
    assert joined.offsets() == [(size, packed), (log.stat().st_size, False)]
    assert joined.texts == {1: "", 2: "/2", 3: "", 4: "/4", 5: "/5"} and not joined.rejects
    joined.restart()
    assert joined.follower.poll() == []


def test_text_of_a_log_that_was_cut_joins_while_the_process_lives(joined: Joined, log: Path) -> None:
    """And nobody kept a copy. What is said of the new content is of the new content."""
    append(log, flow(1) + said(2) + said(3))
    joined.poll()
    os.truncate(log, 0)
    append(log, said(4) + flow(2))
    joined.poll()
    assert joined.texts == {1: "", 2: "/2"}
    assert joined.offsets() == [(len(flow(1)), False), (0, False)]
    append(log, flow(4))
    joined.poll()
    assert joined.offsets() == [(len(flow(1)), False), (log.stat().st_size, False)]
    joined.restart()
    append(log, flow(3))
    joined.poll()
    assert joined.texts == {1: "", 2: "/2", 4: "/4", 3: ""} and not joined.repeats


def test_files_of_one_tick_are_read_oldest_first(joined: Joined, log: Path) -> None:
    """Where the file system's clock is coarse, the name says which was rotated."""
    append(log.with_name("eve.json.1"), said(1))
    append(log, flow(1))
    for path in (log, log.with_name("eve.json.1")):
        os.utime(path, (1_000_000, 1_000_000))
    joined.poll()
    assert joined.texts == {1: "/1"}


def test_a_file_that_cannot_be_read_is_said_to_be_so_until_it_can(tmp_path: Path) -> None:
    """One that was misspelt, or is a link, was never told of: no error, no lag, nothing."""
    log = tmp_path / "eve.json"
    watch = Watch(log)
    watch.poll()
    assert watch.follower.trouble() == f"{log} is not there"
    append(tmp_path / "other.json", lines(0, 3))
    log.symlink_to(tmp_path / "other.json")
    watch.poll()
    assert f"{log} is a link" in watch.follower.trouble()
    log.unlink()
    os.mkfifo(log)
    watch.poll()
    assert watch.follower.trouble() == f"{log} is no plain file"
    log.unlink()
    log.touch()
    watch.poll()
    assert watch.follower.trouble() == ""
    append(log, lines(0, 5))
    log.rename(tmp_path / "eve.json.1")
    watch.poll()
    assert watch.follower.trouble() == "" and len(watch.seen) == 5  # its file is being read, whatever its name
    watch.follower.close()


def test_a_file_that_may_not_be_opened_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "eve.json"
    append(log, lines(0, 5))
    watch = Watch(log)
    with monkeypatch.context() as patched:  # root opens everything
        refuse = Mock(side_effect=PermissionError(errno.EACCES, "Permission denied"))
        patched.setattr("engine.sources.follow._open_beneath", refuse)
        watch.poll()
        assert watch.follower.trouble() == f"{log} cannot be read: Permission denied"
    watch.poll()
    assert watch.follower.trouble() == "" and len(watch.seen) == 5
    watch.follower.close()


def test_a_name_that_is_no_utf8_is_left_out_with_a_word_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its state could not be stored, and the source began anew for ever."""
    append(tmp_path / os.fsdecode(b"caf\xe9.json"), lines(0, 3))
    append(tmp_path / "café.json", lines(3, 6))
    odd = tmp_path / os.fsdecode(b"d\xe9")
    odd.mkdir()
    append(odd / "eve.json", lines(6, 9))
    watch = Watch(tmp_path)
    watch.poll()
    watch.poll()
    assert len(watch.seen) == 3
    assert caplog.text.count("no UTF-8") == 2
    watch.follower.close()


def test_a_directory_that_comes_later_is_one(tmp_path: Path) -> None:
    """It was taken for a file of that name until the next start."""
    logs = tmp_path / "zeek"
    watch = Watch(logs)
    watch.poll()
    assert watch.follower.trouble() == f"{logs} is not there"
    logs.mkdir()
    append(logs / "conn.log", lines(0, 5))
    watch.poll()
    assert len(watch.seen) == 5 and watch.follower.trouble() == ""
    watch.follower.close()


def test_a_missing_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        Follower(tmp_path / "none" / "eve.json", SourceSpec("s")).poll()


# ---- months -------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often the follower asked the file system."""
    counted: Counter[str] = Counter()
    for name in ("stat", "open"):
        real = getattr(os, name)

        def call(*args: Any, name: str = name, real: Any = real, **more: Any) -> Any:
            counted[name] += 1
            return real(*args, **more)

        monkeypatch.setattr(os, name, call)
    yield counted


@pytest.mark.parametrize("packed", [False, True])
def test_thousands_of_old_files_cost_little(tmp_path: Path, calls: Counter[str], packed: bool) -> None:
    """Of what there was before, each look asks about the youngest only; a restart opens each once, and reads on."""
    for i in range(1_000):
        data = lines(2 * i, 2 * i + 2)
        file = tmp_path / f"eve.json-{i:04}"
        file.write_bytes(gzip.compress(data) if packed else data)
        os.utime(file, (1_000_000 + i, 1_000_000 + i))
    os.utime(tmp_path, (1_500_000, 1_500_000))  # long ago: its time can be relied on
    watch = Watch(tmp_path)
    watch.poll()
    assert watch.seen == list(range(2_000)) and len(watch.states) == 1_000
    watch.restart()
    calls.clear()
    watch.poll()
    assert not watch.repeats and calls["open"] <= 1_000 + 20
    calls.clear()
    for _ in range(look.WALK_EVERY):
        watch.poll()
    assert calls["stat"] <= 1_000 + look.WALK_EVERY * (look.HOT_FILES_MAX + 1)
    append(
        tmp_path / "eve.json-0999" if not packed else tmp_path / "eve.json", line(5_000)
    )  # the youngest, or a new one
    watch.poll()
    append(tmp_path / "eve.json", line(5_001))
    watch.poll()
    assert watch.seen == [*range(2_000), 5_000, 5_001]
    watch.follower.close()


def test_an_old_file_that_grows_again_is_seen_at_the_next_walk(tmp_path: Path) -> None:
    for i in range(2 * look.HOT_FILES_MAX):
        (tmp_path / f"{i}.json").write_bytes(line(i))
        os.utime(tmp_path / f"{i}.json", (1_000_000 + i, 1_000_000 + i))
    os.utime(tmp_path, (1_500_000, 1_500_000))
    watch = Watch(tmp_path)
    watch.poll()
    append(tmp_path / "0.json", line(9_000))
    os.utime(tmp_path / "0.json", (1_000_000, 1_000_000))
    for _ in range(look.WALK_EVERY + 1):
        watch.poll()
    assert watch.seen[-1] == 9_000 and not watch.repeats
    watch.follower.close()


@pytest.mark.parametrize("how", ["renamed away", "cut"])
def test_states_of_files_that_are_gone_are_forgotten_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A rotation an hour for months leaves a bounded table, in the catalog and in memory."""
    monkeypatch.setattr(follow, "GONE_STATES_MAX", 10)
    monkeypatch.setattr(follow, "QUIET_POLLS", 1)
    root, away = tmp_path / "logs", tmp_path / "away"
    root.mkdir()
    away.mkdir()
    log = root / "eve.json"
    watch = Watch(root)
    for i in range(60):
        append(log, lines(20 * i, 20 * i + 20))
        os.utime(log, (1_000_000 + 3_600 * i, 1_000_000 + 3_600 * i))
        watch.poll()
        if how == "cut":
            os.truncate(log, 0)
        else:
            log.rename(away / f"{i}.json")
        for _ in range(4):
            watch.poll()
        if i == 30:
            watch.restart()
    assert watch.seen == list(range(1_200)) and not watch.repeats
    assert len(watch.states) <= 12
    follower = watch.follower
    assert len(follower._stored) <= 12 and sum(map(len, follower._prints.values())) <= 12
    # One that went away lately is still known when it comes back; one that was forgotten is read again, with its ids.
    if how == "renamed away":
        (away / "59.json").rename(root / "eve.json.1")
        watch.poll()
        assert not watch.repeats
        (away / "0.json").rename(root / "eve.json.2")
        watch.poll()
        assert watch.repeats == 20 and len(watch.ids) == 1_200
    watch.follower.close()


def test_a_stranger_that_grows_is_one_stranger(tmp_path: Path) -> None:
    append(tmp_path / "eve.json", lines(0, 3))
    watch = Watch(tmp_path, "eve.json")
    for i in range(20):
        append(tmp_path / "eve.json.notes", b"no log\n" * i)  # begins like one of ours, and is none
        watch.poll()
    assert watch.seen == [0, 1, 2] and len(watch.follower._strangers) <= 1
    watch.follower.close()


def test_how_far_each_file_is(tmp_path: Path) -> None:
    append(tmp_path / "a.json", lines(0, 30) + line(30)[:10])
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(lines(100, 110)))
    append(tmp_path / "c.json", lines(200, 230))
    for i, name in enumerate(("a.json", "b.json.gz", "c.json")):
        os.utime(tmp_path / name, (1_000_000 + i, 1_000_000 + i))
    watch = Watch(tmp_path)
    watch.take(watch.follower.poll(1_000))
    size = len(lines(0, 30))
    lags = {reading.path: reading for reading in watch.follower.readings()}
    assert lags["a.json"].lag_bytes == size + 10 - 1_000 and 900 < lags["a.json"].offset <= 1_000
    assert lags["b.json.gz"].lag_bytes == (tmp_path / "b.json.gz").stat().st_size and not lags["b.json.gz"].done
    assert lags["c.json"].lag_bytes == len(lines(200, 230)) and lags["c.json"].offset == 0
    watch.poll()
    lags = {reading.path: reading for reading in watch.follower.readings()}
    assert [lags[name].lag_bytes for name in sorted(lags)] == [0, 0, 0]
    assert (lags["a.json"].offset, lags["a.json"].size) == (size, size + 10)  # the line under way
    assert lags["b.json.gz"].done and lags["b.json.gz"].offset == len(lines(100, 110))
    watch.follower.close()


def test_a_batch_says_which_adapter_read_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(eve_lines(ALERT))
    (tmp_path / "b.ndjson").write_bytes(lines(0, 2))
    follower = Follower(tmp_path, SourceSpec("s"), "auto")
    formats = {batch.state.path: batch.format for batch in follower.poll() if batch.state is not None}
    follower.close()
    assert formats == {"a.json": "eve", "b.ndjson": "ndjson"}
