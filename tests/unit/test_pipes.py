"""Files that give their bytes only once (pipes, standard input): looked at, then read, and nothing is lost between."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cli import feed
from cli.training import hashed
from engine.errors import SourceError
from tests.unit.test_binetflow import HEADER
from tests.wait import eventually

COUNT = 3_000
EVE = [
    {"timestamp": f"2024-03-01T10:00:00.{n:06}+0000", "flow_id": n, "event_type": "alert", "src_ip": "10.0.0.1",
     "src_port": 1_000 + n, "dest_ip": "10.0.0.2", "dest_port": 80, "proto": "TCP",
     "alert": {"signature_id": 1, "signature": f"s {n}"}}
    for n in range(COUNT)
]  # fmt: skip
HTTP = {"_path": "http", "ts": 2.0, "uid": "C1", "method": "GET", "host": "evil.example", "uri": "/"}
CONN = {
    "_path": "conn", "ts": 1.0, "uid": "C1", "id.orig_h": "10.0.0.1", "id.orig_p": 1, "id.resp_h": "10.0.0.2",
    "id.resp_p": 80, "proto": "tcp", "service": "http", "conn_state": "SF",
}  # fmt: skip
Piped = Callable[..., Path]


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def read(*paths: Path, format: str = "auto") -> list[str]:
    """The texts of the events."""
    return [item.event.text for part in feed.parts(paths, feed.How(format)) for item in part.events]


@contextmanager
def _filled(data: bytes, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where these bytes can be read from once: another process writes them."""
    number = len(os.listdir(tmp_path))
    file, fifo = tmp_path / f"data{number}", tmp_path / f"fifo{number}"
    file.write_bytes(data)
    if way == "fifo":
        os.mkfifo(fifo)
        with subprocess.Popen(["sh", "-c", 'exec cat "$0" > "$1"', file, fifo]):
            yield fifo
        return
    with subprocess.Popen(["cat", file], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        if way == "-":
            with os.fdopen(os.dup(writer.stdout.fileno())) as stdin, monkeypatch.context() as patched:
                patched.setattr(sys, "stdin", stdin)
                yield Path("-")
        else:
            yield Path(f"/dev/fd/{writer.stdout.fileno()}")  # as the shell's <(...)


@pytest.fixture
def piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Piped]:
    with ExitStack() as writers:
        yield lambda data, way="fd": writers.enter_context(_filled(data, way, tmp_path, monkeypatch))


@pytest.mark.parametrize("way", ["fd", "fifo", "-"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gz", "zst"])
def test_all_of_a_pipe_is_read(
    way: str, pack: Callable[[bytes], bytes], piped: Piped, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lines(*EVE)
    assert len(data) > 2 << 18  # more than is looked at, and than a pipe holds
    assert read(piped(pack(data), way)) == [f"s {n}" for n in range(COUNT)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("format", ["auto", "zeek"])
@pytest.mark.parametrize("way", ["fd", "fifo"])
def test_texts_from_a_pipe_are_read_before_the_flows_of_another(way: str, format: str, piped: Piped) -> None:
    conn, http = piped(lines(CONN), way), piped(gzip.compress(lines(HTTP)), way)
    assert "evil.example" in "".join(read(conn, http, format=format))


def test_a_beginning_that_comes_in_pieces_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header of gzip alone, until somebody took it out of the pipe; then the rest."""
    data = gzip.compress(lines(EVE[0]))
    ours, theirs = os.pipe()
    os.write(theirs, data[:10])

    def is_taken() -> bool:
        return not int.from_bytes(fcntl.ioctl(ours, termios.FIONREAD, bytes(4)), sys.byteorder)

    def go_on() -> None:
        with os.fdopen(theirs, "wb") as pipe:
            eventually(is_taken)
            pipe.write(data[10:])

    writer = threading.Thread(target=go_on)
    writer.start()
    with os.fdopen(ours) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        try:
            assert read(Path("-")) == ["s 0"]
        finally:
            writer.join()


@pytest.mark.parametrize("format", ["auto", "eve"])
def test_what_is_empty_is_said(format: str, piped: Piped, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, file, packed = piped(b""), tmp_path / "nothing.json", tmp_path / "packed.json"
    file.write_bytes(b"")
    packed.write_bytes(gzip.compress(b""))
    assert read(pipe, file, piped(lines(EVE[0])), packed, format=format) == ["s 0"]
    assert capsys.readouterr().err == "".join(f"left out: {path}: it is empty\n" for path in (pipe, file, packed))


def test_a_file_without_an_event_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A header alone: nobody is asked about anything, and no answer would look like none that was found."""
    header, other = tmp_path / "header.binetflow", tmp_path / "other.binetflow"
    for path in (header, other):
        path.write_text(f"{HEADER}\n")
    assert list(feed.events([header, other], feed.How())) == []
    assert capsys.readouterr().err == f"no event in {header}, {other}\n"
    whole = tmp_path / "eve.json"
    whole.write_bytes(lines(EVE[0]))
    assert len(list(feed.events([whole], feed.How()))) == 1
    assert capsys.readouterr().err == ""


def test_an_archive_that_gives_nothing_is_said(
    piped: Piped, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = gzip.compress(lines(EVE[0]))[:12]
    pipe = piped(cut)
    with pytest.raises(SourceError, match=f"{pipe}: gzip is cut short"):
        read(pipe)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "cut.gz").write_bytes(cut)
    (folder / "eve.json").write_bytes(lines(EVE[0]))
    assert read(folder) == ["s 0"]
    assert capsys.readouterr().err == f"left out: {folder}/cut.gz: gzip is cut short\n"
    (part,) = feed.parts([folder / "cut.gz"], feed.How("eve"))
    assert [reject.reason for reject in part.rejects] == ["gzip is cut short"]


def test_what_a_version_was_trained_on_has_the_hash_of_files_only(piped: Piped, tmp_path: Path) -> None:
    (tmp_path / "eve.json").write_bytes(lines(EVE[0]))
    assert [file.path for file in hashed([piped(b"x"), tmp_path / "eve.json", Path("-")])] == ["eve.json"]
