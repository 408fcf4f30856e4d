"""A reader: one process that answers.

Always true
  - It only maps and reads, holds no state worth keeping, and may die at any time.
  - All requests that wait are answered together: one read transaction, one snapshot, one generation. The transaction
    ends before anything is awaited.
  - A request that would wait for most of its deadline is refused when it comes, and one whose deadline passed is not
    worked on: otherwise an overload is answered with answers that nobody waits for any more.
  - What needs time (a text to embed, events that are not stored) is prepared in a thread and then queued like the rest.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress, islice

import faiss
import msgspec
import numpy as np

from engine import facts
from engine.admission import Pending, Turns, in_time, is_heavy, mean, places
from engine.embed.base import DIMS, SPACES, Embedder, ModelSet
from engine.embed.text import TextEmbedder
from engine.errors import (
    BadRecordError,
    BadRequestError,
    BootError,
    CorruptionError,
    DeadlineError,
    NotFoundError,
    NotReadyError,
    WrongModelError,
)
from engine.features import F32, unpack
from engine.limits import YOUNG_OBJECTS_MAX
from engine.normalize import complete
from engine.run import access, confine
from engine.run.worker import Worker
from engine.search import lookup
from engine.search.classify import Classifying, compared, options_of
from engine.search.context_query import QueryContext
from engine.search.query import A, Answering, Question, spaces_of, stored_question
from engine.search.snapshot import Snapshot, Snapshots
from engine.store.catalog import Catalog, View
from engine.store.cipher import cipher_of
from engine.store.counter import Counter
from engine.store.memo import load_models
from engine.store.recover import map_size
from engine.version import VERSION
from ipc.event import Event
from ipc.messages import (
    Answer,
    Answers,
    Classified,
    Classify,
    Explain,
    Explained,
    Facts,
    Generation,
    Get,
    Info,
    Judgement,
    List,
    Models,
    Options,
    Ping,
    Pong,
    QueryEvent,
    QuerySimilar,
    QueryVector,
    Recent,
    Request,
    SearchText,
    Stats,
    Watch,
    encode,
)
from ipc.server import Connection, Server

log = logging.getLogger(__name__)

BATCH_REQUESTS_MAX = 64  # answered in one read transaction
BATCH_QUESTIONS_MAX = 64  # searched together
BATCH_EXPLAINED_MAX = 8  # of which reasons are asked: each looks at the columns of all events, and at all of a kind
BATCH_HITS_MAX = 8_192  # of them; between two such batches the reader gives a sign of life
# FAISS has memory for the products of so many queries and 1,024 rows made for each search by BLAS: with its own 4,096
# these are 16 MiB, which malloc fetches and gives back each time (MALLOC in engine/run/supervisor.py).
faiss.cvar.distance_compute_blas_query_bs = BATCH_QUESTIONS_MAX
WATCH_S = 0.020
KEEP_UP_S = 0.25  # how often an idle reader looks for a new generation, so that it holds nothing that is gone
WAIT_S = 0.002  # how often a request for a later generation looks again


class Reader:
    def __init__(self, worker: Worker) -> None:
        self.worker, self.config = worker, worker.config
        cipher = cipher_of(self.config.store.key_file, worker.layout.data_dir)  # before it is confined
        self.catalog = Catalog(worker.layout.catalog, write=False, map_size=map_size(self.config), cipher=cipher)
        self.catalog.need_key()
        self.counter = Counter(worker.layout.generation, write=False)
        self.counted = 0  # what the counter was when CURRENT was last looked at
        self.snapshots = Snapshots(worker.layout)
        self.models: ModelSet | None = None
        self.context = QueryContext(self.catalog, self.config.network.internal)
        self.thread = ThreadPoolExecutor(1, "prepare")
        self.pending = Turns()
        self.preparing = 0
        self.each_s = {False: 0.0, True: 0.0}  # what one request took of late, a heavy one; see mean()
        self.prepare_each_s = 0.0
        self.served: list[Pending] = []  # the last batch, if more waited
        self.served_s = 0.0  # when it began
        self.waiting: list[Pending] = []
        self.watchers: dict[tuple[Connection, int], int] = {}
        self.watching: asyncio.TimerHandle | None = None
        self.scheduled = False
        self.confined = confine.Confined()
        self.tasks: set[asyncio.Task[None]] = set()
        self.may_read = access.access(self.config)["read"]
        self.server = Server(
            role="read", handle=self.handle, generation=lambda: self.counter.value, name=worker.role, version=VERSION,
            other_socket=str(worker.layout.write_socket),
            bounds=worker.bounds(), admit=self.admit, places=self.places,
        )  # fmt: skip

    async def run(self) -> None:
        self._confine()  # before the first thread
        try:
            self._answer([])
        except FileNotFoundError:  # as in _serve
            self._answer([])
        gc.freeze()  # the collector need not go through what stays
        gc.set_threshold(YOUNG_OBJECTS_MAX)  # answers hold no cycles
        self.worker.serve(self.server)
        self.worker.ready()
        keeping_up = self.worker.loop.create_task(self._keep_up())
        await self.worker.stopping.wait()
        await self.server.drain()
        keeping_up.cancel()
        self.thread.shutdown(wait=True, cancel_futures=True)
        self.snapshots.close()
        self.catalog.close()

    def _confine(self) -> None:
        """Before anything is read that a peer or a source could have made, and before the first thread. Open by now:
        the heartbeat, the channel, the generation, the catalog with its lock file and, while it is compacted, the one
        that takes its place."""
        how = self.config.readers.confine
        if how == "off":
            return
        layout = self.worker.layout
        self.catalog.open_next()
        found = confine.confine([layout.data_dir, *confine.libraries()], require=how == "require")
        self.worker.heartbeat.put(confine=1, landlock=found.landlock, seccomp=int(found.seccomp))
        if found.why:
            log.warning("confined by %s only: %s", found, found.why)
        self.confined = found

    def _take_over(self, view: View) -> tuple[Snapshot, ModelSet]:
        """Snapshot and models of the generation that this transaction sees."""
        snapshot = self.snapshots.refresh(view)
        if self.models is None or self.models.version != snapshot.manifest.model:
            path = self.worker.layout.model(snapshot.manifest.model)
            self.worker.heartbeat.put(questions=0, novel=0)  # no close precedent is by the bound of a version
            self.models = load_models(path, self.catalog, self.config.network.internal)
        return snapshot, self.models

    def admit(self, connection: Connection) -> str:
        if self.may_read.has(connection.uid, connection.gid):
            return ""
        self.worker.audit.add(connection.uid, connection.pid, "read", "connect", "DENIED")
        return f"user {access.user(connection.uid)} may not ask here; access.read names who may"

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(KEEP_UP_S)
            current = self.snapshots.current
            if not self.pending and (current is None or self.counter.value != current.generation):
                try:
                    self._answer([])
                except Exception as e:  # a request would hear of it; the next look comes
                    log.warning("generation %d is not taken over yet: %s", self.counter.value, e)

    # ---- arrival --------------------------------------------------------------------------------------------------

    def handle(self, connection: Connection, request: Request) -> None:
        pending = Pending(connection, request, time.monotonic(), is_heavy(request))
        limit_ms = self.config.readers.deadline_ms
        if isinstance(request, Stats) and self.confined.landlock:
            self._measure(pending)
        elif isinstance(request, SearchText | QueryEvent) or (isinstance(request, Classify) and request.events):
            if in_time(pending, self.preparing * self.prepare_each_s, limit_ms):
                self._prepare(pending)
        else:
            ahead, few = self.pending.ahead(pending), 1 if pending.heavy else BATCH_REQUESTS_MAX
            if ahead < few or in_time(pending, ahead * self.each_s[pending.heavy], limit_ms):
                self._queue(pending)

    def places(self) -> int:
        return places(len(self.pending) + len(self.waiting) + self.preparing)

    def _queue(self, pending: Pending) -> None:
        self.pending.append(pending)
        if not self.scheduled:
            self.scheduled = True
            self.worker.loop.call_soon(self._serve)

    def _measure(self, pending: Pending) -> None:
        """The supervisor looks at the memory of the workers first."""

        async def wait() -> None:
            await self.worker.measured()
            self._queue(pending)

        self.tasks.add(task := self.worker.loop.create_task(wait()))
        task.add_done_callback(self.tasks.discard)

    def _prepare(self, pending: Pending) -> None:
        """Embed in the thread, then queue. A pending with questions was embedded for a model no longer in use: its
        features stand, as taking the events in again would count them twice in their session."""
        self.preparing += 1
        models = self.models
        assert models is not None

        def work() -> list[Question]:
            start_s = time.monotonic()
            if not pending.connection.wants(pending.request.request_id):
                return []
            if pending.overdue(self.config.readers.deadline_ms, start_s):
                raise DeadlineError("its deadline passed; try again")
            found = prepared()
            self.prepare_each_s = mean(self.prepare_each_s, time.monotonic() - start_s)
            return found

        def prepared() -> list[Question]:
            if isinstance(pending.request, SearchText):
                return [self._text_question(pending.request, models)]
            if pending.questions is not None:
                return [_for_model(question, models) for question in pending.questions]
            assert isinstance(pending.request, QueryEvent | Classify)
            return self._event_questions(pending.connection, pending.request, models)

        async def wait() -> None:
            try:
                questions = await self.worker.loop.run_in_executor(self.thread, work)
                self._queue(pending._replace(questions=questions, model=models.version))
            except Exception as e:
                pending.connection.fail(pending.request.request_id, _told(e))
            finally:
                self.preparing -= 1

        task = self.worker.loop.create_task(wait())
        task.add_done_callback(lambda t: t.exception())

    def _text_question(self, request: SearchText, models: ModelSet) -> Question:
        if request.options.space != "sbert":
            raise BadRequestError(f"a text is searched in the space sbert, not in {request.options.space}")
        text = models.embedders["sbert"]
        assert isinstance(text, TextEmbedder)
        return Question(request.options, {"sbert": text.embed_texts([request.text])[0]})

    def _event_questions(
        self, connection: Connection, request: QueryEvent | Classify, models: ModelSet
    ) -> list[Question]:
        options = options_of(request.options) if isinstance(request, Classify) else request.options
        spaces_of(options)
        events: list[Event] = []
        for i, item in enumerate(request.events):
            try:
                events.append(complete(item))
            except BadRecordError as e:
                raise BadRequestError(f"event {i} ({item.event.event_id!r}): {e.reason}") from e
        features = unpack([item.features for item in request.events])
        self.context.forget(lambda session: session[0] not in self.server.connections)
        self.context.fill(events, features, (connection, request.session) if request.session else None)
        known = np.isfinite(features).sum(1).tolist()
        questions = [
            Question(
                compared(options, n) if isinstance(request, Classify) else options, {},
                head=msgspec.msgpack.encode(event), features=features[i], decoded=event,
            )
            for i, (event, n) in enumerate(zip(events, known, strict=True))
        ]  # fmt: skip
        for space in SPACES:
            some = [i for i, question in enumerate(questions) if space in spaces_of(question.options)]
            if some:
                asked = _asked(models.embedders[space], [events[i] for i in some], features[some])
                for i, vector in zip(some, asked, strict=True):
                    questions[i].vectors[space] = vector
        return questions

    # ---- answering ------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Answer what waits, in one read transaction."""
        self.scheduled = False
        now_s = time.monotonic()
        if self.served:  # more waited: what the loop read and refused meanwhile counts, too
            heavy = self.served[0].heavy
            self.each_s[heavy] = mean(self.each_s[heavy], (now_s - self.served_s) / len(self.served))
        batch: list[Pending] = []
        for pending in self.pending.batch(BATCH_REQUESTS_MAX):
            if not pending.connection.wants(pending.request.request_id):
                continue
            if pending.overdue(self.config.readers.deadline_ms, now_s):
                pending.connection.fail(pending.request.request_id, DeadlineError("its deadline passed; try again"))
                continue
            batch.append(pending)
        self.served, self.served_s = [], now_s
        if self.pending:
            self.served = batch
            self.scheduled = True
            self.worker.loop.call_soon(self._serve)
        if not batch:
            return
        try:
            try:
                self._answer(batch)
            except FileNotFoundError:  # a file of this manifest was just replaced: the newest one names another
                self._answer(batch)
        except Exception as e:  # what is not one request's own fault: all of the batch hear of it
            for pending in batch:
                pending.connection.fail(pending.request.request_id, _told(e))
        if (
            batch[0].heavy and not self.served
        ):  # else one slow request is believed until two wait again, which it forbids
            self.each_s[True] = mean(self.each_s[True], time.monotonic() - now_s)

    def _answer(self, batch: list[Pending]) -> None:
        if self.counted != (counted := self.counter.value):
            self._follow()  # a compaction is a generation, too
            self.counted = counted
        with self.catalog.read() as view:
            snapshot, models = self._take_over(view)
            self.worker.stamp(generation=snapshot.generation, searching=f"generation {snapshot.generation}")
            self._serve_batch(batch, snapshot, models, view)
            self.worker.heartbeat.searching("")

    def _follow(self) -> None:
        """Use another catalog where one was put in place. One that was not open before this process was confined it
        cannot open: then it leaves, and the next reader can."""
        try:
            self.catalog.follow()
        except BootError as e:
            if not self.confined.landlock and not self.confined.seccomp:
                raise
            log.warning("leaving for a reader that can open it: %s", e)
            self.worker.stop()
            raise NotReadyError("this reader is being replaced; try again") from e

    def _serve_batch(self, batch: list[Pending], snapshot: Snapshot, models: ModelSet, view: View) -> None:
        queries: list[tuple[Pending, list[Question]]] = []
        classified: list[tuple[Pending, list[Question]]] = []
        for pending in batch:
            if pending.min_generation > snapshot.generation:
                self._wait(pending)
                continue
            if pending.questions is not None and pending.model != models.version:  # switched meanwhile
                self._prepare(pending)
                continue
            try:
                mine = self._questions(pending, snapshot, models, view)
                if mine is None:
                    self._reply_simple(pending, snapshot, models, view)
                else:
                    asked = classified if isinstance(pending.request, Classify) else queries
                    asked.append((pending, mine))
            except Exception as e:
                pending.connection.fail(pending.request.request_id, _told(e))
        if queries:
            self._reply_together(queries, Answering(snapshot, models, view).answer, Answers, snapshot.generation)
        if classified:
            self._reply_together(classified, Classifying(snapshot, models, view).judge, Classified, snapshot.generation)

    def _reply_together(
        self,
        asked: list[tuple[Pending, list[Question]]],
        answer: Callable[[list[Question]], list[A | Exception]],
        reply: Callable[[int, int, list[A]], Answers | Classified],
        generation: int,
    ) -> None:
        """Answer the questions of several requests at once; a request of which one fails hears of that."""
        answers = self._in_slices(answer, [question for _, mine in asked for question in mine])
        counted: list[Answer | Judgement] = []
        for pending, mine in asked:
            request_id = pending.request.request_id
            given = list(islice(answers, len(mine)))
            error = next((one for one in given if isinstance(one, Exception)), None)
            if error is not None:
                pending.connection.fail(request_id, _told(error))
            else:
                good = [one for one in given if not isinstance(one, Exception)]
                among_all = [q.head is not None and q.options.filter is None and not q.unknown for q in mine]
                counted += compress(good, among_all)
                pending.connection.reply_raw(request_id, encode(reply(request_id, generation, good)))
        # for no_close_precedent_share: events only, among all that are stored
        self.worker.heartbeat.add("questions", len(counted))
        self.worker.heartbeat.add("novel", sum(a.no_close_precedent for a in counted))

    def _in_slices(
        self, answer: Callable[[list[Question]], list[A | Exception]], questions: list[Question]
    ) -> Iterator[A | Exception]:
        """A message may ask a thousand questions, and each holds a mask over all events until it is answered; or for a
        thousand hits of each, or for all reasons."""
        begin = hits = explained = 0
        for end, question in enumerate(questions):
            hits += question.options.top_k
            explained += question.options.explain
            many = end - begin == BATCH_QUESTIONS_MAX or hits > BATCH_HITS_MAX or explained > BATCH_EXPLAINED_MAX
            if many and end > begin:
                yield from answer(questions[begin:end])
                self.worker.stamp()
                begin, hits, explained = end, question.options.top_k, int(question.options.explain)
        if questions:
            yield from answer(questions[begin:])
            self.worker.stamp()

    def _questions(self, pending: Pending, snapshot: Snapshot, models: ModelSet, view: View) -> list[Question] | None:
        """What is to be searched for a request; None where it is none of the queries."""
        request = pending.request
        match request:
            case QuerySimilar():
                return [stored_question(request.id, request.options, snapshot, view, models)]
            case QueryVector():
                return [_vector_question(request, models)]
            case SearchText() | QueryEvent():
                return _sought(pending.questions or [], snapshot, view)
            case Classify():
                if not request.ids and not request.events:
                    raise BadRequestError("nothing to classify: give ids of stored events, or events")
                options = options_of(request.options)
                stored = [stored_question(name, options, snapshot, view, models) for name in request.ids]
                for i, question in enumerate(stored):
                    other = compared(options, snapshot.cell("coverage", question.seq))
                    if other is not options:
                        stored[i] = stored_question(request.ids[i], other, snapshot, view, models)
                return stored + _sought(pending.questions or [], snapshot, view)
        return None

    def _reply_simple(self, pending: Pending, snapshot: Snapshot, models: ModelSet, view: View) -> None:
        connection, request, generation = pending.connection, pending.request, snapshot.generation
        match request:
            case Ping():
                connection.reply(Pong(request.request_id, generation))
            case Info():
                connection.reply(Facts(request.request_id, generation, facts.info(view, self.config)))
            case Stats():
                figures = facts.stats(self.worker.layout, view, request.features, self.config.upgrade)
                connection.reply(Facts(request.request_id, generation, figures))
            case Models():
                connection.reply(Facts(request.request_id, generation, facts.models(self.worker.layout, view)))
            case Get():
                connection.reply(lookup.found(request, snapshot, view))
            case List():
                connection.reply(lookup.listed(request, snapshot, view))
            case Recent():
                connection.reply(lookup.recent(request, snapshot, view))
            case Explain():
                options = Options(space=request.space)
                question = stored_question(request.query, options, snapshot, view, models)
                seq = view.find(request.hit)
                if seq is None or not snapshot.has(seq):
                    raise NotFoundError(f"no event {request.hit!r}; `flowkin recent` lists some")
                if len(question.vectors) > 1:
                    raise BadRequestError("explain takes one space: chronos, sbert or attack")
                why = Answering(snapshot, models, view).explain_pair(question, request.space, seq)
                connection.reply(Explained(request.request_id, generation, why))
            case Watch():
                self.watchers[connection, request.request_id] = request.after_generation
                self._watch([(connection, request.request_id)])
            case _:
                raise BadRequestError(f"{type(request).__name__} is not for the query socket")

    # ---- waiting --------------------------------------------------------------------------------------------------

    def _wait(self, pending: Pending) -> None:
        """Queue it again when the generation it asks for is there, or tell it that it is not."""
        if not self.waiting:
            self.worker.loop.call_later(WAIT_S, self._look_again)
        self.waiting.append(pending)

    def _look_again(self) -> None:
        now_s, generation = time.monotonic(), self.counter.value
        waiting, self.waiting = self.waiting, []
        for pending in waiting:
            if pending.min_generation <= generation:
                self._queue(pending)
            elif pending.overdue(self.config.readers.deadline_ms, now_s):
                pending.connection.fail(
                    pending.request.request_id,
                    NotReadyError(f"generation {pending.min_generation} is not there, this is {generation}; ask again"),
                )
            elif pending.connection.wants(pending.request.request_id):
                self.waiting.append(pending)
        if self.waiting:
            self.worker.loop.call_later(WAIT_S, self._look_again)

    def _watch(self, some: list[tuple[Connection, int]] | None = None) -> None:
        """Tell watchers, or some of them, of a generation that they have not seen; again and again while there are
        any."""
        generation = self.counter.value
        for connection, request_id in some or list(self.watchers):
            if not connection.wants(request_id):
                del self.watchers[connection, request_id]
            elif generation > self.watchers[connection, request_id]:
                self.watchers[connection, request_id] = generation
                connection.reply(Generation(request_id, generation), more=True)
        if some is None or self.watching is None:
            self.watching = self.worker.loop.call_later(WATCH_S, self._watch) if self.watchers else None


