"""The file system that a data directory is on.

Always true
  - LMDB's lock file, the generation counter and the heartbeats are mapped and written by several processes, and who may
    write is said by flock: that holds on a local file system alone, so any other is refused before a file is made.
  - It is told by the kernel's table of mounts and the path: the last mount on the longest way down to it. The device
    number is not compared (btrfs and overlay give their files others), and nothing is asked of the file system itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine.errors import BootError

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "orangefs",
    "coda", "ocfs2", "gfs2", "ncpfs", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "davfs",
})  # fmt: skip
FUSE = re.compile(r"fuse(\..+)?")  # a program decides what locks and maps mean; fuseblk is a local disk


def kind(path: Path, mounts: str) -> str:
    """The type of the file system that `path`, absolute and without links, is on or would be made on. "": unknown.
    mounts: as in /proc/self/mountinfo."""
    found, longest = "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, types = before.split(), after.split()
        if len(fields) < 5 or not types:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        if len(point.parts) >= longest and path.is_relative_to(point):
            found, longest = types[0], len(point.parts)
    return found


def check(data_dir: Path) -> str:
    """The type of its file system, "" where the table cannot be read. Raises BootError for one that is not local."""
    try:
        mounts = MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
    found = kind(Path(os.path.realpath(data_dir)), mounts)
    if found in NETWORK or FUSE.fullmatch(found):
        raise BootError(
            f"{data_dir} is on {found}, which is no local file system: locks and shared maps do not hold there and "
            "events would be lost; nothing was changed. Set data_dir to a local disk; copies of it can be kept there "
            "(flowkin backup)"
        )
    return found
