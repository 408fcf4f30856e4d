"""Mounts of a process's own, for tests. Nothing of them outlives the process."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]


def mount_small(folder: Path, size: int) -> None:
    """An empty disk of `size` bytes; only behind UNSHARE."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", str(folder)], check=True)


@cache
def may_mount() -> bool:
    """Can a process have a small disk of its own?"""
    with tempfile.TemporaryDirectory() as folder:
        command = [*UNSHARE, "mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
        return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
