"""What an attacker or an accident left in the place of a file of ours: refused, left alone, not waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.files import open_ours, replace, write_new
from engine.run.heartbeat import Heartbeat
from engine.store import dead_letters, lock
from engine.store.counter import Counter
from ipc.messages import Reject

WRITERS: dict[str, Callable[[Path], object]] = {
    "open_ours": lambda path: os.close(open_ours(path, os.O_WRONLY | os.O_CREAT)),
    "lock": lambda path: os.close(lock.hold(path, wait_s=0)),
    "dead letters": lambda path: dead_letters.append(path, [Reject("f", 0, "no")], 1, 0),
    "counter": lambda path: Counter(path, write=True).close(),
    "heartbeat": lambda path: Heartbeat(path, create=True).close(),
}


def plant(kind: str, path: Path, victim: Path) -> None:
    victim.write_text("precious")
    match kind:
        case "link":
            path.symlink_to(victim)
        case "dangling link":
            path.symlink_to(victim.with_name("nowhere"))
        case "hard link":
            path.hardlink_to(victim)
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "foreign":
            path.write_text("theirs")
            os.chown(path, 12_345, 12_345)


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "directory", "foreign"])
@pytest.mark.parametrize("writer", WRITERS)
def test_it_is_refused_and_left_alone(tmp_path: Path, writer: str, kind: str) -> None:
    if kind == "foreign" and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    path, victim = tmp_path / "file", tmp_path / "victim"
    plant(kind, path, victim)
    before = path.lstat()
    with pytest.raises(OSError, match="file"):
        WRITERS[writer](path)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert (path.lstat().st_ino, path.lstat().st_size) == (before.st_ino, before.st_size)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_of_ours_is_made_private_and_used_again(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "file"
    for _ in range(2):
        WRITERS[writer](path)
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe"])
def test_a_new_file_takes_its_place_and_does_not_go_through_it(tmp_path: Path, kind: str) -> None:
    """What is written beside and renamed, and what is written beside under a name that is known (`.new`)."""
    for name, write in (("durable", lambda p: write_new(p, [b"new"])), ("told", lambda p: replace(p, b"new"))):
        folder = tmp_path / name
        folder.mkdir()
        plant(kind, folder / "file", folder / "victim")
        plant(kind, folder / "file.new", folder / "victim")
        write(folder / "file")
        assert (folder / "file").read_bytes() == b"new" and not (folder / "file").is_symlink()
        assert (folder / "victim").read_text() == "precious" and not (folder / "nowhere").exists()
