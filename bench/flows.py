"""Packets a second from capture bytes to flows with features, and on to events, on one core.

    python -m bench.flows [--packets 1000000] [--events] CAPTURE...

The captures (pcap, little-endian, microseconds; .gz too) are repeated, each time a later hour, until there are so many
packets. Times are CPU seconds of this process, so that a busy neighbour does not count.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import struct
import time
from collections.abc import Iterable
from pathlib import Path

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
RESULTS = Path(__file__).parent / "results" / "flows.jsonl"


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


def repeat(records: list[tuple[int, bytes]], packets: int) -> bytes:
    first = min(second for second, _ in records)
    out = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)]
    for lap in range(-(-packets // len(records))):
        for second, record in records:
            out.append(struct.pack("<I", 1_600_000_000 + lap * LAP_S + (second - first) % 3600) + record)
    return b"".join(out)


class Stages:
    """CPU seconds of each step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("read", "decode", "table", "features"), 0.0)
        self.flows = self.packets = 0
        self.reader, self.decoder, self.table = CaptureReader(), Decoder(), FlowTable()

    def run(self, data: bytes) -> None:
        for at in range(0, len(data), FEED_BYTES):
            self.blocks(self.reader.feed(data[at : at + FEED_BYTES]))
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
    parser.add_argument("--keep", action="store_true", help=f"append the result to {RESULTS.name}")
    args = parser.parse_args()
    data = repeat(load(args.captures or [SHARED / name for name in DEFAULT]), args.packets)
    result = measure(data, args.events) | {"bytes": len(data), "machine": platform.processor() or platform.machine()}
    print(json.dumps(result))
    if args.keep:
        with RESULTS.open("a") as file:
            file.write(json.dumps(result) + "\n")


def measure(data: bytes, events: bool) -> dict[str, object]:
    since = time.process_time()
    stages = Stages()
    if events:
        adapter = PcapAdapter(SourceSpec("bench"))
        flows = sum(len(adapter.feed(data[at : at + FEED_BYTES], at).events) for at in range(0, len(data), FEED_BYTES))
        flows += len(adapter.finish().events)
        cpu_s = time.process_time() - since
        counter = CaptureReader()
        packets = sum(len(block.at) for block in (*counter.feed(data), *counter.finish()))
    else:
        stages.run(data)
        cpu_s, flows, packets = time.process_time() - since, stages.flows, stages.packets
    return {
        "bench": "flows",
        "at": int(time.time()),
        "events": events,
        "packets": packets,
        "flows": flows,
        "packets_per_s": round(packets / cpu_s),
        "ns_per_packet": {stage: round(s / packets * 1e9) for stage, s in stages.seconds.items()},
        "rss_mib_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
