"""Real file systems that are not as they should be: a disk of 8 MiB that fills up, and one that is not local."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import fuse
from tests.engine_fixture import environment
from tests.mounts import UNSHARE, may_mount

pytestmark = pytest.mark.skipif(not may_mount(), reason="no mounts of one's own here (unshare --mount)")


def behind(module: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A module of tests as a program, with mounts of its own."""
    command = [*UNSHARE, sys.executable, "-P", "-m", module, *map(str, words)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)


def test_a_disk_of_8_mib_fills_up_and_costs_writers_a_refusal(tmp_path: Path) -> None:
    """Twice to the last page: NO_SPACE to writers, readers go on, one of them is killed and comes back; with room again
    the same processes go on, and all that was acknowledged is there once, also after a restart."""
    done = behind("tests.process.small_disk", tmp_path)
    assert done.returncode == 0, done.stderr + (tmp_path / "data.0.log").read_text()


@pytest.mark.parametrize("kind", ["fuse", "fuse.sshfs"])
@pytest.mark.parametrize("name", ["", "data"])
def test_a_file_system_that_is_not_local_is_refused_and_left_as_it_is(tmp_path: Path, kind: str, name: str) -> None:
    """FUSE stands for all of them: the kernel mounts it in earnest, and it refuses every file that would be made."""
    serve = [sys.executable, "-P", "-m", "cli", "serve", "--data-dir", tmp_path / name]
    done = behind("tests.fuse", kind, tmp_path, *serve)
    if done.returncode == fuse.CANNOT:
        pytest.skip(f"no FUSE here: {done.stderr}")
    assert done.returncode == 1
    assert f"is on {kind}, which is no local file system" in done.stderr
    assert "Set data_dir to a local disk" in done.stderr
    assert "Traceback" not in done.stderr
