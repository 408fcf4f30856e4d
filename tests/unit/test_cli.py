"""The commands: what they send, print and return. A fake engine answers with fixed replies."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cli import options as cli_options
from cli.group import FILES
from cli.main import flowkin as PROGRAM
from cli.process import _why as why
from cli.run import run
from cli.session import Session
from cli.shell import Shell, Words, history_path
from engine import features
from engine.store import coverage, dead_letters
from engine.store.dead_letters import Tally
from ipc.errors import ConnectError
from ipc.event import Annotation, Event, Hit
from ipc.frames import FrameReader, frame
from ipc.messages import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    TOP_K_MAX,
    Answer,
    Answers,
    Done,
    ErrorCode,
    Facts,
    Failure,
    Filter,
    Found,
    Get,
    Hello,
    Info,
    Label,
    List,
    Models,
    Ping,
    Pong,
    Purge,
    QuerySimilar,
    Recent,
    Reject,
    Reply,
    Request,
    SearchText,
    Stats,
    Stored,
    Welcome,
    decode_request,
    encode,
)

T0 = 1_778_000_000_000_000_000
ROOT = Path(__file__).parents[2]
CLIENT_COMMANDS = ["query_similar x", "search x", "list", "recent", "show x", "stats", "info", "status", "models",
                   "label x y", "models show v", "models use v"]  # fmt: skip


def event(number: int) -> Event:
    return Event(
        event_id=f"e{number}", source="lab", ts=T0 + number, ts_start=T0, src_ip="10.0.0.1", dst_ip="10.0.0.2",
        src_port=1, dst_port=2, proto=6, family="DDoS", classification="MALICIOUS",
    )  # fmt: skip


class FakeEngine:
    """Both sockets of an engine; `handle` gives the reply to a request."""

    def __init__(self, run_dir: Path, handle: Callable[[Any], Reply]) -> None:
        self.handle, self.seen, self.connections = handle, [], 0
        self.sockets = []
        for name in ("query.sock", "write.sock"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(run_dir / name))
            listener.listen()
            self.sockets.append(listener)
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        reader = FrameReader(FRAME_BYTES_MAX)
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(1 << 16):
                reader.feed(data)
                while (body := reader.next_frame()) is not None:
                    request: Request = decode_request(body)
                    if isinstance(request, Hello):
                        reply: Reply = Welcome(0, PROTOCOL_VERSION, 1, "fake", "0", 7, FRAME_BYTES_MAX, TOP_K_MAX)
                    else:
                        self.seen.append(request)
                        reply = self.handle(request)
                    connection.sendall(frame(encode(reply)))

    def close(self) -> None:
        for listener in self.sockets:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


COVERED = coverage.of(np.array([[6.0, np.nan, 0.5] * 35, [6.0, np.nan, 0.0] * 35, [6.0] * 105], np.float32))


def stats_facts(features: list[str]) -> dict[str, Any]:
    """Of an engine with two sources; one fills what COVERED says, the other was never good for an event."""
    rows = [
        {"name": "lab", "format": "eve", "events": 3, "duplicates": 1, "rejected": 2, **coverage.facts(COVERED)},
        {"name": "bad", "format": "", "events": 0, "duplicates": 0, "rejected": 9, **coverage.facts(None)},
    ]  # fmt: skip
    tallies = {"lab": {"port is not in 0..65535": Tally(2, T0, "/x/eve.json", 1_234)},
               "bad": {"\x1b[31mno\u202ething": Tally(9, T0, "bad", -1)}}  # fmt: skip
    letters = {"bytes": 5_000, **dead_letters.facts(tallies)}
    found = {name: coverage.columns(COVERED) for name in features if name == "lab"}
    return {"version": "0", "events": 3, "sources": rows, "features": found, "dead_letters": letters}


def answering(request: Any) -> Reply:
    i = request.request_id
    match request:
        case Ping():
            return Pong(i, 7)
        case Info():
            return Facts(i, 7, {"version": "0", "events": 3, "sources": ["lab"]})
        case Stats():
            return Facts(i, 7, stats_facts(request.features))
        case Models():
            return Facts(i, 7, {"current": "v1", "versions": {"v1": {"seed": 3}, "v2": {"seed": 4}}})
        case QuerySimilar(id="missing"):
            return Failure(i, ErrorCode.NOT_FOUND, "no event 'missing'; `flowkin recent` names stored ones")
        case QuerySimilar(id="busy"):
            return Failure(i, ErrorCode.OVERLOADED, "too many requests", 40)
        case QuerySimilar(id="denied"):
            return Failure(i, ErrorCode.DENIED, "user 7 may not \x1b[31mquery")
        case QuerySimilar() | SearchText():
            hits = [Hit(n, n / 10, 1.0, 1, event(n), Annotation()) for n in (1, 2, 3)]
            query = event(9) if isinstance(request, QuerySimilar) else None
            return Answers(i, 7, [Answer("fused", "v1", "l2", True, 3, 3, 50, query, hits, 1.0)])
        case Get(ids=["missing"]):
            return Found(i, 7, [], ["missing"])
        case Get() | Recent():
            return Found(i, 7, [Stored(1, event(1), None, b"", b"raw record")])
        case List(after_seq=-1):
            return Found(i, 7, [Stored(n, event(n)) for n in range(request.limit)][:5], [], 4)
        case List():
            return Found(i, 7, [Stored(5, event(5))], [], -1)
        case Label():
            return Done(i, 8)
        case Purge():
            return Done(i, 7, {"events": 3, "dead_letters": 0, "dead_letters_left": 0})
    return Failure(i, ErrorCode.BAD_REQUEST, f"{type(request).__name__} is not expected")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    (tmp_path / "run").mkdir()
    fake = FakeEngine(tmp_path / "run", answering)
    yield fake
    fake.close()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FLOWKIN_")]:
        monkeypatch.delenv(name)


class Result:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def flowkin(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Result]:
    def call(*args: str, where: bool = True) -> Result:
        session = Session()
        try:
            status = run([*args, *(("--data-dir", str(tmp_path)) if where else ())], session)
        finally:
            session.close()
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return call


# ---- results ------------------------------------------------------------------------------------------------------
def test_query_similar_json(engine, flowkin):
    got = flowkin("query_similar", "e9", "-k", "3", "--space", "attack", "--json")
    assert got.status == 0 and got.err == ""
    assert [hit["event_id"] for hit in got.json()["hits"]] == ["e1", "e2", "e3"]
    asked = engine.seen[-1]
    assert isinstance(asked, QuerySimilar) and asked.id == "e9"
    assert (asked.options.top_k, asked.options.space, asked.options.collapse) == (3, "attack", True)


def test_several_ids_are_a_list_in_json_and_lines_in_ndjson(engine, flowkin):
    assert len(flowkin("query_similar", "e1", "e2", "e3", "--json").json()) == 3
    assert len(flowkin("query_similar", "e1", "e2", "--ndjson").out.splitlines()) == 2
    assert flowkin("query_similar", "e1", "--ndjson").out.count("\n") == 1


@pytest.mark.parametrize(("ids", "answered"), [(["e1", "e2", "missing"], 2), (["missing", "e1"], 0)])
def test_a_list_in_json_that_an_error_ends_is_json(engine, flowkin, ids, answered):
    got = flowkin("query_similar", *ids, "--json")
    assert got.status == 3 and "missing" in got.err and len(got.json()) == answered


def test_a_purge_that_is_refused_at_the_question_says_so(engine, flowkin, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    got = flowkin("purge", "--addr", "203.0.113.7")
    assert got.status == 1 and "Remove 3 events" in got.err and "nothing was removed" in got.err
    assert [asked.dry_run for asked in engine.seen] == [True]


def test_an_end_of_input_at_the_question_removes_nothing(engine, flowkin, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    got = flowkin("purge", "e1")
    assert got.status == 1 and got.err.splitlines()[-1] == "flowkin: nothing was removed"
    assert [asked.dry_run for asked in engine.seen] == [True]


@pytest.mark.parametrize("lines", ["", "e1\n"])
def test_ids_from_stdin_and_a_filter_purge_nothing(engine, flowkin, monkeypatch, lines):
    """Also where none came: what is left would be the filter alone."""
    stdin = io.StringIO(lines)
    monkeypatch.setattr(sys, "stdin", stdin)
    got = flowkin("purge", "-", "--family", "C2", "--yes")
    assert got.status == 2 and "name the events" in got.err
    assert engine.seen == [] and stdin.tell() == 0


def test_a_purge_of_ids_from_stdin_takes_yes_for_nobody_can_be_asked(engine, flowkin, monkeypatch):
    stdin = io.StringIO("e1\n\ne2\n")
    monkeypatch.setattr(sys, "stdin", stdin)
    got = flowkin("purge", "-")
    assert got.status == 2 and "--yes or --dry-run" in got.err
    assert engine.seen == [] and stdin.tell() == 0
    assert flowkin("purge", "-", "--yes", "--json").json()["events"] == 3
    assert [(asked.ids, asked.dry_run) for asked in engine.seen] == [(["e1", "e2"], False)]


def test_a_purge_of_more_ids_than_a_message_holds_is_several(engine, flowkin, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"e{i}\n" for i in range(2_500))))
    assert flowkin("purge", "-", "--yes", "--json").json()["events"] == 9
    assert [len(asked.ids) for asked in engine.seen if isinstance(asked, Purge)] == [1_024, 1_024, 452]
    assert [name for asked in engine.seen if isinstance(asked, Purge) for name in asked.ids][::2_499] == ["e0", "e2499"]


@pytest.mark.parametrize("command", ["query_similar"])
def test_ids_from_a_pipe_are_answered_as_they_come(engine, tmp_path, command):
    """Nothing came before the ninth, or the end."""
    environment = os.environ | {"FLOWKIN_DATA_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "cli", command, "-", "--ndjson"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment, cwd=ROOT, text=True,
    ) as asking:  # fmt: skip
        assert asking.stdin is not None and asking.stdout is not None
        for name in ("e1", "e2"):
            asking.stdin.write(f"{name}\n")
            asking.stdin.flush()
            assert json.loads(asking.stdout.readline())["generation"] == 7
        asking.stdin.close()
        assert asking.wait(30) == 0


@pytest.mark.parametrize("how", ["--yes", "--dry-run"])
def test_a_purge_of_no_id_from_stdin_removes_nothing_and_says_so(engine, flowkin, monkeypatch, tmp_path, how):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    got = flowkin("purge", "-", how, "--backups", str(tmp_path / "nowhere"))
    assert (got.status, got.out) == (0, "0 events purged: no id came from stdin\n")
    assert flowkin("purge", "-", how, "--json").json() == {"generation": 7, "events": 0}
    assert not any(isinstance(asked, Purge) for asked in engine.seen)


def test_ids_from_stdin(engine, flowkin, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("e1\n\n e2 \n"))
    assert len(flowkin("query_similar", "-", "--json").json()) == 2
    assert sorted(r.id for r in engine.seen) == ["e1", "e2"]


@pytest.mark.parametrize("name", ["query_similar", "query-similar", "Query-Similar", "similar"])
def test_names_with_underscore_and_hyphen(engine, flowkin, name):
    assert flowkin(name, "e1", "--json").status == 0


def test_options_with_underscore(engine, flowkin):
    assert flowkin("query_similar", "e1", "--top_k", "2", "--no_collapse", "--json").status == 0
    assert engine.seen[-1].options.top_k == 2 and engine.seen[-1].options.collapse is False


def test_all_filter_flags_reach_the_engine(engine, flowkin):
    got = flowkin(
        "list", "--class", "malicious,SUSPICIOUS", "--family", "ddos", "--family", "C2", "--source", "lab", "--kind",
        "flow", "--decision", "drop", "--label", "", "--since", "2026-05-05T16:53:20Z", "--until",
        "2026-05-06T00:00:00.000000001Z", "--src", "10.1.2.3/8", "--dst", "2001:db8::1", "--addr", "10.0.0.1",
        "--src-port", "1024-65535", "--dst-port", "80,443", "--proto", "tcp,17", "--score-min", "0.5", "--score-max",
        "1", "--discrepancy-min", "0.1", "--discrepancy-max", "0.9", "--json",
    )  # fmt: skip
    assert got.status == 0, got.err
    assert engine.seen[0].filter == Filter(
        classifications=["MALICIOUS", "SUSPICIOUS"], families=["DDoS", "C2"], sources=["lab"], kinds=["flow"],
        decisions=["DROP"], labels=[""], since=T0, until=1_778_025_600_000_000_001, src=["10.0.0.0/8"],
        dst=["2001:db8::1"], addr=["10.0.0.1"], src_ports=[(1024, 65535)], dst_ports=[(80, 80), (443, 443)],
        protos=[6, 17], score_min=0.5, score_max=1.0, discrepancy_min=0.1, discrepancy_max=0.9,
    )  # fmt: skip


def test_a_word_that_says_of_no_family_is_refused_and_purges_nothing(engine, flowkin):
    for command in ("list", "purge"):
        got = flowkin(command, "--family", "malicious", "--json")
        assert got.status == 2 and "no family is called so" in got.err
    assert engine.seen == []
    assert flowkin("list", "--family", "unknown", "--json").status == 0
    assert engine.seen[0].filter == Filter(families=["Unknown"])


def test_no_filter_flag_means_no_filter(engine, flowkin):
    flowkin("query_similar", "e1", "--json")
    assert engine.seen[-1].options.filter is None


def test_query_flags_reach_the_engine(engine, flowkin):
    got = flowkin(
        "query_similar", "e1", "--before", "--other-episodes", "--no-collapse", "--explain", "--weights",
        "chronos=1,attack=2", "--min-generation", "9", "--timeout", "2.5", "--json",
    )  # fmt: skip
    assert got.status == 0, got.err
    o = engine.seen[-1].options
    assert (o.before, o.other_episodes, o.collapse, o.explain, o.min_generation) == (True, True, False, True, 9)
    assert o.weights == {"chronos": 1.0, "attack": 2.0} and 2_000 < o.deadline_ms <= 2_500


def test_list_goes_on_from_page_to_page(engine, flowkin):
    assert [e["event_id"] for e in flowkin("list", "--all", "--json").json()["events"]] == [f"e{n}" for n in range(6)]
    assert [r.after_seq for r in engine.seen] == [-1, 4]
    assert len(flowkin("list", "-n", "2", "--ndjson").out.splitlines()) == 2


def test_show_raw_and_json(engine, flowkin):
    assert flowkin("show", "e1", "--raw").out == "raw record\n"
    assert flowkin("show", "e1", "--raw", "--json").json()["raw"] == "raw record"
    assert flowkin("show", "e1", "--json").json()["event_id"] == "e1"


def test_label_says_who(engine, flowkin):
    got = flowkin("label", "lab/e1", "true positive", "--by", "ana", "--json").json()
    assert got == {"generation": 8, "event_id": "lab/e1", "label": "true positive", "labelled_by": "ana"}
    assert (engine.seen[-1].id, engine.seen[-1].label, engine.seen[-1].by) == ("lab/e1", "true positive", "ana")


def test_a_label_is_by_a_number_where_the_user_has_no_name(engine, flowkin, monkeypatch):
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert flowkin("label", "lab/e1", "x", "--json").json()["labelled_by"] == f"uid {os.getuid()}"


def test_facts_are_passed_through(engine, flowkin):
    assert flowkin("status", "--json").json()["running"] is True
    assert flowkin("models", "show", "v2", "--json").json()["seed"] == 4
    assert flowkin("models", "show", "v9").status == 3
    assert flowkin("models", "list", "--json").json()["current"] == "v1"


def test_stats_say_what_each_source_fills(engine, flowkin):
    got = flowkin("stats", "--json").json()
    assert engine.seen[-1].features == [] and got["generation"] == 7
    lab, bad = got["sources"]
    assert (lab["features_filled"], lab["coverage_of"], lab["coverage_mean"]) == (105, 105, 81.67)
    assert (lab["features_constant"], lab["constant_share"], lab["missing_share"]) == (35, 0.333333, 0.222222)
    assert lab["groups"]["time"] == [17, 17] and sum(of for _, of in lab["groups"].values()) == 105
    assert bad["features_filled"] is bad["coverage_mean"] is bad["groups"] is None
    reasons = got["dead_letters"]["reasons"]
    assert [(r["count"], r["source"], r["latest_at"]) for r in reasons] == [
        (9, "bad", "2026-05-05T16:53:20Z"), (2, "lab", "2026-05-05T16:53:20Z"),
    ]  # fmt: skip

    text = flowkin("stats").out
    for part in ("105/105", "22.2 %", "33.3 %", "time 17/17", "11 dead letters (4.9 KiB)", "/x/eve.json at 1,234"):
        assert part in text, part
    assert "\\x1b[31mno\\u202ething" in text and "\x1b" not in text


def test_every_feature_of_the_sources_asked_for(engine, flowkin):
    got = flowkin("stats", "--features", "--json").json()
    (lab,) = got["sources"]
    assert [f["feature"] for f in lab["features"]] == list(features.NAMES)
    assert lab["features"][0] == {
        "feature": "protocol_number", "group": "id", "unit": "-", "present": 3, "missing_share": 0.0, "zeros": 0,
        "min": 6.0, "max": 6.0, "constant": True,
    }  # fmt: skip
    assert [lab["features"][1][k] for k in ("present", "min", "max", "constant")] == [1, 6.0, 6.0, False]
    assert [lab["features"][2][k] for k in ("present", "zeros", "min", "max")] == [3, 1, 0.0, 6.0]
    assert flowkin("stats", "--source", "lab", "--json").json() == got
    text = flowkin("stats", "--source", "lab").out
    assert "105/105 features filled, 35 of them constant" in text
    assert text.count("constant") == 36 and text.count("33.3 %") == 70 and "dead letter" not in text
    missing = flowkin("stats", "--source", "lab,nobody")
    assert (missing.status, missing.out) == (3, "") and "nobody" in missing.err


def test_dead_letters_are_shown_newest_first(flowkin, tmp_path):
    assert flowkin("dead_letters").out == "no dead letter\n"
    assert flowkin("dead_letters", "--json").json() == []
    path = tmp_path / "dead_letters.ndjson"
    rejects = [Reject(f"/f\x1b{n}", n - 1, f"bad {n}", b"\xff\x1b[31m" + b"x" * 500) for n in range(3)]
    dead_letters.append(path, rejects, T0)
    got = flowkin("dead-letters", "-n", "2", "--json").json()
    assert [(x["reason"], x["offset"], x["at"]) for x in got] == [
        ("bad 2", 1, "2026-05-05T16:53:20+00:00"), ("bad 1", 0, "2026-05-05T16:53:20+00:00"),
    ]  # fmt: skip
    assert base64.b64decode(got[0]["record_base64"]) == rejects[2].record and got[0]["record"].startswith("\ufffd\x1b")
    assert [json.loads(x)["reason"] for x in flowkin("dead_letters", "--reason", "BAD 0", "--ndjson").out.splitlines()]
    text = flowkin("dead_letters").out
    assert "\x1b" not in text and "\\x1b[31mxx" in text and max(map(len, text.splitlines())) < 300
    assert [line.split()[-1] for line in text.splitlines()[::2]] == ["2", "1", "0"]


def test_where_the_engine_is(engine, flowkin, tmp_path, monkeypatch):
    sock = str(tmp_path / "run" / "query.sock")
    assert flowkin("stats", "--socket", sock, "--json", where=False).status == 0
    assert flowkin("label", "a", "b", "--socket", sock, "--json", where=False).status == 0  # write.sock beside it
    assert flowkin("--data-dir", str(tmp_path), "stats", "--json", where=False).status == 0
    monkeypatch.setenv("FLOWKIN_DATA_DIR", str(tmp_path))
    assert flowkin("stats", "--json", where=False).status == 0
    monkeypatch.setenv("FLOWKIN_DATA_DIR", "/nowhere")
    assert flowkin("stats", "--json").status == 0  # a flag beats the environment
    assert flowkin("--data-dir", str(tmp_path), "stats", where=False).status == 0


def test_a_configured_socket_is_found(engine, flowkin, tmp_path):
    other = tmp_path / "dd"
    other.mkdir()
    (other / "flowkin.toml").write_text(f'[sockets]\nquery = "{tmp_path}/run/query.sock"\n')
    assert flowkin("stats", "--json", "--data-dir", str(other), where=False).status == 0


# ---- files --------------------------------------------------------------------------------------------------------
def test_a_device_is_written_and_stays_one(engine, flowkin, tmp_path):
    """A terminal of our own, by a link: beside it no file can be made, whoever runs this."""
    ours, theirs = os.openpty()
    try:
        tty.setraw(theirs)
        link = tmp_path / "device"
        link.symlink_to(os.ttyname(theirs))
        got = flowkin("export", "--ndjson", str(link), "--dst", "10.0.0.2")
        assert (got.status, got.out) == (0, f"6 events in {link}\n"), got.err
        assert link.is_symlink() and link.is_char_device() and os.read(ours, 8) == b'{"event_'
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_fifo_gets_all_of_it_and_stays_one(engine, flowkin, tmp_path):
    fifo, got = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    reader.start()
    done = flowkin("generate", "--events", "300", "--out", str(fifo), where=False)
    assert done.status == 0 and fifo.is_fifo()
    reader.join()
    assert len(got[0].splitlines()) == 300


def test_a_fifo_whose_reader_leaves_is_an_error(engine, flowkin, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: fifo.open("rb").close(), daemon=True)
    reader.start()
    done = flowkin("generate", "--events", "300", "--out", str(fifo), where=False)
    assert done.status == 1 and "left before the end" in done.err and fifo.is_fifo()
    reader.join()


def test_stdout_by_its_other_name_is_stdout(tmp_path):
    """Opened anew it would be cut, or replaced; and what is said of it would stand among the events."""
    log = tmp_path / "log"
    log.write_text("kept\n")
    with log.open("ab") as file:
        command = [sys.executable, "-m", "cli", "generate", "--events", "2", "--out", "/dev/fd/1"]
        assert subprocess.run(command, cwd=ROOT, stdout=file, timeout=30).returncode == 0
    kept, *events = log.read_text().splitlines()
    assert kept == "kept" and [bool(json.loads(line)["event_id"]) for line in events] == [True, True]


@pytest.mark.parametrize("kind", ["--ndjson", "--parquet"])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_points_to_is_replaced(engine, flowkin, tmp_path, kind, there):
    folder = tmp_path / "folder"
    folder.mkdir()
    link, target = tmp_path / "link", folder / "target"
    link.symlink_to("folder/target")
    if there:
        target.write_text("old")
    assert flowkin("export", kind, str(link)).status == 0
    assert link.is_symlink() and target.stat().st_size > 100
    assert target.read_bytes()[:4] == (b"PAR1" if kind == "--parquet" else b'{"ev')
    assert list(folder.iterdir()) == [target]


@pytest.mark.parametrize("name", ["-", "/dev/fd/1", "fifo", "."])
def test_parquet_is_written_whole_or_not_at_all(engine, flowkin, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    got = flowkin("export", "--parquet", name)
    assert (got.status, got.out, got.err.count("\n")) == (2, "", 1) and f"{name} is no plain file" in got.err
    assert sorted(os.listdir()) == ["fifo", "run"]


def test_an_export_that_fails_leaves_what_was_there(engine, flowkin, tmp_path, monkeypatch):
    def broken(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.export._flat", broken)
    path = tmp_path / "out.parquet"
    path.write_text("old")
    got = flowkin("export", "--parquet", str(path))
    assert (got.status, got.err) == (1, f"flowkin: {path}: no space left on device\n")
    assert path.read_text() == "old" and sorted(os.listdir(tmp_path)) == ["out.parquet", "run"]


# ---- errors -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "args, status, says",
    [
        (("query_similar", "missing"), 3, "missing"),
        (("show", "missing"), 3, "missing"),
        (("query_similar", "busy"), 6, "40 ms"),
        (("query_similar", "denied"), 4, "\\x1b[31m"),
        (("query_similar", "e1", "-k", "0"), 2, "1<=x<=1000"),
        (("query_similar", "e1", "-k", "1000000000"), 2, "1000000000"),
        (("query_similar", "e1", "--space", "euclid"), 2, "euclid"),
        (("query_similar", "e1", "--weights", "chronos=-1"), 2, "chronos=-1"),
        (("query_similar", "e1", "--weights", "chronos=0"), 2, "above 0"),
        (("query_similar", "e1", "--weights", "attack=1", "--space", "attack"), 2, "fused"),
        (("query_similar",), 2, "ID"),
        (("query_similar", "e1", "--json", "--ndjson"), 2, "exclude"),
        (("query_similr", "e1"), 2, "did you mean query_similar"),
        (("list", "--since", "whenever"), 2, "whenever"),
        (("list", "--since", "1h", "--until", "2h"), 2, "--since"),
        (("list", "--dst-port", "90-80"), 2, "90-80"),
        (("list", "--dst-port", "70000"), 2, "70000"),
        (("list", "--proto", "foo"), 2, "foo"),
        (("list", "--src", "10.0.0.300"), 2, "10.0.0.300"),
        (("list", "--class", "EVIL"), 2, "EVIL"),
        (("list", "--score-min", "0.9", "--score-max", "0.1"), 2, "--score-min"),
        (("list", "--score-min", "1.5"), 2, "1.5"),
        (("recent", "--frob"), 2, "--frob"),
        (("export",), 2, "--ndjson"),
        (("export", "--legacy", "/nowhere/at/all", "--family", "DDoS"), 2, "--legacy"),
        (("ingest", "/nowhere/at/all.json"), 3, "/nowhere/at/all.json"),
        (("ingest", "--format", "frob", __file__), 2, "frob"),
        (("ingest", "--timezone", "Mars/Olympus", __file__), 2, "Mars/Olympus"),
        (("query_event", "/nowhere/at/all.json"), 3, "/nowhere/at/all.json"),
    ],
)
def test_an_error_is_one_sentence_and_its_status(engine, flowkin, args, status, says):
    got = flowkin(*args)
    assert got.status == status
    assert got.out == ""
    assert got.err.count("\n") == 1 and says in got.err and "Traceback" not in got.err
    assert got.err.startswith("flowkin")


QUIT = """
import sys
from cli import main
from cli.errors import Quit
from cli.run import run
from cli.session import Session
def found(**given):
    print("finding" * 1_000)
    raise Quit(7)
