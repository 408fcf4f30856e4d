"""Make the data directory that is kept of this format: python -m tests.format.make TARGET.tar.zst

One is kept, as tests/format/vN.tar.zst, of every format that was released; test_format.py opens all of them.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from pathlib import Path

import zstandard

from tests.events import several
from tests.store_fixture import Store

EVENTS = 100
LABELLED = "e000007"


def make(target: Path, key_file: Path | None = None) -> None:
    """EVENTS events, one row file full and indexed, one event labelled, closed in order."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        with Store(data_dir, key_file) as store:
            store.publish(several(EVENTS))
            store.index()
            store.publisher.annotate(LABELLED, "true_positive", "ana")
            store.publisher.checkpoint()
        for path in [*(data_dir / "run").iterdir(), *data_dir.glob("catalog/*-lock")]:
            path.unlink()
        blob = io.BytesIO()
        with tarfile.open(fileobj=blob, mode="w") as tar:
            tar.add(data_dir, "data")
    target.write_bytes(zstandard.ZstdCompressor(level=19).compress(blob.getvalue()))


def unpack(source: Path, folder: Path) -> Path:
    """The data directory of an archive, in `folder`."""
    blob = zstandard.ZstdDecompressor().decompress(source.read_bytes(), max_output_size=1 << 26)
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        tar.extractall(folder, filter="data")
    data_dir = folder / "data"
    for path in (data_dir, *data_dir.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return data_dir


if __name__ == "__main__":
    make(Path(sys.argv[1]))
