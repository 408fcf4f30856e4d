"""One damage, drawn from a seed, and what lies there, from the bytes alone.

Always true
  - A damage is told harmless only by what the format says of the place: nobody reads it, or a start writes it anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lmdb import verify as lmdb_verify

from engine.layout import Layout
from engine.store.catalog import Catalog
from engine.store.manifest import Manifest
from engine.store.rows import HEADER_BYTES, REGION_BYTES, SUMS_BYTES, _offsets
from tests.scrub.store import MAP_BYTES
from tests.store_fixture import ROWS

PAGE = 4_096
HEAD = 16  # of an LMDB page
LEAF = 2  # its flag
# Drawn by kind, so that the small files that matter get as much as the large ones.
WEIGHTS = {"catalog": 40, "rows": 18, "index": 18, "model": 10, "letters": 6, "small": 8}
HARMLESS = (
    "a page of the catalog that holds nothing", "the unused part of a page", "the unused end of an overflow page",
    "the head of the transaction before", "an unused word of a head", "the unused end of a head",
    "a row that is not stored yet", "written anew at a start", "figures of a run", "a spare word of a page's head",
    "a flag of a node that means nothing", "rotated",
)  # fmt: skip


class Damage(NamedTuple):
    """A flip of `bit` of the byte at `at`, or, where bit is -1, a cut to `at` bytes. file: beneath the directory."""

    file: str
    at: int
    bit: int

    def do(self, data_dir: Path) -> None:
        """On a copy of the file: others may be linked to the same bytes."""
        path = data_dir / self.file
        mode, data = path.stat().st_mode, bytearray(path.read_bytes())
        if self.bit < 0:
            del data[self.at :]
        else:
            data[self.at] ^= 1 << self.bit
        path.unlink()
        path.write_bytes(data)
        path.chmod(mode)

    @property
    def kind(self) -> str:
        return kind_of(self.file)


def kind_of(file: str) -> str:
    top, _, name = file.partition("/")
    if top == "catalog":
        return "catalog" if name == "catalog.0" else "small"
    return {"rows": "rows", "indexes": "index", "models": "model", "dead_letters.ndjson": "letters"}.get(top, "small")


def draw(data_dir: Path, seed: int, bits: int, truncations: int) -> Iterator[Damage]:
    """The same directory and seed give the same damages."""
    sizes = {str(p.relative_to(data_dir)): p.stat().st_size for p in sorted(data_dir.rglob("*")) if p.is_file()}
    files: dict[str, list[str]] = {}
    for file in sizes:
        files.setdefault(kind_of(file), []).append(file)
    rng = random.Random(seed)
    for n in range(bits + truncations):
        (kind,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        file = rng.choice(files[kind])
        yield Damage(file, rng.randrange(sizes[file]), rng.randrange(8) if n < bits else -1)


class Places:
    """What lies where in a whole directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir, self.layout = data_dir, Layout(data_dir)
        catalog = Catalog(self.layout.catalog, write=False, map_size=MAP_BYTES)
        with catalog.read() as view:
            manifest = view.manifest()
        catalog.close()
        assert manifest is not None
        self.manifest: Manifest = manifest
        self.blob = (self.layout.catalog / "catalog.0").read_bytes()
        self.pages = _Pages(self.layout.catalog / "catalog.0")

    def of(self, damage: Damage) -> str:
        """What is damaged: one of HARMLESS, or what has a checksum."""
        name = damage.file.rpartition("/")[2]
        match damage.kind:
            case "rows":
                return self._row(damage)
            case "catalog":
                return self._cut(damage.at) if damage.bit < 0 else self._page(damage.at, damage.bit)
            case "small" if name in ("catalog.0-lock", "generation"):
                return "written anew at a start"
            case "small" if damage.file.startswith("run/"):
                return "figures of a run"
            case "letters" if (damage.bit, damage.at) == (-1, 0):
                return "rotated"
        return damage.kind if name != "CURRENT" else "CURRENT"

    def _row(self, damage: Damage) -> str:
        number = int(damage.file.rpartition("-")[2].partition(".")[0])
        stored = self.manifest.count - number * ROWS
        if damage.bit < 0 or damage.at < HEADER_BYTES or stored >= ROWS:
            return "rows"
        offsets = list(_offsets(ROWS).items())
        region, start = next((r, at) for r, at in reversed(offsets) if damage.at >= at)
        row = (damage.at - start) // (REGION_BYTES | {"sums": SUMS_BYTES})[region]
        return "a row that is not stored yet" if row >= stored else "rows"

    def _cut(self, at: int) -> str:
        """Of the catalog's file: pages beyond hold something?"""
        return "catalog" if any(self.pages.live[-(-(at - PAGE + 1) // PAGE) :]) else HARMLESS[0]

    def _page(self, at: int, bit: int) -> str:
        number, offset = divmod(at, PAGE)
        if number < 2:
            return self._head(number, offset, bit)
        if not self.pages.live[number]:
            return HARMLESS[0]
        first = self.pages.overflow.get(number)
        if first is not None:
            start, size = first
            within = at - start * PAGE
            return "an overflow page" if within < HEAD + size else HARMLESS[2]
        if offset in (8, 9):  # 0.9 looks at it for pages of fixed keys only
            return HARMLESS[9]
        page = self.blob[number * PAGE : (number + 1) * PAGE]
        if self.pages.spare_flag(page, offset, bit):
            return HARMLESS[10]
        return "a page" if self.pages.used(page, offset) else HARMLESS[1]

    def _head(self, number: int, offset: int, bit: int) -> str:
        """magic, version, address, size of the map, two trees of 48 bytes, last page, transaction."""
        within = offset - HEAD
        if number != self.pages.current:
            return HARMLESS[3]
        # of a fixed map, of one whose size nobody gave; of the page only that it is a head counts
        if 8 <= within < 24 or (8 <= offset < 16 and (offset, bit) != (10, 3)):
            return HARMLESS[4]
        if within >= 136:
            return HARMLESS[5]
        return "a head"


class _Pages:
    """The pages of a catalog's file, as `python -m lmdb verify` walks them."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            walk: Any = lmdb_verify._Verifier(file, path.stat().st_size)
            extents: dict[int, tuple[int, int]] = {}
            bigdata: Callable[..., Any] = walk._bigdata

            def seen(ctx: Any, pgno: int, i: int, buf: bytes, doff: int, dsize: int, want_bytes: bool) -> Any:
                first = int.from_bytes(buf[doff : doff + 8], "little")
                for page in range(first, first + (HEAD - 1 + dsize) // PAGE + 1):
                    extents[page] = (first, dsize)
                return bigdata(ctx, pgno, i, buf, doff, dsize, want_bytes)

            walk._bigdata = seen
            assert walk.verify() == []
            self.live, self.overflow = bytes(walk.live), extents
            self.current = int(walk.meta.pgno)

    def used(self, page: bytes, offset: int) -> bool:
        """Is that byte of a branch or leaf page part of its head, of a place or of a node?"""
        lower, upper = (int.from_bytes(page[at : at + 2], "little") for at in (12, 14))
        if offset < lower:
            return True
        if offset < upper:
            return False
        for at in self._nodes(page):
            low, high, flags, key = (int.from_bytes(page[at + n : at + n + 2], "little") for n in (0, 2, 4, 6))
            size = 8 + key + ((8 if flags & 1 else low | high << 16) if page[10] & LEAF else 0)
            if at <= offset < at + size:
                return True
        return False  # the byte that makes a node's length even

    def spare_flag(self, page: bytes, offset: int, bit: int) -> bool:
        """Of a leaf's node all but three: its value lies in pages of its own, is a table, has duplicates."""
        low, high = (any(offset == at + n for at in self._nodes(page)) for n in (4, 5))
        return bool(page[10] & LEAF) and ((low and bit > 2) or high)

    def _nodes(self, page: bytes) -> list[int]:
        lower = int.from_bytes(page[12:14], "little")
        return [int.from_bytes(page[at : at + 2], "little") for at in range(HEAD, lower, 2)]
