"""The audit log: one line at once, sums for the rest, bounded, private, and never mixed up."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine.run import audit
from engine.run.audit import KEPT, SUM_S, SUMS_MAX, Audit, File


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_000.0
        monkeypatch.setattr(audit.time, "monotonic", lambda: self.now_s)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_says_who_did_what_and_how_it_ended(tmp_path: Path) -> None:
    file = File(tmp_path / "audit.ndjson")
    Audit("ingest", file.write).add(7, 70, "label", "label", "done", "e1\x1b[31m\n", alone=True)
    file.close()
    (line,) = lines(file.path)
    at = line.pop("at")
    assert isinstance(at, str) and at.endswith("+00:00")
    assert line == {
        "process": "ingest", "uid": 7, "pid": 70, "role": "label", "what": "label", "outcome": "done",
        "detail": "e1\x1b[31m\n",
    }  # fmt: skip
    assert b"\x1b" not in file.path.read_bytes()  # escaped: it may be looked at with cat
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_the_same_again_is_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(monkeypatch), []
    one = Audit("ingest", said.append)
    for n in range(1_000):
        one.add(7, 70 + n, "ingest", "ingest", "done", "eve", events=2)
        one.add(8, 80, "read", "connect", "DENIED")
    assert len(said) == 2
    clock.now_s += SUM_S
    one.flush()
    first, second, summed, refused = (json.loads(line) for line in said)
    assert first["events"] == 2 and "times" not in first and second["uid"] == 8
    assert (summed["times"], summed["events"], refused["times"]) == (999, 1_998, 999)
    one.add(7, 70, "ingest", "ingest", "done", "eve", events=1)
    assert len(said) == 5  # and at once again
    one.flush(all=True)
    assert len(said) == 5  # nothing is said twice


def test_what_differs_too_much_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pushes out what others did by being somebody else each time."""
    Clock(monkeypatch)
    said: list[bytes] = []
    one = Audit("reader-0", said.append)
    for uid in range(10_000):
        one.add(uid, uid, "read", "connect", "DENIED")
    one.flush(all=True)
    assert len(said) <= 2 * (SUMS_MAX + 1)
    assert sum(json.loads(line).get("times", 1) for line in said) == 10_000


def test_a_line_that_a_full_disk_cut_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, write = File(tmp_path / "audit.ndjson"), os.write
    file.write(b'{"n": 1}')
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:4]))
        file.write(b'{"n": 2}')
    file.write(b'{"n": 3}')
    file.close()
    assert (tmp_path / "audit.ndjson").read_bytes() == b'{"n": 1}\n{"n"\n{"n": 3}\n'
    assert caplog.text.count("cannot be written") == 1


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "BYTES_MAX", 2_000)
    files = [File(tmp_path / "audit.ndjson") for _ in range(2)]  # as two processes have it
    audits = [Audit(f"p{n}", file.write) for n, file in enumerate(files)]
    for n in range(400):
        audits[n % 2].add(n, n, "label", "label", "done", alone=True)
    for file in files:
        file.close()
    there = sorted(tmp_path.iterdir())
    assert [p.name for p in there] == ["audit.ndjson", *(f"audit.ndjson.{n}" for n in range(1, KEPT + 1))]
    assert all(p.stat().st_size < 2_000 + audit.LINE_BYTES_MAX for p in there)
    kept = [line["uid"] for path in (*reversed(there[1:]), there[0]) for line in lines(path)]
    assert kept == list(range(400 - len(kept), 400))


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from engine.run import audit; audit.BYTES_MAX = 200_000\n"
        "one = audit.Audit(sys.argv[2], audit.File(Path(sys.argv[1])).write)\n"
        "for n in range(1500): one.add(n, n, 'admin', 'x' * 200, 'done', alone=True)\n"
    )
    path = tmp_path / "audit.ndjson"
    running = [
        subprocess.Popen([sys.executable, "-P", "-c", program, str(path), f"p{n}"], env={**os.environ})
        for n in range(3)
    ]  # fmt: skip
    assert [process.wait(60) for process in running] == [0, 0, 0]
    found = [line for file in sorted(tmp_path.iterdir()) for line in lines(file)]  # each is whole
    assert len({(line["process"], line["uid"]) for line in found}) == len(found) > 1_500


@pytest.mark.parametrize("kind", ["link", "pipe", "hard link"])
def test_what_was_planted_in_its_place_is_left_alone(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "audit.ndjson"
    victim.write_text("precious")
    match kind:
        case "link":
            path.symlink_to(victim)
        case "pipe":
            os.mkfifo(path)
        case "hard link":
            path.hardlink_to(victim)
    file = File(path)
    for _ in range(3):
        Audit("ingest", file.write).add(1, 1, "label", "label", "done")
    file.close()
    assert victim.read_text() == "precious"
    assert [r.message for r in caplog.records if "audit log cannot be written" in r.message] == [caplog.messages[0]]
