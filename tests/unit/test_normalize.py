"""Completion of events: the one definition of discrepancy, trace id, community id and coverage."""

from __future__ import annotations

import hashlib
import ipaddress
import random

import communityid
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadRecordError
from engine.features import empty, pack
from engine.normalize import address, community_id, complete, discrepancy
from ipc.event import Event, FeaturedEvent, Verdict

S = 1_000_000_000


def item(features: bytes = b"", **fields: object) -> FeaturedEvent:
    given = {"event_id": "e1", "source": "test", "ts": 1_700_000_000 * S, "ts_start": 1_700_000_000 * S} | fields
    return FeaturedEvent(Event(**given), features)  # type: ignore[arg-type]


def test_family_and_classification() -> None:
    assert complete(item()).family == "Unknown"
    assert complete(item(classification="BENIGN")).family == "Normal"
    event = complete(item(family="dos_hulk", classification="MALICIOUS"))
    assert (event.family, event.family_raw, event.classification) == ("DoS", "dos_hulk", "MALICIOUS")
    event = complete(item(family_raw="Benign"))
    assert (event.family, event.classification) == ("Normal", "BENIGN")
    event = complete(item(family_raw="Normal", classification="MALICIOUS"))
    assert (event.family, event.family_raw, event.classification) == ("Unknown", "Normal", "MALICIOUS")
    event = complete(item(family_raw="DoS\x1b[31m Hulk\n"))
    assert event.family == "DoS [31m Hulk" and event.family_raw == "DoS [31m Hulk"


def test_completing_twice_changes_nothing() -> None:
    first = item(
        family="SSH-Patator",
        fast_score=0.2,
        ml_score=0.9,
        src_ip="10.0.0.1",
        dst_ip="2001:DB8:0:0::1",
        proto=6,
        text="a\0b",
    )
    complete(first)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(first), type=FeaturedEvent)
    complete(again)
    assert again == first
    assert first.event.dst_ip == "2001:db8::1" and first.event.text == "ab"


def test_scores() -> None:
    assert complete(item(fast_score=0.25, ml_score=0.75)).final_score == 0.75
    assert complete(item(fast_score=0.25)).final_score == 0.25
    assert complete(item(fast_score=0.25, final_score=0.1)).final_score == 0.1
    event = complete(item(fast_score=-9999.0, ml_score=float("nan")))
    assert (event.fast_score, event.ml_score, event.final_score) == (None, None, None)
    with pytest.raises(BadRecordError, match="ml_score"):
        complete(item(ml_score=1.5))


def test_discrepancy_has_one_definition() -> None:
    def verdict(classification: str, confidence: float) -> Verdict:
        return Verdict("e", classification, confidence)  # type: ignore[arg-type]

    assert discrepancy([]) == 0.0
    assert discrepancy([], 0.2, 0.9) == pytest.approx(0.7)
    assert discrepancy([], 0.2, None) == 0.0
    assert discrepancy([verdict("MALICIOUS", 0.9)], 0.1, 0.9) == 0.0  # one voice
    assert discrepancy([verdict("MALICIOUS", 0.9), verdict("BENIGN", 0.8)]) == pytest.approx(0.7)
    assert discrepancy(
        [verdict("SUSPICIOUS", 0.6), verdict("MALICIOUS", 0.9), verdict("UNKNOWN", 0.0)]
    ) == pytest.approx(0.3)
    assert complete(item(discrepancy=0.9)).discrepancy == 0.0  # what a source says of it does not count


verdicts = st.lists(
    st.builds(Verdict, st.just("e"), st.sampled_from(["BENIGN", "SUSPICIOUS", "MALICIOUS", "UNKNOWN"]),
              st.floats(0, 1)),
    max_size=8,
)  # fmt: skip


@settings(derandomize=True, deadline=None)
@given(verdicts)
def test_discrepancy_is_the_largest_over_all_pairs(voices: list[Verdict]) -> None:
    def p(voice: Verdict) -> float:
        return 1 - voice.confidence if voice.classification == "BENIGN" else voice.confidence

    spoken = [voice for voice in voices if voice.classification != "UNKNOWN"]
    want = max((abs(p(a) - p(b)) for a in spoken for b in spoken), default=0.0)
    assert discrepancy(voices) == want


