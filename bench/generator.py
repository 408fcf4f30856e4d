"""The load itself: many connections in a process of their own, frames counted, latencies kept, replies not decoded.

Started by bench/load.py as `python -m bench.generator --child`; it lasts `seconds` and prints what it saw. Open loop
(rate > 0): request i is due at i / rate, whatever has become of those before, and its latency runs from then. Closed
loop (rate 0): each connection sends its next request at its reply; a refused one waits for REFUSED_S, so that refusals
do not pass for load. cpu_share: CPU seconds of this process for each second of the load; near 1 the generator, not the
engine, is what was measured. sent_late (open loop): how late the generator itself was. good_qps: answers that came
within deadline_ms of when their request was due, while the load lasted. refused: failures by code.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections import Counter
from typing import Any

import uvloop

from bench.harness import ChildSide, percentiles_ms
from ipc.messages import ErrorCode, Hello, Options, QuerySimilar, encode

FAILURE_TAG = 67
PLACE = 0x7FFFFFFF  # stands for the request id in a prepared body, as a u32
MARK = b"\xce" + PLACE.to_bytes(4, "big")
REFUSED_S = 0.02
TICK_S = 0.001  # uvloop's timers count whole ms: a shorter sleep spins and takes a core from the engine
LATE_S_MAX = 10.0  # what is waited for replies after the end
_LENGTH = struct.Struct("<I")


def frame(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


class Body:
    """A prepared query: all bytes but the request id."""

    def __init__(self, name: str, options: Options) -> None:
        whole = frame(encode(QuerySimilar(PLACE, name, options)))
        self.head, found, self.tail = whole.partition(MARK)
        assert found

    def with_id(self, request_id: int) -> bytes:
        return b"".join((self.head, b"\xce", request_id.to_bytes(4, "big"), self.tail))


class Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load) -> None:
        self.load, self.buffer = load, bytearray()
        self.greeted = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.transport.write(frame(encode(Hello(1, "bench"))))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 4 and len(self.buffer) >= 4 + (size := _LENGTH.unpack_from(self.buffer)[0]):
            body = bytes(self.buffer[4 : 4 + min(size, 16)])  # tag and request id are all that is looked at
            del self.buffer[: 4 + size]
            if self.greeted.done():
                self.load.replied(self, body)
            else:
                self.greeted.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost += not self.load.closing


class Load:
    """Drives the connections for some seconds."""

    def __init__(
        self, path: str, bodies: list[Body], connections: int, rate_qps: float, seconds: float, deadline_s: float
    ) -> None:
        self.path, self.bodies, self.connections = path, bodies, connections
        self.rate_qps, self.seconds, self.deadline_s = rate_qps, seconds, deadline_s
        self.latency_s: list[float] = []
        self.late_s: list[float] = []
        self.in_time = self.good = self.failures = self.lost = self.sent = 0
        self.refused: Counter[str] = Counter()
        self.over = self.closing = False
        self.due_s: dict[int, float] = {}

    def send(self, peer: Peer, due_s: float) -> None:
        request_id = self.sent
        self.sent += 1
        self.due_s[request_id] = due_s
        peer.transport.write(self.bodies[request_id % len(self.bodies)].with_id(request_id))

    def replied(self, peer: Peer, body: bytes) -> None:
        now_s = time.perf_counter()
        due_s = self.due_s.pop(request_id_of(body))
        failed = body[1] == FAILURE_TAG
        if failed:
            self.failures += 1
            self.refused[ErrorCode(code_of(body)).name] += 1
        else:
            self.latency_s.append(now_s - due_s)
            self.in_time += not self.over
            self.good += not self.over and now_s - due_s <= self.deadline_s
        if self.rate_qps or self.over:
            return
        if failed:
            asyncio.get_running_loop().call_later(REFUSED_S, self.again, peer)
        else:
            self.send(peer, now_s)

    def again(self, peer: Peer) -> None:
        if not self.over:
            self.send(peer, time.perf_counter())

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        peers = [(await loop.create_unix_connection(lambda: Peer(self), self.path))[1] for _ in range(self.connections)]
        await asyncio.gather(*(p.greeted for p in peers))
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        if self.rate_qps:
            await self._by_the_clock(peers, start_s)
        else:
            for peer in peers:
                self.send(peer, time.perf_counter())
            await asyncio.sleep(self.seconds)
        self.over = True
        took_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        while self.due_s and not self.lost and time.perf_counter() - start_s < took_s + LATE_S_MAX:
            await asyncio.sleep(0.01)
        self.closing = True
        for peer in peers:
            peer.transport.close()
        return {
            "qps": round(self.in_time / took_s, 1), "good_qps": round(self.good / took_s, 1),
            **percentiles_ms(self.latency_s), "failures": self.failures, "refused": dict(self.refused),
            "lost": self.lost, "unanswered": len(self.due_s), "sent": self.sent,
            "sent_late": percentiles_ms(self.late_s), "client_cpu_share": round(cpu_s / took_s, 3),
            "client_cpu_us_per_query": round(cpu_s / max(1, self.in_time) * 1e6, 1),
        }  # fmt: skip

    async def _by_the_clock(self, peers: list[Peer], start_s: float) -> None:
        total = int(self.rate_qps * self.seconds)
        while self.sent < total:
            now_s = time.perf_counter()
            while self.sent < total and (due_s := start_s + self.sent / self.rate_qps) <= now_s:
                self.late_s.append(now_s - due_s)
                self.send(peers[self.sent % len(peers)], due_s)
            await asyncio.sleep(TICK_S)


WIDTHS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}  # of unsigned integers, in bytes


def request_id_of(body: bytes) -> int:
    """Of a reply [tag, request_id, ...]; array head and tag are one byte each."""
    kind = body[2]
    return kind if kind < 0x80 else int.from_bytes(body[3 : 3 + WIDTHS[kind]], "big")


def code_of(body: bytes) -> int:
    """Of a Failure, [tag, request_id, code, ...]; codes are below 128."""
    return body[3 + WIDTHS.get(body[2], 0)]


def main() -> int:
    side = ChildSide()
    job = side.job
    options = Options(space=job["space"], collapse=job["collapse"], deadline_ms=job["deadline_ms"])
    load = Load(
        job["path"], [Body(name, options) for name in job["names"]], job["connections"], job["rate_qps"],
        job["seconds"], job["deadline_ms"] / 1e3,
    )  # fmt: skip
    side.ready()
    side.done(uvloop.run(load.run()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
