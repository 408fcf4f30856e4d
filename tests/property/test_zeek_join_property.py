"""conn.log and dns.log under any mix of growth, rotation and death: every flow is stored once, with all its text."""

from __future__ import annotations

import gzip
import math
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_zeek import CONN, DNS, rows
from tests.unit.test_zeek_follow import Logs, opened

PROFILE = settings(max_examples=150, deadline=None, derandomize=True, database=None)
STEP = st.sampled_from(
    ["both", "both", "text", "late text", "flow", "plain flow", "poll", "poll", "poll", "small", "kill", "die 0",
     "die 1", "die 2", "rotate conn", "rotate dns", "compress"]
)  # fmt: skip
FORMATS = {"conn": CONN, "dns": DNS}


class Zeek:
    """Writes a flow's text before the flow, or one word of it after. Times stand still: no text is ever too late."""

    def __init__(self, logs: Logs) -> None:
        self.logs, self.flows, self.rotations = logs, 0, 0
        self.expected: dict[int, set[str]] = {}
        self.early: list[int] = []  # flows to come, whose text was written
        self.owing: list[int] = []  # flows that are written, whose text is to come
        for name, record in FORMATS.items():
            logs.write(f"{name}.log", opened(name, record))

    def text(self, i: int, word: str) -> None:
        self.expected.setdefault(i, set()).add(word)
        self.logs.write("dns.log", rows(DNS | {"uid": f"C{i}", "query": word, "ts": "1000.0"}))

    def flow(self, i: int, service: str = "dns") -> None:
        self.expected.setdefault(i, set())
        record = CONN | {"uid": f"C{i}", "id.orig_p": str(1_000 + i), "service": service, "ts": "1000.0"}
        self.logs.write("conn.log", rows(record))

    def step(self, name: str) -> None:
        match name:
            case "text" | "both":
                self.flows += 1
                self.early.append(self.flows)
                for word in ("a.example", "b.example")[: 1 + self.flows % 2]:
                    self.text(self.flows, word)
                if name == "both":
                    self.flow(self.early.pop())
            case "flow" if self.early:
                self.flow(self.early.pop(0))
            case "flow":
                self.flows += 1
                self.flow(self.flows)
                self.owing.append(self.flows)
            case "late text" if self.owing:
                self.text(self.owing.pop(), "late.example")
            case "plain flow":
                self.flows += 1
                self.flow(self.flows, "-")
            case "rotate conn" | "rotate dns":
                self.logs.poll()  # a log that comes and goes between two looks cannot be known
                log, self.rotations = name.split()[1], self.rotations + 1
                old = self.logs.root / f"{log}.{self.rotations:02}.log"
                (self.logs.root / f"{log}.log").rename(old)
                self.logs.write(f"{log}.log", opened(log, FORMATS[log], f"{self.rotations:02}"))
                self.logs.poll()
            case "compress":
                self.logs.poll()
                for old in sorted(self.logs.root.glob("*.*.log")):
                    (self.logs.root / f"{old.name}.gz").write_bytes(gzip.compress(old.read_bytes()))
                    old.unlink()
                self.logs.poll()
            case "poll":
                self.logs.poll()
            case "small":
                self.logs.poll(max_bytes=300)
            case "kill":
                self.logs.kill()
            case _ if name.startswith("die"):
                self.logs.poll(stored=int(name[-1]))


@PROFILE
@given(steps=st.lists(STEP, min_size=4, max_size=50))
def test_every_flow_once_with_its_text(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        logs = Logs(Path(name))
        zeek = Zeek(logs)
        logs.rest()
        for step in steps:
            zeek.step(step)
        while zeek.early or zeek.owing:
            zeek.step("flow" if zeek.early else "late text")
        logs.rest()
        waiting = zeek.expected.keys() - logs.texts.keys()
        assert not any(zeek.expected[i] for i in waiting)  # those without a text
        logs.poll(1.0)
        logs.poll(math.inf)
        logs.follower.close()
        assert logs.texts.keys() == zeek.expected.keys()
        for i, text in logs.texts.items():
            assert {word for word in text.split(" | ") if word.endswith(".example")} == zeek.expected[i], (i, text)
        assert not logs.store.rejects


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(steps=st.lists(STEP, min_size=4, max_size=50), pending_max=st.integers(1, 4))
def test_bounded_joins_lose_text_but_no_flow(steps: list[str], pending_max: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        logs = Logs(Path(name), pending_max)
        zeek = Zeek(logs)
        for step in steps:
            zeek.step(step)
        logs.rest()
        logs.poll(1.0)
        logs.poll(math.inf)
        logs.follower.close()
        written = zeek.expected.keys() - set(zeek.early)
        assert logs.texts.keys() == written and not logs.store.rejects
        for i, event in ((port - 1_000, e) for e in logs.store.events.values() if (port := e.src_port or 0)):
            words = {word for word in event.text.split(" | ") if word.endswith(".example")}
            assert words <= zeek.expected[i]
            assert words or event.text == "" or event.extra["text_missing"] == 1.0
