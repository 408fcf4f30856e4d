"""Row files: what is written is what is mapped, and a checksum knows when it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.embed.base import DIMS, SPACES
from engine.errors import CorruptionError
from engine.files import write_new
from engine.store import rows as rows_module
from engine.store.columns import COLUMNS, address, to_columns
from engine.store.counter import Counter
from engine.store.counters import Names
from engine.store.rows import REGION_BYTES, RowMap, Rows, RowWriter, create, file_bytes
from ipc.event import Event
from tests.store_fixture import flip

N = 64


def some(count: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    columns = np.zeros(count, COLUMNS)
    columns["ts"] = rng.integers(0, 1 << 60, count)
    features = rng.random((count, 105), np.float32)
    features[:, 5] = np.nan
    return Rows({s: rng.random((count, DIMS[s]), np.float32) for s in SPACES}, features, columns)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "0000-00000003"


def test_rows_come_back_byte_for_byte(path: Path) -> None:
    given = some(N)
    writer = RowWriter(path, 3, N)
    writer.write(0, Rows({s: v[:40] for s, v in given.vectors.items()}, given.features[:40], given.columns[:40]))
    writer.write(40, Rows({s: v[40:] for s, v in given.vectors.items()}, given.features[40:], given.columns[40:]))
    writer.sync()
    writer.close()
    mapped = RowMap(path, 3, N)
    assert mapped.first_seq == 3 * N
    for space in SPACES:
        assert np.array_equal(mapped.vectors[space], given.vectors[space])
    assert mapped.features.tobytes() == given.features.tobytes()
    assert mapped.columns.tobytes() == given.columns.tobytes()
    assert mapped.bad_rows(N) == []
    assert path.stat().st_size == file_bytes(N)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 >= file_bytes(N)  # written full, so that later writes allocate nothing


def test_a_mapping_sees_what_is_written_later_and_the_size_never_changes(path: Path) -> None:
    create(path, N)
    mapped = RowMap(path, 3, N)
    writer = RowWriter(path, 3, N)
    assert not mapped.vectors["attack"].any()
    given = some(5)
    writer.write(10, given)
    assert np.array_equal(mapped.vectors["attack"][10:15], given.vectors["attack"])
    writer.write(10, some(5, seed=1))  # what was not committed is overwritten
    assert mapped.bad_rows(15) == list(range(10))
    writer.close()
    assert path.stat().st_size == file_bytes(N)


@pytest.mark.parametrize("region", [*SPACES, "features", "columns", "sums"])
def test_one_flipped_bit_is_one_bad_row(path: Path, region: str) -> None:
    writer = RowWriter(path, 3, N)
    writer.write(0, some(N))
    writer.close()
    mapped = RowMap(path, 3, N)
    sealed = mapped.checksum()
    size = rows_module.SUMS_BYTES if region == "sums" else REGION_BYTES[region]
    flip(path, rows_module._offsets(N)[region] + 17 * size + 2)
    assert mapped.bad_rows(N) == [17]
    assert mapped.bad_rows(17) == []  # only what is committed counts
    assert mapped.checksum() != sealed
    good = [space for space in SPACES if not mapped.wrong(17, [space], features=False)]
    assert len(good) == (2 if region in (*SPACES, "sums") else 3) or region == "sums"
    assert (mapped.wrong(17, []) == "") == (region not in ("features", "columns"))
    assert mapped.wrong(16, SPACES) == ""


def test_a_row_in_another_place_is_a_bad_row(path: Path, tmp_path: Path) -> None:
    """The sums are seeded by seq: a file that took another's name, or a row written to the wrong place, is seen."""
    writer = RowWriter(path, 3, N)
    writer.write(0, some(N))
    writer.close()
    assert RowMap(path, 4, N).bad_rows(N) == list(range(N))


@pytest.mark.parametrize("size", [0, 100, -1, 1])
def test_a_file_of_another_size_is_refused(path: Path, size: int) -> None:
    create(path, N)
    with path.open("r+b") as file:
        file.truncate(size if size in (0, 100) else file_bytes(N) + size)
    with pytest.raises(CorruptionError, match="has not the"):
        RowMap(path, 3, N)
    with pytest.raises(CorruptionError, match="has not the"):
        RowWriter(path, 3, N)


def test_a_link_in_place_of_a_row_file_is_refused(path: Path, tmp_path: Path) -> None:
    create(tmp_path / "real", N)
    path.symlink_to(tmp_path / "real")
    with pytest.raises(OSError):
        RowMap(path, 3, N)
    with pytest.raises(OSError):
        RowWriter(path, 3, N)


# ---- columns ------------------------------------------------------------------------------------------------------


def test_columns_hold_what_filters_look_at() -> None:
    event = Event(
        event_id="a", source="eve", ts=5, ts_start=4, src_ip="10.0.0.1", dst_ip="2001:db8::1", src_port=0, proto=6,
        classification="MALICIOUS", kind="alert", decision="DROP", family="C2", fast_score=0.5, discrepancy=0.25,
        coverage=7,
    )  # fmt: skip
    names = Names(["Unknown", "C2"], [("eve", "eve")])
    (cell,) = to_columns([event], [bytes(range(16))], names)
    assert (cell["ts"], cell["ts_start"], cell["src_port"], cell["dst_port"], cell["proto"]) == (5, 4, 0, -1, 6)
    assert (cell["family"], cell["source"], cell["coverage"]) == (1, 0, 7)
    assert (cell["classification"], cell["kind"], cell["decision"]) == (3, 1, 2)
    assert cell["fast_score"] == np.float32(0.5)
    assert np.isnan(cell["ml_score"])
    assert (int(cell["src_hi"]), int(cell["src_lo"])) == (0, 0xFFFF_0A00_0001)
    assert int(cell["dst_hi"]) == 0x2001_0DB8_0000_0000
    assert int(cell["content"]) == int.from_bytes(bytes(range(8)), "little")


def test_addresses_are_128_bits() -> None:
    assert address("") == (0, 0)
    assert address("::") == (0, 0)
    assert address("255.255.255.255") == (0, 0xFFFF_FFFF_FFFF)
    assert address("::ffff:1.2.3.4") == address("1.2.3.4")
    for bad in ("1.2.3", "x", "1.2.3.4/8", "::g"):
        with pytest.raises(OSError):
            address(bad)


# ---- the counter, new files ---------------------------------------------------------------------------------------


def test_a_counter_is_seen_at_once_by_others(tmp_path: Path) -> None:
    path = tmp_path / "generation"
    with pytest.raises(FileNotFoundError):
        Counter(path, write=False)
    writer = Counter(path, write=True)
    reader = Counter(path, write=False)
    for value in (1, 2, (1 << 64) - 1):
        writer.value = value
        assert reader.value == value
    with pytest.raises(TypeError):
        reader.value = 3
    writer.close()
    assert Counter(path, write=True).value == (1 << 64) - 1
    reader.close()


def test_a_new_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_new(path, [b"old"])

    def breaks():  # type: ignore[no-untyped-def]
        yield b"new"
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_new(path, breaks())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    held = path.open("rb")
    write_new(path, [b"newer", memoryview(b"!")], mode=0o400)
    assert held.read() == b"old"  # replaced, not overwritten
    held.close()
    assert path.read_bytes() == b"newer!"
    assert path.stat().st_mode & 0o777 == 0o400