def _told(error: Exception) -> Exception:
    """What a client hears: our own errors in their words; a damaged value is named."""
    if isinstance(error, CorruptionError):
        log.error("%s", error)
    return error


def _sought(questions: list[Question], snapshot: Snapshot, view: View) -> list[Question]:
    """Of events that were sent: one that is stored, meanwhile or all along, is not its own neighbour."""
    for question in questions:
        if question.event is not None:
            known = view.identity(question.event.event_id, question.event.source)
            question.seq = known[0] if known and snapshot.has(known[0]) else -1
    return questions


def _asked(embedder: Embedder, events: Sequence[Event], features: F32) -> F32:
    return embedder.asked(embedder.embed(events, features))


def _for_model(question: Question, models: ModelSet) -> Question:
    """A question about an event that is not stored, with its vectors of these models."""
    assert question.event is not None and question.features is not None
    event, features = [question.event], question.features[None, :]
    vectors = {space: _asked(models.embedders[space], event, features)[0] for space in question.vectors}
    return msgspec.structs.replace(question, vectors=vectors)


def _vector_question(request: QueryVector, models: ModelSet) -> Question:
    (space, *more) = spaces_of(request.options)
    if more:
        raise BadRequestError("a vector belongs to one space: name it (chronos, sbert or attack)")
    if request.model != models.version:
        raise WrongModelError(f"the vector is of model {request.model!r}, this engine uses {models.version!r}")
    if len(request.vector) != 4 * DIMS[space]:
        raise BadRequestError(
            f"a {space} vector has {DIMS[space]} float32, {4 * DIMS[space]} bytes; these are {len(request.vector)}"
        )
    vector: F32 = np.frombuffer(request.vector, "<f4")
    if not np.isfinite(vector).all():
        raise BadRequestError("the vector has NaN or infinite components")
    return Question(request.options, {space: vector})


def main(worker: Worker) -> int:
    if worker.config.readers.confine != "off":
        confine.without_rings()
    return worker.run(Reader(worker).run())
