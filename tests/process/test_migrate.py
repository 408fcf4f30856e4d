"""`flowkin migrate`: a stopped engine's directory becomes what the settings ask for, whatever happens meanwhile."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.failpoint import POINTS
from engine.layout import Layout
from engine.limits import FORMAT_ENCRYPTED, FORMAT_VERSION
from engine.maintain.backup import verify
from engine.store.catalog import Catalog
from engine.store.cipher import Cipher
from engine.store.manifest import Manifest
from ipc.messages import Filter, Options, Reject, encode
from tests.engine_fixture import Engine, Starter, cli, stored_ids
from tests.events import ids, make, several
from tests.format.make import EVENTS, unpack
from tests.store_fixture import Store, closed, flip

READERS = 1

TEXT, LETTER = "zebrawords of the event", b"a letter of quaggas"
KEPT = Path(__file__).parents[1] / "format" / "v1.tar.zst"
CHANGED = ("migrate.named", "migrate.settled", "migrate.removed")  # failpoints behind the commit point


def key(folder: Path, name: str) -> Path:
    """A key file; its key is made of the name."""
    path = folder / f"{name}.key"
    path.touch(0o600)
    path.write_text(name.encode().hex().ljust(64, "0"))
    return path


def files(data_dir: Path, *, times: bool = False) -> dict[str, tuple[bytes, int]]:
    """Every byte of every file, and when it was written."""
    return {
        path.relative_to(data_dir).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns if times else 0)
        for path in sorted(data_dir.rglob("*"))
        if path.is_file()
    } | ({path.relative_to(data_dir).as_posix(): (b"", path.stat().st_mtime_ns) for path in data_dir.rglob("*")
          if path.is_dir()} if times else {})  # fmt: skip


def lasting(data_dir: Path) -> dict[str, tuple[bytes, int]]:
    """As files, without what only a running process looks at."""
    return {name: of for name, of in files(data_dir).items() if not name.startswith("run/") and "-lock" not in name}


def holding(data_dir: Path, what: bytes) -> list[str]:
    return [name for name, (blob, _) in files(data_dir).items() if what in blob]


def manifest_of(data_dir: Path) -> Manifest:
    catalog = Catalog(Layout(data_dir).catalog, write=False, map_size=1 << 30, lock=False)
    try:
        with catalog.read() as view:
            manifest = view.manifest()
    finally:
        catalog.close()
    assert manifest is not None
    return manifest


def migrate(data_dir: Path, *args: object, status: int = 0, **env: str) -> Any:
    """Its --json document; what it says where it fails."""
    done = cli("migrate", "--json", *args, data_dir=data_dir, env=env)
    assert done.returncode == status, done.stderr
    return done.stderr if status else msgspec.json.decode(done.stdout)


def to_key(path: Path) -> tuple[str, str]:
    return "--set", f"store.key_file={path}"


def replies(engine: Engine) -> list[bytes]:
    """Of many questions, byte for byte but for the time that they took."""
    client, found = engine.client(), []
    for name in ("e000003", "e000070", "e000149"):
        for space in ("chronos", "sbert", "attack", "fused"):
            found.append(client.query_similar(name, options=Options(space=space, top_k=20, explain=True)))
    found.append(client.search_text("zebrawords", options=Options(space="sbert", top_k=20)))
    for asked in found:
        for answer in asked.answers:
            answer.took_us = 0
    found += [client.get(["e000007", "text0"], raw=True, features=True), client.recent(limit=50)]
    found += [client.list(filter=Filter(labels=["good"])), client.list(limit=500)]
    return [encode(msgspec.structs.replace(reply, request_id=1)) for reply in found]


def letters(engine: Engine) -> Any:
    return engine.json("dead_letters")


@pytest.fixture(scope="module")
def born(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return closed(tmp_path_factory.mktemp("born") / "data")


@pytest.fixture
def data_dir(born: Path, tmp_path: Path) -> Path:
    return shutil.copytree(born, tmp_path / "data")


@pytest.fixture(scope="module")
def migrated(born: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a migration of a data_dir to key a makes of it that meets nothing."""
    folder = tmp_path_factory.mktemp("migrated")
    other = shutil.copytree(born, folder / "data")
    assert migrate(other, *to_key(key(folder, "a")))["resumed"] is False
    return other


