"""A purge of backups: one that holds what is to be removed is taken anew without it.

Always true
  - A backup never changes: one without these events takes its place, with its name and its time. All else in it is as
    it was, but for a way back to an older model, a switch of models under way, and indexes over purged rows, which are
    built again when it is restored and started.
  - At each moment the one or the other is there, whole. One that cannot be read, or not be purged, stays as it is.
In this order, each step durable before the next
  1. it is restored into a scratch directory beside it, and purged there as by the engine (engine/maintain/purge.py)
  2. what is there now is taken as NAME.purged; its catalog is a copy without what was deleted
  3. NAME is removed
  4. NAME.purged becomes NAME
A death before 2 leaves a scratch directory, which the next change removes; before 3 both: the next purge takes it anew;
before 4 NAME.purged, whole: the next purge goes on with that.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from engine.config import Config
from engine.errors import EngineError
from engine.files import sync_directory
from engine.layout import Layout
from engine.maintain.backup import Backup, alone, found, remove, restore, scratch_path
from engine.maintain.purge import purge
from engine.maintain.take import taken
from engine.store import switch
from engine.store.publish import Publisher
from engine.store.recover import drop_indexes, open_store
from ipc.messages import Filter

log = logging.getLogger(__name__)

SUFFIX = ".purged"


class Purged(Struct, frozen=True):
    """What became of a backup. error: why it is left as it was, and may hold what is to be removed; "" if it is not."""

    name: str
    events: int = 0
    dead_letters: int = 0
    changed: bool = False
    error: str = ""


def purge_backups(
    home: Path, config: Config, wanted: Filter | None, ids: Sequence[str],
    advance: Callable[[int], None] = lambda n: None,
) -> list[Purged]:  # fmt: skip
    """Each backup in directory `home`. advance: called with how many are done. Raises OverloadedError, OSError."""
    out = []
    with alone(home):
        _finish(home)
        for name, backup in found(home).items():
            try:
                if not isinstance(backup, Backup):
                    raise backup
                out.append(_purge(home, name, backup, config, wanted, ids))
            except (EngineError, OSError) as e:
                log.error("backup %s is left as it is: %s", home / name, e)
                out.append(Purged(name, error=str(e)))
            advance(1)
    return out


def _finish(home: Path) -> None:
    """What a purge left that was killed."""
    for name, backup in found(home).items():
        before = name.removesuffix(SUFFIX)
        if before == name or not isinstance(backup, Backup):
            continue
        other = found(home).get(before)
        if other is None and not (home / before).exists():
            _rename(home, name, before)
        elif isinstance(other, Backup) and other.created_at == backup.created_at:
            remove(home / name)


def _rename(home: Path, old: str, new: str) -> None:
    (home / old).rename(home / new)
    sync_directory(home)


def _purge(
    home: Path, name: str, backup: Backup, config: Config, wanted: Filter | None, ids: Sequence[str]
) -> Purged:  # fmt: skip
    scratch = scratch_path(home)
    scratch.mkdir(mode=0o700)
    try:
        layout = Layout(scratch / "data")
        restore(home / name, layout.data_dir)
        publisher = open_store(layout, msgspec.structs.replace(config, data_dir=str(layout.data_dir)))
        try:
            told = _removed(publisher, wanted, ids)
            if told is None:
                return Purged(name)
            at = datetime.fromisoformat(backup.created_at)
            taken(layout, publisher.catalog, home, f"{name}{SUFFIX}", at, lambda n: None)
        finally:
            publisher.close()
            publisher.catalog.close()
            publisher.counter.close()
    finally:
        shutil.rmtree(scratch)
    remove(home / name)
    _rename(home, f"{name}{SUFFIX}", name)
    return Purged(name, told["events"], told["dead_letters"], changed=True)


def _removed(publisher: Publisher, wanted: Filter | None, ids: Sequence[str]) -> dict[str, Any] | None:
    """What was removed; None where nothing was there to be."""
    if publisher.manifest.switch is not None:
        switch.give_up(publisher)
    before = publisher.tracker.dump()
    told = asyncio.run(purge(publisher, wanted, ids))
    removed = told["events"] or told["dead_letters"] or told["firewall_actions"]
    if not (removed or publisher.manifest.stale) and publisher.tracker.dump() == before:
        return None
    if publisher.manifest.stale:  # taken before the engine had replaced them, they hold what it had purged
        drop_indexes(publisher, publisher.manifest.stale)
    return told
