from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipc.frames import FrameError, FrameReader, frame
from ipc.messages import FRAME_BYTES_MAX, decode_reply, decode_request
from ipc.server import request_id_of

BODIES = st.lists(st.binary(min_size=1, max_size=300), max_size=20)


@given(BODIES, st.lists(st.integers(1, 400), min_size=1))
def test_any_cut_of_the_stream_gives_the_same_frames(bodies: list[bytes], cuts: list[int]) -> None:
    stream, reader, out, at, turn = b"".join(map(frame, bodies)), FrameReader(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
        while (body := reader.next_frame()) is not None:
            out.append(body)
    assert out == bodies
    assert not reader.partial


@given(st.lists(st.binary(max_size=64), max_size=50), st.integers(1, 64))
def test_garbage_gives_frames_or_one_named_error_and_holds_no_more_than_the_limit(
    pieces: list[bytes], limit: int
) -> None:
    reader = FrameReader(limit)
    try:
        for piece in pieces:
            reader.feed(piece)
            while (body := reader.next_frame()) is not None:
                assert 0 < len(body) <= limit
            assert len(reader._buffer) <= limit + 4
    except FrameError as e:
        assert "frame" in str(e)


@given(st.binary(max_size=2_000))
def test_garbage_bodies_are_refused_with_a_value_error_or_are_messages(body: bytes) -> None:
    for decode in (decode_request, decode_reply):
        try:
            decode(body)
        except (ValueError, RecursionError):
            pass
    assert 0 <= request_id_of(body) < 1 << 53


@given(BODIES)
def test_the_end_of_a_whole_stream_is_no_error(bodies: list[bytes]) -> None:
    reader = FrameReader(FRAME_BYTES_MAX)
    reader.feed(b"".join(map(frame, bodies)))
    while reader.next_frame() is not None:
        pass
    reader.end()
