"""Lines out of bytes: cuts, ends of lines, what is refused, and ids."""

from __future__ import annotations

import pytest

from engine.limits import RECORD_BYTES_MAX
from engine.sources.base import Parsed, SourceSpec
from engine.sources.lines import Line, LineAdapter, event_id, event_id_at


class Collect(LineAdapter):
    format = "collect"

    def __init__(self) -> None:
        super().__init__(SourceSpec("t", "f.log"))
        self.lines: list[Line] = []

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        return True

    def read(self, lines: list[Line], out: Parsed) -> None:
        self.lines += lines


def run(data: bytes, step: int) -> tuple[list[Line], list[tuple[int, str, int]]]:
    adapter = Collect()
    rejects = []
    for at in range(0, len(data), step):
        rejects += adapter.feed(data[at : at + step], at).rejects
    rejects += adapter.finish().rejects
    assert adapter.resume_offset == len(data)
    return adapter.lines, [(r.offset, r.reason, len(r.record)) for r in rejects]


def test_lines_offsets_and_ordinals() -> None:
    data = b"\xef\xbb\xbfa\r\n\n  \nb\na\nnu\0l\nbad \xff utf\nlast"
    expected = [Line(0, b"a", 0), Line(10, b"b", 0), Line(12, b"a", 1), Line(29, b"last", 0)]
    for step in (1, 2, 3, 7, 1000):
        lines, rejects = run(data, step)
        assert lines == expected
        assert rejects == [(14, "line has a NUL byte", 4), (19, "line is not UTF-8 at byte 4", 9)]


@pytest.mark.parametrize("step", [1 << 12, 100_003, 1 << 22])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_over_long_lines(step: int, end: bytes) -> None:
    fits = b"x" * RECORD_BYTES_MAX
    data = (
        fits
        + end
        + fits
        + b"y"
        + end
        + b"y" * (2 * RECORD_BYTES_MAX)
        + end
        + b"ok"
        + end
        + b"z" * (RECORD_BYTES_MAX + 2)
    )
    lines, rejects = run(data, step)
    assert [len(line.record) for line in lines] == [RECORD_BYTES_MAX, 2]
    assert [(reason, kept) for _, reason, kept in rejects] == [("line is longer than 1048576 bytes", 65_536)] * 3


def test_partial_last_line_waits() -> None:
    adapter = Collect()
    adapter.feed(b"one\ntw", 0)
    assert [line.record for line in adapter.lines] == [b"one"] and adapter.resume_offset == 4
    adapter.feed(b"o\n", 6)
    assert [line.record for line in adapter.lines] == [b"one", b"two"] and adapter.resume_offset == 8


def test_skipped_lines_count_for_ordinals() -> None:
    data = b"a\nb\na\na\n"
    whole = Collect()
    whole.feed(data, 0)
    again = Collect()
    again.skip(data[:4], 0)
    again.feed(data[4:], 4)
    assert again.lines == whole.lines[2:]


def test_ids() -> None:
    ids = {
        event_id("s", "flow", b"r", 0),
        event_id("s", "alert", b"r", 0),
        event_id("", "flow", b"r", 0),
        event_id("s", "flow", b"r", 1),
    }
    assert len(ids) == 4 and all(len(i) == 32 for i in ids)
    assert event_id("s", "flow", b"r", 0) == event_id("s", "flow", b"r", 0)
    assert event_id_at("f", 1) != event_id_at("f", 2) != event_id_at("g", 2)
