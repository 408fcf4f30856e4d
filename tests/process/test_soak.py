"""The soak for a minute, of which only the absolute bounds are judged. By hand for hours: make soak"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.soak import Slope, broken, slopes, undecided, zombies
from tests.engine_fixture import ROOT, environment

SECONDS, ROWS = 60, 64


def test_a_minute_of_soak_breaks_no_bound(tmp_path: Path) -> None:
    """More row files are filled than may stay."""
    words = [sys.executable, "-P", "-m", "bench.soak", "--json", "--hours", str(SECONDS / 3600), "--rate", "60"]
    words += ["--rows", str(ROWS), "--bytes-max", "1500000", "--readers", "1"]
    done = subprocess.run(
        words, env=environment({"FLOWKIN_BENCH_RESULTS": str(tmp_path), "TMPDIR": os.environ.get("TMPDIR", "/tmp")}),
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    line = json.loads(done.stdout)
    assert line["broken"] == [] and line["questions"]["asked"] > 0 and line["questions"]["connected"] > 1
    assert 0 < line["series"]["events"][-1] < line["stored"]
    assert (tmp_path / "soak.jsonl").exists()


def test_a_slope_is_percent_of_the_mean_an_hour_after_warm_up() -> None:
    hours = [i / 10 for i in range(31)]
    series = {name: [1_000.0 if h < 1 else 100.0 + 2 * (h - 2) for h in hours] for name in
              ("private_mib", "fds", "threads", "lmdb_mib", "disk_mib", "p99_ms")}  # fmt: skip
    sloped = slopes(series, hours)
    assert set(sloped.values()) == {(2.0, 0.0)}
    more = {"zombies": [0.0] * 31, "shm": [0.0] * 31}
    assert len(broken(series | more, sloped, 3.0, {"failed": 0, "asked": 1})) == 6
    assert broken(series | more, sloped, 1.0, {"failed": 0, "asked": 1}) == []
    assert len(broken(series | more | {"zombies": [1.0]}, sloped, 1.0, {"failed": 1, "asked": 1})) == 2
    assert undecided(sloped, 3.0) == []


def test_a_slope_is_broken_only_where_it_is_above_the_bound_for_certain() -> None:
    hours = [i / 10 for i in range(31)]
    noisy = [
        100.0 + 2 * (h - 2) + (8 if i // 3 % 2 else -8) for i, h in enumerate(hours)
    ]  # what is alike stands together
    series = dict.fromkeys(("private_mib", "fds", "threads", "lmdb_mib", "disk_mib"), noisy) | {"p99_ms": [5.0] * 31}
    sloped = slopes(series, hours)
    assert sloped["fds"].percent > 1.0 > sloped["fds"].percent - 2 * sloped["fds"].error and sloped["p99_ms"] == (0, 0)
    held = {"zombies": [0.0] * 31, "shm": [0.0] * 31}
    assert broken(series | held, sloped, 3.0, {"failed": 0, "asked": 1}) == []
    assert undecided(sloped, 3.0) == ["private_mib", "fds", "threads", "lmdb_mib", "disk_mib"]
    assert undecided(sloped, 1.0) == [] and undecided({"fds": Slope(-3.0, 4.0)}, 3.0) == []


def test_a_child_that_has_just_ended_is_no_zombie_but_one_that_is_never_waited_for_is() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is left to be waited for
    dead: set[int] = set()
    assert [zombies([os.getpid(), child.pid], dead) for _ in range(3)] == [0, 1, 1]
    child.wait()
    assert zombies([os.getpid(), child.pid], dead) == 0 and not dead
