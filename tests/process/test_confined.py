"""Readers of a real engine are confined, and serve as ever: every question, new generations, a switch of models."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from engine.embed import models
from engine.layout import Layout
from engine.run.confine import landlock_abi
from tests.engine_fixture import Engine, Starter
from tests.events import several
from tests.store_fixture import OTHER, other_model


def fields(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}


def answers_everything(engine: Engine, events: int) -> None:
    """From every reader: connections are spread over them."""
    for _ in range(2 * engine.readers):
        with engine.client() as client:
            assert client.ping().generation == engine.manifest().generation
            assert len(client.recent(limit=5).events) == 5
            assert len(client.query_similar("e000001").answers[0].hits) == 10
            assert client.search_text("signature 3").answers[0].hits
            assert client.query_events(several(2, first=9_000)).answers[0].hits
            assert client.explain("e000001", "e000005").explanation.contributions
            assert client.classify(["e000001"]).judgements
            assert client.models().facts["current"]
            assert client.stats().facts["events"] == events


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a version that no engine knows yet."""
    layout = Layout(tmp_path_factory.mktemp("made"))
    layout.make()
    return other_model(layout)


def test_confined_readers_serve_as_ever(start: Starter, other: Path) -> None:
    engine = start("--set", "readers.confine=require" if landlock_abi() else "readers.confine=auto")
    engine.ingest(several(100))
    engine.indexed(1)
    answers_everything(engine, 100)
    pids = engine.pids()
    for pid in pids:
        status = fields(pid)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert fields(engine.pid("ingest"))["Seccomp"] == "0"  # it writes, and starts children
    facts = engine.facts()
    for reader in facts["readers"]:
        assert reader["confined"] == {"wanted": True, "landlock": landlock_abi(), "seccomp": True}
    for worker in (*facts["readers"], facts["ingest"]):  # measured by the supervisor
        assert worker["private_bytes"] > 1 << 20 and worker["pss_bytes"] > 1 << 20
    engine.ingest(several(50, first=100))  # a generation with a new row file, an index to open, and a merge
    engine.indexed(2)
    answers_everything(engine, 150)
    engine.client().add_model(OTHER, models.read(other))
    engine.client().use_model(OTHER, timeout_ms=60_000)
    answers_everything(engine, 150)
    assert engine.pids() == pids  # nobody died of it
    assert "Permission" not in engine.log and "Operation not permitted" not in engine.log
    findings = {f["object"]: f["severity"] for f in engine.json("doctor")["findings"]}
    assert {findings[f"reader-{i}"] for i in range(2)} == {"ok" if landlock_abi() else "note"}
    os.kill(pids[0], signal.SIGKILL)
    engine.replaced("reader-0", pids[0])
    answers_everything(engine, 150)
    assert engine.stop() == 0
    assert "Traceback" not in engine.log


def test_they_are_not_where_it_is_off(start: Starter) -> None:
    engine = start("--set", "readers.confine=off", readers=1)
    engine.ingest(several(20))
    assert fields(engine.pids()[0])["Seccomp"] == "0"
    (reader,) = engine.facts()["readers"]
    assert reader["confined"] == {"wanted": False, "landlock": 0, "seccomp": False}
    assert reader["private_bytes"] > 1 << 20
