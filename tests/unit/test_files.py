"""Files: decompression within bounds, directories, formats, and the order of time."""

from __future__ import annotations

import errno
import gzip
import io
import os
import random
import zlib
from pathlib import Path

import pytest
import zstandard

from engine.errors import SourceError
from engine.sources import FORMATS, adapter_for, detect, files
from engine.sources.base import Parsed, SourceSpec
from engine.sources.files import ArchiveError, Inputs, chunks, fingerprint, open_path, sorted_by_time, walk
from ipc.event import Event, FeaturedEvent
from ipc.messages import Reject
from tests.data import content

DATA = b"".join(b'{"ts": %d, "event_id": "e%d"}\n' % (i, i) for i in range(3_000))


def unpack(data: bytes) -> bytes:
    return b"".join(chunks(io.BytesIO(data)))


def test_compressions_are_known_by_their_bytes() -> None:
    half = len(DATA) // 2
    two_frames = zstandard.compress(DATA[:half]) + zstandard.compress(DATA[half:])
    for packed in (DATA, gzip.compress(DATA), zstandard.compress(DATA), two_frames, b"", b"a", b"\x1f"):
        assert unpack(packed) == (packed if len(packed) < 2 else DATA)
    members = gzip.compress(DATA[:half]) + b"\0" * 5 + gzip.compress(b"") + gzip.compress(DATA[half:]) + b"\0" * 512
    assert unpack(members) == DATA


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (gzip.compress(DATA)[:-100], "cut short"),
        (gzip.compress(DATA)[:-4], "cut short"),
        (gzip.compress(DATA) + b"junk", "something else follows after 1 members"),
        (gzip.compress(DATA)[:-8] + b"\0" * 8, "damaged"),
        (zstandard.compress(DATA)[:-20], "cut short"),
        (zstandard.compress(DATA) + b"junk", "damaged"),
    ],
)
def test_damaged_archives_give_what_was_read_then_one_reject(packed: bytes, says: str, tmp_path: Path) -> None:
    out = b""
    with pytest.raises(ArchiveError, match=says):
        for chunk in chunks(io.BytesIO(packed)):
            out += chunk
    assert DATA.startswith(out)
    path = tmp_path / "a.json"
    path.write_bytes(packed)
    got = list(Inputs().read(path, SourceSpec("t"), "ndjson"))
    rejects = [reject for parsed in got for reject in parsed.rejects]
    assert says in rejects[-1].reason and rejects[-1].offset == len(out) and rejects[-1].file == str(path)
    assert sum(len(parsed.events) for parsed in got) >= out.count(b"\n")


def test_bombs_are_refused_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = bytes(8 << 20)
    for packed in (gzip.compress(zeros), zstandard.compress(zeros)):
        out = 0
        with pytest.raises(ArchiveError, match="expands more than 200 times"):
            for chunk in chunks(io.BytesIO(packed)):
                out += len(chunk)
        assert out <= 6 << 20
    monkeypatch.setattr(files, "DECOMPRESS_BYTES_MAX", 50_000)
    with pytest.raises(ArchiveError, match="more than 50000 bytes"):
        unpack(gzip.compress(DATA))
    with pytest.raises(ArchiveError, match="more than 50000 bytes"):
        unpack(zstandard.compress(DATA))


def test_directories_are_walked_in_order_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text("x")
    root = tmp_path / "in"
    (root / "b").mkdir(parents=True)
    for name in ("c.json", "a.json", "b/z.json", "b/y.log", ".hidden"):
        (root / name).write_text("x")
    (root / "link.json").symlink_to(outside / "secret.json")
    (root / "dir").symlink_to(outside)
    os.mkfifo(root / "fifo.json")
    assert [str(p.relative_to(root)) for p in walk(root)] == ["a.json", "b/y.log", "b/z.json", "c.json"]
    assert [str(p.relative_to(root)) for p in walk(root, "*.json")] == ["a.json", "b/z.json", "c.json"]
    assert walk(root / "a.json") == [root / "a.json"]


def test_a_directory_that_may_not_be_read_is_an_error_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:  # root reads everything
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for root in (tmp_path, tmp_path / "locked"):
        with pytest.raises(SourceError, match="locked cannot be read: Permission denied"):
            walk(root)
    assert walk(tmp_path / "open") == []


