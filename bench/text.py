"""The text space on event sentences: `python -m bench.text [--only cic eve] [--events N] [--readers 2]`.

sentences: of every stream, in its own order, distinct sentences as events come in ("curve": events, sentences), and the
share of events whose sentence was there before, which is what a memo answers.
speed: new texts a second of the shipped runtime on one core (CPU seconds of one thread) and as it runs here ("wall":
two side by side; other load shows), at most --texts of each stream, by the number of their tokens, too. The best
of three passes, in a process that has no torch.
quality: against the original (the same weights in float32 on torch, by sentence-transformers): cosine, and the share of
each sentence's ten nearest among the stream's distinct sentences that the original has, too. free: free texts alone.
search: `search_text` through the socket with --readers over --events synthetic events, one client a reader in turn:
"new" texts that no memo knows, and "known", the same once more.
Without ../shared/data only what needs no real data is measured.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from bench.harness import Child, ChildSide, arguments, engine, fill, percentiles_ms, report, settle, synthetic
from bench.ingest import completed, memory_mib, parsed, sorted_events, streams
from bench.quality.data import SETS, SHARED, load
from engine.config import CIDRS_INTERNAL
from engine.embed.base import F32
from engine.embed.sentence import normalised, sentence
from engine.embed.text import TextModel
from engine.features import unpack
from ipc.event import FeaturedEvent

CURVE = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
PASSES = 3
TOKENS = (16, 32, 64, 128, 256)  # bounds of the classes
NEIGHBOURS = 10
GENERATED = 20_000


def said(only: Sequence[str], seed: int) -> Iterator[tuple[str, list[str], list[str]]]:
    """(name, sentences in order, free texts) of every stream; cic_normal: the benign flows of cic alone, the most
    various ones."""
    for name, stream in streams(GENERATED, seed):
        if name != "synthetic" and (not only or {name, f"{name}_normal"} & set(only)):
            items = completed(sorted_events(parsed(stream, GENERATED, seed)))
            yield name, sentences(items, CIDRS_INTERNAL), texts(items)
            if name == "cic":
                normal = [item for item in items if item.event.classification == "BENIGN"]
                yield f"{name}_normal", sentences(normal, CIDRS_INTERNAL), []
    for name in ("cse_cic_ids2018", "iot23", "unsw_nb15", "lab"):
        if (not only or name in only) and (name == "lab" or any(SHARED.glob(SETS[name].pattern))):
            of = load(name)
            yield name, sentences(of.items, of.internal), texts(of.items)


def sentences(items: Sequence[FeaturedEvent], internal: Sequence[str]) -> list[str]:
    rows = unpack([item.features for item in items])
    return [sentence(item.event, row, tuple(internal)) for item, row in zip(items, rows, strict=True)]


def texts(items: Sequence[FeaturedEvent]) -> list[str]:
    """The distinct free texts, as the sentences say them."""
    return list(dict.fromkeys(normalised(item.event.text) for item in items if item.event.text))


def variety(of: Sequence[str]) -> dict[str, Any]:
    """How many sentences there are after so many events, and what a memo answers of all."""
    seen: set[str] = set()
    curve: list[list[int]] = []
    for i, text in enumerate(of, 1):
        seen.add(text)
        if i in CURVE or i == len(of):
            curve.append([i, len(seen)])
    return {
        "events": len(of),
        "distinct": len(seen),
        "memo_hit_share": round(1 - len(seen) / len(of), 4),
        "curve": curve,
    }


def speed(of: Sequence[str]) -> dict[str, Any]:
    """New texts a second; by_tokens: on one core, "32" for 17 to 32 tokens."""
    model = TextModel()
    model.load()
    tokens = np.array([len(model.tokens(text)[0]) for text in of])
    cpu_s = np.full(len(of), np.inf)
    wall_s = np.inf
    for _ in range(PASSES):
        for i, text in enumerate(of):
            since_s = time.thread_time()
            model.embed_texts([text])
            cpu_s[i] = min(cpu_s[i], time.thread_time() - since_s)
        since_s = time.perf_counter()
        model.embed_texts(of)
        wall_s = min(wall_s, time.perf_counter() - since_s)
    by_tokens, low = {}, 0
    for high in TOKENS:
        if (chosen := (tokens > low) & (tokens <= high)).any():
            by_tokens[str(high)] = round(chosen.sum() / cpu_s[chosen].sum())
        low = high
    return {
        "texts": len(of), "tokens_mean": round(float(tokens.mean()), 1), "per_s_core": round(len(of) / cpu_s.sum()),
        "per_s_wall": round(len(of) / wall_s), "by_tokens": by_tokens, "rss_mib_max": memory_mib("VmHWM"),
    }  # fmt: skip


def nearest(vectors: F32) -> list[set[int]]:
    """Of each its NEIGHBOURS nearest others."""
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    return [set(row) for row in np.argsort(-cosine, axis=1, kind="stable")[:, :NEIGHBOURS].tolist()]


def quality(of: Sequence[str], original: Any) -> dict[str, Any]:
    ours = TextModel().embed_texts(of)
    theirs = np.asarray(original.encode(list(of), normalize_embeddings=True, show_progress_bar=False), np.float32)
    cosine = (ours * theirs).sum(axis=1)
    both = [len(a & b) / NEIGHBOURS for a, b in zip(nearest(ours), nearest(theirs), strict=True)]
    return {
        "texts": len(of), "cosine_mean": round(float(cosine.mean()), 4), "cosine_min": round(float(cosine.min()), 4),
        "top10_overlap": round(float(np.mean(both)), 4),
    }  # fmt: skip


def original() -> Any:
    """all-MiniLM-L6-v2 as it was published, in float32."""
    from sentence_transformers import SentenceTransformer

    from engine.embed.export import source_dir

    return SentenceTransformer(str(source_dir()), device="cpu")


def search(events: int, readers: int, queries: int, seed: int) -> dict[str, Any]:
    """p50 and p99 of search_text from a client's call to its answer."""
    free = texts(completed(list(synthetic(GENERATED, seed + 1, texts=True))))
    asked = [f"{text} seen {i} times" for i, text in enumerate(random.Random(seed).sample(free, queries))]
    with engine(readers) as running, ExitStack() as stack:
        fill(running, synthetic(events, seed, texts=False), events)
        settle(running)
        clients = [stack.enter_context(running.client()) for _ in range(readers)]
        for client in clients:  # opened one after the other, so each has a reader of its own
            client.search_text("dns query to an external server")
        took: dict[str, list[float]] = {"new": [], "known": []}
        for i, text in enumerate(asked):
            for kind in took:
                since_s = time.perf_counter()
                clients[i % readers].search_text(text)
                took[kind].append(time.perf_counter() - since_s)
    return {kind: percentiles_ms(latency_s) for kind, latency_s in took.items()}


