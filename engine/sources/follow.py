"""Follow growing files: what is new since the last look, with the state to store in the same commit.

Always true
  - A file is known by its inode and the fingerprint of its first bytes; renamed, copied or compressed it is still the
    same file, if the bytes before its offset are the same too. A file that was cut and written anew is a new one. One
    that has the name of a rotated one, is no copy, and changed since the file is followed, is one that came and was
    rotated between two looks: it is read, too.
  - A state's offset is the adapter's low-water mark in decompressed bytes: reading from there yields every event that
    was not in a batch yet. Before it, lines are only counted, so that ids come out the same.
  - Nothing is opened but regular files beneath the configured directory, no symbolic link is followed on the way.
  - No thread, no waiting: `poll` looks once, reads at most about max_bytes, and says in `behind` whether there is more.
  - States of files that are gone are kept, in case one comes back under another name, up to GONE_STATES_MAX; then those
    that grew longest ago are forgotten. What a poll costs does not grow with how many files there were.
  - The files share one join (engine/sources/join.py). States are made one after the other, in the order of the batches.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path, PurePath
from typing import NamedTuple

from msgspec import Struct, structs

from engine.errors import SourceError
from engine.sources import adapter_for, detect
from engine.sources.base import Adapter, Parsed, SourceSpec
from engine.sources.files import (
    CHUNK_BYTES,
    FINGERPRINT_BYTES_MAX,
    GZIP_MAGIC,
    HEAD_BYTES,
    ZSTD_MAGIC,
    ArchiveError,
    chunks,
    fingerprint,
)
from engine.sources.join import Join
from engine.sources.lines import LineAdapter
from engine.sources.look import Directory, Seen, before_rotation
from ipc.messages import Reject

TAIL_BYTES_MAX = 1 << 10
COPY_BYTES_MIN = FINGERPRINT_BYTES_MAX  # so much in common makes a copy
OPEN_FILES_MAX = 256  # at once; of more, those at rest are closed and opened again when they grow
GONE_STATES_MAX = 1_024  # an hourly rotation for six weeks
QUIET_POLLS = 50  # a file that is gone, or a finished capture, is let go after so many looks without a new byte
QUIET_DOUBLINGS_MAX = 10  # a capture that grew all the same is read anew, and waited for twice as long
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileState(Struct, frozen=True, omit_defaults=True):
    """What a restart needs of one file, stored with the events it produced.

    path: beneath the configured directory. fingerprint: of the first fingerprint_length decompressed bytes; tail: of
    the TAIL_BYTES_MAX before offset; done_size: of an archive that was read to its end and need not be read again;
    mtime_s: when the file last changed.
    """

    fingerprint: str
    fingerprint_length: int
    inode: int
    offset: int
    path: str
    tail: str = ""
    done_size: int = 0
    mtime_s: int = 0


class Batch(NamedTuple):
    """New events of one file. Store `state` under `key` in the commit that stores them; None: forget the key. format:
    that of the adapter that read it; "": none did."""

    key: str
    state: FileState | None
    parsed: Parsed
    format: str = ""


class Reading(NamedTuple):
    """How far one file is read. offset: where a restart would read again from, decompressed; lag_bytes: not read yet,
    of an archive compressed ones."""

    key: str
    path: str
    size: int
    offset: int
    lag_bytes: int
    done: bool


class _File:
    """One file being read. `position` is where the next byte comes from, decompressed."""

    def __init__(self, fd: int, archive: bool, state: FileState) -> None:
        self.key = ""
        self.state, self.fd, self.archive = state, fd, archive
        self.adapter: Adapter | None = None
        self.position = 0
        self.until = 0  # bytes before that were read before a restart, and are only counted
        self.looked = (-1, -1)  # size and mtime when its end was last reached
        self.stream: Iterator[bytes] | None = None
        self.quiet = 0  # looks without a new byte
        self.stored = False  # its state went out: a restart will know the file, even rotated
        self.over = False  # finished or damaged: not read again
        self.grown = False  # a capture that was let go, and is read from its beginning

    @property
    def waits(self) -> bool:
        return self.adapter is not None and self.adapter.waits

    @property
    def is_full(self) -> bool:
        return self.adapter is not None and self.adapter.is_full

    def close(self) -> None:
        self.stream = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def sleep(self) -> None:
        """Close a file at rest. When it grows it is taken up again as after a restart."""
        self.close()
        self.adapter = None

    def end(self, entry: Seen | None) -> None:
        self.over = True
        if entry is not None:
            self.looked = (entry.size, entry.mtime)
        self.close()

    def rests(self, entry: Seen) -> bool:
        """Nothing new to see, and nothing to wait for."""
        mtime_s = entry.mtime // 1_000_000_000
        if (self.state.path, self.state.mtime_s) != (entry.path, mtime_s):
            self.state = structs.replace(self.state, path=entry.path, mtime_s=mtime_s)
        return self.looked == (entry.size, entry.mtime) and not (self.adapter is not None and self.adapter.binary)

    def replaced(self, entry: Seen) -> bool:
        """Was the file cut, or written anew? Looked at only where its size or time changed."""
        if self.looked == (entry.size, entry.mtime):
            return False
        if self.fd < 0 or (not self.archive and entry.size < self.position):
            return True
        if not _begins_so(self.head(self.state.fingerprint_length), self.state):
            return True
        return not self.archive and not self.continues(self.state)

    def lag_bytes(self, size: int) -> int:
        """Bytes of a file of `size` that were not read yet."""
        if self.over or self.fd < 0:
            return 0
        at = os.lseek(self.fd, 0, os.SEEK_CUR) if self.archive else self.position
        return max(0, size - at) if self.adapter is not None and self.position >= self.until else size

    def continues(self, state: FileState) -> bool:
        """Are the bytes before the offset there, and the same?"""
        if not state.offset:
            return True
        tail = self.before(state.offset)
        return len(tail) == min(TAIL_BYTES_MAX, state.offset) and state.tail in ("", _tail_print(tail))

    def before(self, offset: int) -> bytes:
        """The TAIL_BYTES_MAX decompressed bytes before `offset`; fewer where the file is shorter."""
        if not self.archive:
            begin = max(0, offset - TAIL_BYTES_MAX)
            return os.pread(self.fd, offset - begin, begin)
        tail, at = b"", 0
        try:
            for chunk in self.begin():
                tail = (tail + chunk[: offset - at])[-TAIL_BYTES_MAX:]
                at += len(chunk)
                if at >= offset:
                    return tail
        except ArchiveError:
            pass
        return b""

    def begin(self) -> Iterator[bytes]:
        """The decompressed bytes from the beginning."""
        raw = FileIO(self.fd, closefd=False)
        raw.seek(0)
        return chunks(raw)

    def head(self, size: int) -> bytes:
        """The first `size` decompressed bytes, fewer where there are no more."""
        if not self.archive:
            return os.pread(self.fd, size, 0)
        data = b""
        try:
            for chunk in self.begin():
                data += chunk
                if len(data) >= size:
                    break
        except ArchiveError:
            pass  # still being written, or damaged: reading on will tell
        return data[:size]

    def next(self, size: int) -> bytes:
        """The next decompressed bytes, b"" at the end of what is there. Raises ArchiveError."""
        if not self.archive:
            return os.pread(self.fd, min(size, CHUNK_BYTES), self.position)
        if self.stream is None:
            self.stream = _from(self.begin(), self.position)
        return next(self.stream, b"")

    def feed(self, data: bytes, out: Parsed) -> None:
        assert self.adapter is not None
        if self.position < self.until:
            counted, data = data[: self.until - self.position], data[self.until - self.position :]
            if isinstance(self.adapter, LineAdapter):
                self.adapter.skip(counted, self.position)
            self.position += len(counted)
        if data and self.until and self.adapter.binary:  # it grew, and its flows reach back
            self.until = self.position = 0
            self.stream, self.grown = None, True
        elif data:
            out.add(self.adapter.feed(data, self.position))
            self.position += len(data)

    def finish(self, out: Parsed) -> None:
        if self.adapter is not None and not (self.until and self.adapter.binary):  # else nothing of it was read
            out.add(self.adapter.finish())


def _from(stream: Iterator[bytes], offset: int) -> Iterator[bytes]:
    for chunk in stream:
        if offset >= len(chunk):
            offset -= len(chunk)
            continue
        yield chunk[offset:]
        offset = 0


class Follower:
    """One configured file, or all files of a directory that match `pattern`."""

    def __init__(
        self,
        path: str | Path,
        spec: SourceSpec,
        format: str = "auto",
        pattern: str = "*",
        states: Mapping[str, FileState] | None = None,
    ) -> None:
        """spec.name and spec.sensor go into the events. states: as stored, by key; they are resumed when met."""
        self._spec = spec._replace(join=Join(spec.join_pending_max, spec.join_wait_s, live=True))
        self._format = format
        self._directory = Directory(Path(path), pattern)
        self._stored = dict(states or {})  # of files that are not being read
        self._files: dict[int, _File] = {}  # being read, by inode
        self._moving: set[int] = set()  # inodes of files that were not at rest at the last look
        self._prints: dict[int, dict[str, set[str]]] = {}  # keys by length and value of their fingerprints
        for key, state in self._stored.items():
            self._print_keys(state).add(key)
        self._refused: set[str] = set()  # keys of files that no adapter reads
        self._grown: dict[str, int] = {}  # keys of captures that grew after they were let go: how often
        self._strangers: dict[int, tuple[int, int]] = {}  # inode: size and mtime of files that are not ours
        self._left: list[Batch] = []  # what waited in files that are read no more
        self._locked = ""  # why a file could not be opened at the last look
        self._begun_s = int(time.time())
        self.behind = False  # the last poll left bytes unread: poll again at once

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def poll(self, max_bytes: int = 1 << 20, now_s: float = 0.0) -> list[Batch]:
        """What is new, oldest file first. now_s: monotonic, for what waits for other files.

        Raises SourceError where the directory itself cannot be read."""
        self.behind = False
        batches, self._left = self._left, []
        inodes, gone = self._look(batches), []
        seen = self._directory.seen
        for inode in sorted(inodes, key=lambda i: self._files[i].is_full):
            file, entry = self._files[inode], seen.get(inode)
            if entry is None:
                gone.append(inode)
            if file.over or file.fd < 0 or (entry is not None and file.rests(entry)):
                self._moving.discard(inode)
                continue
            self._moving.add(inode)
            if max_bytes <= 0:
                self.behind = True
                break
            batch, used = self._read(file, entry, max_bytes)
            max_bytes -= used
            if batch is not None:
                batches.append(batch)
        self.behind = self.behind or max_bytes <= 0
        for inode in gone:
            if self._files[inode].fd < 0:
                self._park(inode)
        batches, self._left = batches + self._left, []
        self._settle(batches, now_s)
        return batches

    def _settle(self, batches: list[Batch], now_s: float) -> None:
        """What need not wait any longer; then the states of the files that held its text."""
        joining = [f for f in self._files.values() if f.adapter is not None and f.adapter.joins]
        for file in sorted(joining, key=lambda file: not file.waits):
            if file.adapter is not None and (file.fd >= 0 or file.archive):
                batch = self._batch(file, file.adapter.settle(not self.behind, now_s), None)
                if batch is not None:
                    batches.append(batch)

    def trouble(self) -> str:
        """Why no file was read at the last poll; "" where one was, or where nothing needs to be there."""
        return "" if self._files else self._locked or self._directory.nothing()

    def readings(self) -> list[Reading]:
        """All files as of the last poll, those that nobody reads yet included."""
        found = []
        for inode, entry in self._directory.seen.items():
            file = self._files.get(inode)
            if file is not None:
                lag = file.lag_bytes(entry.size)
                found.append(Reading(file.key, entry.path, entry.size, file.state.offset, lag, file.over))
            elif entry.wanted and inode not in self._strangers:
                found.append(Reading("", entry.path, entry.size, 0, entry.size, False))
        return found

    # ---- which files ----------------------------------------------------------------------------------------------

    def _look(self, batches: list[Batch]) -> list[int]:
        """Take up what is new; the inodes of our files that may have moved, those that are gone first, then by age.
        Forgetting a state is a batch."""
        directory, self._locked = self._directory, ""
        root = directory.open()
        try:
            whole = directory.due(root)
            if whole:
                directory.walk(root, self._stems())
            seen = directory.seen
            looked_at = list(seen) if whole else directory.hot
            for inode in looked_at:
                if inode in self._files and self._files[inode].replaced(seen[inode]):
                    self._park(inode)
            self._meet_all(root, [seen[inode] for inode in looked_at])
        finally:
            os.close(root)
        if whole and not self.behind:
            self._strangers = {inode: what for inode, what in self._strangers.items() if inode in seen}
            batches += self._forget()
        ours = self._files.keys() if whole else self._files.keys() & {*directory.hot, *self._moving}
        return [*sorted(i for i in ours if i not in seen), *sorted(ours & seen.keys(), key=lambda i: _age(seen[i]))]

    def _meet_all(self, root: int, entries: Iterable[Seen]) -> None:
        new = [e for e in entries if e.inode not in self._files and e.size]
        new = [e for e in new if self._strangers.get(e.inode) != (e.size, e.mtime)]
        room = 0
        for entry in sorted(new, key=_age):
            room = room or self._make_room()
            if room <= 0:
                self.behind = True
                self._directory.walk_next()
                return
            self._meet(root, entry)
            room -= 1

    def _make_room(self) -> int:
        """How many more files may be opened; half of those at rest are closed for it, the oldest first."""
        seen = self._directory.seen
        opened = [(inode, file) for inode, file in self._files.items() if file.fd >= 0]
        room = OPEN_FILES_MAX - len(opened)
        if room <= 0:
            resting = [(f.looked[1], i) for i, f in opened if i in seen and f.rests(seen[i]) and not f.waits]
            for _, inode in sorted(resting)[: (len(resting) + 1) // 2]:
                self._files[inode].sleep()
                room += 1
        return room

    def _stems(self) -> set[str]:
        states = [*self._stored.values(), *(file.state for file in self._files.values())]
        return {PurePath(path).stem for path in {self._directory.only, *(state.path for state in states)}}

    def _forget(self) -> list[Batch]:
        """Of too many states whose files are gone, those that changed longest ago."""
        seen = self._directory.seen
        gone = [k for k, state in self._stored.items() if state.inode not in seen or state.inode in self._files]
        gone.sort(key=lambda key: (self._stored[key].mtime_s, key))
        forgotten = gone[: max(0, len(gone) - GONE_STATES_MAX)]
        for key in forgotten:
            self._unprint(key, self._stored.pop(key))
            self._refused.discard(key)
            self._grown.pop(key, None)
        return [Batch(key, None, Parsed([], [])) for key in forgotten]

    def _meet(self, root: int, entry: Seen) -> None:
        """Take up a file that is not being read: a known one where it left off, a new one from its beginning."""
        try:
            fd = _open_beneath(root, entry.path)
        except OSError as e:  # gone again, or not ours to read; the next poll looks anew
            if isinstance(e, PermissionError):
                self._locked = f"{self._directory.root / entry.path} cannot be read: {e.strerror}"
            return
        s = os.fstat(fd)
        if not stat.S_ISREG(s.st_mode) or s.st_ino != entry.inode:
            os.close(fd)
            return
        archive = os.pread(fd, 4, 0).startswith((GZIP_MAGIC, ZSTD_MAGIC))
        file = _File(fd, archive, FileState("", 0, entry.inode, 0, entry.path))
        head = file.head(FINGERPRINT_BYTES_MAX)
        key = self._known(file, head, entry) if head else None
        if key is not None:
            self._unpark(key, file, entry)
        elif head and (entry.wanted or self._unseen(entry)) and not self._is_copy(file, head):
            print_ = fingerprint(head)
            file.state = FileState(print_, len(head), entry.inode, 0, entry.path)
            file.key = self._new_key(f"{print_}-{entry.inode:x}", file.state)
        else:
            self._strangers[entry.inode] = (entry.size, entry.mtime)
            file.close()
            return
        self._files[entry.inode] = file

    def _unseen(self, entry: Seen) -> bool:
        """Did it come and was it rotated between two looks? What was there before the first look is not ours."""
        names = {name for name in before_rotation(entry.path) if self._directory.wants(name)}
        if not names:
            return False
        states = [*self._stored.values(), *(file.state for file in self._files.values())]
        known = (
            state.mtime_s for state in states if state.mtime_s and names & {state.path, *before_rotation(state.path)}
        )
        return entry.mtime // 1_000_000_000 >= min(known, default=self._begun_s)

    def _known(self, file: _File, head: bytes, entry: Seen) -> str | None:
        """The key of the state that this file continues; one with its own inode comes first."""
        alike = sorted((self._stored[k].inode != entry.inode, k) for k in self._alike(head) if k in self._stored)
        for other, key in alike:
            state = self._stored[key]
            if (not other and state.done_size == entry.size) or file.continues(state):
                return key
        return None

    def _is_copy(self, file: _File, head: bytes) -> bool:
        """Is it being copied or compressed from a file of ours? One that is gone hands its state over."""
        alike = self._alike(head)
        return bool(alike) and any(
            ours.key in alike and ours.state.offset >= COPY_BYTES_MIN and file.continues(ours.state)
            for ours in self._files.values()
        )

    def _alike(self, head: bytes) -> set[str]:
        """Keys of the states that begin like this file."""
        found: set[str] = set()
        for length, keys in self._prints.items():
            if length <= len(head):
                found |= keys.get(fingerprint(head, length), set())
        return found

    def _unpark(self, key: str, file: _File, entry: Seen) -> None:
        state = self._stored.pop(key)
        file.key, file.until, file.stored = key, state.offset, True
        done = state.done_size == entry.size and state.inode == entry.inode and file.archive
        file.state = structs.replace(state, inode=entry.inode, path=entry.path, done_size=entry.size if done else 0)
        if done:
            file.end(entry)

    def _park(self, inode: int) -> None:
        """The inode is gone or holds another file now; ours may live on under another one."""
        file = self._files.pop(inode)
        if file.adapter is not None and (released := file.adapter.release()).events:
            self._left.append(Batch(file.key, file.state, released, file.adapter.format))
        self._stored[file.key] = file.state
        self._strangers.clear()  # one of them may continue it
        self._directory.walk_next()
        file.close()

    def _print_keys(self, state: FileState) -> set[str]:
        return self._prints.setdefault(state.fingerprint_length, {}).setdefault(state.fingerprint, set())

    def _unprint(self, key: str, state: FileState) -> None:
        keys = self._print_keys(state)
        keys.discard(key)
        if not keys:
            del self._prints[state.fingerprint_length][state.fingerprint]

    def _new_key(self, key: str, state: FileState) -> str:
        keys = self._print_keys(state)
        base, n = key, 1
        while key in keys:
            n += 1
            key = f"{base}-{n}"
        keys.add(key)
        return key

    # ---- reading --------------------------------------------------------------------------------------------------

    def _read(self, file: _File, entry: Seen | None, budget: int) -> tuple[Batch | None, int]:
        """What is new in one file, and how many bytes that took."""
        used = 0
        out = Parsed([], [])
        failed = ""
        try:
            if not self._begin(file, entry, out):
                return self._batch(file, out, None), 0
            while used < budget and (data := file.next(budget - used)):
                used += len(data)
                file.feed(data, out)
            ended = used < budget
        except ArchiveError as e:
            file.stream, ended = None, True
            # Cut short: it is still being written. Read on when it has grown.
            failed = "" if entry is not None and "cut short" in str(e) else str(e)
        except OSError as e:
            failed, ended = f"read failed: {e.strerror}", True
        else:
            if ended and file.archive:
                file.over = True
        file.quiet = 0 if used else file.quiet + 1
        lets_go = (entry is None or (file.adapter is not None and file.adapter.binary)) and not file.waits
        if ended and entry is not None:
            file.looked = (entry.size, entry.mtime)
        if failed:
            out.rejects.append(Reject(self._name(file), file.position, failed[:512]))
        if file.grown:
            file.grown, self._grown[file.key] = False, self._grown.get(file.key, 0) + 1
        enough = QUIET_POLLS << (min(self._grown.get(file.key, 0), QUIET_DOUBLINGS_MAX) if entry is not None else 0)
        if failed or file.over or (ended and lets_go and file.quiet >= enough):
            file.finish(out)
            batch = self._batch(file, out, entry)
            file.end(entry)
            return batch, used
        return self._batch(file, out, None), used

    def _begin(self, file: _File, entry: Seen | None, out: Parsed) -> bool:
        """Find the adapter; False where the file is too short yet to tell, or nothing reads it."""
        if file.adapter is not None:
            return True
        head = file.head(HEAD_BYTES)
        try:
            name = self._format if self._format not in ("", "auto") else detect(head, file.state.path)
        except SourceError as e:
            if len(head) >= HEAD_BYTES:
                if file.key not in self._refused:
                    out.rejects.append(Reject(self._name(file), 0, str(e)[:512], head[:1024]))
                self._refused.add(file.key)
                file.end(entry)
            return False
        spec = self._spec._replace(file=self._name(file), fingerprint=file.state.fingerprint)
        file.adapter = adapter_for(name)(spec)
        if file.until:
            file.adapter.prime(head)
            if not isinstance(file.adapter, LineAdapter) and not file.archive:
                file.position = file.until  # nothing to count there
        return True

    def _batch(self, file: _File, out: Parsed, ended: Seen | None) -> Batch | None:
        state = file.state
        offset = state.offset
        if file.adapter is not None and file.position >= file.until:
            offset = max(file.adapter.resume_offset, file.until)
        over = file.archive and (file.over or ended is not None)
        done_size = file.looked[0] if over and offset >= file.position else 0  # what still waits is read again
        changed = (offset, done_size) != (state.offset, state.done_size)
        if file.stored and not changed and not (out.events or out.rejects or out.actions):
            return None
        file.stored = True
        tail = state.tail
        if offset != state.offset:
            tail = "" if file.archive else _tail_print(file.before(offset))
        file.state = structs.replace(state, offset=offset, tail=tail, done_size=done_size)
        read_by = file.adapter.format if file.adapter is not None else ""
        if done_size:
            file.adapter = None  # nothing of it is awaited, and thousands of archives are looked at each time
        return Batch(file.key, file.state, out, read_by)

    def _name(self, file: _File) -> str:
        return str(self._directory.root / file.state.path)


def _age(entry: Seen) -> tuple[int, int, str]:
    """The oldest first; in one tick of the file system a rotated file, whose name is longer, before the new one."""
    return entry.mtime, -len(entry.path), entry.path


def _begins_so(head: bytes, state: FileState) -> bool:
    length = state.fingerprint_length
    return len(head) >= length and fingerprint(head, length) == state.fingerprint


def _tail_print(tail: bytes) -> str:
    return hashlib.sha256(tail).hexdigest()[:32]


def _open_beneath(root: int, path: str) -> int:
    """A descriptor of a file beneath the directory `root`; no part of the way may be a symbolic link."""
    *directories, name = path.split("/")
    fd = os.dup(root)
    try:
        for directory in directories:
            inner = os.open(directory, DIRECTORY_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = inner
        return os.open(name, FILE_FLAGS, dir_fd=fd)
    finally:
        os.close(fd)
