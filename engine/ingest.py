"""The ingest worker: the one process that writes.

Always true
  - It holds writer.lock from before its first write until it ends.
  - A submission is acknowledged only when its events are durable and visible, and its dead letters durable.
  - Saves at once when idle, else when `save_events` wait or the oldest has waited `save_after_ms`; a save takes
    all that waits, up to `commit_events`.
  - Indexes, repairs and switches of models are engine/maintain/upkeep.py's, in a child where they take long.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from engine import facts
from engine.config import Config, Source
from engine.embed import models as embed_models
from engine.errors import (
    BadRequestError,
    DeniedError,
    EngineError,
    ModelError,
    NoSpaceError,
    NotReadyError,
    OverloadedError,
    SourceError,
)
from engine.flows.split import Limits
from engine.limits import YOUNG_OBJECTS_MAX
from engine.maintain import gauges, purge
from engine.maintain.compact import Compacting
from engine.maintain.measuring import Measuring
from engine.maintain.scrubbing import Scrubbing
from engine.maintain.upkeep import Switched, Upkeep
from engine.orders import MAY, ORDERS, about, failed, outcome_of
from engine.run import access, heartbeat, lag, listen
from engine.run.guard import Guard
from engine.run.process import settle
from engine.run.worker import Worker
from engine.sources.base import Parsed, SourceSpec
from engine.sources.follow import Batch, FileState, Follower
from engine.store import lock, switch
from engine.store.keys import read_key
from engine.store.publish import Outcome, Publisher, Submission, say_if_full
from engine.store.recover import open_store
from engine.version import VERSION
from ipc.messages import (
    AddModel,
    Compact,
    Done,
    Facts,
    ForgetModel,
    Info,
    Ingest,
    Ingested,
    Label,
    Measure,
    Ping,
    Pong,
    Purge,
    Request,
    RollbackModel,
    Scrub,
    Stats,
    UseModel,
)
from ipc.server import STOPS, STOPS_RETRY_AFTER_MS, UNDONE, Connection, Server

log = logging.getLogger(__name__)

Work = Coroutine[Any, Any, tuple[int, dict[str, Any]]]  # the generation it is answered with, and what it found
READER_CHECK_S = 3.0
RETRY_AFTER_MS = 50
NO_SPACE_RETRY_S = 1.0
FOLLOW_BYTES = 1 << 18  # read and stored at once: embedding new texts holds up the loop for 10 ms each
AGAIN_S = 10.0  # a source that failed is begun again
LAG_EVERY_S = 1.0
LAG_SHARE_MAX = 0.02  # of the time is spent on reporting it


class IngestWorker:
    def __init__(self, worker: Worker, publisher: Publisher) -> None:
        self.worker, self.publisher = worker, publisher
        self.config = worker.config
        self.queue: deque[Submission] = deque()
        self.waiting_events = 0
        self.met = 0  # damage, by all workers that live
        self.oldest_s = 0.0  # when the oldest waiting submission came
        self.last_save_s = 0.0
        self.timer: asyncio.Handle | None = None
        self.upkeep = Upkeep(worker.layout, worker.config, publisher, worker.stamp)
        self.scrubbing = Scrubbing(worker, self.upkeep)
        self.measuring = Measuring(worker, lambda: self.publisher.manifest)
        self.compacting = Compacting(worker, publisher)
        self.access = access.access(self.config)
        self.guard = Guard(self.config.sources)
        self.purging = asyncio.Lock()
        self.tasks: set[asyncio.Task[None]] = set()
        self.followers: dict[str, Follower] = {}
        self.listeners: dict[str, listen.Listener] = {}
        self.listening: dict[str, asyncio.Task[None]] = {}
        self.lag = lag.Book(worker.layout, self.config)
        self.server = Server(
            role="write", handle=self.handle, generation=lambda: self.publisher.manifest.generation,
            name=worker.role, version=VERSION, other_socket=str(worker.layout.query_socket),
            bounds=worker.bounds(), admit=self.admit,
        )  # fmt: skip

    async def run(self) -> None:
        worker = self.worker
        worker.serve(self.server)
        worker.on_suspect(self._on_suspect)
        self._spawn(self.upkeep.run())
        self._spawn(self.measuring.always())
        self._spawn(self.scrubbing.always())
        self._spawn(self._check_readers())
        self._start_sources()
        await asyncio.sleep(0)  # now its sockets are bound
        worker.ready()
        self._spawn(self._load_text())
        log.info("ready: generation %d, %d events", self.publisher.manifest.generation, self.publisher.manifest.events)
        await worker.stopping.wait()
        await self._stop_listening()
        self.upkeep.kill()
        self.measuring.kill()
        self.scrubbing.kill()
        self.compacting.kill()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        draining = asyncio.ensure_future(self.server.drain())
        await asyncio.sleep(0)
        while self.queue:
            self.save()
            await asyncio.sleep(0)
        await draining
        if not self.publisher.catalog.damage:
            self.publisher.checkpoint()
        self.publisher.close()
        self.publisher.catalog.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task died: %r", error, exc_info=error)

    # ---- messages -------------------------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> str:
        connection.roles = access.roles_of(self.access, connection.uid, connection.gid)
        if connection.roles & access.WRITING:
            return ""
        self.worker.audit.add(connection.uid, connection.pid, "ingest", "connect", "DENIED")
        return f"user {access.user(connection.uid)} may not write here; {MAY}"

    def handle(self, connection: Connection, request: Request) -> None:
        self.worker.stamp()  # one read may bring thousands that are answered at once
        role, what = ORDERS.get(type(request), (None, ""))
        if role is not None and role not in connection.roles:
            who = access.user(connection.uid)
            log.warning("denied: %s by uid %d pid %d (%s)", what, connection.uid, connection.pid, connection.client)
            self._audit(connection, request, DeniedError.code.name)
            raise DeniedError(f"user {who} may not {what} here; {MAY}")
        if self.worker.stopping.is_set() and type(request) in UNDONE:
            self._audit(connection, request, "STOPPED")
            connection.fail(request.request_id, NotReadyError(STOPS), retry_after_ms=STOPS_RETRY_AFTER_MS)
            return
        try:
            self._handle(connection, request)
        except Exception as e:
            self._audit(connection, request, outcome_of(e))
            raise

    def _audit(self, connection: Connection, request: Request, outcome: str, *, events: int = 0) -> None:
        """A write, an order, or a refusal. Writes of events are summed up, orders never."""
        role, what = ORDERS.get(type(request), (None, ""))
        if role is not None:
            denied = outcome == DeniedError.code.name
            self.worker.audit.add(
                connection.uid, connection.pid, role, what, outcome, "" if denied else about(request),
                events=events, alone=not denied and not isinstance(request, Ingest),
            )  # fmt: skip

    def _handle(self, connection: Connection, request: Request) -> None:
        generation = self.publisher.manifest.generation
        match request:
            case Ping():
                connection.reply(Pong(request.request_id, generation))
            case Stats() | Info():
                with self.publisher.catalog.read() as view:
                    if isinstance(request, Stats):
                        found = facts.stats(self.worker.layout, view, request.features, self.config.upgrade)
                    else:
                        found = facts.info(view, self.config)
                connection.reply(Facts(request.request_id, generation, found))
            case Ingest():
                self._on_ingest(connection, request)
            case Label():
                self.save_all()
                by = request.by or access.user(connection.uid)
                found_generation = self.publisher.annotate(request.id, request.label, by)
                self._audit(connection, request, "done")
                connection.reply(Done(request.request_id, found_generation))
            case AddModel():
                models = embed_models.vetted(request.files)
                if models.version != request.version:
                    raise BadRequestError(f"the card says version {models.version!r}, the request {request.version!r}")
                try:
                    embed_models.save(self.worker.layout.models, request.files)
                except OSError as e:
                    say_if_full(e, "version")
                    raise
                self.publisher.know_cards()
                self._audit(connection, request, "done")
                connection.reply(Done(request.request_id, generation, {"version": models.version}))
            case UseModel():
                self._on_switch(connection, request, partial(self.upkeep.use_model, request.version))
            case RollbackModel():
                self._on_switch(connection, request, self.upkeep.roll_back)
            case ForgetModel():
                kept = self.publisher.manifest.kept
                freed = switch.forget(self.publisher)
                found_generation = self.publisher.manifest.generation
                gone = {"version": kept.model if kept else "", "bytes": freed}
                self._audit(connection, request, "done")
                connection.reply(Done(request.request_id, found_generation, gone))
            case Measure():
                self._spawn(self._ordered(connection, request, self._measure(request), "nothing was changed"))
            case Scrub():
                self._spawn(self._ordered(connection, request, self._scrub(), "what was mended stays mended"))
            case Compact():
                self._spawn(self._ordered(connection, request, self._compact(), "nothing was changed"))
            case Purge():
                self.save_all()
                left = "what was not removed is whole: ask for the purge again"
                self._spawn(self._ordered(connection, request, self._purge(request), left))
            case _:
                raise BadRequestError(f"{type(request).__name__} is not for the write socket")

    def _on_switch(
        self, connection: Connection, request: UseModel | RollbackModel, begin: Callable[[Switched], None]
    ) -> None:
        def done(error: Exception | None) -> None:
            manifest = self.publisher.manifest
            self._audit(connection, request, outcome_of(error))
            if error is not None:
                connection.fail(request.request_id, error)
            else:
                connection.reply(Done(request.request_id, manifest.generation, {"version": manifest.model}))

        self.save_all()
        begin(done)

    async def _ordered(self, connection: Connection, request: Request, work: Work, left: str) -> None:
        """Answer an order that takes a while, and write down what came of it. left: what is there if it failed."""
        try:
            generation, told = await work
        except (EngineError, OSError) as e:
            error = failed(e, left)
            self._audit(connection, request, outcome_of(error))
            connection.fail(request.request_id, error, retry_after_ms=RETRY_AFTER_MS)
        except asyncio.CancelledError:  # who ordered it is told by the server, which drains
            self._audit(connection, request, "STOPPED")
            raise
        except Exception as e:
            self._audit(connection, request, outcome_of(e))
            connection.fail(request.request_id, e)
        else:
            self._audit(connection, request, "done", events=told["events"] if isinstance(request, Purge) else 0)
            connection.reply(Done(request.request_id, generation, told))

    async def _measure(self, request: Measure) -> tuple[int, dict[str, Any]]:
        measured = await self.measuring.ask(request.sample, request.seed)
        return measured.generation, gauges.facts(self.worker.layout, measured, self.config.upgrade, whole=True)

    async def _scrub(self) -> tuple[int, dict[str, Any]]:
        found = await self.scrubbing.ask()
        return self.publisher.manifest.generation, found

    async def _compact(self) -> tuple[int, dict[str, Any]]:
        found = await self.compacting.run()
        return found["generation"], found

    async def _purge(self, request: Purge) -> tuple[int, dict[str, Any]]:
        if self.purging.locked():
            raise OverloadedError("a purge is under way; try again")
        async with self.purging, self.upkeep.rewriting:
            self.upkeep.remove_abandoned()
            try:
                told = await purge.purge(
                    self.publisher, request.filter, request.ids, dry_run=request.dry_run, alive=self.worker.stamp
                )
            finally:
                self.upkeep.replace_indexes()
        return self.publisher.manifest.generation, told

    def _on_ingest(self, connection: Connection, request: Ingest) -> None:
        size = len(request.events) + len(request.actions)
        if self.waiting_events and self.waiting_events + size > self.config.ingest.queue_events:
            connection.fail(
                request.request_id, OverloadedError(f"{self.waiting_events} events wait to be stored; send it again"),
                retry_after_ms=RETRY_AFTER_MS,
            )  # fmt: skip
            return
        if (wait_s := self.guard.wait_s(request.source, size)) > 0:
            error = OverloadedError(f"source {request.source!r} has brought its rate_max; send it again")
            connection.fail(request.request_id, error, retry_after_ms=max(1, round(wait_s * 1_000)))
            return
        events, actions, rejects = request.events, request.actions, request.rejects
        if "admin" not in connection.roles:
            events, actions, late = self.guard.within(request.source, events, actions)
            rejects = [*rejects, *late]

        def done(outcome: Outcome | Exception) -> None:
            if isinstance(outcome, Exception):
                self._audit(connection, request, outcome_of(outcome))
                connection.fail(request.request_id, outcome, retry_after_ms=RETRY_AFTER_MS)
                return
            self._audit(connection, request, "done", events=outcome.accepted)
            letters = str(self.worker.layout.dead_letters) if outcome.rejects else ""
            connection.reply(
                Ingested(
                    request.request_id, outcome.generation, outcome.accepted, outcome.duplicates, len(outcome.rejects),
                    letters, outcome.joined, outcome.waiting,
                )
            )  # fmt: skip

        self.submit(
            Submission(
                request.format,
                events,
                rejects,
                done,
                source=request.source,
                actions=actions,
                not_ip=request.not_ip,
            )
        )

    async def _load_text(self) -> None:
        try:
            await asyncio.to_thread(self.publisher.load_text)
        except ModelError as e:  # what is known needs none
            log.error("%s", e)

    # ---- saving ---------------------------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> None:
        """Queue it and see that it is saved in time."""
        now = time.monotonic()
        if not self.queue:
            self.oldest_s = now
        self.queue.append(submission)
        self.waiting_events += submission.size
        after_s = self.config.ingest.save_after_ms / 1000
        idle = now - self.last_save_s >= after_s
        if idle or self.waiting_events >= self.config.ingest.save_events:
            self._save_in(0.0)
        elif self.timer is None:
            self._save_in(self.oldest_s + after_s - now)

    def _save_in(self, delay_s: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        loop = self.worker.loop
        self.timer = loop.call_soon(self.save) if delay_s <= 0 else loop.call_later(delay_s, self.save)

    def save(self) -> None:
        """Publish what waits, up to commit_events; acknowledge it."""
        self.timer = None
        batch: list[Submission] = []
        events = 0
        while self.queue and (not batch or events + self.queue[0].size <= self.config.ingest.commit_events):
            batch.append(self.queue.popleft())
            events += batch[-1].size
        self.waiting_events -= events
        if batch:
            self._publish(batch)
        self.last_save_s = time.monotonic()
        self.worker.stamp(generation=self.publisher.manifest.generation)
        if self.queue:
            self.oldest_s = self.last_save_s
            self._save_in(0.0)

    def save_all(self) -> None:
        while self.queue:
            self.save()

    def _publish(self, batch: list[Submission]) -> None:
        checkpointed = self.publisher.checkpointed
        try:
            outcomes = self.publisher.publish(batch)
        except OSError as e:  # the disk does not keep its word: no second try; the next start sees what is there
            log.critical("ingest ends, nothing of this batch was acknowledged: %s", e)
            logging.shutdown()
            os._exit(1)
        except Exception as e:
            if len(batch) == 1 or isinstance(e, NoSpaceError):
                log.error("%d events were not stored: %s", sum(len(s.events) for s in batch), e)
                for submission in batch:
                    submission.done(e)
                return
            for submission in batch:  # one bad submission must not cost the others theirs
                self._publish([submission])
            return
        for submission, outcome in zip(batch, outcomes, strict=True):
            submission.done(outcome)
        self.publisher.stages.lap("publish")
        self.upkeep.look()
        if self.publisher.checkpointed != checkpointed:
            settle()

    # ---- housekeeping ---------------------------------------------------------------------------------------------

    def _on_suspect(self, searching: str) -> None:
        log.error("readers died while searching %s: row files and indexes are looked at", searching)
        self._spawn(self._check_files())

    async def _check_files(self) -> None:
        await self.scrubbing.check_files()
        self.worker.checked()

    async def _check_readers(self) -> None:
        """Free the reader slots of killed processes: one that is pinned lets the catalog grow without bound. Hear what
        damage readers met, and this process."""
        while True:
            await asyncio.sleep(READER_CHECK_S)
            self.publisher.catalog.env.reader_check()
            beats = [heartbeat.read(path) for path in self.worker.layout.run.glob("*.heartbeat")]
            met = sum(beat.damage for beat in beats if beat is not None)
            if met > self.met:
                self.scrubbing.met()
            self.met = met

    # ---- followed files and listening sockets ---------------------------------------------------------------------

    def _start_sources(self) -> None:
        for name, source in self.config.sources.items():
            if source.listen:
                self.listening[name] = self._spawn(self._always(name, self._listen, source))
            else:
                self._spawn(self._always(name, self._follow_stored, source))
        self._spawn(self._tell_lag())

    async def _always(
        self, name: str, work: Callable[[str, Source], Coroutine[Any, Any, None]], source: Source
    ) -> None:
        """Follow or listen until the end; after an error that it does not know, begin again, at most every AGAIN_S."""
        stopping = self.worker.stopping
        while not stopping.is_set():
            begun_s = time.monotonic()
            try:
                await work(name, source)
            except Exception as e:
                if self.lag.error(name, str(e) or repr(e)):
                    log.error("source %s: %s; tried again every %.0f s", name, e, AGAIN_S, exc_info=not _is_ours(e))
            else:
                return
            if not stopping.is_set():
                await asyncio.sleep(max(0.0, begun_s + AGAIN_S - time.monotonic()))

    async def _follow_stored(self, name: str, source: Source) -> None:
        """Follow one source from its stored states."""
        prefix = f"{name}\0".encode()
        with self.publisher.catalog.read() as view:
            states = {
                key[len(prefix) :].decode(): msgspec.msgpack.decode(state, type=FileState)
                for key, state in view.scan("offsets", prefix=prefix)
            }
        follower = self.followers[name] = Follower(
            source.path, spec_of(name, source, self.config), format=source.format, pattern=source.pattern,
            states=states,
        )  # fmt: skip
        try:
            await self._follow(name, source, follower)
        finally:
            del self.followers[name]
            follower.close()

    async def _follow(self, name: str, source: Source, follower: Follower) -> None:
        """Store what is new, batch by batch; the next look comes when the last batch is durable."""
        while True:
            batches: list[Batch] = []
            try:
                self.publisher.stages.start()
                batches = follower.poll(FOLLOW_BYTES, time.monotonic())
                self.publisher.stages.lap("parse")
                self.lag.error(name)
            except SourceError as e:
                if self.lag.error(name, str(e)):
                    log.error("source %s: %s; looking again every %d ms", name, e, source.poll_ms)
            for batch in batches:
                state = b"" if batch.state is None else msgspec.msgpack.encode(batch.state)
                format_name = batch.format or source.format
                await self._store(name, format_name, batch.parsed, {f"{name}\0{batch.key}".encode(): state})
                self.lag.stored(name, batch)
            if not follower.behind:
                await asyncio.sleep(source.poll_ms / 1000)

    async def _listen(self, name: str, source: Source) -> None:
        """Store what comes over a socket until it is stopped and all that was read is stored."""
        sockets = self.config.sockets
        intake = listen.Intake(spec_of(name, source, self.config), source.format)
        listener = self.listeners[name] = listen.Listener(
            lag.listen_path(self.worker.layout, source), int(sockets.write_mode, 8), sockets.write_group,
            self.worker.layout.listen_counts(name), self.access["ingest"], self.worker.layout.audit,
        )  # fmt: skip
        self.lag.error(name)
        try:
            while (piece := await listener.take()) is not None:
                self.publisher.stages.start()
                parsed = intake.parse(piece)
                self.publisher.stages.lap("parse")
                await self._store(name, source.format, parsed, {})
                listener.stored(piece)
        finally:
            del self.listeners[name]
            listener.close()

    async def _stop_listening(self) -> None:
        """What was read is stored first, as far as the time for draining allows; the rest is counted as lost."""
        for listener in self.listeners.values():
            listener.stop()
        if draining := [self.listening[name] for name in self.listeners]:  # the others wait to begin again
            await asyncio.wait(draining, timeout=self.config.drain_ms / 2_000)

    async def _store(self, name: str, format_name: str, parsed: Parsed, offsets: dict[bytes, bytes]) -> None:
        """Submit it and wait until it is durable, a full disk included. Raises what else went wrong."""
        parsed.events, parsed.actions, late = self.guard.within(name, parsed.events, parsed.actions)
        parsed.rejects = [*parsed.rejects, *late]
        while (wait_s := self.guard.wait_s(name, len(parsed.events) + len(parsed.actions))) > 0:
            await asyncio.sleep(wait_s)
        most = self.config.ingest.commit_events  # the end of a capture may bring 200,000
        last = max(0, len(parsed.events) - 1) // most * most
        for at in range(0, last, most):
            await self._store_some(name, format_name, Parsed(parsed.events[at : at + most], []), {})
        parsed = msgspec.structs.replace(parsed, events=parsed.events[last:])
        await self._store_some(name, format_name, parsed, offsets)

    async def _store_some(self, name: str, format_name: str, parsed: Parsed, offsets: dict[bytes, bytes]) -> None:
        while parsed.events or parsed.rejects or parsed.actions or parsed.not_ip or offsets:
            future: asyncio.Future[Outcome | Exception] = asyncio.get_running_loop().create_future()

            def done(outcome: Outcome | Exception, future: asyncio.Future[Outcome | Exception] = future) -> None:
                if not future.cancelled():
                    future.set_result(outcome)

            self.submit(
                Submission(
                    format_name, parsed.events, parsed.rejects, done, offsets, name, parsed.actions, parsed.not_ip
                )
            )  # fmt: skip
            outcome = await future
            if not isinstance(outcome, Exception):
                return
            if not isinstance(outcome, NoSpaceError):
                raise outcome
            log.error("source %s: %s; trying again", name, outcome)
            await asyncio.sleep(NO_SPACE_RETRY_S)

    async def _tell_lag(self) -> None:
        while True:
            start_s = time.monotonic()
            for listener in self.listeners.values():
                listener.look()
            try:
                self.lag.write(self.followers, self.listeners)
            except OSError as e:
                log.warning("%s cannot be written: %s", self.worker.layout.sources, e)
            await asyncio.sleep(max(LAG_EVERY_S, (time.monotonic() - start_s) / LAG_SHARE_MAX))


def _is_ours(error: Exception) -> bool:
    """Its words say all; of others the place matters, too."""
    return isinstance(error, EngineError | OSError)


def spec_of(name: str, source: Source, config: Config) -> SourceSpec:
    """What the adapters of a configured source need to know. Raises SourceError for a bad key file."""
    flows, join = config.flows, config.join
    return SourceSpec(
        name, sensor=source.sensor, timezone=source.timezone,
        hmac_key=read_key(Path(source.hmac_key_file)) if source.hmac_key_file else b"",
        flows=Limits(flows.idle_s, flows.active_s, flows.flows_max, tunnels=flows.tunnels),
        join_pending_max=join.pending_max, join_wait_s=join.wait_s,
    )  # fmt: skip


def main(worker: Worker) -> int:
    gc.set_threshold(YOUNG_OBJECTS_MAX)
    layout = worker.layout
    layout.make()
    fd = lock.hold(layout.writer_lock, worker.stamp)
    try:
        publisher = open_store(layout, worker.config, worker.stamp)
        publisher.warm()
        settle()
        return worker.run(IngestWorker(worker, publisher).run())
    finally:
        os.close(fd)
