"""Every failpoint there is: a process killed there, and one whose disk fails there (engine/failpoint.py).

Always true
  - What was acknowledged is there, once. What was under way is there whole or not at all: events, dead letters, what
    was said of events, and answers are those of a run that met no fault, before that step or after it.
  - Generations only grow; a start leaves nothing that nothing names; the rest of the steps ends where that run ended.
A new point of a known area is found by itself; a new area needs its steps here."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import msgspec
import pytest

from engine.failpoint import POINTS
from engine.maintain import backup
from engine.store import dead_letters, gc
from engine.store.rows import RowMap
from ipc.event import Event
from tests.engine_fixture import shape
from tests.process.steps import Forked, Steps
from tests.store_fixture import ROWS, Store, closed

SEND = ("send:150:200", "send:350:20")  # the first into three more row files
SWITCH = ("begin", "send:150:200", "go_on", "send:350:30", "go_on", "go_on", "finish", "index", "merge")
AREAS = {  # the part of a name before its dot: steps on a store of 150 events that come by all of its points
    "letters": SEND,
    "row_file": SEND,
    "publish": SEND,
    "label": ("label:3:benign", "send:150:20", "label:3:malicious"),
    "index": ("send:150:200", "index", "merge", "send:350:20"),
    "rows": ("harm", "send:150:20"),
    "model": SWITCH,
    "backup": ("create:a", "delete:a", "create:b"),
    "restore": ("create:a", "restore:a"),
    "leave": ("send:150:250", "leave:4", "send:400:20"),
    "purge": ("publish:150:200", "label:200:benign", "purge:200:210", "publish:350:20"),  # of one row file: one round
    "compact": ("send:150:200", "leave:2", "compact", "send:350:20"),
    "migrate": ("send:150:200", "migrate:a", "migrate:b", "send:350:20", "migrate:plain"),
}
AGAIN = {  # the same point, come by later: another row file, a merge, a publish in a switch
    "publish": ["publish.appended:2", "publish.appended:4", "row_file.created:2"],
    "label": ["label.committed:2"],
    "index": ["index.built:4", "index.committed:4"],  # of a merge
    "model": ["model.both:2", "model.filled:3", "model.advanced:3", "publish.appended:5", "publish.bumped:4",
              "publish.committed:2"],
    "backup": ["backup.file:4", "backup.file:9"],
    "restore": ["restore.file:15"],
    "leave": ["leave.swept:3", "leave.swept:4"],
    "migrate": ["migrate.step:2", "migrate.step:9", "migrate.placed:2", "migrate.named:3", "migrate.settled:2"],
}  # fmt: skip
PROCESSES = 2
ASKED = ["e000003", "e000070", "e000129", "e000201", "e000390"]


class Case(NamedTuple):
    area: str
    point: str
    error: str = ""  # "": killed

    @property
    def armed(self) -> str:
        return self.point + (f"={self.error}" if self.error else "")


def cases() -> Iterator[Case]:
    for point, of in POINTS.items():
        area = point.partition(".")[0]
        yield from (Case(area, point, error) for error in ("", *of.errors))
    yield from (Case(area, point) for area, again in AGAIN.items() for point in again)


def seen(store: Store) -> dict[str, Any]:
    """All that anybody was told, or may ask for."""
    publisher, said = store.publisher, {}
    with store.catalog.read() as view:
        left = view.records(publisher.manifest.first_seq, 1 << 40)
        records = [(seq, bytes(r.head), r.features, bytes(r.raw)) for seq, r in left]
        for seq, *_ in records:
            if (annotation := view.annotation(seq)) is not None:
                said[seq] = (annotation.label, annotation.firewall_action, annotation.firewall_ts,
                             [value for *_, value in annotation.history])  # fmt: skip
        offset = bytes(view.get("offsets", b"file") or b"")
    counters, there = publisher.counters, set(store.ids())
    letters = store.layout.dead_letters  # what lies past the counted bytes is none, and is overwritten
    lines = letters.read_bytes()[: counters.letter_bytes].splitlines() if letters.exists() else []
    return {
        "records": records, "said": said, "offset": offset, "model": publisher.manifest.model,
        "waiting": sorted(msgspec.json.encode((w.action, w.met)) for w in publisher.actions.waiting.values()),
        "counted": (counters.actions_joined, counters.actions_waiting, counters.families, counters.record_bytes,
                    {name: (c.events, c.rejected) for name, c in counters.sources.items()}),
        "letters": {name: sum(t.count for t in tallies.values()) for name, tallies in publisher.letters.items()},
        "kept letters": [msgspec.json.decode(line, type=dead_letters.Line).offset for line in lines],
        "answers": [shape(store.ask(name, top_k=20, collapse=False)) for name in ASKED if name in there],
    }  # fmt: skip


def whole(store: Store) -> dict[str, Any]:
    """As `seen`, of a store that agrees with itself and whose directory holds nothing else."""
    manifest, layout = store.publisher.manifest, store.layout
    store.check()
    catalog = store.catalog.path.name
    assert {path.name for path in layout.catalog.iterdir()} == {"CURRENT", catalog, f"{catalog}-lock"}
    assert not layout.migrating.exists() and not layout.letters_beside()
    there = {path.name for folder in (layout.rows, layout.indexes) for path in folder.iterdir()}
    assert there <= gc.named(layout, manifest)
    assert {i.file for i in manifest.indexes} <= there
    assert {p.name for p in layout.models.iterdir()} <= {manifest.model, "v0-other", "v1"} | {
        kept.model for kept in (manifest.kept,) if kept
    }
    for sealed in manifest.sealed:
        assert RowMap(layout.row_file(*manifest.row_file(sealed.number)), sealed.number, ROWS).checksum() == (
            sealed.checksum
        )
    found = seen(store)
    names = [msgspec.msgpack.decode(head, type=Event).event_id for _, head, *_ in found["records"]]
    assert len(set(names)) == len(names)
    return found


def backups(to: Steps) -> list[str]:
    """Those that are there, each of them whole."""
    for name in (names := list(to.backups())):
        assert [f for f in backup.verify(to.home / name) if f.severity != "ok"] == []
    return names


@pytest.fixture(scope="module")
def born(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return closed(tmp_path_factory.mktemp("born") / "data")


@pytest.fixture(scope="module")
def unharmed(born: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """unharmed(steps) -> what is seen before the first step, after it, and so on, where nothing goes wrong."""

    @cache
    def run(steps: tuple[str, ...]) -> list[dict[str, Any]]:
        data_dir = tmp_path_factory.mktemp("unharmed") / "data"
        shutil.copytree(born, data_dir)
        with Steps(data_dir) as to:
            states = [seen(to.store)]
            for step in steps:
                to.do(step)
                states.append(seen(to.store))
        return states

    return run


@pytest.fixture(scope="module")
def died(born: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """case -> a future of its folder and its process, which has ended. They run beside the tests that look at them."""

    def run(case: Case) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = tmp_path_factory.mktemp("died")
        shutil.copytree(born, folder / "data")
        forked = idle.get()
        try:
            return folder, forked.run(folder / "data", AREAS[case.area], case.armed)
        finally:
            idle.put(forked)

    chosen = [
        item.callspec.params["case"] for item in request.session.items if "died" in getattr(item, "fixturenames", ())
    ]  # type: ignore[attr-defined]
    idle = SimpleQueue[Forked]()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(PROCESSES) as pool:
        for _ in range(min(PROCESSES, len(chosen))):
            idle.put(stack.enter_context(Forked()))
        yield {case: pool.submit(run, case) for case in chosen}


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.armed)
def test_at_every_failpoint(unharmed, died, case: Case, record_property) -> None:  # type: ignore[no-untyped-def]
    record_property("disk errors" if case.error else "kills", 1)
    steps = AREAS[case.area]
    states = unharmed(steps)
    folder, process = died[case].result()
    acknowledged = [line.split() for line in process.stdout.splitlines()]
    assert [step for step, _ in acknowledged] == list(steps[: len(acknowledged)])
    if not case.error:
        assert process.returncode == -signal.SIGKILL, process.stderr
    elif process.returncode == 0:  # it went on: no event waits for what is derived
        assert acknowledged and len(acknowledged) == len(steps)
    else:
        assert process.returncode == 1 and f"[Errno {5 if case.error == 'EIO' else 28}]" in process.stderr, (
            process.stderr
        )
    told = max((int(generation) for _, generation in acknowledged), default=0)

    with Steps(folder / "data") as to:
        there = set(backups(to))
        if case.error and to.home.exists() and case.point != "backup.doomed":  # it had the time to tidy up
            assert {path.name for path in to.home.iterdir()} == {*there, ".backup.lock"}
        now, generation = whole(to.store), to.store.generation
        at = len(acknowledged)
        assert now in states[at : at + 2]
        assert generation >= told
        if case.point.partition(":")[0].endswith(("committed", "bumped")):  # it was durable
            assert generation > told and now == states[min(at + 1, len(steps))]
        for step in steps[at:]:
            to.do(step)
            assert to.store.generation >= generation
            generation = to.store.generation
        assert whole(to.store) == states[-1]
        assert backups(to) == {"backup": ["b"], "restore": ["a"]}.get(case.area, [])
        if case.area in ("backup", "restore"):
            assert {p.name for p in to.home.iterdir()} == {*backup.found(to.home), ".backup.lock"}
    assert {p.name for p in folder.iterdir()} <= {"data", "backups", "restored", "a.key", "b.key"}
    if case.area == "restore":
        with Store(to.restored) as store:
            assert whole(store) == states[-1]
