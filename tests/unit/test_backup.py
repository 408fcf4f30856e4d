"""Backups without processes: what is in one, what is linked, what is found damaged, what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import (
    BadRequestError,
    CorruptionError,
    EngineError,
    FormatError,
    ModelError,
    NoSpaceError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
)
from engine.layout import Layout
from engine.maintain import backup as backups
from engine.maintain import take as take_module
from engine.maintain.backup import Backup, File, delete, found, prune, read, restore, verify
from engine.maintain.take import Made, create
from engine.store import switch
from engine.store.catalog import Catalog, View
from engine.store.publish import Submission
from ipc.messages import Reject
from tests.engine_fixture import ROOT, environment, shape
from tests.events import ids, several
from tests.store_fixture import OTHER, Store, closed, flip, other_model

MAP_BYTES = 1 << 30
ASKED = ["e000003", "e000070", "e000129"]


@pytest.fixture(scope="module")
def born(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 events, two row files full and indexed, a dead letter, settings; closed; to be copied."""
    letter = Submission("ndjson", [], [Reject("file", 0, "bad")], lambda outcome: None)
    data_dir = closed(tmp_path_factory.mktemp("born") / "data", letter)
    (data_dir / "flowkin.toml").write_text("[readers]\ncount = 3\n")
    return data_dir


@pytest.fixture
def layout(born: Path, tmp_path: Path) -> Layout:
    shutil.copytree(born, tmp_path / "data")
    return Layout(tmp_path / "data")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "backups"


def take(layout: Layout, home: Path, name: str = "") -> Made:
    return create(layout, home, name, map_size=MAP_BYTES)


def problems(path: Path) -> dict[str, str]:
    return {finding.object: finding.detail for finding in verify(path) if finding.severity == "problem"}


def inodes(root: Path) -> dict[str, int]:
    return {p.relative_to(root).as_posix(): p.stat().st_ino for p in root.rglob("*") if p.is_file()}


def described(path: Path, **changes: object) -> None:
    """Write another backup.json, with a checksum that is right."""
    changed = msgspec.structs.replace(read(path), **changes)
    (path / "backup.json").unlink()
    (path / "backup.json").write_bytes(backups.encode(changed))


# ---- there and back -------------------------------------------------------------------------------------------------


def test_a_backup_is_whole_and_a_restore_is_the_same_store(layout: Layout, home: Path, tmp_path: Path) -> None:
    with Store(layout.data_dir) as store:
        manifest = store.publisher.manifest
        expected = {name: shape(store.ask(name, top_k=20, collapse=False)) for name in ASKED}
    made = take(layout, home)
    assert made.path.parent == home and made.path.name.endswith(f"Z-g{manifest.generation}")
    assert (made.backup.generation, made.backup.events) == (manifest.generation, 150)
    assert [finding.severity for finding in verify(made.path) if finding.severity != "ok"] == []
    assert [p.name for p in home.iterdir() if p.name != backups.LOCK] == [made.path.name]
    files = {p.relative_to(made.path).as_posix() for p in made.path.rglob("*") if p.is_file()}
    assert files == {f.path for f in made.backup.files} | {"backup.json"}  # no lock file of LMDB, no run/
    assert {"dead_letters.ndjson", "flowkin.toml", f"models/{manifest.model}/card.json"} <= files
    modes = {p.stat().st_mode & 0o777 for p in made.path.rglob("*") if p.is_file()}
    assert modes == {0o400} and {p.stat().st_mode & 0o777 for p in made.path.rglob("*") if p.is_dir()} == {0o700}

    shutil.rmtree(layout.data_dir)
    target = tmp_path / "restored"
    assert restore(made.path, target) == read(made.path)
    assert not set(inodes(target).values()) & set(inodes(made.path).values())
    assert (target / "flowkin.toml").read_text() == "[readers]\ncount = 3\n"
    assert {p.stat().st_mode & 0o777 for p in (target / "indexes").iterdir()} == {0o400}
    with Store(target) as store:
        assert store.publisher.manifest == manifest
        store.check()
        assert {name: shape(store.ask(name, top_k=20, collapse=False)) for name in ASKED} == expected
        assert store.publish(several(170)).duplicates == 150
        store.check()
    assert problems(made.path) == {}  # what the restored store does is not seen here


