"""Check a data directory, running or not. Reads only; with fix, the ingest worker of the next start mends.

Always true
  - A finding names the object, what is wrong, what it means, and what to do. Severity "problem" is what exit status 7
    stands for; "note" and "ok" are not.
  - Nothing is written but, with fix, the removal of damaged derived files, which the engine builds again from the
    records; and that only while no engine runs on the directory.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from engine import coverage, dead_letters, heartbeat, index, lag, switch
from engine.catalog import TABLES, Catalog, Counters, Names
from engine.embed import models as embed_models
from engine.embed import text as embed_text
from engine.errors import CorruptionError, EngineError, LockedError
from engine.features import CONTEXT_INDEXES, FEATURES
from engine.layout import Layout
from engine.manifest import Manifest
from engine.rows import RowMap

DISK_FREE_SHARE_MIN = 0.05
MAP_BYTES = 1 << 30
VALUES_MAX = 4_096
JUDGED_EVENTS_MIN = 1_000  # a source with fewer says little about what it fills
CONSTANT_SHARE_MAX = 0.5
CAPTURE_SHARE_MIN = 0.9  # of the features that a flow alone gives; a capture has the packets for all of them
NAMED_MAX = 8


class Finding(Struct):
    """One thing looked at. fixed: mended here, or removed so that the next start builds it again."""

    severity: str  # ok | note | problem
    object: str
    detail: str
    fixed: bool = False


def run(layout: Layout, *, deep: bool = False, fix: bool = False) -> list[Finding]:
    """All findings. deep: every value, row and file against its checksum."""
    return [*_environment(layout), *_files(layout, deep=deep, fix=fix), *_intakes(layout)]


def _environment(layout: Layout) -> Iterator[Finding]:
    data_dir = layout.data_dir
    if not data_dir.is_dir():
        yield Finding("problem", str(data_dir), "is not there; `flowkin start` creates it")
        return
    status = data_dir.stat()
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        yield Finding("problem", str(data_dir), f"others may enter it (mode {mode:04o}); chmod 700 it")
    if status.st_uid not in (os.geteuid(), 0):
        yield Finding("note", str(data_dir), f"belongs to uid {status.st_uid}, you are {os.geteuid()}")
    usage = shutil.disk_usage(data_dir)
    if usage.free < usage.total * DISK_FREE_SHARE_MIN:
        yield Finding("problem", str(data_dir), f"{usage.free >> 20} MiB are left on its disk; ingest stops at 0")
    try:
        embed_text.check(embed_text.text_dir())
        yield Finding("ok", "text model", "is there and whole")
    except EngineError as e:
        yield Finding("problem", "text model", str(e))
    for path in sorted(layout.run.glob("*.heartbeat")):
        beat = heartbeat.read(path)
        if beat and beat.pid and not os.path.exists(f"/proc/{beat.pid}"):  # noqa: PTH110 (a process, not a file)
            yield Finding("note", path.stem, f"pid {beat.pid} is gone; a running engine replaces it")


def _files(layout: Layout, *, deep: bool, fix: bool) -> Iterator[Finding]:
    if not (layout.catalog / "CURRENT").exists():
        yield Finding("problem", str(layout.catalog), "there is no catalog; `flowkin start` creates one")
        return
    try:
        catalog = Catalog(layout.catalog, write=False, map_size=MAP_BYTES)
    except EngineError as e:
        yield Finding("problem", str(layout.catalog), str(e))
        return
    try:
        try:
            with catalog.read() as view:
                manifest, counters, names = view.manifest(), view.counters(), view.names()
                covered, tallies = coverage.load(layout, view, counters), dead_letters.load(view, counters)
                records = int(view.txn.stat(catalog.tables["records"])["entries"])
        except EngineError as e:
            yield Finding("problem", "manifest", str(e))
            return
        if manifest is None:
            yield Finding("problem", "manifest", "there is none: the first start did not finish; start again")
            return
        if records != manifest.count:
            yield Finding("problem", "catalog records", f"{records} are stored, the manifest counts {manifest.count}")
        yield Finding("ok", "manifest", f"generation {manifest.generation}, {manifest.count} events")
        yield from _models(layout, manifest)
        yield from _derived(layout, manifest, deep=deep, fix=fix)
        yield from _sources(names, counters, covered)
        yield from _letters(tallies)
        if deep:
            yield from _recounted(layout, manifest, names, counters, covered)
            yield from values(catalog)
    finally:
        catalog.close()


def _models(layout: Layout, manifest: Manifest) -> Iterator[Finding]:
    try:
        embed_models.load(layout.model(manifest.model))
        yield Finding("ok", f"model {manifest.model}", "agrees with its checksums")
    except EngineError as e:
        yield Finding("problem", f"model {manifest.model}", str(e))
    kept = manifest.kept
    if kept is not None and not switch.whole(layout, manifest, kept):
        detail = "files that are kept for a rollback are gone or misshapen; the next start forgets them"
        yield Finding("note", f"model {kept.model}", detail)


def _derived(layout: Layout, manifest: Manifest, *, deep: bool, fix: bool) -> Iterator[Finding]:
    """Row files and indexes; what is damaged can be built again."""
    checked = 0
    sealed = {s.number: s.checksum for s in manifest.sealed}
    for number in range(manifest.row_files):
        path = layout.row_file(*manifest.row_file(number))
        stored = min(manifest.row_file_rows, manifest.count - number * manifest.row_file_rows)
        try:
            rows = RowMap(path, number, manifest.row_file_rows)
            wrong = ""
            if deep and number in sealed and rows.checksum() != sealed[number]:
                wrong = "disagrees with its checksum"
            elif deep and number not in sealed and (bad := rows.bad_rows(stored)):
                wrong = f"{len(bad)} rows disagree with their checksums, the first is {bad[0]}"
        except FileNotFoundError:
            wrong = "is gone"
        except (OSError, CorruptionError) as e:
            wrong = str(e)
        checked += 1
        if wrong:
            yield _damaged(layout, str(path), wrong, fix=fix)
    for file in manifest.indexes:
        at = layout.index_file(file.file)
        wrong = ""
        if not at.exists():
            wrong = "is gone"
        elif at.stat().st_size != file.size or (deep and index.checksum(at) != file.checksum):
            wrong = "disagrees with its checksum"
        checked += 1
        if wrong:
            yield _damaged(layout, str(at), wrong, fix=fix)
    how = "every checksum compared" if deep else "names and sizes; --deep compares checksums"
    yield Finding("ok", "row files and indexes", f"{checked} looked at ({how})")


def _damaged(layout: Layout, path: str, wrong: str, *, fix: bool) -> Finding:
    """A damaged derived file; with fix, and no engine running, it is moved to quarantine/."""
    what = f"{wrong}; its events are safe in the records"
    if not fix:
        return Finding("problem", path, f"{what}; --fix with the engine stopped, or a start, builds it again")
    if engine_runs(layout):
        return Finding("problem", path, f"{what}; not touched while an engine runs here; restart it")
    layout.quarantine.mkdir(mode=0o700, exist_ok=True)
    if os.path.lexists(path):
        shutil.move(path, layout.quarantine)
    return Finding("problem", path, f"{what}; moved to {layout.quarantine}; the next start builds it again", fixed=True)


def _sources(names: Names, counters: Counters, covered: dict[str, coverage.Coverage]) -> Iterator[Finding]:
    """What each source fills of the features; a note only where something is amiss whatever the source is."""
    formats = dict(names.sources)
    for source, c in sorted(counters.sources.items()):
        if not c.events:
            continue
        if source not in covered:
            yield Finding("note", f"coverage of {source}", "what it fills is not counted yet; the next start counts it")
            continue
        filled, constant = covered[source].filled, covered[source].constant
        held = [f.name for f in FEATURES if constant[f.column]]
        never = len(FEATURES) - int(filled.sum())
        detail = f"fills {int(filled.sum())} of {len(FEATURES)} features (events: {c.events}); {never} never"
        detail += f"; constant: {_named(held)}" if held else ""
        amiss = list(_amiss(formats.get(source, ""), c.events, filled, len(held)))
        if c.rejected > c.events:
            amiss.append(f"{c.rejected} records were rejected, more than stored; `flowkin dead_letters` shows them")
        yield Finding("note" if amiss else "ok", f"coverage of {source}", "; ".join([detail, *amiss]))


def _amiss(format_name: str, events: int, filled: NDArray[np.bool_], constant: int) -> Iterator[str]:
    if events < JUDGED_EVENTS_MIN:
        return
    if not filled[list(CONTEXT_INDEXES)].any():
        yield "no feature of its windows and histories: its events have no addresses or no time, or come too late"
    of_flow = [f for f in FEATURES if f.scope == "flow"]
    missing = [f.name for f in of_flow if not filled[f.column]]
    if format_name == "pcap" and len(missing) > len(of_flow) * (1 - CAPTURE_SHARE_MIN):
        yield f"a capture should fill {_named(missing)}"
    if constant > filled.sum() * CONSTANT_SHARE_MAX:
        yield "most of what it fills never varies"


def _named(names: list[str]) -> str:
    return ", ".join(names[:NAMED_MAX]) + (f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else "")


def _letters(tallies: dict[str, dead_letters.Tallies]) -> Iterator[Finding]:
    found = dead_letters.facts(tallies)
    if not found["count"]:
        return
    most = [f"{r['count']} of {r['source']}: {r['reason']}" for r in found["reasons"][:3]]
    n, reasons = found["count"], len(found["reasons"]) + found["reasons_more"]
    yield Finding("note", "dead letters", f"{n} for {reasons} reasons; {'; '.join(most)}; `flowkin dead_letters`")


def _recounted(
    layout: Layout, manifest: Manifest, names: Names, counters: Counters, covered: dict[str, coverage.Coverage]
) -> Iterator[Finding]:
    """The coverage that was counted against the row files."""
    try:
        found = coverage.grown(layout, manifest, names, counters, {}, 0)
    except (OSError, CorruptionError):
        return  # a row file is not to be had: that is a finding already
    wrong = [s for s in sorted(covered) if s not in found or not covered[s].same(found[s])]
    for source in wrong:
        yield Finding("note", f"coverage of {source}", "its coverage is not what the row files hold; stats may mislead")
    if not wrong:
        yield Finding("ok", "coverage", f"of {len(covered)} sources is what the row files hold")


def _intakes(layout: Layout) -> Iterator[Finding]:
    """What a running engine says of the files and sockets it takes in."""
    report = lag.read(layout)
    if report is not None and engine_runs(layout):
        for trouble in lag.troubles(report, time.time_ns()):
            yield Finding(*trouble)


def engine_runs(layout: Layout) -> bool:
    """Does an engine hold this directory?"""
    from engine import lock

    try:
        os.close(lock.hold(layout.writer_lock, wait_s=0.0))
    except LockedError:
        return True
    except FileNotFoundError:
        return False
    return False


def values(catalog: Catalog) -> Iterator[Finding]:
    """Every value of every table against its checksum; a read transaction for VALUES_MAX of them, as an engine may be
    writing."""
    for table in TABLES:
        n, bad, start = 0, [], b"\0"
        while start:
            with catalog.read() as view, view.txn.cursor(catalog.tables[table]) as cursor:
                cursor.set_range(start)
                start = b""
                for i, (key, value) in enumerate(cursor.iternext()):
                    if i == VALUES_MAX:
                        start = bytes(key)
                        break
                    n += 1
                    try:
                        catalog.unseal(table, key, value)
                    except CorruptionError as e:
                        bad.append(str(e))
        if bad:
            yield Finding("problem", f"catalog {table}", f"{len(bad)} of {n} values are damaged; the first: {bad[0]}")
        else:
            yield Finding("ok", f"catalog {table}", f"{n} values agree with their checksums")
