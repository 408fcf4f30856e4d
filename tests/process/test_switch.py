"""A switch of models on a running engine: readers answer, events arrive, ingest and engine die, and it goes on."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine.embed import models
from engine.layout import Layout
from ipc import errors
from tests.engine_fixture import Engine, Starter, ask, stored_ids
from tests.events import ids, several
from tests.store_fixture import OTHER, Store, other_model
from tests.wait import eventually

READERS = 1

SHIPPED = models.shipped().name


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a version that no engine knows yet."""
    layout = Layout(tmp_path_factory.mktemp("made"))
    layout.make()
    return other_model(layout)


def under_way(engine: Engine) -> dict[str, Any] | None:
    with engine.client() as client:
        found: dict[str, Any] | None = client.models().facts["switch"]
        return found


def filler(engine: Engine) -> int:
    """The child that embeds stored events anew, stopped before it has opened a file; found by what it was told."""
    ingest = engine.pid("ingest")
    for child in Path(f"/proc/{ingest}/task/{ingest}/children").read_text().split():
        if b'"job":"fill"' in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGSTOP)
            if not any("/rows/" in os.readlink(fd) for fd in Path(f"/proc/{child}/fd").iterdir()):
                return int(child)
            os.kill(int(child), signal.SIGCONT)
    return 0


def held(engine: Engine, events_done: int) -> int:
    """filler() once so many events are done: the switch goes no further however slow the machine is."""
    return eventually(
        lambda: (under_way(engine) or {}).get("events_done", 0) >= events_done and filler(engine),
        within_s=60, every_s=0.001,
    )  # fmt: skip


def through(engine: Engine, first: int) -> tuple[int, list[int]]:
    """Ask and ingest until OTHER is in use: how many events were sent, and what the progress was."""
    sent, seen = 0, []

    def look() -> bool:
        nonlocal sent
        with engine.client() as client:
            answer = ask(client, "e000010", space="attack", top_k=5, collapse=False)
            assert answer.model in (SHIPPED, OTHER) and len(answer.hits) == 5
            facts = client.models().facts
            try:
                client.ingest("ndjson", several(1, first + sent), source="test")
                sent += 1
            except errors.ClientError:  # it is being replaced; the same event is sent again
                pass
            if facts["switch"]:
                assert facts["switch"]["version"] == OTHER and facts["switch"]["events"] == first
                assert facts["current"] == SHIPPED
                seen.append(facts["switch"]["events_done"])
        return bool(facts["current"] == OTHER)

    eventually(look, within_s=90, every_s=0.05)
    return sent, seen


def test_a_switch_outlives_the_death_of_ingest(start: Starter, other: Path) -> None:
    engine = start(env={"ENGINE_FAILPOINT": "model.advanced:4"})  # of seven steps
    engine.ingest(several(400))
    engine.client().add_model(OTHER, models.read(other))
    victim = engine.pid("ingest")
    with pytest.raises(errors.ClientError):
        engine.client().use_model(OTHER, timeout_ms=60_000)
    engine.replaced("ingest", victim)
    sent, seen = through(engine, 400)
    assert sent > 0 and seen == sorted(seen) and (not seen or seen[0] >= 256)
    assert stored_ids(engine.client()) == ids(several(400 + sent))
    assert engine.stop() == 0
    with Store(engine.data_dir) as store:
        assert store.publisher.manifest.model == OTHER
        store.check()  # every row is what OTHER makes of its record


def test_a_switch_outlives_the_engine_and_is_rolled_back(start: Starter, other: Path) -> None:
    engine = start()
    engine.ingest(several(500))
    given = engine.cli("models", "use", other, "--timeout", "0.3")
    assert given.returncode == 6, given.stderr  # it goes on
    child = held(engine, 128)
    assert engine.json("stats")["switch"]["version"] == engine.json("info")["switch"]["version"] == OTHER
    refused = engine.cli("models", "rollback")
    assert refused.returncode == 6
    assert f"a switch to {OTHER} is under way" in refused.stderr
    text = engine.cli("models", "list").stdout
    assert "coming" in text and f"switch to {OTHER}: " in text
    engine.kill()
    eventually(lambda: not Path(f"/proc/{child}").exists())
    engine.start()
    assert (under_way(engine) or {"events_done": 500})["events_done"] >= 128
    assert engine.json("models", "use", OTHER, timeout_s=120.0)["version"] == OTHER  # waits for the same one
    engine.ingest(several(100, 500))
    found = engine.json("models", "compare", OTHER, SHIPPED, timeout_s=120.0)  # beside the engine
    assert found["data"]["asked"] > 300 and found["spaces"]["fused"]["macro"]["overlap"] > 0
    assert found["switch"]["events"] == 100  # the others are kept
    assert found["a"]["version"] in engine.cli("models", "compare", OTHER, SHIPPED, timeout_s=120.0).stdout
    assert engine.cli("models", "compare", OTHER, "none").returncode == 3
    listed = engine.json("models", "list")
    assert listed["kept"] == {"version": SHIPPED, "events": 500} and listed["switch"] is None
    assert listed["disk_bytes"].keys() == {SHIPPED, OTHER} and min(listed["disk_bytes"].values()) > 500 * 2_000
    back = engine.json("models", "rollback", timeout_s=120.0)
    assert back["version"] == SHIPPED
    assert ask(engine.client(), "e000590", space="attack", top_k=5).model == SHIPPED
    again = engine.json("models", "rollback", timeout_s=120.0)
    assert (again["version"], again["generation"]) == (OTHER, back["generation"] + 1)

    freed = engine.json("models", "gc")
    assert freed["version"] == SHIPPED and freed["bytes"] > 600 * 2_000
    (engine.layout.models / "bad").mkdir()
    (engine.layout.models / "bad" / "card.json").symlink_to(other / "card.json")
    listed = engine.json("models", "list")  # one that cannot be read hides no other
    assert listed["kept"] is None and "is a link" in listed["versions"]["bad"]["error"]
    assert listed["versions"][OTHER]["version"] == OTHER
    refused = engine.cli("models", "rollback")
    assert refused.returncode != 0 and "no version is kept to go back to" in refused.stderr
    assert engine.cli("models", "gc").stdout == "nothing is kept\n"
    assert engine.stop() == 0
    with Store(engine.data_dir) as store:
        assert store.publisher.manifest.model == OTHER
        store.check()


def test_a_switch_is_given_up_by_using_what_is_in_use(start: Starter, other: Path) -> None:
    engine = start()
    engine.ingest(several(500))
    engine.indexed(7)  # nothing else will tidy up
    engine.cli("models", "use", other, "--timeout", "0.3")
    child = held(engine, 64)
    third = engine.cli("models", "use", OTHER, "--timeout", "0.1")
    assert third.returncode == 6
    assert engine.json("models", "use", SHIPPED)["version"] == SHIPPED
    assert under_way(engine) is None
    with suppress(ProcessLookupError):  # it was killed; one that was not goes on and leaves a file
        os.kill(child, signal.SIGCONT)
    eventually(lambda: not Path(f"/proc/{child}").exists(), within_s=30)
    eventually(lambda: not list(engine.layout.rows.glob("0001-*")))
    engine.ingest(several(10, 500))
    assert engine.stop() == 0
    with Store(engine.data_dir) as store:
        assert (store.publisher.manifest.model, store.publisher.manifest.kept) == (SHIPPED, None)
        store.check()