def test_a_file_that_goes_between_the_list_and_the_look_stops_no_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(DATA)
    lstat = Path.lstat

    def late(path: Path) -> os.stat_result:
        if path.name == "b":
            path.unlink()
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", late)
    assert walk(tmp_path) == [tmp_path / "a", tmp_path / "c"]


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        open_path(tmp_path)
    with pytest.raises(SourceError, match="No such file"):
        list(Inputs().read(tmp_path / "none", SourceSpec("t")))


def test_formats(tmp_path: Path) -> None:
    assert detect(DATA, "x") == "ndjson"
    assert adapter_for("eve") is FORMATS["eve"] and FORMATS["eve"].format == "eve"
    for name in FORMATS:
        assert FORMATS[name].format == name
    with pytest.raises(SourceError, match=r"--format: .*eve"):
        detect(b"hello\nworld\n", "notes.txt")
    with pytest.raises(SourceError, match=r"no format 'x'; there are .*eve"):
        adapter_for("x")
    (tmp_path / "empty").write_bytes(b"")
    assert list(Inputs().read(tmp_path / "empty", SourceSpec("t"))) == []


@pytest.mark.parametrize(
    ("file", "format"),
    [
        ("cicids2017_improved/cicids2017_improved_dev.csv.gz", "cicflow"),
        ("cicflowmeter_official/expected_v3_2018-02_test.pcap.csv", "cicflow"),
        ("suricata_eve/slips_test6_eve.json.gz", "eve"),
        ("suricata_eve/honeypot-2018_alerts.array.json.gz", "eve"),
        ("pcap_zeek/wikipedia.pcap", "pcap"),
        ("pcap_zeek/pcapng-multi-interface.pcapng", "pcap"),
    ],
)
def test_formats_of_real_files(file: str, format: str) -> None:
    assert detect(content(file)[: files.HEAD_BYTES], "data") == format


def test_reading_finds_the_format_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_bytes(DATA * 8 + b"{\n")
    got = list(Inputs().read(path, SourceSpec("t")))
    assert sum(len(parsed.events) for parsed in got) == 24_000
    assert [(r.file, r.offset) for parsed in got for r in parsed.rejects] == [(str(path), 8 * len(DATA))]


def test_fingerprints() -> None:
    assert fingerprint(b"a" * 2000) == fingerprint(b"a" * 1024) != fingerprint(b"a" * 1023)
    assert fingerprint(b"abc", 2) == fingerprint(b"abd", 2)


@pytest.mark.parametrize("memory_events", [50_000, 100, 7])
def test_order_of_time_is_the_same_in_memory_and_on_disk(memory_events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MERGE_RUNS_MAX", 8)
    rng = random.Random(1)
    items = [
        FeaturedEvent(
            Event(event_id=f"e{rng.randrange(40)}", source="t", ts=rng.randrange(50), ts_start=0), b"", b"%d" % i
        )
        for i in range(2_500)
    ]
    parsed = [Parsed(items[i : i + 33], [Reject("f", i, "r")] if i % 5 == 0 else []) for i in range(0, len(items), 33)]
    got = list(sorted_by_time(iter(parsed), memory_events))
    events = [item for batch in got for item in batch.events]
    assert events == sorted(items, key=lambda item: (item.event.ts, item.event.event_id))
    assert sum(len(batch.rejects) for batch in got) == sum(len(batch.rejects) for batch in parsed)
    assert max(len(batch.events) for batch in got) <= 1024


def test_gzip_members_one_byte_at_a_time() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(1)

    small = gzip.compress(b"one\n") + gzip.compress(b"two\n")
    assert b"".join(chunks(Slow(small))) == b"one\ntwo\n"
    assert zlib.crc32(b"".join(chunks(Slow(b"plain text")))) == zlib.crc32(b"plain text")


def test_what_is_decompressed_is_bounded_as_it_is_said() -> None:
    assert (files.DECOMPRESS_RATIO_MAX, files.DECOMPRESS_BYTES_MAX) == (200, 1 << 30)
