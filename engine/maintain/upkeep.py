"""Upkeep of what is derived: indexes over full row files, repairs, and switches of models.

Always true
  - One thing at a time, and beside it the merge of indexes. What takes long runs in a child, which publishes
    nothing; the commit happens here.
  - Until a new index is named its rows are served exactly; until a switch is committed the old model answers.
  - A damaged file is taken out of the manifest, then put into quarantine/, and built again from the records under a new
    name. What engine/maintain/scrub.py found is held against what is named now.
  - A row file that cannot be built again is tried for ever; all else goes on meanwhile, and who waits hears of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence

from engine.config import Config
from engine.embed import models as embed_models
from engine.embed.base import ModelSet
from engine.errors import BadRequestError, EngineError, NotFoundError, OverloadedError
from engine.layout import Layout
from engine.maintain import mend, retention
from engine.maintain.build import Built, FillJob, IndexJob, Job, RowsJob
from engine.maintain.jobs import IDLE_S_A_ROW_FILE, Jobs
from engine.maintain.scrub import Report
from engine.store import gc, quarantine, switch, tiers
from engine.store.catalog import RESTORE
from engine.store.manifest import IndexFile, Manifest, SealedRows, Switch
from engine.store.memo import load_models
from engine.store.publish import Publisher
from engine.store.recover import drop_indexes, map_size, mend_rows, mended_models

log = logging.getLogger(__name__)

AGAIN_S = 5.0
RETENTION_S = 60.0  # how often to see whether something leaves
SWEEP_PAUSE_S = 0.01  # between two slices of what left: events are stored first
LOOK_S = 0.1
EARLY_WAIT_S = 2.0  # rows are indexed before their file is full, unless it fills up so fast that they soon are again
UNINDEXED_FILES_HURRY = 2  # so many full row files without an index: the child does not make way any more
FAILURES_MAX = 5  # in a row: of steps, then a switch is given up; of row files built again, then a scrub ends

Switched = Callable[[Exception | None], None]


class Upkeep:
    """Owned by the ingest worker, or by the doctor; runs on its loop. alive: called in long steps."""

    def __init__(self, layout: Layout, config: Config, publisher: Publisher, alive: Callable[[], None]) -> None:
        self.layout, self.config, self.publisher, self.alive = layout, config, publisher, alive
        self.internal, self.key_file = config.network.internal, config.store.key_file
        self.jobs, self.merges = Jobs(), Jobs()
        self.scrub_soon: Callable[[], None] = lambda: None
        self._wanted, self._mergeable = asyncio.Event(), asyncio.Event()
        self._idle, self._merged = asyncio.Event(), asyncio.Event()
        self._bad_rows: list[tuple[int, int, int]] = []  # of row files that are to be built again
        self._put_off: set[tuple[int, int, int]] = set()  # those of them that could not be a moment ago
        self._rows_tried, self._rows_failures = asyncio.Event(), 0
        self._retaining = True  # at every start
        self._leaving, self._swept = asyncio.Event(), asyncio.Event()
        self._leaving.set()
        self._merged_files_max, self._failures = tiers.FILES[0], 0
        self.rewriting = asyncio.Lock()  # held by who writes stored row files of the version in use anew
        self._switched: list[Switched] = []  # who waits for the end of the switch
        self._early: tuple[int, int] | None = None  # seqs that shall have an index before their file is full
        self._awaited: asyncio.TimerHandle | None = None
        if publisher.manifest.switch is not None:
            self._wanted.set()

    def look(self) -> None:
        """Something may have become due; cheap."""
        if self._unindexed() or self._given_up():
            self._retaining = True
            self._wanted.set()
        elif self._awaited is None and tiers.early(self.publisher.manifest):
            loop, count = asyncio.get_running_loop(), self.publisher.manifest.count
            self._awaited = loop.call_later(EARLY_WAIT_S, self._look_early, count)

    def _look_early(self, count: int) -> None:
        """Index rows of the file that is being filled, if fewer than as many again came since there were `count`."""
        self._awaited = None
        manifest = self.publisher.manifest
        if manifest.count - count < tiers.EARLY_ROWS:
            self._early = tiers.early(manifest)
            self._wanted.set()
        else:
            self.look()

    def replace_indexes(self) -> None:
        """Some may have become stale."""
        self._mergeable.set()

    def drop(self, report: Report) -> int:
        """No longer name the damaged indexes, and have damaged row files built again; how many of these there are."""
        bad = {i.file for i in self.publisher.manifest.indexes} & set(report.bad_indexes)
        if bad:
            log.error("index files disagree with their checksums, built again: %s", ", ".join(sorted(bad)))
            drop_indexes(self.publisher, sorted(bad))
        rows = [of for of in report.bad_rows if self._named(of)]
        self._bad_rows += [of for of in rows if of not in self._bad_rows]
        self._wanted.set()
        return len(bad) + len(rows)

    async def mend(self, report: Report) -> tuple[int, list[str]]:
        """Mend what a scrub found: how many files and values are, and what is left. Raises NoSpaceError, OSError,
        CorruptionError."""
        catalog = self.publisher.catalog
        if report.structure and not catalog.damage:
            catalog.damage = f"its structure is damaged ({report.structure[0]})"
            log.critical("catalog %s: %s; nothing is stored any more; %s", catalog.path, catalog.damage, RESTORE)
        left = [f"catalog {catalog.path}: {what}" for what in report.structure]
        left += [f"model {version}: {why}" for version, why in self._mend_models(report.bad_models).items()]
        left += [f"dead letters: {report.bad_letters} lines"] if report.bad_letters else []
        if catalog.damage:
            damaged = [*report.bad_indexes, *map(str, report.bad_rows)]
            return 0, left + damaged + [f"catalog {table}[{key!r}]" for table, key in report.bad_values]
        files = self.drop(report)
        values = mend.values(self.publisher, report.bad_values, self.alive)
        left += [f"catalog {table}[{key!r}]" for table, key in values]
        while bad := [of for of in report.bad_rows if self._named(of)]:
            if max(self._rows_failures, self.jobs.failures) >= FAILURES_MAX:  # also others, which it waits for
                break
            self._rows_tried.clear()
            await self._rows_tried.wait()
        left += [f"row file {self.layout.row_file(*of).name}" for of in bad]
        models = len(report.bad_models) - sum(what.startswith("model ") for what in left)
        return files - len(bad) + models + len(report.bad_values) - len(values), left

    def _mend_models(self, bad: dict[str, str]) -> dict[str, str]:
        """Those that cannot be written again, and why."""
        left = {}
        for version in bad:
            try:
                mended_models(self.layout, self.publisher.catalog, self.config, version, self.alive)
            except (EngineError, OSError) as e:
                left[version] = str(e)
        return left

    def _named(self, of: tuple[int, int, int]) -> bool:
        manifest = self.publisher.manifest
        return of[1] in manifest.numbers and manifest.row_file(of[1]) == of

    def use_model(self, version: str, done: Switched) -> None:
        """Use a model from now on; done(None) when all stored events are embedded by it and it answers, or done(error)
        and nothing has changed. That of a switch which is under way: wait for it; the one in use: give that switch up.
        Raises NotFoundError, OverloadedError, ModelError, NoSpaceError."""
        self._clear_up()
        publisher, manifest = self.publisher, self.publisher.manifest
        if version not in embed_models.versions(self.layout.models):
            raise NotFoundError(f"no model version {version!r}; `flowkin models list` names them")
        if version == manifest.model:
            if manifest.switch is not None:
                switch.give_up(publisher)
                self.jobs.call_off(FillJob)
                self._end(EngineError(f"the switch was given up; {version} stays in use"))
            done(None)
        elif manifest.switch is not None and manifest.switch.to.model == version:
            self._switched.append(done)
        elif manifest.switch is not None:
            raise OverloadedError(_under_way(manifest))
        elif manifest.count == 0:
            publisher.use(self._load(version), model=version)
            done(None)
        else:
            try:
                switch.begin(publisher, self._load(version), switch.target(self.layout, manifest, version))
            except OSError as e:
                raise EngineError(f"{e}; the model was not changed") from e
            self._switched.append(done)
            if publisher.manifest.switch is None:  # all rows were there
                self._in_use(version, True)
            self._wanted.set()

    def roll_back(self, done: Switched) -> None:
        """Use the version before again, whose rows are kept; as use_model. Raises BadRequestError where none are."""
        manifest, kept = self.publisher.manifest, self.publisher.manifest.kept
        if manifest.switch is not None:
            raise OverloadedError(_under_way(manifest))
        if kept is None:
            raise BadRequestError(
                "no version is kept to go back to; nothing was changed; "
                "`flowkin models use VERSION` embeds the stored events anew"
            )
        if not switch.whole(self.layout, manifest, kept):
            raise BadRequestError(
                f"files of {kept.model} are gone; nothing was changed; "
                f"`flowkin models use {kept.model}` embeds the stored events anew"
            )
        self.use_model(kept.model, done)

    async def idle(self) -> None:
        """Wait until nothing is due."""
        for due, done in (
            (self._wanted, self._idle), (self._mergeable, self._merged), (self._leaving, self._swept),
        ):  # fmt: skip
            done.clear()
            due.set()
            await done.wait()

    async def settled(self) -> bool:
        """As idle; False where something fails time and again."""
        waiting = asyncio.create_task(self.idle())
        self.jobs.failures = self.merges.failures = self._failures = 0
        try:
            while not waiting.done():
                if max(self.jobs.failures, self.merges.failures, self._failures) >= FAILURES_MAX:
                    return False
                await asyncio.wait({waiting}, timeout=LOOK_S)
            return True
        finally:
            waiting.cancel()

    def remove_abandoned(self) -> None:
        """Files of a switch that was given up, unless they are still being made; a merge need not end for that."""
        if self.publisher.other is None and self.jobs.running != FillJob.__name__:
            gc.remove(self.layout, gc.abandoned(self.layout, self.publisher.manifest))

    def kill(self) -> None:
        self.jobs.kill()
        self.merges.kill()

    async def run(self) -> None:
        """For ever."""
        self._look_at_age()
        self.look()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._again(self._next))
            group.create_task(self._again(self._merge))
            group.create_task(self._again(self._sweep))

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        """One thing after the other; what fails is reported and tried again later."""
        while True:
            try:
                await work()
            except Exception as e:
                self._failures += 1
                log.error("upkeep: %r; again in %.0f s", e, AGAIN_S, exc_info=e)
                await asyncio.sleep(AGAIN_S)

    async def _next(self) -> None:
        if bad := [of for of in self._bad_rows if of not in self._put_off]:
            await self._mend_rows(bad[0])
        elif self._clear_up():
            self._collect()
        elif self._retaining and not self.publisher.catalog.damage:
            self._retaining = False
            self._retain()
        elif self.publisher.manifest.switch is not None:
            unindexed = self._unindexed()
            if len(unindexed) >= UNINDEXED_FILES_HURRY:  # what is in use comes first, but not alone
                await self._index(unindexed[:1])
            await self._go_on()
        elif unindexed := self._unindexed():
            await self._index(unindexed[:1])
        elif early := self._early:
            self._early, number = None, early[0] // self.publisher.manifest.row_file_rows
            if early == tiers.early(self.publisher.manifest) and not self._bad(number):  # nothing else came between
                await self._indexed([[number]], self.jobs, early)
        else:
            self._wanted.clear()
            self.look()  # at rows of the file that is being filled: there may be no further event to do it
            self._idle.set()
            await self._wanted.wait()
            self._idle.clear()

    def _look_at_age(self) -> None:
        self._retaining = True
        self._wanted.set()
        asyncio.get_running_loop().call_later(RETENTION_S, self._look_at_age)

    def _retain(self) -> None:
        """Let what is due leave; its records follow slice by slice."""
        first = self.publisher.manifest.first
        try:
            gone = retention.retain(self.publisher, self.config.retention)
        finally:
            if self.publisher.manifest.first > first:  # also where a file of it could not be unlinked
                self._leaving.set()
                self._mergeable.set()
        if gone:
            log.info("%d events left by retention, the oldest is now seq %d", gone, self.publisher.manifest.first_seq)

    async def _sweep(self) -> None:
        """Delete a slice of what left; apart from all else, as the first retention of a large store takes an hour."""
        if not self.publisher.catalog.damage and retention.sweep(self.publisher):
            await asyncio.sleep(SWEEP_PAUSE_S)
            return
        self._leaving.clear()
        self._swept.set()
        await self._leaving.wait()
        self._swept.clear()

    def _load(self, version: str) -> ModelSet:
        return load_models(self.layout.model(version), self.publisher.catalog, self.internal, self.alive)

    def _unindexed(self) -> list[int]:
        return [number for number in tiers.unindexed(self.publisher.manifest) if not self._bad(number)]

    def _bad(self, number: int) -> bool:
        """Is that row file built again first?"""
        return self.publisher.manifest.row_file(number) in self._bad_rows

    def _job(self, kind: Callable[..., Job], **more: object) -> Job:
        return kind(data_dir=str(self.layout.data_dir), parent_pid=os.getpid(), map_size=map_size(self.config), **more)

    async def _merge(self) -> None:
        """Make one index of several, or several over what is left of one."""
        self._mergeable.clear()
        manifest = self.publisher.manifest
        ranges = [] if manifest.switch else tiers.split(manifest)
        if not ranges and not manifest.switch and (numbers := tiers.mergeable(manifest, self._merged_files_max)):
            ranges = [numbers]
        if not ranges:
            self._collect()  # what a release could not unlink
            self._merged.set()
            await self._mergeable.wait()
            self._merged.clear()
            return
        built = await self._indexed(ranges, self.merges)
        if built is not None and built.bad_rows:  # they are built again, and their indexes first then
            await self._mergeable.wait()
        else:
            self._mergeable.set()
        files = max(map(len, ranges))
        if self.merges.failures >= FAILURES_MAX and files > tiers.FILES[-1]:  # there may be no memory for so many
            self._merged_files_max = min(self._merged_files_max, files // 2)
            log.error("indexes are over %d row files at most until the next start", self._merged_files_max)

    async def _index(self, numbers: Sequence[int]) -> None:
        """An index in each space over these row files."""
        built = await self._indexed([numbers], self.jobs)
        if built is not None:
            self._mergeable.set()

    async def _indexed(
        self, ranges: Sequence[Sequence[int]], jobs: Jobs, part: tuple[int, int] | None = None
    ) -> Built | None:
        """One index in each space over each of these ranges of row files, in the place of what is there, in one commit.
        part: or over those seqs only, of the one row file. None where that failed or was in vain."""
        numbers = [number for some in ranges for number in some]
        names = [self.publisher.manifest.row_file(number) for number in numbers]
        made = Built()
        for some in ranges:
            built = await self._built(some, jobs, part)
            if built is None or built.bad_rows:
                self._unlink(made)
                if built is not None:
                    self._bad_rows += [of for of in built.bad_rows if of not in self._bad_rows]
                    self._wanted.set()
                return built
            made.indexes += built.indexes
            made.sealed += built.sealed
            made.seconds += built.seconds
        before = self.publisher.manifest
        if names != [before.row_file(number) for number in numbers]:  # built for rows of before
            self._unlink(made)
            return None
        self._retaining = True  # there is more than before
        self._wanted.set()
        if made.indexes:
            self.publisher.swap_in([IndexFile(*i) for i in made.indexes], [SealedRows(*s) for s in made.sealed])
            gc.release(self.layout, before, self.publisher.manifest)
            self._collect()
            size = sum(i[4] for i in made.indexes)
            which = f"row file {numbers[0]}" if len(numbers) == 1 else f"row files {numbers[0]} to {numbers[-1]}"
            if part:
                which = f"{part[1] - part[0]} rows of {which}"
            log.info("%s indexed in every space: %d bytes, %.1f s", which, size, made.seconds)
        return made

    async def _built(self, numbers: Sequence[int], jobs: Jobs, part: tuple[int, int] | None) -> Built | None:
        """One index in each space over these row files, or a part of one, which no manifest names yet; none where they
        left. None where that failed."""
        manifest = self.publisher.manifest
        if numbers[-1] < manifest.first:
            return Built()
        names = [manifest.row_file(number) for number in numbers]
        mark = secrets.token_hex(4)
        job = self._job(IndexJob, row_files=names, rows=manifest.row_file_rows, part=part, mark=mark)
        idle_s = 0.0 if manifest.stale else IDLE_S_A_ROW_FILE * len(numbers)  # what was purged is not to stay there
        try:
            built = await (jobs.run(job, niceness=0) if self._hurry(jobs) else jobs.run(job, idle_s=idle_s))
        except TimeoutError:
            for path in self.layout.indexes.glob(f"*-{mark}*"):  # what it had made
                path.unlink(missing_ok=True)
            built = await (jobs.run(job, niceness=0) if self._hurry(jobs) else jobs.run(job))
        if built is None:
            await jobs.pause()
        else:
            self.publisher.stages.add("index", int(built.seconds * 1e9), int(built.cpu_s * 1e9))
        return built

    def _hurry(self, jobs: Jobs) -> bool:
        return jobs is self.jobs and len(self._unindexed()) >= UNINDEXED_FILES_HURRY

    def _unlink(self, built: Built) -> None:
        """Indexes that no manifest will name."""
        for of in built.indexes:
            self.layout.index_file(IndexFile(*of).file).unlink(missing_ok=True)

    def _collect(self) -> None:
        """Remove what nothing names; not while a child builds what nothing names yet, its end comes by here again."""
        if not self.jobs.running and not self.merges.running:
            gc.collect(self.layout, self.publisher.manifest)

    async def _mend_rows(self, of: tuple[int, int, int]) -> None:
        """Build a damaged row file again, if it is still there. Where that fails all else comes first."""
        try:
            async with self.rewriting:
                if self._named(of):
                    await self._build_again(of)
            self._bad_rows.remove(of)
            self._rows_failures = 0
        except Exception as e:
            unforeseen = None if isinstance(e, EngineError | OSError) else e
            log.error("row file %d is not built again: %r; again in %.0f s", of[1], e, AGAIN_S, exc_info=unforeseen)
            self._rows_failures += 1
            self._put_off.add(of)
            asyncio.get_running_loop().call_later(AGAIN_S, self._put_on, of)
        finally:
            self._rows_tried.set()

    def _put_on(self, of: tuple[int, int, int]) -> None:
        self._put_off.discard(of)
        self._wanted.set()

    async def _build_again(self, of: tuple[int, int, int]) -> None:
        """A damaged row file, from the records. Raises EngineError, OSError."""
        epoch, number, revision = of
        log.error("row file %d disagrees with its checksums, built again from the records", number)
        manifest = self.publisher.manifest
        rows = manifest.row_file_rows
        if (number + 1) * rows > manifest.count:  # the one that is written to
            mend_rows(self.publisher, number, self.alive)
        else:
            job = self._job(
                RowsJob, row_file=(epoch, number, revision + 1), rows=rows, count=rows, model=manifest.model,
                internal=self.internal, key_file=self.key_file,
            )  # fmt: skip
            done = await self.jobs.run(job)
            if done is None:
                raise EngineError("the child failed, see above")
            if not self._named(of):  # it left meanwhile
                self.layout.row_file(epoch, number, revision + 1).unlink(missing_ok=True)
                return
            self.publisher.replace_rows(number, revision + 1, [SealedRows(*s) for s in done.sealed])
            quarantine.put(self.layout, self.layout.row_file(*of))
        gc.release(self.layout, manifest, self.publisher.manifest)

    # ---- a switch of models

    def _given_up(self) -> bool:
        """Has a publish given the switch up?"""
        return self.publisher.other is not None and self.publisher.manifest.switch is None

    def _clear_up(self) -> bool:
        """What a switch that a publish gave up leaves in memory. False where there is none."""
        if not self._given_up():
            return False
        self.publisher.embed_alone()
        self.jobs.call_off(FillJob)
        model = self.publisher.manifest.model
        self._end(EngineError(f"the switch was given up, see the log; {model} stays in use"))
        return True

    async def _go_on(self) -> None:
        """One step: the next row file, or the end."""
        under_way = self.publisher.manifest.switch
        if under_way is None:
            return
        try:
            if under_way.done:
                switch.finish(self.publisher)
                self._in_use(under_way.to.model, under_way.was_kept)
            elif not await self._fill(under_way) and self.jobs.failures >= FAILURES_MAX:
                raise EngineError(f"a step failed {FAILURES_MAX} times in a row; the model was not changed")
        except (EngineError, OSError) as e:
            model = self.publisher.manifest.model
            log.error("the switch to %s is given up, %s stays in use: %s", under_way.to.model, model, e)
            if self.publisher.manifest.switch is not None:
                switch.give_up(self.publisher)
            self._end(e if isinstance(e, EngineError) else EngineError(f"{e}; the model was not changed"))

    def _in_use(self, version: str, kept: bool) -> None:
        log.info("model %s is in use", version)
        self._end(None)
        if kept:  # nobody looked at those files for long
            self.scrub_soon()

    async def _fill(self, under_way: Switch) -> bool:
        """Embed the events of one row file anew. False where that failed."""
        to, rows = under_way.to, self.publisher.manifest.row_file_rows
        number, first = divmod(to.count, rows)
        end = min((number + 1) * rows, under_way.since)
        file = to.row_file(number)
        built = await self.jobs.run(
            self._job(
                FillJob, row_file=file, rows=rows, first=first, count=end - number * rows, model=to.model,
                internal=self.internal, key_file=self.key_file,
            )
        )  # fmt: skip
        now = self.publisher.manifest.switch
        if now is None or now.to != to:  # it was given up meanwhile
            self._collect()
            return True
        if built is None:
            await self.jobs.pause()
            return False
        if built.bad_rows:
            raise EngineError(
                f"rows of {self.layout.row_file(*file)} disagree with their checksums; the model was not changed; "
                f"`flowkin models gc` removes what is kept of {to.model}, `flowkin models use` then embeds all anew"
            )
        switch.advance(
            self.publisher, end, built.seconds, [SealedRows(*s) for s in built.sealed],
            [IndexFile(*i) for i in built.indexes],
        )  # fmt: skip
        log.info("switch to %s: %d of %d events", to.model, end, now.since)
        return True

    def _end(self, error: Exception | None) -> None:
        """Tell all who wait for the switch."""
        self._mergeable.set()
        waiting, self._switched = self._switched, []
        for done in waiting:
            done(error)


def _under_way(manifest: Manifest) -> str:
    assert manifest.switch is not None
    return (
        f"a switch to {manifest.switch.to.model} is under way; wait for it, or give it up: "
        f"`flowkin models use {manifest.model}`"
    )
