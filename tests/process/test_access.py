"""Roles on real sockets: other users connect to a real engine, and the audit log tells of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine_fixture import Engine, Starter, environment
from tests.events import ndjson, several
from tests.wait import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")

ANALYST, WRITER, CHIEF, STRANGER = 40_001, 40_002, 40_003, 40_004
TEAM = 40_100
# the sockets are reached by their names in the working directory, which was entered as root: what others may not do
# then is the engine's word alone, not a directory's
PROGRAM = """
import os, sys
from ipc.client import Client
from ipc.errors import ClientError
from tests.events import several
events = several(3, first=100)
os.chdir(sys.argv[1])
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))
with Client("query.sock", "write.sock", timeout_ms=20_000) as client:
    for what in sys.argv[4:]:
        try:
            match what:
                case "ask": client.recent()
                case "ingest": client.ingest("ndjson", events, source="theirs")
                case "label": client.label("e000001", "poisoned: \\x1b[31m")
                case "admin": client.forget_model()
            print(what, "done")
        except ClientError as e:
            print(what, e.code.name if e.code else type(e).__name__)
"""


def as_user(engine: Engine, uid: int, gid: int, *what: str) -> dict[str, str]:
    """What comes of each thing that a user asks for."""
    engine.layout.run.chmod(0o711)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(engine.layout.run), str(uid), str(gid), *what],
        env=environment(), cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())  # type: ignore[misc]


def audited(engine: Engine) -> list[dict[str, Any]]:
    return [json.loads(line) for line in engine.layout.audit.read_bytes().splitlines()]


def test_each_role_opens_what_it_is_for_and_nothing_else(start: Starter) -> None:
    engine = start(
        "--set", "sockets.query_mode=0666", "--set", "sockets.write_mode=0666", "--set",
        f'access.read=["{ANALYST}", "{WRITER}", "@{TEAM}"]', "--set", f'access.ingest=["{WRITER}"]', "--set",
        f'access.label=["{ANALYST}"]', "--set", f'access.admin=["@{TEAM}"]',
    )  # fmt: skip
    engine.ingest(several(5))
    every = ("ask", "ingest", "label", "admin")
    no = "DENIED"
    assert as_user(engine, ANALYST, 1, *every) == {"ask": "done", "ingest": no, "label": "done", "admin": no}
    assert as_user(engine, WRITER, 1, *every) == {"ask": "done", "ingest": "done", "label": no, "admin": no}
    assert as_user(engine, CHIEF, TEAM, *every) == {"ask": "done", "ingest": no, "label": no, "admin": "done"}
    assert as_user(engine, STRANGER, 1, *every, *every) == dict.fromkeys(every, no)
    eventually(lambda: any(line["process"].startswith("reader-") for line in audited(engine)))
    lines = audited(engine)
    (start_line,) = [line for line in lines if line["what"] == "start"]
    assert (start_line["process"], start_line["role"]) == ("supervisor", "admin")
    told = {(line["uid"], line["what"], line["outcome"]) for line in lines}
    assert {
        (ANALYST, "ingest", no), (ANALYST, "label", "done"), (ANALYST, "models gc", no), (WRITER, "ingest", "done"),
        (WRITER, "label", no), (WRITER, "models gc", no), (CHIEF, "models gc", "done"), (CHIEF, "ingest", no),
        (CHIEF, "label", no), (STRANGER, "connect", no), (0, "ingest", "done"),
    } <= told  # fmt: skip
    (label,) = [line for line in lines if line["what"] == "label" and line["outcome"] == "done"]
    assert (label["detail"], label["role"], label["process"]) == ("e000001", "label", "ingest")
    assert next(line for line in lines if line["uid"] == WRITER and line["outcome"] == "done")["events"] == 3
    refused = [line for line in lines if line["uid"] == STRANGER]
    assert {line["process"] for line in refused} <= {"ingest", "reader-0", "reader-1"}
    assert len(refused) <= 3  # one from each process that saw it, however often it came
    text = engine.layout.audit.read_text()
    assert "poisoned" not in text and "signature" not in text
    assert engine.layout.audit.stat().st_mode & 0o777 == 0o600


def test_without_lists_whoever_may_open_the_query_socket_asks_and_writers_write(start: Starter) -> None:
    engine = start("--set", "sockets.query_mode=0666", "--set", "sockets.write_mode=0666", "--set",
                   f'sockets.writers=["{WRITER}"]')  # fmt: skip
    engine.ingest(several(5))
    every = ("ask", "ingest", "label", "admin")
    assert as_user(engine, WRITER, 1, *every) == dict.fromkeys(every, "done")
    no = "DENIED"
    assert as_user(engine, STRANGER, 1, *every) == {"ask": "done", "ingest": no, "label": no, "admin": no}
    engine.process.send_signal(1)  # type: ignore[union-attr]
    eventually(lambda: "rolled" in engine.log)
    assert engine.stop() == 0
    assert [line["what"] for line in audited(engine) if line["process"] == "supervisor"] == ["start", "reload", "stop"]


def test_a_source_with_a_window_writes_no_history_unless_an_admin_imports_it(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "feed.json").touch()
    config = tmp_path / "flowkin.toml"
    config.write_text(
        "[sockets]\nwrite_mode = '0666'\nquery_mode = '0666'\n"
        f'[access]\ningest = ["{WRITER}"]\n'
        f'[sources.theirs]\npath = "{tmp_path / "feed.json"}"\nformat = "ndjson"\npast_s = 3600\npoll_ms = 10\n'
    )
    engine = start("--config", str(config))
    assert as_user(engine, WRITER, 1, "ingest") == {"ingest": "done"}  # of 2023, under the name of that source
    assert engine.facts()["events"] == 0
    with engine.client() as client:
        letters = client.stats().facts["dead_letters"]
    assert (letters["count"], letters["reasons"][0]["source"]) == (3, "theirs")
    assert "older than source" in letters["reasons"][0]["reason"]
    assert engine.ingest(several(3, first=100, source="theirs"), source="theirs").accepted == 3  # root: an import
    with (tmp_path / "feed.json").open("wb") as feed:
        feed.write(ndjson(several(5, first=200)))
    eventually(lambda: engine.facts()["dead_letters"]["count"] == 8)
    assert engine.facts()["events"] == 3
