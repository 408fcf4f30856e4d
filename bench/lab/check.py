"""Verify a recording: addresses, duplicates, labels, families in both halves, size. Stdlib only, needs no root.

Always true
  - What may be unlabelled is only background chatter: ARP, and IPv6 neighbour discovery and multicast reports.
  - Every address is a documentation address, link-local, multicast or unspecified.
Run: python -m bench.lab.check [DIR]; exit status 0 when all holds, 1 with one sentence per fault.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

DEFAULT = Path("examples/lab")
SIZE_BYTES_MAX = 5 * 1024 * 1024
FLOWS_PER_FAMILY_MIN = 50
FAMILIES_MIN = 8
ALLOWED = (
    "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32",
    "224.0.0.0/4", "ff00::/8", "fe80::/10", "0.0.0.0/32", "::/128",
)  # fmt: skip
PROTOCOLS = {"TCP": 6, "UDP": 17, "ICMP": 1, "IPv6-ICMP": 58}
DUPLICATE_WITHIN_NS = 5_000_000
IDLE_NS = 15_000_000_000


@dataclass(frozen=True)
class Flow:
    src: str
    dst: str
    proto: int
    src_port: int
    dst_port: int
    start_ns: int


@dataclass(frozen=True)
class Label:
    """One line of labels.ndjson."""

    episode: str
    half: int
    family: str
    classification: str
    proto: int | None
    src: list[str] | None
    dst: list[str] | None
    src_ports: list[list[int]] | None
    dst_ports: list[list[int]] | None
    start_ns: int
    end_ns: int
    text: str

    def matches(self, flow: Flow) -> bool:
        return (
            self.start_ns <= flow.start_ns <= self.end_ns
            and (self.proto is None or self.proto == flow.proto)
            and _within(flow.src_port, self.src_ports)
            and _within(flow.dst_port, self.dst_ports)
            and _inside(flow.src, self.src)
            and _inside(flow.dst, self.dst)
        )


@dataclass
class Summary:
    packets: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    duplicates: int = 0
    late: int = 0  # packets stamped earlier than the one before, as the kernel delivered them
    late_ns_max: int = 0
    foreign: set[str] = field(default_factory=set)
    types: Counter[str] = field(default_factory=Counter)
    signatures: Counter[str] = field(default_factory=Counter)
    flows: Counter[tuple[str, int]] = field(default_factory=Counter)
    by_episode: Counter[str] = field(default_factory=Counter)
    episodes: list[Label] = field(default_factory=list)
    unlabelled: int = 0
    chatter: int = 0
    bare_flows: int = 0  # of our own plain flow table over the packets
    bare_unlabelled: int = 0
    bare_examples: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    size: int = 0

    @property
    def families(self) -> list[str]:
        named = {label.family for label in self.episodes}
        return sorted(named, key=lambda family: (family != "Normal", family))

    def faults(self) -> Iterator[str]:
        if self.foreign:
            yield f"addresses outside the documentation ranges: {', '.join(sorted(self.foreign)[:8])}"
        if self.duplicates * 1_000 > self.packets:
            yield f"{self.duplicates} of {self.packets} packets seem recorded twice"
        if self.unlabelled:
            yield f"{self.unlabelled} flows have no label, such as {'; '.join(self.examples)}"
        if self.bare_unlabelled:
            yield f"{self.bare_unlabelled} of {self.bare_flows} bare flows have no label, such as {self.bare_examples}"
        if len(self.families) < FAMILIES_MIN:
            yield f"{len(self.families)} families, {FAMILIES_MIN} are asked for"
        for family in self.families:
            counts = [self.flows[family, half] for half in (1, 2)]
            if not all(counts):
                yield f"{family} is missing in one half: {counts}"
            elif sum(counts) < FLOWS_PER_FAMILY_MIN:
                yield f"{family} has {sum(counts)} flows, {FLOWS_PER_FAMILY_MIN} are asked for"
        for label in self.episodes:
            if not self.by_episode[label.episode]:
                yield f"episode {label.episode} has no flow"
        if self.size > SIZE_BYTES_MAX:
            yield f"{self.size} bytes, at most {SIZE_BYTES_MAX} are allowed"


@cache
def _networks(cidrs: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(cidr) for cidr in cidrs)


@cache
def _member(address: str, cidrs: tuple[str, ...]) -> bool:
    parsed = ip_address(address)
    return any(parsed.version == network.version and parsed in network for network in _networks(cidrs))


def _inside(address: str, cidrs: list[str] | None) -> bool:
    return cidrs is None or _member(address, tuple(cidrs))


def _within(port: int, ranges: list[list[int]] | None) -> bool:
    return ranges is None or any(low <= port <= high for low, high in ranges)


def label_of(flow: Flow, labels: list[Label]) -> Label | None:
    return next((label for label in labels if label.matches(flow)), None)


def read_labels(path: Path) -> list[Label]:
    return [Label(**json.loads(line)) for line in path.read_text().splitlines()]


def time_ns(text: str) -> int:
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z")
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000_000 + moment.microsecond * 1_000


def flow_of(event: dict[str, Any]) -> Flow:
    return Flow(
        event["src_ip"],
        event["dest_ip"],
        PROTOCOLS.get(event["proto"], 0),
        int(event.get("src_port", 0)),
        int(event.get("dest_port", 0)),
        time_ns(event["flow"]["start"]),
    )


def is_chatter(flow: Flow) -> bool:
    """Neighbour discovery and multicast reports (which start with a hop-by-hop header, 0)."""
    return flow.proto in (0, 58) and _member(flow.dst, ("ff00::/8", "fe80::/10", "2001:db8::/32"))


def packets(path: Path) -> Iterator[tuple[int, bytes]]:
    """Time in ns and frame, of a little-endian classic pcap in microseconds."""
    with gzip.open(path, "rb") as file:
        magic, *_, link = struct.unpack("<IHHiIII", file.read(24))
        if magic != 0xA1B2C3D4 or link != 1:
            raise ValueError(f"{path}: not a little-endian Ethernet pcap in microseconds")
        while header := file.read(16):
            seconds, micros, captured, length = struct.unpack("<IIII", header)
            if captured != length:
                raise ValueError(f"{path}: a packet is cut short ({captured} of {length} bytes)")
            yield seconds * 1_000_000_000 + micros * 1_000, file.read(captured)


def addresses(frame: bytes) -> tuple[bytes, ...]:
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return frame[26:30], frame[30:34]
    if kind == b"\x86\xdd":
        return frame[22:38], frame[38:54]
    if kind == b"\x08\x06":
        return frame[28:32], frame[38:42]
    raise ValueError(f"a frame of type {kind.hex()} that nobody sent")


def without_hop(frame: bytes) -> bytes:
    """What stays the same across a router: the packet without MAC addresses, hop count and header checksum."""
    if frame[12:14] == b"\x08\x00":
        return frame[14:22] + frame[23:24] + frame[26:]
    return frame[14:21] + frame[22:]


def endpoints(frame: bytes) -> tuple[bytes, bytes, int, int, int] | None:
    """Source, destination, protocol and ports of an IP packet (none of the lab's are fragments)."""
    if frame[12:14] == b"\x08\x00":
        src, dst, proto, at = frame[26:30], frame[30:34], frame[23], 14 + (frame[14] & 15) * 4
    elif frame[12:14] == b"\x86\xdd":
        src, dst, proto, at = frame[22:38], frame[38:54], frame[20], 54
    else:
        return None
    ports = struct.unpack(">HH", frame[at : at + 4]) if proto in (6, 17) else (0, 0)
    return src, dst, proto, *ports


class FlowTable:
    """The plainest of flow tables, to test the labels without Suricata: five fields and an idle timeout."""

    def __init__(self) -> None:
        self.last_ns: dict[tuple[bytes, bytes, int, int, int], int] = {}
        self.flows: list[Flow] = []

    def add(self, at_ns: int, frame: bytes) -> None:
        key = endpoints(frame)
        if key is None:
            return
        src, dst, proto, src_port, dst_port = key
        back = (dst, src, proto, dst_port, src_port)
        known = key if key in self.last_ns else back
        if at_ns - self.last_ns.get(known, 0) > IDLE_NS:
            flow = Flow(str(ip_address(src)), str(ip_address(dst)), proto, src_port, dst_port, at_ns)
            self.flows.append(flow)
        self.last_ns[known if known in self.last_ns else key] = at_ns


def read_pcap(path: Path, labels: list[Label], summary: Summary) -> None:
    table = FlowTable()
    seen: dict[bytes, int] = {}
    raw: set[bytes] = set()
    newest_ns = 0
    for at_ns, frame in packets(path):
        summary.packets += 1
        newest_ns = max(newest_ns, at_ns)
        summary.late += at_ns < newest_ns
        summary.late_ns_max = max(summary.late_ns_max, newest_ns - at_ns)
        summary.first_s = summary.first_s or at_ns / 1e9
        summary.last_s = at_ns / 1e9
        raw.update(addresses(frame))
        if frame[12:14] != b"\x08\x06":
            key = without_hop(frame)
            summary.duplicates += at_ns - seen.get(key, 0) < DUPLICATE_WITHIN_NS
            seen[key] = at_ns
            table.add(at_ns, frame)
    flows = [flow for flow in table.flows if not is_chatter(flow) or label_of(flow, labels)]
    missed = [flow for flow in flows if label_of(flow, labels) is None]
    summary.bare_flows, summary.bare_unlabelled = len(flows), len(missed)
    summary.bare_examples = [str(flow) for flow in missed[:5]]
    summary.foreign = {text for address in raw if not _member(text := str(ip_address(address)), ALLOWED)}


def read_eve(path: Path, labels: list[Label], summary: Summary) -> None:
    with gzip.open(path, "rt") as lines:
        for line in lines:
            event = json.loads(line)
            summary.types[event["event_type"]] += 1
            if event["event_type"] == "alert":
                summary.signatures[event["alert"]["signature"]] += 1
            if event["event_type"] != "flow":
                continue
            flow = flow_of(event)
            label = label_of(flow, labels)
            if label is not None:
                summary.flows[label.family, label.half] += 1
                summary.by_episode[label.episode] += 1
            elif is_chatter(flow):
                summary.chatter += 1
            else:
                summary.unlabelled += 1
                if len(summary.examples) < 5:
                    summary.examples.append(f"{flow.src}:{flow.src_port} > {flow.dst}:{flow.dst_port} ({flow.proto})")


def summarise(directory: Path) -> Summary:
    summary = Summary()
    labels = read_labels(directory / "labels.ndjson")
    summary.episodes = list({label.episode: label for label in labels}.values())
    read_pcap(directory / "lab.pcap.gz", labels, summary)
    read_eve(directory / "eve.json.gz", labels, summary)
    summary.size = sum((directory / name).stat().st_size for name in ("lab.pcap.gz", "eve.json.gz", "labels.ndjson"))
    return summary


def report(summary: Summary) -> str:
    lines = [f"{'family':14}{'half 1':>8}{'half 2':>8}{'all':>8}"]
    for family in summary.families:
        one, two = (summary.flows[family, half] for half in (1, 2))
        lines.append(f"{family:14}{one:8}{two:8}{one + two:8}")
    lines.append(f"{summary.bare_flows} flows by a plain flow table, {summary.bare_unlabelled} without a label")
    lines.append(f"{summary.packets} packets, {summary.duplicates} seen twice, {summary.size} bytes in all")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lab.check", description="Verify a lab recording.")
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT)
    summary = summarise(parser.parse_args(argv).directory)
    print(report(summary))
    faults = list(summary.faults())
    for fault in faults:
        print(f"fault: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
