"""Zeek's logs in a directory that is followed: text joins its flow whatever grows first, is rotated or killed."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.sources import follow
from engine.sources.base import SourceSpec
from engine.sources.follow import QUIET_POLLS, Batch, FileState, Follower
from ipc.event import Event
from ipc.messages import Reject
from tests.unit.test_follow import append
from tests.unit.test_zeek import CONN, DNS, head, rows


def conn(i: int, service: str = "dns", end: int = 0) -> bytes:
    return rows(CONN | {"uid": f"C{i}", "id.orig_p": str(1_000 + i), "service": service, "ts": f"{1_000 + i + end}.5"})


def dns(i: int, word: str = "name", at: int = 0) -> bytes:
    return rows(DNS | {"uid": f"C{i}", "query": f"{word}{i}.", "ts": f"{1_000 + i + at}.25"})


def opened(path: str, record: dict[str, Any], at: str = "00") -> bytes:
    """The header, with comments enough for a file to be known by its beginning."""
    return (head(path, list(record)).replace("00-00-00", f"00-00-{at}") + f"#{'x' * 1_000}\n").encode()


CONN_HEAD, DNS_HEAD = opened("conn", CONN), opened("dns", DNS)


class Store:
    """What an engine would have: states, and events by id; the first of an id stays."""

    def __init__(self) -> None:
        self.states: dict[str, FileState] = {}
        self.events: dict[str, Event] = {}
        self.rejects: list[Reject] = []
        self.repeats = 0

    def take(self, batch: Batch) -> None:
        self.states[batch.key] = msgspec.msgpack.decode(msgspec.msgpack.encode(batch.state), type=FileState)
        self.rejects += batch.parsed.rejects
        for item in batch.parsed.events:
            self.repeats += item.event.event_id in self.events
            self.events.setdefault(item.event.event_id, item.event)

    def texts(self) -> dict[int, str]:
        return {(event.src_port or 0) - 1_000: event.text for event in self.events.values()}


class Logs:
    """A directory of Zeek's, and a follower on it that is killed at will."""

    def __init__(self, root: Path, pending_max: int = 1_000) -> None:
        self.root, self.store = root, Store()
        self.spec = SourceSpec("z", join_pending_max=pending_max, join_wait_s=60)
        self.follower = Follower(root, self.spec, "zeek", states={})

    def kill(self) -> None:
        self.follower.close()
        self.follower = Follower(self.root, self.spec, "zeek", states=self.store.states)

    def poll(self, now_s: float = 0.0, max_bytes: int = 1 << 20, stored: int | None = None) -> None:
        """stored: the process dies after so many batches of this poll."""
        batches = self.follower.poll(max_bytes, now_s)
        for batch in batches[:stored]:
            self.store.take(batch)
        if stored is not None:
            self.kill()

    def rest(self, now_s: float = 0.0) -> None:
        """Until nothing new comes; a flow with text takes two looks."""
        for _ in range(3):
            self.poll(now_s)
        while self.follower.behind:
            self.poll(now_s)

    @property
    def texts(self) -> dict[int, str]:
        return self.store.texts()

    def write(self, name: str, data: bytes) -> None:
        (self.root / name).parent.mkdir(exist_ok=True)
        append(self.root / name, data)


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    made = Logs(tmp_path)
    yield made
    made.follower.close()


def text(*numbers: int) -> dict[int, str]:
    return {i: f"dns | name{i}. | A | NOERROR" for i in numbers}


def test_text_joins_whichever_file_comes_first(logs: Logs) -> None:
    logs.write("conn.log", CONN_HEAD + conn(1) + conn(2) + conn(3, "-"))
    logs.write("dns.log", DNS_HEAD + dns(1))
    logs.poll()
    assert logs.texts == {3: ""}  # has no text to wait for
    logs.write("dns.log", dns(2))
    logs.rest()
    assert logs.texts == text(1, 2) | {3: ""}
    logs.write("dns.log", dns(4) + dns(4, "other"))
    logs.rest()
    logs.write("conn.log", conn(4))
    logs.rest()
    assert logs.texts[4] == "dns | name4. | A | NOERROR | other4."
    assert {s.offset for s in logs.store.states.values()} == {f.stat().st_size for f in logs.root.iterdir()}
    assert not logs.store.repeats and logs.follower.poll() == []


def test_nothing_waits_where_there_is_no_other_log(logs: Logs) -> None:
    logs.write("conn.log", CONN_HEAD + conn(1) + conn(2, "http"))
    logs.poll()
    assert logs.texts == {1: "dns", 2: "http"}
    assert all(event.extra["text_missing"] == 1.0 for event in logs.store.events.values())