main.flowkin.get_command(None, "doctor").callback = found
sys.exit(run(["doctor"], Session()))"""


@pytest.mark.parametrize(("to", "status"), [("cat > /dev/null", 7), ("true", 7)])
def test_a_command_that_found_something_says_so_by_its_status_where_nobody_listens(to: str, status: int) -> None:
    """Not 120, with a complaint of the interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(QUIT)} | {to}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")


def test_a_full_disk_behind_stdout_is_one_sentence() -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "cli", "--version"]
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"no space left" in done.stderr


@pytest.mark.parametrize("command", CLIENT_COMMANDS)
def test_without_an_engine(flowkin, command):
    got = flowkin(*command.split())
    assert got.status == 5 and got.out == "" and got.err.count("\n") == 1
    assert "flowkin start" in got.err


@pytest.mark.parametrize("command", CLIENT_COMMANDS)
def test_without_saying_where(flowkin, command):
    got = flowkin(*command.split(), where=False)
    assert got.status == 2 and "--data-dir" in got.err


def test_networks_to_train_with_are_looked_at_before_anything_is_read(capsys, tmp_path):
    words = ["train", "--data", str(tmp_path / "x.csv"), "--out", str(tmp_path / "out"), "--internal", "foo"]
    assert run(words, Session()) == 2
    assert "'foo' is neither an address nor a network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_socket_that_may_not_be_reached_is_denied(flowkin, monkeypatch):
    def refused(self: Any, *args: Any, **kw: Any) -> None:
        raise ConnectError("/x/query.sock", "no engine") from PermissionError(13, "Permission denied")

    monkeypatch.setattr("ipc.client.Client.stats", refused)
    got = flowkin("stats")
    assert got.status == 4 and "/x/query.sock" in got.err and got.err.count("\n") == 1


