"""The table of messages. `python -m tests.unit.test_messages` adds golden lines for new messages; it changes none."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import get_args

import msgpack
import msgspec
import pytest

from engine.layout import Layout
from ipc import messages as m
from ipc.calls import QUERY_SOCKET, WRITE_SOCKET
from ipc.errors import BY_CODE, ClientError, error_of
from ipc.event import FEATURE_BYTES, Annotation, Event, FeaturedEvent, Hit, Verdict
from ipc.frames import FrameReader, OversizedFrameError

GOLDEN = Path(__file__).parents[1] / "golden" / "protocol_v1.msgpack-hex"
REQUESTS: tuple[type[m.Message], ...] = get_args(m.Request)
REPLIES: tuple[type[m.Message], ...] = get_args(m.Reply)
EVENT = Event(
    event_id="f-1",
    source="lab",
    ts=1_700_000_000_000_000_000,
    ts_start=1_699_999_999_000_000_000,
    src_ip="10.0.0.1",
    dst_ip="fe80::1",
    src_port=0,
    dst_port=65_535,
    proto=6,
    classification="MALICIOUS",
    family="Brute Force",
    final_score=0.5,
    verdicts=[Verdict("sig", "MALICIOUS", 0.75, "SIG_MATCH")],
    discrepancy=0.25,
    decision="DROP",
    text="ET SCAN",
    technique=["T1110"],
    extra={"x": 1.5},
    coverage=3,
)
FEATURED = FeaturedEvent(EVENT, struct.pack("<105f", *range(105)), b'{"raw": true}')
NOTE = Annotation(label="tp", labelled_by="ann", labelled_at=7, history=[(7, "ann", "label", "tp")])
OPTIONS = m.Options(
    space="chronos",
    top_k=3,
    filter=m.Filter(families=["Brute Force"], since=1, src_ports=[(1, 1024)], score_min=0.5),
    before=True,
    explain=True,
    weights={"attack": 2.0},
    min_generation=4,
    deadline_ms=250,
)
EXPLANATION = m.Explanation(
    event_id="f-2",
    space="fused",
    distance=1.5,
    percentile=0.5,
    contributions=[m.Contribution("rate", 1.0, None, None, -0.5)],
    agree=["rate"],
    words=[("scan", 0.5)],
    spaces={"attack": (1.0, 2.0, 0.5)},
    parts=[m.Explanation(event_id="f-2", space="attack", distance=1.0)],
)
ANSWER = m.Answer(
    "fused",
    "v1",
    "L2",
    True,
    100,
    50,
    1_234,
    EVENT,
    [Hit(5, 0.5, 1.0, 2, EVENT, NOTE), Hit(6, 0.75, 2.0, 1, EVENT)],
    same_family=0.5,
    explain=[EXPLANATION],
    counter_example=m.CounterExample(9, 4.0, EVENT),
    plan="exact",
)
JUDGEMENT = m.Judgement(
    EVENT, "DDoS", 0.75, [("DoS", 0.125)], 0.5, False, 0.0625, True,
    [m.Precedent(Hit(5, 0.5, 1.0, 2, EVENT, NOTE), "DDoS", True, 0.5)], 2, {"DDoS": 0.5, "DoS": 0.25}, 0.25,
    [0.5, 0.75, 1.0], [1.0, 1.5, 2.0], "attack", "v1", True, 100, 50, 1_234,
)  # fmt: skip
VOTING = m.Voting(space="chronos", k=3, filter=m.Filter(labels=[""]), before=False, deadline_ms=250)
SAMPLES: tuple[m.Message, ...] = (
    m.Hello(1, "test", 0),
    m.Ping(1),
    m.Info(2),
    m.Stats(3),
    m.Get(4, ["a", "b"], True, True, 5, 100),
    m.List(5, m.Filter(labels=[""]), 17, 10),
    m.Recent(6, 5, None, True),
    m.QuerySimilar(7, "a", OPTIONS),
    m.QueryEvent(8, [FEATURED], OPTIONS, 2),
    m.QueryVector(9, b"\0\0\x80?" * 4, "chronos-1", OPTIONS),
    m.SearchText(10, "dns tunnelling to a new domain"),
    m.Explain(11, "a", "b"),
    m.Watch(12, 3),
    m.Cancel(13, 12),
    m.Models(14),
    m.Ingest(15, "eve", [FEATURED], [m.Reject("eve.json", 17, "no timestamp", b"{}")], "eve"),
    m.Label(16, "a", "tp", "ann"),
    m.UseModel(17, "v2"),
    m.AddModel(18, "v2", {"card.json": b"{}"}),
    m.RollbackModel(19),
    m.ForgetModel(20),
    m.Measure(25, 1_000, 7),
    m.Compact(26),
    m.Purge(27, m.Filter(addr=["192.0.2.1"]), [], True),
    m.Scrub(34),
    m.Welcome(0, 1, 1, "reader-0", "0.1.0", 9, m.FRAME_BYTES_MAX, m.TOP_K_MAX),
    m.Pong(1, 9),
    m.Facts(2, 9, {"a": [1, 2.5, None]}),
    m.Failure(3, m.ErrorCode.OVERLOADED, "later", 100),
    m.Found(4, 9, [m.Stored(5, EVENT, NOTE, b"", b"{}")], ["b"], 6),
    m.Answers(7, 9, [ANSWER]),
    m.Explained(11, 9, EXPLANATION),
    m.Ingested(15, 9, 1, 2, 3, "dead_letters.ndjson"),
    m.Done(16, 9, {"ok": True}),
    m.Generation(12, 9),
    m.Classify(19, ["a"], [FEATURED], VOTING, 3),
    m.Classified(19, 9, [JUDGEMENT]),
)

TOLD = m.Answers(
    7, 9, [msgspec.structs.replace(
        ANSWER, query_alerts=[m.Alert(8, "a-1", "eve", "alert", 17, "MALICIOUS", "PortScan", "ET SCAN", 3)],
        alerts=[[], [m.Alert(7, "a-2", "zeek", "notice", 18, "UNKNOWN", "Unknown", "odd", 1)]],
        query_flows=[m.Flow(9, "f-3", "pcap", 19, "BENIGN", "Normal", 91)],
    )],
)  # fmt: skip
NAMED = {type(sample).__name__: sample for sample in SAMPLES} | {"Answers.told": TOLD}  # a name for each golden line


def tag_of(kind: type[m.Message]) -> int:
    tag = kind.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


def decode(kind: type[m.Message], body: bytes) -> m.Message:
    return m.decode_request(body) if kind in REQUESTS else m.decode_reply(body)


def golden() -> dict[str, bytes]:
    lines = GOLDEN.read_text().split("\n") if GOLDEN.exists() else []
    return {line.split()[0]: bytes.fromhex(line.split()[1]) for line in lines if line}


def test_every_message_has_a_sample() -> None:
    assert {type(sample) for sample in SAMPLES} == set(REQUESTS) | set(REPLIES)


@pytest.mark.parametrize("sample", NAMED.values(), ids=NAMED)
def test_every_message_survives_a_round_trip(sample: m.Message) -> None:
    assert decode(type(sample), m.encode(sample)) == sample


@pytest.mark.parametrize("name", NAMED)
def test_the_golden_bytes_of_version_1_still_mean_the_same(name: str) -> None:
    assert decode(type(NAMED[name]), golden()[name]) == NAMED[name]


@pytest.mark.parametrize("sample", NAMED.values(), ids=NAMED)
def test_a_plain_msgpack_library_reads_every_message(sample: m.Message) -> None:
    body = msgpack.unpackb(m.encode(sample))
    assert body[0] == tag_of(type(sample))
    assert decode(type(sample), msgpack.packb(body)) == sample


@pytest.mark.parametrize("sample", NAMED.values(), ids=NAMED)
def test_a_truncated_body_is_refused_at_every_length(sample: m.Message) -> None:
    body = m.encode(sample)
    for size in range(len(body)):
        with pytest.raises(msgspec.DecodeError):
            decode(type(sample), body[:size])


@pytest.mark.parametrize("sample", NAMED.values(), ids=NAMED)
def test_a_field_that_a_newer_peer_adds_last_is_ignored_but_not_in_a_write(sample: m.Message) -> None:
    """A newer client's actions were once lost by an older engine, which had stored "all"."""
    body = msgpack.packb([*msgpack.unpackb(m.encode(sample)), "new"])
    if isinstance(sample, m.Write):
        with pytest.raises(msgspec.ValidationError, match="array"):
            decode(type(sample), body)
    else:
        assert decode(type(sample), body) == sample


