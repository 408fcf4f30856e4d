"""NFStream in a process of its own: `python -m tests.nfstream_rows CAPTURE...` prints one JSON line of flows each.

It forks and keeps threads: nothing of that shall meet the threads of numpy, or outlive a test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from engine.flows.split import Limits

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 240


def nfstream(captures: list[Path]) -> list[list[dict[str, Any]]]:
    """The flows of each capture (uncompressed files). Skips the test where NFStream is not installed."""
    if find_spec("nfstream") is None:
        pytest.skip("needs NFStream: pip install nfstream")
    words = [sys.executable, "-m", __name__, *map(str, captures)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(captures), done.stderr.decode()
    return rows


def main() -> None:
    from nfstream import NFStreamer

    limits = Limits()
    for capture in sys.argv[1:]:
        flows = NFStreamer(
            source=capture,
            accounting_mode=3,  # payload bytes
            statistical_analysis=True,
            n_dissections=0,
            idle_timeout=limits.idle_s,
            active_timeout=limits.active_s,
            snapshot_length=1 << 16,  # it leaves out what is longer
            n_meters=1,
        )
        print(json.dumps([dict(zip(flow.keys(), flow.values(), strict=True)) for flow in flows]))


if __name__ == "__main__":
    main()
