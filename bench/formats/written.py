"""A capture's flows as other tools would write them: a conn.log of Zeek and a table of CICFlowMeter 4.

Always true
  - The flows are ours, cut as engine/flows cuts them; the columns, their order and their units are the tool's.
  - The conn.log is an idealised one: payload is counted packet by packet, where Zeek goes by sequence numbers, and no
    letter says that something was sent twice or missed. What Zeek's columns lack is lost, nothing else.
  - The table has the flows that the tool would write: TCP and UDP over IPv4, of more than one packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.features import F32, INDEX, unpack
from engine.flows.decode import ACK, FIN, ICMP, ICMP6, RST, SYN, TCP, UDP
from engine.flows.table import Flows
from engine.sources.base import SourceSpec
from engine.sources.pcap import PcapAdapter
from ipc.event import Event, FeaturedEvent

CONN_COLUMNS = (
    "ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "service", "duration", "orig_bytes",
    "resp_bytes", "conn_state", "local_orig", "local_resp", "missed_bytes", "history", "orig_pkts", "orig_ip_bytes",
    "resp_pkts", "resp_ip_bytes", "tunnel_parents",
)  # fmt: skip
CONN_HEAD = "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n"
PROTOCOLS = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMP6: "icmp"}
IP_BYTES = {4: 20, 6: 40}


class Flow(NamedTuple):
    """An event of ours and what its packets say beside. history, state: as in a conn.log."""

    item: FeaturedEvent
    history: str
    state: str


class _Kept(PcapAdapter):
    """Remembers of each event what a conn.log says of its packets."""

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self.told: dict[int, tuple[str, str]] = {}

    def _events(self, flows: Flows, features: F32) -> Iterator[FeaturedEvent]:
        begins = np.cumsum(flows.counts) - flows.counts
        for item, begin, n in zip(
            super()._events(flows, features), begins.tolist(), flows.counts.tolist(), strict=True
        ):
            self.told[id(item)] = history_of(item.event.proto or 0, flows.packets[begin : begin + n])
            yield item


def flows_of(capture: bytes, spec: SourceSpec) -> list[Flow]:
    """The flows of a capture, in order of (ts, event_id), by the adapter of captures."""
    adapter = _Kept(spec)
    items = adapter.feed(capture, 0).events + adapter.finish().events
    return [Flow(item, *adapter.told[id(item)]) for item in items]


def history_of(proto: int, packets: NDArray[Any]) -> tuple[str, str]:
    """history and conn_state. packets: PACKET, of one flow."""
    letters: list[str] = []
    for side, flags, length in zip(*(packets[name].tolist() for name in ("side", "flags", "length")), strict=True):
        for letter in _letters(flags, length) if proto == TCP else "D" if length else "":
            letters.append(letter.lower() if side else letter)
    history = "".join(dict.fromkeys(letters))
    if proto == TCP:
        return history, _tcp_state(history)
    spoke = {bool(side) for side in packets["side"].tolist()}
    if proto == UDP:
        return history, "SF" if len(spoke) > 1 else "S0"
    return "", "OTH"


def _letters(flags: int, length: int) -> str:
    """What Zeek notes of one packet; a SYN, FIN or RST without payload is no A."""
    if flags & SYN:
        return "H" if flags & ACK else "S"
    out = ("D" if length else "") + ("F" if flags & FIN else "") + ("R" if flags & RST else "")
    return out or ("A" if flags & ACK else "")


def _tcp_state(history: str) -> str:
    if "S" not in history:
        return "OTH"
    ends = history.translate({ord(c): None for c in "SsHhDdAa"})
    if "h" not in history:
        return {"R": "RSTOS0", "r": "REJ", "F": "SH"}.get(ends[:1], "S0")
    if "F" in ends and "f" in ends:
        return "SF"
    if "R" in ends or "r" in ends:
        return "RSTO" if min(ends.find(c) % 99 for c in "Rr") == ends.find("R") else "RSTR"
    return {"F": "S2", "f": "S3"}.get(ends[:1], "S1")


def conn_log(flows: list[Flow]) -> bytes:
    """A conn.log; flows of other protocols than TCP, UDP and ICMP are not in it."""
    lines = [CONN_HEAD + "#fields\t" + "\t".join(CONN_COLUMNS)]
    rows = unpack([flow.item.features for flow in flows])
    for number, (flow, row) in enumerate(zip(flows, rows, strict=True)):
        if flow.item.event.proto in PROTOCOLS:
            lines.append("\t".join(_conn(flow, row, number)))
    return ("\n".join(lines) + "\n").encode()


def _conn(flow: Flow, row: F32, number: int) -> list[str]:
    e = flow.item.event
    lasted = e.ts > e.ts_start
    n, size, header = (
        [round(float(row[INDEX[name.format(side)]])) for side in ("forward", "backward")]
        for name in ("total_{}_packets", "total_{}_bytes", "{}_header_length")
    )
    ip = IP_BYTES[6 if ":" in e.src_ip else 4]
    ip_bytes = [n[i] * ip + header[i] + size[i] for i in (0, 1)]
    said = [str(size[i]) if lasted else "-" for i in (0, 1)]
    return [
        _seconds(e.ts_start), f"C{number:017d}", e.src_ip, str(e.src_port), e.dst_ip, str(e.dst_port),
        PROTOCOLS[e.proto or 0], "-", _seconds(e.ts - e.ts_start) if lasted else "-", *said, flow.state, "-", "-", "0",
        flow.history or "-", str(n[0]), str(ip_bytes[0]), str(n[1]), str(ip_bytes[1]), "-",
    ]  # fmt: skip


def _seconds(ns: int) -> str:
    """With microseconds, as Zeek writes times."""
    us = ns // 1_000
    return f"{us // 1_000_000}.{us % 1_000_000:06d}"


# ---- CICFlowMeter ---------------------------------------------------------------------------------------------------


def _stats(title: str, name: str, stats: str, factor: float = 1.0) -> dict[str, tuple[str, float]]:
    return {f"{title} {stat}": (f"{name}_{stat.lower()}", factor) for stat in stats.split()}


# column: the feature in it and its factor, "" where nothing of ours is; in the order of the Java tool's last commit
CIC_COLUMNS: dict[str, tuple[str, float]] = {
    "Flow Duration": ("flow_duration", 1e6),
    "Total Fwd Packet": ("total_forward_packets", 1.0),
    "Total Bwd packets": ("total_backward_packets", 1.0),
    "Total Length of Fwd Packet": ("total_forward_bytes", 1.0),
    "Total Length of Bwd Packet": ("total_backward_bytes", 1.0),
    **_stats("Fwd Packet Length", "forward_packet_length", "Max Min Mean Std"),
    **_stats("Bwd Packet Length", "backward_packet_length", "Max Min Mean Std"),
    "Flow Bytes/s": ("flow_bytes_per_second", 1.0),
    "Flow Packets/s": ("flow_packets_per_second", 1.0),
    **_stats("Flow IAT", "flow_inter_arrival_time", "Mean Std Max Min"),
    **_stats("Fwd IAT", "forward_inter_arrival_time", "Total Mean Std Max Min"),
    **_stats("Bwd IAT", "backward_inter_arrival_time", "Total Mean Std Max Min"),
    **{f"{way} {flag.upper()} Flags": ("", 0.0) for flag in ("psh", "urg") for way in ("Fwd", "Bwd")},
    "Fwd Header Length": ("forward_header_length", 1.0),
    "Bwd Header Length": ("backward_header_length", 1.0),
    "Fwd Packets/s": ("forward_packets_per_second", 1.0),
    "Bwd Packets/s": ("backward_packets_per_second", 1.0),
    "Packet Length Min": ("minimum_packet_length", 1.0),
    "Packet Length Max": ("maximum_packet_length", 1.0),
    **_stats("Packet Length", "packet_length", "Mean Std Variance"),
    **{f"{flag.upper()} Flag Count": (f"{flag}_flag_count", 1.0)
       for flag in ("fin", "syn", "rst", "psh", "ack", "urg", "cwr", "ece")},
    "Down/Up Ratio": ("download_upload_ratio", 1.0),
    "Average Packet Size": ("average_packet_size", 1.0),
    "Fwd Segment Size Avg": ("average_forward_segment_size", 1.0),
    "Bwd Segment Size Avg": ("average_backward_segment_size", 1.0),
    **dict.fromkeys(
        ("Fwd Bytes/Bulk Avg", "Fwd Packet/Bulk Avg", "Fwd Bulk Rate Avg", "Bwd Bytes/Bulk Avg", "Bwd Packet/Bulk Avg",
         "Bwd Bulk Rate Avg", "Subflow Fwd Packets", "Subflow Fwd Bytes", "Subflow Bwd Packets", "Subflow Bwd Bytes",
         "FWD Init Win Bytes", "Bwd Init Win Bytes", "Fwd Act Data Pkts", "Fwd Seg Size Min"), ("", 0.0)),
    "Active Mean": ("active_mean", 1.0),
    **{f"Active {stat}": ("", 0.0) for stat in ("Std", "Max", "Min")},
    "Idle Mean": ("idle_mean", 1.0),
    **{f"Idle {stat}": ("idle_mean" if stat == "Max" else "", 1.0) for stat in ("Std", "Max", "Min")},
}  # fmt: skip
CIC_HEAD = ("Flow ID", "Src IP", "Src Port", "Dst IP", "Dst Port", "Protocol", "Timestamp", *CIC_COLUMNS, "Label")


def cic_table(flows: list[Flow]) -> bytes:
    """A table as the Java tool writes it."""
    lines = [",".join(CIC_HEAD)]
    rows = unpack([flow.item.features for flow in flows]).astype(np.float64)
    for flow, row in zip(flows, rows, strict=True):
        e = flow.item.event
        packets = row[INDEX["total_forward_packets"]] + row[INDEX["total_backward_packets"]]
        if e.proto in (TCP, UDP) and ":" not in e.src_ip and packets > 1:
            lines.append(",".join(_cic(e, row)))
    return ("\n".join(lines) + "\n").encode()


def _cic(e: Event, row: NDArray[np.float64]) -> list[str]:
    """Missing is 0, as there."""
    ends = (e.src_ip, str(e.src_port), e.dst_ip, str(e.dst_port))
    begun = datetime.fromtimestamp(e.ts_start // 1_000_000_000, UTC).strftime("%d/%m/%Y %I:%M:%S %p")
    cells = (float(row[INDEX[name]]) * factor if name else 0.0 for name, factor in CIC_COLUMNS.values())
    return ["-".join((ends[0], ends[2], ends[1], ends[3], str(e.proto))), *ends, str(e.proto), begun,
            *(repr(cell if np.isfinite(cell) else 0.0) for cell in cells), "NeedManualLabel"]  # fmt: skip
