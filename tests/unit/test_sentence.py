"""Sentences: few distinct ones, no verdict, nothing that is unique to an event."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.embed.sentence import TEXT_CHARS_MAX, normalised, place, sentence, sentences
from engine.features import INDEX, empty
from ipc.event import Event, Verdict
from tests.events import T0

INTERNAL = ("10.0.0.0/8", "192.168.0.0/16", "fc00::/7")


def event(**more: object) -> Event:
    fields: dict[str, object] = {
        "event_id": "e1", "source": "s", "ts": T0, "ts_start": T0, "src_ip": "10.1.2.3", "dst_ip": "203.0.113.9",
        "src_port": 50_123, "dst_port": 53, "proto": 17,
    }  # fmt: skip
    return Event(**(fields | more))  # type: ignore[arg-type]


def row(**features: float) -> np.ndarray:  # type: ignore[type-arg]
    out = empty(1)[0]
    for name, value in features.items():
        out[INDEX[name]] = value
    return out


FULL = {
    "total_forward_packets": 1, "total_backward_packets": 1, "total_forward_bytes": 60, "total_backward_bytes": 900,
    "flow_duration": 0.02, "syn_flag_count": 0, "fin_flag_count": 0, "rst_flag_count": 0,
}  # fmt: skip


def test_a_flow_in_words() -> None:
    said = sentence(event(), row(**FULL))
    assert said == ("dns udp internal to external, answered, sent tiny, received small, few packets, short")


def test_what_is_not_known_is_not_said() -> None:
    assert sentence(event(), row()) == "dns udp internal to external"
    bare = event(src_ip="", dst_ip="", src_port=None, dst_port=None, proto=None, kind="alert")
    assert sentence(bare, row()) == "alert"
    assert sentence(event(text="ET SCAN Nmap"), row()) == "et scan nmap, dns udp internal to external"


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"total_backward_packets": 0}, "unanswered"),
        ({"rst_flag_count": 1, "total_forward_bytes": 0, "total_backward_bytes": 0}, "refused"),
        ({"rst_flag_count": 1}, "reset"),
        ({"fin_flag_count": 2}, "closed"),
        ({"syn_flag_count": 2}, "opened"),
        ({}, "ongoing"),
        ({"fin_flag_count": float("nan")}, "answered"),
        ({"fin_flag_count": float("nan"), "flow_completion_rate": 0.0}, "not established"),
    ],
)
def test_states(flags: dict[str, float], word: str) -> None:
    assert f", {word}, " in sentence(event(proto=6, dst_port=80), row(**(FULL | flags)))


def test_no_verdict_is_in_it() -> None:
    """Whatever a detector or analyst said of an event, its sentence is the same."""
    features = row(**FULL)
    judged = event(
        classification="MALICIOUS", family="DDoS", family_raw="DoS Hulk", fast_score=0.9, ml_score=0.8, final_score=0.9,
        verdicts=[Verdict("x", "MALICIOUS", 0.9, "SIG_MATCH")], discrepancy=0.7, decision="DROP", technique=["T1498"],
        trace_id="ab" * 16, community_id="1:x", coverage=20, extra={"a": 1.0}, event_id="other", sensor="DDoS",
    )  # fmt: skip
    assert sentence(judged, features) == sentence(event(), features)


def test_what_is_read_of_an_event() -> None:
    """A field that is added to Event must not slip into the sentence unseen."""
    read = {"text", "src_ip", "dst_ip", "proto", "dst_port", "kind"}
    features, plain = row(**FULL), event()

    class Spy:
        def __getattr__(self, name: str) -> object:
            assert name in read, name
            return getattr(plain, name)

    assert sentence(Spy(), features) == sentence(plain, features)  # type: ignore[arg-type]


def test_addresses_are_places() -> None:
    assert place("10.0.0.1", INTERNAL) == place("::1", INTERNAL) == place("fd00::1", INTERNAL) == "internal"
    assert place("8.8.8.8", INTERNAL) == place("2001:db8::1", INTERNAL) == "external"
    assert place("224.0.0.251", INTERNAL) == place("ff02::1", INTERNAL) == place("10.0.0.255", INTERNAL) == "broadcast"
    assert place("", INTERNAL) == place("host", INTERNAL) == ""
    here = sentence(event(dst_ip="203.0.113.9"), row(), ("203.0.113.0/24", "10.0.0.0/8"))
    assert here == "dns udp internal to internal"


def test_many_are_said_as_each_alone() -> None:
    events = [event(), event(text="ET SCAN Nmap"), event(src_ip="8.8.8.8", proto=6, dst_port=80), event(proto=None)]
    features = np.stack([row(**FULL), row(), row(**FULL), row(total_forward_packets=1.0)])
    assert sentences(events, features) == [sentence(e, f) for e, f in zip(events, features, strict=True)]
    assert sentences([], features[:0]) == []


def test_flows_that_are_alike_share_a_sentence() -> None:
    rng = np.random.default_rng(1)
    said = set()
    for _ in range(5_000):
        features = row(**FULL)
        for name in ("total_forward_bytes", "total_backward_bytes", "flow_duration", "total_forward_packets"):
            features[INDEX[name]] = np.exp(rng.normal(4, 4))
        said.add(sentence(event(src_ip=f"10.0.{rng.integers(256)}.{rng.integers(1, 255)}", ts=T0), features))
    assert len(said) < 600


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET 192.0.2.7/a?id=123 | GET 192.0.2.7/a?id=77", "get address/a?id=number"),
        ("http://[2001:db8::7]/x", "http://[address]/x"),
        ("d41d8cd98f00b204e9800998ecf8427e.exe", "hex.exe"),
        ("550e8400-e29b-41d4-a716-446655440000", "id"),
        ("q=1%27%20or%201%3D1", "q=number' or 1=number"),
        ("port 65535\x00\x01 tab\there", "port number tab here"),
        ("aGVsbG8gd29ybGQgdGhpcyBpcyBsb25nIDEyMw==.t.example", "blob.t.example"),
        ("Mozilla/5.0 (X11)", "mozilla/5.0 (x11)"),
        ("2024", "number"),
        (" | | ", ""),
    ],
)
def test_text_is_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected


@given(st.text(max_size=2_000))
def test_any_text_is_bounded_and_clean(text: str) -> None:
    out = normalised(text)
    assert len(out) <= TEXT_CHARS_MAX and not any(ord(c) < 32 for c in out)
    assert isinstance(sentence(event(text=text), row()), str)
