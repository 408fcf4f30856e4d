"""Quality of an engine, running and stopped: measured on request and by itself, counted by readers, advised on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.upgrade import METRICS
from ipc.aio import AsyncClient
from ipc.event import FeaturedEvent
from ipc.messages import Done, Filter, Options
from tests.engine_fixture import Engine, Starter, cli
from tests.events import make, several
from tests.store_fixture import OTHER, other_model
from tests.wait import eventually

RULES = """
[upgrade.calm]
metric = "near_duplicate_share"
below = 1.1
n_min = 100
advice = "nothing to do"
"""


def quality(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.json("stats")["quality"]
    return found


def doctor(engine: Engine, *flags: str) -> dict[str, Any]:
    """Its report, whatever else it finds of this machine."""
    report: dict[str, Any] = msgspec.json.decode(engine.cli("doctor", "--quality", "--json", *flags).stdout)
    return report


def test_measured_on_request_shown_by_stats_and_the_same_when_stopped(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "flowkin.toml").write_text(RULES)
    engine = start()
    engine.ingest(several(300))
    engine.indexed(4)
    before = quality(engine)
    assert before["measured_at"] is None and before["advice"] == []
    assert before["gauges"] == {metric: {"value": None, "n": 0} for metric in METRICS}

    running = doctor(engine, "--sample", "120")
    assert running["quality"]["sample"] == 120 and running["quality"]["gauges"]["recall_at_10"]["n"] == 120
    assert running["quality"]["gauges"]["recall_at_10"]["value"] > 0.98
    (advice,) = [a for a in running["quality"]["advice"] if a["rule"] == "calm"]
    assert advice["n"] == 120 and advice["below"] == 1.1
    said = {f["object"]: f for f in running["findings"]}
    assert set(METRICS) <= set(said)
    assert said["upgrade calm"]["severity"] == "note" and "nothing to do" in said["upgrade calm"]["detail"]
    assert quality(engine) == {k: v for k, v in running["quality"].items() if k != "drift"}
    text = engine.cli("stats").stdout
    assert "recall_at_10" in text and "nothing to do" in text

    engine.stop()
    stopped = doctor(engine, "--sample", "120")
    changing = ("measured_at", "seconds", "cpu_s")
    assert {k: v for k, v in stopped["quality"].items() if k not in changing} == {
        k: v for k, v in running["quality"].items() if k not in changing
    }


def test_questions_without_a_precedent_are_counted_those_with_a_filter_are_not(start: Starter) -> None:
    engine = start(readers=1)
    nowhere = {"src_ip": "", "dst_ip": ""}  # no context, so that equal features are equal events
    engine.ingest(several(100, **nowhere))
    client = engine.client()
    options = Options(space="attack")
    like = FeaturedEvent(make(5_000, **nowhere).event, make(8, **nowhere).features, b"")
    odd = FeaturedEvent(make(5_001, **nowhere).event, bytes(4) * 105, b"")
    asked = client.query_events([like, odd], options=options).answers
    assert [answer.no_close_precedent for answer in asked] == [False, True]
    client.query_similar("e000001", options=Options(space="attack", filter=Filter(families=["DDoS"])))
    client.search_text("signature 1")
    gauge = engine.facts()["quality"]["gauges"]["no_close_precedent_share"]
    assert gauge == {"value": 0.5, "n": 2}


def test_it_measures_by_itself_where_events_came_or_the_model_was_switched(start: Starter) -> None:
    engine = start(env={"FLOWKIN_QUALITY__EVERY_S": "1"})
    first = eventually(lambda: engine.facts()["quality"]["measured_at"], within_s=30)
    engine.ingest(several(60))
    eventually(lambda: engine.facts()["quality"]["events"] == 60, within_s=30)
    assert engine.facts()["quality"]["measured_at"] > first
    other_model(engine.layout)
    engine.client().use_model(OTHER)
    eventually(lambda: engine.facts()["quality"]["model"] == OTHER, within_s=30)


def test_one_measurement_at_a_time(start: Starter) -> None:
    engine = start()
    engine.ingest(several(100))

    async def both() -> list[Any]:
        async with AsyncClient.for_data_dir(engine.data_dir) as client:
            return await asyncio.gather(client.measure(), client.measure(seed=1), return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(first, Done) and isinstance(second, Done), "the one that was refused is asked for again"
    began_ns = second.facts["measured_at"] - second.facts["seconds"] * 1e9
    assert first.facts["sample"] == 100
    assert first.facts["measured_at"] <= began_ns + 1e6, "seconds are told to the ms"


def test_a_sample_is_of_quality(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    done = cli("doctor", "--sample", "100", data_dir=tmp_path / "data")
    assert done.returncode == 2 and "--sample needs --quality" in done.stderr


@pytest.mark.parametrize("made", [False, True])
def test_what_cannot_be_measured_is_a_note(tmp_path: Path, made: bool) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    if made:
        (tmp_path / "data" / "catalog").mkdir()
    done = cli("doctor", "--quality", "--json", data_dir=tmp_path / "data")
    notes = [f for f in msgspec.json.decode(done.stdout)["findings"] if f["object"] == "quality"]
    assert done.returncode == 7 and len(notes) == 1 and "was not measured" in notes[0]["detail"]
