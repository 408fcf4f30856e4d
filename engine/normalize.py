"""Complete an event: the one place where what every source leaves open is filled in, for ingest and query_event alike.

Always true
  - `complete` is idempotent and depends on nothing but the event; the event is valid afterwards, or BadRecordError.
  - What the source said is kept: family_raw its word, classification its verdict; only missing things are added.
  - discrepancy, trace_id, community_id and coverage are never taken from the source: there is one definition of each.
"""

from __future__ import annotations

import hashlib
import re
from binascii import b2a_base64
from functools import lru_cache
from math import isfinite
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct as Layout

import numpy as np

from engine.errors import BadRecordError
from engine.families import NORMAL, UNKNOWN, canonical, clean, trace_window_ms, trace_word
from ipc.event import FEATURE_BYTES, Event, FeaturedEvent, Verdict

TEXT_MAX = 8192
WORD_MAX = 128
LIST_MAX = 32
EXTRA_MAX = 64
RAW_BYTES_MAX = 1 << 20
TS_NS_MAX = (1 << 63) - 1
CLASSIFICATIONS = frozenset({"BENIGN", "SUSPICIOUS", "MALICIOUS", "UNKNOWN"})
KINDS = frozenset({"flow", "alert", "notice"})
DECISIONS = frozenset({"", "ALLOW", "DROP", "ALERT"})
MISSING_SENTINEL = -9999.0

TCP, UDP, ICMP, ICMP6, SCTP = 6, 17, 1, 58, 132
# ICMP types that answer each other (RFC 792, 2710, 4443, 4861): both are one conversation, as in Community ID v1.
_ICMP_ANSWER = {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 10: 9, 9: 10, 17: 18, 18: 17}
_ICMP6_ANSWER = {
    128: 129, 129: 128, 130: 131, 131: 130, 133: 134, 134: 133,
    135: 136, 136: 135, 139: 140, 140: 139, 144: 145, 145: 144,
}  # fmt: skip
_SURROGATES = re.compile("[\ud800-\udfff]")
_PORTS = Layout(">HH")
_F32 = np.dtype("<f4")


def complete(item: FeaturedEvent, *, count: bool = True) -> Event:
    """Fill in what the adapter left open, in place; returns item.event. count: say its coverage, too; otherwise whoever
    calls does, for many at once. BadRecordError: one line, no payload."""
    event = item.event
    _check(event, item)
    event.src_ip, src = address(event.src_ip)
    event.dst_ip, dst = address(event.dst_ip)
    _tidy(event)
    word = event.family or event.family_raw
    event.family_raw = clean(event.family_raw or event.family)
    family = canonical(word) or (NORMAL if event.classification == "BENIGN" else UNKNOWN)
    if family == NORMAL and event.classification == "UNKNOWN":
        event.classification = "BENIGN"
    elif family == NORMAL and event.classification in ("SUSPICIOUS", "MALICIOUS"):
        family = UNKNOWN
    event.family = family
    if event.final_score is None and (event.fast_score is not None or event.ml_score is not None):
        event.final_score = max(event.fast_score or 0.0, event.ml_score or 0.0)
    event.discrepancy = discrepancy(event.verdicts, event.fast_score, event.ml_score)
    event.trace_id = trace_id(event.src_ip, event.dst_ip, family, event.ts)
    event.community_id = community_id(src, dst, event.src_port, event.dst_port, event.proto)
    if count:
        event.coverage = coverage(item.features)
    return event


def _check(event: Event, item: FeaturedEvent) -> None:
    name = event.event_id
    size = len(name) if name.isascii() else len(_utf8(name))
    if not 0 < size <= 255 or "\0" in name:
        raise BadRecordError("event_id must be 1 to 255 bytes of UTF-8 without NUL")
    if not 0 < len(event.source) <= WORD_MAX or "/" in event.source or "\0" in event.source:
        raise BadRecordError("source must have 1 to 128 characters, no '/' and no NUL")
    if not 0 <= event.ts_start <= TS_NS_MAX or not 0 <= event.ts <= TS_NS_MAX:
        raise BadRecordError("time is not between 1970 and 2262")
    event.ts_start = min(event.ts_start, event.ts)  # a clock went back: a flow never ends before it starts
    for port in (event.src_port, event.dst_port):
        if port is not None and not 0 <= port <= 65_535:
            raise BadRecordError("port is not in 0..65535")
    if event.proto is not None and not 0 <= event.proto <= 255:
        raise BadRecordError("protocol number is not in 0..255")
    if event.vlan is not None and not 0 <= event.vlan <= 4095:
        raise BadRecordError("vlan is not in 0..4095")
    if event.classification not in CLASSIFICATIONS:
        raise BadRecordError("classification is not one of BENIGN, SUSPICIOUS, MALICIOUS, UNKNOWN")
    if event.kind not in KINDS:
        raise BadRecordError("kind is not one of flow, alert, notice")
    if event.decision not in DECISIONS:
        raise BadRecordError("decision is not one of ALLOW, DROP, ALERT")
    if len(event.verdicts) > LIST_MAX or len(event.technique) > LIST_MAX or len(event.extra) > EXTRA_MAX:
        raise BadRecordError("too many verdicts, techniques or extra numbers")
    if len(item.features) not in (0, FEATURE_BYTES):
        raise BadRecordError(f"features must be {FEATURE_BYTES} bytes or none")
    if len(item.raw) > RAW_BYTES_MAX:
        raise BadRecordError(f"the source record is longer than {RAW_BYTES_MAX} bytes")


