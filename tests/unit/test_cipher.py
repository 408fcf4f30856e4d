"""Encryption at rest: what is sealed opens in its place with its key, and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import CorruptionError, KeyFileError
from engine.store import cipher as module
from engine.store.catalog import Catalog, id_key, seq_key
from engine.store.cipher import NONCE_BYTES, SALT_BYTES, SEALED_BYTES, Cipher, NoKey, cipher_of, fitting
from engine.store.manifest import Manifest
from tests.events import make
from tests.store_fixture import Store

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
PLACES = st.tuples(st.sampled_from(["records", "dead_letters"]), st.binary(max_size=64))


def key_file(path: Path, key: bytes = KEY, mode: int = 0o600) -> Path:
    path.write_text(key.hex() + "\n")
    path.chmod(mode)
    return path


@given(PLACES, st.binary(max_size=2_000))
def test_what_was_sealed_opens_in_its_place_alone(place: tuple[str, bytes], payload: bytes) -> None:
    cipher, (table, key) = Cipher(KEY), place
    value = cipher.seal(table, key, payload)
    assert len(value) == len(payload) + SEALED_BYTES
    assert cipher.open(table, key, value) == Cipher(KEY).open(table, key, memoryview(value)) == payload
    for elsewhere in ((table, key + b"x"), (table + "x", key), ("records" if table != "records" else "ids", key)):
        with pytest.raises(CorruptionError, match="was not sealed for this place"):
            cipher.open(*elsewhere, value)
    with pytest.raises(CorruptionError, match="was not sealed for this place"):
        Cipher(OTHER).open(table, key, value)


@given(st.binary(max_size=300), st.data())
def test_a_changed_bit_or_a_cut_does_not_open(payload: bytes, data: st.DataObject) -> None:
    cipher = Cipher(KEY)
    value = bytearray(cipher.seal("records", seq_key(1), payload))
    cut = value[: data.draw(st.integers(0, len(value) - 1))]
    at = data.draw(st.integers(0, 8 * len(value) - 1))
    value[at // 8] ^= 1 << at % 8
    for bad in (value, cut):
        with pytest.raises(CorruptionError, match="was not sealed for this place"):
            cipher.open("records", seq_key(1), bytes(bad))


def test_another_format_version_does_not_open() -> None:
    value = Cipher(KEY).seal("records", seq_key(1), b"payload")
    with patch.object(module, "_FORMAT", b"flowkin 4"), pytest.raises(CorruptionError):
        Cipher(KEY).open("records", seq_key(1), value)


@settings(max_examples=20)
@given(st.integers(1, 300), st.integers(1, 2_000), st.integers(1, 3))
def test_no_nonce_comes_twice_and_no_salt_serves_too_many(per_salt: int, count: int, processes: int) -> None:
    with patch.object(module, "VALUES_PER_SALT", per_salt):
        ciphers = [Cipher(KEY) for _ in range(processes)]
        values = [c.seal("records", seq_key(n), b"the same") for c in ciphers for n in range(count)]
    begins = [value[: SALT_BYTES + NONCE_BYTES] for value in values]
    assert len({begin[SALT_BYTES:] for begin in begins}) == len(values)
    salts = [begin[:SALT_BYTES] for begin in begins]
    assert len(set(salts)) == processes * -(-count // per_salt)
    assert max(salts.count(salt) for salt in set(salts)) <= per_salt


def test_the_bound_is_what_is_said() -> None:
    within_a_salt = module.VALUES_PER_SALT**2 / 2 / 2 ** (8 * NONCE_BYTES)
    assert within_a_salt <= 2**-57
    assert 2**45 / module.VALUES_PER_SALT * within_a_salt <= 2**-32


def test_the_id_of_a_key_says_which_it_is_and_nothing_says_the_key() -> None:
    cipher = Cipher(KEY)
    assert re.fullmatch("[0-9a-f]{16}", cipher.key_id)
    assert cipher.key_id == Cipher(KEY).key_id != Cipher(OTHER).key_id
    told = [repr(cipher), str(vars(cipher)), cipher.key_id]
    with pytest.raises(CorruptionError) as e:
        cipher.open("records", b"k", b"x" * 100)
    assert not any(KEY.hex()[:16] in text or repr(KEY)[2:12] in text for text in [*told, str(e.value)])
    with pytest.raises(ValueError, match="32 bytes"):
        Cipher(b"short")


def test_the_key_comes_from_a_file_that_is_its_owners_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assert cipher_of("", data) is None
    path = key_file(tmp_path / "key")
    opened = cipher_of(str(path), data)
    assert opened is not None and opened.key_id == Cipher(KEY).key_id
    for mode in (0o640, 0o644, 0o604):
        path.chmod(mode)
        with pytest.raises(KeyFileError, match=rf"mode {mode:04o}\): chmod 600.*; nothing was changed") as e:
            cipher_of(str(path), data)
        assert KEY.hex() not in str(e.value)
    path.chmod(0o600)
    for text in ("", KEY.hex()[2:], "no hex at all" * 6):
        path.write_text(text)
        with pytest.raises(KeyFileError, match="does not hold 64 hex characters"):
            cipher_of(str(path), data)
    with pytest.raises(KeyFileError, match="cannot be read: No such file"):
        cipher_of(str(tmp_path / "none"), data)
    (data / "link").symlink_to(path)
    (tmp_path / "in").symlink_to(key_file(data / "key"))
    for inside in (data / "key", tmp_path / "in"):
        with pytest.raises(KeyFileError, match="lies in the data directory"):
            cipher_of(str(inside), data)


def test_a_key_fits_its_directory_or_is_refused_by_name() -> None:
    cipher, other = Cipher(KEY), Cipher(OTHER)
    assert fitting(None, "", "d") is None and fitting(None, None, "d") is None
    assert fitting(cipher, cipher.key_id, "d") is cipher and fitting(cipher, None, "d") is cipher
    assert isinstance(fitting(None, cipher.key_id, "d"), NoKey)
    with pytest.raises(KeyFileError, match=r"d is not encrypted.*nothing was changed; `flowkin migrate`"):
        fitting(cipher, "", "d")
    with pytest.raises(KeyFileError, match=f"d is encrypted with key {cipher.key_id}.*holds key {other.key_id}"):
        fitting(other, cipher.key_id, "d")
    assert KeyFileError.exit_status == 74


# ---- in a catalog -------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A catalog with two records and an identity, closed."""
    folder = tmp_path / "catalog"
    folder.mkdir()
    catalog = Catalog(folder, write=True, map_size=1 << 24, cipher=Cipher(KEY))
    with catalog.write() as batch:
        batch.put_manifest(Manifest(row_file_rows=64, model="v", key_id=Cipher(KEY).key_id))
        batch.put_new("records", [(seq_key(n), b"\x08\0\0\0MARKER-%d\0" % n) for n in range(2)], append=True)
        batch.put("ids", b"id", b"readable")
    catalog.close()
    yield folder


