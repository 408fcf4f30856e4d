"""The formats bench: what it writes for other tools, which events it takes for one flow, and how it counts."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from bench.formats.corpus import dated, ends, matched
from bench.formats.measure import Asked, Base, causes, share
from bench.formats.written import CIC_HEAD, CONN_COLUMNS, Flow, cic_table, conn_log, flows_of, history_of
from engine.features import INDEX, empty, unpack
from engine.flows.decode import ACK, FIN, RST, SYN, TCP, UDP
from engine.flows.table import PACKET
from engine.sources import adapter_for
from engine.sources.base import SourceSpec
from ipc.event import Event, FeaturedEvent

LAB = Path(__file__).resolve().parents[2] / "examples/lab/lab.pcap.gz"
WHOLE_SECONDS = 1_000_000_000


@pytest.fixture(scope="module")
def flows() -> list[Flow]:
    return flows_of(gzip.decompress(LAB.read_bytes()), SourceSpec("pcap"))


def read(form: str, data: bytes) -> list[FeaturedEvent]:
    adapter = adapter_for(form)(SourceSpec(form))
    parsed = adapter.feed(data, 0)
    for more in (adapter.finish(), adapter.release()):
        parsed.add(more)
    assert parsed.rejects == []
    return parsed.events


def packets(*rows: tuple[int, int, int]) -> np.ndarray:
    """(side, flags, payload bytes) of each."""
    out = np.zeros(len(rows), PACKET)
    out["side"], out["flags"], out["length"] = np.array(rows).T
    return out


@pytest.mark.parametrize(
    ("rows", "history", "state"),
    [
        ([(0, SYN, 0)], "S", "S0"),
        ([(0, SYN, 0), (1, RST | ACK, 0)], "Sr", "REJ"),
        ([(0, SYN, 0), (1, SYN | ACK, 0), (0, RST, 0)], "ShR", "RSTO"),
        ([(0, SYN, 0), (1, SYN | ACK, 0), (0, ACK, 0), (0, ACK, 9), (1, ACK, 9), (1, FIN | ACK, 0), (0, FIN | ACK, 0)],
         "ShADdfF", "SF"),
        ([(0, SYN, 0), (1, SYN | ACK, 0), (0, ACK, 0)], "ShA", "S1"),
        ([(0, ACK, 5), (1, ACK, 0)], "Da", "OTH"),
    ],
)  # fmt: skip
def test_a_history_and_state_are_those_of_zeek(rows: list[tuple[int, int, int]], history: str, state: str) -> None:
    assert history_of(TCP, packets(*rows)) == (history, state)


def test_a_datagram_has_a_history_and_icmp_has_none() -> None:
    assert history_of(UDP, packets((0, 0, 4), (1, 0, 4))) == ("Dd", "SF")
    assert history_of(1, packets((0, 0, 4))) == ("", "OTH")


@pytest.mark.parametrize(
    ("form", "write", "columns"), [("zeek", conn_log, CONN_COLUMNS), ("cicflow", cic_table, CIC_HEAD)]
)
def test_what_is_written_reads_as_it_was_measured(flows: list[Flow], form: str, write: object, columns: object) -> None:
    """Whatever the adapter takes from a written row agrees with the capture, cell by cell; little is lost of flows."""
    assert callable(write)
    events = read(form, write(flows))
    of = matched([flow.item.event for flow in flows], [item.event for item in events])
    some = np.flatnonzero(of >= 0)
    assert len(some) == len(events) > 3_000
    ours = unpack([flows[i].item.features for i in some])
    theirs = unpack([events[j].features for j in of[some]])
    both = np.isfinite(ours) & np.isfinite(theirs)
    both[:, INDEX["flow_completion_rate"]] = False  # Zeek has its own idea of who is connected
    # microseconds, and sums of float32
    wrong = both & ~np.isclose(ours, theirs, rtol=2e-3, atol=2e-6)
    assert wrong.sum() <= 0.002 * both.sum()


def event(src: str, dst: str, start_s: float, *, proto: int | None = TCP, ports: tuple[int, int] = (1, 2)) -> Event:
    start = round((1_000 + start_s) * WHOLE_SECONDS)
    return Event(event_id="x", source="t", ts=start + WHOLE_SECONDS, ts_start=start, src_ip=src, dst_ip=dst,
                 src_port=ports[0], dst_port=ports[1], proto=proto)  # fmt: skip


def test_a_flow_is_matched_once_by_its_ends_and_start_whichever_way_round() -> None:
    ours = [event("10.0.0.1", "10.0.0.2", 0), event("10.0.0.1", "10.0.0.2", 60)]
    theirs = [event("10.0.0.2", "10.0.0.1", 60.9, ports=(2, 1)), event("10.0.0.1", "10.0.0.2", 0.4),
              event("10.0.0.1", "10.0.0.2", 0.1), event("10.0.0.3", "10.0.0.2", 0)]  # fmt: skip
    assert matched(ours, theirs).tolist() == [2, 0]
    assert ends(event("a", "b", 0, proto=None)) == ends(event("b", "a", 0, proto=1))


def test_a_masked_log_gets_the_starts_of_our_flows_of_the_same_ends(flows: list[Flow]) -> None:
    some = [flow for flow in flows if flow.item.event.proto == TCP][:40]
    head, *rows = conn_log(some).decode().split("#fields")
    masked = "### of a test\n" + head + "#fields" + rows[0]
    lines = ["\t".join(["XXX.XXX", *line.split("\t")[1:]]) if line[:1].isdigit() else line
             for line in masked.splitlines()]  # fmt: skip
    given = read("zeek", dated("\n".join(lines).encode(), some))
    starts = sorted(flow.item.event.ts_start // 1_000 for flow in some)
    assert sorted(item.event.ts_start // 1_000 for item in given) == starts


def test_what_is_as_far_ties_and_what_is_equal_counts_as_often_as_it_is_there() -> None:
    stored = np.array([[0, 0], [2, 0], [0, 2], [1, 0], [1, 0], [9, 9]], np.float32)
    asked = np.zeros((1, 2), np.float32)
    base = Base(stored)
    assert [int(n[0]) for n in base.nearer(asked, stored[1:2])] == [3, 2]  # twice (1, 0) and (0, 0); (0, 2) ties
    assert [int(n[0]) for n in base.nearer(asked, stored[0:1])] == [0, 0]


def test_an_interval_is_over_captures() -> None:
    capture = np.repeat([0, 1], 50)
    assert share(capture == 0, capture) == (100, 0.5, 0.0, 1.0)
    assert share(np.zeros(0, np.bool_), capture[:0]) is None


def test_causes_are_cells_that_differ() -> None:
    a, b = empty(1), empty(1)
    duration, forward, rate = INDEX["flow_duration"], INDEX["total_forward_packets"], INDEX["connection_rate"]
    a[0, [duration, forward, rate]] = 1.0, 2.0, 0.5
    b[0, [duration, rate]] = 1.0, 0.75
    found = {name: np.flatnonzero(cells[0]).tolist() for name, cells in causes(a, b).items()}
    assert found == {
        "all cells": [forward, rate], "missing": [forward], "missing, count": [forward],
        "other value": [rate], "other value, context": [rate],
    }  # fmt: skip
    assert not Asked(np.zeros(1, np.int64), a, b).alike.any()
