"""flowkin NDJSON: what is written reads back exactly; what is wrong is named."""

from __future__ import annotations

import json
import random

import msgspec
import numpy as np
import pytest

from engine.features import NAMES, empty, pack
from engine.normalize import complete
from engine.sources.base import Parsed, SourceSpec
from engine.sources.ndjson import NdjsonAdapter, dump
from ipc.event import Annotation, Event, FeaturedEvent, Verdict

TS = 1_622_988_000_123_456_789


def read(data: bytes) -> Parsed:
    adapter = NdjsonAdapter(SourceSpec("import", "x.ndjson"))
    first, last = adapter.feed(data, 0), adapter.finish()
    return Parsed(first.events + last.events, first.rejects + last.rejects)


def event() -> Event:
    return Event(
        event_id="e1", source="other", ts=TS, ts_start=TS - 5, kind="alert", src_ip="10.0.0.1", dst_ip="::1",
        src_port=1, dst_port=65_535, proto=6, vlan=7, classification="MALICIOUS", family="DoS", family_raw="dos_hulk",
        fast_score=0.1, ml_score=0.9, verdicts=[Verdict("e", "BENIGN", 0.3)], decision="DROP",
        text='a | "b" é \u2028', technique=["T1498"], extra={"x": 0.1},
    )  # fmt: skip


def test_round_trip_is_exact() -> None:
    rng = random.Random(3)
    row = empty(1)[0]
    for i in range(0, 105, 2):
        row[i] = np.float32(rng.choice((rng.random(), 10 ** rng.uniform(-38, 38), rng.randrange(10**9), 0.1, -0.0)))
    for raw in (b"", b"the record, \xc3\xa9", b"\xff\x00binary"):
        whole = FeaturedEvent(event(), pack(row), raw)
        complete(whole)
        line = dump(whole.event, row, Annotation(label="true_positive"), raw)
        got = read(line)
        assert not got.rejects and line.endswith(b"\n") and line.count(b"\n") == 1
        assert got.events[0].event == whole.event
        assert got.events[0].features == whole.features
        assert got.events[0].raw == (raw or line[:-1])


def test_short_events_and_times() -> None:
    lines = [
        {"ts": TS},
        {"ts": "2021-06-06T14:00:00.123456789Z"},
        {"ts": "2021-06-06 16:00:00.123456789+02:00", "ts_start": "2021-06-06T14:00:00Z"},
        {"ts": TS, "features": {"flow_duration": 1, "rst_flag_count": None}},
    ]
    got = read("\n".join(map(json.dumps, lines)).encode())
    assert not got.rejects
    assert [item.event.ts for item in got.events] == [TS] * 4
    assert got.events[2].event.ts_start == TS - 123_456_789
    assert len({item.event.event_id for item in got.events}) == 4
    assert got.events[0].event.source == "import"
    assert got.events[3].features == pack(np.array([1 if n == "flow_duration" else np.nan for n in NAMES], np.float32))


def test_identical_lines_have_ids_of_their_own() -> None:
    got = read(b'{"ts": 5}\n{"ts": 5}\n')
    assert len({item.event.event_id for item in got.events}) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"ts": TS, "colour": 1}, "unknown key 'colour'"),
        ({"ts": TS, "sensor": None}, "sensor"),
        ({"ts": TS, "features": {"speed": 1}}, "unknown feature 'speed'"),
        ({"ts": TS, "features": {"flow_duration": "1"}}, "flow_duration"),
        ({"ts": TS, "features": {"flow_duration": 1e39}}, "flow_duration"),
        ({"ts": TS, "features": [1]}, "not an object"),
        ({"ts": 1.5}, "ts"),
        ({"ts": True}, "ts"),
        ({"ts": "yesterday"}, "yesterday"),
        ({"ts": "1969-12-31T23:59:59Z"}, "1970"),
        ({"ts": TS, "src_port": 70_000}, "src_port"),
        ({"ts": TS, "src_ip": 5}, "src_ip"),
        ({"event_id": "x"}, "no ts"),
        ({"ts": TS, "raw_base64": "%"}, "base64"),
        ([], "object"),
    ],
)
def test_what_is_wrong_is_named(line: object, says: str) -> None:
    got = read(json.dumps(line).encode())
    assert not got.events and says in got.rejects[0].reason
    assert got.rejects[0].record == json.dumps(line).encode()


def test_hostile_json() -> None:
    got = read(b"[" * 100_000 + b"\n" + b'{"ts":' + b"9" * 5000 + b"}\n" + b'{"ts": 1e999}\n{"ts"\n{"ts": 7}\n')
    assert len(got.events) == 1 and len(got.rejects) == 4


def test_sniff() -> None:
    assert NdjsonAdapter.sniff(dump(event()), "x")
    assert not NdjsonAdapter.sniff(b'{"ts": 1, "uid": "C1"}\n', "conn.log")
    assert not NdjsonAdapter.sniff(b'{"timestamp": "x", "event_type": "flow"}\n', "eve.json")
    assert msgspec.json.decode(dump(event()))["event_id"] == "e1"
