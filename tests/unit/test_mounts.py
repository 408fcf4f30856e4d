"""Which file system a path is on, by the kernel's table."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import BootError
from engine.run import mounts

TABLE = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /srv rw,relatime - nfs4 server:/srv rw,vers=4.2
31 30 254:1 / /srv/local rw,relatime master:2 propagate_from:1 - xfs /dev/vdb rw
32 27 0:41 / /srv\\040two rw - fuse.sshfs me@host:/ rw
33 27 254:2 / /over rw - ext4 /dev/vdc rw
34 33 0:42 / /over rw - cifs //server/share rw
35 27 0:43 / /docker rw - overlay overlay rw,lowerdir=/a - b
36 27 254:3 / /ntfs rw - fuseblk /dev/vdd rw
37 27 0:45 /sub /btrfs rw - btrfs /dev/vde rw,subvol=/sub
a line that is none
"""
ON = {
    "/": "ext4", "/var/lib/flowkin": "ext4", "/srv": "nfs4", "/srv/flowkin": "nfs4", "/srv/local/flowkin": "xfs",
    "/srvx": "ext4", "/srv two/data": "fuse.sshfs", "/over/data": "cifs", "/docker/data": "overlay",
    "/ntfs/d": "fuseblk", "/btrfs/data": "btrfs",
}  # fmt: skip


@pytest.mark.parametrize(("path", "kind"), ON.items())
def test_the_last_mount_on_the_longest_way_down_counts(path: str, kind: str) -> None:
    assert mounts.kind(Path(path), TABLE) == kind


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "lustre", "fuse", "fuse.glusterfs"]
)
def test_what_is_not_local_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also through a link to it, and before anything is made."""
    (tmp_path / "mounts").write_text(
        f"27 1 254:0 / / rw - ext4 /dev/vda rw\n30 27 0:40 / {tmp_path}/far rw - {kind} x rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    for path in (tmp_path / "far", tmp_path / "far" / "data", tmp_path / "link" / "data"):
        with pytest.raises(BootError, match=f"is on {kind}, which is no local .* Set data_dir to a local disk"):
            mounts.check(path)
    assert mounts.check(tmp_path / "near") == "ext4"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "fuseblk", ""])
def test_what_is_local_or_not_known_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "mounts").write_text(f"27 1 254:0 / / rw - {kind} /dev/vda rw\n" if kind else "")
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    assert mounts.check(tmp_path) == kind
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "none")
    assert mounts.check(tmp_path) == ""
