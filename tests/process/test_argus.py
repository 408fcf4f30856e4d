"""The older system's files through a real engine: its events, and what its firewall did about them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ipc.event import Annotation, Event
from ipc.messages import Filter
from tests.argus import KEY, OTHER_KEY, action, csv, jsonl, key_file, rag, row
from tests.engine_fixture import Engine, Starter, all_events, ask
from tests.events import T0, S
from tests.wait import eventually

READERS = 1


def firewall(engine: Engine) -> dict[str, int]:
    with engine.client() as client:
        found: dict[str, int] = client.stats().facts["firewall"]
        return found


def said(engine: Engine) -> dict[str, list[tuple[int, str]]]:
    """event_id: what a firewall did, as (when, what)."""
    out: dict[str, list[tuple[int, str]]] = {}
    for stored in all_events(engine.client()):
        assert isinstance(stored.event, Event)
        if isinstance(stored.annotation, Annotation):
            out[stored.event.event_id] = [(at, value) for at, _, _, value in stored.annotation.history]
    return out


def counts(document: dict[str, Any]) -> tuple[int, int, int, int, int]:
    return tuple(document[name] for name in ("accepted", "duplicates", "rejected", "joined", "waiting"))  # type: ignore[return-value]


@pytest.mark.parametrize("order", ["events first", "actions first"])
def test_events_and_actions_meet_in_either_order(start: Starter, tmp_path: Path, order: str) -> None:
    """Signed rows of both kinds through the command line; those signed otherwise are dead letters."""
    engine = start()
    key = key_file(tmp_path / "key")
    events, actions = tmp_path / "2023-11-14.csv", tmp_path / "firewall.csv"
    events.write_bytes(csv([*(row(n, src_ip=f"10.0.0.{n}") for n in range(1, 80)), row(99, OTHER_KEY)]))
    actions.write_bytes(
        csv([
            *(action(n, after_ms=1_500, src=f"10.0.0.{n}") for n in range(1, 60)),
            action(7, src="10.0.0.7", what="ALERT"),
            action(5, key=OTHER_KEY, src="10.0.0.61"),
            action(5, src="10.99.0.1"),
        ])
    )  # fmt: skip
    if order == "events first":
        assert counts(engine.json("ingest", events, "--hmac-key", key)) == (79, 0, 1, 0, 0)
        assert counts(engine.json("ingest", actions, "--hmac-key", key)) == (0, 0, 1, 60, 1)
    else:
        assert counts(engine.json("ingest", actions, "--hmac-key", key)) == (0, 0, 1, 0, 61)
        assert counts(engine.json("ingest", events, "--hmac-key", key)) == (79, 0, 1, 60, 1)
    letters = engine.layout.dead_letters.read_text()
    assert letters.count("its HMAC does not match") == 2
    expected = {f"argus-{n}": [(T0 + n * S + 1_500_000_000, "BLOCK")] for n in range(1, 60)}
    found = said(engine)
    assert sorted(found.pop("argus-7")) == [(T0 + 7 * S, "ALERT"), *expected.pop("argus-7")]
    assert found == expected
    again = [counts(engine.json("ingest", path, "--hmac-key", key)) for path in (actions, events, actions)]
    assert again == [(0, 0, 1, 0, 1), (0, 79, 1, 0, 1), (0, 0, 1, 0, 1)]
    assert {k: v for k, v in said(engine).items() if k != "argus-7"} == expected

    facts = engine.json("stats")
    assert facts["firewall"] == {"joined": 60, "waiting": 1, "unmet": 0, "cut": 0}
    assert [(s["name"], s["format"], s["events"]) for s in facts["sources"] if s["events"]] == [("argus", "argus", 79)]
    shown = engine.json("show", "argus-7")
    assert (shown["firewall_action"], shown["firewall_ts"]) == ("BLOCK", "2023-11-14T22:13:28.500Z")
    assert [entry["value"] for entry in shown["history"] if entry["field"] == "firewall_action"]
    text = engine.cli("show", "argus-7").stdout
    assert "firewall_action" in text and "BLOCK" in text
    hits = ask(engine.client(), "argus-70", top_k=3, filter=Filter(firewall_actions=["BLOCK"])).hits
    assert len(hits) >= 1 and all(h.annotation.firewall_action == "BLOCK" for h in hits)  # type: ignore[union-attr]
    told = engine.cli("query_similar", "argus-70", "-k", "5", "--firewall-action", "BLOCK", "--space", "attack")
    assert told.returncode == 0 and "firewall" in told.stdout and "BLOCK" in told.stdout
    listed = engine.json("list", "--firewall-action", "", "--limit", "1000")
    assert len(listed["events"]) == 20


def test_actions_that_wait_outlive_the_ingest_worker(start: Starter, tmp_path: Path) -> None:
    """SIGKILL to it, then to everything; the events come afterwards and find what was done about them."""
    engine = start()
    actions = tmp_path / "firewall.csv"
    actions.write_bytes(csv([action(n, src=f"10.0.0.{n}") for n in (1, 2)]))
    assert counts(engine.json("ingest", actions)) == (0, 0, 0, 0, 2)
    victim = engine.pid("ingest")
    os.kill(victim, signal.SIGKILL)
    engine.replaced("ingest", victim)
    events = tmp_path / "day.csv"
    events.write_bytes(csv([row(1, src_ip="10.0.0.1")]))
    assert counts(engine.json("ingest", events)) == (1, 0, 0, 1, 1)
    engine.kill()
    engine.start()
    events.write_bytes(csv([row(2, src_ip="10.0.0.2")]))
    assert counts(engine.json("ingest", events)) == (1, 0, 0, 1, 0)
    assert said(engine) == {f"argus-{n}": [(T0 + n * S, "BLOCK")] for n in (1, 2)}


def test_followed_files_of_both_kinds_meet_over_kills(start: Starter, tmp_path: Path) -> None:
    """A growing firewall log and daily files of events; the worker dies in between; nothing is lost or doubled."""
    days, log = tmp_path / "days", tmp_path / "firewall.csv"
    days.mkdir()
    log.write_bytes(csv([action(n, src=f"10.0.0.{n}") for n in range(1, 21)]))
    key, config = key_file(tmp_path / "key"), tmp_path / "flowkin.toml"
    config.write_text(
        f'[sources.detector]\npath = "{days}"\nformat = "argus"\npoll_ms = 10\nhmac_key_file = "{key}"\n'
        f'[sources.firewall]\npath = "{log}"\npoll_ms = 10\nhmac_key_file = "{key}"\n'
    )
    engine = start("--config", str(config))
    eventually(lambda: firewall(engine)["waiting"] == 20, within_s=20)
    victim = engine.pid("ingest")
    os.kill(victim, signal.SIGKILL)
    engine.replaced("ingest", victim)
    (days / "2023-11-14.csv").write_bytes(csv([row(n, src_ip=f"10.0.0.{n}") for n in range(1, 31)]))
    eventually(lambda: firewall(engine)["joined"] == 20, within_s=20)
    engine.kill()
    with log.open("ab") as file:
        file.write(csv([action(n, src=f"10.0.0.{n}", key=KEY) for n in range(21, 31)]))
        file.write(csv([action(1, src="10.0.0.1", key=OTHER_KEY, what="UNBLOCK", after_ms=2_000)]))
    engine.start("--config", str(config))
    eventually(lambda: firewall(engine)["joined"] == 30, within_s=20)
    eventually(lambda: "its HMAC does not match" in engine.layout.dead_letters.read_text(), within_s=20)
    assert said(engine) == {f"argus-{n}": [(T0 + n * S, "BLOCK")] for n in range(1, 31)}
    assert firewall(engine) == {"joined": 30, "waiting": 0, "unmet": 0, "cut": 0}


def test_the_rag_log_is_found_by_looking_and_its_events_meet_actions_too(start: Starter, tmp_path: Path) -> None:
    engine = start()
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "rag.jsonl").write_bytes(jsonl(*(rag(n) for n in range(12))) + b"{broken\n")
    (folder / "firewall.csv").write_bytes(csv([action(3, src="10.0.0.5", dst="203.0.113.9", threat="RANSOMWARE")]))
    done = engine.json("ingest", folder)
    assert (done["accepted"], done["rejected"], done["joined"] > 0) == (12, 1, True)
    assert set(said(engine)) == {s.event.event_id for s in all_events(engine.client())}  # type: ignore[union-attr]
    shown = engine.json("show", next(iter(said(engine))))
    assert (shown["source"], shown["sensor"], shown["family"]) == ("argus-rag", "lab/node-7", "Ransomware")
    assert shown["features"]["interface_mode"] == 2


def test_a_bad_key_file_is_said_at_once(start: Starter, tmp_path: Path) -> None:
    engine = start()
    events = tmp_path / "day.csv"
    events.write_bytes(csv([row()]))
    short = tmp_path / "key"
    short.write_text("abc")
    short.chmod(0o600)
    done = engine.cli("ingest", events, "--hmac-key", short)
    assert done.returncode != 0 and "64 hex characters" in done.stderr and "Traceback" not in done.stderr
    assert engine.facts()["events"] == 0
