"""An EVE log under any mix of growth, rotation and death: every flow is stored once, with its own text."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sources import follow
from engine.sources.base import SourceSpec
from engine.sources.follow import Follower
from tests.unit.test_eve import ALERT, FLOW, HTTP, lines
from tests.unit.test_follow import append
from tests.unit.test_zeek_follow import Store

STEP = st.sampled_from(
    ["text", "text", "text", "flow", "flow", "alert", "poll", "poll", "small", "kill", "die 0", "die 1", "die 2",
     "rename", "copy", "compress", "quiet"]
)  # fmt: skip
QUIET_POLLS = 3


class Suricata:
    """Writes texts and, later, their flows; a flow's source port says which. Its log is rotated in every way."""

    def __init__(self, root: Path, pending_max: int) -> None:
        self.root, self.log, self.old = root, root / "eve.json", root / "eve.json.1"
        self.spec, self.store = SourceSpec("eve", join_pending_max=pending_max), Store()
        self.follower = Follower(root, self.spec, "eve", states={})
        self.flows = self.alerts = self.rotations = 0
        self.open: list[int] = []
        self.closed: set[int] = set()

    def poll(self, max_bytes: int = 1 << 20, stored: int | None = None) -> None:
        """stored: the process dies after so many batches."""
        for batch in self.follower.poll(max_bytes)[:stored]:
            self.store.take(batch)
        if stored is not None:
            self.kill()

    def catch_up(self) -> None:
        self.poll()
        while self.follower.behind:
            self.poll()

    def kill(self) -> None:
        self.follower.close()
        self.follower = Follower(self.root, self.spec, "eve", states=self.store.states)

    def text(self) -> None:
        self.flows += 1
        self.open.append(self.flows)
        for part in self.words(self.flows):
            append(self.log, lines({**HTTP, "flow_id": self.flows, "http": {"url": part}}))

    def words(self, flow: int) -> list[str]:
        return [f"/{flow}", f"/more/{flow}"][: 1 + flow % 2]

    def flow(self) -> None:
        flow = self.open.pop(len(self.open) // 2)  # not in the order in which they began
        self.closed.add(flow)
        append(self.log, lines({**FLOW, "flow_id": flow, "src_port": flow}))

    def alert(self) -> None:
        self.alerts += 1
        append(self.log, lines({**ALERT, "flow_id": 10_000 + self.alerts}))

    def rotate(self, how: str) -> None:
        self.catch_up()  # a log that comes and goes between two looks cannot be known
        self.rotations += 1
        self.compress()
        if self.log.exists() and how == "rename":
            self.log.rename(self.old)
        elif self.log.exists():
            shutil.copyfile(self.log, self.old)
            os.truncate(self.log, 0)
        # A log begins with a time, and no two with the same.
        self.alert()

    def compress(self) -> None:
        if self.old.exists():
            self.catch_up()
            packed = self.root / f"eve.json.{self.rotations + 1}.gz"
            packed.write_bytes(gzip.compress(self.old.read_bytes()))
            shutil.copystat(self.old, packed)  # as gzip and logrotate do
            self.old.unlink()

    def step(self, name: str) -> None:
        match name.split()[0]:
            case "text":
                self.text()
            case "flow" if self.open:
                self.flow()
            case "alert":
                self.alert()
            case "poll":
                self.poll()
            case "small":
                self.poll(max_bytes=300)
            case "quiet":
                for _ in range(QUIET_POLLS + 2):  # files that are gone are let go
                    self.poll()
            case "kill":
                self.kill()
            case "die":
                self.poll(stored=int(name[-1]))
            case "rename" | "copy":
                self.rotate(name)
            case "compress":
                self.compress()

    def run(self, steps: list[str]) -> None:
        self.alert()
        for step in steps:
            self.step(step)
        while self.open:
            self.flow()
        self.catch_up()
        self.poll()
        self.follower.close()
        events = [*self.store.events.values()]
        assert len([event for event in events if event.kind == "alert"]) == self.alerts and not self.store.rejects
        ports = [event.src_port for event in events if event.kind == "flow"]
        assert sorted(port or 0 for port in ports) == sorted(self.closed)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(steps=st.lists(STEP, min_size=4, max_size=50))
def test_every_flow_once_with_its_text(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "QUIET_POLLS", QUIET_POLLS)
        eve = Suricata(Path(name), 1_000)
        eve.run(steps)
        for event in eve.store.events.values():
            if event.kind == "flow":
                assert event.text == " | ".join(eve.words(event.src_port or 0))
                assert "text_missing" not in event.extra


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(steps=st.lists(STEP, min_size=4, max_size=50), pending_max=st.integers(1, 4))
def test_bounded_joins_lose_text_but_no_flow(steps: list[str], pending_max: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        eve = Suricata(Path(name), pending_max)
        eve.run(steps)
        for event in eve.store.events.values():
            if event.kind == "flow":
                own = eve.words(event.src_port or 0)
                assert not event.text or set(event.text.split(" | ")) <= set(own)
                assert event.text or event.extra["text_missing"] == 1.0
