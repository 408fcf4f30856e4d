"""What every process of the engine does first: a log of whole lines, a death with its parent, limits. No heavy import.

Always true
  - A process that called die_with_parent does not outlive its parent, however that ends.
  - A record of the log is one line; JSON quoting keeps what foreign text may hold out of a terminal.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path

from engine.limits import FILES_KEPT

PR_SET_PDEATHSIG = 1
PARENT_GONE = 1


class LogFormat(logging.Formatter):
    """One line a record; JSON quoting keeps line ends and escape sequences of foreign text out of a terminal."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        level = record.levelname.lower()
        return f"ts={at}.{record.msecs:03.0f}Z level={level} role={self.role} msg={json.dumps(text)}"


def set_up_log(role: str, level: str) -> None:
    """All records to stderr, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormat(role))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells every step of its import


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies; leave at once when it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(PARENT_GONE)


def settle() -> None:
    """After a large change of what a worker holds. The collector passes over what there is: to go through all of a
    context takes 0.1 s, and nothing of it is a cycle. What was freed meanwhile goes back to the system."""
    gc.freeze()
    with contextlib.suppress(AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def raise_limits() -> None:
    """As many files as allowed, and no core dumps (they would hold addresses and payloads)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def connections_max(wanted: int) -> int:
    """How many connections a worker may have: what is wanted, or what the limit on open files leaves for them."""
    return max(1, min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_KEPT))


def name_process(name: str) -> None:
    """As ps and top show it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"flowkin {name}"[:15])


def memory_bytes(pid: int) -> dict[str, int]:
    """Private and proportional memory of a process from smaps_rollup; empty where it may not be read. Private are
    pages that it wrote to: a clean one of a file that it alone has looked at yet is the system's to take back."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines[1:])}
    return {
        "private_bytes": sizes.get("Private_Dirty", 0),
        "pss_bytes": sizes.get("Pss", 0),
    }
