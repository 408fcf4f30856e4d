"""All 105 features over every capture of ../shared/data, as the engine gets them: adapter, then context.

Shown with `pytest -s`, and whenever it fails: the share of flows that have a feature, its distinct values, least,
median and largest.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from socket import inet_ntoa
from typing import Any, NamedTuple

import numpy as np
import pytest

from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.features import F32, FEATURES, INDEX, NAMES, unpack
from engine.featurize import featurize
from engine.flows.capture import CaptureReader
from engine.flows.decode import ACK, ETHERNET, ICMP, ICMP6, SCTP, TCP, UDP, URG
from engine.flows.split import NS
from ipc.event import FeaturedEvent
from tests.data import SHARED, content, shared
from tests.packets import P, parse, pcap

METADATA = ((1, 2), (2, 7))  # interface mode and index: of captures at a host, and at a gateway
NO_CAPTURE_HAS = ("backward_urg_flags",)  # one packet of the corpus is urgent, a first one
WITH_HEADER = (TCP, UDP, ICMP, ICMP6, SCTP)  # protocols whose header is counted


class Capture(NamedTuple):
    path: str
    events: list[FeaturedEvent]
    features: F32


def with_metadata(events: list[FeaturedEvent], mode: int, ifindex: int) -> F32:
    """The adapter's features, and what an operator says of the capture's interface: missing cells alone."""
    features = unpack([event.features for event in events])
    for name, value in (("interface_mode", mode), ("source_ifindex", ifindex)):
        column = features[:, INDEX[name]]
        column[np.isnan(column)] = value
    return features


@pytest.fixture(scope="module")
def corpus() -> list[Capture]:
    """Every capture that is there and has flows, in the order of their times, through one context."""
    with shared("PCAP_MANIFEST.csv").open() as file:
        paths = [row["path"] for row in csv.DictReader(file) if (SHARED / row["path"]).exists()]
    parsed = [(path, parse(content(path)).events) for path in paths]
    found = sorted(((path, events) for path, events in parsed if events), key=lambda c: c[1][0].event.ts)
    tracker, captures = Tracker(CIDRS_INTERNAL), []
    for i, (path, events) in enumerate(found):
        features = with_metadata(events, *METADATA[i % 2])
        featurize([event.event for event in events], features, tracker)
        captures.append(Capture(path, events, features))
    return captures


def table(features: F32) -> list[str]:
    lines = [f"{'':3} {'':36} {'present':>7} {'distinct':>8} {'min':>11} {'median':>11} {'max':>11}"]
    for f in FEATURES:
        values = known(features, f.name)
        share, least = len(values) / len(features), (np.min, np.median, np.max)
        figures = "".join(f" {of(values):11.5g}" for of in least) if len(values) else ""
        lines.append(f"{f.column:3} {f.name:36} {share:7.3f} {len(np.unique(values)):8}{figures}")
    return lines


def known(features: F32, name: str) -> Any:
    column = features[:, INDEX[name]]
    return column[~np.isnan(column)]


def test_every_feature_varies_and_none_is_a_sentinel(corpus: list[Capture]) -> None:
    features = np.concatenate([capture.features for capture in corpus])
    print(f"{len(features)} flows of {len(corpus)} captures", *table(features), sep="\n")
    assert len(corpus) >= 70 and features.shape[1] == len(NAMES) == 105
    assert not np.isinf(features).any()
    constant = [name for name in NAMES if len(np.unique(known(features, name))) < 2]
    assert constant == list(NO_CAPTURE_HAS)
    assert [name for name in NAMES if known(features, name).min() < 0] == []  # nothing that is measured is below 0


def test_what_no_capture_has() -> None:
    """A server's urgent byte, as of telnet's interrupt."""
    packets = [P(NS), P(2 * NS, "10.0.0.2", "10.0.0.1", 80, 1000, flags=ACK | URG, payload=b"\xff\xf2"), P(3 * NS)]
    (event,) = parse(pcap(packets)).events
    assert unpack([event.features])[0, INDEX["backward_urg_flags"]] == 1


def test_backward_counters(corpus: list[Capture]) -> None:
    """Where the bytes of a capture show packets of both endpoints, a flow of theirs has counters above 0 backward."""
    both = 0
    for path, events, features in corpus:
        column = dict(zip(NAMES, features.T, strict=True))
        flows: dict[Any, list[int]] = defaultdict(list)
        for i, event in enumerate(item.event for item in events):
            flows[frozenset({(event.src_ip, event.src_port), (event.dst_ip, event.dst_port)}), event.proto].append(i)
            if column["total_backward_packets"][i] > 0 and event.proto in WITH_HEADER:
                assert column["backward_header_length"][i] > 0, (path, event)
        for ends, sent in plain_conversations(content(path)).items():
            if len(sent) < 2 or ends not in flows:  # one-way, or only the outside of a tunnel
                continue
            both += 1
            backward = {what: column[f"total_backward_{what}"][flows[ends]].sum() for what in ("packets", "bytes")}
            assert backward["packets"] > 0, (path, ends)
            assert backward["bytes"] > 0 or not all(sent.values()), (path, ends)
    print(f"{both} conversations with packets both ways")
    assert both >= 500


def plain_conversations(data: bytes) -> dict[Any, dict[Any, int]]:
    """TCP and UDP straight over IPv4 and Ethernet, read byte by byte: payload bytes of each endpoint that sends."""
    out: dict[Any, dict[Any, int]] = defaultdict(lambda: defaultdict(int))
    reader = CaptureReader()
    for block in (*reader.feed(data), *reader.finish()):
        if any(interface.linktype != ETHERNET for interface in block.interfaces):
            continue
        for at in block.at.tolist():
            ip = block.data[at + 14 : at + 74]
            kind, header = block.data[at + 12 : at + 14], (ip[0] & 15) * 4
            if kind != b"\x08\0" or ip[9] not in (TCP, UDP) or int.from_bytes(ip[6:8]) & 0x3FFF:
                continue
            ports = int.from_bytes(ip[header : header + 2]), int.from_bytes(ip[header + 2 : header + 4])
            ends = (inet_ntoa(ip[12:16]), ports[0]), (inet_ntoa(ip[16:20]), ports[1])
            size = 8 if ip[9] == UDP else ip[header + 12 : header + 13][0] >> 4 << 2
            out[frozenset(ends), ip[9]][ends[0]] += int.from_bytes(ip[2:4]) - header - size
    return out
