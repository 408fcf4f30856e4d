"""Load over many connections: `python -m bench.load --events N --connections C --readers R --seconds S [--rate Q]`.

With --rate the loop is open: requests are sent by the clock, not by the last reply, and each latency runs from when
its request was due, so that a stall is charged in full. Without, each connection sends its next request at its reply.
With --ingest-rate events come in at the same time; their acknowledgements are timed, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.harness import Engine, engine, fill, keep, percentiles_ms, synthetic
from ipc.aio import AsyncClient
from ipc.client import Client
from ipc.event import Event, FeaturedEvent
from ipc.messages import Hello, Options, QuerySimilar, encode

FAILURE_TAG = 67
MARK = b"\xce\x7f\xff\xff\xff"  # stands for the request id in a frame
_LENGTH = struct.Struct("<I")


class Peer(asyncio.Protocol):
    """One connection of the load: frames counted, latencies kept, replies not decoded."""

    def __init__(self, load: Load) -> None:
        self.load, self.buffer, self.due = load, bytearray(), [0.0]
        self.greeted = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.transport.write(frame(encode(Hello(1, "bench"))))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 4 and len(self.buffer) >= 4 + (size := _LENGTH.unpack_from(self.buffer)[0]):
            body = bytes(self.buffer[4 : 4 + size])
            del self.buffer[: 4 + size]
            if not self.greeted.done():
                self.greeted.set_result(None)
            else:
                self.load.replied(self, body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost += not self.load.over


def frame(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


class Load:
    """Drives the connections for some seconds."""

    def __init__(self, path: str, bodies: list[bytes], connections: int, rate_qps: float, seconds: float) -> None:
        self.path, self.bodies, self.connections = path, bodies, connections
        self.rate_qps, self.seconds = rate_qps, seconds
        self.latency_s: list[float] = []
        self.failures = self.lost = self.sent = 0
        self.over = False
        self.due_s: dict[int, float] = {}

    def send(self, peer: Peer, due_s: float) -> None:
        request_id = self.sent
        self.sent += 1
        self.due_s[request_id] = due_s
        # [7, request_id, id, options]: the request id is patched in as a u32
        peer.transport.write(
            self.bodies[request_id % len(self.bodies)].replace(MARK, b"\xce" + request_id.to_bytes(4, "big"), 1)
        )

    def replied(self, peer: Peer, body: bytes) -> None:
        now_s = time.perf_counter()
        request_id = request_id_of(body)
        self.latency_s.append(now_s - self.due_s.pop(request_id))
        self.failures += body[1] == FAILURE_TAG
        if not self.rate_qps and not self.over:
            self.send(peer, now_s)

    async def run(self) -> float:
        """Seconds that the load lasted."""
        loop = asyncio.get_running_loop()
        peers = [(await loop.create_unix_connection(lambda: Peer(self), self.path))[1] for _ in range(self.connections)]
        await asyncio.gather(*(p.greeted for p in peers))
        start_s = time.perf_counter()
        if not self.rate_qps:
            for peer in peers:
                self.send(peer, time.perf_counter())
            await asyncio.sleep(self.seconds)
        else:
            total = int(self.rate_qps * self.seconds)
            while self.sent < total:
                now_s = time.perf_counter()
                while self.sent < total and (due_s := start_s + self.sent / self.rate_qps) <= now_s:
                    self.send(peers[self.sent % len(peers)], due_s)
                await asyncio.sleep(0.0005)
        self.over = True
        took_s = time.perf_counter() - start_s
        for _ in range(500):
            if not self.due_s:
                break
            await asyncio.sleep(0.01)
        for peer in peers:
            peer.transport.close()
        return took_s


def request_id_of(body: bytes) -> int:
    """Of a reply [tag, request_id, ...]; the tag is one byte."""
    kind = body[2]
    if kind < 0x80:
        return kind
    width = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}[kind]
    return int.from_bytes(body[3 : 3 + width], "big")


def bodies_of(ids: list[str], options: Options) -> list[bytes]:
    """Frames of queries by id, the request id to be patched in."""
    return [frame(encode(QuerySimilar(0x7FFFFFFF, i, options))) for i in ids]


async def trickle(running: Engine, events: Iterator[FeaturedEvent], rate: float, seconds: float) -> list[float]:
    """Ingest one event a message at `rate`, open loop; seconds from due to acknowledged."""
    latency_s: list[float] = []
    layout = running.data_dir / "run"
    client = AsyncClient(str(layout / "query.sock"), str(layout / "write.sock"), timeout_ms=60_000)
    start_s = time.perf_counter()
    tasks = []

    async def one(due_s: float, event: FeaturedEvent) -> None:
        await client.ingest("synthetic", [event])
        latency_s.append(time.perf_counter() - due_s)

    for i in range(int(rate * seconds)):
        due_s = start_s + i / rate
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due_s, next(events))))
    await asyncio.gather(*tasks)
    client.close()
    return latency_s


def recall(client: Client, ids: list[str], space: str, data_dir: Path) -> float:
    """recall@10 of the live engine against float64 brute force over its rows, ties by distance."""
    from engine.catalog import Catalog
    from engine.layout import Layout
    from engine.rows import RowMap

    layout = Layout(data_dir)
    catalog = Catalog(layout.catalog, write=False, map_size=1 << 30)
    with catalog.read() as view:
        manifest = view.manifest()
        assert manifest is not None
        seqs = [view.find(i) for i in ids]
    catalog.close()
    maps = [
        RowMap(layout.row_file(*manifest.row_file(n)), n, manifest.row_file_rows) for n in range(manifest.row_files)
    ]
    rows = np.concatenate([m.vectors[space] for m in maps])[: manifest.count].astype(np.float64)
    found = total = 0
    for event_id, seq in zip(ids, seqs, strict=True):
        assert seq is not None
        distances = np.sqrt(((rows - rows[seq]) ** 2).sum(1))
        distances[seq] = np.inf
        bound = np.partition(distances, 9)[9] * (1 + 1e-9)
        reply = client.query_similar(event_id, options=Options(space=space, collapse=False))
        found += sum(h.distance <= bound + 1e-6 for h in reply.answers[0].hits)
        total += 10
    return found / total


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--events", type=int, default=10_000)
    parse.add_argument("--connections", type=int, default=32)
    parse.add_argument("--readers", type=int, default=2)
    parse.add_argument("--seconds", type=float, default=10.0)
    parse.add_argument("--rate", type=float, default=0.0, help="queries a second; 0: as fast as replies come")
    parse.add_argument("--ingest-rate", type=float, default=0.0, help="events a second stored meanwhile")
    parse.add_argument("--space", default="chronos")
    parse.add_argument("--collapse", action="store_true")
    parse.add_argument("--texts", action="store_true", help="events keep their free text: many new sentences to embed")
    parse.add_argument("--seed", type=int, default=1)
    parse.add_argument("--json", action="store_true")
    args = parse.parse_args()
    with engine(args.readers) as running:
        events = synthetic(args.events + int(args.ingest_rate * args.seconds) + 1, args.seed, texts=args.texts)
        ingest_eps = fill(running, events, args.events)
        with running.client() as client:
            every = [
                stored.event.event_id for stored in client.recent(limit=1_000).events if isinstance(stored.event, Event)
            ]
            recall_at_10 = recall(client, every[:100], args.space, running.data_dir)
        options = Options(space=args.space, collapse=args.collapse, deadline_ms=60_000)
        load = Load(
            str(running.data_dir / "run/query.sock"),
            bodies_of(every, options),
            args.connections,
            args.rate,
            args.seconds,
        )

        async def go() -> tuple[float, list[float]]:
            writing = asyncio.create_task(trickle(running, events, args.ingest_rate, args.seconds))
            return await load.run(), await writing

        before = resource.getrusage(resource.RUSAGE_SELF)
        took_s, acknowledged_s = uvloop.run(go())
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        readers = [r["connections"] for r in running.stats()["readers"]]
    figures = {
        "qps": round(len(load.latency_s) / took_s, 1), **percentiles_ms(load.latency_s), "failures": load.failures,
        "lost": load.lost, "recall_at_10": round(recall_at_10, 4), "bulk_ingest_eps": round(ingest_eps, 1),
        "acknowledged": percentiles_ms(acknowledged_s), "client_cpu_share": round(cpu_s / took_s, 3),
        "connections_after": readers,
    }  # fmt: skip
    line = keep("load", vars(args), figures)
    if args.json:
        print(json.dumps(line))
    else:
        for name, value in figures.items():
            print(f"{name:20} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
