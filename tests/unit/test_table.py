"""What all table formats share: cells, headers in the middle, and whatever else may stand in a file."""

from __future__ import annotations

import hashlib
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadRecordError
from engine.features import INDEX, unpack
from engine.limits import RECORD_BYTES_MAX
from engine.sources import FORMATS
from engine.sources.base import Parsed, SourceSpec
from engine.sources.lines import LineAdapter
from engine.sources.table import header, judged, normalised, split, whole
from tests.data import content
from tests.unit import test_binetflow, test_cicflow, test_netflow, test_unsw

# format: a header, a row, and the name of the column of durations.
TABLES = {
    "cicflow": (test_cicflow.JAVA4, test_cicflow.ROW, "Flow Duration"),
    "binetflow": (test_binetflow.HEADER, test_binetflow.ROW, "Dur"),
    "unsw": (test_unsw.HEADER, test_unsw.ROW, "dur"),
    "netflow": (test_netflow.HEADER, test_netflow.ROW, "FLOW_DURATION_MILLISECONDS"),
}
each = pytest.mark.parametrize("format", TABLES)


def read(format: str, data: bytes) -> Parsed:
    adapter = FORMATS[format](SourceSpec("t", "f", fingerprint="f"))
    first, last = adapter.feed(data, 0), adapter.finish()
    return Parsed(first.events + last.events, first.rejects + last.rejects)


def with_duration(format: str, cell: str) -> str:
    """The row with that cell for its duration."""
    head, row, column = TABLES[format]
    cells = row.split(",")
    cells[head.split(",").index(column)] = cell
    return ",".join(cells)


@each
@pytest.mark.parametrize("cell", ["", "-", "NaN", "nan", "Infinity", "-Infinity", "inf", " ", "-9999", '""', '"NaN"'])
def test_cells_that_say_nothing_are_missing(format: str, cell: str) -> None:
    got = read(format, f"{TABLES[format][0]}\n{with_duration(format, cell)}\n".encode())
    assert not got.rejects
    row = unpack([item.features for item in got.events])[0]
    assert np.isnan(row[INDEX["flow_duration"]]) and np.isnan(row[INDEX["flow_packets_per_second"]])
    assert not (row == -9999).any()


@each
@pytest.mark.parametrize("cell", ["0x10", "many", "1_000", "\u0661", "1,5", "[1]", "1e", "null", "true", "--", '"1,5"'])
def test_cells_that_are_no_numbers_are_rejected(format: str, cell: str) -> None:
    head, row, _ = TABLES[format]
    got = read(format, f"{head}\n{with_duration(format, cell)}\n{row}\n".encode())
    assert len(got.events) == 1 and len(got.rejects) == 1 and got.rejects[0].offset == len(head) + 1
    assert "is not a number" in got.rejects[0].reason or "columns, the header has" in got.rejects[0].reason


@each
@pytest.mark.parametrize("cell", ["2", '"2"', " 2", "2.0", "+2", "2e0", "02", '" 2 "'])
def test_numbers_as_sources_write_them(format: str, cell: str) -> None:
    got = read(format, f"{TABLES[format][0]}\n{with_duration(format, cell)}\n".encode())
    plain = read(format, f"{TABLES[format][0]}\n{with_duration(format, '2')}\n".encode())
    assert not got.rejects and got.events[0].features == plain.events[0].features


@each
def test_lines_that_are_no_rows(format: str) -> None:
    head, row, _ = TABLES[format]
    long = row[:-1] + "x" * RECORD_BYTES_MAX
    bad = [
        long.encode(), row.encode().replace(b",", b"\0,", 1), (row + ",").encode(), row.rpartition(",")[0].encode(),
        b"x" + b"," * 200, b'"' + row.encode(), b"\x1b[31m",
    ]  # fmt: skip
    if FORMATS[format].is_utf8:  # type: ignore[attr-defined]
        bad.append(row.encode() + b"\xff")
    data = b"\n".join(chain([b"\xef\xbb\xbf" + head.encode() + b"\r"], *((line, row.encode()) for line in bad), [b""]))
    got = read(format, data)
    assert len(got.events) == len(bad) == len(got.rejects)
    for line, reject in zip(bad, got.rejects, strict=True):
        assert data[reject.offset :].startswith(line[:100]) and reject.reason and len(reject.record) <= 1 << 16
        assert reject.reason.isprintable()


