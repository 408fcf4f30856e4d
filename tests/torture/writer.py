"""The process that ingests: python -P -m tests.torture.writer DATA_DIR FILE SEED EVENTS_PER_S, until SIGTERM.

Always true
  - A batch is in the oracle's file before it is sent, and acknowledged there once the engine did and that is synced.
  - Now and then one that was acknowledged is sent once more: all of it is known.
  - It is sent again until it is acknowledged: whole, or found whole. Killed, another one begins behind what was sent.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from pathlib import Path

from ipc import calls
from ipc.client import Client
from ipc.errors import ClientError, ConnectError
from ipc.messages import ErrorCode, Failure, Ingested, Reply
from tests.torture.oracle import Batch, Book, Oracle, sent

TIMEOUT_MS = 5_000
LAST_S = 90.0  # for the last batch, after SIGTERM
AGAIN_SHARE = 0.2
AGAIN = {ErrorCode.OVERLOADED, ErrorCode.NO_SPACE, ErrorCode.NOT_READY, ErrorCode.DEADLINE}


def sizes(chance: random.Random) -> list[int]:
    """Of the batches that are sent at once."""
    if chance.random() < 0.1:
        return [chance.randint(1, 20) for _ in range(chance.randint(2, 12))]
    return [chance.randint(100, 250) if chance.random() < 0.05 else chance.randint(1, 50)]


def judge(book: Book, oracle: Oracle, batch: Batch, reply: Reply) -> bool:
    """Was it acknowledged?"""
    if isinstance(reply, Failure):
        if reply.code not in AGAIN:
            book.finding(f"{batch} was answered {reply}")
        return False
    assert isinstance(reply, Ingested)
    told, known = (reply.accepted, reply.duplicates, reply.rejected), (0, batch.count, 0)
    if batch.generation:
        if told != known and not oracle.look().may_be_gone(batch):
            book.finding(f"{batch} was forgotten: {reply}")
        return True
    if told not in ((batch.count, 0, 0), known):
        book.finding(f"{batch} was half there: {reply}")
    book.acknowledge(batch, reply.generation)
    return True


def main(data_dir: Path, path: Path, seed: int, events_per_s: float) -> int:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    oracle = Oracle(path).look()
    first = oracle.next
    book, chance, left = Book(path), random.Random(seed * 1_000_003 + first), list[Batch]()
    stopped_s = 0.0
    with Client.for_data_dir(data_dir, timeout_ms=TIMEOUT_MS, client_name="writer") as client:
        while left or not stopping.is_set():
            if stopping.is_set():
                stopped_s = stopped_s or time.monotonic()
                if time.monotonic() - stopped_s > LAST_S:
                    book.finding(f"not acknowledged within {LAST_S} s: {left}")
                    return 1
            if not left:
                if oracle.acknowledged and chance.random() < AGAIN_SHARE:
                    book.send_again(batch := chance.choice(oracle.acknowledged))
                    if not oracle.look().may_be_gone(batch):
                        left.append(batch)
                for count in sizes(chance):
                    left.append(Batch(first, count))
                    book.send(left[-1])
                    first += count
                oracle.look()
                stopping.wait(chance.expovariate(events_per_s / sum(batch.count for batch in left)))
            makes = [
                calls.ingest("ndjson", [sent(n) for n in range(b.first, b.first + b.count)], source="torture").make
                for b in left
            ]
            asked, failed = list(left), False
            try:
                for batch, reply in zip(asked, client.pipeline(makes), strict=True):
                    if judge(book, oracle, batch, reply):
                        left.remove(batch)
                    else:
                        failed = True
            except ClientError as e:
                failed = True
                if not isinstance(e, ConnectError) and e.code not in AGAIN:
                    book.finding(f"{left[0]} ended in {e!r}")
                client.close()
            if failed:
                threading.Event().wait(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