def _utf8(text: str) -> bytes:
    """Empty where UTF-8 cannot say it."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return b""


def _tidy(event: Event) -> None:
    event.text = tidy(event.text, TEXT_MAX)
    event.sensor = tidy(event.sensor, WORD_MAX)
    event.tunnel = tidy(event.tunnel, WORD_MAX)
    if event.technique:
        event.technique = [tidy(word, WORD_MAX) for word in event.technique]
    if event.extra:
        event.extra = {tidy(k, WORD_MAX): v for k, v in event.extra.items() if isfinite(v)}
    if event.fast_score is not None:
        event.fast_score = score("fast_score", event.fast_score)
    if event.ml_score is not None:
        event.ml_score = score("ml_score", event.ml_score)
    if event.final_score is not None:
        event.final_score = score("final_score", event.final_score)
    for verdict in event.verdicts:
        if verdict.classification not in CLASSIFICATIONS or not 0.0 <= verdict.confidence <= 1.0:
            raise BadRecordError("a verdict's classification or confidence is out of range")


def tidy(text: str, length_max: int) -> str:
    """Without NUL, what UTF-8 cannot say replaced, cut to length."""
    if not text or (text.isascii() and len(text) <= length_max and "\0" not in text):
        return text
    return _SURROGATES.sub("\ufffd", text.replace("\0", ""))[:length_max]


def score(name: str, value: float | None) -> float | None:
    """A score in 0..1, or None where the source says that there is none."""
    if value is None or value != value or value == MISSING_SENTINEL:
        return None
    if not 0.0 <= value <= 1.0:
        raise BadRecordError(f"{name} is not in 0..1")
    return value


@lru_cache(maxsize=65_536)
def address(text: str) -> tuple[str, bytes]:
    """The shortest form of an address and its bytes; ('', b'') of none. Raises BadRecordError."""
    text, _, _ = text.strip().partition("%")  # a zone index means nothing elsewhere
    if not text:
        return "", b""
    family = AF_INET6 if ":" in text else AF_INET
    try:
        packed = inet_pton(family, text)
    except (OSError, ValueError) as e:
        raise BadRecordError(f"{text[:45]!r} is not an address") from e
    return inet_ntop(family, packed), packed


def discrepancy(verdicts: list[Verdict], fast: float | None = None, ml: float | None = None) -> float:
    """How far the engines disagree: the largest |p(a) - p(b)| over all pairs of verdicts, p = confidence for MALICIOUS
    and SUSPICIOUS, 1 - confidence for BENIGN (UNKNOWN is no opinion); |fast - ml| where there are scores only."""
    if verdicts:
        p = [
            1.0 - verdict.confidence if verdict.classification == "BENIGN" else verdict.confidence
            for verdict in verdicts
            if verdict.classification != "UNKNOWN"
        ]
        return max(p) - min(p) if len(p) > 1 else 0.0
    return abs(fast - ml) if fast is not None and ml is not None else 0.0


def trace_id(src_ip: str, dst_ip: str, family: str, ts: int) -> str:
    """32 hex digits; the same for all events of a pair and family in one window of time. ts in ns."""
    word, window_ms = _trace_of(family)
    window = ts // 1_000_000 // window_ms
    return hashlib.sha256(f"{src_ip}|{dst_ip}|{word}|{window}".encode()).digest()[:16].hex()


@lru_cache(maxsize=4096)
def _trace_of(family: str) -> tuple[str, int]:
    return trace_word(family), trace_window_ms(family)


def community_id(src: bytes, dst: bytes, src_port: int | None, dst_port: int | None, proto: int | None) -> str:
    """Community ID v1, seed 0; '' where addresses or protocol are missing. ICMP: the ports are type and code."""
    if not src or proto is None or len(src) != len(dst):
        return ""
    one_way = False
    if proto in (ICMP, ICMP6) and src_port is not None and dst_port is not None:
        answer = icmp_answer(proto, src_port)
        if answer is None:
            one_way = True
        else:
            dst_port = answer
    elif proto in (TCP, UDP, SCTP):
        if src_port is None or dst_port is None:
            return ""
    else:
        src_port = dst_port = None
    if not one_way and (dst, dst_port or 0) < (src, src_port or 0):
        src, dst, src_port, dst_port = dst, src, dst_port, src_port
    seed = b"".join((b"\0\0", src, dst, bytes((proto, 0))))
    if src_port is not None and dst_port is not None:
        seed += _PORTS.pack(src_port, dst_port)
    return "1:" + b2a_base64(hashlib.sha1(seed, usedforsecurity=False).digest(), newline=False).decode()


def icmp_answer(proto: int, icmp_type: int) -> int | None:
    """The type that answers this one; None where there is none."""
    return (_ICMP_ANSWER if proto == ICMP else _ICMP6_ANSWER).get(icmp_type)


def coverage(features: bytes) -> int:
    """How many of the features are present: finite."""
    return int(np.count_nonzero(np.isfinite(np.frombuffer(features, _F32)))) if features else 0
