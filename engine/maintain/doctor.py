"""Check a data directory, running or not; and mend one that no engine runs on.

Always true
  - A finding names the object, what is wrong, what it means, and what to do. Severity "problem" is what exit status 7
    stands for; "note" and "ok" are not.
  - A check writes nothing (but a copy of the catalog for as long as it is looked at). `fix` holds writer.lock, and does
    what the ingest worker does at a start and after a scrub; a running engine is asked for a scrub instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from engine import files
from engine.config import Config
from engine.embed import models as embed_models
from engine.embed import text as embed_text
from engine.errors import CorruptionError, EngineError, KeyFileError, LockedError
from engine.features import CONTEXT_INDEXES, FEATURES
from engine.layout import Layout
from engine.maintain import mend, scrub, scrubbing
from engine.maintain.upkeep import Upkeep
from engine.run import heartbeat, lag
from engine.store import coverage, dead_letters, lock, quarantine, rows, switch
from engine.store.catalog import CURRENT, RESTORE, TABLES, Catalog, catalogs_in, named
from engine.store.cipher import NoKey, cipher_of, fitting
from engine.store.counters import Counters, Names
from engine.store.manifest import Manifest
from engine.store.recover import open_store

DISK_FREE_SHARE_MIN = 0.05
MAP_BYTES = 1 << 30
JUDGED_EVENTS_MIN = 1_000  # a source with fewer says little about what it fills
CONSTANT_SHARE_MAX = 0.5
CAPTURE_SHARE_MIN = 0.9  # of the features that a flow alone gives; a capture has the packets for all of them
NAMED_MAX = 8


class Finding(Struct):
    """One thing looked at. fixed: mended meanwhile."""

    severity: str  # ok | note | problem
    object: str
    detail: str
    fixed: bool = False


def run(layout: Layout, *, deep: bool = False, key_file: str = "") -> list[Finding]:
    """All findings. deep: every value, row and file against its checksum. key_file: setting store.key_file; without it
    an encrypted directory is looked at, too, but none of its records is opened."""
    return [
        *_environment(layout), *_files(layout, deep=deep, key_file=key_file), *_kept_aside(layout),
        *_scrubbed(layout), *_intakes(layout),
    ]  # fmt: skip


def fix(layout: Layout, config: Config) -> list[Finding]:
    """Mend what can be, where no engine runs: as a start does, and a scrub after it. Raises EngineError, OSError."""
    files.as_owner(layout.data_dir, "mend")
    found = list(_fixed_current(layout))
    held = lock.hold(layout.writer_lock, wait_s=0.0)
    try:
        publisher = open_store(layout, config)
        try:
            upkeep = Upkeep(layout, config, publisher, lambda: None)
            report, mended, left = asyncio.run(_mend_all(upkeep))
            scrubbing.tell(layout, report, mended, left)
            if not publisher.catalog.damage:
                publisher.checkpoint()
        finally:
            publisher.close()
            publisher.catalog.close()
            publisher.counter.close()
    finally:
        os.close(held)
    detail = f"{mended} damaged files and values mended" + (f"; left: {_named(left)}" if left else "")
    return [*found, Finding("problem" if left else "ok", "fix", detail, fixed=bool(mended and not left))]


async def _mend_all(upkeep: Upkeep) -> tuple[scrub.Report, int, list[str]]:
    """What a scrub found, how much of it is mended, and what is left."""
    working = asyncio.create_task(upkeep.run())
    try:
        report = scrub.run(upkeep.layout, upkeep.publisher.catalog, scrub.Pace())
        mended, left = await upkeep.mend(report)
        if not (upkeep.publisher.catalog.damage or await upkeep.settled()):
            left.append("indexes or retention, which fail: the log says why, the next start tries again")
    finally:
        upkeep.kill()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    return report, mended, left


def _fixed_current(layout: Layout) -> Iterator[Finding]:
    """CURRENT written again where it names no catalog and there is only one."""
    current = layout.catalog / CURRENT
    with contextlib.suppress(EngineError, FileNotFoundError):
        if (layout.catalog / named(current)).exists():
            return
    found = catalogs_in(layout.catalog)
    if len(found) == 1:
        files.write_new(current, [found[0].encode()])
        yield Finding("problem", str(current), f"named no catalog; names {found[0]} again", fixed=True)


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
        elif beat and beat.confine:
            yield _confined(path.stem, bool(beat.landlock), bool(beat.seccomp))


def _confined(role: str, landlock: bool, seccomp: bool) -> Finding:
    """How far a reader is kept from what it need not do."""
    if landlock and seccomp:
        return Finding("ok", role, "is confined by Landlock and seccomp")
    missing = " and ".join([*([] if landlock else ["Landlock"]), *([] if seccomp else ["seccomp (libseccomp2)"])])
    return Finding("note", role, f"is not confined by {missing}: this machine has none of it; the log says more")


def _files(layout: Layout, *, deep: bool, key_file: str) -> Iterator[Finding]:
    if not (layout.catalog / "CURRENT").exists():
        detail = "there is no catalog; `flowkin start` creates one"
        if found := catalogs_in(layout.catalog):
            detail = f"CURRENT is gone, {', '.join(found)} are there; `flowkin doctor --fix` names the only one again"
        yield Finding("problem", str(layout.catalog), detail)
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
                records = view.count_from(manifest.first_seq) if manifest is not None else 0
        except EngineError as e:
            yield Finding("problem", "manifest", str(e))
            return
        if manifest is None:
            yield Finding("problem", "manifest", "there is none: the first start did not finish; start again")
            return
        if records != manifest.events:
            yield Finding("problem", "catalog records", f"{records} are stored, the manifest counts {manifest.events}")
        yield Finding("ok", "manifest", f"generation {manifest.generation}, {manifest.events} events")
        yield from _models(layout, catalog, manifest)
        yield from _derived(layout, manifest, deep=deep)
        yield from _sources(names, counters, covered)
        yield from _letters(tallies)
        if bad := scrub.letters_damage(layout, catalog):
            detail = f"{bad} lines are damaged or gone; what they refused is in the files that they came from"
            yield Finding("problem", str(layout.dead_letters), detail)
        if deep:
            yield from _recounted(layout, manifest, names, counters, covered)
            yield from _catalog(layout, catalog)
        yield from _encryption(layout, catalog, manifest, deep=deep, key_file=key_file)
    finally:
        catalog.close()


def _models(layout: Layout, catalog: Catalog, manifest: Manifest) -> Iterator[Finding]:
    for version in sorted({manifest.model, *embed_models.versions(layout.models)}):
        wrong = scrub.model_damage(layout, catalog, version)
        yield Finding("problem" if wrong else "ok", f"model {version}", wrong or "agrees with its checksums")
    kept = manifest.kept
    if kept is not None and not switch.whole(layout, manifest, kept):
        detail = "files that are kept for a rollback are gone or misshapen; the next start forgets them"
        yield Finding("note", f"rollback to {kept.model}", detail)


def _derived(layout: Layout, manifest: Manifest, *, deep: bool) -> Iterator[Finding]:
    """Row files and indexes; what is damaged can be built again."""
    sealed, pace = {s.number: s.checksum for s in manifest.sealed}, scrub.Pace()
    size = rows.file_bytes(manifest.row_file_rows)
    bad: list[tuple[Path, str]] = []
    for number in manifest.numbers:
        path = layout.row_file(*manifest.row_file(number))
        wrong = _misshapen(path, size)
        if deep:
            wrong = scrub.rows_damage(layout, manifest, number, sealed.get(number), pace)
        bad += [(path, wrong)] if wrong else []
    for file in manifest.indexes:
        path = layout.index_file(file.file)
        wrong = scrub.index_damage(layout, file, pace) if deep else _misshapen(path, file.size)
        bad += [(path, wrong)] if wrong else []
    for path, wrong in bad:
        detail = f"{wrong}; its events are safe in the records; --fix, or the next scrub of an engine, builds it again"
        yield Finding("problem", str(path), detail)
    how = "every checksum compared" if deep else "names and sizes; --deep compares checksums"
    checked = len(manifest.numbers) + len(manifest.indexes)
    yield Finding("ok", "row files and indexes", f"{checked} looked at ({how})")


def _misshapen(path: Path, size: int) -> str:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return "is gone"
    return "" if found == size else f"has {found} bytes, not {size}"


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
    """The coverage that was counted against the row files, where these are of all that ever came."""
    if manifest.first or manifest.purged:
        return
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
        for trouble in lag.troubles(report, time.monotonic_ns()):
            yield Finding(*trouble)


def engine_runs(layout: Layout) -> bool:
    """Does an engine hold this directory?"""
    try:
        os.close(lock.hold(layout.writer_lock, wait_s=0.0, unnamed=True))
    except LockedError:
        return True
    except FileNotFoundError:
        return False
    return False


def _catalog(layout: Layout, catalog: Catalog) -> Iterator[Finding]:
    """The structure of the catalog, and where that is whole every value of every table against its checksum."""
    structure, unchecked = scrub.copy_checked(layout, catalog, scrub.Pace())
    for what in structure:
        yield Finding("problem", "catalog structure", f"{what}; nothing is stored on top of that; {RESTORE}")
    if structure:
        return  # LMDB may crash on the way
    if unchecked:
        yield Finding("note", "catalog structure", f"was not looked at: {unchecked}")
    else:
        yield Finding("ok", "catalog structure", "pages, keys, counts and free pages agree")
    yield from values(catalog)


def values(catalog: Catalog) -> Iterator[Finding]:
    """Every value of every table against its checksum, where the structure is whole."""
    for table in TABLES:
        n = 0
        bad: list[bytes] = []
        try:
            for count, keys in scrub.values(catalog, table, scrub.Pace()):
                n, bad = n + count, bad + keys
        except CorruptionError as e:
            yield Finding("problem", f"catalog {table}", str(e))
            continue
        if bad:
            what = f"{len(bad)} of {n} values are damaged: {_named([_key(table, key) for key in bad])}"
            follows = "--fix writes them again from what they follow from"
            if table in mend.PRIMARY:
                follows = f"they are refused, all others are whole; {RESTORE}"
            yield Finding("problem", f"catalog {table}", f"{what}; {follows}")
        else:
            yield Finding("ok", f"catalog {table}", f"{n} values agree with their checksums")


def _encryption(
    layout: Layout, catalog: Catalog, manifest: Manifest, *, deep: bool, key_file: str
) -> Iterator[Finding]:
    """Whether the key is that of the directory; deep: and opens every record."""
    try:
        catalog.cipher = fitting(cipher_of(key_file, layout.data_dir), manifest.key_id, str(layout.data_dir))
    except KeyFileError as e:
        yield Finding("problem", "encryption", str(e))
        return
    if catalog.cipher is None:
        return
    said = f"records and dead letters are encrypted with key {manifest.key_id}"
    if isinstance(catalog.cipher, NoKey):
        yield Finding("note", "encryption", f"{said}; store.key_file is not set, so none was opened")
        return
    bad: list[str] = []
    for lo in range(manifest.first_seq, manifest.count, scrub.PIECE_VALUES) if deep else ():
        with catalog.read() as view:
            for seq in range(lo, min(lo + scrub.PIECE_VALUES, manifest.count)):
                try:
                    view.head(seq)
                except CorruptionError:
                    bad.append(str(seq))
    if bad:
        detail = (
            f"{len(bad)} records do not open with it: {_named(bad)}; they are refused, all others are whole; {RESTORE}"
        )
        yield Finding("problem", "encryption", f"{said}; {detail}")
    else:
        yield Finding("ok", "encryption", said + (", which opens every one" if deep else ""))


def _key(table: str, key: bytes) -> str:
    return str(int.from_bytes(key, "big")) if table in ("records", "annotations") and len(key) == 8 else repr(key)[1:]


def _kept_aside(layout: Layout) -> Iterator[Finding]:
    if held := quarantine.listed(layout):
        names = _named([path.name for path, _ in held])
        size = sum(size for _, size in held)
        detail = f"{len(held)} damaged files, {size} bytes: {names}; remove at will"
        yield Finding("note", str(layout.quarantine), detail)


def _scrubbed(layout: Layout) -> Iterator[Finding]:
    """What the engine last found."""
    last = scrubbing.read(layout.scrub)
    if last is None:
        yield Finding("note", "scrub", "none has ended yet; the engine begins one at every start")
        return
    when = datetime.fromtimestamp(last.report.finished_at / 1e9, UTC).isoformat(timespec="seconds")
    detail = f"{when}: {last.report.files} files, {last.report.values} values; {last.report.damaged} damaged, "
    detail += f"{last.mended} mended" + (f"; left: {_named(last.left)}" if last.left else "")
    yield Finding("problem" if last.left else "ok", "scrub", detail)
