"""Packets a second from capture bytes to flows with features, and on to events, on one core.

    python -m bench.flows [--packets 1000000] [--events] CAPTURE...
    python -m bench.flows --flood 1600000
    python -m bench.flows --against nfstream

The captures (pcap, little-endian, microseconds; .gz too) are repeated, each time a later hour, until there are so many
packets. Times are CPU seconds of this process, so that a busy neighbour does not count. --flood makes a capture of so
many flows of one to four packets, more than the table has room for, and says how memory goes. Neither is ever held as
a whole: what is made is fed, a piece at a time. --against: another tool on the same file (bench/against.py).
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import resource
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.against import OTHERS, against, in_time
from bench.harness import keep, print_table
from engine.flows.capture import Block, CaptureReader
from engine.flows.decode import Packets
from engine.flows.features import compute, pieces
from engine.flows.packets import Decoder
from engine.flows.table import Flows, FlowTable
from engine.sources.base import SourceSpec
from engine.sources.pcap import PcapAdapter

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DEFAULT = (
    "cicflowmeter_official/test.pcap.gz",
    "pcap_stratosphere/test-cc-capture-1.pcap.gz",
    "pcap_zeek/ssh/sshguess.pcap",
    "pcap_zeek/wikipedia.pcap",
    "pcap_zeek/ftp/bruteforce.pcap",
)
FEED_BYTES = 1 << 20
LAP_S = 4000


def load(paths: list[Path]) -> list[tuple[int, bytes]]:
    """(second, the record without it) of every packet."""
    out = []
    for path in paths:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if data[:4] != b"\xd4\xc3\xb2\xa1":
            raise SystemExit(f"{path}: not a little-endian microsecond pcap")
        pos = 24
        while pos + 16 <= len(data):
            second, size = struct.unpack_from("<I4xI", data, pos)
            out.append((second, data[pos + 4 : pos + 16 + size]))
            pos += 16 + size
    return out


HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)


def repeat(records: list[tuple[int, bytes]], packets: int) -> Iterator[bytes]:
    """The capture in pieces of about FEED_BYTES."""
    first = min(second for second, _ in records)
    out = bytearray(HEADER)
    for lap in range(-(-packets // len(records))):
        for second, record in records:
            out += struct.pack("<I", 1_600_000_000 + lap * LAP_S + (second - first) % 3600) + record
            if len(out) >= FEED_BYTES:
                yield bytes(out)
                out.clear()
    yield bytes(out)


def flood(flows: int) -> Iterator[bytes]:
    """A SYN a flow, every second one answered, every fourth one closed; 20,000 flows a second from 65,536 addresses."""
    tcp = struct.Struct(">HHIIBBHHH")
    head = bytes(12) + b"\x08\0\x45\0\0\x28" + bytes(5) + b"\x06\0\0"
    out = bytearray(HEADER)
    for i in range(flows):
        second, fraction = divmod(i * 50, 1_000_000)
        client, server = struct.pack(">BBH", 10, 1, i % 65_536), b"\x0a\2\0\1"
        port = 1024 + i // 65_536
        ways = (client + server + tcp.pack(port, 80, 0, 0, 0x50, 2, 0, 0, 0),
                server + client + tcp.pack(80, port, 0, 0, 0x50, 18, 0, 0, 0),
                client + server + tcp.pack(port, 80, 0, 0, 0x50, 17, 0, 0, 0),
                server + client + tcp.pack(80, port, 0, 0, 0x50, 17, 0, 0, 0))  # fmt: skip
        for body in ways[: 4 if i % 4 == 0 else 1 + i % 2]:
            out += struct.pack("<IIII", 1_600_000_000 + second, fraction, 54, 54) + head + body
        if len(out) >= FEED_BYTES:
            yield bytes(out)
            out.clear()
    yield bytes(out)


class Stages:
    """CPU seconds of each step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("read", "decode", "table", "features"), 0.0)
        self.flows = self.packets = 0
        self.reader, self.decoder, self.table = CaptureReader(), Decoder(), FlowTable()

    def run(self, capture: Iterable[bytes]) -> None:
        for piece in capture:
            self.blocks(self.reader.feed(piece))
        self.blocks(self.reader.finish())
        self.add(self.decoder.finish())
        now = time.process_time()
        rest = self.table.finish()
        self.took("table", now)
        self.features(rest)

    def took(self, stage: str, since: float) -> None:
        self.seconds[stage] += time.process_time() - since

    def blocks(self, blocks: Iterable[Block]) -> None:
        steps = iter(blocks)
        while True:
            now = time.process_time()
            block = next(steps, None)
            self.took("read", now)
            if block is None:
                return
            now = time.process_time()
            ready = self.decoder.decode(block, 0)
            self.took("decode", now)
            self.packets += len(block.at)
            self.add(ready)

    def add(self, ready: list[Packets]) -> None:
        for packets in ready:
            now = time.process_time()
            done = self.table.add(packets)
            self.took("table", now)
            if done is not None:
                self.features(done)

    def features(self, flows: Flows) -> None:
        now = time.process_time()
        for piece in pieces(flows):
            compute(piece)
        self.took("features", now)
        self.flows += len(flows.counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captures", nargs="*", type=Path)
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--events", action="store_true", help="through the adapter: names, ids, records and order too")
    parser.add_argument("--flood", type=int, default=0, metavar="FLOWS", help="how memory goes over so many flows")
    parser.add_argument("--against", choices=OTHERS, help="beside another tool, on the same file")
    parser.add_argument("--keep", action="store_true", help="append the result to bench/results")
    args = parser.parse_args()
    if args.against:
        records = in_time(load(args.captures or [SHARED / name for name in DEFAULT]))
        packets = -(-args.packets // len(records)) * len(records)
        against(args.against, repeat(records, args.packets), packets, args.keep)
        return
    if args.flood:
        result = memory(args.flood)
    else:
        result = measure(load(args.captures or [SHARED / name for name in DEFAULT]), args.packets, args.events)
    print_table(result)
    if args.keep:
        keep("flows", {"packets": args.packets, "events": args.events, "flood": args.flood}, result)


def measure(records: list[tuple[int, bytes]], packets: int, events: bool) -> dict[str, object]:
    capture = repeat(records, packets)
    packets = -(-packets // len(records)) * len(records)
    seconds: dict[str, float] = {}
    if events:
        cpu_s = flows = 0.0
        for found, spent_s, _ in through(PcapAdapter(SourceSpec("bench")), capture):
            flows, cpu_s = flows + found, cpu_s + spent_s
    else:
        stages = Stages()
        stages.run(capture)
        assert stages.packets == packets
        seconds, flows, cpu_s = stages.seconds, stages.flows, sum(stages.seconds.values())
    return {
        "packets": packets,
        "flows": int(flows),
        "packets_per_s": round(packets / cpu_s),
        "ns_per_packet": {stage: round(s / packets * 1e9) for stage, s in seconds.items()},
        "rss_mib_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def through(adapter: PcapAdapter, capture: Iterable[bytes]) -> Iterator[tuple[int, float, int]]:
    """Events, CPU seconds and bytes of each piece."""
    at = 0
    for piece in itertools.chain(capture, (None,)):
        since = time.process_time()
        found = len((adapter.finish() if piece is None else adapter.feed(piece, at)).events)
        size = len(piece or b"")
        at += size
        yield found, time.process_time() - since, size


def memory(flows: int) -> dict[str, object]:
    """Resident MiB when a tenth, half and all of the flows were fed, and at most."""
    adapter = PcapAdapter(SourceSpec("bench"))
    marks = [int(flows * 2.25 * (16 + 54) * share) for share in (0.1, 0.5)]
    rss_mib: list[int] = []
    cpu_s, done, at = 0.0, 0, 0
    for found, spent_s, size in through(adapter, flood(flows)):
        done, cpu_s, at = done + found, cpu_s + spent_s, at + size
        while len(rss_mib) < len(marks) and at >= marks[len(rss_mib)]:
            rss_mib.append(resident_mib())
    assert done == flows
    return {
        "bench": "flood",
        "flows": flows,
        "flows_per_s": round(flows / cpu_s),
        "rss_mib_at_10_50_100": [*rss_mib, resident_mib()],
        "rss_mib_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def resident_mib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20


if __name__ == "__main__":
    main()
