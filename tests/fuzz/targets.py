"""What is fed with bytes, and what each may answer.

Always true
  - A target called with any bytes returns, or raises one of its `refuses`: the errors that its callers know.
  - It holds nothing of an input afterwards: no file, no descriptor, no memory beyond its caches.
"""

from __future__ import annotations

import asyncio
import shlex
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np

from cli.options import filtered
from engine.config import load
from engine.errors import BadRecordError, BadRequestError, ConfigError, CorruptionError, FormatError, SourceError
from engine.flows.names import AGENT_MAX, NAME_MAX, URI_MAX, flow_text
from engine.normalize import complete
from engine.search import filters
from engine.sources import FORMATS, detect
from engine.sources.base import SourceSpec
from engine.store import index, manifest
from engine.store.index import MappedIndex
from engine.store.manifest import Embedded, IndexFile, Manifest, SealedRows, Switch
from engine.store.rows import RowMap, RowWriter
from ipc.frames import frame
from ipc.messages import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    Filter,
    Hello,
    Ping,
    Pong,
    decode_reply,
    decode_request,
    encode,
)
from ipc.server import Connection, Server, request_id_of
from tests.events import several
from tests.fuzz.mutate import MSGPACK, TEXT
from tests.packets import client_hello, enhanced, ethernet, header, interface, ipv4, record, section
from tests.property.test_adapters_property import SAMPLES
from tests.store_fixture import ROWS, Store

CORPUS = Path(__file__).with_name("corpus")
GOLDEN = Path(__file__).parents[1] / "golden/protocol_v1.msgpack-hex"


class Target(NamedTuple):
    """seeds: whole inputs to begin from; words: what is put into them."""

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    words: Sequence[bytes]
    refuses: tuple[type[Exception], ...]


def _golden() -> list[bytes]:
    return [bytes.fromhex(line.split()[1]) for line in GOLDEN.read_text().splitlines() if line and line[0] != "#"]


# ---- what crosses a socket ------------------------------------------------------------------------------------------


