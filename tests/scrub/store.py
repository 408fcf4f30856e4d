"""The directory that is damaged, and what is known of it: every record, and the distance of every event to some."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from engine.embed.base import FUSED, SPACES
from engine.embed.models import load
from engine.layout import Layout
from engine.search.query import Answering, stored_question
from engine.search.snapshot import Snapshots
from engine.sources.follow import FileState
from engine.store import gc
from engine.store.catalog import Catalog
from engine.store.publish import Submission
from ipc.event import FeaturedEvent
from ipc.messages import Filter, Options, Reject
from tests.events import blocked, make, several
from tests.store_fixture import Store, other_model
from tests.wait import eventually

EVENTS = 350  # five full row files and one that is written to
ASKED = ("e000003", "e000129", "e000340")
LABELLED = range(0, EVENTS, 17)
MAP_BYTES = 1 << 30
ALL = 1_000  # top_k that leaves nobody out
WAYS = {
    **{space: Options(space=space, top_k=10) for space in (*SPACES, FUSED)},
    "every": Options(space="attack", top_k=ALL, collapse=False),
    "filtered": Options(space="chronos", top_k=20, collapse=False, filter=Filter(families=["C2"])),
    "labelled": Options(space="sbert", top_k=20, collapse=False, filter=Filter(labels=["odd"])),
}


class Known(Struct):
    """records: head, features, raw and annotation of each event, by seq. answers: to each question in each way, (seq,
    distance) of the hits. distances: the same to every event; of those that a filter leaves out none is known."""

    records: list[tuple[bytes, bytes, bytes, bytes]]
    names: list[str]
    answers: dict[str, list[tuple[int, float]]]
    distances: dict[str, dict[int, float]]
    letters: list[str]
    offsets: dict[str, bytes]


def build(data_dir: Path) -> Known:
    """Make it, closed as a clean stop leaves it; what is known of it."""
    with Store(data_dir) as store:
        store.publish(items()[:200], actions=[blocked(7), blocked(90), blocked(9_000)])
        state = FileState("ab" * 16, 64, 7, 4_096, "eve.json")
        store.publish(items()[200:], {b"eve\0log": msgspec.msgpack.encode(state)})
        rejects = [Reject("eve.json", n, f"not JSON: {n}", bytes([n]) * 40) for n in range(12)]
        store.publisher.publish([Submission("eve", [], rejects, lambda outcome: None, {}, "eve")])
        for seq in LABELLED:
            store.publisher.annotate(f"e{seq:06d}", "odd" if seq % 2 else "plain", "ann")
        store.index()
        store.merge()
        gc.collect(store.layout, store.publisher.manifest)
        other_model(store.layout)
        store.publisher.know_cards()
        store.publisher.checkpoint()
    return known(data_dir)


def items() -> list[FeaturedEvent]:
    """Some with a source record, some of these larger than a page of the catalog."""
    return [
        FeaturedEvent(item.event, item.features, raw(seq)) if seq % 3 else item
        for seq, item in enumerate(several(EVENTS))
    ]


def raw(seq: int) -> bytes:
    return (b"record %d " % seq) + b"".join(b"%x" % (seq * n * n) for n in range(2_000 if seq % 50 == 1 else 20))


def known(data_dir: Path) -> Known:
    layout = Layout(data_dir)
    catalog = Catalog(layout.catalog, write=False, map_size=MAP_BYTES)
    snapshots = Snapshots(layout)
    try:
        with catalog.read() as view:
            snapshots.refresh(view)
        eventually(lambda: snapshots.opening() == 0 or all(f.done() for f in snapshots._opening.values()))
        with catalog.read() as view:
            snapshot = snapshots.refresh(view)
            models = load(layout.model(snapshot.manifest.model))
            records = []
            for seq in range(snapshot.first_seq, snapshot.count):
                record = view.record(seq)
                assert record is not None
                records.append((record.head, record.features, record.raw, view.annotation_bytes(seq) or b""))
            answers, distances = {}, {}
            answering = Answering(snapshot, models, view)
            for name in ASKED:
                for way, options in WAYS.items():
                    question = stored_question(name, options, snapshot, view, models)
                    (answer,) = answering.answer([question])
                    assert not isinstance(answer, Exception), answer
                    answers[f"{name} {way}"] = [(hit.seq, hit.distance) for hit in answer.hits]
                    everybody = msgspec.structs.replace(options, top_k=ALL, collapse=False, filter=None)
                    (answer,) = answering.answer([msgspec.structs.replace(question, options=everybody)])
                    assert not isinstance(answer, Exception), answer
                    distances[f"{name} {way}"] = {hit.seq: hit.distance for hit in answer.hits}
            offsets = {bytes(k).decode(): bytes(v) for k, v in view.scan("offsets")}
    finally:
        snapshots.close()
        catalog.close()
    names = [make(seq).event.event_id for seq in range(EVENTS)]
    letters = layout.dead_letters.read_text().splitlines()
    return Known(records, names, answers, distances, letters, offsets)
