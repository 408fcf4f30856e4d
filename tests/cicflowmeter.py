"""CICFlowMeter's flows, columns and formulas, from the packets of our own flows.

Its editions end flows each in their own way (96, 86 and 57 flows on its own capture), and none as we do. To compare
features and not boundaries, `cut` ends flows where an edition does, and engine/flows/features.py computes ours from
them. `formulas` is what an edition computes where engine/flows/reference.py says that it differs.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from ipaddress import ip_address
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from engine.features import FEATURES, INDEX
from engine.flows.decode import ACK, CWR, ECE, FIN, PSH, RST, SYN, TCP, UDP, URG
from engine.flows.derived import derive
from engine.flows.features import compute
from engine.flows.reference import CICFLOWMETER, CICFLOWMETER_2018
from engine.flows.table import FLOW, PACKET, Flows, protocol
from engine.sources.cicflow import COLUMNS as READ
from engine.sources.cicflow import normalised
from tests.captures import flow_keys

TIMEOUT_US = 120_000_000  # of a flow, after its first packet
IDLE_US = 5_000_000
BULK_GAP_US, BULK_PACKETS = 1_000_000, 4
FLAGS = {"fin": FIN, "syn": SYN, "rst": RST, "psh": PSH, "ack": ACK, "urg": URG, "cwr": CWR, "ece": ECE}

# feature: the normalised names of its column; what engine/sources/cicflow.py does not read is added
COLUMNS = {name: keys for name, keys in READ.items() if name in INDEX} | {
    "flow_bytes_per_second": ("flowbytess", "flowbytss"),
    "flow_packets_per_second": ("flowpacketss", "flowpktss"),
    "forward_packets_per_second": ("fwdpacketss", "fwdpktss"),
    "backward_packets_per_second": ("bwdpacketss", "bwdpktss"),
    "download_upload_ratio": ("downupratio",),
    "average_packet_size": ("averagepacketsize", "pktsizeavg"),
    "average_forward_segment_size": ("fwdsegmentsizeavg", "avgfwdsegmentsize", "fwdsegsizeavg"),
    "average_backward_segment_size": ("bwdsegmentsizeavg", "avgbwdsegmentsize", "bwdsegsizeavg"),
    "minimum_packet_length": ("packetlengthmin", "minpacketlength", "pktlenmin"),
    "maximum_packet_length": ("packetlengthmax", "maxpacketlength", "pktlenmax"),
    "packet_length_mean": ("packetlengthmean", "pktlenmean"),
    "packet_length_std": ("packetlengthstd", "pktlenstd"),
    "packet_length_variance": ("packetlengthvariance", "pktlenvar"),
    "active_mean": ("activemean",),
}
NOT_THEIRS = frozenset({"interface_mode", "source_ifindex"})
BASE = tuple(f for f in FEATURES[:65] if f.name not in NOT_THEIRS)
assert COLUMNS.keys() == {f.name for f in BASE}


class Edition(Enum):
    """Its name in the closed table."""

    JAVA = CICFLOWMETER
    OFFICIAL = CICFLOWMETER_2018


class Row(NamedTuple):
    """One flow of a table of the tool's. key: as of flow_keys, in seconds."""

    capture: str
    key: tuple[int, ...]
    values: dict[str, float]  # by feature


class Pair(NamedTuple):
    """A flow that is in both: our features, the tool's formulas on our packets, its table."""

    ours: dict[str, float]
    formulas: dict[str, float]
    theirs: dict[str, float]


