"""Asks the readers all the time, and compares each answer with the oracle.

Always true
  - A finding is a broken promise. Being refused for a time (no engine, late, overloaded) is none, and is counted.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from engine.embed import models
from engine.embed.base import ModelSet
from engine.features import unpack
from engine.layout import Layout
from ipc.client import Client
from ipc.errors import ClientError, ConnectError, NotFoundError
from ipc.event import Event
from ipc.messages import Answer, ErrorCode, Options, Stored
from tests.store_fixture import OTHER, other_model
from tests.torture.oracle import FOLLOWED, Oracle, difference, number_of

REFUSED = {ErrorCode.OVERLOADED, ErrorCode.NOT_READY, ErrorCode.DEADLINE}
LINEAR = ("chronos", "attack")  # spaces whose vectors are cheaply made again
CLOSE = 1e-3
FINDINGS_MAX = 50


class Checks:
    """Threads that ask until `stop`; each has a client, so a connection, of its own."""

    def __init__(self, data_dir: Path, oracle: Oracle, scratch: Path, seed: int) -> None:
        self.data_dir, self.oracle = data_dir, oracle
        self.findings: list[str] = []
        self.done, self.refused = Counter[str](), Counter[str]()
        self.models: dict[str, ModelSet] = {}
        for path in (models.shipped(), other_model(Layout(scratch))):
            self.models[path.name] = models.load(path)
        assert OTHER in self.models
        self.stopping = threading.Event()
        self.threads = [
            threading.Thread(target=self._always, args=(ask, pause_s, random.Random(seed + i)), name=ask.__name__)
            for i, (ask, pause_s) in enumerate(((self._look_up, 0.05), (self._search, 0.1), (self._list, 0.5)))
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def found(self, text: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(text)

    def _always(self, ask: Callable[[_Asking], None], pause_s: float, chance: random.Random) -> None:
        with Client.for_data_dir(self.data_dir, timeout_ms=5_000, client_name=ask.__name__) as client:
            asking = _Asking(self, client, chance)
            while not self.stopping.wait(pause_s):
                try:
                    ask(asking)
                    self.done[ask.__name__.strip("_")] += 1
                except ClientError as e:
                    self.refused[type(e).__name__] += 1
                    if not isinstance(e, ConnectError) and e.code not in REFUSED:
                        self.found(f"{ask.__name__}: {e!r}")
                except Exception as e:
                    self.found(f"{ask.__name__} failed: {e!r}")

    def _look_up(self, of: _Asking) -> None:
        """A batch: all of it, as it was sent, at the first try after its acknowledgement. Or none of it."""
        acknowledged = of.begin()
        pending = self.oracle.open()
        batch = of.chance.choice(pending) if pending and of.chance.random() < 0.3 else self.oracle.draw(of.chance)
        if batch is None:
            return
        wait_for = batch.generation if of.chance.random() < 0.5 else 0
        purged = batch.first in self.oracle.purged
        found = of.client.get(batch.ids, features=True, raw=True, min_generation=wait_for)
        of.saw(found.generation, max(acknowledged, batch.generation))
        names = [stored.event.event_id for stored in found.events]  # type: ignore[union-attr]
        if self.oracle.may_be_gone(batch):
            if purged and names:
                self.found(f"purged, and there in generation {found.generation}: {names} of {batch}")
        elif batch.generation and names != batch.ids:
            self.found(f"lost in generation {found.generation}: {found.missing} of {batch}")
        elif names not in ([], batch.ids):
            self.found(f"half a batch in generation {found.generation}: {len(names)} of {batch}")
        of.compare(found.events, whole=True)

    def _search(self, of: _Asking) -> None:
        """Neighbours of an event: stored ones, no two the same, the nearest first, as far as their vectors say."""
        acknowledged = of.begin()
        batch = self.oracle.draw(of.chance)
        if batch is None:
            return
        name = of.chance.choice(batch.ids)
        space = of.chance.choice((*LINEAR, *LINEAR, "sbert", "fused"))
        options = Options(
            space=space, top_k=of.chance.randint(1, 12), collapse=of.chance.random() < 0.5,
            explain=of.chance.random() < 0.1,
        )  # fmt: skip
        purged = set(self.oracle.purged)
        try:
            reply = of.client.query_similar(name, options=options)
        except NotFoundError:
            if not self.oracle.may_be_gone(batch):
                raise
            return
        of.saw(reply.generation, max(acknowledged, batch.generation))
        (answer,) = reply.answers
        seqs = [hit.seq for hit in answer.hits]
        distances = [hit.distance for hit in answer.hits]
        if len(set(seqs)) != len(seqs) or distances != sorted(distances) or not np.isfinite(distances).all():
            self.found(f"hits of {name} in {space}: {list(zip(seqs, distances, strict=True))}")
        of.compare([Stored(hit.seq, hit.event) for hit in answer.hits])
        for number in [number_of(hit.event.event_id) for hit in answer.hits]:  # type: ignore[union-attr]
            if purged and number < FOLLOWED and self.oracle.batch_of(number).first in purged:
                self.found(f"purged, and a neighbour of {name}: event {number}")
        if space in LINEAR and answer.hits:
            self._measure(of, name, answer)

    def _measure(self, of: _Asking, name: str, answer: Answer) -> None:
        """Its distances against vectors made here, of what is stored."""
        found = of.client.get([name, *(hit.event.event_id for hit in answer.hits)], features=True)  # type: ignore[union-attr]
        if found.missing and (self.oracle.retains or self.oracle.asked):  # gone since
            return
        events = [stored.event for stored in found.events]
        assert all(isinstance(event, Event) for event in events)
        embedder = self.models[answer.model].embedders[answer.space]
        vectors = embedder.embed(events, unpack([s.features for s in found.events])).astype(np.float64)  # type: ignore[arg-type]
        made = np.linalg.norm(vectors[1:] - vectors[0], axis=1)
        told = np.array([hit.distance for hit in answer.hits])
        if not np.allclose(told, made, rtol=CLOSE, atol=CLOSE):
            self.found(f"distances of {name} in {answer.space} of {answer.model}: {told}, its vectors say {made}")
        self.done["distances"] += len(told)

    def _list(self, of: _Asking) -> None:
        """Everything there is: seqs in order and without a gap but for what was removed, each event once and as it was
        when first seen, no half batch."""
        of.begin()
        batches, purged = list(self.oracle.acknowledged), set(self.oracle.purged)
        numbers, seqs = set[int](), dict[int, int]()
        after = -1
        while True:
            acknowledged = of.begin()
            page = of.client.list(after_seq=after, limit=500)
            of.saw(page.generation, acknowledged)
            found = [stored.seq for stored in page.events]
            whole = not self.oracle.retains and not self.oracle.asked
            expected = (
                list(range(after + 1, after + 1 + len(found))) if whole else sorted({s for s in found if s > after})
            )
            if found != expected:
                self.found(f"seqs after {after}: {found}")
            for stored in page.events:
                number = number_of(stored.event.event_id)  # type: ignore[union-attr]
                if number in numbers:
                    self.found(f"twice: event {number}")
                numbers.add(number)
                seqs[stored.seq] = number
                content = xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(stored.event))
                if stored.seq not in of.seen:
                    of.compare([stored])
                elif of.seen[stored.seq] != content:
                    self.found(f"seq {stored.seq} is no longer what it was, it is {stored.event}")
                of.seen[stored.seq] = content
            if page.next_seq < 0 or self.stopping.is_set():
                break
            after = page.next_seq
        if page.next_seq < 0:
            retains = self.oracle.retains  # what left while the pages were read is in the first of them
            first = min((stored.seq for stored in of.client.list(limit=1).events), default=0) if retains else 0
            left = {number for seq, number in seqs.items() if seq >= first}
            for text in self.oracle.broken(left, batches, purged, retains=self.oracle.retains):
                self.found(text)


class _Asking:
    """One thread's: what it has seen. seen: hash of the event, by seq."""

    def __init__(self, checks: Checks, client: Client, chance: random.Random) -> None:
        self.checks, self.client, self.chance = checks, client, chance
        self.generation = 0
        self.seen: dict[int, int] = {}

    def begin(self) -> int:
        """The newest generation that was acknowledged before what is asked now."""
        return self.checks.oracle.look().generation

    def saw(self, generation: int, least: int) -> None:
        """Also on another connection, to another reader, none is older: all look at the same commits."""
        least = max(least, self.generation)
        if generation < least:
            self.checks.found(f"generation {generation} after {least}")
        self.generation = max(generation, self.generation)

    def compare(self, events: Sequence[Stored], *, whole: bool = False) -> None:
        for stored in events:
            if wrong := difference(stored, whole=whole):
                self.checks.found(wrong)
            self.checks.done["records"] += 1
