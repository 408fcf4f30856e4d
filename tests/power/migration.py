"""A migration that is recorded, and the oracle of what a power failure leaves of it.

Always true
  - A stopped engine's directory is encrypted, by a command that is killed in its middle and asked for again, and then
    decrypted. Each command is the real one, but for smaller commits, so that a copy may end within a table.
  - Each state is looked at twice: a start opens it with the key that fits what it says itself, and, laid out once more,
    the migration is asked for again and goes on with the copy that it finds.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from engine.errors import EngineError, NotReadyError
from engine.layout import Layout
from engine.maintain import migrate
from engine.store.catalog import CURRENT, Catalog, named
from tests.engine_fixture import environment
from tests.power.disk import GARBAGE, Disk, Picture
from tests.power.oracle import Oracle, Promise, promises
from tests.power.trace import Migrated, Operation, Rename, parse, strace
from tests.power.workload import Recording, lay_out
from tests.store_fixture import configured

COMMIT_VALUES = 25  # of some 70 in a table
KILLED = "migrate.step:2"
FEWER = f"from engine.maintain import migrate; migrate.STEP_VALUES = {COMMIT_VALUES}"
COMMAND = f"{FEWER}; from cli.main import main; main()"


def is_encrypted(migrations: int) -> bool:
    """After so many of them."""
    return migrations % 2 == 1


def key_file(folder: Path) -> Path:
    path = folder / "key"
    if not path.exists():
        path.touch(0o600)
        path.write_text("6b" * 32)
    return path


def record(root: Path, of: Recording) -> Recording:
    """The migrations, in `root`, of what the engine of that recording left."""
    disk = Disk(of.left)
    for operation in of.operations:
        disk.apply(operation)
    left = disk.whole()
    *_, (_, promise) = promises(of)
    root.mkdir()
    lay_out(left, root)
    (root / "data" / "run").mkdir(mode=0o700)
    key = key_file(root)
    operations: list[Operation] = []
    disk = Disk(left)
    for number, (args, killed) in enumerate((
        (["--set", f"store.key_file={key}"], KILLED), (["--set", f"store.key_file={key}"], ""),
        (["--to", "plain", "--from-key-file", str(key)], ""),
    )):  # fmt: skip
        output = root / f"strace-{number}"
        done = subprocess.run(  # ends with the tracer, who has its stderr, too
            [*strace(output), sys.executable, "-P", "-c", COMMAND, "migrate", "--data-dir", str(root / "data"), *args],
            env=environment({"ENGINE_FAILPOINT": killed}), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr
        new = parse(output, root / "data", disk.whole()) + ([] if killed else [Migrated()])
        for operation in new:
            disk.apply(operation)
        operations += new
    return Recording(root / "data", operations, left, promise.generations, of.steps)


def commit_window(recording: Recording) -> range:
    """Places of the operations around the first commit point: from where the copy begins to leave its directory to the
    end of the command."""
    operations = recording.operations
    leaves = next(i for i, o in enumerate(operations) if isinstance(o, Rename) and _folder(o.path) != _folder(o.to))
    return range(leaves, operations.index(Migrated()) + 1)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


class MigrationOracle(Oracle):
    """resumed: states in which a migration went on with a copy."""

    def __init__(self, recording: Recording, folder: Path) -> None:
        super().__init__(recording, folder)
        self.key, self.resumed = key_file(folder), 0
        self.in_clear = self.records[0][4:100], b'"reason":"bad'  # of an event, of a dead letter
        assert self.in_clear[1] in self.letters[0]

    def check(self, picture: Picture, promise: Promise) -> list[str]:
        with self._laid_out(picture, promise) as data_dir:
            try:
                encrypted = _says_encrypted(data_dir)
            except EngineError as e:
                return [f"refused: {e!r}"]
            if encrypted not in {is_encrypted(n) for n in range(promise.migrations, promise.named + 1)}:
                return [f"lost: migration {promise.migrations}, encrypted: {encrypted}"]
            found = self._opened(data_dir, promise, encrypted=encrypted)
        with self._laid_out(picture, promise) as data_dir:
            again = self._asked_again(data_dir, promise, encrypted=encrypted)
            return found + [f"asked again: {what}" for what in again]

    def _opened(self, data_dir: Path, promise: Promise, *, encrypted: bool) -> list[str]:
        return [*self._started(data_dir, promise, self.key if encrypted else None),
                *self._left(Layout(data_dir), encrypted=encrypted)]  # fmt: skip

    def _asked_again(self, data_dir: Path, promise: Promise, *, encrypted: bool) -> list[str]:
        """What was under way at the failure, or was the last; then a start."""
        layout = Layout(data_dir)
        layout.run.mkdir(mode=0o700)
        wanted = promise.migrations == 0
        more = {} if wanted else {"to": migrate.PLAIN, "from_key_file": str(self.key)}
        try:
            done = migrate.run(layout, configured(data_dir, self.key if wanted else None), **more)
        except Exception as e:
            return [f"refused: {e!r}"]
        self.resumed += done["resumed"]
        if bool(done["steps"]) != (encrypted != wanted) or _says_encrypted(data_dir) != wanted:
            return [f"encrypted: {encrypted}, wanted: {wanted}, done: {done}"]
        return [*self._left(layout, encrypted=wanted), *self._opened(data_dir, promise, encrypted=wanted)]

    def _left(self, layout: Layout, *, encrypted: bool) -> Iterator[str]:
        """Nothing but what is used, and nothing of it in the clear where it is encrypted."""
        name = named(layout.catalog / CURRENT)
        files = [path.relative_to(layout.data_dir).as_posix() for path in layout.catalog.iterdir()]
        if left := {*files} - {f"catalog/{name}", f"catalog/{name}-lock", "catalog/CURRENT"}:
            yield f"left over: {left}"
        if layout.migrating.exists() or layout.letters_beside():
            yield f"left over: {layout.migrating}, {layout.letters_beside()}"
        for path in (layout.catalog / name, layout.dead_letters):
            found = any(words in path.read_bytes() for words in self.in_clear)
            if found == encrypted:
                yield f"{path.name}: encrypted is {encrypted}, in the clear is {found}"

    def _lay_out(self, root: Path, picture: Picture, promise: Promise) -> Path:
        """On a real disk the catalog is still the file that a copy says it is of."""
        data_dir = super()._lay_out(root, picture, promise)
        for path in (data_dir / "catalog/catalog.1", data_dir / "migrating/catalog.0"):
            if path.exists() and (lock := (b"", GARBAGE)[self._checked % 2]):
                path.with_name(f"{path.name}-lock").write_bytes(lock * 32_768)
        path = Layout(data_dir).migrating / "origin"
        with suppress(FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            origin = msgspec.json.decode(path.read_bytes(), type=migrate.Origin)
            inode = (data_dir / "catalog" / origin.catalog).stat().st_ino
            path.write_bytes(msgspec.json.encode(msgspec.structs.replace(origin, inode=inode)))
        return data_dir


def _says_encrypted(data_dir: Path) -> bool:
    """What the directory itself says. Raises EngineError where it is none."""
    catalog = Catalog(Layout(data_dir).catalog, write=False, map_size=1 << 30, lock=False)
    try:
        with catalog.read() as view:
            manifest = view.manifest()
    finally:
        catalog.close()
    if manifest is None:
        raise NotReadyError("not born")
    return bool(manifest.key_id)
