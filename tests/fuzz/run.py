"""One target in a process of its own: what it raises, holds, and whether it lives.

Always true
  - Input i of a target and a seed is the same in every run: first the seeds as they are, then changed ones.
  - The process says in a mapped page which input it is at, so that one that kills it is known; the next goes on behind.
  - A process may map BYTES_MAX more than it did when its target was made, and an input may take CPU_S_MAX.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import Target, make, scratch
from tests.one_thread import ONE_THREAD

BYTES_MAX = 256 << 20
CPU_S_MAX = 2.0
LEAK_BYTES_MAX = 24 << 20  # from the middle of a run to its end; caches are full by then
LEAK_INPUTS = 2_000  # fewer say nothing of a leak
FINDINGS_MAX = 10
ROOT = Path(__file__).parents[2]


class Job(NamedTuple):
    """Inputs [first, end) of a target."""

    name: str
    seed: int
    first: int
    end: int


class _HangError(BaseException):
    """An input took longer than CPU_S_MAX."""


def data_of(target: Target, name: str, seed: int, at: int) -> bytes:
    if at < len(target.seeds):
        return target.seeds[at]
    return mutated(Random(f"{seed}/{name}/{at}"), target.seeds, target.words)


def attempt(target: Target, data: bytes) -> str:
    """Why an input breaks the contract, "" where it does not."""
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S_MAX)
    try:
        target.run(data)
    except target.refuses:
        return ""
    except _HangError:
        return f"takes longer than {CPU_S_MAX} s"
    except MemoryError:
        return f"wants more than {BYTES_MAX >> 20} MiB"
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        return f"{type(e).__name__}: {str(e)[:200]} ({Path(where.filename).name}:{where.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return ""


def work(jobs: list[Job], page: Path, output: Path) -> None:
    """In the process of its own: one target after the other. What comes of each is a line of `output`."""

    def hang(*_: object) -> None:
        raise _HangError

    signal.signal(signal.SIGVTALRM, hang)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with page.open("r+b") as file, mmap.mmap(file.fileno(), 8) as mapped, output.open("a") as lines:
        with memoryview(mapped) as view, view.cast("Q") as place:
            for job in jobs:
                lines.write(json.dumps(_one(job, place)) + "\n")
                lines.flush()


def _one(job: Job, place: memoryview) -> dict[str, Any]:
    findings: list[tuple[int, str]] = []
    first, end = job.first, job.end
    place[0] = first
    with scratch() as folder:
        target = make(job.name, Path(folder))
        _limit()
        held, middle = [_held()], (first + end) // 2
        for at in range(first, end):
            place[0] = at
            if why := attempt(target, data_of(target, job.name, job.seed, at)):
                findings.append((at, why))
                if len(findings) >= FINDINGS_MAX:
                    break
            if at == middle:
                held.append(_held())
        held.append(_held())
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if held[-1][1] > held[0][1]:
        findings.append((-1, f"{held[-1][1] - held[0][1]} descriptors are left open"))
    grown = held[-1][0] - held[-2][0]
    if len(held) == 3 and end - first >= LEAK_INPUTS and grown > LEAK_BYTES_MAX:
        findings.append((-1, f"{grown >> 20} MiB more than in the middle"))
    return {"findings": findings, "grown_kib": grown >> 10, "resident_mib": held[-1][0] >> 20}


def _held() -> tuple[int, int]:
    """Resident bytes, and descriptors."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resident, len(os.listdir("/proc/self/fd"))


def _limit() -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES_MAX, resource.RLIM_INFINITY))


def fuzz(jobs: list[Job]) -> dict[str, dict[str, Any]]:
    """Targets one after the other, however often they kill their process: figures and findings of each."""
    out: dict[str, dict[str, Any]] = {}
    died: dict[str, list[tuple[int, str]]] = {}
    left, environment = list(jobs), {**os.environ, "PYTHONPATH": str(ROOT), **ONE_THREAD}
    with tempfile.TemporaryDirectory(prefix="flowkin-fuzz-") as folder:
        page, output = Path(folder) / "at", Path(folder) / "out"
        while left:
            page.write_bytes(bytes(8))
            output.write_bytes(b"")
            words = [sys.executable, "-m", "tests.fuzz", "--child", json.dumps([left, str(page), str(output)])]
            done = subprocess.run(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, check=False)
            for line in output.read_text().splitlines():
                out[left.pop(0).name] = json.loads(line)
            if done.returncode >= 0 and left:
                raise RuntimeError(f"{left[0].name}: {done.stderr[-2000:]}")
            if left:
                at = int.from_bytes(page.read_bytes(), "little")
                died.setdefault(left[0].name, []).append((at, f"died of {signal.Signals(-done.returncode).name}"))
                if at + 1 >= left[0].end or len(died[left[0].name]) >= FINDINGS_MAX:
                    out[left.pop(0).name] = {"findings": []}
                else:
                    left[0] = left[0]._replace(first=at + 1)
    for job in jobs:
        of = out[job.name]
        of["inputs"] = job.end
        again = f"; again: python -m tests.fuzz --target {job.name} --seed {job.seed} --at "
        found = [*died.get(job.name, []), *of["findings"]]
        of["findings"] = [f"{job.name}: {why}" + (again + str(at) if at >= 0 else "") for at, why in found]
    return out