def test_a_flow_waits_until_its_text_cannot_come(logs: Logs) -> None:
    """By the other log's time, or by the clock."""
    logs.write("conn.log", CONN_HEAD + conn(1) + conn(2))
    logs.write("dns.log", DNS_HEAD + dns(0))
    logs.rest()
    assert logs.texts == {}
    logs.write("dns.log", dns(3, at=30))  # 1033.25: more than 30 s beyond the first flow's end, not the second's
    logs.rest()
    logs.write("dns.log", dns(4, at=29))
    logs.rest()
    assert logs.texts == {1: "dns"} and next(iter(logs.store.events.values())).extra["text_missing"] == 1.0
    logs.poll(59.9)
    assert logs.texts.keys() == {1}
    logs.poll(60.0)
    assert logs.texts == {1: "dns", 2: "dns"}


def test_flows_that_wait_are_bounded(tmp_path: Path) -> None:
    logs = Logs(tmp_path, pending_max=3)
    logs.write("conn.log", CONN_HEAD + b"".join(map(conn, range(5))))
    logs.write("dns.log", DNS_HEAD + dns(90, at=-90))
    logs.rest()
    assert logs.texts == {0: "dns", 1: "dns"}
    logs.write("dns.log", b"".join(map(dns, range(5))))
    logs.rest()
    assert logs.texts == {0: "dns", 1: "dns"} | text(2, 3, 4)
    logs.follower.close()


def test_long_logs_are_read_side_by_side(tmp_path: Path) -> None:
    """A backlog far beyond what may wait: neither log runs away from the other."""
    logs = Logs(tmp_path, pending_max=100)
    logs.write("conn.log", CONN_HEAD + b"".join(conn(i) for i in range(2_000)))
    logs.write("dns.log", DNS_HEAD + b"".join(dns(i) for i in range(2_000)))
    logs.poll(max_bytes=4_000)
    while logs.follower.behind:
        logs.poll(max_bytes=4_000)
    logs.rest()
    assert len(logs.store.events) == 2_000 and logs.texts == text(*range(2_000))
    logs.follower.close()


