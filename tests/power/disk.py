"""A disk that keeps only what was synced: every state that a power failure may leave it in.

Always true
  - The model is as pessimistic as POSIX lets a file system be (Pillai et al., "All File Systems Are Not Created Equal",
    OSDI 2014), but for two promises that every disk and journal keeps: a sector of 512 bytes is old or new, and one
    change of one folder (a name made, removed, moved) happens whole or not at all.
  - A move from one folder to another is two changes: the file may be left with both names, or none.
  - Bytes written since the file's last sync are kept sector by sector, in any subset. A size that grew or shrank since
    is any of those the file had. What lies below the size and was never kept is zeros or garbage.
  - Names made, moved or removed since the last sync of their folder are kept in any subset. A sync of a file says
    nothing of its name. A folder that is lost takes everything in it along.
  - O_DSYNC makes its own bytes durable, nothing else.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tests.power.trace import Create, Operation, Picture, Rename, Resize, Sync, SyncRange, Unlink, Write

SECTOR_BYTES = 512
GARBAGE = b"\xa5"


class Kept(NamedTuple):
    """What became of one pending write or resize: the sectors that were kept of a write, all where None."""

    whole: bool
    sectors: frozenset[int] | None = None


ALL, LOST = Kept(True), Kept(False)


class Choice(NamedTuple):
    """Of one file: what became of each pending operation, the size, and what unwritten bytes below it are."""

    kept: tuple[Kept, ...]
    size: int
    filler: bytes = b"\0"


class File:
    def __init__(self, content: bytes = b"") -> None:
        self.durable = content
        self.pending: list[Write | Resize] = []
        self.sizes = [len(content)]  # that it may have: the durable one, then after each pending operation
        self.whole = content  # as the page cache has it

    def apply(self, operation: Write | Resize) -> None:
        self.pending.append(operation)
        self.whole = _applied(self.whole, operation, ALL, b"\0")
        self.sizes.append(len(self.whole))

    def sync(self) -> None:
        self.durable, self.pending, self.sizes = self.whole, [], [len(self.whole)]

    def sync_range(self, offset: int, size: int) -> None:
        """What is pending of these bytes is durable; a pending write around them has them, too."""
        data = self.whole[offset : offset + size]
        self.durable = _applied(self.durable, Write("", offset, data), ALL, b"\0")
        for at, other in enumerate(self.pending):
            if isinstance(other, Write):
                lo, hi = max(offset, other.offset), min(offset + size, other.offset + len(other.data))
                if lo < hi:
                    patched = bytearray(other.data)
                    patched[lo - other.offset : hi - other.offset] = self.whole[lo:hi]
                    self.pending[at] = other._replace(data=bytes(patched))
        if self.pending and self.pending[-1] == Write(self.pending[-1].path, offset, data):
            self.pending.pop()
            self.sizes.pop()
        least = len(self.durable)
        self.sizes = [least, *(max(least, size) for size in self.sizes[1:])]

    def content(self, choice: Choice) -> bytes:
        found = self.durable
        for operation, kept in zip(self.pending, choice.kept, strict=True):
            found = _applied(found, operation, kept, choice.filler)
        return found[: choice.size].ljust(choice.size, choice.filler)

    def choices(self) -> Iterator[Choice]:
        """Every subset of the pending operations, each whole or lost, with every size."""
        for kept in itertools.product((ALL, LOST), repeat=len(self.pending)):
            for size in dict.fromkeys(reversed(self.sizes)):
                yield Choice(kept, size)

    def torn(self) -> Iterator[Choice]:
        """Each pending write torn at each sector, its first or its last part kept; the others all kept, or all lost."""
        for number, operation in enumerate(self.pending):
            if isinstance(operation, Write):
                sectors = _sectors(operation)
                for cut in sectors[1:]:
                    for part in (frozenset(range(sectors[0], cut)), frozenset(range(cut, sectors[-1] + 1))):
                        for others in (ALL, LOST):
                            kept = [others] * len(self.pending)
                            kept[number] = Kept(True, part)
                            yield Choice(tuple(kept), self.sizes[-1])

    def draw(self, rng: random.Random) -> Choice:
        share = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        tear = rng.choice((0.0, 0.3, 1.0))
        kept = []
        for operation in self.pending:
            if isinstance(operation, Write) and rng.random() < tear:
                kept.append(Kept(True, frozenset(n for n in _sectors(operation) if rng.random() < share)))
            else:
                kept.append(ALL if rng.random() < share else LOST)
        size = rng.choice(self.sizes) if rng.random() < 0.5 else self.sizes[-1]
        return Choice(tuple(kept), size, rng.choice((b"\0", GARBAGE)))


def _sectors(write: Write) -> range:
    """That it touches."""
    return range(write.offset // SECTOR_BYTES, -(-(write.offset + len(write.data)) // SECTOR_BYTES))


def _applied(content: bytes, operation: Write | Resize, kept: Kept, filler: bytes) -> bytes:
    if not kept.whole:
        return content
    if isinstance(operation, Resize):
        if operation.keep and operation.size <= len(content):
            return content
        return content[: operation.size].ljust(operation.size, b"\0")
    at, data = operation.offset, operation.data
    if kept.sectors is None:
        return content[:at].ljust(at, filler) + data + content[at + len(data) :]
    for sector in sorted(kept.sectors):
        lo, hi = max(at, sector * SECTOR_BYTES), min(at + len(data), (sector + 1) * SECTOR_BYTES)
        content = content[:lo].ljust(lo, filler) + data[lo - at : hi - at] + content[hi:]
    return content


class Change(NamedTuple):
    """Of the names of a folder. gone: a name that is no more; name: one that means `node` from now on."""

    gone: str = ""
    name: str = ""
    node: File | Folder | None = None


class Folder:
    def __init__(self) -> None:
        self.durable: dict[str, File | Folder] = {}
        self.pending: list[Change] = []
        self.whole: dict[str, File | Folder] = {}

    def change(self, change: Change) -> None:
        self.pending.append(change)
        self.whole = _changed(self.whole, change)

    def sync(self) -> None:
        self.durable, self.pending = self.whole, []

    def names(self, kept: Sequence[bool]) -> dict[str, File | Folder]:
        found = self.durable
        for change, is_kept in zip(self.pending, kept, strict=True):
            if is_kept:
                found = _changed(found, change)
        return found

    def draw(self, rng: random.Random) -> list[bool]:
        share = rng.choice((0.0, 0.5, 0.9, 1.0))
        return [rng.random() < share for _ in self.pending]


def _changed(names: dict[str, File | Folder], change: Change) -> dict[str, File | Folder]:
    found = {name: node for name, node in names.items() if name != change.gone}
    if change.node is not None:
        found[change.name] = change.node
    return found


class Disk:
    """Fed with operations, one after the other; between any two of them the power may fail."""

    def __init__(self, left: Picture | None = None) -> None:
        """left: what is there, durable, parents before what is in them."""
        self.root = Folder()
        for path, content in (left or {}).items():
            folder, name = self._place(path)
            folder.durable[name] = Folder() if content is None else File(content)
            folder.whole = folder.durable

    def at(self, path: str) -> File | Folder:
        node: File | Folder = self.root
        for name in path.split("/") if path else ():
            assert isinstance(node, Folder)
            node = node.whole[name]
        return node

    def _place(self, path: str) -> tuple[Folder, str]:
        folder, _, name = path.rpartition("/")
        found = self.at(folder)
        assert isinstance(found, Folder)
        return found, name

    def apply(self, operation: Operation) -> None:
        match operation:
            case Create():
                folder, name = self._place(operation.path)
                folder.change(Change(name=name, node=Folder() if operation.folder else File()))
            case Write() | Resize():
                file = self.at(operation.path)
                assert isinstance(file, File)
                file.apply(operation)
            case Sync():
                self.at(operation.path).sync()
            case SyncRange():
                file = self.at(operation.path)
                assert isinstance(file, File)
                file.sync_range(operation.offset, operation.size)
            case Rename():
                (folder, name), (to, new) = self._place(operation.path), self._place(operation.to)
                node = folder.whole[name]
                if folder is to:
                    folder.change(Change(name, new, node))
                else:
                    to.change(Change(name=new, node=node))
                    folder.change(Change(gone=name))
            case Unlink():
                folder, name = self._place(operation.path)
                folder.change(Change(gone=name))

    def whole(self) -> Picture:
        """What processes see: the page cache."""
        return _picture(self.root, lambda folder: folder.whole, lambda file: file.whole)

    def draw(self, rng: random.Random) -> Picture:
        """One state that a power failure now may leave."""
        return _picture(
            self.root, lambda folder: folder.names(folder.draw(rng)), lambda file: file.content(file.draw(rng))
        )  # fmt: skip

    def states(self) -> Iterator[Picture]:
        """All of them in which each pending operation is kept or lost whole; then those with one write torn."""
        nodes = self.pending().values()
        folders, files = [n for n in nodes if isinstance(n, Folder)], [n for n in nodes if isinstance(n, File)]
        for subsets in itertools.product(*(itertools.product((True, False), repeat=len(f.pending)) for f in folders)):
            names = dict(zip(map(id, folders), subsets, strict=True))
            for choices in itertools.product(*([*f.choices()] for f in files)):
                yield self._chosen(names, dict(zip(map(id, files), choices, strict=True)))
        for file in files:
            for choice in file.torn():
                yield self._chosen({}, {id(file): choice})

    def _chosen(self, names: dict[int, tuple[bool, ...]], contents: dict[int, Choice]) -> Picture:
        """What is not named is kept."""
        return _picture(
            self.root,
            lambda folder: folder.names(names[id(folder)]) if id(folder) in names else folder.whole,
            lambda file: file.content(contents[id(file)]) if id(file) in contents else file.whole,
        )

    def pending(self) -> dict[str, File | Folder]:
        """What is not all synced, of what may be reached by durable names and new ones, by one path that it has."""
        seen: dict[int, tuple[str, File | Folder]] = {}
        waiting: list[tuple[str, File | Folder]] = [("", self.root)]
        while waiting:
            path, node = waiting.pop()
            if id(node) not in seen:
                seen[id(node)] = path, node
                if isinstance(node, Folder):
                    names = [*node.durable.items(), *((c.name, c.node) for c in node.pending if c.node is not None)]
                    waiting += [(f"{path}/{name}".lstrip("/"), below) for name, below in names]
        return {path: node for path, node in seen.values() if node.pending}


def _picture(
    root: Folder, names: Callable[[Folder], dict[str, File | Folder]], content: Callable[[File], bytes]
) -> Picture:
    found: Picture = {}
    contents: dict[int, bytes] = {}  # a file with two names has one content

    def walk(folder: Folder, path: str) -> None:
        for name, node in names(folder).items():
            if isinstance(node, Folder):
                found[path + name] = None
                walk(node, f"{path}{name}/")
            else:
                if id(node) not in contents:
                    contents[id(node)] = content(node)
                found[path + name] = contents[id(node)]

    walk(root, "")
    return found


def fingerprint(picture: Picture) -> int:
    """The same for the same paths and contents, within one process."""
    return hash(frozenset(picture.items()))  # bytes remember their hash, and what was synced long ago is one object
