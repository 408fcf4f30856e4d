"""Where the real data of tests is. It is never copied into the project; a test that needs it skips without it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(path: str) -> Path:
    """The file or directory beneath ../shared/data; skips the test where it is missing."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs {found}, which is not part of the project")
    return found


def content(path: str) -> bytes:
    """The decompressed bytes of a shared file."""
    file = shared(path)
    data = file.read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
