"""Which row files are due to be indexed, and which indexes to be made one. Pure functions of a manifest.

Always true
  - An index covers as many row files as FILES says, or one; the first one's number is a multiple of how many they are.
    So a million rows are searched in at most six indexes, three on average, and each row is indexed at most seven
    times.
  - A range is merged only when all of it is indexed in every space: what is searched exactly comes first.
"""

from __future__ import annotations

from engine.embed.base import SPACES
from engine.manifest import Manifest

FILES = (64, 32, 16, 8, 4, 2)  # of a merged index; twice its vectors is what a build takes of memory


def unindexed(manifest: Manifest) -> list[int]:
    """Numbers of full row files that have not an index in every space."""
    full = manifest.count // manifest.row_file_rows
    if sum(i.hi - i.lo for i in manifest.indexes) == len(SPACES) * full * manifest.row_file_rows:
        return []
    covered = [_covered(manifest, space) for space in SPACES]
    return [n for n in range(full) if any(n not in of for of in covered)]


def mergeable(manifest: Manifest) -> range | None:
    """Numbers of row files over which one index in each space shall take the place of several; None where no."""
    covered = [_covered(manifest, space) for space in SPACES]
    for files in FILES:
        for first in range(0, manifest.count // manifest.row_file_rows - files + 1, files):
            numbers = range(first, first + files)
            if all(n in of for of in covered for n in numbers) and any(
                of[n] != of[first] for of in covered for n in numbers
            ):
                return numbers
    return None


def _covered(manifest: Manifest, space: str) -> dict[int, str]:
    """By number of the row file the name of the index over it."""
    rows = manifest.row_file_rows
    return {n: i.file for i in manifest.indexes if i.space == space for n in range(i.lo // rows, i.hi // rows)}
