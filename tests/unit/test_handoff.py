from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from engine.limits import HANDOFF_BACKLOG_MAX
from engine.run import handoff
from engine.run.handoff import Receiver, Sender


@pytest.fixture
def ends() -> Iterator[tuple[Sender, Receiver]]:
    ours, theirs = handoff.channel()
    yield Sender(ours), Receiver(theirs)
    ours.close()
    theirs.close()


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_connection_arrives_works_and_its_end_is_counted(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends

    async def scenario() -> None:
        got: list[socket.socket] = []
        receiver.on_connection = got.append
        receiver.attach(asyncio.get_running_loop(), lambda: None)
        a, b = socket.socketpair()
        assert sender.offer(a)
        assert a.fileno() == -1, "the supervisor's copy is closed at once"
        assert (sender.open, sender.sent) == (1, 1)
        await turns()
        (taken,) = got
        assert fcntl.fcntl(taken, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert not taken.getblocking()
        taken.send(b"hello")
        assert b.recv(9) == b"hello"
        assert sender.receive()
        assert (sender.taken, sender.open) == (1, 1)
        taken.close()
        receiver.closed_one()
        await turns()
        assert sender.receive()
        assert sender.open == 0
        b.close()
        receiver.stop()

    before = open_fds()
    asyncio.run(scenario())
    assert open_fds() == before


def test_a_full_channel_is_refused_and_keeps_the_connection_open(ends: tuple[Sender, Receiver]) -> None:
    sender, _ = ends
    pairs = [socket.socketpair() for _ in range(HANDOFF_BACKLOG_MAX + 1)]
    assert all(sender.offer(a) for a, _ in pairs[:-1])
    assert sender.full
    last, peer = pairs[-1]
    assert not sender.offer(last)
    last.send(b"still open")
    assert peer.recv(99) == b"still open"
    for a, b in pairs:
        a.close()
        b.close()


def test_room_comes_back_when_the_worker_takes(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends

    async def scenario() -> None:
        pairs = [socket.socketpair() for _ in range(HANDOFF_BACKLOG_MAX)]
        for a, _ in pairs:
            assert sender.offer(a)
        receiver.on_connection = lambda sock: (sock.close(), receiver.closed_one())[1]
        receiver.attach(asyncio.get_running_loop(), lambda: None)
        await turns(20)
        assert sender.receive()
        assert not sender.full
        assert sender.open == 0
        for _, b in pairs:
            b.close()
        receiver.stop()

    uvloop.run(scenario())


def test_offering_to_a_dead_worker_is_refused_not_raised(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    receiver.sock.close()
    a, b = socket.socketpair()
    assert not sender.offer(a)
    assert a.fileno() >= 0
    assert not sender.send(handoff.JOB, b"{}")
    assert not sender.receive()
    a.close()
    b.close()


def test_the_end_of_the_supervisor_is_told_once(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends

    async def scenario() -> None:
        ended: list[int] = []
        receiver.attach(asyncio.get_running_loop(), lambda: ended.append(1))
        sender.close()
        await turns(10)
        assert ended == [1]
        receiver.closed_one()  # reporting to nobody is no error
        await turns()

    uvloop.run(scenario())


def test_the_job_comes_first_and_ready_and_checked_go_back(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    assert sender.send(handoff.JOB, b"x" * 100_000)
    assert receiver.job() == b"x" * 100_000
    assert not sender.ready
    receiver.send(handoff.READY)
    assert sender.receive()
    assert sender.ready

    async def scenario() -> None:
        suspects: list[str] = []
        receiver.on_suspect = suspects.append
        receiver.attach(asyncio.get_running_loop(), lambda: None)
        sender.send(handoff.SUSPECT, b"chronos 3")
        await turns()
        assert suspects == ["chronos 3"]
        receiver.send(handoff.CHECKED)
        assert sender.receive()
        assert sender.checked
        receiver.stop()

    uvloop.run(scenario())


def test_a_stopping_worker_closes_what_is_on_the_way(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends

    async def scenario() -> None:
        receiver.on_connection = lambda sock: pytest.fail("taken while stopping")
        receiver.attach(asyncio.get_running_loop(), lambda: None)
        a, b = socket.socketpair()
        assert sender.offer(a)
        receiver.stop()
        assert b.recv(1) == b""
        b.close()
        await turns()

    uvloop.run(scenario())


def test_what_no_worker_says_is_told_and_a_flood_holds_nobody_up(ends: tuple[Sender, Receiver]) -> None:
    """A reader may have been taken over."""
    sender, receiver = ends
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 10 * handoff.MESSAGES_AT_ONCE:
            receiver.sock.send(handoff.CHECKED, socket.MSG_DONTWAIT)
            sent += 1
    assert sender.receive() and sender.checked  # and went on with others
    left = sent - handoff.MESSAGES_AT_ONCE
    for _ in range(-(-left // handoff.MESSAGES_AT_ONCE)):
        assert sender.receive()
    for message in (handoff.COUNTS + b"x", b"Zx"):
        receiver.sock.send(message)
        with pytest.raises(ValueError, match=r"counts of 1 bytes|of kind b'Z'"):
            sender.receive()


def test_no_supervisor_means_no_job(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    sender.close()
    assert receiver.job() == b""


def test_without_a_free_descriptor_a_connection_waits_until_there_is_one(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    taken: list[socket.socket] = []

    async def scenario() -> None:
        receiver.attach(asyncio.get_running_loop(), lambda: None)
        receiver.on_connection = taken.append
        a, b = socket.socketpair()
        assert sender.offer(a)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
        try:
            await turns()
            assert not taken
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with asyncio.timeout(5):
            while not taken:
                await asyncio.sleep(0.01)
        b.sendall(b"x")
        assert taken[0].recv(1) == b"x"
        taken[0].close()
        b.close()
        receiver.stop()

    uvloop.run(scenario())


def test_heartbeat_pages_hold_what_was_put(tmp_path: Path) -> None:
    from engine.run import heartbeat

    assert heartbeat.read(tmp_path / "none") is None
    page = heartbeat.Heartbeat(tmp_path / "page", create=True)
    page.start(restarts=3)
    page.put(pid=os.getpid(), generation=(1 << 63) + 5, requests=7)
    page.searching("chronos/1-é" + "x" * 400)
    page.stamp()
    beat = heartbeat.read(tmp_path / "page")
    assert beat is not None
    assert (beat.pid, beat.generation, beat.requests, beat.restarts) == (os.getpid(), (1 << 63) + 5, 7, 3)
    assert beat.stamp_ns >= beat.started_ns > 0
    assert beat.searching.startswith("chronos/1-é")
    assert len(beat.searching.encode()) == heartbeat.TEXT_BYTES_MAX
    page.close()
    (tmp_path / "link").symlink_to(tmp_path / "page")
    with pytest.raises(OSError):
        heartbeat.Heartbeat(tmp_path / "link", create=True)


@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_worker_asks_for_new_readers_and_hears_whether_all_were_replaced(
    ends: tuple[Sender, Receiver], all_of_them: bool
) -> None:
    sender, receiver = ends
    asked: list[str] = []
    heard: list[bool] = []

    async def scenario() -> None:
        sender.on_roll, receiver.on_rolled = lambda: asked.append("roll"), heard.append
        receiver.attach(asyncio.get_running_loop(), lambda: None)
        assert receiver.roll()
        assert sender.receive() and asked == ["roll"]
        assert sender.send(handoff.ROLLED, b"\1" if all_of_them else b"")
        await turns()
        receiver.stop()

    asyncio.run(scenario())
    assert heard == [all_of_them]
    sender.close()
    assert not receiver.roll()
