"""Bytes in, frames out. No sockets, no clocks.

Always true
  - A frame is a u32 little-endian length, then that many bytes of body, at least 1 and at most `limit`.
  - The length is judged before a byte of its body is kept: a peer holds at most `limit` bytes here, plus one read.
  - After a FrameError the stream has no framing any more; nothing that follows can be trusted, so close it.
"""

from __future__ import annotations

from ipc.messages import FRAME_BYTES_HELLO, FRAME_BYTES_MAX

HEADER_BYTES = 4


class FrameError(Exception):
    """The stream is not made of frames; the message says in what way."""


class EmptyFrameError(FrameError):
    def __init__(self) -> None:
        super().__init__("empty frame: a frame has at least 1 byte of body")


class OversizedFrameError(FrameError):
    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit = size, limit
        super().__init__(f"oversized frame: {size} bytes, at most {limit} are taken here")


class TruncatedFrameError(FrameError):
    def __init__(self, missing: int) -> None:
        self.missing = missing
        super().__init__(f"truncated frame: the stream ended at least {missing} bytes short")


def frame(body: bytes) -> bytes:
    """The body with its length in front. Raises EmptyFrameError, OversizedFrameError."""
    size = len(body)
    if not 0 < size <= FRAME_BYTES_MAX:
        raise OversizedFrameError(size, FRAME_BYTES_MAX) if size else EmptyFrameError()
    return size.to_bytes(HEADER_BYTES, "little") + body


class FrameReader:
    """feed() what arrived, then next_frame() until it gives None. `limit` may be raised between two frames."""

    def __init__(self, limit: int = FRAME_BYTES_HELLO) -> None:
        self.limit = limit
        self._buffer = bytearray()  # grows and shrinks at amortised cost 1; taking from its front moves a pointer

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The body of the next whole frame, or None until more is fed. Raises FrameError."""
        buffer = self._buffer
        if len(buffer) < HEADER_BYTES:
            return None
        size = int.from_bytes(buffer[:HEADER_BYTES], "little")
        if size == 0:
            raise EmptyFrameError
        if size > self.limit:
            raise OversizedFrameError(size, self.limit)
        end = HEADER_BYTES + size
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            body = bytes(view[HEADER_BYTES:end])
        if end == len(buffer):
            self._buffer = bytearray()  # an idle connection keeps no buffer
        else:
            del buffer[:end]
        return body

    @property
    def partial(self) -> bool:
        """Bytes of a frame that is not whole yet are held (once next_frame() gave None)."""
        return bool(self._buffer)

    @property
    def held_bytes(self) -> int:
        return len(self._buffer)

    def end(self) -> None:
        """The stream ended here. Raises TruncatedFrameError inside a frame."""
        held = len(self._buffer)
        if held == 0:
            return
        size = int.from_bytes(self._buffer[:HEADER_BYTES], "little") if held >= HEADER_BYTES else 1
        raise TruncatedFrameError(max(1, HEADER_BYTES + size - held))
