"""What a reader sees of a damaged directory, held against what is known of it.

Wrong is a record, a distance, an annotation or a word that differs from what is known, whatever else is said. Missing
is what is not there although nobody says why. Said is what an error or the log says.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from engine.embed.base import ModelSet
from engine.errors import EngineError
from engine.layout import Layout
from engine.search.query import Answering, stored_question
from engine.search.snapshot import Snapshot, Snapshots
from engine.store import dead_letters
from engine.store.catalog import Catalog, View
from engine.store.memo import load_models
from ipc.event import Annotation, Event
from tests.heard import heard
from tests.scrub.store import ASKED, MAP_BYTES, WAYS, Known
from tests.wait import eventually


class Seen(Struct):
    wrong: list[str] = []
    missing: list[str] = []
    said: list[str] = []

    @property
    def whole(self) -> bool:
        return not (self.wrong or self.missing or self.said)


def look(data_dir: Path, known: Known) -> Seen:
    """As a reader does that starts now. It may be killed by what it finds."""
    seen = Seen()
    with heard() as said:
        try:
            _look(Layout(data_dir), known, seen)
        except (EngineError, OSError) as e:
            seen.said.append(f"refused: {type(e).__name__}: {e}")
    seen.said += said
    return seen


def _look(layout: Layout, known: Known, seen: Seen) -> None:
    catalog = Catalog(layout.catalog, write=False, map_size=MAP_BYTES)
    snapshots = Snapshots(layout)
    try:
        snapshot, models = _opened(layout, catalog, snapshots)
        with catalog.read() as view:
            if snapshot.count != len(known.records):
                seen.wrong.append(f"{snapshot.count} events")
            for seq in range(snapshot.first_seq, min(snapshot.count, len(known.records))):
                _record(view, seq, known, seen)
            for name in ASKED:
                for way in WAYS:
                    _answer(snapshot, models, view, name, way, known, seen)
            for source, state in known.offsets.items():
                try:
                    found = view.get("offsets", source.encode())
                except EngineError as e:
                    seen.said.append(str(e))
                    continue
                if found is None:
                    seen.missing.append(f"offset of {source!r}")
                elif bytes(found) != state:
                    seen.wrong.append(f"offset of {source!r}")
        _letters(layout, known, seen)
    finally:
        snapshots.close()
        catalog.close()


def _opened(layout: Layout, catalog: Catalog, snapshots: Snapshots) -> tuple[Snapshot, ModelSet]:
    def refreshed() -> Snapshot | None:
        try:
            with catalog.read() as view:
                snapshot = snapshots.refresh(view)
        except FileNotFoundError:  # as engine/reader.py: the newest manifest may name another
            with catalog.read() as view:
                snapshot = snapshots.refresh(view)
        return None if snapshots.opening() else snapshot

    snapshot = eventually(refreshed, within_s=20)
    return snapshot, load_models(layout.model(snapshot.manifest.model), catalog, [])


def _record(view: View, seq: int, known: Known, seen: Seen) -> None:
    head, features, raw, note = known.records[seq]
    try:
        if view.find(known.names[seq]) not in (seq, None):
            seen.wrong.append(f"{known.names[seq]} is another event")
        if view.find(known.names[seq]) is None:
            seen.missing.append(f"identity of {seq}")
    except EngineError as e:
        seen.said.append(str(e))
    try:
        record = view.record(seq)
        if record is None:
            seen.missing.append(f"record {seq}")
        elif (record.head, record.features, record.raw) != (head, features, raw):
            seen.wrong.append(f"record {seq}")
    except EngineError as e:
        seen.said.append(str(e))
    try:
        found = view.annotation_bytes(seq) or b""
        if found != note:
            (seen.wrong if found else seen.missing).append(f"annotation of {seq}")
    except EngineError as e:
        seen.said.append(str(e))


def _answer(
    snapshot: Snapshot, models: ModelSet, view: View, name: str, way: str, known: Known, seen: Seen
) -> None:  # fmt: skip
    what = f"{name} {way}"
    try:
        question = stored_question(name, WAYS[way], snapshot, view, models)
        (answer,) = Answering(snapshot, models, view).answer([question])
        if isinstance(answer, Exception):
            raise answer
    except EngineError as e:
        seen.said.append(f"{what}: {e}")
        return
    found = [(hit.seq, hit.distance) for hit in answer.hits]
    for hit in answer.hits:
        head, _, _, note = known.records[hit.seq]
        if hit.distance != known.distances[what][hit.seq]:
            right = known.distances[what][hit.seq]
            seen.wrong.append(f"{what}: distance of {hit.seq} is {hit.distance}, not {right}")
        if bytes(hit.event) != head:
            seen.wrong.append(f"{what}: event {hit.seq}")
        if hit.annotation is not None and bytes(hit.annotation) != note:
            seen.wrong.append(f"{what}: annotation of {hit.seq}")
        if way == "filtered" and msgspec.msgpack.decode(head, type=Event).family != "C2":
            seen.wrong.append(f"{what}: {hit.seq} does not pass the filter")
        if way == "labelled" and msgspec.msgpack.decode(note, type=Annotation).label != "odd":
            seen.wrong.append(f"{what}: {hit.seq} does not pass the filter")
    if found != known.answers[what]:
        seen.missing.append(f"{what}: {len(set(known.answers[what]) - set(found))} hits")


def _letters(layout: Layout, known: Known, seen: Seen) -> None:
    if layout.dead_letters.exists() and not layout.dead_letters.stat().st_size:  # as one that was rotated
        return
    try:
        found = [letter.line().decode().rstrip("\n") for letter in dead_letters.newest(layout.dead_letters)][::-1]
    except OSError as e:
        seen.said.append(str(e))
        return
    if set(found) - set(known.letters):
        seen.wrong.append("dead letters")
    elif found != known.letters:
        seen.missing.append("dead letters")
