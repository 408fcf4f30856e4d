"""Which rows are due to be indexed, and which indexes to be made one. Pure functions of a manifest.

Always true
  - An index covers as many row files as FILES says, or one; the first one's number is a multiple of how many they are.
    So a million rows are searched in at most six indexes, three on average, and each row is indexed at most eight
    times.
  - The row file that is being filled has an index over each EARLY_ROWS of it but the last, until it has one as a whole:
    they cover no row file, so nothing else here counts them.
  - A range is merged only when all of it is indexed in every space: what is searched exactly comes first.
  - An index that reaches below the first row file that is left, or was built before a purge, is searched without what
    is gone (engine/search/snapshot.py), until indexes over the rest of it take its place, all at once.
"""

from __future__ import annotations

from engine.embed.base import SPACES
from engine.store.manifest import Manifest

EARLY_ROWS = 4_096
FILES = (64, 32, 16, 8, 4, 2)  # of a merged index; twice its vectors is what a build takes of memory


def unindexed(manifest: Manifest) -> list[int]:
    """Numbers of full row files that have not an index in every space."""
    full = range(manifest.first, manifest.count // manifest.row_file_rows)
    begin = manifest.first_seq
    indexed = sum(i.hi - max(i.lo, begin) for i in manifest.indexes if i.hi <= full.stop * manifest.row_file_rows)
    if indexed == len(SPACES) * len(full) * manifest.row_file_rows:
        return []
    covered = [_covered(manifest, space) for space in SPACES]
    return [n for n in full if any(n not in of for of in covered)]


def early(manifest: Manifest) -> tuple[int, int] | None:
    """Seqs [lo, hi) of the row file that is being filled, due for an index of their own; None where none are."""
    rows = manifest.row_file_rows
    begin = manifest.count // rows * rows
    for lo in range(begin, min(manifest.count, begin + rows - EARLY_ROWS) - EARLY_ROWS + 1, EARLY_ROWS):
        if sum(i.lo <= lo < i.hi for i in manifest.indexes) < len(SPACES):
            return lo, lo + EARLY_ROWS
    return None


def mergeable(manifest: Manifest, files_max: int = FILES[0]) -> range | None:
    """Numbers of row files, files_max at most, over which one index in each space shall take the place of several; None
    where no."""
    covered = [_covered(manifest, space) for space in SPACES]
    for files in (files for files in FILES if files <= files_max):
        begin = -(-manifest.first // files) * files
        for first in range(begin, manifest.count // manifest.row_file_rows - files + 1, files):
            numbers = range(first, first + files)
            if all(n in of for of in covered for n in numbers) and any(
                of[n] != of[first] for of in covered for n in numbers
            ):
                return numbers
    return None


def split(manifest: Manifest) -> list[range]:
    """Numbers of row files, over each range of which one index in each space shall take the place of one that reaches
    below what is left, or holds what was purged."""
    rows, begin = manifest.row_file_rows, manifest.first_seq
    old = [i for i in manifest.indexes if i.lo < begin or i.file in manifest.stale]
    if not old:
        return []
    lo, minus_hi = min((max(i.lo, begin), -i.hi) for i in old)
    first, end = lo // rows, -minus_hi // rows
    out: list[range] = []
    while first < end:
        files = next(n for n in (*FILES, 1) if first % n == 0 and first + n <= end)
        out.append(range(first, first + files))
        first += files
    return out


def _covered(manifest: Manifest, space: str) -> dict[int, str]:
    """By number of the row file the name of the index over it."""
    rows = manifest.row_file_rows
    return {n: i.file for i in manifest.indexes if i.space == space for n in range(i.lo // rows, i.hi // rows)}