class _Transport(asyncio.Transport):
    """Keeps what is written; closing is at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return not self.closed

    def pause_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close


class _NoSocket:
    def getsockopt(self, *_: int) -> bytes:
        raise OSError


def frames() -> Target:
    """A connection of a real Server, fed a stream in two pieces: each whole frame after a Hello is handled or costs a
    Failure, what is no frame ends the connection, and nothing of it is left."""

    def handle(connection: Connection, request: Any) -> None:
        connection.reply(Pong(request.request_id, 1))

    loop = asyncio.new_event_loop()
    server = Server(role="read", handle=handle, generation=lambda: 1, name="fuzz", version="0")

    async def feed(data: bytes) -> None:
        connection, transport = Connection(server, _NoSocket()), _Transport()  # type: ignore[arg-type]
        server._open_count += 1
        connection.connection_made(transport)
        cut = len(data) * 2 // 3
        connection.data_received(data[:cut])
        connection.data_received(data[cut:])
        assert len(connection._frames._buffer) <= FRAME_BYTES_MAX + len(data)
        connection.eof_received()
        connection.connection_lost(None)
        assert not server.connections and not server._open_count and connection._read_timer is None
        at, out = 0, transport.written
        while at < len(out):
            size = int.from_bytes(out[at : at + 4], "little")
            decode_reply(bytes(out[at + 4 : at + 4 + size]))  # whatever was said is a reply
            at += 4 + size

    hello = frame(encode(Hello(PROTOCOL_VERSION, "fuzz")))
    bodies = [frame(body) for body in _golden()]
    seeds = [hello + body + frame(encode(Ping(7))) for body in bodies]
    return Target(
        lambda data: loop.run_until_complete(feed(data)), [*seeds, hello, hello + b"".join(bodies)], MSGPACK, ()
    )


def messages() -> Target:
    """A body: what decodes says the same when it is encoded and decoded again."""

    def run(data: bytes) -> None:
        assert 0 <= request_id_of(data) < 1 << 53
        for decode in (decode_request, decode_reply):
            try:
                first = encode(decode(data))
            except (ValueError, RecursionError):
                continue
            assert encode(decode(first)) == first

    return Target(run, _golden(), MSGPACK, ())


# ---- the filter language --------------------------------------------------------------------------------------------


def filter_words() -> Target:
    """The flags of a command line."""
    found: list[Filter | None] = []

    @click.command()
    @filtered
    def command(filter: Filter | None) -> None:
        found.append(filter)

    def run(data: bytes) -> None:
        found.clear()
        try:
            words = shlex.split(data.decode("utf-8", "surrogateescape"))
        except ValueError:
            return
        with command.make_context("fuzz", words) as context:
            command.invoke(context)
        try:
            msgspec.msgpack.decode(msgspec.msgpack.encode(found[0]), type=Filter | None)
        except msgspec.ValidationError:
            pass  # too long for an engine, which says so

    seeds = [
        b"--class MALICIOUS --family DDoS,C2 --kind alert --decision DROP", b"--since 24h --until 2026-01-02T03:04:05Z",
        b"--src 10.0.0.0/8 --dst 2001:db8::/32 --addr 192.0.2.1 --src-port 22,80-90 --dst-port 443 --proto tcp,17",
        b"--score-min 0.1 --score-max 1 --discrepancy-min 0.5 --label '' --firewall-action BLOCK --source lab",
    ]  # fmt: skip
    return Target(run, seeds, TEXT, (click.ClickException, click.exceptions.Exit))


def filter_masks(folder: Path) -> Target:
    """A Filter as a peer sends it, over stored rows."""
    store = Store(folder / "store")
    store.publish(several(80))
    snapshot = store.snapshot()
    store.close()

    def run(data: bytes) -> None:
        try:
            wanted = msgspec.msgpack.decode(data, type=Filter)
        except (ValueError, RecursionError):
            return
        assert filters.mask(snapshot, filters.tests(wanted, snapshot)).shape == (80,)

    given: list[dict[str, Any]] = [
        {"classifications": ["BENIGN"], "families": ["DDoS"], "kinds": ["flow"], "protos": [6, 17]},
        {"src": ["10.0.0.0/8"], "dst": ["2001:db8::/32"], "addr": ["192.0.2.1"], "sources": ["test"]},
        {"src_ports": [(1, 1024)], "dst_ports": [(443, 443)], "since": 5, "until": 1 << 60, "decisions": [""]},
        {"score_min": 0.0, "score_max": 1.0, "discrepancy_min": -1.0, "discrepancy_max": 2.5},
    ]
    words = (*MSGPACK, b"\xa9::ffff:1/", b"\xa30/0", b"\xa4::/0", b"\xd3" + b"\xff" * 8)
    return Target(run, [msgspec.msgpack.encode(one) for one in given], words, (BadRequestError,))


# ---- files of others ------------------------------------------------------------------------------------------------


def capture_seeds() -> list[bytes]:
    dns = b"\x04\xd2\0\x35\0\x1d\0\0\0\1\1\0\0\1" + bytes(6) + b"\1a\1b\0\0\1\0\1"
    frames = [
        ethernet(ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", 6, b"\x04\xd2\0\x50" + bytes(8) + b"\x50\x02" + bytes(6))),
        ethernet(ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", 17, dns)),
        ethernet(ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", 1, b"\x08\0" + bytes(6))),
        ethernet(ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", 47, b"\0\0\x08\0" + ipv4(b"\1\1\1\1", b"\2\2\2\2", 17, bytes(12)))),
        ethernet(ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", 17, bytes(16), 0x2000, 7)),
    ]  # fmt: skip
    seconds = 1_700_000_000_000_000_000
    packets = b"".join(record(seconds + i * 1_000_000, one) for i, one in enumerate(frames))
    blocks = b"".join(enhanced(seconds // 1_000 + i, one) for i, one in enumerate(frames))
    return [header() + packets, header(">") + record(seconds, frames[0], order=">"), section() + interface() + blocks]


def adapter(name: str) -> Target:
    """A whole file, fed in three pieces, with its beginning looked at first; events that come out complete or are
    dead letters."""
    cls = FORMATS[name]

    def run(data: bytes) -> None:
        try:
            detect(data[: 1 << 16], name)
        except SourceError:
            pass
        spec = SourceSpec("t", "file", fingerprint="f")
        cls(spec).prime(data)
        reading = cls(spec)
        edges = [0, len(data) // 3, len(data) * 2 // 3, len(data)]
        parsed = [reading.feed(data[a:b], a) for a, b in pairwise(edges)]
        parsed += [reading.finish(), reading.release()]
        assert 0 <= reading.resume_offset <= len(data)
        for part in parsed:
            for item in part.events:
                try:
                    encode(complete(item))  # type: ignore[arg-type]
                except BadRecordError as e:
                    assert "\n" not in e.reason
            assert all(len(r.reason) <= 512 and len(r.record) <= 1 << 16 for r in part.rejects)

    if name == "pcap":
        return Target(run, capture_seeds(), [w for w in MSGPACK if len(w) < 100], ())
    return Target(run, [SAMPLES[name], *SAMPLES[name].splitlines(keepends=True)], TEXT, ())


def names() -> Target:
    """The first payload bytes of a flow's two directions."""

    def run(data: bytes) -> None:
        half = len(data) // 2
        for proto, port in ((6, 443), (6, 53), (17, 53)):
            for sides in ((data, b""), (data[:half], data[half:])):
                text = flow_text(proto, port, *sides)
                assert text.isascii() and len(text) <= NAME_MAX + URI_MAX + len(" | ") + AGENT_MAX

    dns = bytes.fromhex("000101000001000000000000") + b"\1a\3org\0\0\1\0\1"
    http = b"GET /a?b HTTP/1.1\r\nHost: a.org\r\nUser-Agent: x\r\n\r\n"
    seeds = [client_hello(b"a.org"), dns, len(dns).to_bytes(2, "big") + dns, http]
    return Target(run, seeds, [w for w in MSGPACK if len(w) < 100], ())


