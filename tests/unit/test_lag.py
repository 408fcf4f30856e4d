"""How far the sources are: written by the ingest worker, shown by stats, judged by the doctor."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from engine.config import Config, Source
from engine.layout import Layout
from engine.maintain import doctor
from engine.run import lag
from engine.run.lag import FILES_SHOWN_MAX, Book, FileLag, Report, SocketLag, SourceLag, troubles
from engine.sources.base import SourceSpec
from engine.sources.follow import Follower
from engine.store.lock import hold
from tests.events import several
from tests.store_fixture import Store
from tests.unit.test_follow import line, lines

NOW = 2_000_000_000 * 10**9


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "data")
    layout.make()
    return layout


def file(**more: object) -> FileLag:
    given = {"source": "eve", "path": "eve.json", "size": 10, "offset": 0, "lag_bytes": 0, "read_at": None,
             "event_at": None, "done": False, "waits_since_at": None, "waits_since_ns": None}  # fmt: skip
    return FileLag(**(given | more))  # type: ignore[arg-type]


def test_what_waits_says_since_when_and_progress_starts_that_anew(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "eve.json"
    log.write_bytes(lines(0, 100))
    config = Config(data_dir=str(layout.data_dir), sources={"s": Source(path=str(log.parent))})
    book, follower = Book(layout, config), Follower(log.parent, SourceSpec("s"), "ndjson")

    def look() -> FileLag:
        book.write({"s": follower}, {})
        report = lag.read(layout)
        assert report is not None and report.followed[0].lag_bytes == sum(f.lag_bytes for f in report.files)
        return report.files[0]

    begin = time.time_ns()
    (batch,) = follower.poll(2_000)
    first, again = look(), look()
    assert first.lag_bytes == log.stat().st_size - 2_000 and first == again and first.read_at is None
    assert first.waits_since_at is not None and begin <= first.waits_since_at
    book.stored("s", batch)
    (batch,) = follower.poll(2_000)
    book.stored("s", batch)
    more = look()
    assert more.waits_since_at is not None and more.waits_since_at > first.waits_since_at
    assert more.event_at == max(item.event.ts for item in batch.parsed.events) and more.read_at is not None
    for batch in follower.poll():
        book.stored("s", batch)
    assert (look().lag_bytes, look().waits_since_at) == (0, None)
    follower.close()


def test_a_file_that_is_not_there_is_told_and_logged_once(
    layout: Layout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "eve.json"
    config = Config(data_dir=str(layout.data_dir), sources={"s": Source(path=str(log))})
    book, follower = Book(layout, config), Follower(log, SourceSpec("s"), "ndjson")
    for there in (False, False, True):
        if there:
            log.write_bytes(lines(0, 3))
        follower.poll()
        book.write({"s": follower}, {})
        report = lag.read(layout)
        assert report is not None and report.followed[0].error == ("" if there else f"{log} is not there")
        found = [what for severity, _, what in troubles(report, time.monotonic_ns()) if severity == "problem"]
        assert len(found) == (not there)
    assert caplog.text.count("is not there") == 1
    follower.close()


def test_a_clock_that_is_put_back_hides_and_invents_no_waiting(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eve.json").write_bytes(lines(0, 100))
    config = Config(data_dir=str(layout.data_dir), sources={"s": Source(path=str(tmp_path / "eve.json"))})
    book, follower = Book(layout, config), Follower(tmp_path / "eve.json", SourceSpec("s"), "ndjson")
    (batch,) = follower.poll(2_000)
    real, step_ns = time.time_ns, 0
    monkeypatch.setattr(time, "time_ns", lambda: real() + step_ns)
    begin_ns = time.monotonic_ns()
    for step_ns in (0, -3_600 * 10**9, 3_600 * 10**9):
        book.stored("s", batch)
        book.write({"s": follower}, {})
        report = lag.read(layout)
        assert report is not None and report.files[0].waits_since_ns is not None
        assert begin_ns <= report.files[0].waits_since_ns <= time.monotonic_ns()
        assert list(troubles(report, time.monotonic_ns())) == []
        assert list(troubles(report, time.monotonic_ns() + 61 * 10**9)) != []
    follower.close()


def test_nothing_is_written_where_nothing_changed_and_no_more_than_some_files(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for i in range(FILES_SHOWN_MAX + 20):
        (tmp_path / "logs" / f"{i}.json").write_bytes(line(i))
    config = Config(data_dir=str(layout.data_dir), sources={"s": Source(path=str(tmp_path / "logs"))})
    book, follower = Book(layout, config), Follower(tmp_path / "logs", SourceSpec("s"), "ndjson")
    follower.poll()
    book.write({"s": follower}, {})
    inode = layout.sources.stat().st_ino
    book.write({"s": follower}, {})
    assert layout.sources.stat().st_ino == inode
    report = lag.read(layout)
    assert report is not None and report.followed == [SourceLag("s", str(tmp_path / "logs"), FILES_SHOWN_MAX + 20)]
    assert len(report.files) == FILES_SHOWN_MAX
    assert book.error("s", "gone") and not book.error("s", "gone") and book.error("s")
    follower.close()


def test_what_is_wrong_and_what_to_do() -> None:
    stuck, busy = NOW - 61 * 10**9, NOW - 10 * 10**9
    report = Report(
        followed=[SourceLag("eve", "/logs"), SourceLag("gone", "/gone", error="/gone cannot be read: no")],
        files=[file(lag_bytes=5, waits_since_ns=stuck), file(lag_bytes=5, waits_since_ns=busy), file()],
        listening=[
            SocketLag("good", "/a", connections=3, records=9, stored=9),
            SocketLag("slow", "/b", dropped=7, lost=2, gaps=3),
            SocketLag("shut", "/c", error="another process listens on /c"),
        ],
    )
    found = list(troubles(report, NOW))
    assert [(severity, name) for severity, name, _ in found] == [
        ("problem", "source gone"), ("problem", "source eve"), ("note", "source slow"), ("problem", "source shut"),
    ]  # fmt: skip
    assert "5 bytes wait, and nothing was stored for 61 s" in found[1][2]
    assert found[2][2].startswith("7 records were dropped")


def test_the_doctor_tells_of_sources_only_while_an_engine_runs(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(3))
        layout = store.layout
    config = Config(data_dir=str(layout.data_dir), sources={"s": Source(path="/nowhere/eve.json")})
    book = Book(layout, config)
    book.error("s", "/nowhere cannot be read: No such file or directory")
    book.write({}, {})
    assert not [f for f in doctor.run(layout) if f.object.startswith("source")]
    fd = hold(layout.writer_lock)
    try:
        (found,) = [f for f in doctor.run(layout) if f.object.startswith("source")]
    finally:
        os.close(fd)
    assert (found.severity, found.object) == ("problem", "source s")


def test_a_report_that_is_gone_or_damaged_is_none(layout: Layout) -> None:
    assert lag.read(layout) is None
    layout.sources.write_bytes(b'{"files": 5}')
    assert lag.read(layout) is None
    assert lag.facts(layout) == {"followed": [], "followed_files": [], "listening": []}


def test_where_a_socket_may_be(layout: Layout) -> None:
    assert lag.listen_path(layout, Source(listen="eve.sock", format="eve")) == layout.run / "eve.sock"
    assert lag.listen_path(layout, Source(listen="/run/x/eve.sock", format="eve")) == Path("/run/x/eve.sock")
    with pytest.raises(ValueError, match=r"no '\.\.'"):
        Config(sources={"s": Source(listen="../eve.sock", format="eve")})
