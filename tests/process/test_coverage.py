"""What stats say of each source against a recount from outside, and the same figures after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.features import NAMES
from engine.store.dead_letters import newest
from tests.data import content
from tests.engine_fixture import Engine, Starter
from tests.events import make, ndjson, several

EVE = "eve_generated/pcap_stratosphere/test-cc-capture-1.pcap.eve.json.gz"
CIC = "ground_truth_flows/cicflowmeter_java_98a5beb/cicflowmeter_official_test.pcap.csv.gz"
LINES = 400  # of each real file


def recount(exported: Path) -> dict[str, dict[str, list[float]]]:
    """From an export: source -> feature -> every value that is there; None counts the events."""
    found: dict[str, Any] = {}
    for line in exported.read_text().splitlines():
        event = json.loads(line)
        source = found.setdefault(event["source"], {name: [] for name in (None, *NAMES)})
        source[None].append(1)
        for name, value in event.get("features", {}).items():
            if value is not None:
                source[name].append(value)
    return found


def agree(engine: Engine, target: Path) -> None:
    engine.json("export", "--ndjson", target)
    cells = recount(target)
    stats = engine.json("stats", "--features")
    assert {row["name"] for row in stats["sources"]} == cells.keys()
    for row in stats["sources"]:
        mine = cells[row["name"]]
        events, total = len(mine.pop(None)), 0  # type: ignore[call-overload]
        assert [f["feature"] for f in row["features"]] == list(mine)
        for f in row["features"]:
            values = mine[f["feature"]]
            total += len(values)
            assert f["present"] == len(values)
            assert f["zeros"] == values.count(0.0)
            assert f["missing_share"] == 1 - len(values) / events
            assert f["constant"] == (len(values) > 1 and len(set(values)) == 1)
            for bound, found in (("min", min), ("max", max)):
                assert f[bound] == (pytest.approx(found(values), rel=1e-6) if values else None)
        assert row["events"] == events
        assert row["coverage_mean"] == round(total / events, 2)
        assert row["features_filled"] == sum(bool(v) for v in mine.values())
        assert row["features_constant"] == sum(f["constant"] for f in row["features"])
        assert sum(n for n, _ in row["groups"].values()) == row["features_filled"]


def figures(engine: Engine) -> dict[str, Any]:
    stats = engine.json("stats")
    return {name: stats[name] for name in ("events", "sources", "dead_letters", "families", "conflicts")}


def test_stats_are_what_a_recount_gives_and_survive_a_kill(start: Starter, tmp_path: Path) -> None:
    """Real EVE, real CICFlowMeter rows, and a file of which most lines are bad."""
    engine = start(readers=1)
    files = {"eve.json": content(EVE), "cic.csv": content(CIC)}
    bad = [b'{"event_id":"p","ts":1,"dst_port":70000}\n', b"not json\n", b'{"event_id":"t","ts":"31/12"}\n']
    files["bad.ndjson"] = ndjson(several(3)) + b"".join(bad) + bad[2].replace(b"31/12", b"30/11")
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(b"".join(data.splitlines(keepends=True)[:LINES]))
        engine.json("ingest", path)
    agree(engine, tmp_path / "one.ndjson")
    before = figures(engine)
    letters = before["dead_letters"]
    assert letters["count"] == sum(row["rejected"] for row in before["sources"]) >= 4
    assert letters["count"] == len(list(newest(engine.layout.dead_letters)))
    assert letters["bytes"] == engine.layout.dead_letters.stat().st_size
    dated = [r for r in letters["reasons"] if r["reason"] == "'...' is not a date and time"]
    assert [(r["count"], Path(r["file"]).name) for r in dated] == [(2, "bad.ndjson")]
    text = engine.cli("stats").stdout
    for row in before["sources"]:
        assert f"{row['features_filled'] if row['events'] else '-'}/105" in text
    filled = {row["format"]: row["features_filled"] for row in before["sources"] if row["events"]}
    assert filled["cicflow"] >= 65
    assert filled["eve"] >= 20
    doctor = {f["object"]: f for f in engine.json("doctor", "--deep")["findings"]}
    assert doctor["coverage"]["severity"] == "ok"
    assert doctor["dead letters"]["severity"] == "note"
    shown = engine.json("dead_letters", "--reason", "date and time")
    assert [x["record"].rstrip() for x in shown] == [bad[2].replace(b"31/12", b"30/11").decode().rstrip(),
                                                     bad[2].decode().rstrip()]  # fmt: skip

    engine.kill()
    engine.start()
    assert figures(engine) == before
    engine.ingest([make(900), make(901, source="other")])
    agree(engine, tmp_path / "two.ndjson")