@pytest.mark.parametrize("dies", range(6))
def test_killed_after_any_batch_text_is_joined_again(logs: Logs, dies: int) -> None:
    logs.write("conn.log", CONN_HEAD + conn(1) + conn(2) + conn(3, "-"))
    logs.poll()
    logs.write("dns.log", DNS_HEAD + dns(1) + dns(2) + dns(4))
    logs.poll(stored=dies % 3)
    logs.poll()
    logs.write("conn.log", conn(4))
    logs.poll(stored=dies // 2)
    logs.poll(stored=dies % 2)
    logs.rest()
    assert {i: t for i, t in logs.texts.items() if i == 4} == text(4)
    assert len(logs.store.events) == 4 and not logs.store.rejects


def test_no_state_forgets_a_text_before_its_flow_is_stored(logs: Logs) -> None:
    logs.write("dns.log", DNS_HEAD + dns(1))
    logs.write("conn.log", CONN_HEAD + conn(1))
    batches: list[Batch] = []
    for _ in range(3):
        batches += logs.follower.poll()
    told = [(b.state.path, b.state.offset, len(b.parsed.events)) for b in batches]
    at = len(DNS_HEAD)
    assert told == [
        ("dns.log", at, 0),
        ("conn.log", len(CONN_HEAD), 0),
        ("conn.log", len(CONN_HEAD + conn(1)), 1),
        ("dns.log", at + len(dns(1)), 0),
    ]


@pytest.mark.parametrize("killed", [False, True])
def test_rotation_into_archives_of_another_directory(logs: Logs, killed: bool) -> None:
    """As Zeek does: renamed, compressed, opened anew with the same header but for its time."""
    day = logs.root / "2026-01-01"
    day.mkdir()
    for name, record in (("dns", DNS), ("conn", CONN)):
        logs.write(f"{name}.log", opened(name, record))
    for hour in range(1, 4):
        base = 10 * hour
        logs.write("dns.log", dns(base + 1) + dns(base + 2))
        logs.write("conn.log", conn(base + 1) + conn(base + 2))
        logs.rest()
        logs.write("conn.log", conn(base + 3))  # its text stands in the next dns.log
        logs.poll()
        for name, record in (("conn", CONN), ("dns", DNS)):
            moved = day / f"{name}.{hour:02}:00:00.log"
            (logs.root / f"{name}.log").rename(moved)
            logs.write(f"{name}.log", opened(name, record, f"{hour:02}"))
            if hour > 1:
                logs.poll()
            moved.with_name(moved.name + ".gz").write_bytes(gzip.compress(moved.read_bytes()))
            moved.unlink()
            if killed:
                logs.kill()
            logs.poll()
        logs.write("dns.log", dns(base + 3))
        logs.rest()
        for _ in range(QUIET_POLLS + 3):
            logs.poll()
    assert logs.texts == text(*(10 * hour + i for hour in range(1, 4) for i in (1, 2, 3)))
    assert not logs.store.rejects
    if not killed:
        assert not logs.store.repeats


def test_copied_and_truncated_while_flows_wait(logs: Logs) -> None:
    logs.write("dns.log", DNS_HEAD + dns(0))
    logs.write("conn.log", CONN_HEAD + conn(1) + conn(2))
    logs.poll()
    logs.write("conn.log.1", (logs.root / "conn.log").read_bytes())
    os.truncate(logs.root / "conn.log", 0)
    logs.write("conn.log", opened("conn", CONN, "09") + conn(3, "-"))
    logs.rest()
    logs.poll(math.inf)
    assert logs.texts == {1: "dns", 2: "dns", 3: ""}


def test_flows_that_wait_in_a_file_that_was_cut_are_not_lost(logs: Logs) -> None:
    logs.write("dns.log", DNS_HEAD + dns(0))
    logs.write("conn.log", CONN_HEAD + conn(1) + conn(2))
    logs.poll()
    os.truncate(logs.root / "conn.log", 0)  # and nobody kept a copy
    logs.write("conn.log", opened("conn", CONN, "09") + conn(3, "-"))
    logs.rest()
    assert logs.texts == {1: "dns", 2: "dns", 3: ""}


def test_all_of_a_text_is_waited_for(logs: Logs) -> None:
    logs.write("conn.log", CONN_HEAD + conn(1))
    logs.write("dns.log", DNS_HEAD)
    logs.rest()
    logs.write("dns.log", dns(1) + dns(1, "second") + dns(1, "third"))
    for _ in range(3):
        logs.poll(max_bytes=len(dns(1)))
        assert logs.texts == {}
    logs.rest()
    assert logs.texts == {1: "dns | name1. | A | NOERROR | second1. | third1."}


def test_an_archive_is_done_only_when_nothing_of_it_waits(logs: Logs) -> None:
    logs.write("dns.log.gz", gzip.compress(DNS_HEAD + dns(1)))
    logs.write("conn.00.log.gz", gzip.compress(CONN_HEAD + conn(2)))
    logs.rest()
    assert {s.done_size for s in logs.store.states.values()} == {0} and not logs.texts
    logs.kill()
    logs.write("conn.01.log.gz", gzip.compress(CONN_HEAD.replace(b"00-00-00", b"00-01-00") + conn(1)))
    logs.rest()
    assert logs.texts == text(1)
    logs.poll(60.0)
    assert logs.texts == text(1) | {2: "dns"}
    assert all(s.done_size for s in logs.store.states.values())
    logs.kill()
    assert logs.follower.poll() == []


def test_a_file_that_goes_with_flows_that_wait_gives_them(logs: Logs) -> None:
    logs.write("dns.log", DNS_HEAD + dns(0))
    logs.write("conn.log", CONN_HEAD + conn(1) + conn(2)[:-1])
    logs.poll()
    (logs.root / "conn.log").unlink()
    for _ in range(2 * QUIET_POLLS):
        logs.poll()
    assert logs.texts == {}
    for _ in range(QUIET_POLLS):
        logs.poll(60.0)
    assert logs.texts == {1: "dns", 2: "dns"}


def test_files_with_flows_that_wait_stay_open(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "OPEN_FILES_MAX", 2)
    for name in ("other", "more"):
        logs.write(f"{name}.log", opened("files", {"ts": 1, "fuid": 2}))
    logs.write("dns.log", DNS_HEAD)
    logs.rest()
    for i in range(2, 6):
        logs.write("conn.log", (CONN_HEAD if i == 2 else b"") + conn(i))
        logs.rest()
        assert i not in logs.texts
        logs.write("dns.log", dns(i))
        logs.rest()
    assert logs.texts == text(*range(2, 6))


def test_equal_beginnings_are_told_apart(logs: Logs) -> None:
    """Two logs of one second: the same header to the byte, and more than a fingerprint of it."""
    long = CONN_HEAD + b"#" + b"x" * 2_000 + b"\n"
    logs.write("a/conn.log", long + conn(1, "-"))
    logs.write("b/conn.log", long + conn(2, "-"))
    logs.rest()
    for name in ("a", "b"):
        (logs.root / name / "conn.log").rename(logs.root / name / "old.log")
    logs.kill()
    logs.write("a/conn.log", long + conn(3, "-"))
    logs.write("b/old.log", conn(4, "-"))
    logs.write("b/conn.log", long)
    logs.rest()
    logs.write("b/conn.log", conn(5, "-"))
    logs.rest()
    assert sorted(logs.texts) == [1, 2, 3, 4, 5] and not logs.store.repeats and len(logs.store.states) == 4
