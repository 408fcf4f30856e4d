"""A bench that is terminated, as `make bench` does with one that takes too long, takes its engine along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine_fixture import ROOT, environment

BENCH = """
import signal
from bench.harness import engine

with engine(1) as running:
    print(running.process.pid, running.data_dir, flush=True)
    signal.pause()
"""


def test_a_bench_that_is_terminated_leaves_no_engine_and_no_directory() -> None:
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
