"""Which files there are beneath a directory: a walk now and then, and in between a look at those that move.

Always true
  - A file that came, went or was renamed is seen at the next look: its directory's time says so. (A time younger than
    RACY_NS at the walk could hide another change in the same tick of the file system: then the next look walks, too.)
  - Of files that were there before, the HOT_FILES_MAX youngest are looked at each time, the others every WALK_EVERY
    looks, so that thousands of old files cost little.
  - Symbolic links are not followed, and only regular files are told of.
"""

from __future__ import annotations

import heapq
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Set
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from engine.errors import SourceError

log = logging.getLogger(__name__)

HOT_FILES_MAX = 64
WALK_EVERY = 25
RACY_NS = 2_000_000_000


class Seen(NamedTuple):
    path: str  # relative to the root
    inode: int
    size: int
    mtime: int  # ns
    wanted: bool  # False: matches no pattern, and is read only if it may be one of ours after a rotation


# eve.json.1, eve.json-20260101.gz, and eve.1.json, eve-20260101.json.zst
_BEHIND = re.compile(r"(.+?)[.-]\d[\d._T:-]*(?:\.(?:gz|zst))?")
_BETWEEN = re.compile(r"(.+?)[.-]\d[\d._T:-]*(\.[^.]+?)(?:\.(?:gz|zst))?")


def before_rotation(path: str) -> set[str]:
    """Paths that a file of this one may have had before it was rotated."""
    folder, slash, name = path.rpartition("/")
    names = {"".join(found.groups()) for form in (_BEHIND, _BETWEEN) if (found := form.fullmatch(name))}
    return {f"{folder}{slash}{one}" for one in names}


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


class Directory:
    """One configured file, or all files of a directory that match `pattern`."""

    def __init__(self, path: Path, pattern: str) -> None:
        self.path, self.root, self.only = path, path.parent, path.name
        self.pattern = pattern
        self.seen: dict[int, Seen] = {}  # by inode
        self.hot: list[int] = []
        self._times: dict[str, int] = {}  # of each directory at the last walk; -1: too young to be relied on
        self._looks_left = 0
        self._said: set[str] = set()

    def _say_once(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning("%s", what)

    def open(self) -> int:
        """A descriptor of the directory. Raises SourceError."""
        if self.only and not self.seen and self.path.is_dir():  # it may have come since the last look
            self.root, self.only = self.path, ""
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as e:
            raise SourceError(f"{self.root} cannot be read: {e.strerror}") from e

    def nothing(self) -> str:
        """Why the one configured file is not seen; "" where it is, or where all of a directory are wanted."""
        if not self.only or any(entry.wanted for entry in self.seen.values()):
            return ""
        if self.path.is_symlink():
            return f"{self.path} is a link, and links are not followed: name the file that it points to"
        return f"{self.path} is no plain file" if self.path.exists() else f"{self.path} is not there"

    def wants(self, path: str) -> bool:
        """Is it to be read by its name?"""
        name = path.rpartition("/")[2]
        return path == self.only if self.only else fnmatch(name, self.pattern) and name[0] != "."

    def walk_next(self) -> None:
        """Whatever the times say."""
        self._looks_left = 0

    def due(self, root: int) -> bool:
        """Must all be walked? If not, `seen` now says of each file in `hot` what it is like."""
        self._looks_left -= 1
        if self._looks_left < 0:
            return True
        try:
            for directory, time_ns in self._times.items():
                if os.stat(directory, dir_fd=root, follow_symlinks=False).st_mtime_ns != time_ns:
                    return True
            for inode in self.hot:
                entry = self.seen[inode]
                s = os.stat(entry.path, dir_fd=root, follow_symlinks=False)
                if s.st_ino != inode or not stat.S_ISREG(s.st_mode):
                    return True
                if (s.st_size, s.st_mtime_ns) != entry[2:4]:
                    self.seen[inode] = entry._replace(size=s.st_size, mtime=s.st_mtime_ns)
        except OSError:  # gone: the walk will tell
            return True
        return False

    def walk(self, root: int, stems: Set[str]) -> None:
        """Look at everything. stems: beginnings of names that known files may have after a rotation."""
        self._times, self._looks_left = {}, WALK_EVERY
        self.seen = {entry.inode: entry for entry in self._walk(root, stems)}
        youngest = heapq.nlargest(HOT_FILES_MAX, self.seen.values(), key=lambda entry: entry.mtime)
        self.hot = [entry.inode for entry in youngest]

    def _walk(self, root: int, stems: Set[str]) -> Iterator[Seen]:
        sizes = {len(stem) for stem in stems if stem}
        now_ns = time.time_ns()
        for directory, names, files, fd in os.fwalk(".", dir_fd=root, follow_symlinks=False):
            mtime = os.fstat(fd).st_mtime_ns
            self._times[directory] = mtime if now_ns - mtime > RACY_NS else -1
            names[:] = [] if self.only else sorted(name for name in names if not name.startswith("."))
            for name in sorted(files):
                wanted = self.wants(name)
                # eve.json.1, eve.json-20260101.gz, eve.1.json: may be one of ours after a rotation
                if not wanted and not any(name[:size] in stems for size in sizes):
                    continue
                if not _is_utf8(f"{directory}/{name}"):  # states have their path as text
                    self._say_once(f"{f'{directory}/{name}'!r} in {self.root} is not followed: its name is no UTF-8")
                    continue
                try:
                    s = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISREG(s.st_mode):
                    path = name if directory == "." else f"{directory[2:]}/{name}"
                    yield Seen(path, s.st_ino, s.st_size, s.st_mtime_ns, wanted)