def test_dead_letters_go_as_far_as_they_are_committed(layout: Layout, home: Path) -> None:
    with Store(layout.data_dir) as store:
        committed = store.publisher.counters.letter_bytes
    with layout.dead_letters.open("ab") as file:
        file.write(b"of a batch that was not stored\n")
    path = take(layout, home).path
    assert (path / "dead_letters.ndjson").stat().st_size == committed


def test_dead_letters_that_an_older_flowkin_did_not_count_are_all_in_it(layout: Layout, home: Path) -> None:
    with Store(layout.data_dir) as store, store.catalog.write() as batch:
        batch.put_counters(msgspec.structs.replace(store.publisher.counters, letter_bytes=-1))
    made = take(layout, home)
    assert made.backup.left_out == []
    assert (made.path / "dead_letters.ndjson").read_bytes() == layout.dead_letters.read_bytes() != b""


def test_settings_are_read_through_a_link_and_a_pipe_is_no_settings(layout: Layout, home: Path, tmp_path: Path) -> None:
    settings = layout.data_dir / "flowkin.toml"
    settings.rename(tmp_path / "managed.toml")
    settings.symlink_to(tmp_path / "managed.toml")
    path = take(layout, home).path
    assert not (path / "flowkin.toml").is_symlink()
    assert (path / "flowkin.toml").read_text() == "[readers]\ncount = 3\n"
    settings.unlink()
    os.mkfifo(settings)
    made = take(layout, home, "without")
    assert made.backup.left_out == made.backup.lost == ["flowkin.toml"]
    (said,) = [f for f in verify(made.path) if f.object == "flowkin.toml"]
    assert "is not in it; an older backup may have it" in said.detail


def test_a_switch_of_models_goes_on_after_a_restore(layout: Layout, home: Path, tmp_path: Path) -> None:
    with Store(layout.data_dir) as store:
        before = store.publisher.manifest.model
        store.begin_switch()
        store.publish(several(60, 150))
        assert store.go_on()
        manifest = store.publisher.manifest
    path = take(layout, home, "switching").path
    assert problems(path) == {} and read(path).left_out == []
    restore(path, tmp_path / "restored")
    with Store(tmp_path / "restored") as store:
        assert store.publisher.manifest == manifest
        while store.go_on():
            pass
        switch.finish(store.publisher)
        assert store.publisher.manifest.model == OTHER
        store.check()
    path = take(Layout(tmp_path / "restored"), home, "switched").path
    restore(path, tmp_path / "again")
    with Store(tmp_path / "again") as store:  # the way back is in it, too
        store.switch(before)
        store.check()


# ---- incremental ----------------------------------------------------------------------------------------------------


def test_full_files_are_linked_from_an_earlier_backup_and_never_from_the_data_directory(
    layout: Layout, home: Path, tmp_path: Path
) -> None:
    first = take(layout, home)
    assert (first.linked, first.backup.linked_bytes) == (0, 0)
    with Store(layout.data_dir) as store:
        store.publish(several(100, 150))
        store.index()
        sealed = {f"rows/{store.layout.row_file(0, s.number).name}" for s in store.publisher.manifest.sealed}
    second = take(layout, home)
    one, two = inodes(first.path), inodes(second.path)
    shared = {path for path in one.keys() & two.keys() if one[path] == two[path]}
    full = {f for f in one if f.startswith("indexes/")} | {"rows/0000-00000000", "rows/0000-00000001"}
    assert shared == full and sealed == {f"rows/0000-{n:08d}" for n in range(3)}
    assert second.linked == len(full)
    assert second.backup.linked_bytes == sum((second.path / path).stat().st_size for path in full)
    assert second.backup.copied_bytes + second.backup.linked_bytes == second.backup.bytes
    assert not set(inodes(layout.data_dir).values()) & {*one.values(), *two.values()}
    third = take(layout, home)  # nothing new: all that is full is linked
    assert third.linked == len(full) + 4 and third.backup.left_out == []
    delete(first.path)
    for path in (second.path, third.path):
        assert problems(path) == {}
    restore(third.path, tmp_path / "restored")
    with Store(tmp_path / "restored") as store:
        assert store.ids() == ids(several(250))
        store.check()


