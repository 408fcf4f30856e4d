"""Bad input costs one clear sentence and the documented exit status, and the engine goes on."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import subprocess
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.run import heartbeat
from ipc import errors
from ipc.client import Client
from ipc.messages import Filter, Options
from tests.engine_fixture import Engine, Starter, ask, cli
from tests.events import make, ndjson, several, write
from tests.wait import eventually

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def goes_on(filled: Engine):  # type: ignore[no-untyped-def]
    """After all of it: the same processes, and the same answers."""
    pids = [filled.pid("ingest"), *filled.pids()]
    with filled.client() as client:
        before = [(h.seq, h.distance) for h in ask(client, "e000007").hits]
    yield
    assert [filled.pid("ingest"), *filled.pids()] == pids
    with filled.client() as client:
        assert [(h.seq, h.distance) for h in ask(client, "e000007").hits] == before
    assert "Traceback" not in filled.log


def refused(done: subprocess.CompletedProcess[str], status: int, said: str) -> None:
    """One sentence on stderr, nothing on stdout, no traceback."""
    assert done.returncode == status, (done.returncode, done.stderr)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""


# ---- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("query_similar", "no-such-event"), 3, "no event 'no-such-event'"),
        (("show", "no-such-event"), 3, "no event 'no-such-event'"),
        (("label", "no-such-event", "x"), 3, "no event 'no-such-event'"),
        (("query_similar", "e000001", "-k", "0"), 2, "0"),
        (("query_similar", "e000001", "-k", str(10**9)), 2, "1000"),
        (("query_similar", "e000001", "-k", "ten"), 2, "ten"),
        (("query_similar", "e000001", "--space", "tea"), 2, "tea"),
        (("query_similar", "e000001", "--src", "10.0.0.0/99"), 2, "10.0.0.0/99"),
        (("query_similar", "e000001", "--since", "soon"), 2, "soon"),
        (("recent", "-n", "0"), 2, "0"),
        (("ingest", "/nowhere/at/all"), 3, "/nowhere/at/all"),
        (("query_event", "/nowhere/at/all"), 3, "/nowhere/at/all"),
        (("ingest", "--format", "tea", "/dev/null"), 2, "no format 'tea'"),
        (("models", "use", "none-such"), 3, "no model version 'none-such'"),
        (("models", "show", "none-such"), 3, "none-such"),
        (("search", ""), 2, ""),
        (("frobnicate",), 2, "no command 'frobnicate'"),
        (("export",), 2, "one of"),
    ],
)
def test_a_wrong_word_is_one_sentence(filled: Engine, args: tuple[str, ...], status: int, said: str) -> None:
    refused(filled.cli(*args), status, said)


def test_no_engine_is_status_5(tmp_path: Path) -> None:
    for args in (("recent",), ("query_similar", "x"), ("ingest", "/dev/null"), ("stats",), ("label", "x", "y")):
        refused(cli(*args, data_dir=tmp_path), 5, "flowkin start")
    refused(cli("stop", data_dir=tmp_path), 5, "no engine runs")
    refused(cli("stats", data_dir=tmp_path / "none"), 5, "none")
    refused(cli("doctor", data_dir=tmp_path / "none"), 3, "no data directory")


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    done = cli("serve", data_dir=folder)
    assert done.returncode == 1
    assert "can be written to by others (mode 0777)" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "file").write_text("")
    done = cli("serve", data_dir=tmp_path / "file")
    assert done.returncode == 1
    assert "is not a directory" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_who_may_not_enter_is_denied(filled: Engine) -> None:
    """Directory mode 0700: another user gets status 4 and a sentence."""
    program = (
        "import os, sys; from cli.main import main; import cli.run, cli.errors; "
        "import cli.commands.ask, ipc.client, ipc.errors, getpass; "
        "os.setgid(65534); os.setuid(65534); sys.exit(main())"
    )
    import sys

    from tests.engine_fixture import environment

    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "recent", "--data-dir", str(filled.data_dir)],
        env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    config = tmp_path / "flowkin.toml"
    for text, said in (
        ("[readers]\ncount = 0\n", "readers.count"),
        ("[readers]\ncuont = 2\n", "cuont"),
        ("not toml", "is not TOML"),
        ('[sources.x]\nformat = "eve"\n', "path"),
        ('[sources.x]\npath = "/x"\nformat = "tea"\n', "no format 'tea'"),
        ('[sources.x]\npath = "/x"\ntimezone = "Mars/Phobos"\n', "timezone 'Mars/Phobos' is not known"),
        ("[store]\nrow_file_rows = 5\n", "row_file_rows"),
        ('[upgrade.x]\nmetric = "recal"\nbelow = 1\nadvice = "a"\n', "no metric 'recal'; there are recall_at_10, "),
    ):
        config.write_text(text)
        refused(cli("serve", "--config", config, data_dir=tmp_path / "data"), 2, said)
    refused(cli("serve", "--set", "readers.count", data_dir=tmp_path / "data"), 2, "key=value")
    assert not (tmp_path / "data").exists()


# ---- files --------------------------------------------------------------------------------------------------------


def test_bad_lines_go_to_the_dead_letters_and_stop_nothing(start: Starter, tmp_path: Path) -> None:
    engine = start(readers=1)
    good = ndjson(several(10)).splitlines(keepends=True)
    bad = [
        b"not json\n", b'{"event_id":1}\n', b'{"event_id":"x","ts":"never"}\n', b"\xff\xfe\x00\n", b"[]\n",
        b'{"event_id":"y","ts":1,"nonsense":2}\n', b'{"event_id":"z","ts":1,"features":{"tea":1}}\n',
        b'{"event_id":"n","ts":1,"src_ip":"nowhere"}\n',
    ]  # fmt: skip
    file = tmp_path / "mixed.ndjson"
    file.write_bytes(b"".join(a + b for a, b in zip(good, [*bad, b"\n", b"\r\n"], strict=True)))
    done = engine.json("ingest", file, "--format", "ndjson")
    assert (done["accepted"], done["rejected"]) == (10, len(bad))
    letters = [msgspec.json.decode(x) for x in Path(done["dead_letters"]).read_bytes().splitlines()]
    assert len(letters) == len(bad)
    assert all(letter["file"] == str(file) and letter["offset"] >= 0 for letter in letters[:7])
    assert all(len(letter["reason"].splitlines()) == 1 for letter in letters)


@pytest.mark.parametrize("name", ["cut.gz", "random.bin", "empty.ndjson", "cut.ndjson", "cut.pcap"])
def test_a_file_that_is_not_what_it_seems(filled: Engine, tmp_path: Path, name: str) -> None:
    """Cut archives, random bytes, nothing at all: a status and a sentence, what is whole before the cut is stored."""
    path = tmp_path / name
    lines = ndjson(several(20))  # known to the engine already
    match name:
        case "cut.gz":
            blob = gzip.compress(lines)
            path.write_bytes(blob[: len(blob) // 2])
        case "random.bin":
            path.write_bytes(np.random.default_rng(1).bytes(MIB))
        case "empty.ndjson":
            path.write_bytes(b"")
        case "cut.ndjson":
            path.write_bytes(lines[:-50])
        case "cut.pcap":
            path.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + b"\0" * 9)
    done = filled.cli("ingest", path)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert (done.returncode == 0) == (name != "random.bin"), done.stderr
    assert ("dead_letters" in done.stdout) == (name in ("cut.gz", "cut.ndjson", "cut.pcap")), done.stdout
    assert filled.facts()["events"] == 400


# ---- the sockets --------------------------------------------------------------------------------------------------


def test_requests_out_of_range_are_refused_by_name(filled: Engine) -> None:
    client = filled.client()
    model = client.info().facts["model"]
    vector, nan = np.zeros(64, "<f4").tobytes(), np.full(64, np.nan, "<f4").tobytes()
    attack, chronos = Options(space="attack"), Options(space="chronos")
    for wrong, error in (
        (lambda: ask(client, "e000001", top_k=0), errors.BadRequestError),
        (lambda: ask(client, "e000001", top_k=10**9), errors.BadRequestError),
        (lambda: ask(client, "e000001", space="tea"), errors.UnknownSpaceError),
        (lambda: ask(client, ""), errors.BadRequestError),
        (lambda: ask(client, "x" * 10_000), errors.BadRequestError),
        (lambda: ask(client, "e000001", weights={"attack": float("nan")}), errors.BadRequestError),
        (lambda: ask(client, "e000001", weights={"attack": -1.0}), errors.BadRequestError),
        (lambda: ask(client, "e000001", filter=Filter(src=["tea"])), errors.BadRequestError),
        (lambda: client.query_vector(vector, "other", options=attack), errors.WrongModelError),
        (lambda: client.query_vector(b"123", model, options=attack), errors.BadRequestError),
        (lambda: client.query_vector(vector, model), errors.BadRequestError),
        (lambda: client.query_vector(vector, model, options=chronos), errors.BadRequestError),
        (lambda: client.query_vector(nan, model, options=attack), errors.BadRequestError),
        (lambda: client.search_text("x", options=attack), errors.BadRequestError),
        (lambda: client.search_text("", options=Options(space="sbert")), errors.BadRequestError),
        (lambda: client.query_events([make(1, src_ip="nowhere")]), errors.BadRequestError),
        (lambda: client.explain("e000001", "none"), errors.NotFoundError),
        (lambda: client.explain("e000001", "e000002", space="fused"), errors.BadRequestError),
        (lambda: client.label("e000001", "x" * 1_000), errors.BadRequestError),
        (lambda: client.label("e000001", "\U0001f600" * 128), errors.BadRequestError),
        (lambda: client.use_model("../../etc"), errors.NotFoundError),
        (lambda: client.add_model("x", {"card.json": b"{}"}), errors.ClientError),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            wrong()
        assert len(str(caught.value).splitlines()) == 1
        assert "the engine's log says more" not in str(caught.value)
    assert client.ping().generation > 0


def test_the_largest_question_is_answered(filled: Engine) -> None:
    answer = ask(filled.client(), "e000001", top_k=1_000)
    assert len(answer.hits) > 0
    assert sum(hit.count for hit in answer.hits) == 399


@pytest.mark.parametrize("which", ["query_socket", "write_socket"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ten_megabytes_of_garbage_cost_the_connection_only(filled: Engine, which: str, seed: int) -> None:
    """Random bytes; a huge length; and frames of random bytes after a proper Hello."""
    path = str(getattr(filled.layout, which))
    garbage = np.random.default_rng(seed).bytes(10 * MIB)
    if seed == 1:
        garbage = struct.pack("<I", (1 << 32) - 1) + garbage
    elif seed == 2:
        from ipc.frames import frame
        from ipc.messages import PROTOCOL_VERSION, Hello, encode

        frames = [frame(garbage[i : i + 60_000]) for i in range(0, len(garbage), 60_000)]
        garbage = frame(encode(Hello(PROTOCOL_VERSION, "garbage"))) + b"".join(frames)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(path)
        try:
            sock.sendall(garbage)
            while sock.recv(1 << 20):
                if seed == 2:
                    break
        except (ConnectionResetError, BrokenPipeError):
            pass
    with Client.for_data_dir(filled.data_dir) as client:
        assert client.ping().generation > 0
        assert client.get(["e000001"]).missing == []
        with pytest.raises(errors.NotFoundError):
            client.label("none", "x")


def test_a_write_on_the_query_socket_names_the_right_one(filled: Engine) -> None:
    wrong = Client(filled.layout.query_socket, filled.layout.query_socket)
    with wrong, pytest.raises(errors.WrongSocketError, match=r"write\.sock"):
        wrong.ingest("ndjson", [make(1)])


def test_a_client_that_goes_away_in_the_middle_costs_nothing(filled: Engine) -> None:
    """Seen (each is an error), and not counted any longer than it is there."""

    def figures() -> tuple[int, int]:
        """Errors and connections from pages that are stamped after now; to look costs no connection."""
        now_ns = time.monotonic_ns()
        paths = [filled.layout.heartbeat(f"reader-{i}") for i in range(filled.readers)]
        eventually(lambda: all(beat is not None and beat.stamp_ns > now_ns for beat in map(heartbeat.read, paths)))
        beats = [beat for beat in map(heartbeat.read, paths) if beat is not None]
        return sum(beat.errors for beat in beats), sum(beat.connections for beat in beats)

    errors_before, before = figures()  # connections that earlier tests still hold
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(filled.layout.query_socket))
            sock.sendall(b"\x10\x00\x00")

    def forgotten() -> bool:
        seen, connections = figures()
        return seen == errors_before + 20 and connections <= before

    eventually(forgotten)


def test_an_ingest_without_engine_is_not_half_done(tmp_path: Path) -> None:
    refused(cli("ingest", write(tmp_path / "e.ndjson", several(3)), data_dir=tmp_path), 5, "flowkin start")
