"""A switch of models, and the way back: every stored event embedded by another version, then one commit.

Always true
  - The old version answers until the commit that names the new one, whose rows hold every committed event by then.
  - From the commit that begins it, published events are embedded by both versions (engine/store/publish.py); the stored
    ones by the child, in order of seq, with the progress in the manifest. A version whose rows are kept is only caught
    up.
  - The files of the version before are kept until `forget`, or until another switch ends; one that is given up costs
    none of them. Indexes that hold what was purged are not: a way back has its rows indexed anew.
In this order, each step durable before the next
  1. begin: the row file of the next seq is there; commit
  2. the child writes rows and indexes (engine/maintain/upkeep.py); advance: commit of the progress; again
  3. finish: one commit, in which the two versions change places
A death after any of them: the next start goes on from the manifest (`resume`); rows past what it counts are garbage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from engine.embed.base import ModelSet
from engine.errors import EngineError, NoSpaceError
from engine.failpoint import failpoint
from engine.files import free_bytes
from engine.layout import Layout
from engine.store import gc
from engine.store.manifest import Embedded, IndexFile, Manifest, SealedRows, Switch
from engine.store.publish import Publisher
from engine.store.rows import file_bytes

log = logging.getLogger(__name__)


def target(layout: Layout, manifest: Manifest, version: str) -> Embedded:
    """Where rows of that version go: to those that are kept of it, if they can be used, else to new files."""
    kept = manifest.kept
    if kept is not None and kept.model == version and kept.count and whole(layout, manifest, kept):
        return kept
    return Embedded(version, manifest.epochs_used, manifest.first_seq)


def needed_bytes(manifest: Manifest, to: Embedded) -> int:
    """What a switch writes: row files, one for what comes meanwhile, and indexes as large as those in use."""
    rows = manifest.row_file_rows
    files = manifest.row_files + 1 - -(-to.count // rows)
    return files * file_bytes(rows) + sum(i.size for i in manifest.indexes if i.lo >= to.count // rows * rows)


def begin(publisher: Publisher, models: ModelSet, to: Embedded) -> None:
    """Where all rows are there already that is the end, too. Raises NoSpaceError where the disk is short, OSError:
    nothing was changed."""
    manifest = publisher.manifest
    if to.count == manifest.count:
        _exchange(publisher, models, to)
        return
    needed, free = needed_bytes(manifest, to), free_bytes(publisher.layout.rows)
    if free < needed:
        remedy = f": `flowkin models gc` removes {manifest.kept.model}" if manifest.kept and manifest.kept != to else ""
        raise NoSpaceError(
            f"a switch to {to.model} needs {needed} bytes on disk, {free} are free; nothing was changed; "
            f"free some{remedy}"
        )
    again = to == manifest.kept
    switch = Switch(to, since=manifest.count, first=to.count, begun_at=time.time_ns(), was_kept=again)
    publisher.embed_also(models, switch)
    publisher.commit_manifest(
        switch=switch, kept=None if again else manifest.kept, epochs_used=_used(manifest, to)
    )  # fmt: skip
    failpoint("model.begun")


def advance(
    publisher: Publisher, count: int, seconds: float, sealed: Iterable[SealedRows] = (),
    indexes: Iterable[IndexFile] = (),
) -> None:  # fmt: skip
    """Rows [0, count) of the new version are there, and durable."""
    switch = publisher.manifest.switch
    assert switch is not None
    failpoint("model.filled")
    new = list(indexes)
    left = [old for old in switch.to.indexes if not any(index.covers(old) for index in new)]
    to = msgspec.structs.replace(switch.to, count=count, sealed=[*switch.to.sealed, *sealed], indexes=[*left, *new])
    publisher.commit_manifest(switch=msgspec.structs.replace(switch, to=to, seconds=switch.seconds + seconds))
    failpoint("model.advanced")


def finish(publisher: Publisher) -> None:
    """The new version comes into use."""
    switch, models = publisher.manifest.switch, publisher.other
    assert switch is not None and switch.done and models is not None
    _exchange(publisher, models, switch.to)


def _used(manifest: Manifest, to: Embedded) -> int:
    return max(manifest.epochs_used, to.epoch + 1)


def _exchange(publisher: Publisher, models: ModelSet, to: Embedded) -> None:
    """Two versions change places in one commit."""
    failpoint("model.rows_ready")
    old = publisher.manifest
    clean = [i for i in old.indexes if i.file not in old.stale]  # nobody would replace the others; a way back does
    publisher.use(
        models, model=to.model, epoch=to.epoch, revisions=to.revisions, sealed=to.sealed,
        indexes=sorted(to.indexes, key=lambda i: (i.space, i.lo)), stale=[], switch=None, epochs_used=_used(old, to),
        kept=Embedded(old.model, old.epoch, old.count, old.revisions, old.sealed, clean),
    )  # fmt: skip
    failpoint("model.committed")
    gc.release(publisher.layout, old, publisher.manifest)


def give_up(publisher: Publisher) -> None:
    """The version in use stays; rows that were kept before stay kept."""
    old = publisher.manifest
    publisher.commit_manifest(**old.given_up())
    publisher.embed_alone()
    gc.release(publisher.layout, old, publisher.manifest)


def forget(publisher: Publisher) -> int:
    """No way back: the files of the version before are removed. The bytes that they took."""
    old = publisher.manifest
    if old.kept is None:
        return 0
    publisher.commit_manifest(kept=None)
    return gc.release(publisher.layout, old, publisher.manifest)


def resume(publisher: Publisher, load: Callable[[str], ModelSet]) -> None:
    """At a start: go on with the switch that the manifest holds, anew where files are missing; no longer promise a way
    back that is gone."""
    layout, manifest = publisher.layout, publisher.manifest
    kept, switch = manifest.kept, manifest.switch
    if kept is not None and not whole(layout, manifest, kept):
        log.warning("row files of model %s are gone or misshapen: it is not kept any more", kept.model)
        publisher.commit_manifest(kept=None)
    if switch is None:
        return
    try:
        models = load(switch.to.model)
        if not whole(layout, manifest, switch.to, switch.since):
            log.warning("row files of the switch to %s are gone or misshapen: it begins anew", switch.to.model)
            kept_is_whole = switch.was_kept and whole(layout, manifest, switch.to)
            publisher.commit_manifest(**(manifest.given_up() if kept_is_whole else {"switch": None}))
            begin(publisher, models, target(layout, publisher.manifest, switch.to.model))
        else:
            publisher.embed_also(models, switch)
            log.info("the switch to %s goes on at event %d", switch.to.model, switch.to.count)
    except (EngineError, OSError) as e:
        log.error("the switch to %s is given up, %s stays in use: %s", switch.to.model, manifest.model, e)
        if publisher.manifest.switch is not None:
            give_up(publisher)


def whole(layout: Layout, manifest: Manifest, of: Embedded, since: int | None = None) -> bool:
    """Are the files of a version that is not in use there, with their sizes? Of its rows [0, count), and those from
    `since` on."""
    rows = manifest.row_file_rows
    numbers = set(range(manifest.first, -(-of.count // rows)))
    if since is not None:
        numbers |= set(range(max(manifest.first, since // rows), manifest.row_files))
    sizes = {layout.row_file(*of.row_file(n)): file_bytes(rows) for n in numbers}
    sizes |= {layout.index_file(i.file): i.size for i in of.indexes}
    return all(path.exists() and path.stat().st_size == size for path, size in sizes.items())


def progress(manifest: Manifest) -> dict[str, Any] | None:
    """The switch that is under way, None where there is none. events: stored before it began and not yet embedded then;
    what came since is. eta_s: None before the first step."""
    switch = manifest.switch
    if switch is None:
        return None
    done, events = switch.to.count - switch.first, switch.since - switch.first
    rate = done / switch.seconds if switch.seconds else 0.0
    return {
        "version": switch.to.model, "events": events, "events_done": done, "begun_at": switch.begun_at,
        "events_per_s": round(rate, 1), "eta_s": round((events - done) / rate, 1) if rate else None,
    }  # fmt: skip
