"""A listening socket: what a detector writes is taken at once, cut anywhere, bounded, counted, and never mixed up."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BootError, SourceError
from engine.limits import RECORD_BYTES_MAX
from engine.run.access import Allowed
from engine.run.drain import PIECE_BYTES, Bounds, Counts, Drain, Peer, Piece
from engine.run.listen import SILENT_LOOKS_MAX, Intake, Listener
from engine.run.process import PARENT_GONE
from engine.sources.base import Parsed, SourceSpec
from tests.unit.test_eve import ALERT, FLOW, HTTP, lines
from tests.wait import eventually

Begin = Callable[..., Listener]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """begin() -> a Listener on tmp_path/eve.sock; the one before is closed."""
    made: list[Listener] = []

    def make(allowed: bool = True, path: Path = tmp_path / "eve.sock", **bounds: int) -> Listener:
        close()
        who = Allowed(frozenset({os.getuid()} if allowed else ()))
        made.append(Listener(path, 0o660, "", tmp_path / "counts", who, tmp_path / "audit.ndjson", Bounds(**bounds)))
        return made[0]

    def close() -> None:
        while made:
            made.pop().close()

    yield make
    close()


def connect(listener: Listener) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(listener.path))
    return sock


def waiting(listener: Listener) -> int:
    counts = listener.counts()
    return counts.records - counts.stored - counts.dropped - counts.lost


def turns(listener: Listener) -> int:
    return listener._page.values()["turns"]


def freeze(listener: Listener) -> None:
    state = Path(f"/proc/{listener._process.pid}/stat")
    listener._process.send_signal(signal.SIGSTOP)
    eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")


def take(listener: Listener) -> Piece | None:
    piece = asyncio.run(asyncio.wait_for(listener.take(), 20))
    if piece is not None:
        listener.stored(piece)
    return piece


def some(listener: Listener) -> list[Piece]:
    """What waits, of a connection that goes on."""
    pieces = []
    while waiting(listener) and (piece := take(listener)) is not None:
        pieces.append(piece)
    return pieces


def taken(listener: Listener) -> list[Piece]:
    """All there is, to the end."""
    listener.stop()
    return list(iter(lambda: take(listener), None))  # type: ignore[arg-type]


def test_lines_come_whole_and_in_order_whatever_the_writes(begin: Begin) -> None:
    listener = begin()
    with connect(listener) as one, connect(listener) as two:
        one.sendall(b"a1\na2")
        two.sendall(b"b1\n")
        one.sendall(b"\n\na")
        one.sendall(b"3\nrest")
        eventually(lambda: listener.counts().records == 5)
    eventually(lambda: listener.counts().open == 0)
    data: dict[int, bytes] = {}
    for piece in taken(listener):
        assert piece.offset == len(data.get(piece.connection, b""))
        data[piece.connection] = data.get(piece.connection, b"") + piece.data
    assert sorted(data.values()) == [b"a1\na2\n\na3\nrest", b"b1\n"]
    assert listener.counts() == Counts(connections=2, open=0, records=6, stored=6)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(cuts=st.lists(st.integers(0, 1 << 12), max_size=10))
def test_cuts_between_writes_change_nothing(cuts: list[int]) -> None:
    """What an adapter makes of the pieces is what it makes of the whole."""
    data = lines(HTTP, FLOW, ALERT, ALERT) + b"{broken\r\n\0\n\xff\n" + lines(ALERT)[:-1]
    peer = Peer(socket.socket(), 1)
    peer.sock.close()
    pieces: list[Piece] = []
    maker = object.__new__(Drain)
    maker._put = lambda peer, data, records, last=False: pieces.append(  # type: ignore[method-assign,assignment]
        Piece(peer.number, peer.offset, data, records, last)
    )
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        maker._split(peer, data[start:end])
    maker._put(peer, peer.tail, 1, last=True)
    assert b"".join(piece.data for piece in pieces) == data
    assert all(piece.data.endswith(b"\n") for piece in pieces[:-1])
    intake = Intake(SourceSpec("t", "sock"), "eve")
    out = Parsed([], [])
    for piece in pieces:
        more = intake.parse(piece)
        out = Parsed(out.events + more.events, out.rejects + more.rejects)
    whole = Intake(SourceSpec("t", "sock"), "eve").parse(Piece(1, 0, bytearray(data), 8, True))
    assert out == whole and len(whole.events) == 4 and len(whole.rejects) == 3


def test_actions_come_with_the_last_piece_too() -> None:
    row = b"1700000000000,10.0.0.1,10.0.0.2,ddos,BLOCK,0.9,\n"
    intake = Intake(SourceSpec("t", "sock"), "argus-firewall")
    first = intake.parse(Piece(1, 0, bytearray(row), 1, False))
    last = intake.parse(Piece(1, len(row), bytearray(2 * row.rstrip(b"\n") + b"\n" + row + row[:-1]), 3, True))
    assert [len(part.actions) for part in (first, last)] == [1, 2] and len(last.rejects) == 1


def test_a_line_that_is_too_long_is_one_reject_and_costs_its_beginning_only(begin: Begin) -> None:
    listener = begin()
    long = b"x" * (3 * RECORD_BYTES_MAX)
    with connect(listener) as sock:
        sock.sendall(lines(ALERT) + long + b"\n" + b"{}\n")
        eventually(lambda: listener.counts().records == 3)
    intake = Intake(SourceSpec("t", "sock"), "eve")
    eventually(lambda: listener.counts().open == 0)
    pieces = taken(listener)
    assert sum(len(piece.data) for piece in pieces) < RECORD_BYTES_MAX + 4096
    parsed = [intake.parse(piece) for piece in pieces]
    rejects = [reject for part in parsed for reject in part.rejects]
    assert sum(len(part.events) for part in parsed) == 1
    assert [(r.offset, r.reason[:14]) for r in rejects] == [
        (len(lines(ALERT)), "line is longer"), (len(lines(ALERT)) + len(long) + 1, "not an EVE rec"),
    ]  # fmt: skip


def test_beyond_the_bound_records_are_dropped_whole_and_counted(begin: Begin) -> None:
    listener = begin(bytes_max=50_000, read_bytes=1_000)
    line = b"y" * 99 + b"\n"
    with connect(listener) as sock:
        sock.sendall(line * 1000)  # never waits for what is stored
        eventually(lambda: listener.counts().records == 1000 and waiting(listener) <= 500)
        first = some(listener)
        sock.sendall(line * 100)
    eventually(lambda: listener.counts().open == 0)
    rest = taken(listener)
    kept = b"".join(piece.data for piece in first)
    assert kept == line * (len(kept) // 100) and b"".join(p.data for p in rest) == line * 100
    assert 50_000 - PIECE_BYTES - 1_000 < len(kept) + PIECE_BYTES * len(first) <= 50_000
    assert rest[0].offset == 1000 * len(line) and rest[-1].last
    stored = len(kept) // 100 + 100
    assert listener.counts() == Counts(1, 0, 1100, stored=stored, dropped=1100 - stored, gaps=1)


def test_the_end_of_a_connection_is_told_even_when_nothing_fits(begin: Begin) -> None:
    listener = begin(bytes_max=PIECE_BYTES + 10)
    with connect(listener) as sock:
        sock.sendall(b"1\n")
        piece = take(listener)
        assert piece is not None and (piece.last, piece.data) == (False, b"1\n")
        sock.sendall(b"y" * 20)
    eventually(lambda: listener.counts() == Counts(1, 0, 2, stored=1, dropped=1, gaps=1))
    assert [(piece.last, piece.data) for piece in taken(listener)] == [(True, b"")]


def test_neither_small_pieces_nor_empty_connections_cost_what_is_not_counted(begin: Begin) -> None:
    listener = begin(bytes_max=50 * PIECE_BYTES)
    with connect(listener) as one, connect(listener) as two:
        for number in range(200):  # in turns, so that no two of them become one piece
            (one, two)[number % 2].sendall(b"\n")
            eventually(lambda: listener.counts().records == number + 1, every_s=0.0)
    for _ in range(200):
        connect(listener).close()
    eventually(lambda: (listener.counts().connections, listener.counts().open) == (202, 0))
    pieces = taken(listener)
    assert sum(piece.records for piece in pieces) == 49  # one byte more than 50 would have
    assert len(pieces) == 51 and {piece.connection for piece in pieces} == {1, 2}
    assert listener.counts() == Counts(202, 0, 200, stored=49, dropped=151, gaps=1)


def test_text_that_waits_comes_out_when_its_connection_ends(begin: Begin) -> None:
    listener = begin()
    intake = Intake(SourceSpec("t", "sock"), "eve")
    with connect(listener) as sock:
        sock.sendall(lines(HTTP, FLOW)[:-1])
    eventually(lambda: listener.counts() == Counts(1, 0, 2))
    (event,) = (item.event for piece in taken(listener) for item in intake.parse(piece).events)
    assert event.text == "evil.example | /a?b | curl" and not intake._adapters


def test_a_successor_counts_what_was_read_and_not_stored(begin: Begin, tmp_path: Path) -> None:
    listener = begin()
    with connect(listener) as sock, connect(listener):
        sock.sendall(b"1\n2\n3\n")
        eventually(lambda: listener.counts() == Counts(2, 2, 3))
        # what a killed worker leaves: its page, and the socket
        page = (tmp_path / "counts").read_bytes()
    listener.close()
    (tmp_path / "counts").write_bytes(page)
    assert begin().counts() == Counts(connections=2, open=0, records=3, lost=3, gaps=2)


def test_stopping_reads_what_is_there_closes_and_unlinks(begin: Begin) -> None:
    listener = begin()
    assert stat.S_IMODE(listener.path.stat().st_mode) == 0o660
    with connect(listener) as sock:
        eventually(lambda: listener.counts().open == 1)
        sock.sendall(b"1\n2\nhalf")
        listener.stop()
        assert sock.recv(1) == b"" and not listener.path.exists()
    assert b"".join(piece.data for piece in taken(listener)) == b"1\n2\nhalf"
    assert listener.counts() == Counts(1, 0, 3, 3, gaps=1)


def test_stopping_in_the_turn_in_which_a_detector_writes_loses_nothing(begin: Begin) -> None:
    listener = begin()
    with connect(listener) as sock:
        eventually(lambda: listener.counts().open == 1)
        freeze(listener)
        listener.stop()
        sock.sendall(b"1\n2\n")
        listener._process.send_signal(signal.SIGCONT)
        assert b"".join(piece.data for piece in taken(listener)) == b"1\n2\n"
    assert listener.counts() == Counts(1, 0, 2, 2, gaps=1)


def test_stopping_reads_who_has_just_connected_too(begin: Begin) -> None:
    listener = begin()
    eventually(lambda: turns(listener))
    freeze(listener)
    with connect(listener) as one, connect(listener) as two:
        one.sendall(b"1\n")
        two.sendall(b"2\n")
        listener.stop()
        listener._process.send_signal(signal.SIGCONT)
        assert {bytes(piece.data) for piece in taken(listener)} == {b"1\n", b"2\n"}
    assert listener.counts() == Counts(2, 0, 2, 2, gaps=2)


def test_a_detector_never_waits_for_a_worker_that_is_busy(begin: Begin) -> None:
    """This process is the worker; it does nothing while more is written than a socket holds."""
    listener, line = begin(), b"z" * 999 + b"\n"
    with connect(listener) as sock:
        sock.settimeout(20)
        sock.sendall(line * 5_000)
        eventually(lambda: listener.counts() == Counts(1, 1, 5_000))
    assert b"".join(piece.data for piece in taken(listener)) == line * 5_000


def test_without_its_process_the_source_fails_and_begins_again(begin: Begin) -> None:
    listener = begin()
    with connect(listener) as sock:
        sock.sendall(b"1\n2\n")
        eventually(lambda: listener.counts().records == 2)
        listener._process.send_signal(signal.SIGKILL)
        assert sock.recv(1) == b""
    with pytest.raises(SourceError, match="has died"):
        taken(listener)
    assert not listener.path.exists()
    assert begin().counts() == Counts(1, 0, 2, lost=2, gaps=1)


def test_without_file_descriptors_it_waits_says_so_and_goes_on(begin: Begin, capfd: pytest.CaptureFixture[str]) -> None:
    listener, said = begin(), ""
    pid = listener._process.pid
    with connect(listener) as first:
        eventually(lambda: listener.counts().open == 1)
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(hard)) - used), hard))
        with connect(listener) as second:
            second.sendall(b"2\n")
            before = turns(listener)
            eventually(lambda: turns(listener) >= before + 3)  # it tries again, and does not spin: a second each
            first.sendall(b"1\n")
            eventually(lambda: listener.counts() == Counts(1, 1, 1))
            assert turns(listener) < before + 20
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
            eventually(lambda: listener.counts() == Counts(2, 2, 2))
    said = capfd.readouterr().err
    assert said.count("a connection cannot be accepted: [Errno 24] Too many open files") == 1


def test_a_process_that_is_stuck_is_killed_and_one_that_turns_is_not(begin: Begin) -> None:
    listener = begin()
    with connect(listener) as sock:
        for number in range(2 * SILENT_LOOKS_MAX):
            before = turns(listener)
            sock.sendall(b"1\n")
            eventually(lambda: turns(listener) > before, every_s=0.001)
            listener.look()
        assert some(listener) and listener._process.poll() is None
        freeze(listener)
        for _ in range(SILENT_LOOKS_MAX + 2):
            listener.look()
        with pytest.raises(SourceError, match="has died"):
            taken(listener)
    assert begin().counts() == Counts(1, 0, number + 1, stored=number + 1, gaps=1)


def test_a_process_that_cannot_be_started_leaves_nothing(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "none"))
        with pytest.raises(FileNotFoundError):
            begin()
    assert not (tmp_path / "eve.sock").exists() and set(os.listdir("/proc/self/fd")) == before
    with connect(begin()) as sock:
        sock.sendall(b"1\n")


def test_its_process_goes_with_the_worker_and_is_light(begin: Begin) -> None:
    listener = begin()
    with connect(listener):
        eventually(lambda: listener.counts().open == 1)
        rollup = Path(f"/proc/{listener._process.pid}/smaps_rollup").read_text()
        assert sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")) < 15 << 10
        listener._channel.close()
        assert listener._process.wait(20) == PARENT_GONE


def test_who_may_not_write_is_refused(begin: Begin, tmp_path: Path) -> None:
    listener = begin(allowed=False)
    with connect(listener) as sock:
        assert sock.recv(1) == b""
    assert listener.counts() == Counts()
    line = json.loads((tmp_path / "audit.ndjson").read_bytes())
    assert (line["uid"], line["what"], line["outcome"]) == (os.getuid(), "connect to eve.sock", "DENIED")


def test_no_more_connections_than_allowed(begin: Begin) -> None:
    listener = begin(connections_max=1)
    with connect(listener) as first, connect(listener) as second:
        assert second.recv(1) == b""
        first.sendall(b"1\n")
        eventually(lambda: listener.counts() == Counts(1, 1, 1))


@pytest.mark.parametrize("planted", ["file", "link", "alive", "directory"])
def test_what_is_in_its_place_is_refused_and_left_alone(begin: Begin, tmp_path: Path, planted: str) -> None:
    path = tmp_path / "eve.sock"
    other = socket.socket(socket.AF_UNIX)
    try:
        if planted == "file":
            path.write_bytes(b"mine")
        elif planted == "link":
            path.symlink_to(tmp_path / "elsewhere.sock")
        elif planted == "alive":
            other.bind(str(path))
            other.listen()
        else:
            path.mkdir()
        before = path.lstat()
        with pytest.raises(BootError, match=r"eve\.sock"):
            begin()
        assert path.lstat().st_ino == before.st_ino and not (tmp_path / "elsewhere.sock").exists()
    finally:
        other.close()


def test_a_socket_that_nobody_listens_on_is_replaced(begin: Begin, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "eve.sock"))
    with connect(begin()) as sock:
        sock.sendall(b"1\n")


def test_its_directory_must_be_private(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(BootError, match="can be written to by others"):
        begin(path=tmp_path / "open" / "eve.sock")
    with pytest.raises(OSError, match="none"):
        begin(path=tmp_path / "none" / "eve.sock")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(BootError, match="not a directory"):
        begin(path=tmp_path / "link" / "eve.sock")


def test_a_capture_is_no_lines() -> None:
    with pytest.raises(SourceError, match="pcap cannot be listened to"):
        Intake(SourceSpec("t"), "pcap")
