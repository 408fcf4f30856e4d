"""Features of finished flows from their packets, for many flows at once.

Always true
  - Sums and times are float64 or integers; only the result is float32. A feature of one flow does not depend on which
    other flows are computed with it, bit for bit: sums never cross the segments they belong to.
  - Everything with scope "flow" that needs packets is made here; what follows from other columns is left to derived.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.features import F32, INDEX, empty
from engine.flows.capture import I64
from engine.flows.decode import ACK, CWR, ECE, FIN, PSH, RST, SYN, TCP, URG, Bools
from engine.flows.table import EndReason, Flows, protocol

F64 = NDArray[np.float64]

BULK_PACKETS = 4
BULK_GAP_NS = 1_000_000_000
ACTIVE_GAP_US = 5_000_000.0
SIZE_BINS, BIN_BYTES = 4096, 32
PIECE_PACKETS, FLOW_PACKETS = 1 << 16, 8  # a flow takes the room of so many packets more: its 105 columns
ENTROPY_CHUNK_BYTES = 1 << 20  # of samples looked at together

FLAGS = (("fin", FIN), ("syn", SYN), ("rst", RST), ("psh", PSH), ("ack", ACK), ("urg", URG), ("cwr", CWR), ("ece", ECE))


class Stats(NamedTuple):
    """Of the values of each segment; zero where it has none."""

    total: F64
    mean: F64
    std: F64
    low: F64
    high: F64


def stats(values: F64, counts: I64) -> Stats:
    """values: segment after segment; counts: how many each has."""
    out = Stats(*np.zeros((5, len(counts))))
    some = counts > 0
    if not some.any():
        return out
    many = counts[some]
    starts = np.cumsum(many) - many
    out.total[some] = total = np.add.reduceat(values, starts)
    out.mean[some] = mean = total / many
    deviation = values - np.repeat(mean, many)
    out.std[some] = np.sqrt(np.add.reduceat(deviation * deviation, starts) / np.maximum(many - 1, 1))
    out.low[some] = np.minimum.reduceat(values, starts)
    out.high[some] = np.maximum.reduceat(values, starts)
    return out


def sums(values: NDArray[Any], starts: I64) -> F64:
    """Sum of each segment; there is no empty one."""
    return np.add.reduceat(values, starts, dtype=np.int64).astype(np.float64)


def compute(batch: Flows) -> F32:
    """float32 [n, 105]: the base features; the others stay NaN."""
    out = empty(len(batch.counts))
    if not len(out):
        return out
    packets, counts = batch.packets, batch.counts
    starts = np.cumsum(counts) - counts
    side, ts, length = packets["side"], packets["ts"], packets["length"].astype(np.float64)

    def put(name: str, values: NDArray[Any]) -> None:
        out[:, INDEX[name]] = values

    put("protocol_number", protocol(batch.flows))
    put("flow_duration", (batch.flows["end"] - batch.flows["start"]) / 1e9)
    backward = np.add.reduceat(side, starts, dtype=np.int64)
    both = np.stack([counts - backward, backward], axis=1).ravel()  # forward, backward of each flow
    flow_of = np.repeat(np.arange(len(counts)), counts)
    apart = np.sort((flow_of * 2 + side) << 32 | np.arange(len(side))) & 0xFFFFFFFF  # by flow and direction

    _lengths(put, stats(length[apart], both), stats(length, counts), both)
    flow_gaps = gaps(ts, counts)
    _times(put, flow_gaps, counts, gaps(ts[apart], both), both)
    _flags(put, packets, starts)
    _bulks(put, flow_of, side, ts, length, len(counts))
    put("packet_size_entropy", size_entropy(flow_of, packets["length"], counts))
    put("entropy", sample_entropy(batch))
    put("flow_completion_rate", completion(batch, starts, both))
    return out


def pieces(batch: Flows) -> Iterator[Flows]:
    """The same flows, at most about PIECE_PACKETS packets at a time."""
    upto = np.cumsum(batch.counts)
    room = upto + FLOW_PACKETS * np.arange(len(upto))
    cuts = np.flatnonzero(np.diff(room // PIECE_PACKETS)) + 1
    at = 0
    for a, b in pairwise([0, *cuts.tolist(), len(upto)]):
        if a < b:
            after = int(upto[b - 1])
            yield Flows(batch.flows[a:b], batch.packets[at:after], batch.counts[a:b], batch.samples[a:b])
            at = after


def totals(batch: Flows) -> I64:
    """int64 [n, 6]: packets, payload bytes, frame bytes, each forward and backward."""
    packets, starts = batch.packets, np.cumsum(batch.counts) - batch.counts
    forward = packets["side"] == 0
    columns = [np.ones(len(packets), np.int64), packets["length"], packets["frame"]]
    ways = [np.where(way, column, 0) for column in columns for way in (forward, ~forward)]
    return np.stack([np.add.reduceat(way, starts, dtype=np.int64) for way in ways], axis=1)


def gaps(ts: I64, counts: I64) -> F64:
    """Microseconds between consecutive packets of each segment, counts - 1 of them; a clock gone back counts as 0."""
    between = np.ones(max(len(ts) - 1, 0), np.bool_)
    starts = np.cumsum(counts) - counts
    firsts = starts[(counts > 0) & (starts > 0)]
    between[firsts - 1] = False
    return np.maximum(np.diff(ts), 0)[between] / 1e3


def _lengths(put: Any, ways: Stats, whole: Stats, both: I64) -> None:
    for i, way in enumerate(("forward", "backward")):
        put(f"total_{way}_packets", both[i::2])
        put(f"total_{way}_bytes", ways.total[i::2])
        put(f"{way}_packet_length_max", ways.high[i::2])
        put(f"{way}_packet_length_min", ways.low[i::2])
        put(f"{way}_packet_length_mean", ways.mean[i::2])
        put(f"{way}_packet_length_std", ways.std[i::2])
    put("minimum_packet_length", whole.low)
    put("maximum_packet_length", whole.high)
    put("packet_length_mean", whole.mean)
    put("packet_length_std", whole.std)
    put("packet_length_variance", whole.std**2)


def _times(put: Any, flow_gaps: F64, counts: I64, way_gaps: F64, both: I64) -> None:
    def missing(values: F64, n: I64) -> F64:
        return np.where(n > 1, values, np.nan)

    s = stats(flow_gaps, counts - 1)
    for name, values in (("mean", s.mean), ("std", s.std), ("max", s.high), ("min", s.low)):
        put(f"flow_inter_arrival_time_{name}", missing(values, counts))
    s = stats(way_gaps, np.maximum(both - 1, 0))
    for i, way in enumerate(("forward", "backward")):
        for name, values in (("total", s.total), ("mean", s.mean), ("std", s.std), ("max", s.high), ("min", s.low)):
            put(f"{way}_inter_arrival_time_{name}", missing(values[i::2], both[i::2]))
    idle = flow_gaps > ACTIVE_GAP_US
    flow_of = np.repeat(np.arange(len(counts)), counts - 1)
    idles = np.bincount(flow_of[idle], minlength=len(counts))
    put("active_mean", stats(np.where(idle, 0.0, flow_gaps), counts - 1).total / (idles + 1))
    put("idle_mean", _ratio(stats(np.where(idle, flow_gaps, 0.0), counts - 1).total, idles))


def _flags(put: Any, packets: NDArray[Any], starts: I64) -> None:
    flags, forward = packets["flags"], packets["side"] == 0
    for name, bit in FLAGS:
        put(f"{name}_flag_count", sums(flags & bit != 0, starts))
    for name, bit in (("psh", PSH), ("urg", URG)):
        put(f"forward_{name}_flags", sums((flags & bit != 0) & forward, starts))
        put(f"backward_{name}_flags", sums((flags & bit != 0) & ~forward, starts))
    put("forward_header_length", sums(np.where(forward, packets["header"], 0), starts))
    put("backward_header_length", sums(np.where(forward, 0, packets["header"]), starts))


def _bulks(put: Any, flow_of: I64, side: NDArray[np.uint8], ts: I64, length: F64, flows: int) -> None:
    """Runs of at least BULK_PACKETS packets with payload of one direction, no gap in them as long as BULK_GAP_NS."""
    rows = np.flatnonzero(length > 0)
    way, ts, length = (flow_of * 2 + side)[rows], ts[rows], length[rows]
    breaks = (way[1:] != way[:-1]) | (np.diff(ts) >= BULK_GAP_NS)
    starts = np.flatnonzero(np.append(True, breaks)) if len(rows) else np.zeros(0, np.int64)
    many = np.diff(starts, append=len(rows))
    bulk = many >= BULK_PACKETS
    of = way[starts][bulk]
    total = np.add.reduceat(length, starts)[bulk] if len(starts) else np.zeros(0)
    seconds = stats(gaps(ts, many), many - 1).total[bulk] / 1e6
    number = np.bincount(of, minlength=flows * 2)
    volume = np.bincount(of, total, flows * 2)
    packets = np.bincount(of, many[bulk], flows * 2)
    time = np.bincount(of, seconds, flows * 2)
    rate = np.where(time > 0, _ratio(volume, time), 0.0)
    for i, name in enumerate(("forward", "backward")):
        put(f"{name}_average_bytes_bulk", _ratio(volume, number)[i::2])
        put(f"{name}_average_packets_bulk", _ratio(packets, number)[i::2])
        put(f"{name}_average_bulk_rate", rate[i::2])


def size_entropy(flow_of: I64, length: NDArray[np.uint32], counts: I64) -> F64:
    """Bits; of the histogram of packet_length in 32-byte bins."""
    bins = np.minimum(length // BIN_BYTES, SIZE_BINS - 1)
    pairs, seen = np.unique(flow_of * SIZE_BINS + bins, return_counts=True)
    return _entropy(pairs // SIZE_BINS, seen, counts)


def sample_entropy(batch: Flows) -> F64:
    """Entropy of the sampled payload bytes, 0..1; NaN without any or where the capture cut into them."""
    out = np.full(len(batch.counts), np.nan)
    sizes = np.array([len(a) + len(b) for a, b in batch.samples], np.int64)
    rows = np.flatnonzero((sizes > 0) & ~batch.flows["cut"])
    chunk = np.cumsum(sizes[rows]) // ENTROPY_CHUNK_BYTES
    for mine in np.split(rows, np.flatnonzero(np.diff(chunk)) + 1):
        joined = np.frombuffer(b"".join([x for i in mine.tolist() for x in batch.samples[i]]), np.uint8)
        of = np.repeat(np.arange(len(mine)) * 256, sizes[mine])
        seen = np.bincount(of + joined, minlength=len(mine) * 256)
        some = np.flatnonzero(seen)
        out[mine] = _entropy(some >> 8, seen[some], sizes[mine]) / 8
    return out


def _entropy(of: I64, seen: I64, totals: I64) -> F64:
    """Bits. of: non-decreasing, every segment there; seen: the counts of its bins; totals: their sum."""
    starts = np.flatnonzero(np.append(True, of[1:] != of[:-1])) if len(of) else of
    if not len(starts):
        return np.zeros(0)
    inner = np.add.reduceat(seen * np.log2(seen), starts)
    return np.maximum(np.log2(totals) - inner / totals, 0.0)


def completion(batch: Flows, starts: I64, both: I64) -> F64:
    """TCP: established when each side acknowledged the other without RST, in order when FIN of both sides closed it."""
    flags, forward = batch.packets["flags"], batch.packets["side"] == 0
    acks = (flags & (ACK | RST)) == ACK
    ours = np.logical_or.reduceat(acks & (flags & SYN == 0) & forward, starts)
    theirs = np.logical_or.reduceat(acks & ~forward, starts)
    closed = batch.flows["closed"] == EndReason.FIN
    tcp = np.where(ours & theirs, np.where(closed, 1.0, 0.5), 0.0)
    spoke: Bools = (both[0::2] > 0) & (both[1::2] > 0)
    return np.where(protocol(batch.flows) == TCP, tcp, spoke)


def _ratio(a: NDArray[Any], b: NDArray[Any]) -> F64:
    """a/b; NaN where b is 0."""
    out: F64 = np.divide(a, b, out=np.full(len(a), np.nan), where=b != 0)
    return out