def child() -> int:
    side = ChildSide()
    side.ready()
    side.done(speed(side.job["texts"]))
    return 0


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--only", nargs="+", default=[], help="these streams: cic eve pcap zeek ndjson lab ...")
    parse.add_argument("--texts", type=int, default=300, help="of each stream at most, for speed")
    parse.add_argument("--quality-texts", type=int, default=1_000, help="of each stream at most; 0: no comparison")
    parse.add_argument("--events", type=int, default=20_000, help="of the engine that is searched; 0: no search")
    parse.add_argument("--readers", type=int, default=2)
    parse.add_argument("--queries", type=int, default=500)
    parse.add_argument("--seed", type=int, default=7)
    args = parse.parse_args()
    if args.child:
        return child()
    rng = random.Random(args.seed)
    figures: dict[str, Any] = {}
    spoken: dict[str, list[str]] = {}
    for name, of, free in said(args.only, args.seed):
        figures[name] = variety(of)
        spoken[name] = list(dict.fromkeys(of))
        if len(free) > NEIGHBOURS:
            spoken[f"{name}_free"] = free
        gc.collect()
    for name, distinct in spoken.items():
        job = {"texts": rng.sample(distinct, min(len(distinct), args.texts))}
        figures.setdefault(name, {})["speed"] = Child("bench.text", job).result()
    if args.events:
        figures["search"] = search(args.events, args.readers, args.queries, args.seed)
    if args.quality_texts:
        reference = original()
        for name, distinct in spoken.items():
            chosen = rng.sample(distinct, min(len(distinct), args.quality_texts))
            figures[name]["quality"] = quality(chosen, reference)
    return report("text", args, figures)


if __name__ == "__main__":
    sys.exit(main())