def test_a_name_beyond_the_limits_of_a_socket_path(flowkin):
    got = flowkin("stats", "--data-dir", "/" + "x" * 300, where=False)
    assert got.status != 0 and got.err.count("\n") == 1 and "Traceback" not in got.err


def test_stop_and_doctor_without_a_data_directory(flowkin, tmp_path):
    assert flowkin("stop", "--data-dir", str(tmp_path / "none"), where=False).status == 3
    got = flowkin("stop")
    assert got.status == 5 and "no engine runs" in got.err


def test_stop_does_not_believe_a_stale_pid_file(flowkin, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "supervisor.pid").write_text(f"{os.getpid()}\n")
    assert flowkin("stop").status == 5  # and this process is still here


@pytest.mark.parametrize(
    "setting, says",
    [("readers.count=0", "readers.count"), ("frob=1", "frob"), ("readers", "key=value"), ("readers.count=x", "count")],
)
def test_a_bad_setting_is_refused_before_anything_starts(flowkin, tmp_path, setting, says):
    for command in ("serve", "start"):
        got = flowkin(command, "--set", setting)
        assert got.status == 2 and says in got.err and got.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_settings_reach_the_engine(tmp_path, monkeypatch):
    session = Session()
    session.point(data_dir=tmp_path)
    (tmp_path / "flowkin.toml").write_text("[readers]\ncount = 3\n[ingest]\nsave_events = 7\n")
    monkeypatch.setenv("FLOWKIN_INGEST__SAVE_EVENTS", "9")
    config = session.config(None, {"readers.count": None}, ["ingest.save_after_ms=20", "log.level=debug"])
    assert (config.readers.count, config.ingest.save_events, config.ingest.save_after_ms) == (3, 9, 20)
    assert config.log.level == "debug" and config.data_dir == str(tmp_path)
    assert session.config(None, {"readers.count": 5}).readers.count == 5


