"""`make demo`: the engine on a temporary directory, the recording that ships with the project, and the two questions.

Always true
  - Everything goes through the command line that a user has; nothing here knows the answer.
  - The engine is stopped and its directory removed at the end, whatever happens.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAB = ROOT / "examples" / "lab"
FLOWKIN = Path(sys.executable).with_name("flowkin")
FAMILY = "C2"  # of the event that is asked about
INTERNAL = 'network.internal=["192.0.2.0/24", "2001:db8:1::/64"]'  # of the recorded network
TEXT = "dns tunnelling: long random names"


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def flowkin(*arguments: str | Path, show: bool = True, env: dict[str, str]) -> str:
    """Run one command, shown as typed; its output where it is not shown. Raises CalledProcessError."""
    words = [str(a) for a in arguments]
    if show:
        say("$ flowkin " + shlex.join(w.replace(f"{ROOT}/", "") for w in words))
    done = subprocess.run([FLOWKIN, *words], check=True, env=env, stdout=None if show else subprocess.PIPE, text=True)
    return done.stdout or ""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="flowkin-demo-") as folder:
        env = {**os.environ, "FLOWKIN_DATA_DIR": folder}
        say("Have we seen this before, and why do we think so? Real traffic, recorded by `make lab`.")
        flowkin("start", "--readers", "2", "--set", INTERNAL, env=env)
        try:
            flowkin("ingest", LAB / "lab.pcap.gz", "--labels", LAB / "labels.ndjson", env=env)
            flowkin("ingest", LAB / "eve.json.gz", env=env)
            found = json.loads(flowkin("list", "--family", FAMILY, "--kind", "flow", "--json", show=False, env=env))
            event_id = found["events"][-1]["event_id"]
            flowkin("query_similar", event_id, "-k", "5", "--space", "attack", "--explain", "--other-episodes", env=env)
            flowkin("search", TEXT, "-k", "5", env=env)
            flowkin("stats", env=env)
        finally:
            flowkin("stop", env=env)
    return 0


if __name__ == "__main__":
    sys.exit(main())
