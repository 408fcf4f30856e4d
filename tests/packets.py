"""Captures made by hand, and a slow flow table to compare the fast one with.

`split`, `joined` and `reference` follow the words of FEATURES.md, engine/flows/split.py and engine/flows/fragments.py
packet by packet, in plain Python.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from itertools import accumulate, pairwise
from statistics import fmean, stdev
from typing import Any, NamedTuple

from engine.flows.decode import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG
from engine.sources.base import Parsed, SourceSpec
from engine.sources.pcap import PcapAdapter

NAN = math.nan
TCP, UDP, ICMP = 6, 17, 1
HEADERS = {6: 20, 17: 8, 1: 8, 58: 8, 132: 12}


class Piece(NamedTuple):
    """A fragment: the number of its datagram, and which bytes of layer 4 it has."""

    ident: int
    start: int
    stop: int


class P(NamedTuple):
    """One packet. ts in ns; tunnel: as an event says it; header: bytes of layer 4, if not what the protocol has; mixed:
    some of its bytes came before."""

    ts: int
    src: str = "10.0.0.1"
    dst: str = "10.0.0.2"
    src_port: int = 1000
    dst_port: int = 80
    proto: int = TCP
    flags: int = ACK
    payload: bytes = b""
    tunnel: str = ""
    piece: Piece | None = None
    header: int | None = None
    mixed: bool = False

    @property
    def head(self) -> int:
        return HEADERS.get(self.proto, 0) if self.header is None else self.header

    @property
    def l4(self) -> bytes:
        match self.proto:
            case 6:
                head = struct.pack(">HHIIBBHHH", self.src_port, self.dst_port, 0, 0, 0x50, self.flags, 0, 0, 0)
            case 17:
                head = struct.pack(">HHHH", self.src_port, self.dst_port, 8 + len(self.payload), 0)
            case 1 | 58:
                head = struct.pack(">BBHHH", self.src_port, self.dst_port, 0, 0, 0)
            case 132:
                head = struct.pack(">HHII", self.src_port, self.dst_port, 0, 0)
            case _:
                head = b""
        return head + self.payload

    @property
    def ip(self) -> bytes:
        """Of the packet itself, without its tunnels."""
        src, dst, l4, proto = ip_address(self.src), ip_address(self.dst), self.l4, self.proto
        part = ident = 0
        if self.piece is not None:
            ident, more = self.piece.ident, self.piece.stop < len(l4)
            l4 = l4[self.piece.start : self.piece.stop]
            part = self.piece.start // 8 | (0x2000 if more else 0)
        if src.version == 4:
            return ipv4(src.packed, dst.packed, proto, l4, part, ident)
        if self.piece is not None:
            l4 = struct.pack(">BBHI", proto, 0, (part & 0x1FFF) << 3 | part >> 13, ident) + l4
            proto = 44
        return ipv6(src.packed, dst.packed, proto, l4)

    @property
    def ethertype(self) -> int:
        return 0x0800 if ip_address(self.src).version == 4 else 0x86DD

    @property
    def frame(self) -> bytes:
        """Ethernet, in all its tunnels."""
        body, ethertype = self.ip, self.ethertype
        for tunnel in reversed(self.tunnel.split("/") if self.tunnel else []):
            body, ethertype = wrap(tunnel, body, ethertype)
        return ethernet(body, ethertype)


def wrap(tunnel: str, body: bytes, ethertype: int) -> tuple[bytes, int]:
    """An IP packet in a tunnel, and the ethertype of the packet around it."""
    kind, _, number = tunnel.partition(":")
    four, six = (ip_address(a).packed for a in ("192.0.2.1", "2001:db8::1"))

    def udp(port: int, head: bytes, inside: bytes = body) -> bytes:
        size = 8 + len(head + inside)
        return ipv4(four, four, 17, struct.pack(">HHHH", 40_000, port, size, 0) + head + inside)

    match kind:
        case "ipip" | "6in4":
            return ipv4(four, four, 4 if kind == "ipip" else 41, body), 0x0800
        case "4in6" | "6in6":
            return ipv6(six, six, 4 if kind == "4in6" else 41, body), 0x86DD
        case "gre":
            head = struct.pack(">HHI", 0x2000, ethertype, int(number)) if number else struct.pack(">HH", 0, ethertype)
            return ipv4(four, four, 47, head + body), 0x0800
        case "pptp":
            ppp = struct.pack(">H", 0x21 if ethertype == 0x0800 else 0x57) + body
            return ipv4(four, four, 47, struct.pack(">HHHHI", 0x3001, 0x880B, len(ppp), 9, 1) + ppp), 0x0800
        case "erspan":
            head = struct.pack(">HHIHHI", 0x1000, 0x88BE, 1, 0x1000, int(number), 0)
            return ipv4(four, four, 47, head + ethernet(body, ethertype)), 0x0800
        case "vxlan":
            return udp(4789, struct.pack(">II", 8 << 24, int(number) << 8), ethernet(body, ethertype)), 0x0800
        case "geneve":
            return udp(6081, struct.pack(">BBHIQ", 2, 0, ethertype, int(number) << 8, 0)), 0x0800
        case "teredo":
            return udp(3544, bytes([0, 1, 1, 2]) + bytes(12) + bytes(8)), 0x0800
        case "gtp":
            return udp(2152, struct.pack(">BBHIHBBI", 0x34, 255, 8 + len(body), 5, 0, 0, 0x85, 1 << 24)), 0x0800
        case _:
            raise ValueError(tunnel)


def ipv4(src: bytes, dst: bytes, proto: int, body: bytes, part: int = 0, ident: int = 0) -> bytes:
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), ident, part, 64, proto, 0, src, dst) + body


def ipv6(src: bytes, dst: bytes, proto: int, body: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(body), proto, 64) + src + dst + body


def client_hello(name: bytes) -> bytes:
    """A TLS record whose last bytes are the server's name."""
    sni = struct.pack(">HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    body = b"\3\3" + bytes(32) + b"\0" + struct.pack(">HH", 2, 0x1301) + b"\1\0" + struct.pack(">H", len(sni)) + sni
    return struct.pack(">BHHBBH", 0x16, 0x0301, len(body) + 4, 1, 0, len(body)) + body


def ethernet(body: bytes, ethertype: int = 0x0800, pad_to: int = 60) -> bytes:
    return (bytes(12) + struct.pack(">H", ethertype) + body).ljust(pad_to, b"\0")


def record(ts: int, frame: bytes, captured: int | None = None, order: str = "<", tick_ns: int = 1000) -> bytes:
    cut = frame[:captured]
    return struct.pack(order + "IIII", ts // 10**9, ts % 10**9 // tick_ns, len(cut), len(frame)) + cut


def header(order: str = "<", linktype: int = 1, magic: int = 0xA1B2C3D4) -> bytes:
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, linktype)


def pcap(packets: list[P], captured: int | None = None) -> bytes:
    """Ethernet, ns ticks."""
    frames = (record(p.ts, p.frame, captured, tick_ns=1) for p in packets)
    return header(magic=0xA1B23C4D) + b"".join(frames)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """One pcapng block."""
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(linktype: int = 1, options: bytes = b"", order: str = "<", snaplen: int = 0) -> bytes:
    return block(1, struct.pack(order + "HHI", linktype, 0, snaplen) + options, order)


def enhanced(ticks: int, frame: bytes, number: int = 0, order: str = "<") -> bytes:
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
    return block(6, head + frame, order)


def parse(data: bytes, cuts: list[int] | None = None, adapter: PcapAdapter | None = None) -> Parsed:
    """All events and rejects of a capture that is fed in pieces that end at `cuts`."""
    adapter = adapter or PcapAdapter(SourceSpec("test", "test.pcap", sensor="s"))
    events, rejects = [], []
    for a, b in pairwise([0, *sorted(cuts or []), len(data)]):
        parsed = adapter.feed(data[a:b], a)
        events += parsed.events
        rejects += parsed.rejects
    parsed = adapter.finish()
    return Parsed(events + parsed.events, rejects + parsed.rejects)


# ---- the slow way ---------------------------------------------------------------------------------------------------


class Flow:
    def __init__(self, first: P) -> None:
        self.packets: list[P] = []
        self.fins: set[tuple[str, int]] = set()
        self.closed = self.reason = ""
        self.synced = False
        source, target = (first.src, first.src_port), (first.dst, first.dst_port)
        flip = first.proto == TCP and first.flags & (SYN | ACK) == SYN | ACK
        self.initiator = target if flip else source

    def forward(self, p: P) -> bool:
        if p.proto in (1, 58):
            return p.src == self.initiator[0]
        return (p.src, p.src_port) == self.initiator


def split(packets: list[P], idle_s: float = 120, active_s: float = 3600) -> list[Flow]:
    open_flows: dict[Any, Flow] = {}
    done: list[Flow] = []
    for p in joined(packets):
        ports = (0, 0) if p.proto in (1, 58) else (p.src_port, p.dst_port)
        key = (frozenset({(p.src, ports[0]), (p.dst, ports[1])}), p.proto, p.tunnel)
        flow = open_flows.get(key)
        if flow is not None:
            opens = p.proto == TCP and p.flags & (SYN | ACK) == SYN
            late = abs(p.ts - flow.packets[-1].ts) > idle_s * 10**9
            opens = opens and (bool(flow.closed) or not flow.synced)
            if late or p.ts - flow.packets[0].ts > active_s * 10**9 or opens:
                flow.reason = flow.closed or ("idle" if late else "active")
                done.append(open_flows.pop(key))
                flow = None
        if flow is None:
            flow = open_flows[key] = Flow(p)
        flow.packets.append(p)
        flow.synced = flow.synced or (p.proto == TCP and p.flags & SYN != 0)
        if p.proto == TCP and not flow.closed:
            if p.flags & FIN:
                flow.fins.add((p.src, p.src_port))
            flow.closed = "rst" if p.flags & RST else "fin" if len(flow.fins) == 2 else ""
    for flow in open_flows.values():
        idle = abs(packets[-1].ts - flow.packets[-1].ts) > idle_s * 10**9
        flow.reason = flow.closed or ("idle" if idle else "end")
    return done + list(open_flows.values())


def joined(packets: list[P]) -> list[P]:
    """Fragments with the payload and header bytes of theirs that are new; all others as they are."""
    out = []
    seen: dict[Any, set[int]] = {}
    for p in packets:
        if p.piece is not None:
            had = seen.setdefault((p.src, p.dst, p.proto, p.tunnel, p.piece.ident), set())
            new = set(range(p.piece.start, p.piece.stop)) - had
            had |= new
            if len(had) == len(p.l4):
                had.clear()
            data = bytes(p.l4[i] for i in sorted(new) if i >= p.head)
            flags = p.flags if 13 in new else 0
            mixed = len(new) < p.piece.stop - p.piece.start
            header = sum(i < p.head for i in new)
            p = p._replace(payload=data, header=header, flags=flags, piece=None, mixed=mixed)
        out.append(p)
    return out


def spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


STATS: dict[str, Callable[[list[float]], float]] = {
    "total": sum,
    "mean": fmean,
    "std": spread,
    "max": max,
    "min": min,
}


def entropy(values: Any) -> float:
    counts = Counter(values)
    n = counts.total()
    return -sum(c / n * math.log2(c / n) for c in counts.values())


def reference(flow: Flow) -> dict[str, float]:
    """The features of one flow that are made from packets."""
    packets = flow.packets
    ways = {"forward": [p for p in packets if flow.forward(p)], "backward": [p for p in packets if not flow.forward(p)]}
    lengths = [float(len(p.payload)) for p in packets]
    times = [p.ts for p in packets]
    gaps = [max(0, b - a) / 1e3 for a, b in pairwise(times)]
    out = {
        "protocol_number": packets[0].proto,
        "flow_duration": (max(times) - min(times)) / 1e9,
        "minimum_packet_length": min(lengths),
        "maximum_packet_length": max(lengths),
        "packet_length_mean": fmean(lengths),
        "packet_length_std": spread(lengths),
        "packet_length_variance": spread(lengths) ** 2,
        "packet_size_entropy": entropy(int(x) // 32 for x in lengths),
        "active_mean": sum(g for g in gaps if g <= 5e6) / (1 + sum(g > 5e6 for g in gaps)),
        "idle_mean": fmean([g for g in gaps if g > 5e6]) if any(g > 5e6 for g in gaps) else NAN,
    }
    for stat in ("mean", "std", "max", "min"):
        out[f"flow_inter_arrival_time_{stat}"] = STATS[stat](gaps) if gaps else NAN
    tcp = packets[0].proto == TCP
    bits = {"fin": FIN, "syn": SYN, "rst": RST, "psh": PSH, "ack": ACK, "urg": URG, "cwr": CWR, "ece": ECE}
    for name, bit in bits.items():
        out[f"{name}_flag_count"] = sum(bool(p.flags & bit) for p in packets) if tcp else 0
    sample, cut = b"", False
    for way, mine in ways.items():
        size = [float(len(p.payload)) for p in mine]
        out[f"total_{way}_packets"], out[f"total_{way}_bytes"] = len(mine), sum(size)
        for stat in ("max", "min", "mean", "std"):
            out[f"{way}_packet_length_{stat}"] = STATS[stat](size) if size else 0.0
        gap = [max(0, b.ts - a.ts) / 1e3 for a, b in pairwise(mine)]
        for stat in ("total", "mean", "std", "max", "min"):
            out[f"{way}_inter_arrival_time_{stat}"] = STATS[stat](gap) if gap else NAN
        out[f"{way}_header_length"] = sum(p.head for p in mine)
        out[f"{way}_psh_flags"] = sum(bool(p.flags & PSH) for p in mine) if tcp else 0
        out[f"{way}_urg_flags"] = sum(bool(p.flags & URG) for p in mine) if tcp else 0
        for p, before in zip(mine, accumulate((len(p.payload) for p in mine), initial=0), strict=False):
            sample += p.payload[: max(0, 1024 - before)]
            cut = cut or (p.mixed and bool(p.payload) and before < 1024)
    out["entropy"] = entropy(sample) / 8 if sample and not cut else NAN
    out.update(bulks(flow))
    answered = [p for p in ways["backward"] if p.flags & (ACK | RST) == ACK]
    acknowledged = [p for p in ways["forward"] if p.flags & (ACK | RST | SYN) == ACK]
    if tcp:
        established = bool(answered and acknowledged)
        out["flow_completion_rate"] = 0.5 * established * (1 + (flow.closed == "fin"))
    else:
        out["flow_completion_rate"] = float(bool(ways["forward"] and ways["backward"]))
    return out


def bulks(flow: Flow) -> dict[str, float]:
    runs: list[list[P]] = []
    for p in flow.packets:
        if not p.payload:
            continue
        before = runs[-1][-1] if runs else None
        if before and flow.forward(before) == flow.forward(p) and p.ts - before.ts < 10**9:
            runs[-1].append(p)
        else:
            runs.append([p])
    out: dict[str, float] = {}
    for way, forward in (("forward", True), ("backward", False)):
        mine = [run for run in runs if len(run) >= 4 and flow.forward(run[0]) == forward]
        size = sum(len(p.payload) for run in mine for p in run)
        seconds = sum(max(0, b.ts - a.ts) for run in mine for a, b in pairwise(run)) / 1e9
        out[f"{way}_average_bytes_bulk"] = size / len(mine) if mine else NAN
        out[f"{way}_average_packets_bulk"] = sum(map(len, mine)) / len(mine) if mine else NAN
        out[f"{way}_average_bulk_rate"] = size / seconds if seconds else 0.0
    return out
