"""A seam below the engine: files of a test say how its disk, map and clock are to fail. For an environment only.

Always true
  - While the file TEST_BAD_DISK holds an errno, every fdatasync of a worker fails with it, and every fsync; EIO once,
    and at an fdatasync: the next process finds a disk that works.
  - While the file TEST_SLOW_DISK holds milliseconds, every fdatasync takes so much longer.
  - The wall clock of every process goes as many seconds off as the file TEST_CLOCK says, from one look to the next.
  - A catalog is opened with a map of as many bytes as the file TEST_MAP_BYTES says, where it is there.
"""

from __future__ import annotations

from pathlib import Path

from tests.engine_fixture import ROOT

SEAM = """
import errno, os, time
_trigger, _real = os.environ.get("TEST_BAD_DISK", ""), os.fdatasync
def _number(path):
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
_slow = os.environ.get("TEST_SLOW_DISK", "")
def fdatasync(fd):
    if _slow and (ms := _number(_slow)):
        time.sleep(ms / 1e3)
    code = _number(_trigger)
    if not code:
        return _real(fd)
    if code == errno.EIO:
        os.unlink(_trigger)
    raise OSError(code, os.strerror(code))
os.fdatasync = fdatasync
_fsync = os.fsync
def fsync(fd):
    code = _number(_trigger)
    if code and code != errno.EIO:
        raise OSError(code, os.strerror(code))
    _fsync(fd)
os.fsync = fsync
if _clock := os.environ.get("TEST_CLOCK", ""):
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _number(_clock)
    time.time_ns = lambda: _time_ns() + _number(_clock) * 1_000_000_000
if _map := os.environ.get("TEST_MAP_BYTES", ""):
    import lmdb
    _environment = lmdb.Environment
    def Environment(path, *, map_size, **more):
        return _environment(path, map_size=_number(_map) or map_size, **more)
    lmdb.Environment = Environment
"""


def bad_disk(folder: Path) -> tuple[Path, dict[str, str]]:
    """(the file for an errno, environment), with the seam in `folder`, which is there."""
    (folder / "sitecustomize.py").write_text(SEAM)
    trigger = folder / "errno"
    return trigger, {"PYTHONPATH": f"{folder}:{ROOT}", "TEST_BAD_DISK": str(trigger)}


def small_map(folder: Path) -> tuple[Path, dict[str, str]]:
    """(the file for bytes of the map, environment); beside bad_disk."""
    size = folder / "map_bytes"
    return size, {"TEST_MAP_BYTES": str(size)}


def slow_disk(folder: Path) -> tuple[Path, dict[str, str]]:
    """(the file for milliseconds, environment), with the seam in `folder`, which is there."""
    _, env = bad_disk(folder)
    slow = folder / "slow_ms"
    return slow, env | {"TEST_SLOW_DISK": str(slow)}


def bad_clock(folder: Path) -> tuple[Path, dict[str, str]]:
    """(the file for seconds, environment), with the seam in `folder`, which is there."""
    _, env = bad_disk(folder)
    clock = folder / "clock_s"
    return clock, env | {"TEST_CLOCK": str(clock)}