def test_tags_are_unique_in_their_ranges_and_not_retired() -> None:
    tags = [tag_of(kind) for kind in (*REQUESTS, *REPLIES)]
    assert len(set(tags)) == len(tags)
    assert not set(tags) & m.RETIRED_TAGS
    assert all(tag_of(kind) < 32 for kind in get_args(m.Read))
    assert all(32 <= tag_of(kind) < 64 for kind in get_args(m.Write))
    assert all(tag_of(kind) >= 64 for kind in REPLIES)


def test_every_message_says_its_request_id_and_all_but_hello_say_it_first() -> None:
    for kind in (*REQUESTS, *REPLIES):
        assert "request_id" in kind.__struct_fields__
        assert kind is m.Hello or kind.__struct_fields__[0] == "request_id"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"{}",
        b"\x80",
        b"\x90",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x91\xcc\x63",
        msgpack.packb([63, 1]),
        msgpack.packb(["Ping", 1]),
        msgpack.packb([1, -1]),
        msgpack.packb([1, 1 << 53]),
        msgpack.packb([1, "1"]),
        msgpack.packb([1, 1.5]),
        msgpack.packb([7, 1, ""]),
        msgpack.packb([7, 1, "x" * 385]),
        msgpack.packb([7, 1, "a", {"top_k": 0}]),
        msgpack.packb([7, 1, "a", {"top_k": 10**9}]),
        msgpack.packb([7, 1, "a", {"topk": 3}]),
        msgpack.packb([7, 1, "a", {1: 3}]),
        msgpack.packb([4, 1, ["a"] * 1025]),
        b"\x93\x07\x01\xa2\xff\xfe",
        msgpack.packb([9, 1, msgpack.ExtType(4, b"x"), "m"]),
        msgpack.packb([8, 1, [[{"event_id": "a", "source": "s", "ts": 1, "ts_start": 1, "proto": 256}]]]),
        msgpack.packb(
            [8, 1, [[{"event_id": "a", "source": "s", "ts": 1, "ts_start": 1, "final_score": float("nan")}]]]
        ),
        b"\x92\x01" + b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\x94\x04\x01\xdd\xff\xff\xff\xff",
        b"\x93\x07\x01\xdb\xff\xff\xff\xff",
    ],
)
def test_foreign_bodies_are_refused(body: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        m.decode_request(body)


WEIGHTS = msgpack.packb({f"{n:x}": 0.5 for n in range(100_000)})
FILES = msgpack.packb({f"{n:x}": b"" for n in range(100_000)})
MAPS = b"\xdd" + (1 << 20).to_bytes(4, "big") + b"\x80" * (1 << 20)


@pytest.mark.parametrize(
    "body",
    [
        MAPS,
        b"\x93\x04\x01" + MAPS,
        b"\x94\x08\x01" + MAPS,
        b"\x95\x20\x01\xa1x" + MAPS,
        b"\x94\x07\x01\xa1a\x81\xa7weights" + WEIGHTS,
        b"\x94\x23\x01\xa1v" + FILES,
    ],
    ids=["bare", "ids", "events", "ingest", "weights", "files"],
)
def test_large_hostile_bodies_are_refused_before_they_become_objects(body: bytes) -> None:
    tracemalloc.start()  # the peak of these bytes alone; the process's own peak may be higher already
    try:
        with pytest.raises(msgspec.DecodeError):
            m.decode_request(body)
        assert tracemalloc.get_traced_memory()[1] < 256 << 10
    finally:
        tracemalloc.stop()


def test_an_oversized_frame_is_refused_by_name() -> None:
    reader = FrameReader(m.FRAME_BYTES_MAX)
    reader.feed((m.FRAME_BYTES_MAX + 1).to_bytes(4, "little"))
    with pytest.raises(OversizedFrameError):
        reader.next_frame()


def test_every_error_code_has_its_own_class_and_an_exit_status() -> None:
    assert set(BY_CODE) == set(m.ErrorCode)
    assert len(set(BY_CODE.values())) == len(BY_CODE)
    for code, kind in BY_CODE.items():
        error = error_of(m.Failure(1, code, "why", 5))
        assert type(error) is kind
        assert isinstance(error, ClientError)
        assert (error.code, error.detail, error.retry_after_ms) == (code, "why", 5)
        assert 1 <= kind.exit_status <= 6


def test_the_client_and_the_layout_agree_on_the_sockets() -> None:
    layout = Layout(Path("/d"))
    assert (layout.query_socket, layout.write_socket) == (Path("/d", QUERY_SOCKET), Path("/d", WRITE_SOCKET))


def test_features_fill_their_bytes() -> None:
    assert len(FEATURED.features) == FEATURE_BYTES


if __name__ == "__main__":
    known = golden()
    with GOLDEN.open("a") as file:
        for name, sample in NAMED.items():
            if name not in known:
                file.write(f"{name} {m.encode(sample).hex()}\n")