def read_table(lines: Iterable[str], hours: int = 0) -> Iterator[Row]:
    """Rows of TCP and UDP; for others the tool knows neither protocol nor lengths. hours: to add for UTC."""
    for cells in csv.DictReader(lines):
        row = {normalised(name): text for name, text in cells.items()}

        def cell(*names: str, row: dict[str, str] = row) -> str:
            return next(row[name] for name in names if name in row)

        values = {name: float(cell(*keys)) for name, keys in COLUMNS.items()}
        values["flow_duration"] /= 1e6
        if values["protocol_number"] == 0:
            continue
        shape = "%d/%m/%Y %I:%M:%S %p" if row["timestamp"].endswith("M") else "%d/%m/%Y %H:%M:%S"
        start = datetime.strptime(row["timestamp"], shape).replace(tzinfo=UTC) + timedelta(hours=hours)
        ends = (int(ip_address(cell("srcip", "sourceip"))), int(cell("srcport", "sourceport")),
                int(ip_address(cell("dstip", "destinationip"))), int(cell("dstport", "destinationport")))  # fmt: skip
        counts = int(values["total_forward_packets"]), int(values["total_backward_packets"])
        yield Row(row.get("sourcepcap", ""), (*ends, int(row["protocol"]), int(start.timestamp()), *counts), values)


def pairs(batch: Flows, rows: Iterable[Row], edition: Edition) -> Iterator[Pair]:
    """Flows of equal key, start and packet counts, each once; of several with one key those closest in duration."""
    features = compute(batch)
    derive(features)
    begins = np.cumsum(batch.counts) - batch.counts
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, key in enumerate(flow_keys(batch, 10**9)):
        found[key].append(i)
    for row in rows:
        if same := found.get(row.key):
            gaps = [abs(features[i, INDEX["flow_duration"]] - row.values["flow_duration"]) for i in same]
            i = same.pop(gaps.index(min(gaps)))
            packets = batch.packets[begins[i] : begins[i] + batch.counts[i]]
            ours = {f.name: float(features[i, f.column]) for f in BASE}
            yield Pair(ours, formulas(packets, edition), row.values)


# ---- where it cuts --------------------------------------------------------------------------------------------------


def cut(batches: Iterable[Flows], edition: Edition) -> Flows:
    """Our flows of TCP and UDP over IPv4, joined to conversations and cut as the tool cuts them: flows of more than one
    packet. It tells a direction by the address alone."""
    rows, packets = [], []
    for row, members in _conversations(batches):
        lower, upper = int(row["key"][1]), int(row["key"][3])
        senders = np.where(members["side"], upper, lower)
        for source, places in _cut(senders.tolist(), members, edition):
            mine, row = members[places], row.copy()
            row["initiator"] = source == upper
            row["first"], row["start"], row["end"] = mine["ts"][0], mine["ts"].min(), mine["ts"].max()
            mine["side"] = senders[places] != source
            rows.append(row)
            packets.append(mine)
    counts = np.array([len(mine) for mine in packets], np.int64)
    flows = np.array(rows, FLOW)
    return Flows(flows, np.concatenate([*packets, np.zeros(0, PACKET)]), counts, [(b"", b"")] * len(rows))


def _conversations(batches: Iterable[Flows]) -> Iterator[tuple[Any, Any]]:
    """A flow's row and all packets, `side` 1 being from the upper endpoint, of what has one key."""
    flows: dict[bytes, list[tuple[int, Any, Any]]] = defaultdict(list)
    for batch in batches:
        begins = np.cumsum(batch.counts) - batch.counts
        ipv4 = batch.flows["key"][:, 5] >> np.uint64(16) & np.uint64(0xF) == 4
        for i in np.flatnonzero(ipv4 & np.isin(protocol(batch.flows), (TCP, UDP))).tolist():
            row, mine = batch.flows[i], batch.packets[begins[i] : begins[i] + batch.counts[i]].copy()
            mine = mine[mine["header"] > 0]  # not a later fragment
            mine["side"] ^= row["initiator"]
            flows[row["key"].tobytes()].append((int(row["seen"]), row, mine))
    for same in flows.values():
        same.sort(key=lambda flow: flow[0])
        yield same[0][1], np.concatenate([mine for _, _, mine in same])