def test_debug_shows_where(engine, flowkin, monkeypatch):
    def broken(self: Session) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(Session, "client", broken)
    got = flowkin("stats")
    assert got.status == 1 and "--debug" in got.err and got.err.count("\n") == 1
    got = flowkin("--debug", "stats")
    assert got.status == 1 and "Traceback" in got.err


# ---- as a process -------------------------------------------------------------------------------------------------
IMPORTS = """
import sys, time
sys.argv = ["flowkin", *sys.argv[1:]]
from cli.main import main
status = main()
heavy = {"numpy", "faiss", "lmdb", "torch", "rich", "prompt_toolkit", "onnxruntime", "engine.sources", "asyncio"}
files = sorted(name for name in sys.modules if name.startswith("cli.commands."))
unasked = [] if "--help" in sys.argv[1] else files[1:]
print(",".join([*sorted(heavy & set(sys.modules)), *unasked]), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize(
    "command",
    ["query_similar e1 --json", "query_similar e1 --explain --json", "query_similar e1", "query_similar e1 e2 --ndjson",
     "search x --json", "list --json", "recent --json", "stats --json", "info --json", "status --json", "recent",
     "models --json", "label a b --json", "show e1 --raw --json", "--help", "query_similar --help"],
)  # fmt: skip
def test_imports_are_lazy(engine, tmp_path, command):
    environment = os.environ | {"FLOWKIN_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *command.split()], capture_output=True, text=True, env=environment, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "\n" and done.stdout


def test_a_reader_that_leaves_early_is_no_error(engine, tmp_path):
    environment = os.environ | {"FLOWKIN_DATA_DIR": str(tmp_path)}
    command = f"{sys.executable} -m cli query_similar {'e1 ' * 400} --ndjson | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stderr == "" and done.stdout.splitlines()[-1] == "0"


@pytest.mark.parametrize("to", ["| true", "> /dev/full"])
def test_an_error_keeps_its_status_where_nobody_listens(engine, tmp_path, to):
    """Not 120, with a complaint of the interpreter."""
    environment = os.environ | {"FLOWKIN_DATA_DIR": str(tmp_path)}
    environment.pop("PYTHONUNBUFFERED", None)
    command = f"{sys.executable} -m cli query_similar e1 missing --json {to}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 3 and "Exception ignored" not in done.stderr


def test_version_and_help():
    done = subprocess.run([sys.executable, "-m", "cli", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("flowkin 0") and done.returncode == 0
    from cli.main import flowkin as group

    shown = CliRunner().invoke(group, ["--help"])
    assert shown.exit_code == 0 and all(name in shown.output for name in FILES)


def test_every_command_has_help_with_an_example():
    from cli.main import flowkin as group
    from cli.reference import commands

    every = dict(commands(group, "flowkin"))
    assert len(every) >= 24 and {f"flowkin {name}" for name in FILES} <= every.keys()
    for name, command in every.items():
        shown = CliRunner().invoke(command, ["--help"])
        assert shown.exit_code == 0, name
        assert "Example" in shown.output and "flowkin " in shown.output, name


def test_watch_does_not_promise_one_document():
    shown = CliRunner().invoke(PROGRAM, ["watch", "--help"])
    assert "one line for each, as --ndjson" in shown.output and "one JSON document" not in shown.output


def test_limits_are_those_of_the_messages():
    assert cli_options.TOP_K_MAX == TOP_K_MAX


def test_a_start_that_failed_tells_the_workers_reason():
    said = [
        'ts=2026-11-27T17:34:52.665Z level=error role=ingest msg="/d is not encrypted, but store.key_file is set"',
        'ts=2026-11-27T17:34:52.800Z level=error role=supervisor msg="the start is given up: status 74"',
    ]
    assert why(said) == "/d is not encrypted, but store.key_file is set"
    assert why(said[1:]) == "the start is given up: status 74"
    assert why(["Traceback", "OSError: no"]) == "OSError: no" and why([]) == "it said nothing"


# ---- shell --------------------------------------------------------------------------------------------------------
def shell_of(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> int:
    session = Session()
    session.point(data_dir=tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    try:
        return Shell(session).loop()
    finally:
        session.close()


def test_piped_shell_prints_results_only_and_goes_on_after_an_error(engine, tmp_path, monkeypatch, capsys):
    text = "stats --json\nfrob\n\n-- a comment\n--\nquery_similar missing\ninfo --json\n"
    status = shell_of(tmp_path, text, monkeypatch)
    out, err = capsys.readouterr()
    assert status == 0
    assert [json.loads(line)["version"] for line in out.splitlines()] == ["0", "0"]
    assert "frob" in err and "missing" in err and len(err.splitlines()) == 2
    assert engine.connections == 1  # one for the whole session


@pytest.mark.parametrize("started_with", ["here", "there"])
def test_a_line_with_a_data_directory_leaves_the_socket_of_earlier_lines(
    engine, flowkin, tmp_path, monkeypatch, capsys, started_with
):
    """Also where the directory is the one that was meant all along. Within a line the socket decides."""
    here, there = tmp_path, tmp_path / "there"
    (there / "run").mkdir(parents=True)
    other = FakeEngine(there / "run", answering)
    socket_there = there / "run" / "query.sock"
    text = (
        f"stats --json --socket {socket_there}\n"
        "stats --json\n"
        f"purge e1 --yes --data-dir {here}\n"
        "info --json\n"
        f"label e1 x --data-dir {here} --socket {socket_there}\n"
        f"label e1 x --socket {socket_there} --data-dir {here}\n"
        f"flowkin --socket {socket_there} label e1 x --data-dir {here}\n"
        f"flowkin --data-dir {here} label e1 x --socket {socket_there}\n"
        "label e1 x\n"
        f"flowkin --data-dir {here} show e1 --raw\n"
    )
    try:
        assert shell_of(here if started_with == "here" else there, text, monkeypatch) == 0, capsys.readouterr().err
    finally:
        other.close()
    assert list(map(type, engine.seen)) == [Purge, Info, Get]
    assert list(map(type, other.seen)) == [Stats, Stats, *[Label] * 5]


def test_exit_status_of_a_piped_shell_is_that_of_its_last_command(engine, tmp_path, monkeypatch, capsys):
    assert shell_of(tmp_path, "stats --json\nquery_similar missing\n", monkeypatch) == 3
    assert shell_of(tmp_path, "query_similar missing\n\\q\nstats", monkeypatch) == 3
    assert shell_of(tmp_path, "query_similar 'e1", monkeypatch) == 2
    assert shell_of(tmp_path, "", monkeypatch) == 0


def test_hits_by_number(engine, tmp_path, monkeypatch, capsys):
    assert shell_of(tmp_path, "similar e9 --json\nsimilar #3 -k 2 --json\nshow #1 --json\n", monkeypatch) == 0
    asked = [r for r in engine.seen if isinstance(r, QuerySimilar | Get)]
    assert [getattr(r, "id", None) or r.ids[0] for r in asked] == ["e9", "lab/e3", "lab/e1"]
    capsys.readouterr()
    assert shell_of(tmp_path, "similar e9 --json\nshow #4\n", monkeypatch) == 3
    assert "no hit #4" in capsys.readouterr().err


def test_a_number_of_thousands_of_digits_ends_its_line_only(engine, tmp_path, monkeypatch, capsys):
    number = "#" + "1" * 5_000
    assert shell_of(tmp_path, f"show {number}\nstats --json\n", monkeypatch) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["version"] == "0" and err == f"there is no hit {number}; the last answer had none\n"
    asked = "similar e9 --json\nsimilar #003 --json\nsimilar #0000000000002 --json\n"
    assert shell_of(tmp_path, asked + "similar #10000000000 --json\n", monkeypatch) == 3
    assert [r.id for r in engine.seen if isinstance(r, QuerySimilar)] == ["e9", "lab/e3", "lab/e2"]


def test_what_no_command_foresaw_ends_its_line_only(engine, tmp_path, monkeypatch, capsys):
    def broken(self: Shell, line: str) -> bool:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(Shell, "_backslash", broken)
    assert shell_of(tmp_path, "stats --json\n\\timing\n", monkeypatch) == 1
    assert shell_of(tmp_path, "\\timing\nstats --json\n", monkeypatch) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["version"] for line in out.splitlines()] == ["0", "0"]
    assert err.splitlines() == ["flowkin: internal error, ZeroDivisionError: oh; --debug shows where"] * 2


@pytest.mark.parametrize(
    ("command", "lines", "status"),
    [
        ("shell", b"show e\xff\nstats --json\n", 0),
        ("shell", b"stats --json\n-- \xff\nshow e\xff\n", 2),
        ("query_similar - --ndjson", b"e1\ne\xff\n", 2),
    ],
)
def test_a_byte_of_stdin_that_is_no_utf8_costs_its_line_only(engine, tmp_path, command, lines, status):
    environment = os.environ | {"FLOWKIN_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0",
                                "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "cli", *command.split()], input=lines, capture_output=True, env=environment, timeout=30
    )
    assert done.returncode == status, done.stderr
    assert done.stderr == b"flowkin: 'e\\udcff' is not UTF-8\n"
    if command == "shell":
        assert json.loads(done.stdout)["version"] == "0"


def test_shell_words(engine, tmp_path, monkeypatch, capsys):
    text = "\\timing\nstats --json\n\\timing\n\\?\nhelp query_similar\n\\frob\nshell\nexit\nstats\n"
    assert shell_of(tmp_path, text, monkeypatch) == 2
    out, err = capsys.readouterr()
    assert "time: " in err and "timing is on" in err and "#3" in err and "already" in err and "frob" in err
    assert "--explain" in out and out.count('"version"') == 1
    assert "x0a" not in err


def test_completion(engine, tmp_path):
    session = Session()
    session.point(data_dir=tmp_path)
    words = Words(session)
    assert "query_similar" in list(words.after("query"))
    assert "--explain" in list(words.after("query_similar e1 --exp"))
    assert list(words.after("query_similar e1 --space ch")) == ["chronos"]
    assert list(words.after("show l")) == ["lab/e1"]
    assert list(words.after("models u")) == ["use"]
    assert list(words.after("frob x")) == []
    session.close()


def test_history_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    session = Session()
    path = history_path(session)
    assert path == tmp_path / "state/flowkin/history" and path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "dd" / "run").mkdir(parents=True)
    session.point(data_dir=tmp_path / "dd")
    assert history_path(session) == tmp_path / "dd/run/shell_history"
