"""The only file that spells a path inside a data directory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple


class Layout(NamedTuple):
    """Paths of one data directory. Directories are 0700, files 0600, index files 0400 once in place."""

    data_dir: Path

    @property
    def catalog(self) -> Path:
        return self.data_dir / "catalog"

    @property
    def generation(self) -> Path:
        return self.data_dir / "generation"

    @property
    def rows(self) -> Path:
        return self.data_dir / "rows"

    def row_file(self, epoch: int, number: int, revision: int = 0) -> Path:
        """Row file `number` (its first seq divided by the rows a file has) of model epoch `epoch`; `revision` counts
        how often it was built again from the records."""
        return self.rows / (f"{epoch:04d}-{number:08d}" + (f".{revision}" if revision else ""))

    @property
    def indexes(self) -> Path:
        return self.data_dir / "indexes"

    def index_file(self, name: str) -> Path:
        return self.indexes / name

    @property
    def models(self) -> Path:
        return self.data_dir / "models"

    def model(self, version: str) -> Path:
        return self.models / version

    @property
    def quarantine(self) -> Path:
        return self.data_dir / "quarantine"

    @property
    def dead_letters(self) -> Path:
        return self.data_dir / "dead_letters.ndjson"

    def letters_of(self, catalog: int) -> Path:
        """The dead letters of a catalog that a migration is about to put in place (engine/maintain/migrate.py)."""
        return self.data_dir / f"migrated_letters.{catalog}"

    def letters_beside(self) -> list[Path]:
        """All such. Their name is none that a rotation of dead_letters.ndjson makes."""
        return sorted(p for p in self.data_dir.glob("migrated_letters.*") if p.suffix[1:].isdecimal())

    @property
    def migrating(self) -> Path:
        """The copy that a migration makes, while it does."""
        return self.data_dir / "migrating"

    @property
    def run(self) -> Path:
        return self.data_dir / "run"

    @property
    def query_socket(self) -> Path:
        return self.run / "query.sock"

    @property
    def write_socket(self) -> Path:
        return self.run / "write.sock"

    @property
    def writer_lock(self) -> Path:
        return self.run / "writer.lock"

    @property
    def supervisor_pid(self) -> Path:
        return self.run / "supervisor.pid"

    def heartbeat(self, role: str) -> Path:
        """One mapped page a worker stamps (engine/run/heartbeat.py)."""
        return self.run / f"{role}.heartbeat"

    @property
    def audit(self) -> Path:
        """Who did what (engine/run/audit.py)."""
        return self.run / "audit.ndjson"

    @property
    def sources(self) -> Path:
        """What the ingest worker follows and listens on, as it last said (engine/run/lag.py)."""
        return self.run / "sources.json"

    @property
    def quality(self) -> Path:
        """What was last measured (engine/maintain/gauges.py)."""
        return self.run / "quality.json"

    @property
    def scrub(self) -> Path:
        """What the last scrub found, and what came of it (engine/maintain/scrubbing.py)."""
        return self.run / "scrub.json"

    @property
    def stages(self) -> Path:
        """Where the ingest worker's time goes (engine/store/stages.py)."""
        return self.run / "stages"

    def listen_counts(self, source: str) -> Path:
        """One mapped page a listening source (engine/run/drain.py); any name fits."""
        import hashlib  # clients, who know paths too, have no use for it

        return self.run / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.listen"

    @property
    def config(self) -> Path:
        return self.data_dir / "flowkin.toml"

    def _kept(self) -> tuple[Path, ...]:
        """The directories whose content outlives a start."""
        return (self.data_dir, self.rows, self.indexes, self.models, self.catalog)

    def make(self) -> None:
        """Create the directories, private to their owner. They are durable after `sync`. Raises OSError."""
        new = [path for path in (self.data_dir, *self.data_dir.parents) if not path.exists()]
        for path in (*self._kept(), self.run):
            path.mkdir(mode=0o700, parents=path == self.data_dir, exist_ok=True)
        for path in new:
            _sync_parent(path)

    def sync(self) -> None:
        """Make every name durable: a process that died between a rename and the sync of its directory left that to this
        start, which builds on it. Raises OSError."""
        from engine.files import sync_directory  # clients, who know paths too, have no use for it

        for path in self._kept():
            sync_directory(path)
        _sync_parent(self.data_dir)


def _sync_parent(path: Path) -> None:
    from engine.files import sync_directory

    with contextlib.suppress(PermissionError):  # what may not be read cannot be synced
        sync_directory(path.parent)