def test_answers_are_the_same_byte_for_byte_whatever_the_key(start: Starter, tmp_path: Path) -> None:
    """Plain, key a, key b, plain again: replies, dead letters, what follows; and the text is on the disk or is not."""
    engine = start()
    engine.ingest([*several(150), make(0, event_id="text0", text=TEXT)])
    engine.client().ingest("ndjson", [], rejects=[Reject("file", 3, "it is 'bad'", LETTER)], source="test")
    engine.client().label("e000007", "good")
    engine.indexed(2)
    assert engine.stop() == 0
    engine.start()
    said, told = replies(engine), letters(engine)
    assert told
    assert engine.stop() == 0
    a, b = key(tmp_path, "a"), key(tmp_path, "b")
    assert holding(engine.data_dir, TEXT.encode())
    for args, now, to_format in (
        (to_key(a), a, FORMAT_ENCRYPTED), ((*to_key(b), "--from-key-file", a), b, FORMAT_ENCRYPTED),
        (("--to", "plain", "--from-key-file", b), None, 1),
    ):  # fmt: skip
        done = migrate(engine.data_dir, *args)
        assert (done["to_format"], len(done["steps"]), done["resumed"]) == (to_format, 1, False)
        assert done["bytes_written"] <= done["bytes_needed"]
        assert bool(holding(engine.data_dir, TEXT.encode())) == (now is None)
        assert migrate(engine.data_dir, *(to_key(now) if now else ()))["steps"] == []
        assert not {"migrating", "migrated_letters.1"} & {p.name for p in engine.data_dir.iterdir()}
        engine.env.pop("FLOWKIN_STORE__KEY_FILE", None)
        engine.env |= {"FLOWKIN_STORE__KEY_FILE": str(now)} if now else {}
        engine.start()
        assert replies(engine) == said
        assert letters(engine) == told
        assert engine.stop() == 0
        doctor = engine.cli("doctor", "--deep")
        assert doctor.returncode == 0, doctor.stdout
    engine.start()
    assert engine.ingest(several(200)).duplicates == 150
    assert stored_ids(engine.client()) == [*ids(several(150)), "text0", *ids(several(50, 150))]


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(data_dir: Path, tmp_path: Path) -> None:
    """Every byte and every time of writing is as before."""
    before = files(data_dir, times=True)
    told = migrate(data_dir, "--dry-run", *to_key(key(tmp_path, "a")))
    assert (told["dry_run"], told["from_format"], told["to_format"]) == (True, 1, FORMAT_ENCRYPTED)
    assert [f["path"] for f in told["files"]] == ["catalog/catalog.1"]
    assert told["bytes_free"] > told["bytes_needed"] > 0
    done = cli("migrate", "--dry-run", *to_key(tmp_path / "a.key"), data_dir=data_dir)
    assert done.returncode == 0 and "records and dead letters are encrypted" in done.stdout
    assert migrate(data_dir, "--dry-run")["steps"] == []
    assert files(data_dir, times=True) == before


@pytest.mark.parametrize("point", [*(p for p in POINTS if p.startswith("migrate.")), "migrate.step:4"])
def test_killed_at_any_step_it_goes_on(data_dir: Path, migrated: Path, tmp_path: Path, point: str) -> None:
    """Before CURRENT the old directory opens, behind it the new one; the same command ends where one that met nothing
    ends, and has gone on with the copy where there was one."""
    before, args = lasting(data_dir), to_key(key(tmp_path, "a"))
    killed = cli("migrate", *args, data_dir=data_dir, env={"ENGINE_FAILPOINT": point})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    changed = point in CHANGED
    left = lasting(data_dir)
    if not changed:
        assert before.items() <= left.items()
    assert manifest_of(data_dir).format_version == (FORMAT_ENCRYPTED if changed else 1)
    done = migrate(data_dir, *args)
    assert bool(done["steps"]) != changed
    assert done["resumed"] == (not changed and point != "migrate.placed")
    assert lasting(data_dir).keys() == lasting(migrated).keys()
    assert manifest_of(data_dir) == manifest_of(migrated)
    with Store(data_dir, tmp_path / "a.key") as store:
        store.check()
        assert store.ids() == ids(several(150))


@pytest.mark.parametrize("point", [p for p in POINTS if p.startswith("migrate.")])
def test_killed_at_any_step_a_start_has_one_of_both(data_dir: Path, tmp_path: Path, point: str) -> None:
    """Whoever does not ask for it again loses nothing, and nothing of the copy stays."""
    path = key(tmp_path, "a")
    cli("migrate", *to_key(path), data_dir=data_dir, env={"ENGINE_FAILPOINT": point})
    with Store(data_dir, path if point in CHANGED else None) as store:
        store.publish(several(10, 150))
        store.check()
        assert store.ids() == ids(several(160))
        name = store.catalog.path.name
    assert sorted(p.name for p in (data_dir / "catalog").iterdir()) == ["CURRENT", name, f"{name}-lock"]
    assert not (data_dir / "migrating").exists()


