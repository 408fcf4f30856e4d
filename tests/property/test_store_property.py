"""The store against a dict: any order of publishing, labelling, indexing, damaging, switching and reopening."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.embed.base import SPACES
from engine.embed.models import shipped
from engine.search import filters
from engine.store import switch
from ipc.event import Event
from ipc.messages import Filter
from tests.events import make
from tests.store_fixture import OTHER, ROWS, Store

numbers = st.integers(0, 400)


class Model(RuleBasedStateMachine):
    """`stored`: what must be there, in order: event id -> destination port. `labels`: by event id."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="flowkin-property-"))
        self.store: Store | None = None
        self.stored: dict[str, int] = {}
        self.labels: dict[str, str] = {}
        self.conflicts = 0
        self.generation = 0
        self.seqs: dict[str, int] = {}  # of `stored`
        self.next = 0  # the next seq

    def _store(self, new: dict[str, int]) -> None:
        self.stored |= new
        for name in new:
            self.seqs[name] = self.next
            self.next += 1

    @property
    def open(self) -> Store:
        assert self.store is not None
        return self.store

    @initialize()
    def birth(self) -> None:
        self.store = Store(self.folder / "data")
        self.generation = self.open.generation

    def teardown(self) -> None:
        if self.store is not None:
            self.store.check()
            self.store.close()
        shutil.rmtree(self.folder)

    # ---- what may happen

    @rule(first=numbers, count=st.integers(1, 90))
    def publish(self, first: int, count: int) -> None:
        items = [make(n) for n in range(first, first + count)]
        ports = {i.event.event_id: i.event.dst_port or 0 for i in items}
        new = {name: port for name, port in ports.items() if name not in self.stored}
        others = sum(self.stored.get(name, port) != port for name, port in ports.items())
        outcome = self.open.publish(items)
        same = count - len(new) - others
        assert (outcome.accepted, outcome.duplicates, len(outcome.rejects)) == (len(new), same, others)
        self.conflicts += others
        self._store(new)

    @rule(number=numbers)
    def publish_other_content(self, number: int) -> None:
        item = make(number, dst_port=9)
        known = item.event.event_id in self.stored
        other = known and self.stored[item.event.event_id] != 9
        outcome = self.open.publish([item])
        assert (outcome.accepted, outcome.duplicates, len(outcome.rejects)) == (not known, known and not other, other)
        self.conflicts += other
        if not known:
            self._store({item.event.event_id: 9})

    @precondition(lambda self: self.stored)
    @rule(data=st.data(), label=st.sampled_from(["", "good", "bad"]))
    def annotate(self, data: Any, label: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.stored)))
        self.open.publisher.annotate(name, label, "ana")
        self.labels[name] = label

    @rule()
    def index(self) -> None:
        self.open.index()

    @precondition(lambda self: self.store is not None and self.store.publisher.manifest.count >= ROWS)
    @rule(data=st.data(), slices=st.sampled_from([0, 1, 1 << 30]))
    def let_leave(self, data: Any, slices: int) -> None:
        """Retention, and so much of deleting the records."""
        manifest = self.open.publisher.manifest
        first = data.draw(st.integers(manifest.first, manifest.count // ROWS))
        self.open.leave(first, slices)
        for name in [name for name, seq in self.seqs.items() if seq < first * ROWS]:
            del self.stored[name], self.seqs[name]
            self.labels.pop(name, None)

    @precondition(lambda self: self.store is not None and self.store.publisher.manifest.switch is None)
    @rule(remainder=st.integers(0, 6), dividend=st.sampled_from([2, 7, 40]))
    def purge(self, remainder: int, dividend: int) -> None:
        gone = [name for name in self.stored if int(name[1:]) % dividend == remainder]
        for at in range(0, len(gone), 100):
            assert self.open.purge(None, gone[at : at + 100])["events"] == len(gone[at : at + 100])
        for name in gone:
            del self.stored[name]
            self.seqs.pop(name)
            self.labels.pop(name, None)

    @rule()
    def replace_stale_indexes(self) -> None:
        self.open.split()

    @rule()
    def compact(self) -> None:
        self.open.compact()

    @rule()
    def reopen(self) -> None:
        """Without a word, as after a kill."""
        self.open.close()
        self.store = Store(self.folder / "data")

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def lose_a_row_file(self, data: Any) -> None:
        manifest = self.open.publisher.manifest
        number = data.draw(st.sampled_from(manifest.numbers))
        self.open.layout.row_file(*manifest.row_file(number)).unlink()
        self.reopen()

    @precondition(lambda self: self.store is not None and self.store.publisher.manifest.switch is None)
    @rule(whole=st.booleans())
    def switch_models(self, whole: bool) -> None:
        """To the other version, or back; perhaps only begun."""
        other = OTHER if self.open.publisher.manifest.model != OTHER else shipped().name
        if whole:
            self.open.switch(other)
        else:
            self.open.begin_switch(other)

    @precondition(lambda self: self.store is not None and self.store.publisher.manifest.switch is not None)
    @rule()
    def go_on_with_a_switch(self) -> None:
        if not self.open.go_on():
            switch.finish(self.open.publisher)

    @precondition(lambda self: self.store is not None and self.store.publisher.manifest.switch is not None)
    @rule()
    def give_a_switch_up(self) -> None:
        switch.give_up(self.open.publisher)

    @precondition(lambda self: self.store is not None)
    @rule()
    def forget_the_version_before(self) -> None:
        switch.forget(self.open.publisher)

    # ---- what must hold

    @invariant()
    def generations_only_grow(self) -> None:
        if self.store is not None:
            assert self.open.generation >= self.generation
            assert self.open.publisher.counter.value == self.open.generation
            self.generation = self.open.generation

    @invariant()
    def everything_is_there_once(self) -> None:
        if self.store is None:
            return
        assert self.open.ids() == list(self.stored)
        assert self.open.publisher.counters.conflicts == self.conflicts
        with self.open.catalog.read() as view:
            for name in list(self.stored)[:: max(1, len(self.stored) // 5)]:
                found = view.find(name)
                assert found == self.seqs[name]
                head = view.head(found)
                assert head is not None
                assert msgspec.msgpack.decode(head, type=Event).dst_port == self.stored[name]
                note = view.annotation(found)
                assert (note.label if note else "") == self.labels.get(name, "")

    @invariant()
    def readers_see_one_generation(self) -> None:
        if self.store is None:
            return
        snapshot = self.open.snapshot()
        assert (snapshot.generation, snapshot.events) == (self.open.generation, len(self.stored))
        with self.open.catalog.read() as view:
            labelled = filters.mask(snapshot, filters.tests(Filter(), snapshot), {"label": ["good"]}, view)
        places = {seq - snapshot.first_seq: name for name, seq in self.seqs.items()}
        assert [places[i] for i in np.flatnonzero(labelled)] == [
            name for name in self.stored if self.labels.get(name) == "good"
        ]
        if self.stored:
            name = list(self.stored)[-1]
            answer = self.open.ask(name, space=SPACES[len(self.stored) % 3], top_k=5, collapse=False)
            assert len(answer.hits) == min(5, len(self.stored) - 1)
            assert {hit.seq for hit in answer.hits} <= set(self.seqs.values())
            assert [h.distance for h in answer.hits] == sorted(h.distance for h in answer.hits)
            assert answer.exact or len(self.stored) >= ROWS


TestStore = Model.TestCase
TestStore.settings = settings(max_examples=20, stateful_step_count=15, deadline=None, derandomize=True)
