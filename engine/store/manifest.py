"""What one generation consists of. Stored in the catalog: the commit that writes it is the publish.

Always true
  - Generation numbers only grow; one that a reader could have seen is never given to other content.
  - Rows [first_seq, count) of the row files are committed; bytes past them are garbage, overwritten after a crash. What
    lay before was removed (engine/maintain/retention.py); its seqs are never given again.
  - A file named here never changes again, but for rows past `count` in the last row file; gc.py deletes what no kept
    manifest names.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from engine.errors import CorruptionError, FormatError
from engine.limits import FEATURES_VERSION, FORMAT_BORN, FORMAT_VERSION


class IndexFile(Struct, frozen=True, array_like=True):
    """A FAISS index over rows [lo, hi) of one space. file: name in indexes/; checksum: xxh3_128 of the whole file."""

    space: str
    lo: int
    hi: int
    file: str
    size: int
    checksum: bytes
    kind: str
    nprobe: int

    def covers(self, other: IndexFile) -> bool:
        """All that the other does?"""
        return self.space == other.space and self.lo <= other.lo and other.hi <= self.hi

    def overlaps(self, other: IndexFile) -> bool:
        return self.space == other.space and self.lo < other.hi and other.lo < self.hi


class SealedRows(Struct, frozen=True, array_like=True):
    """A full row file, checksummed once: xxh3_128 of the whole file."""

    number: int
    checksum: bytes


class Embedded(Struct, frozen=True, array_like=True):
    """Row files and indexes of a model version that is not in use: its rows [first_seq, count). The rest as in
    Manifest."""

    model: str
    epoch: int
    count: int = 0
    revisions: dict[int, int] = {}
    sealed: list[SealedRows] = []
    indexes: list[IndexFile] = []

    def row_file(self, number: int) -> tuple[int, int, int]:
        return self.epoch, number, self.revisions.get(number, 0)


class Switch(Struct, frozen=True, array_like=True):
    """A switch of models under way (engine/store/switch.py). Of the version `to` rows [first_seq, to.count) are there,
    and those from `since` on, which were published since it began. first: to.count when it began; seconds: spent on it
    since. was_kept: `to` was the version before, whose rows are caught up."""

    to: Embedded
    since: int
    first: int
    begun_at: int  # ns
    seconds: float = 0.0
    was_kept: bool = False

    @property
    def done(self) -> bool:
        return self.to.count >= self.since


class Manifest(Struct, frozen=True, kw_only=True):
    """One generation. epoch: names the row files of the model version in use; a switch of models makes a new one."""

    format_version: int = FORMAT_BORN
    features_version: int = FEATURES_VERSION
    generation: int = 0
    count: int = 0  # the next seq
    first: int = 0  # number of the first row file that is left
    row_file_rows: Annotated[int, Meta(ge=1)]
    model: str
    epoch: int = 0
    epochs_used: int = 1  # the next switch takes this number
    names_count: int = 0  # entries of the dictionary of families and sources
    revisions: dict[int, int] = {}  # of row files that were built again from the records; 0 where not named
    filled: dict[int, int] = {}  # row file -> ns, when it was full; not of those that an older flowkin filled
    sealed: list[SealedRows] = []
    indexes: list[IndexFile] = []
    purged: dict[int, int] = {}  # row file -> how many of its rows a purge emptied (engine/maintain/purge.py)
    purges: int = 0  # with each of them the context forgot something
    stale: list[str] = []  # of `indexes`, those that were built before a purge of their rows
    kept: Embedded | None = None  # the version before, for a rollback
    switch: Switch | None = None
    key_id: str = ""  # of the key that records are sealed with (engine/store/cipher.py); "": they are not

    @property
    def row_files(self) -> int:
        """How many row files have ever held committed rows: the number after that of the last one."""
        return -(-self.count // self.row_file_rows)

    @property
    def numbers(self) -> range:
        """Of the row files that hold committed rows."""
        return range(self.first, self.row_files)

    @property
    def first_seq(self) -> int:
        return self.first * self.row_file_rows

    @property
    def events(self) -> int:
        """How many are stored."""
        return self.count - self.first_seq - sum(self.purged.values())

    def row_file(self, number: int) -> tuple[int, int, int]:
        """(epoch, number, revision): what names the file in layout.row_file."""
        return self.epoch, number, self.revisions.get(number, 0)

    def given_up(self) -> dict[str, Any]:
        """What changes where the switch under way is given up: rows that were kept before it stay kept."""
        assert self.switch is not None
        return {"switch": None, "kept": self.switch.to if self.switch.was_kept else self.kept}


class _Version(Struct):
    format_version: int


class _Key(Struct):
    key_id: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Manifest).decode
_decode_version = msgspec.msgpack.Decoder(_Version).decode
_decode_key = msgspec.msgpack.Decoder(_Key).decode


def encode(manifest: Manifest) -> bytes:
    return _encode(manifest)


def decode(blob: bytes | memoryview) -> Manifest:
    """Raises FormatError for a data directory that a newer flowkin wrote, CorruptionError for what is no manifest."""
    try:
        manifest = _decode(blob)
    except (ValueError, RecursionError) as e:
        raise _refused(blob, e) from None
    if manifest.format_version > FORMAT_VERSION or manifest.features_version > FEATURES_VERSION:
        raise FormatError(
            f"the data directory has format {manifest.format_version} and features {manifest.features_version}, this "
            f"flowkin reads up to {FORMAT_VERSION} and {FEATURES_VERSION}; nothing was changed; use the newer flowkin"
        )
    return manifest


def key_id(blob: bytes | memoryview) -> str | None:
    """Manifest.key_id of a manifest of whatever format; None for what is no manifest."""
    try:
        return _decode_key(blob).key_id
    except (ValueError, RecursionError):
        return None


def _refused(blob: bytes | memoryview, error: Exception) -> FormatError | CorruptionError:
    try:
        version = _decode_version(blob).format_version
    except (ValueError, RecursionError):
        return CorruptionError("the manifest", f"cannot be decoded: {error}")
    return FormatError(
        f"the data directory has format {version}, this flowkin reads {FORMAT_VERSION}; "
        "nothing was changed; use the version of flowkin that wrote it"
    )
