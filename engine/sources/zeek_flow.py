"""What a conn.log says of a flow, as features: only what follows for certain.

Always true
  - Counts are taken where Zeek counts packets: not those whose checksum was wrong (C in the history).
  - Zeek's bytes of TCP come from sequence numbers. They are payload as we count it only where the handshake was seen,
    nothing was missed or sent twice, and the bytes of IP leave plausible headers; otherwise they stay missing.
  - A duration is Zeek's own: it leaves out the last ACK of a connection that both sides closed, which is counted among
    the packets. So its mean gap is missing, and rates are as Zeek would give them.
  - The history names each kind of packet once: what is not in it was not there; how many there were follows only where
    a side sent nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.features import F32, INDEX, empty
from engine.flows.derived import F64, derive
from engine.sources.times import NS

ICMP, TCP, UDP, ICMP6, SCTP = 1, 6, 17, 58, 132
L4_BYTES = {TCP: 20.0, UDP: 8.0, ICMP: 8.0, ICMP6: 8.0, SCTP: 12.0}  # header, at least
TCP_BYTES_MAX = 60.0
IP_OPTION_BYTES_MAX = 40.0
TIMED_BYTES = 32.0  # a TCP header with timestamps, as most are; with a SYN up to SYN_MORE_BYTES longer
SYN_MORE_BYTES = 8.0
FLAGS = (
    "fin_flag_count", "syn_flag_count", "rst_flag_count", "psh_flag_count", "ack_flag_count", "urg_flag_count",
    "cwr_flag_count", "ece_flag_count", "forward_psh_flags", "backward_psh_flags", "forward_urg_flags",
    "backward_urg_flags",
)  # fmt: skip
COMPLETION = {
    "SF": 1.0, "S1": 0.5, "S2": 0.5, "S3": 0.5, "RSTO": 0.5, "RSTR": 0.5,
    "S0": 0.0, "REJ": 0.0, "RSTOS0": 0.0, "SH": 0.0,
}  # fmt: skip
MIDDLE = frozenset({"OTH", "SHR", "RSTRH"})  # begun before the capture, or seen from one side
NAN = float("nan")
Column = NDArray[np.bool_]


class Numbers(NamedTuple):
    """Of one connection; NaN where unset."""

    protocol: float
    is_v6: float
    seconds: float
    orig_packets: float
    resp_packets: float
    orig_ip_bytes: float
    resp_ip_bytes: float
    orig_bytes: float
    resp_bytes: float
    missed_bytes: float


class Side(NamedTuple):
    """What a history proves of one side's packets; 1 or 0. fin, syn, rst: of all its packets 1, of none 0, else NaN."""

    uncounted: float  # some had a wrong checksum
    may_carry: float  # payload
    again: float  # sent twice, or a gap
    fin: float
    syn: float
    rst: float
    ack: float


class Proof(NamedTuple):
    orig: Side
    resp: Side
    handshake: float
    completion: float
    closed: float  # by a FIN of each side


@lru_cache(maxsize=65_536)
def proof(history: str, state: str) -> Proof:
    """Of a TCP connection. history: '' where there is none."""
    orig = frozenset(filter(str.isupper, history))
    resp = frozenset(c.upper() for c in history if c.islower())
    handshake = "S" in orig and "H" in resp
    spoke = orig & {"A", "D"} and resp & {"A", "D", "H"}
    known = COMPLETION.get(state, NAN)
    if state in MIDDLE and history:
        known = 0.5 if spoke else 0.0
    elif orig and orig <= {"S", "R"}:
        known = 0.0  # the originator never acknowledged anything: a scan with SYNs
    if "C" in orig | resp:
        known = NAN
    closed = "F" in orig and "F" in resp
    return Proof(_side(orig, bool(history)), _side(resp, bool(history)), float(handshake), known, float(closed))


def _side(letters: frozenset[str], is_known: bool) -> Side:
    unsure = not is_known or bool(letters & {"C", "I", "Q", "X"})

    def all_or_none(*of: str) -> float:
        return NAN if unsure or (letters & set(of) and len(letters) > 1) else float(bool(letters & set(of)))

    no_ack = not unsure and letters <= {"S"}
    return Side(
        float("C" in letters), float(not is_known or bool(letters & {"D", "F", "Q", "X"})),
        float(bool(letters & {"T", "G", "C"})), all_or_none("F"), all_or_none("S", "H"), all_or_none("R"),
        0.0 if no_ack else NAN,
    )  # fmt: skip


def seconds_of(nanoseconds: int | None, orig_packets: float, resp_packets: float) -> float:
    """flow_duration; a single packet lasts 0, which Zeek leaves unset."""
    if nanoseconds is not None:
        return nanoseconds / NS
    return 0.0 if orig_packets + resp_packets == 1.0 else NAN