def test_a_copy_of_what_is_no_more_is_thrown_away(data_dir: Path, tmp_path: Path) -> None:
    """Stored meanwhile, to another key, or from nobody knows what."""
    args = to_key(key(tmp_path, "a"))
    for spoil in ("stored", "key", "origin"):
        assert cli("migrate", *args, data_dir=data_dir, env={"ENGINE_FAILPOINT": "migrate.copied"}).returncode < 0
        if spoil == "stored":
            moved = data_dir.with_name("aside")
            (data_dir / "migrating").rename(moved)
            with Store(data_dir) as store:
                store.publish(several(1, 150))
            moved.rename(data_dir / "migrating")
        elif spoil == "key":
            args = to_key(key(tmp_path, "b"))
        else:
            flip(data_dir / "migrating" / "origin", 20)
        assert migrate(data_dir, "--dry-run", *args)["resumed"] is False
    assert migrate(data_dir, *args)["resumed"] is False
    with Store(data_dir, tmp_path / "b.key") as store:
        assert store.ids() == ids(several(151))
        store.check()


@pytest.mark.parametrize(
    "armed", [f"{point}={error}" for point, of in POINTS.items() if point.startswith("migrate.") for error in of.errors]
)
def test_a_disk_that_fails_changes_nothing_or_it_is_done(data_dir: Path, tmp_path: Path, armed: str) -> None:
    before, args = lasting(data_dir), to_key(key(tmp_path, "a"))
    point, _, error = armed.partition("=")
    said = migrate(data_dir, *args, status=6 if error == "ENOSPC" else 1, ENGINE_FAILPOINT=armed)
    if point in CHANGED:
        assert "the new catalog" in said and "is in use" in said
    else:
        assert "nothing was changed" in said
        assert lasting(data_dir) == before
    assert bool(migrate(data_dir, *args)["steps"]) == (point not in CHANGED)
    with Store(data_dir, tmp_path / "a.key") as store:
        store.check()


def test_a_backup_of_an_older_format_is_restored_and_then_migrated(tmp_path: Path) -> None:
    """The backup itself stays what it was."""
    old, home, path = unpack(KEPT, tmp_path), tmp_path / "backups", key(tmp_path, "a")
    assert cli("backup", "create", home, "--name", "old", data_dir=old).returncode == 0
    kept, new = files(home), tmp_path / "new"
    assert cli("backup", "restore", home / "old", new).returncode == 0
    assert migrate(new, *to_key(path))["from_format"] == 1
    assert files(home) == kept
    assert {f.severity for f in verify(home / "old")} == {"ok"}
    with Store(new, path) as store:
        assert store.ids() == ids(several(EVENTS))
        store.check()


def test_what_is_not_to_be_migrated_is_refused_by_name(start: Starter, tmp_path: Path) -> None:
    """An engine that runs, a key that does not fit, decrypting that nobody asked for, a newer format, damage."""
    engine = start()
    engine.ingest(several(100))
    a, b = key(tmp_path, "a"), key(tmp_path, "b")
    key_id = Cipher(bytes.fromhex(a.read_text())).key_id
    for args in (to_key(a), ("--dry-run", *to_key(a))):
        assert "held by another ingest worker" in migrate(engine.data_dir, *args, status=1)
    assert engine.stop() == 0
    before = lasting(engine.data_dir)
    assert "leave out --from-key-file" in migrate(engine.data_dir, *to_key(a), "--from-key-file", b, status=2)
    assert "names no key" in migrate(engine.data_dir, "--to", "encrypted", status=2)
    assert lasting(engine.data_dir) == before
    migrate(engine.data_dir, *to_key(a))
    before = lasting(engine.data_dir)
    for args, word in (
        ((), "decrypt by name"), (("--to", "plain"), "store.key_file"), (to_key(b), "--from-key-file"),
        ((*to_key(a), "--from-key-file", b), "") , ((*to_key(b), "--from-key-file", b), "name the file"),
        (("--to", "plain", "--from-key-file", b), "name the file"),
    ):  # fmt: skip
        if word:
            said = migrate(engine.data_dir, *args, status=1)
            assert word in said and key_id in said and a.read_text() not in said
        else:
            assert migrate(engine.data_dir, *args)["steps"] == []
        assert lasting(engine.data_dir) == before
    assert len(migrate(engine.data_dir, "--to", "plain", *to_key(a))["steps"]) == 1
    assert migrate(engine.data_dir, "--to", "plain", "--from-key-file", a)["steps"] == []  # done, and asked again
    with Store(engine.data_dir) as store:
        store.publisher.commit_manifest(format_version=FORMAT_VERSION + 1)
    said = migrate(engine.data_dir, *to_key(a), status=1)
    assert f"has format {FORMAT_VERSION + 1}" in said and "use the newer flowkin" in said


def test_a_damaged_record_is_named_and_nothing_is_changed(data_dir: Path, tmp_path: Path) -> None:
    catalog = data_dir / "catalog" / "catalog.0"
    flip(catalog, catalog.read_bytes().index(b"\xa7e000077") + 3)  # in the event, not in its identity
    before = lasting(data_dir)
    said = migrate(data_dir, *to_key(key(tmp_path, "a")), status=1)
    assert "catalog records" in said and "nothing was migrated" in said
    assert lasting(data_dir) == before
