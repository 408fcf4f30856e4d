"""The end: what a stopped engine left, from the bytes on disk to the oracle's last line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec
import numpy as np

from engine import index
from engine.rows import RowMap
from ipc.event import Event
from ipc.messages import Stored
from tests.engine_fixture import cli
from tests.heard import heard
from tests.store_fixture import ROWS, Store
from tests.torture.faults import Faults
from tests.torture.oracle import FOLLOWED, difference, number_of


def verify(faults: Faults) -> tuple[list[str], dict[str, int]]:
    """What is wrong, and figures of what is there. The engine has stopped."""
    data_dir = faults.data_dir
    looked = cli("doctor", "--deep", "--json", data_dir=data_dir)
    findings = [] if looked.returncode == 0 else [f"doctor: {looked.stdout}{looked.stderr}"]
    with heard() as said, Store(data_dir) as store:
        findings += _stored(store, faults)
        findings += _files(store)
        try:
            store.check()  # every row is what its record gives, counts and identities agree
        except AssertionError as e:
            findings.append(f"the store does not agree with itself: {e}")
        manifest = store.publisher.manifest
    figures = {
        "events": manifest.events,
        "left": manifest.first_seq,
        "generation": manifest.generation,
        "indexes": len(manifest.indexes),
    }
    return findings + [f"after a clean stop: {words}" for words in said], figures


def _stored(store: Store, faults: Faults) -> Iterator[str]:
    numbers = Counter[int]()
    with store.catalog.read() as view:
        for seq, record in view.records(store.publisher.manifest.first_seq, 1 << 40):
            event = msgspec.msgpack.decode(record.head, type=Event)
            numbers[number_of(event.event_id)] += 1
            if wrong := difference(Stored(seq, event, None, record.features, record.raw), whole=True):
                yield wrong
        yield from _labels(view, faults)
    if twice := [n for n, times in numbers.items() if times > 1]:
        yield f"twice: {twice}"
    oracle = faults.oracle.look()
    yield from oracle.broken(set(numbers), oracle.acknowledged, oracle.purged, retains=oracle.retains)
    sent = {n for batch in oracle.batches.values() for n in range(batch.first, batch.first + batch.count)}
    lines = set(range(FOLLOWED, FOLLOWED + faults.lines))
    oldest = min(lines & set(numbers), default=1 << 62) if oracle.retains else 0
    if lost := {number for number in lines - set(numbers) if number > oldest}:
        yield f"lost: {len(lost)} lines of the followed file, {sorted(lost)[:20]}"
    if never := set(numbers) - sent - lines:
        yield f"never sent: {sorted(never)[:20]}"


def _labels(view, faults: Faults) -> Iterator[str]:  # type: ignore[no-untyped-def]
    """In the order in which they were said, each once; one without a reply may be missing."""
    said: dict[str, list[tuple[str, bool]]] = {}
    for name, label, acknowledged in faults.labels:
        said.setdefault(name, []).append((label, acknowledged))
    for name, labels in said.items():
        seq = view.find(name)
        if seq is None and faults.oracle.may_be_gone(faults.oracle.batch_of(number_of(name))):
            continue
        annotation = None if seq is None else view.annotation(seq)
        history = [] if annotation is None else [value for _, _, _, value in annotation.history]
        if len(set(history)) != len(history) or not set(history) <= {label for label, _ in labels}:
            yield f"labels of {name}: {history}, said was {labels}"
        if lost := [label for label, acknowledged in labels if acknowledged and label not in history]:
            yield f"lost: labels {lost} of {name}"
        if history and annotation.label != history[-1]:
            yield f"label of {name} is {annotation.label}, its history {history}"


def _files(store: Store) -> Iterator[str]:
    manifest = store.publisher.manifest
    sealed = {s.number: s.checksum for s in manifest.sealed}
    for number in manifest.numbers:
        rows = RowMap(store.layout.row_file(*manifest.row_file(number)), number, ROWS)
        stored = min(ROWS, manifest.count - number * ROWS)
        if rows.bad_rows(stored) or not all(np.isfinite(v[:stored]).all() for v in rows.vectors.values()):
            yield f"rows of {rows.path.name} are damaged or not finite"
        if number in sealed and rows.checksum() != sealed[number]:
            yield f"{rows.path.name} disagrees with its checksum"
    for one in manifest.indexes:
        if index.checksum(store.layout.index_file(one.file)) != one.checksum:
            yield f"index {one.file} disagrees with its checksum"