def featured(rows: list[Numbers], proofs: list[Proof]) -> F32:
    """float32 [n, 105]."""
    features = empty(len(rows))
    if not rows:
        return features
    c = Numbers(*np.array(rows, np.float64).T)  # columns instead of cells
    orig = Side(*np.array([p.orig for p in proofs], np.float64).T)
    resp = Side(*np.array([p.resp for p in proofs], np.float64).T)
    handshake, done, closed = np.array([(p.handshake, p.completion, p.closed) for p in proofs], np.float64).T
    protocol: F64 = np.asarray(c.protocol)
    tcp, other = protocol == TCP, np.isfinite(protocol) & (protocol != TCP)  # neither: not known

    def put(name: str, column: F64) -> None:
        features[:, INDEX[name]] = column

    put("protocol_number", protocol)
    put("flow_duration", np.asarray(c.seconds))
    put("flow_completion_rate", np.where(tcp, done, np.nan))
    counts: list[F64] = []
    quiet: list[Column] = []
    for name, side, n_given, ip_bytes, said in (
        ("forward", orig, c.orig_packets, c.orig_ip_bytes, c.orig_bytes),
        ("backward", resp, c.resp_packets, c.resp_ip_bytes, c.resp_bytes),
    ):
        n = np.where(np.equal(side.uncounted, 1.0), np.nan, n_given)
        size, header = _payload(n, np.asarray(ip_bytes), np.asarray(said), side, c, handshake)
        counts.append(n)
        quiet.append(size == 0.0)
        put(f"total_{name}_packets", n)
        put(f"total_{name}_bytes", size)
        put(f"{name}_header_length", header)
        one = np.where((n == 1.0) | (size == 0.0), size / np.maximum(n, 1.0), np.nan)
        for stat in ("max", "min"):
            put(f"{name}_packet_length_{stat}", one)
        put(f"{name}_packet_length_std", one * 0.0)
        for flag in ("psh", "urg"):
            put(f"{name}_{flag}_flags", np.where(other | (n == 0.0), 0.0, np.nan))
    for name in FLAGS:
        if name.endswith("_count"):
            put(name, np.where(other, 0.0, np.nan))
    for flag in ("fin", "syn", "rst"):
        total = sum(_flagged(getattr(s, flag), n, q) for s, n, q in zip((orig, resp), counts, quiet, strict=True))
        put(f"{flag}_flag_count", np.where(tcp, total, np.where(other, 0.0, np.nan)))
    acks = np.where(quiet[0] & quiet[1], np.asarray(orig.ack) + np.asarray(resp.ack), np.nan)
    put("ack_flag_count", np.where(tcp, acks, np.where(other, 0.0, np.nan)))
    derive(features)
    features[closed == 1.0, INDEX["flow_inter_arrival_time_mean"]] = np.nan
    return features


def _payload(n: F64, ip_bytes: F64, said: F64, side: Side, c: Numbers, handshake: F64) -> tuple[F64, F64]:
    """Payload bytes of one side and bytes of its L4 headers; NaN where they are not certain."""
    protocol = np.asarray(c.protocol)
    ip = np.where(np.asarray(c.is_v6) == 1.0, 40.0, 20.0)
    l4 = np.select([protocol == p for p in L4_BYTES], list(L4_BYTES.values()), np.nan)
    tcp = protocol == TCP
    with np.errstate(invalid="ignore"):
        headers = ip_bytes - np.nan_to_num(said)
        fits = (headers >= n * (ip + l4)) & (headers % 4.0 == 0.0)
        within = headers <= n * (ip + TCP_BYTES_MAX)
        none = np.isnan(said) | (said == 0.0)
        silent = (np.asarray(side.may_carry) == 0.0) & none & fits & within
        sequenced = (handshake == 1.0) & (np.asarray(side.again) == 0.0) & (np.asarray(c.missed_bytes) == 0.0) & fits
        sequenced &= np.where(said == 0.0, within, headers <= n * (ip + TIMED_BYTES) + SYN_MORE_BYTES)
        counted = ~tcp & fits & (headers <= n * (ip + IP_OPTION_BYTES_MAX + l4))
        size = np.where(tcp & silent, 0.0, np.where(np.where(tcp, sequenced, counted), said, np.nan))
        size = np.where(n == 0.0, 0.0, size)
        least = np.isfinite(size) & (ip_bytes - size == n * (ip + l4))  # no option anywhere
        header = np.where(tcp & ~least, np.nan, n * l4)
    return size, header


def _flagged(share: float, n: F64, quiet: Column) -> F64:
    """In how many of n packets: of all only where the bytes agree with such packets."""
    known = np.asarray(share)
    return np.where(known == 0.0, 0.0, np.where(quiet, known * n, np.nan))
