"""Compaction: the catalog copied into a new file, without free pages and without what was deleted in it.

Always true
  - Events are stored and questions answered all the while. What is written since the copy began is written again into
    the new file, until there is so little left that the rest is done at once, before the next event.
  - CURRENT is replaced whole: the old file is used with all that was acknowledged, or the new one with the same.
  - LMDB keeps the bytes of what was deleted in pages that it uses again some day, and in the gaps of others; a copy
    that begins after the deletion holds none of them.
In this order, each step durable before the next
  1. a niced child copies the catalog, as of its own read transaction
  2. NEXT names the copy; the supervisor replaces confined readers one by one with others, which have it open, too
  3. what was written meanwhile, and the manifest of the next generation
  4. CURRENT names it  <- from here on it is the catalog
  5. this process opens it, and counts the generation up; readers follow at their next request, or within a quarter of a
     second
  6. NEXT goes, and the old file is unlinked, for good; its blocks are free when the last reader has followed
A death before 4: the next start uses the old file and removes the other. After it: the other way round.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import BootError, EngineError, NoSpaceError, OverloadedError
from engine.failpoint import failpoint
from engine.files import free_bytes, sync_directory, write_new
from engine.layout import Layout
from engine.maintain.build import CopyJob
from engine.maintain.jobs import Jobs
from engine.run import heartbeat
from engine.run.worker import Worker
from engine.store.catalog import CURRENT, NEXT, Batch, named
from engine.store.manifest import Manifest
from engine.store.publish import Publisher
from engine.store.recover import map_size

log = logging.getLogger(__name__)

# Written again in one commit while events are stored, and at last before the next event: more than a turn of the loop
# adds, where the most events in a commit bring a record, an identity and perhaps a sentence each.
KEYS_AN_EVENT = 8
KEYS_AT_ONCE_MIN = 2_048  # a slice of what retention deletes is 276
LOOK_S = 0.05
READERS_S = 30.0  # for all of them to follow, and for a new one to be ready; one that hangs is killed long before


class Compacting:
    """Owned by the ingest worker; runs on its loop."""

    def __init__(self, worker: Worker, publisher: Publisher) -> None:
        self.worker, self.publisher, self.layout = worker, publisher, worker.layout
        self.jobs = Jobs()
        self._running = False

    async def run(self) -> dict[str, Any]:
        """Compact now: bytes on disk before and after, the generation, and the readers that still hold the old file.
        Raises OverloadedError where it is under way, CorruptionError where the catalog's structure is damaged,
        NoSpaceError, EngineError, OSError: nothing was changed."""
        if self._running:
            raise OverloadedError("the catalog is being compacted already; try again")
        self._running = True
        try:
            return await self._run()
        finally:
            self._running = False

    async def _run(self) -> dict[str, Any]:
        catalog, folder, start = self.publisher.catalog, self.layout.catalog, time.monotonic()
        catalog.writable()
        old = catalog.path
        new = folder / f"catalog.{int(old.name.removeprefix('catalog.')) + 1}"
        with catalog.read() as view:
            needed, free = view.used_bytes(), free_bytes(folder)
        if free < needed:
            raise NoSpaceError(f"a copy of the catalog needs {needed} bytes, {free} are free; nothing was changed")
        _remove(new)
        catalog.changed = set()
        try:
            job = CopyJob(
                data_dir=str(self.layout.data_dir), parent_pid=os.getpid(),
                map_size=map_size(self.worker.config), path=str(new),
            )  # fmt: skip
            if await self.jobs.run(job) is None:
                raise EngineError("the catalog could not be copied, nothing was changed; the engine's log says why")
            failpoint("compact.copied")
            before = old.stat().st_blocks * 512
            opened = catalog.opened(new)
            try:
                await self._shown(new)
                failpoint("compact.opened")
                manifest = await self._catch_up(opened)
            finally:
                opened.env.close()
            failpoint("compact.caught_up")
        except BaseException:
            (folder / NEXT).unlink(missing_ok=True)
            _remove(new)
            raise
        finally:
            catalog.changed = None
        switch_to(self.publisher, new, manifest)
        after = new.stat().st_blocks * 512
        log.info("catalog compacted in %.1f s: %d bytes, before %d", time.monotonic() - start, after, before)
        late = await self._followed(manifest.generation)
        return {"bytes_before": before, "bytes_after": after, "generation": manifest.generation, "waits_for": late}

    async def _shown(self, new: Path) -> None:
        """Confined readers open no file to write to it, a catalog's lock file neither: others take their place, which
        open this one before they are confined. Raises EngineError, OSError."""
        write_new(new.parent / NEXT, [new.name.encode()])
        settings = self.worker.config
        within_s = 2 * settings.readers.count * (settings.drain_ms / 1_000 + READERS_S)  # a SIGHUP may come, too
        if not await self.worker.rolled(within_s):
            raise EngineError("not every reader could be replaced, nothing was changed; the engine's log says why")

    async def _catch_up(self, opened: Any) -> Manifest:
        """Write again what was written meanwhile. What is written after this returns would be lost, so nobody may write
        before the new file is in use: from the last round on nothing is awaited."""
        changed = self.publisher.catalog.changed
        at_once = max(KEYS_AT_ONCE_MIN, KEYS_AN_EVENT * self.worker.config.ingest.commit_events)
        assert changed is not None
        while len(changed) > at_once:
            some = sorted(changed)
            changed.clear()
            for at in range(0, len(some), at_once):
                self._copy(opened, some[at : at + at_once])
                await asyncio.sleep(0)
        manifest = msgspec.structs.replace(self.publisher.manifest, generation=self.publisher.manifest.generation + 1)
        self._copy(opened, sorted(changed), manifest)
        opened.env.sync(True)
        return manifest

    def _copy(self, opened: Any, keys: Iterable[tuple[str, bytes]], manifest: Manifest | None = None) -> None:
        """Values as they are now in the catalog into the other file."""
        catalog = self.publisher.catalog
        with catalog.read() as view, Batch(catalog, opened, opened.env.begin(write=True, buffers=True)) as batch:
            for table, key in keys:
                value = view.txn.get(key, None, catalog.tables[table])
                if value is None:
                    batch.txn.delete(key, db=opened.tables[table])
                else:
                    batch.txn.put(key, value, db=opened.tables[table])
            if manifest is not None:
                batch.put_manifest(manifest)

    async def _followed(self, generation: int) -> list[str]:
        """Wait for every living reader to take over a generation; those that have not."""
        end_s = time.monotonic() + READERS_S
        while (late := behind(self.layout, generation)) and time.monotonic() < end_s:
            await asyncio.sleep(LOOK_S)
        return late

    def kill(self) -> None:
        self.jobs.kill()


def switch_to(publisher: Publisher, new: Path, manifest: Manifest) -> None:
    """Use this file, which holds all that is committed, as the catalog from now on. Raises OSError: nothing was
    changed. Where that cannot be said the process ends: the next start looks what CURRENT names."""
    catalog, old, current = publisher.catalog, publisher.catalog.path, new.parent / CURRENT
    try:
        write_new(current, [new.name.encode()])
        failpoint("compact.named")
        catalog.follow()
    except (OSError, BootError) as e:
        if named(current) == old.name:
            (new.parent / NEXT).unlink(missing_ok=True)
            _remove(new)
            raise
        log.critical("ingest ends: the new catalog %s cannot be used: %s", new, e)
        logging.shutdown()
        os._exit(1)
    publisher.adopt(manifest)
    try:
        failpoint("compact.followed")
        (new.parent / NEXT).unlink(missing_ok=True)
        _remove(old)
        failpoint("compact.removed")
    except OSError as e:  # it is compacted all the same
        log.error("what the new catalog %s replaces may be there still, the next start removes it: %s", new, e)


def behind(layout: Layout, generation: int) -> list[str]:
    """Living readers that have not yet taken over a generation."""
    late = []
    for path in sorted(layout.run.glob("reader-*.heartbeat")):
        beat = heartbeat.read(path)
        if beat is not None and beat.pid and beat.generation < generation and Path(f"/proc/{beat.pid}").exists():
            late.append(path.stem)
    return late


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}-lock").unlink(missing_ok=True)
    sync_directory(path.parent)  # what was deleted in it does not come back