def test_trace_id_formula() -> None:
    ts = 1_700_000_012_345 * 1_000_000
    event = complete(item(src_ip="10.0.0.1", dst_ip="10.0.0.2", family="ddos", ts=ts, ts_start=ts))
    assert (
        event.trace_id
        == hashlib.sha256(f"10.0.0.1|10.0.0.2|ddos|{1_700_000_012_345 // 10_000}".encode()).hexdigest()[:32]
    )
    event = complete(item(src_ip="10.0.0.1", dst_ip="10.0.0.2", family="FTP-Patator", ts=ts, ts_start=ts))
    seed = f"10.0.0.1|10.0.0.2|ssh_brute|{1_700_000_012_345 // 30_000}"
    assert event.trace_id == hashlib.sha256(seed.encode()).hexdigest()[:32]


def test_community_id_agrees_with_the_reference() -> None:
    rng = random.Random(7)
    reference = communityid.CommunityID()
    for _ in range(2_000):
        bits = rng.choice((32, 128))
        make = ipaddress.IPv4Address if bits == 32 else ipaddress.IPv6Address
        src, dst = (str(make(rng.getrandbits(bits))) for _ in range(2))
        if rng.random() < 0.1:
            dst = src
        proto = rng.choice((6, 17, 132, 1, 58, 47))
        if proto in (1, 58):
            sport, dport = rng.choice((0, 3, 8, 13, 14, 128, 129, 133, 136, rng.randrange(256))), rng.randrange(256)
        elif proto == 47:
            sport = dport = None
        else:
            sport, dport = rng.randrange(65_536), rng.randrange(65_536)
        expected = reference.calc(communityid.FlowTuple(proto, src, dst, sport, dport))
        assert community_id(address(src)[1], address(dst)[1], sport, dport, proto) == expected, (src, dst, proto)


def test_community_id_is_the_same_both_ways_and_empty_where_it_cannot_be() -> None:
    a, b = address("10.0.0.1")[1], address("10.0.0.2")[1]
    assert community_id(a, b, 1234, 80, 6) == community_id(b, a, 80, 1234, 6)
    assert community_id(a, b, None, 80, 6) == community_id(b"", b, 1, 80, 6) == community_id(a, b, 1, 80, None) == ""
    assert community_id(a, address("::1")[1], 1, 2, 6) == ""


@pytest.mark.parametrize("bad", ["10.0.0.256", "10.0.0", "010.0.0.1", "1.2.3.4:80", "::g", "host", "10.0.0.1\x00"])
def test_addresses_that_are_none(bad: str) -> None:
    with pytest.raises(BadRecordError, match="not an address"):
        complete(item(src_ip=bad))


def test_addresses_in_shortest_form() -> None:
    assert address(" fe80:0:0:0::1%eth0 ")[0] == "fe80::1"
    assert address("0:0:0:0:0:0:0:0")[0] == "::"


def test_coverage_counts_what_is_there() -> None:
    row = empty(1)[0]
    row[[0, 3, 104]] = [6, 0.5, np.inf]
    assert complete(item(pack(row))).coverage == 2
    assert complete(item()).coverage == 0
    with pytest.raises(BadRecordError, match="420 bytes"):
        complete(item(b"\0" * 419))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_id", ""),
        ("event_id", "é" * 128),
        ("event_id", "a\0"),
        ("event_id", "\ud800"),
        ("source", "a/b"),
        ("ts", -1),
        ("ts", 1 << 63),
        ("src_port", 65_536),
        ("proto", 256),
        ("vlan", 4096),
        ("classification", "EVIL"),
        ("kind", "x"),
        ("decision", "MAYBE"),
        ("technique", ["T1"] * 33),
    ],
)
def test_what_no_event_may_hold(field: str, value: object) -> None:
    with pytest.raises(BadRecordError):
        complete(item(**{field: value}))


def test_text_is_always_storable() -> None:
    event = complete(
        item(text="x\ud800\0" + "y" * 9000, technique=["T1\0"], extra={"a": float("inf"), "b": 1.0}, ts_start=2**62)
    )
    assert len(event.text) == 8192 and event.text.startswith("x\ufffdy")
    assert event.technique == ["T1"] and event.extra == {"b": 1.0}
    assert event.ts_start == event.ts  # a flow does not end before it starts
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=Event) == event