def opened(folder: Path, cipher: Cipher | None, **more: bool) -> Catalog:
    return Catalog(folder, write=more.pop("write", False), map_size=1 << 24, cipher=cipher, **more)


def test_records_are_sealed_and_the_rest_is_not(folder: Path) -> None:
    blob = (folder / "catalog.0").read_bytes()
    assert b"MARKER" not in blob and b"readable" in blob
    catalog = opened(folder, Cipher(KEY))
    with catalog.read() as view:
        assert view.head(1) == b"MARKER-1"
        record = view.record(0)
        assert record is not None and record.head == b"MARKER-0"
        assert [(seq, r.head) for seq, r in view.records(0, 9)] == [(0, b"MARKER-0"), (1, b"MARKER-1")]
        assert bytes(view.get("ids", b"id") or b"") == b"readable"
    catalog.close()


def test_without_the_key_values_are_checked_and_none_is_opened(folder: Path) -> None:
    catalog = opened(folder, None)
    with catalog.read() as view:
        assert bytes(view.get("ids", b"id") or b"") == b"readable"
        value = view.txn.get(seq_key(1), None, catalog.tables["records"])
        assert b"MARKER" not in bytes(catalog.unseal("records", seq_key(1), value))
        for read in (view.head, view.record, lambda seq: list(view.records(seq, 9))):
            with pytest.raises(KeyFileError, match=r"is encrypted with key .* and no key is given"):
                read(1)
    with pytest.raises(KeyFileError):
        catalog.need_key()
    catalog.close()
    writer = opened(folder, None, write=True)
    with pytest.raises(KeyFileError), writer.write() as batch:
        batch.put("records", seq_key(2), b"in the clear")
    writer.close()


