"""What the benches share keeps its word, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from bench import harness
from bench.feed import Feed
from bench.harness import synthetic
from bench.whole import FILES
from ipc.errors import ClientError
from tests.engine_fixture import ROOT, Engine, environment, processes
from tests.wait import eventually

BENCH = """
import signal
from bench.harness import engine

with engine(1) as running:
    print(running.process.pid, running.data_dir, flush=True)
    signal.pause()
"""


def test_a_bench_that_is_terminated_leaves_no_engine_and_no_directory() -> None:
    """As `make bench` does with one that takes too long."""
    bench = subprocess.Popen(
        [sys.executable, "-c", BENCH], cwd=ROOT, env=environment({"TMPDIR": os.environ.get("TMPDIR", "/tmp")}),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with bench:
        assert bench.stdout is not None
        pid, folder = bench.stdout.readline().split()
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(timeout=60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert not Path(folder).exists()


def test_one_that_is_terminated_ends_what_a_child_of_it_started() -> None:
    """bench.whole measures in children."""
    words = [sys.executable, "-m", "bench.whole", "--only", "cic", "--runs", "1"]
    bench = subprocess.Popen(words, cwd=ROOT, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL)
    if not all(path.exists() for path in FILES["cic"][1]):
        bench.kill()
        bench.wait()
        pytest.skip("the real data is not here")
    eventually(lambda: any(" serve " in command for command in processes(bench.pid).values()), within_s=60)
    bench.send_signal(signal.SIGTERM)
    assert bench.wait(timeout=60) == 128 + signal.SIGTERM
    assert processes(bench.pid) == {}


def test_a_feed_that_cannot_keep_its_rate_reads_what_is_acknowledged(engine: Engine) -> None:
    running = harness.Engine(engine.data_dir, cast(Any, engine.process), 0.0)
    with Feed(running, synthetic(1 << 40, 1, texts=False), 1e6) as feed:
        eventually(lambda: len(feed.acknowledged_s) > 20)


def test_a_feed_whose_engine_is_gone_ends_and_says_why(engine: Engine) -> None:
    """It went on for an hour, each event with an error of its own in the log."""
    running = harness.Engine(engine.data_dir, cast(Any, engine.process), 0.0)
    with pytest.raises(ClientError), Feed(running, synthetic(1 << 40, 1, texts=False), 200.0) as feed:
        eventually(lambda: len(feed.acknowledged_s) > 20)
        assert engine.stop() == 0
        eventually(lambda: feed.error is not None)
        feed.check()
