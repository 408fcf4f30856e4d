"""Adapters: the same bytes cut anywhere give the same events; garbage never raises."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadRecordError
from engine.normalize import complete
from engine.sources import FORMATS
from engine.sources.base import Parsed, SourceSpec
from engine.sources.ndjson import dump
from ipc.event import Event
from tests import argus
from tests.unit import test_binetflow, test_netflow, test_unsw
from tests.unit.test_cicflow import JAVA4, ROW
from tests.unit.test_eve import ALERT, FLOW, HTTP, lines
from tests.unit.test_zeek import CONN, CONN_JSON, DNS, HEADER, NOTICE_JSON, table

SAMPLES = {
    "eve": lines(HTTP, FLOW, ALERT, ALERT, {**HTTP, "flow_id": 9}) + b"{broken\r\n\0\n\xff\xfe\n" + lines(ALERT)[:-1],
    "ndjson": b'{"ts": 5}\r\n{"ts": 5}\n\n{"tz": 1}\n'
    + dump(Event(event_id="é", source="s", ts=7, ts_start=6, text="x"), raw=b"abc")
    + b'{"ts": 5}',
    "cicflow": f"\ufeff{JAVA4}\r\n{ROW}\r\n{ROW}\n{ROW[:-3]}x,\n{ROW.replace(',80,', ',x,')}\n{JAVA4}\n{ROW}".encode(),
    "binetflow": f"{(row := test_binetflow.ROW)}\r\n{row}\n{row[:-40]},\x00\n{test_binetflow.HEADER}\n{row}\n"
    f"{row.replace(',tcp,', ',man,')}\n{row.replace('3,flow', ',flow')}".encode(),
    "unsw": f"\ufeff{test_unsw.RAW_ROW}\n{test_unsw.RAW_ROW.replace(',dns,', ',-,')}\nx,{test_unsw.RAW_ROW}\n"
    f"{test_unsw.HEADER}\r\n{test_unsw.ROW}\r\n{test_unsw.ROW.replace('0.5', 'Infinity')}\n{test_unsw.ROW}".encode(),
    "netflow": f"{test_netflow.HEADER}\n{test_netflow.ROW}\n{test_netflow.ROW}\n{test_netflow.ROW.replace('53', 'x')}\n"
    f"{test_netflow.NFDUMP}\n{test_netflow.NFDUMP_ROW}\nSummary\n1,2,3,4,5,6\n{test_netflow.NFDUMP_ROW},0".encode(),
}
SAMPLES["zeek"] = (
    b"\t" + table("dns", DNS) + table("conn", CONN, {**CONN, "uid": "C2"}, {**CONN, "proto": "icmp"})[:-3] + b"\n"
    + HEADER.encode() + b"1.5\tshort\n" + lines(CONN_JSON, NOTICE_JSON, {**CONN_JSON, "orig_pkts": "Infinity"})
    + b"#close\n{broken\r\n\0\n\xff\n" + table("conn", {**CONN, "uid": "C3"}, {**CONN, "uid": "C4"})[:-1]
)  # fmt: skip
SAMPLES["argus"] = (
    f"{argus.row()}\r\n{argus.row(1, event_id='')}\n{argus.row(1, event_id='')}\n{argus.row()},1\n"
    f"{argus.row(2, forward_packet_length_max='Infinity')}\n{argus.row(3, protocol='?!')}\n\0\n{argus.row(4)}"
).encode()
SAMPLES["argus-rag"] = (
    argus.jsonl(argus.rag(), argus.rag(1), argus.rag(1), argus.rag(2, detection_timestamp="x")) + b"{broken\n"
    + argus.jsonl(argus.rag(3))[:-1]
)  # fmt: skip
SAMPLES["argus-firewall"] = (
    f"{argus.action()}\r\n{argus.action(1)}\n{argus.action(2, src='x')}\n1,2\n"
    f"{argus.action(3, what='')}\n{argus.action(4)}"
).encode()
assert SAMPLES.keys() == FORMATS.keys() - {"pcap"}, "its own properties: tests/property/test_flows_property.py"
PROFILE = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def run(name: str, data: bytes, cuts: list[int]) -> Parsed:
    adapter = FORMATS[name](SourceSpec("t", "file", fingerprint="f"))
    out = Parsed([], [])
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for begin, end in pairwise(edges):
        parsed = adapter.feed(data[begin:end], begin)
        out.events.extend(parsed.events)
        out.rejects.extend(parsed.rejects)
        out.actions.extend(parsed.actions)
        assert 0 <= adapter.resume_offset <= end
    parsed = adapter.finish()
    out.events.extend(parsed.events)
    out.rejects.extend(parsed.rejects)
    out.actions.extend(parsed.actions)
    return out


def told(*parts: Parsed) -> set[object]:
    """What came out, by identity."""
    return {item.event.event_id for part in parts for item in part.events} | {a for part in parts for a in part.actions}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_have_events_and_rejects(name: str) -> None:
    whole = run(name, SAMPLES[name], [])
    assert len(whole.events) + len(whole.actions) >= 3 and len(whole.rejects) >= 1


@pytest.mark.parametrize("name", SAMPLES)
@PROFILE
@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=12))
def test_cuts_change_nothing(name: str, cuts: list[int]) -> None:
    assert run(name, SAMPLES[name], cuts) == run(name, SAMPLES[name], [])


@pytest.mark.parametrize("name", SAMPLES)
@PROFILE
@given(data=st.data())
def test_a_restart_yields_what_was_not_returned(name: str, data: st.DataObject) -> None:
    sample = SAMPLES[name]
    cut = data.draw(st.integers(0, len(sample)))
    spec = SourceSpec("t", "file", fingerprint="f")
    first = FORMATS[name](spec)
    before = first.feed(sample[:cut], 0)
    again = FORMATS[name](spec)
    mark = first.resume_offset
    if mark:
        again.prime(sample)
    again.skip(sample[:mark], 0)  # type: ignore[attr-defined]
    after = again.feed(sample[mark:], mark)
    last = again.finish()
    assert told(before, after, last) == told(run(name, sample, []))


@pytest.mark.parametrize("name", SAMPLES)
@PROFILE
@given(data=st.data())
def test_damage_never_raises(name: str, data: st.DataObject) -> None:
    """A stretch of a good file replaced by anything."""
    sample = SAMPLES[name]
    begin = data.draw(st.integers(0, len(sample)))
    end = data.draw(st.integers(begin, min(len(sample), begin + 40)))
    noise = data.draw(st.binary(max_size=30) | st.text(max_size=20).map(lambda t: t.encode("utf-8", "replace")))
    got = run(name, sample[:begin] + noise + sample[end:], data.draw(st.lists(st.integers(0, 1 << 12), max_size=2)))
    for item in got.events:
        try:
            complete(item)
        except BadRecordError as e:
            assert "\n" not in e.reason
    assert all(len(r.reason) <= 512 and len(r.record) <= 1 << 16 for r in got.rejects)


@pytest.mark.parametrize("name", SAMPLES)
@PROFILE
@given(noise=st.binary(max_size=200))
def test_garbage_never_raises(name: str, noise: bytes) -> None:
    adapter = FORMATS[name]
    adapter.sniff(noise, "x")
    adapter(SourceSpec("t")).prime(noise)
    run(name, noise, [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def changed(base: dict[str, object], data: st.DataObject) -> dict[str, object]:
    """With any values in some fields, at any depth."""
    keys = st.sampled_from(sorted(base) + sorted(Event.__struct_fields__))
    record = {**base, **data.draw(st.dictionaries(keys, JSON, max_size=3))}
    inner = [key for key, value in record.items() if isinstance(value, dict) and value]
    if inner and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(inner))
        record[key] = changed(record[key], data)  # type: ignore[arg-type]
    return record


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("eve", FLOW), ("eve", ALERT), ("eve", HTTP), ("ndjson", {"ts": 5, "features": {}}), ("zeek", CONN_JSON),
        ("zeek", NOTICE_JSON), ("argus-rag", argus.rag()),
    ],
)  # fmt: skip
@PROFILE
@given(data=st.data())
def test_any_value_in_any_field(name: str, base: dict[str, object], data: st.DataObject) -> None:
    record = changed(base, data)
    line = json.dumps(record).encode()
    got = run(name, line + b"\n", [])
    assert len(got.events) + len(got.rejects) <= 1
    for item in got.events:
        try:
            complete(item)
        except BadRecordError:
            pass