def test_another_key_opens_nothing(folder: Path) -> None:
    before = (folder / "catalog.0").read_bytes()
    with pytest.raises(KeyFileError, match="is encrypted with key"):
        opened(folder, Cipher(OTHER), write=True)
    assert (folder / "catalog.0").read_bytes() == before


def test_a_record_that_was_moved_does_not_open_though_its_checksum_is_right(folder: Path) -> None:
    catalog = opened(folder, Cipher(KEY), write=True)
    with catalog.write() as batch:
        table, key = catalog.tables["records"], seq_key(0)
        sealed = bytes(catalog.unseal("records", key, batch.txn.get(key, None, table)))
        catalog.cipher, kept = None, catalog.cipher  # as it stands, with the checksum that belongs there
        batch.put("records", seq_key(1), sealed)
        catalog.cipher = kept
    with catalog.read() as view:
        assert view.head(0) == b"MARKER-0"
        with pytest.raises(CorruptionError, match="was not sealed for this place"):
            view.head(1)
    catalog.close()


def test_an_id_that_was_made_to_name_another_event_is_refused(tmp_path: Path) -> None:
    """Under both its names, with the checksum that belongs there: the event says which it is."""
    with Store(tmp_path / "data", key_file(tmp_path / "key")) as store:
        store.publish([make(n) for n in range(3)])
        names = store.ids()
        with store.catalog.write() as batch:
            event = make(0).event
            batch.put("ids", id_key(event.event_id, event.source), seq_key(1) + bytes(16))
        with store.catalog.read() as view:
            for name in (event.event_id, f"{event.source}/{event.event_id}"):
                with pytest.raises(CorruptionError, match=rf"ids\['{name}'\]: somebody changed it: it leads to"):
                    view.find(name)
            assert [view.find(name) for name in names[1:]] == [1, 2]
        with store.catalog.write() as batch:
            table, key = store.catalog.tables["records"], seq_key(2)
            value = bytearray(batch.txn.get(key, None, table))
            value[40] ^= 1
            batch.txn.put(key, bytes(value), db=table)
        with store.catalog.read() as view:
            assert view.find(names[2]) == 2  # what cannot be read can still be purged by its name
        assert store.purge(ids=[names[2]])["events"] == 1
        with store.catalog.read() as view:
            assert view.find(names[2]) is None


def test_a_flipped_bit_is_found_without_the_key(folder: Path) -> None:
    path = folder / "catalog.0"
    catalog = opened(folder, None)
    with catalog.read() as view:
        value = bytes(view.txn.get(seq_key(1), None, catalog.tables["records"]))
    catalog.close()
    blob = path.read_bytes()
    at = blob.index(value) + 30
    os.pwrite(fd := os.open(path, os.O_WRONLY), bytes([blob[at] ^ 1]), at)
    os.close(fd)
    catalog = opened(folder, None)
    with catalog.read() as view, pytest.raises(CorruptionError, match="disagree with their checksum"):
        catalog.unseal("records", seq_key(1), view.txn.get(seq_key(1), None, catalog.tables["records"]))
    catalog.close()