@each
def test_a_header_in_the_middle_and_a_restart_below_it(format: str) -> None:
    """Tables joined in one file: columns may stand elsewhere in the second, and a restart must know."""
    head, row, _ = TABLES[format]
    turned = "\n".join(",".join(reversed(line.split(","))) for line in (head, row))
    data = f"{head}\n{row}\n{head}\n{row}\n{turned}\n".encode()
    got = read(format, data + turned.partition("\n")[2].encode())
    assert len(got.events) == 4 and not got.rejects
    assert len({item.features for item in got.events}) == 1
    again = FORMATS[format](SourceSpec("t", "f", fingerprint="f"))
    assert isinstance(again, LineAdapter)
    again.prime(data)
    again.skip(data, 0)
    again.feed(turned.partition("\n")[2].encode(), len(data))
    assert again.finish().events == got.events[3:]


@each
def test_no_header_at_all(format: str) -> None:
    row = TABLES[format][1] + ",1,2,3,4"
    got = read(format, f"{row}\n{row}\n".encode())
    assert not got.events and [f"no {FORMATS[format].title} header" in r.reason for r in got.rejects] == [True, True]  # type: ignore[attr-defined]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(values=st.lists(st.floats(0, 1e18) | st.integers(0, 10**18), min_size=2, max_size=9))
def test_numbers_are_read_to_the_last_bit(values: list[float]) -> None:
    """The quick parser and Python's agree."""
    row = dict(zip(test_netflow.CELLS, test_netflow.CELLS.values(), strict=True)) | {"IN_BYTES": "1"}
    for value in values:
        cells = row | {"DNS_TTL_ANSWER": repr(value), "OUT_BYTES": str(value)}
        got = read("netflow", f"{','.join(cells)}\n{','.join(cells.values())}\n".encode())
        extra = got.events[0].event.extra
        assert extra["ip_bytes_toclient"] == float(str(value)) and extra.get("dns_ttl_s", 0.0) == float(repr(value))


@each
@pytest.mark.parametrize("cell", ["1e-300", "1e-25", "1e17", "1e39", "1e400", "9" * 400])
def test_numbers_that_no_flow_has(format: str, cell: str) -> None:
    """Neither they nor what follows from them is infinite."""
    got = read(format, f"{TABLES[format][0]}\n{with_duration(format, cell)}\n".encode())
    assert not got.rejects
    assert not np.isinf(np.frombuffer(got.events[0].features, "<f4")).any()


def test_cells() -> None:
    assert split('a,"b,c",d') == ["a", "b,c", "d"] and split("a\tb,c", "\t") == ["a", "b,c"]
    with pytest.raises(BadRecordError, match="does not end"):
        split('a,b,"c')
    assert normalised(" Total Fwd_Packet/s") == "totalfwdpackets"
    assert header(("a", "b"), "", {"x": ("a",)}, (("b",), ("c",))) is None
    assert whole("port", "80.0", 99) == 80 and whole("port", "-", 99) is None
    for cell in ("100", "-1", "8.5", "x", "NaN", "Infinity", "1e400"):
        with pytest.raises(BadRecordError, match="port"):
            whole("port", cell, 99)


def test_verdicts() -> None:
    assert judged("Background", "") == ("Background", "UNKNOWN") and judged("", "") == ("", "UNKNOWN")
    assert judged("DoS", "0") == ("DoS", "BENIGN")  # contradictory: Normal or not is what the label says


@pytest.mark.parametrize(
    ("file", "format", "digest"),
    [
        ("cicids2017_improved/cicids2017_improved_dev.csv.gz", "cicflow", "23ee8f12e84663f4"),
        ("argus_binetflow/test2-malicious.binetflow.gz", "binetflow", "3c7297556dbb2a8b"),
        ("unsw_nb15/unsw_nb15_1_sampled_with_stime.csv.gz", "unsw", "391c441b83b49d12"),
        ("nf_bot_iot_v2/nf_bot_iot_v2_dev.csv.gz", "netflow", "65395c5149ea2969"),
        ("suricata_eve/slips_test6_eve.json.gz", "eve", "448bcc320c08e91b"),
    ],
)
def test_ids_never_change(file: str, format: str, digest: str) -> None:
    """A replay by a later version must make the same ids, or every event would be stored twice."""
    ids = " ".join(item.event.event_id for item in read(format, content(file)).events)
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == digest
