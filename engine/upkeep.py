"""Upkeep of what is derived: indexes over full row files, repairs, and switches of models.

Always true
  - One thing at a time. What takes long runs in a niced child, which publishes nothing; the commit happens here.
  - Until a new index is named its rows are served exactly; until a switch is committed the old model answers.
  - A damaged file is taken out of the manifest and built again from the records under a new name.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from engine import gc
from engine.build import Built, IndexJob, Job, RowsJob, VerifyJob
from engine.embed import models as embed_models
from engine.embed.base import SPACES, ModelSet
from engine.errors import EngineError, NoSpaceError, NotFoundError, OverloadedError
from engine.files import free_bytes
from engine.jobs import NICENESS, Jobs
from engine.manifest import IndexFile, SealedRows
from engine.publish import Publisher, load_models
from engine.rebuild import rebuild
from engine.recover import map_size, mend_rows
from engine.rows import file_bytes
from engine.worker import Worker

log = logging.getLogger(__name__)

AGAIN_S = 5.0
VERIFY_AGAIN_S = 60.0
UNINDEXED_FILES_HURRY = 2  # so many full row files without an index: the child is not niced any more

Switched = Callable[[Exception | None], None]


class Upkeep:
    """Owned by the ingest worker; runs on its loop."""

    def __init__(self, worker: Worker, publisher: Publisher) -> None:
        self.worker, self.publisher, self.layout = worker, publisher, worker.layout
        self.internal = worker.config.network.internal
        self.jobs = Jobs()
        self._wanted = asyncio.Event()
        self._verify = True  # at every start
        self._switch_to: tuple[str, Switched] | None = None

    def look(self) -> None:
        """Something may have become due; cheap."""
        if self._unindexed():
            self._wanted.set()

    def verify(self) -> None:
        """Have every file compared with its checksums."""
        self._verify = True
        self._wanted.set()

    def use_model(self, version: str, done: Switched) -> None:
        """Use a model from now on; done(None) when all stored events are embedded by it and it answers, or done(error)
        and nothing has changed. Raises NotFoundError, OverloadedError, ModelError, NoSpaceError."""
        publisher = self.publisher
        if version not in embed_models.versions(self.layout.models):
            raise NotFoundError(f"no model version {version!r}; `flowkin models list` names them")
        if self._switch_to is not None:
            raise OverloadedError(f"a switch to {self._switch_to[0]} is under way; wait for it")
        if version == publisher.manifest.model:
            done(None)
        elif publisher.manifest.count == 0:
            publisher.use_model(self._load(version), publisher.manifest.epoch)
            done(None)
        else:
            needed = (publisher.manifest.row_files + 1) * file_bytes(publisher.manifest.row_file_rows)
            if free_bytes(self.layout.rows) < needed:
                raise NoSpaceError(f"a switch to {version} needs {needed} bytes on disk; nothing was changed")
            self._switch_to = version, done
            self._wanted.set()

    def kill(self) -> None:
        self.jobs.kill()

    async def run(self) -> None:
        """One thing after the other, for ever; what fails is reported and tried again later."""
        while True:
            try:
                await self._next()
            except Exception as e:
                log.error("upkeep: %r; again in %.0f s", e, AGAIN_S, exc_info=e)
                await asyncio.sleep(AGAIN_S)

    async def _next(self) -> None:
        if self._verify:
            self._verify = False
            built = await self.jobs.run(self._job(VerifyJob))
            if built is None:
                self._verify_later()
            else:
                await self._mend(built)
        elif self._switch_to is not None:
            version, done = self._switch_to
            try:
                await self._switch(version, done)
            finally:
                self._switch_to = None
        elif unindexed := self._unindexed():
            await self._index(unindexed[0])
        else:
            self._wanted.clear()
            await self._wanted.wait()

    def _verify_later(self) -> None:
        """Other work comes first; a file that cannot be mended must not keep it waiting."""
        asyncio.get_running_loop().call_later(VERIFY_AGAIN_S, self.verify)

    def _load(self, version: str) -> ModelSet:
        return load_models(self.layout.model(version), self.publisher.catalog, self.internal, self.worker.stamp)

    def _unindexed(self) -> list[int]:
        """Full row files that have not an index in every space."""
        manifest = self.publisher.manifest
        rows = manifest.row_file_rows
        if len(manifest.indexes) == len(SPACES) * (manifest.count // rows):
            return []
        indexed = {(i.space, i.lo) for i in manifest.indexes}
        return [n for n in range(manifest.count // rows) if any((s, n * rows) not in indexed for s in SPACES)]

    def _job(self, kind: Callable[..., Job], **more: object) -> Job:
        hurry = len(self._unindexed()) >= UNINDEXED_FILES_HURRY
        return kind(
            data_dir=str(self.layout.data_dir), parent_pid=os.getpid(), niceness=0 if hurry else NICENESS,
            map_size=map_size(self.worker.config), **more,
        )  # fmt: skip

    async def _index(self, number: int) -> None:
        manifest = self.publisher.manifest
        name = manifest.row_file(number)
        built = await self.jobs.run(self._job(IndexJob, row_file=name, rows=manifest.row_file_rows))
        if built is None or name != self.publisher.manifest.row_file(number):
            return
        await self._mend(built)
        if built.indexes:
            self.publisher.swap_in([IndexFile(*i) for i in built.indexes], [SealedRows(*s) for s in built.sealed])
            gc.collect(self.layout, self.publisher.manifest)
            size = sum(i[4] for i in built.indexes)
            log.info("row file %d indexed in every space: %d bytes, %.1f s", number, size, built.seconds)

    async def _mend(self, built: Built) -> None:
        """Have what is damaged built again."""
        if built.bad_indexes:
            log.error("index files disagree with their checksums, built again: %s", ", ".join(built.bad_indexes))
            self.publisher.drop_indexes(built.bad_indexes)
        for number in built.bad_rows:
            log.error("row file %d disagrees with its checksums, built again from the records", number)
            manifest = self.publisher.manifest
            rows = manifest.row_file_rows
            if (number + 1) * rows > manifest.count:  # the one that is written to
                mend_rows(self.publisher, number, self.worker.stamp)
                continue
            epoch, _, revision = manifest.row_file(number)
            job = self._job(
                RowsJob,
                row_file=(epoch, number, revision + 1),
                rows=rows,
                count=rows,
                model=manifest.model,
                internal=self.internal,
            )
            if done := await self.jobs.run(job):
                self.publisher.replace_rows(number, revision + 1, [SealedRows(*s) for s in done.sealed])
            else:
                self._verify_later()

    async def _switch(self, version: str, done: Switched) -> None:
        """Row files of the new version beside the old ones: full ones in the child, the last one here; one commit."""
        publisher = self.publisher
        try:
            rows, epoch = publisher.manifest.row_file_rows, publisher.manifest.epochs_used
            models = self._load(version)
            sealed: list[SealedRows] = []
            while (number := len(sealed)) < publisher.manifest.count // rows:
                built = await self.jobs.run(
                    self._job(
                        RowsJob,
                        row_file=(epoch, number, 0),
                        rows=rows,
                        count=rows,
                        model=version,
                        internal=self.internal,
                    )
                )
                if built is not None:
                    sealed += [SealedRows(*s) for s in built.sealed]
                    log.info("switch to %s: %d of %d events", version, len(sealed) * rows, publisher.manifest.count)
            stored = publisher.manifest.count - len(sealed) * rows
            if stored:
                path = self.layout.row_file(epoch, len(sealed))
                rebuild(publisher.catalog, models, path, len(sealed), rows, stored, self.worker.stamp)
            publisher.use_model(models, epoch, sealed)
            gc.collect(self.layout, publisher.manifest)
            log.info("model %s is in use", version)
            done(None)
        except (EngineError, OSError) as e:
            log.error("switch to %s failed, %s stays in use: %s", version, publisher.manifest.model, e)
            done(e if isinstance(e, EngineError) else EngineError(f"{e}; the model was not changed"))
