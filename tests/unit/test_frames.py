from __future__ import annotations

import time

import pytest

from ipc.frames import EmptyFrameError, FrameReader, OversizedFrameError, TruncatedFrameError, frame
from ipc.messages import FRAME_BYTES_HELLO, FRAME_BYTES_MAX


def test_a_frame_is_a_little_endian_length_and_the_body() -> None:
    assert frame(b"abc") == b"\x03\x00\x00\x00abc"


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1000])
def test_frames_come_out_as_they_went_in_however_they_are_cut(piece: int) -> None:
    bodies = [b"a", b"bc" * 100, b"d" * 255]
    stream = b"".join(map(frame, bodies))
    reader, out = FrameReader(), []
    for at in range(0, len(stream), piece):
        reader.feed(stream[at : at + piece])
        while (body := reader.next_frame()) is not None:
            out.append(body)
    assert out == bodies
    assert not reader.partial
    reader.end()


def test_the_limit_may_be_raised_between_two_frames_of_one_read() -> None:
    reader = FrameReader(10)
    reader.feed(frame(b"hello") + frame(b"x" * 100))
    assert reader.next_frame() == b"hello"
    reader.limit = 100
    assert reader.next_frame() == b"x" * 100


def test_an_empty_frame_is_refused_by_name() -> None:
    reader = FrameReader()
    reader.feed(b"\0\0\0\0")
    with pytest.raises(EmptyFrameError, match="empty frame"):
        reader.next_frame()
    with pytest.raises(EmptyFrameError):
        frame(b"")


def test_an_oversized_frame_is_refused_by_name_before_its_body_comes() -> None:
    reader = FrameReader(FRAME_BYTES_HELLO)
    reader.feed((FRAME_BYTES_HELLO + 1).to_bytes(4, "little"))
    with pytest.raises(OversizedFrameError, match="oversized frame: 4097 bytes, at most 4096"):
        reader.next_frame()
    with pytest.raises(OversizedFrameError):
        frame(bytes(FRAME_BYTES_MAX + 1))


@pytest.mark.parametrize(("held", "missing"), [(b"\x05", 4), (b"\x05\0\0\0", 5), (b"\x05\0\0\0abc", 2)])
def test_a_truncated_frame_is_refused_by_name(held: bytes, missing: int) -> None:
    reader = FrameReader()
    reader.feed(held)
    assert reader.next_frame() is None
    assert reader.partial
    with pytest.raises(TruncatedFrameError, match=f"truncated frame: .* {missing} bytes short"):
        reader.end()


def test_the_largest_frame_in_small_pieces_costs_no_quadratic_copies() -> None:
    stream = memoryview(frame(bytes(FRAME_BYTES_MAX)) * 4)
    reader, count, start_s = FrameReader(FRAME_BYTES_MAX), 0, time.perf_counter()
    for at in range(0, len(stream), 1 << 12):
        reader.feed(stream[at : at + (1 << 12)])
        while reader.next_frame() is not None:
            count += 1
    assert count == 4
    assert time.perf_counter() - start_s < 1.0  # 16 MiB in 4,096 pieces; 0.02 s here


def test_many_small_frames_in_one_read_cost_no_quadratic_copies() -> None:
    reader, start_s = FrameReader(), time.perf_counter()
    reader.feed(frame(b"x") * 200_000)
    count = 0
    while reader.next_frame() is not None:
        count += 1
    assert count == 200_000
    assert time.perf_counter() - start_s < 2.0
