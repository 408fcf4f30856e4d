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


def read_s(data: bytes, piece_bytes: int, frames: int) -> float:
    """CPU seconds, the best of three, to read so many frames."""

    def once() -> float:
        reader, count, start_s = FrameReader(FRAME_BYTES_MAX), 0, time.process_time()
        for at in range(0, len(data), piece_bytes):
            reader.feed(memoryview(data)[at : at + piece_bytes])
            while reader.next_frame() is not None:
                count += 1
        assert count == frames
        return time.process_time() - start_s

    return min(once() for _ in range(3))


def test_the_largest_frame_in_small_pieces_costs_no_quadratic_copies() -> None:
    """Sixteen times the bytes: were every piece copied again for each that follows, 256 times the cost."""
    small, large = FRAME_BYTES_MAX // 16, FRAME_BYTES_MAX
    assert read_s(frame(bytes(large)), 1 << 10, 1) < 80 * read_s(frame(bytes(small)), 1 << 10, 1) + 0.01


def test_many_small_frames_in_one_read_cost_no_quadratic_copies() -> None:
    assert read_s(frame(b"x") * 160_000, 1 << 30, 160_000) < 80 * read_s(frame(b"x") * 10_000, 1 << 30, 10_000) + 0.01