@pytest.mark.parametrize("harm", ["flipped", "gone", "a link", "another's"])
def test_a_file_of_an_earlier_backup_is_linked_only_if_it_is_what_it_says(
    layout: Layout, home: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take(layout, home)
    victim = first.path / "rows/0000-00000000"
    if harm == "flipped":
        flip(victim, 50_000)
    elif harm == "gone":
        victim.unlink()
    elif harm == "a link":
        victim.unlink()
        victim.symlink_to(layout.rows / victim.name)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    second = take(layout, home)
    assert second.backup.left_out == []
    assert (second.path / "rows/0000-00000000").lstat().st_nlink == 1
    assert second.linked == (0 if harm == "another's" else 7)  # of two row files and six indexes
    assert problems(second.path) == {}


def test_where_the_disk_cannot_link_all_is_copied(layout: Layout, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    take(layout, home)
    monkeypatch.setattr(os, "link", refuse)
    second = take(layout, home)
    assert second.linked == 0 and problems(second.path) == {}


# ---- damage ---------------------------------------------------------------------------------------------------------


KINDS = {
    "backup.json": "backup.json", "catalog": "catalog/catalog.0", "CURRENT": "catalog/CURRENT",
    "full row file": "rows/0000-00000000", "last row file": "rows/0000-00000002", "index": "indexes/sbert-*",
    "model": "models/*/attack.safetensors", "card": "models/*/card.json", "dead letters": "dead_letters.ndjson",
    "settings": "flowkin.toml",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_and_not_restored(layout: Layout, home: Path, tmp_path: Path, kind: str) -> None:
    path = take(layout, home).path
    victim = next(path.glob(KINDS[kind]))
    flip(victim, victim.stat().st_size // 2, 0x01)
    assert str(victim) in problems(path)
    with pytest.raises(CorruptionError, match=victim.name):
        restore(path, tmp_path / "restored")
    assert [p.name for p in tmp_path.iterdir() if "restored" in p.name] == []


def test_every_bit_of_what_a_backup_says_counts(layout: Layout, home: Path) -> None:
    path = take(layout, home).path
    whole = (path / "backup.json").read_bytes()
    (path / "backup.json").chmod(0o600)
    for at in range(len(whole)):
        (path / "backup.json").write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises((CorruptionError, FormatError)):
            read(path)
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        (path / "backup.json").write_bytes(whole[:size])
        with pytest.raises(CorruptionError):
            read(path)


def test_files_that_are_gone_cut_or_too_many_are_told(layout: Layout, home: Path) -> None:
    path = take(layout, home).path
    (path / "rows/0000-00000001").unlink()
    (path / "rows/0000-00000002").chmod(0o600)
    os.truncate(path / "rows/0000-00000002", 5_000)
    (path / "rows/more").touch()
    with pytest.raises(CorruptionError, match="00000001: is gone; nothing was restored"):
        restore(path, home / "x")
    assert {Path(name).name for name in problems(path)} == {"0000-00000001", "0000-00000002"}
    (note,) = [finding for finding in verify(path) if finding.severity == "note"]
    assert note.object == str(path / "rows/more")


def test_a_description_that_does_not_fit_its_catalog_is_a_problem(layout: Layout, home: Path) -> None:
    path = take(layout, home).path
    backup = read(path)
    described(path, events=149, files=[file for file in backup.files if "00000001" not in file.path])
    assert "tells another generation" in problems(path)[str(path)]
    assert "does not name it" in problems(path)["rows/0000-00000001"]


def test_rows_are_looked_at_whatever_the_description_says(layout: Layout, home: Path) -> None:
    path = take(layout, home).path
    for harm in (lambda file: flip(file, 5_000), lambda file: os.truncate(file, 5_000)):
        victim = path / "rows/0000-00000002"
        victim.chmod(0o600)
        harm(victim)
        others = [file for file in read(path).files if file.path != "rows/0000-00000002"]
        described(path, files=[*others, backups.file_of(path, "rows/0000-00000002")])
        assert list(problems(path)) == ["rows/0000-00000002"]


@pytest.mark.parametrize("harm", ["flipped", "gone", "cut"])
@pytest.mark.parametrize("kind", ["full row file", "last row file", "index"])
def test_what_is_derived_and_damaged_is_left_out_and_built_again(
    layout: Layout, home: Path, tmp_path: Path, kind: str, harm: str
) -> None:
    victim = next(layout.data_dir.glob(KINDS[kind]))
    if harm == "flipped":
        flip(victim, 5_000)
    elif harm == "gone":
        victim.unlink()
    else:
        victim.chmod(0o600)
        os.truncate(victim, victim.stat().st_size // 2)
    made = take(layout, home)
    assert made.backup.left_out == [victim.relative_to(layout.data_dir).as_posix()]
    assert made.backup.damaged == [] and problems(made.path) == {}
    restore(made.path, tmp_path / "restored")
    with Store(tmp_path / "restored") as store:
        store.check()
        store.index()
        assert len(store.ask("e000003", top_k=20, collapse=False).hits) == 20


def damage_a_record(layout: Layout) -> None:
    with Store(layout.data_dir) as store, store.catalog.write() as batch:
        records, key = store.catalog.tables["records"], (77).to_bytes(8, "big")
        value = bytearray(batch.txn.get(key, db=records))
        value[20] ^= 1
        batch.txn.put(key, bytes(value), db=records)


def test_a_damaged_record_is_told_and_the_last_sound_backup_outlives_a_prune(layout: Layout, home: Path) -> None:
    sound = [take(layout, home, f"sound-{n}").path.name for n in range(2)]
    damage_a_record(layout)
    made = [take(layout, home, f"damaged-{n}") for n in range(3)]
    assert "1 of 150 values are damaged" in made[0].backup.damaged[0]
    assert "1 of 150 values are damaged" in problems(made[0].path)["catalog records"]
    assert prune(home, 2) == [sound[0], "damaged-0"]
    assert list(found(home)) == [sound[1], "damaged-1", "damaged-2"]


def test_a_model_in_use_that_is_damaged_is_refused_another_left_out(layout: Layout, home: Path) -> None:
    other = other_model(layout)
    flip(other / "attack.safetensors", 100)
    made = take(layout, home)
    assert made.backup.left_out == [f"models/{OTHER}"]
    flip(layout.model(made.backup.model) / "attack.safetensors", 100)
    with pytest.raises(ModelError, match="is damaged"):
        take(layout, home)
    assert list(found(home)) == [made.path.name] and not list(home.glob(".backup-*"))


# ---- beside an engine that goes on ----------------------------------------------------------------------------------


def run_steps(data_dir: Path, *steps: str) -> None:
    subprocess.run(
        [sys.executable, "-P", "-m", "tests.process.steps", str(data_dir), *steps], env=environment(), cwd=ROOT,
        check=True, timeout=120, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def after_the_catalog(monkeypatch: pytest.MonkeyPatch, *acts: Callable[[], None]) -> list[int]:
    """Do these, one after each copy of the catalog; counts the copies."""
    copies: list[int] = []
    real = Catalog.copied

    def copied(self: Catalog, view: View) -> Iterator[bytes]:
        yield from real(self, view)
        copies.append(1)
        if len(copies) <= len(acts):
            acts[len(copies) - 1]()

    monkeypatch.setattr(Catalog, "copied", copied)
    return copies


def test_files_that_go_while_the_catalog_is_copied_are_not_missed(
    layout: Layout, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process stores more, and merges the indexes that the copied catalog names: they were open."""
    names = {path.name for path in layout.indexes.iterdir()}
    copies = after_the_catalog(monkeypatch, lambda: run_steps(layout.data_dir, "publish:150:100", "index", "merge"))
    made = take(layout, home)
    assert not names & {path.name for path in layout.indexes.iterdir()}
    assert (len(copies), made.backup.left_out, made.backup.events) == (1, [], 150)
    assert [f for f in verify(made.path) if f.severity != "ok"] == []
    restore(made.path, tmp_path / "restored")
    with Store(tmp_path / "restored") as store:
        assert store.ids() == ids(several(150))
        assert {index.file for index in store.publisher.manifest.indexes} == names
        store.check()


def test_files_that_go_before_they_are_opened_are_asked_of_the_newest_manifest(
    layout: Layout, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens: list[int] = []
    real = take_module._opened

    def opened(layout: Layout, *args: Any) -> dict[backups.Wanted, int]:
        opens.append(1)
        if len(opens) == 1:
            run_steps(layout.data_dir, "publish:150:100", "index", "merge")
        return real(layout, *args)

    monkeypatch.setattr(take_module, "_opened", opened)
    made = take(layout, home)
    assert (len(opens), made.backup.left_out, made.backup.events) == (2, [], 250)
    restore(made.path, tmp_path / "restored")
    with Store(tmp_path / "restored") as store:
        assert {(i.lo, i.hi) for i in store.publisher.manifest.indexes} == {(0, 128), (128, 192)}
        store.check()


def test_what_is_stored_after_the_catalog_was_copied_is_of_the_next_backup(
    layout: Layout, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = after_the_catalog(monkeypatch, lambda: run_steps(layout.data_dir, "publish:150:100"))
    made = take(layout, home)
    assert (len(copies), made.backup.left_out, made.backup.events) == (1, [], 150)
    restore(made.path, tmp_path / "restored")
    with Store(tmp_path / "restored") as store:
        assert store.ids() == ids(several(150))
        store.check()
        assert store.publish(several(100, 150)).accepted == 100  # over the rows that came along
        store.check()


def test_files_that_change_for_ever_end_in_a_sentence(
    layout: Layout, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter([f"rows/0000-{n:08d}.{n}" for n in range(1_000)])
    monkeypatch.setattr("engine.maintain.take.wanted", lambda layout, manifest: [backups.Wanted(next(names), "")])
    with pytest.raises(NotReadyError, match="change faster"):
        take(layout, home)
    assert list(found(home)) == [] and not list(home.glob(".backup-*"))


# ---- hostile and in the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "rows/../../x", "rows/../x", "rows/", "rows", "", ".", "catalog/../x", "catalog/catalog.1",
     "rows/0000-00000000/x", "rows/0000-00000000\0", "rows/0000-00000000\n", "indexes/sbert-x", "models/../x/card.json",
     "models/v4/../../x", "models/v4/x", "models/.model-x/card.json", "run/writer.lock", "backup.json", "generation"],
)  # fmt: skip
def test_a_path_that_no_backup_has_is_refused(layout: Layout, home: Path, tmp_path: Path, path: str) -> None:
    taken = take(layout, home).path
    described(taken, files=[*read(taken).files, File(path, 0, "")])
    with pytest.raises(CorruptionError, match="no backup has"):
        restore(taken, tmp_path / "restored")
    assert len(problems(taken)) == 1
    assert not (tmp_path / "restored").exists()


def test_a_catalog_that_is_elsewhere_or_twice_is_refused(layout: Layout, home: Path) -> None:
    path = take(layout, home).path
    backup = read(path)
    (path / "catalog/CURRENT").chmod(0o600)
    (path / "catalog/CURRENT").write_text("../../x")
    file = backups.file_of(path, "catalog/CURRENT")
    others = [f for f in backup.files if f.path != "catalog/CURRENT"]
    for files in ([*others, file], others, [*backup.files, backup.files[0]]):
        described_raw(path, backup, files)
        with pytest.raises(CorruptionError):
            read(path)


def described_raw(path: Path, backup: Backup, files: list[File]) -> None:
    (path / "backup.json").unlink()
    (path / "backup.json").write_bytes(backups.encode(msgspec.structs.replace(backup, files=files)))


@pytest.mark.parametrize(
    ("name", "what"),
    [*((n, w) for n in ("rows/0000-00000000", "backup.json") for w in ("link", "pipe", "directory", "device")),
     ("rows/0000-00000000", "folder link")],
)  # fmt: skip
def test_nothing_but_plain_files_is_read(layout: Layout, home: Path, tmp_path: Path, what: str, name: str) -> None:
    path = take(layout, home).path
    victim, elsewhere = path / name, tmp_path / "elsewhere"
    shutil.copytree(victim.parent, elsewhere)
    if what == "folder link":
        shutil.rmtree(victim.parent)
        victim.parent.symlink_to(elsewhere)
    else:
        victim.unlink()
        if what == "link":
            victim.symlink_to(elsewhere / victim.name)
        elif what == "pipe":
            os.mkfifo(victim)
        elif what == "directory":
            victim.mkdir()
        else:
            victim.symlink_to("/dev/zero")
    assert str(victim) in problems(path)
    with pytest.raises(CorruptionError, match="plain file"):
        restore(path, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("field", ["format", "format_version", "features_version"])
def test_a_newer_one_is_refused_by_name(layout: Layout, home: Path, tmp_path: Path, field: str) -> None:
    path = take(layout, home).path
    described(path, **{field: 99})
    for act in (lambda: restore(path, tmp_path / "restored"), lambda: verify(path)):
        with pytest.raises(FormatError, match=r"99.*nothing was changed; use the flowkin that wrote it"):
            act()
    assert isinstance(found(home)[path.name], FormatError)
    assert not (tmp_path / "restored").exists()


def test_a_restore_goes_to_an_absent_or_empty_directory_only(layout: Layout, home: Path, tmp_path: Path) -> None:
    path = take(layout, home).path
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target in (layout.data_dir, tmp_path / "file", tmp_path / "link", path / "x"):
        with pytest.raises(BadRequestError, match="nothing was changed"):
            restore(path, target)
    (tmp_path / "empty").mkdir()
    restore(path, tmp_path / "empty")
    restore(path, tmp_path / "two" / "deep")
    assert inodes(tmp_path / "empty").keys() == inodes(tmp_path / "two" / "deep").keys() > set()


def test_a_disk_without_room_is_asked_before(
    layout: Layout, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = take(layout, home)
    monkeypatch.setattr(backups, "free_bytes", lambda folder: made.backup.bytes - 1)
    with pytest.raises(NoSpaceError, match=f"needs {made.backup.bytes} bytes"):
        restore(made.path, tmp_path / "restored")
    monkeypatch.setattr(backups, "free_bytes", lambda folder: 1 << 10)
    for where in (home, tmp_path / "other"):
        with pytest.raises(NoSpaceError, match="nothing was written"):
            take(layout, where)
        assert not list(where.glob(".backup-*"))
    assert list(found(home)) == [made.path.name] and found(tmp_path / "other") == {}


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    layout: Layout, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def full(fd: int, data: memoryview) -> int:
        if "rows" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpaceError, match="the backup was not stored"):
        take(layout, home)
    assert list(found(home)) == [] and not list(home.glob(".backup-*"))


def test_a_disk_that_does_not_keep_what_is_written_is_no_place(
    layout: Layout, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backups.write_new

    def rotten(path: Path, chunks: object, *, mode: int = 0o600) -> None:
        real(path, chunks, mode=mode)  # type: ignore[arg-type]
        if path.parent.name == "rows":
            flip(path, 100)

    monkeypatch.setattr(backups, "write_new", rotten)
    with pytest.raises(OSError, match="does not read back"):
        take(layout, home)
    assert list(found(home)) == [] and not list(home.glob(".backup-*"))


def test_names_and_places_that_are_refused(layout: Layout, home: Path, tmp_path: Path) -> None:
    take(layout, home, "one")
    for name in ("one", "../one", ".one", "a/b", "", "x" * 129):
        if name:
            with pytest.raises(BadRequestError):
                take(layout, home, name)
    for place in (layout.data_dir, layout.data_dir / "backups"):
        with pytest.raises(BadRequestError, match="lies in the data directory"):
            take(layout, place)
    with pytest.raises(EngineError, match="no catalog"):
        take(Layout(tmp_path / "nothing"), home)
    assert list(found(home)) == ["one"]


def test_one_process_at_a_time_changes_the_backups(layout: Layout, home: Path) -> None:
    path = take(layout, home).path
    with backups.alone(home):
        for act in (lambda: take(layout, home), lambda: delete(path), lambda: prune(home, 1)):
            with pytest.raises(OverloadedError, match="another process"):
                act()
    assert list(found(home)) == [path.name]


def test_what_is_no_backup_is_neither_listed_nor_removed(layout: Layout, home: Path) -> None:
    paths = [take(layout, home, name).path for name in ("a", "b", "c")]
    (home / "d").mkdir()
    (home / "e").symlink_to(paths[0])
    flip(paths[1] / "backup.json", 100)
    for path in (home / "d", home / "e", home / "none"):
        with pytest.raises(NotFoundError):
            delete(path)
    with pytest.raises(NotFoundError):
        restore(home / "d", home / "x")
    assert {name: isinstance(one, Backup) for name, one in found(home).items()} == {"b": False, "a": True, "c": True}
    assert prune(home, 1) == ["a"]
    delete(paths[1])
    assert list(found(home)) == ["c"]
    assert {p.name for p in home.iterdir()} == {"c", "d", "e", backups.LOCK}