def settings(folder: Path) -> Target:
    """flowkin.toml."""
    path = folder / "flowkin.toml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load(path, env={}, flags={"data_dir": "/tmp/x"})

    example = (Path(__file__).parents[2] / "examples/flowkin.toml").read_bytes()
    small = b'[sources.a]\npath = "/var/log/*.json"\nformat = "eve"\ntimezone = "UTC"\n[upgrade.x]\nabove = 0.5\n'
    more = b'[network]\ninternal = ["10.0.0.0/8", "fc00::/7"]\n[readers]\ncount = 2\n[sockets]\nquery_mode = "0660"\n'
    return Target(run, [example, small, more, small + more], TEXT, (ConfigError,))


# ---- files of our own -----------------------------------------------------------------------------------------------


def manifests() -> Target:
    """A manifest as the catalog holds it."""

    def run(data: bytes) -> None:
        found = manifest.decode(data)
        again = manifest.encode(found)  # bytes are compared: a number may be NaN
        assert manifest.encode(manifest.decode(again)) == again
        assert found.row_files >= 0 and found.row_file(0)

    one = IndexFile("attack", 0, 64, "attack-0", 9, b"x" * 16, "ivf_flat", 8)
    other = Embedded("v1", 1, 64, {0: 1}, [SealedRows(0, b"y" * 16)], [one])
    full = Manifest(
        row_file_rows=64, model="v0", count=70, generation=3, sealed=[SealedRows(0, b"z" * 16)], indexes=[one],
        kept=other, switch=Switch(other, 70, 0, 5),
    )  # fmt: skip
    seeds = [manifest.encode(full), manifest.encode(Manifest(row_file_rows=64, model="v0"))]
    return Target(run, seeds, MSGPACK, (FormatError, CorruptionError))


def row_files(folder: Path) -> Target:
    """A row file: no damage of its header or of committed rows is passed over."""
    made = folder / "whole"
    with Store(folder / "rows-store") as store:
        store.publish(several(50))
        rows = store.files()[0]
        columns = {region: getattr(rows, region) for region in ("vectors", "features", "columns")}
        writer = RowWriter(made, 0, ROWS)
        writer.write(0, index_rows(columns, 50))
        writer.sync()
        writer.close()
    whole, path = made.read_bytes(), folder / "rows"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        opened = RowMap(path, 0, ROWS)
        same = data == whole
        if opened.damage(ROWS) == "":  # the uncommitted rows are zeros here, and not of a checksum of 0
            assert same
        if opened.damage(50) == "":
            there = RowMap(made, 0, ROWS)
            for space, vectors in opened.vectors.items():
                assert np.array_equal(vectors[:50].view(np.uint8), there.vectors[space][:50].view(np.uint8))
            assert opened.features[:50].tobytes() == there.features[:50].tobytes()
            assert opened.columns[:50].tobytes() == there.columns[:50].tobytes()
        for row in (0, 49, ROWS - 1):
            opened.wrong(row, opened.vectors)

    return Target(run, [whole], MSGPACK[:10], (CorruptionError,))


def index_rows(columns: dict[str, Any], n: int) -> Any:
    from engine.store.rows import Rows

    vectors = {space: v[:n] for space, v in columns["vectors"].items()}
    return Rows(vectors, columns["features"][:n], columns["columns"][:n])


def indexes(folder: Path) -> Target:
    """An index file: FAISS is shown none that is not, byte by byte, what the manifest names."""
    random, path = np.random.default_rng(1), folder / "index"
    plain = random.random((300, 16), np.float32)
    flood = plain[random.integers(0, 40, 300)]
    whole: dict[bytes, tuple[bytes, int]] = {}
    for vectors in (plain, flood):
        made = index.build([vectors])
        _, checksum = index.write(made, path)
        whole[path.read_bytes()] = checksum, made.nprobe
        path.unlink()
    known = list(whole)

    def run(data: bytes) -> None:
        path.write_bytes(data)
        nearest = min(known, key=lambda one: abs(len(one) - len(data)))
        checksum, nprobe = whole[nearest]
        opened = MappedIndex(path, len(data), checksum, 0, 300, nprobe)  # whatever its size is said to be
        assert data == nearest
        opened.touch()

    return Target(run, known, MSGPACK[:10], (CorruptionError,))


TARGETS = (
    "frames", "messages", "filter-words", "filter-masks", *(f"adapter-{name}" for name in FORMATS), "names", "settings",
    "manifest", "rows", "index",
)  # fmt: skip


def make(name: str, folder: Path) -> Target:
    """One of TARGETS, with its own corpus added. folder: for the files it writes."""
    kind, _, form = name.partition("-")
    plain = {
        "frames": frames, "messages": messages, "filter-words": filter_words, "names": names, "manifest": manifests,
    }  # fmt: skip
    if kind == "adapter":
        target = adapter(form)
    elif name in plain:
        target = plain[name]()
    else:
        of = {"filter-masks": filter_masks, "settings": settings, "rows": row_files, "index": indexes}
        target = of[name](folder)
    return target._replace(seeds=[*target.seeds, *corpus(name)])


def corpus(name: str) -> list[bytes]:
    """What once failed, or says something of its own."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="flowkin-fuzz-")
