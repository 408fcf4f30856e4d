"""Torture an engine: python -m tests.torture --minutes 60 --kills 500 --seed 1

Prints what was done and checked, and every broken promise; exit status 1 where there is one. The seed draws the faults;
which state each of them meets depends on the machine, so a finding may need several runs to come again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.mounts import UNSHARE, may_mount, mount_small
from tests.torture.checks import Checks
from tests.torture.faults import Faults
from tests.torture.schedule import BRIEF, WEIGHTS, draw
from tests.torture.verify import verify
from tests.wait import eventually

OURS = "TORTURE_MOUNTS"  # in the environment: this process has mounts of its own
DISK_BYTES = 384 << 20
DISK_BYTES_A_MINUTE = 48 << 20
LATE = 3.0  # times the minutes, until the kills that were asked for are done
HEARD_S = 5.0
FINDINGS_MAX = 20
SETTLE_S = 120.0


def torture(
    folder: Path, minutes: float, kills: int, seed: int, events_per_s: float, small_disk: bool, *,
    brief: bool = False, encrypted: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """All of it, in an empty folder; what was done and found. brief: only faults that are soon over, each after
    something was acknowledged since the one before, until the kills are done. encrypted: the directory is."""
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    if small_disk:
        mount_small(data_dir, int(DISK_BYTES + minutes * DISK_BYTES_A_MINUTE))
    begun_s = time.monotonic()
    faults = Faults(folder, data_dir, seed, events_per_s, small_disk=small_disk, encrypted=encrypted)
    checks: Checks | None = None
    try:
        faults.start()
        checks = Checks(data_dir, faults.oracle, folder / "made", seed)
        faults.start_writer()
        faults.feed()
        start_s = time.monotonic()
        for step in draw(seed, BRIEF if brief else WEIGHTS):
            elapsed_s, killed = time.monotonic() - start_s, faults.kills.total()
            if brief and killed >= kills:
                break
            if elapsed_s > minutes * 60 and (killed >= kills or elapsed_s > minutes * 60 * LATE):
                break
            if len(faults.findings) + len(checks.findings) + len(faults.oracle.findings) > FINDINGS_MAX:
                break
            if brief:
                heard = faults.oracle.look().events
                faults.within(lambda heard=heard: int(faults.oracle.look().events > heard), HEARD_S)
            threading.Event().wait(step.pause_s)
            faults.do(step.fault, step.seed)
        tortured_s = time.monotonic() - start_s
        settle(faults)
        checks.stop()
        faults.stop()
        wrong, figures = verify(faults)
        faults.engine.close()
    except BaseException:
        if checks is not None:
            checks.stop()
        raise
    finally:
        faults.close()
        if small_disk:
            subprocess.run(["umount", "--lazy", str(data_dir)], check=True)
    oracle = faults.oracle
    return {
        "tortured_s": round(tortured_s, 1), "seconds": round(time.monotonic() - begun_s, 1),
        "kills": faults.kills.total(), "killed": dict(faults.kills), "faults": dict(sorted(faults.done.items())),
        "missed": dict(faults.missed), "starts": faults.starts, "small_disk": small_disk, "encrypted": encrypted,
        "acknowledged": oracle.events, "batches": len(oracle.acknowledged), "never_acknowledged": len(oracle.open()),
        "lines": faults.lines, "rotations": faults.rotations, "labels": len(faults.labels), **figures,
        "checks": dict(sorted(checks.done.items())), "refused": dict(checks.refused),
        "findings": [*oracle.findings, *faults.findings, *checks.findings, *wrong],
    }  # fmt: skip


def settle(faults: Faults) -> None:
    """No more faults: it stops, opens what was left, and takes in all that was sent."""
    faults.end_threads()
    faults.stop()
    faults.start(armed=False)
    faults.stop_writer(SETTLE_S)
    lines, spoiled = faults.lines, faults.spoiled

    def all_there() -> bool:
        facts = faults.engine.facts()
        sources = {s["name"]: s["events"] for s in facts["sources"]}
        return (lines == 0 or sources.get("followed", 0) >= lines) and facts["dead_letters"]["count"] >= spoiled

    try:
        eventually(all_there, within_s=SETTLE_S, every_s=0.1)
    except AssertionError:
        faults.findings.append("the followed file is not taken in")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="of faults; start and end come on top")
    parser.add_argument("--kills", type=int, default=0, help="go on until so many are done, up to 3 times the minutes")
    parser.add_argument("--brief", action="store_true", help="faults that are soon over, until the kills are done")
    parser.add_argument("--encrypted", action="store_true", help="the data directory is, and nothing is in the clear")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events-per-s", type=float, default=60.0)
    parser.add_argument("--json", action="store_true", help="one line")
    parser.add_argument("--keep", action="store_true", help="append the line to bench/results/torture.jsonl")
    parser.add_argument("--folder", type=Path, help="leave everything there; it must be empty")
    args = parser.parse_args()
    small_disk = OURS in os.environ
    if not small_disk and may_mount():
        words = [*UNSHARE, sys.executable, "-P", "-m", "tests.torture", *sys.argv[1:]]
        os.execvpe(words[0], words, {**os.environ, OURS: "1", "PYTHONPATH": str(Path(__file__).parents[2])})
    with tempfile.TemporaryDirectory(prefix="flowkin-torture-") as temporary:
        figures = torture(
            args.folder or Path(temporary), args.minutes, args.kills, args.seed, args.events_per_s, small_disk,
            brief=args.brief, encrypted=args.encrypted,
        )  # fmt: skip
    if args.keep:
        from bench.harness import keep

        given = {name: getattr(args, name) for name in ("minutes", "kills", "seed", "encrypted")}
        keep("torture", given, figures)
    if args.json:
        print(json.dumps(figures))
    else:
        findings = figures.pop("findings")
        print(*(f"{name:20} {value}" for name, value in figures.items()), sep="\n")
        print(f"{len(findings)} broken promises", *findings, sep="\n")
        return 1 if findings else 0
    return 1 if figures["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
