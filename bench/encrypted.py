"""What encryption costs a record: `python -m bench.encrypted [--records 20000] [--rounds 7]`.

Synthetic events with texts and a source record, as they are stored, go into two catalogs of this process in turns, one
with a key and one without; nothing is synced. put: a record in a commit of 1,024, the commit included; head: the event
of a drawn seq, as an answer needs it; record: with features and source record. Each is us of CPU a record, the median
of the rounds; bytes: of the values, a record.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import zstandard

from bench.harness import arguments, report, synthetic
from engine.sources.ndjson import dump
from engine.store.catalog import Catalog, seq_key
from engine.store.cipher import Cipher
from engine.store.record import join_record

COMMIT_RECORDS = 1_024
VIEW_RECORDS = 64  # read in one transaction


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--records", type=int, default=20_000)
    parse.add_argument("--rounds", type=int, default=7)
    parse.add_argument("--seed", type=int, default=7)
    args = parse.parse_args()
    encode, compress = msgspec.msgpack.Encoder().encode, zstandard.ZstdCompressor(level=1).compress
    items = [
        (seq_key(seq), join_record(encode(item.event), item.features, compress(item.raw or dump(item.event, None))))
        for seq, item in enumerate(synthetic(args.records, args.seed, texts=True))
    ]
    rng = np.random.default_rng(args.seed)
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in ("plain", "encrypted")}
    sizes: dict[str, float] = {}
    for _ in range(args.rounds):
        for name, figures in taken.items():
            with tempfile.TemporaryDirectory() as folder:
                cipher = Cipher(os.urandom(32)) if name == "encrypted" else None
                catalog = Catalog(Path(folder), write=True, map_size=1 << 32, durability="meta", cipher=cipher)
                catalog.env.sync(True)
                for what, us in _round(catalog, items, rng.permutation(args.records).tolist()).items():
                    figures.setdefault(what, []).append(us)
                with catalog.read() as view:
                    values = (len(value) for _, value in view.txn.cursor(catalog.tables["records"]))
                    sizes[name] = round(sum(values) / args.records, 1)
                catalog.close()
    out: dict[str, Any] = {
        name: {what: round(median(us), 2) for what, us in figures.items()} | {"bytes": sizes[name]}
        for name, figures in taken.items()
    }
    out["more"] = {what: round(out["encrypted"][what] - us, 2) for what, us in out["plain"].items()}
    return report("encrypted", args, out)


def _round(catalog: Catalog, items: list[tuple[bytes, bytes]], seqs: list[int]) -> dict[str, float]:
    def put() -> None:
        for lo in range(0, len(items), COMMIT_RECORDS):
            with catalog.write() as batch:
                batch.put_new("records", items[lo : lo + COMMIT_RECORDS], append=True)

    def head() -> None:
        for lo in range(0, len(seqs), VIEW_RECORDS):
            with catalog.read() as view:
                for seq in seqs[lo : lo + VIEW_RECORDS]:
                    view.head(seq)

    def record() -> None:
        for lo in range(0, len(seqs), VIEW_RECORDS):
            with catalog.read() as view:
                for seq in seqs[lo : lo + VIEW_RECORDS]:
                    view.record(seq)

    return {step.__name__: _us_each(step, len(items)) for step in (put, head, record)}


def _us_each(step: Callable[[], None], count: int) -> float:
    start_s = time.process_time()
    step()
    return (time.process_time() - start_s) / count * 1e6


if __name__ == "__main__":
    sys.exit(main())