def _cut(senders: list[int], packets: Any, edition: Edition) -> Iterator[tuple[int, list[int]]]:
    """Where each flow's packets are in the conversation, and its source. What is cut by the timeout goes on with the
    source that it had."""
    source, places, fins = -1, [], set()
    columns = (packets["ts"] // 1000).tolist(), packets["flags"].tolist()
    for i, (sender, us, flags) in enumerate(zip(senders, *columns, strict=True)):
        if not places:
            source, places, fins, start_us = sender, [i], set(), us
            continue
        if us - start_us > TIMEOUT_US:
            if len(places) > 1:
                yield source, places
            places, fins, start_us = [i], set(), us
            continue
        if edition is Edition.JAVA and flags & FIN and sender in fins:
            continue  # a second FIN of one side is left out
        places.append(i)
        if edition is Edition.OFFICIAL:
            over = flags & FIN
        elif flags & FIN:
            fins.add(sender)
            over = sender != source  # the initiator's FIN alone ends nothing
        else:
            over = flags & RST
        if over:
            yield source, places
            places = []
    if len(places) > 1:
        yield source, places


# ---- what it computes -----------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """A packet of a flow."""

    us: int
    forward: bool
    flags: int
    length: int


def formulas(records: Any, edition: Edition) -> dict[str, float]:
    """By feature: what the tool computes where it differs, from the packets (PACKET) of a flow."""
    columns = (records["ts"] // 1000, records["side"] == 0, records["flags"], records["length"])
    packets = [Member(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    first, forward = packets[0], sum(p.forward for p in packets)
    lengths = [float(p.length) for p in (first, *packets)]
    out = {
        "download_upload_ratio": float((len(packets) - forward) // forward) if forward else 0.0,
        "average_packet_size": sum(lengths) / len(packets),
        "packet_length_mean": fmean(lengths),
        "packet_length_std": stdev(lengths),
        "packet_length_variance": stdev(lengths) ** 2,
        **_periods(packets),
        **_bulks(packets if edition is Edition.JAVA else []),
    }
    for way in (True, False):
        name = "forward" if way else "backward"
        for flag in ("psh", "urg"):
            out[f"{name}_{flag}_flags"] = float(first.forward == way and bool(first.flags & FLAGS[flag]))
        gaps = [b - a for a, b in pairwise(p.us for p in packets if p.forward == way)]
        for stat, value in (("total", sum), ("mean", fmean), ("std", _spread), ("max", max), ("min", min)):
            out[f"{name}_inter_arrival_time_{stat}"] = float(value(gaps)) if gaps else 0.0
    if edition is Edition.OFFICIAL:
        for column, flag in zip(FLAGS, sorted(FLAGS, key=_bucket), strict=True):
            out[f"{column}_flag_count"] = float(bool(first.flags & FLAGS[flag]))
    return out


def _spread(values: list[int]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _bucket(flag: str) -> int:
    """Where a Java hash map of 16 places keeps the flag's name."""
    code = 0
    for letter in flag.upper():
        code = code * 31 + ord(letter) & 0xFFFFFFFF
    return (code ^ code >> 16) & 15


def _periods(packets: list[Member]) -> dict[str, float]:
    active: list[int] = []
    idle: list[int] = []
    begin = end = packets[0].us
    for p in packets[1:]:
        if p.us - end > IDLE_US:
            idle.append(p.us - end)
            if end > begin:
                active.append(end - begin)
            begin = p.us
        end = p.us
    return {"active_mean": fmean(active) if active else 0.0, "idle_mean": fmean(idle) if idle else 0.0}


def _bulks(packets: list[Member]) -> dict[str, float]:
    runs: list[list[Member]] = []
    for p in packets:
        if p.length and runs and p.us - runs[-1][-1].us <= BULK_GAP_US:
            runs[-1].append(p)
        elif p.length:
            runs.append([p])
    bulks = [run for run in runs if len(run) >= BULK_PACKETS]
    size, many = sum(p.length for run in bulks for p in run), sum(map(len, bulks))
    us = sum(run[-1].us - run[0].us for run in bulks)
    return {
        **dict.fromkeys((f"forward_average_{name}" for name in ("bytes_bulk", "packets_bulk", "bulk_rate")), 0.0),
        "backward_average_bytes_bulk": float(size // len(bulks)) if bulks else 0.0,
        "backward_average_packets_bulk": float(many // len(bulks)) if bulks else 0.0,
        "backward_average_bulk_rate": float(int(size * 1_000_000 / us)) if us else 0.0,
    }
