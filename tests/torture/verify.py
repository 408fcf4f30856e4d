"""The end: what a stopped engine left, from the bytes on disk to the oracle's last line."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from engine.store import dead_letters, index
from engine.store.rows import RowMap
from ipc.event import Event
from ipc.messages import Stored
from tests.engine_fixture import cli
from tests.heard import heard
from tests.store_fixture import ROWS, Store
from tests.torture.faults import Faults
from tests.torture.oracle import FOLLOWED, MARKERS, difference, number_of, spoiled


def verify(faults: Faults) -> tuple[list[str], dict[str, int]]:
    """What is wrong, and figures of what is there. The engine has stopped."""
    data_dir = faults.data_dir
    key = {"FLOWKIN_STORE__KEY_FILE": str(faults.key_file)} if faults.key_file else {}
    looked = cli("doctor", "--deep", "--json", data_dir=data_dir, env=key)
    findings = [] if looked.returncode == 0 else [f"doctor: {looked.stdout}{looked.stderr}"]
    with heard() as said, Store(data_dir, faults.key_file) as store:
        findings += _stored(store, faults)
        findings += _files(store)
        findings += _letters(store, faults)
        try:
            store.check()  # every row is what its record gives, counts and identities agree
        except AssertionError as e:
            findings.append(f"the store does not agree with itself: {e}")
        manifest = store.publisher.manifest
    findings += in_clear(data_dir, encrypted=faults.key_file is not None)
    figures = {
        "events": manifest.events,
        "left": manifest.first_seq,
        "generation": manifest.generation,
        "indexes": len(manifest.indexes),
        "letters": faults.spoiled,
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


def _letters(store: Store, faults: Faults) -> Iterator[str]:
    """Each line that is no event, once."""
    path = store.layout.dead_letters
    found = Counter(letter.data for letter in dead_letters.newest(path, store.catalog.cipher)) if path.exists() else {}
    wanted = {spoiled(number).rstrip(): 1 for number in range(faults.spoiled)}
    if found != wanted:
        differ = {data: found.get(data, 0) for data in {*found, *wanted} if found.get(data) != wanted.get(data)}
        yield f"dead letters of lines that are no event, instead of once: {differ}"


def in_clear(data_dir: Path, *, encrypted: bool) -> Iterator[str]:
    """No words of an event or a dead letter in any byte, as they are or in base64, where they are encrypted; or else
    they are there, and would have been found."""
    words, found = [form for marker in MARKERS for form in (marker, *_in_base64(marker))], set[str]()
    for path in data_dir.rglob("*"):
        name = path.relative_to(data_dir).as_posix()
        if path.is_file() and not name.startswith(("models/", "run/")):
            data = path.read_bytes()
            found |= {name for word in words if word in data}
    if encrypted and found:
        yield f"encrypted, and texts of events are in the clear in {sorted(found)}"
    letters = data_dir / "dead_letters.ndjson"
    for name in ("catalog/catalog", *((letters.name,) if letters.exists() else ())):
        if not encrypted and not any(other.startswith(name) for other in found):
            yield f"not encrypted, and no text of an event is found in {name}"


def _in_base64(words: bytes) -> list[bytes]:
    """What base64 makes of them behind 0, 1 and 2 bytes of other words."""
    return [
        base64.b64encode(bytes(before) + words)[(0, 2, 3)[before] : (before + len(words)) * 8 // 6]
        for before in range(3)
    ]
