"""The directories of a data directory: what is durable once they are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import files
from engine.layout import Layout


def test_names_are_durable_after_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of new directories above it, too; and again at each start, as a process may have died before it synced."""
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    made = Layout(tmp_path / "a" / "b" / "data")
    made.make()
    assert synced == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]
    for _ in range(2):
        synced.clear()
        made.sync()
        assert synced == [made.data_dir, made.rows, made.indexes, made.models, made.catalog, tmp_path / "a" / "b"]


def test_a_parent_that_may_not_be_read_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(folder: Path) -> None:
        if folder == tmp_path:
            raise PermissionError(13, "denied")

    monkeypatch.setattr(files, "sync_directory", sync)
    made = Layout(tmp_path / "data")
    made.make()
    made.sync()
    assert made.rows.is_dir()
