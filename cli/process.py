"""Start the engine in the background, stop it, and say whether it runs. `python -m cli.process LOG ARGS...` is the
short-lived process in between, so that the engine is a child of nobody who types.

Always true
  - A signal goes only to a process that holds the lock on supervisor.pid; a stale file names nobody.
  - The engine has a session of its own, /dev/null as input, and its log as output.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.errors import FAILED, LATE, CommandError
from engine.files import open_ours

if TYPE_CHECKING:
    from engine.layout import Layout

LOG_NAME = "engine.log"


def log_path(layout: Layout) -> Path:
    return layout.run / LOG_NAME


def running_pid(layout: Layout) -> int | None:
    """The supervisor's pid, if one holds the lock. Raises OSError where the file may not be read."""
    try:
        fd = os.open(layout.supervisor_pid, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(ValueError):
                return int(file.read(32).split()[0])
        except OSError:
            return None
    return None


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def start(layout: Layout, args: Sequence[str], *, timeout_s: float) -> int:
    """Run `flowkin serve ARGS` in the background and wait for READY; its pid. Raises CommandError."""
    if (pid := running_pid(layout)) is not None:
        raise CommandError(f"an engine already runs on {layout.data_dir} (pid {pid}); `flowkin stop` ends it", FAILED)
    layout.make()
    log = log_path(layout)
    try:
        fd = open_ours(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError as e:
        raise CommandError(f"the log {log} cannot be opened: {e.strerror}", FAILED) from e
    begin = os.fstat(fd).st_size
    os.close(fd)
    spawned = subprocess.run(
        [sys.executable, "-m", "cli.process", str(log), *args], capture_output=True, text=True, check=False
    )
    if spawned.returncode != 0:
        raise CommandError(f"the engine cannot be spawned: {spawned.stderr.strip().splitlines()[-1:]}", FAILED)
    pid = int(spawned.stdout)
    deadline_s = time.monotonic() + timeout_s
    while True:
        alive = _alive(pid)
        said = _tail(log, begin)
        if any(line.startswith("READY") for line in said):
            return pid
        if not alive:
            raise CommandError(f"the engine did not start: {_why(said)} ({log})", FAILED)
        if time.monotonic() > deadline_s:
            raise CommandError(f"the engine (pid {pid}) is not ready after {timeout_s:.0f} s; see {log}", LATE)
        time.sleep(0.05)


def _why(said: Sequence[str]) -> str:
    """The last error that the log holds, without its time and level; else the last line. A worker's before the
    supervisor's, who says only which worker left and with what status."""
    lines = [line for line in said if line.strip()] or ["it said nothing"]
    found = [re.search(r'level=error role=(\S+) msg="(.*)"', line) for line in lines]
    errors = [(match[1] != "supervisor", match[2]) for match in found if match]
    causes = [text for by_worker, text in errors if by_worker] or [text for _, text in errors]
    return causes[-1] if causes else lines[-1]


def _tail(log: Path, begin: int) -> list[str]:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode("utf-8", "replace").splitlines()


def stop(layout: Layout, *, timeout_s: float) -> int | None:
    """SIGTERM, and wait until the engine is gone; its pid, None where none runs. Raises CommandError, OSError."""
    pid = running_pid(layout)
    if pid is None:
        return None
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid
    try:
        if running_pid(layout) != pid:  # it left before we held the handle; the pid may be somebody else's
            return pid
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            raise CommandError(
                f"the engine (pid {pid}) has not stopped after {timeout_s:.0f} s; it may still be draining, "
                f"see {log_path(layout)}",
                LATE,
            )
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
    return pid


def _spawn(log: str, args: Sequence[str]) -> int:
    with os.fdopen(open_ours(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as out:
        engine = subprocess.Popen(
            [sys.executable, "-m", "cli", *args],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd="/",
        )
    return engine.pid


if __name__ == "__main__":
    print(_spawn(sys.argv[1], sys.argv[2:]))
