"""A real engine from outside: its command line, its sockets, its processes, and what becomes of events."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.embed import models
from engine.embed.base import SPACES
from engine.layout import Layout
from ipc.client import Client
from ipc.errors import ClientError, ConnectError, NotReadyError
from ipc.event import FeaturedEvent
from ipc.messages import Filter, Options
from tests.conftest import FILLED
from tests.engine_fixture import Engine, Starter, all_events, answers, ask, cli, shape, stored_ids
from tests.events import T0, S, changed, ids, make, ndjson, several, write
from tests.one_thread import ONE_THREAD
from tests.store_fixture import OTHER, other_model
from tests.wait import eventually


@contextmanager
def packed(file: Path) -> Iterator[Path]:
    """A named pipe that gzip writes the file into."""
    pipe = file.with_suffix(".pipe")
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", 'exec gzip -c "$0" > "$1"', file, pipe]) as writer:
        yield pipe
        assert writer.wait(10) == 0
    pipe.unlink()


def test_a_file_through_the_command_line_is_stored_once(start: Starter, tmp_path: Path) -> None:
    """New, then all duplicates, then the same identities with other content: refused, dead-lettered, counted."""
    engine = start()
    file = write(tmp_path / "e.ndjson", several(150))
    first = engine.json("ingest", file)
    assert (first["accepted"], first["duplicates"], first["rejected"]) == (150, 0, 0)
    assert stored_ids(engine.client()) == ids(several(150))
    again = engine.json("ingest", file)
    assert (again["accepted"], again["duplicates"], again["rejected"]) == (0, 150, 0)

    with packed(file) as pipe:
        piped = engine.json("ingest", pipe, timeout_s=30)
    assert (piped["accepted"], piped["duplicates"], piped["rejected"]) == (0, 150, 0)

    other = engine.json("ingest", changed(file, tmp_path / "other.ndjson"))
    assert (other["accepted"], other["duplicates"], other["rejected"]) == (0, 0, 150)
    letters = Path(other["dead_letters"])
    assert letters.stat().st_mode & 0o777 == 0o600
    assert len(letters.read_text().splitlines()) == 150
    assert "stored with other content" in letters.read_text()
    facts = engine.json("stats")
    assert facts["events"] == 150
    assert facts["conflicts"] == 150
    assert [(s["events"], s["duplicates"], s["rejected"]) for s in facts["sources"]] == [(150, 300, 150)]
    assert facts["families"] == {"DDoS": 38, "PortScan": 38, "C2": 37, "Normal": 37}
    assert all(stored.event.dst_port in (80, 22, 443, 53) for stored in all_events(engine.client()))  # type: ignore[union-attr]


@pytest.mark.parametrize("command", ["classify", "query_event"])
def test_a_pipe_is_asked_about_as_its_file_is(filled: Engine, command: str, tmp_path: Path) -> None:
    file = write(tmp_path / "new.ndjson", several(100, 9_000))
    with packed(file) as pipe:
        of_file, of_pipe = (filled.cli(command, what, "--ndjson", timeout_s=30) for what in (file, pipe))
    assert of_pipe.returncode == 0 and of_pipe.stdout.count("\n") == 100, of_pipe.stderr
    for one, other in zip(of_file.stdout.splitlines(), of_pipe.stdout.splitlines(), strict=True):
        assert json.loads(one) | {"took_ms": 0} == json.loads(other) | {"took_ms": 0}


def test_four_readers_answer_the_same_and_share_the_connections(start: Starter) -> None:
    engine = start(readers=4)
    engine.ingest(several(130))
    clients = [engine.client() for _ in range(32)]
    burst = [threading.Thread(target=client.ping) for client in clients]
    for thread in burst:
        thread.start()
    for thread in burst:
        thread.join()

    def spread() -> bool:
        counts = [r["connections"] for r in engine.facts()["readers"]]
        return len(counts) == 4 and sum(counts) >= 32 and all(abs(n - sum(counts) / 4) <= 0.2 * 8 for n in counts)

    eventually(spread)
    for space in (*SPACES, "fused"):
        given = [shape(ask(client, "e000007", space=space, top_k=10)) for client in clients]
        assert len(given[0]) == 10
        assert all(one == given[0] for one in given)


def test_read_your_writes_on_another_connection(engine: Engine) -> None:
    """min_generation of an acknowledgement is there at once, on any connection; one that never comes is NOT_READY."""
    readers = [engine.client() for _ in range(4)]
    writer = engine.client()
    for i in range(20):
        done = writer.ingest("ndjson", [make(i)])
        found = readers[i % 4].get([f"e{i:06d}"], min_generation=done.generation)
        assert [s.event.event_id for s in found.events] == [f"e{i:06d}"]  # type: ignore[union-attr]
        assert found.generation >= done.generation
    newest = writer.ping().generation
    with pytest.raises(NotReadyError, match=f"generation {newest + 5} is not there"):
        readers[0].get(["e000000"], min_generation=newest + 5, timeout_ms=300)


def test_a_reader_killed_costs_its_clients_nothing(start: Starter) -> None:
    engine = start()
    engine.ingest(several(70))
    clients = [engine.client() for _ in range(4)]
    before = [shape(ask(client, "e000003", top_k=5)) for client in clients]
    victim = engine.pid("reader-0")
    os.kill(victim, signal.SIGKILL)
    assert [shape(ask(client, "e000003", top_k=5)) for client in clients] == before  # a read is tried again once
    engine.replaced("reader-0", victim)
    assert sorted(r["restarts"] for r in engine.facts()["readers"]) == [0, 1]


def test_ingest_killed_in_the_middle_loses_and_doubles_nothing(start: Starter, tmp_path: Path) -> None:
    """The oracle is what was acknowledged: each of those is there once, whatever was killed; the rest may be sent
    again."""
    engine = start()
    sent = several(1_200)
    acknowledged: list[str] = []
    client = engine.client(60_000)
    victim = engine.pid("ingest")
    half = threading.Event()

    def send() -> None:
        for at in range(0, len(sent), 20):
            batch = sent[at : at + 20]
            while True:
                try:
                    client.ingest("ndjson", batch)
                except (ConnectError, ClientError):
                    continue
                break
            acknowledged.extend(ids(batch))
            if at == 400:
                half.set()

    sender = threading.Thread(target=send)
    sender.start()
    assert half.wait(60)
    os.kill(victim, signal.SIGKILL)
    sender.join(120)
    assert not sender.is_alive()
    assert acknowledged == ids(sent)
    assert stored_ids(engine.client()) == ids(sent)  # all, once, in order
    engine.kill()  # and everything at once
    engine.start()
    assert stored_ids(engine.client()) == ids(sent)
    assert engine.ingest(sent[:10]).duplicates == 10
    done = engine.json("ingest", write(tmp_path / "more.ndjson", several(70, 1_200)))
    assert done["accepted"] == 70


def features_of(engine: Engine) -> list[tuple[str, bytes]]:
    """Ids and features of 400 events that are sent 20 at a time, again where the ingest worker died of it."""
    client, sent = engine.client(60_000), several(400)
    for at in range(0, len(sent), 20):
        while True:
            try:
                client.ingest("ndjson", sent[at : at + 20])
            except (ConnectError, ClientError):
                continue
            break
    return [(s.event.event_id, s.features) for s in all_events(engine.client(), features=True)]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    engine = Engine(tmp_path_factory.mktemp("whole") / "data", readers=1)
    try:
        return features_of(engine.start())
    finally:
        engine.close()


@pytest.mark.parametrize("point", ["publish.synced", "publish.before_commit", "publish.committed"])
def test_context_features_are_those_of_an_ingest_that_was_never_killed(
    start: Starter, never_killed: list[tuple[str, bytes]], point: str
) -> None:
    """Every life of the ingest worker dies at its 7th commit, before, in or after it; row files fill in between."""
    engine = start(readers=1, env={"ENGINE_FAILPOINT": f"{point}:7"})
    first = engine.pid("ingest")
    found = features_of(engine)
    assert engine.pid("ingest") != first
    assert found == never_killed and len(found) == 400


def test_a_second_engine_is_refused_naming_the_first(start: Starter) -> None:
    engine = start(readers=1)
    assert engine.process is not None
    second = engine.cli("serve")
    assert second.returncode == 1
    assert f"pid {engine.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert engine.client().ping().generation >= 1


def test_sigterm_under_load_ends_with_0_and_keeps_what_was_acknowledged(start: Starter) -> None:
    engine = start()
    acknowledged: list[str] = []
    stop = threading.Event()

    def write_on() -> None:
        with Client.for_data_dir(engine.data_dir) as client:
            for at in range(0, 100_000, 10):
                batch = several(10, at)
                try:
                    client.ingest("ndjson", batch)
                except ClientError:
                    return
                acknowledged.extend(ids(batch))

    def read_on() -> None:
        with Client.for_data_dir(engine.data_dir) as client:
            while not stop.is_set():
                try:
                    ask(client, "e000000", top_k=5)
                except ClientError:
                    if len(acknowledged) > 10:
                        return

    threads = [threading.Thread(target=write_on), *(threading.Thread(target=read_on) for _ in range(3))]
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) > 100, within_s=30)
    assert engine.stop() == 0
    stop.set()
    for thread in threads:
        thread.join(30)
    engine.start()
    stored = stored_ids(engine.client())
    assert stored[: len(acknowledged)] == acknowledged
    assert len(stored) - len(acknowledged) in (0, 10)  # stored, but the answer did not get out


def stopped_child(engine: Engine, job: str) -> bool:
    """Has the ingest worker a child that does this, and is it stopped now?"""
    ingest = engine.pid("ingest")
    for child in Path(f"/proc/{ingest}/task/{ingest}/children").read_text().split():
        if f'"job":"{job}"'.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGSTOP)
            return True
    return False


def test_sigterm_waits_for_no_order_and_says_so_to_who_does(start: Starter, tmp_path: Path) -> None:
    """Each one's child is stopped, so that none can end. The stop itself is orderly: nothing has to be killed."""
    engine = start(readers=1)
    engine.ingest(several(100))
    engine.indexed(1)
    made = Layout(tmp_path / "made")
    made.make()
    engine.client().add_model(OTHER, models.read(other_model(made)))
    heard: dict[str, object] = {}

    def order(job: str, give: Callable[[Client], object]) -> None:
        with Client.for_data_dir(engine.data_dir, timeout_ms=60_000) as client:
            try:
                heard[job] = give(client)
            except ClientError as e:
                heard[job] = e

    orders: dict[str, Callable[[Client], object]] = {
        "scrub": Client.scrub, "quality": Client.measure, "copy": Client.compact,
        "fill": lambda client: client.use_model(OTHER),
    }  # fmt: skip
    threads = [threading.Thread(target=order, args=one) for one in orders.items()]
    for thread, job in zip(threads, orders, strict=True):
        thread.start()
        eventually(lambda job=job: stopped_child(engine, job), within_s=30, every_s=0.001)
    assert heard == {}
    assert engine.stop() == 0
    for thread in threads:
        thread.join(30)
    assert "killed" not in engine.log
    for job in orders:
        error = heard[job]
        assert isinstance(error, NotReadyError) and error.retry_after_ms > 0, (job, error)
        assert "the engine stops" in str(error) and "ask again" in str(error)
    said = [msgspec.json.decode(line) for line in Layout(engine.data_dir).audit.read_bytes().splitlines()]
    assert {line["what"] for line in said if line["outcome"] == "STOPPED"} == {"scrub", "measure", "compact"}
    engine.start()
    client = engine.client(timeout_ms=60_000)
    assert client.use_model(OTHER).facts == {"version": OTHER}
    assert client.scrub().facts["damaged"] == 0
    assert stored_ids(client) == ids(several(100))


def test_watch_tells_of_every_new_generation(engine: Engine) -> None:
    first = engine.ingest([make(0)]).generation
    watching = engine.client().watch(after_generation=first)
    second = engine.ingest([make(1)]).generation
    assert next(watching) >= second
    third = engine.client().label("e000000", "seen").generation
    assert next(watching) >= third
    watching.close()  # type: ignore[attr-defined]


def test_a_label_is_found_by_filter_and_kept(start: Starter) -> None:
    engine = start()
    engine.ingest(several(80))
    assert engine.cli("label", "e000005", "true_positive", "--by", "ana").returncode == 0
    engine.client().label("test/e000009", "true_positive", by="ana")
    engine.client().label("e000009", "benign: backup", by="eva")
    client = engine.client()

    def labelled(*words: str) -> list[str]:
        return [s.event.event_id for s in client.list(filter=Filter(labels=list(words))).events]  # type: ignore[union-attr]

    assert labelled("true_positive") == ["e000005"]
    assert labelled("true_positive", "benign: backup") == ["e000005", "e000009"]
    assert labelled("nobody said so") == []
    assert len(labelled("")) == 78
    hit = ask(client, "e000001", top_k=3, filter=Filter(labels=["true_positive"])).hits[0]
    assert hit.annotation is not None
    assert (hit.annotation.label, hit.annotation.labelled_by) == ("true_positive", "ana")  # type: ignore[union-attr]
    client.label("e000005", "")
    assert labelled("true_positive") == []
    engine.kill()
    engine.start()
    note = engine.client().get(["e000009"]).events[0].annotation
    assert [(by, word) for _, by, _, word in note.history] == [("ana", "true_positive"), ("eva", "benign: backup")]  # type: ignore[union-attr]


# ---- questions, on the shared engine ------------------------------------------------------------------------------


def test_an_event_that_is_asked_about_is_not_stored(filled: Engine, tmp_path: Path) -> None:
    client = filled.client()
    generation = client.ping().generation
    new = make(9_999, text="a thing never seen")
    reply = client.query_events([new], options=Options(top_k=5, collapse=False))
    assert len(reply.answers[0].hits) == 5
    assert client.get(["e009999"]).missing == ["e009999"]
    assert client.ping().generation == generation
    known = client.query_events([make(20)], options=Options(top_k=FILLED, collapse=False)).answers[0]
    assert 20 not in [hit.seq for hit in known.hits]  # stored already: not its own neighbour
    assert len(known.hits) == FILLED - 1
    done = filled.cli("query_event", write(tmp_path / "q.ndjson", [new]), "-k", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert filled.facts()["events"] == FILLED


def test_the_event_itself_is_never_its_own_neighbour(filled: Engine) -> None:
    client = filled.client()
    for space in (*SPACES, "fused"):
        for collapse in (True, False):
            answer = ask(client, "e000123", space=space, top_k=50, collapse=collapse)
            assert 123 not in [hit.seq for hit in answer.hits]
            distances = [hit.distance for hit in answer.hits]
            assert distances == sorted(distances)


def test_before_keeps_only_what_was_earlier(filled: Engine) -> None:
    answer = ask(filled.client(), "e000100", top_k=FILLED, before=True, collapse=False)
    assert sorted(hit.seq for hit in answer.hits) == list(range(100))
    assert answer.matched == 100


def test_other_episodes_leaves_out_the_same_pair_and_family(filled: Engine) -> None:
    """Within 10 minutes, either way round."""
    client = filled.client()
    own = make(200).event
    pair = {own.src_ip, own.dst_ip}

    def same(number: int) -> bool:
        event = make(number).event
        return {event.src_ip, event.dst_ip} == pair and event.family == own.family and abs(event.ts - own.ts) <= 600 * S

    answer = ask(client, "e000200", top_k=FILLED, other_episodes=True, collapse=False)
    assert sorted(hit.seq for hit in answer.hits) == [n for n in range(FILLED) if not same(n)]
    assert any(same(n) for n in range(FILLED) if n != 200)


def test_near_duplicates_are_one_hit_with_a_count(start: Starter) -> None:
    engine = start()
    flood = [make(0, event_id=f"flood{i:04d}") for i in range(100)]
    engine.ingest([*flood, *several(40, 1)])
    client = engine.client()
    collapsed = ask(client, "flood0050", space="attack", top_k=10)
    alone = ask(client, "flood0050", space="attack", top_k=10, collapse=False)
    assert [hit.event.event_id[:5] for hit in alone.hits] == ["flood"] * 10  # type: ignore[union-attr]
    assert len(collapsed.hits) == 10
    assert sum(hit.event.event_id.startswith("flood") for hit in collapsed.hits) < 5  # type: ignore[union-attr]
    assert max(hit.count for hit in collapsed.hits) > 50


def test_indexes_follow_are_used_and_agree_with_brute_force(filled: Engine) -> None:
    """Full row files are indexed in every space, indexes side by side become one; what they find is what numpy finds,
    distances to the last digit."""
    full = FILLED // 64
    manifest = filled.manifest()
    assert Counter(i.space for i in manifest.indexes) == dict.fromkeys(SPACES, full.bit_count())
    assert {i.kind for i in manifest.indexes if i.space == "sbert"} == {"flat_grouped"}  # few sentences
    assert all((filled.layout.index_file(i.file).stat().st_mode & 0o777) == 0o400 for i in manifest.indexes)
    assert {s.number for s in manifest.sealed} == set(range(full))
    rows = filled.row_maps()
    client = filled.client()
    recall = []
    for space in SPACES:
        way = re.compile(rf"{space}: .*{full.bit_count()} indexes")
        eventually(lambda of=space, as_said=way: as_said.search(ask(client, "e000000", space=of).plan))
        vectors = np.concatenate([r.vectors[space] for r in rows])[:FILLED].astype(np.float64)
        for seq in range(0, FILLED, 37):
            answer = ask(client, f"e{seq:06d}", space=space, top_k=10, collapse=False)
            assert answer.exact == (space == "sbert")
            distances = np.sqrt(((vectors - vectors[seq]) ** 2).sum(1))
            distances[seq] = np.inf
            for hit in answer.hits:
                assert hit.distance == pytest.approx(distances[hit.seq], rel=1e-12, abs=1e-12)
            farthest = np.sort(distances)[9]
            recall.append(sum(hit.distance <= farthest * (1 + 1e-9) for hit in answer.hits) / 10)
    assert np.mean(recall) >= 0.98


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        (Filter(classifications=["MALICIOUS"]), lambda e: e.classification == "MALICIOUS"),
        (Filter(families=["C2", "PortScan"]), lambda e: e.family in ("C2", "PortScan")),
        (Filter(kinds=["alert"]), lambda e: e.kind == "alert"),
        (Filter(decisions=["DROP", ""]), lambda e: e.decision in ("DROP", "")),
        (Filter(since=T0 + 50 * S, until=T0 + 60 * S), lambda e: T0 + 50 * S <= e.ts < T0 + 60 * S),
        (Filter(src=["10.0.1.0/24"]), lambda e: e.src_ip.startswith("10.0.1.")),
        (Filter(addr=["192.0.2.3"]), lambda e: "192.0.2.3" in (e.src_ip, e.dst_ip)),
        (Filter(dst_ports=[(22, 53)]), lambda e: 22 <= e.dst_port <= 53),
        (Filter(protos=[17]), lambda e: e.proto == 17),
        (Filter(score_min=0.65), lambda e: max(e.fast_score, e.ml_score) >= np.float32(0.65)),
        (Filter(sources=["nobody"]), lambda e: False),
        (Filter(families=["C2"], dst=["192.0.2.2"]), lambda e: e.family == "C2" and e.dst_ip == "192.0.2.2"),
    ],
)  # fmt: skip
def test_a_filter_gives_every_match_and_nothing_else(filled: Engine, wanted: Filter, holds) -> None:  # type: ignore[no-untyped-def]
    expected = [n for n in range(FILLED) if holds(make(n).event)]
    client = filled.client()
    assert [s.seq for s in all_events(client, filter=wanted)] == expected
    answer = ask(client, "e000000", top_k=FILLED, collapse=False, filter=wanted)
    assert sorted(hit.seq for hit in answer.hits) == [n for n in expected if n != 0]
    assert answer.matched == len(answer.hits)
    few = ask(client, "e000000", space="chronos", top_k=5, collapse=False, filter=wanted)
    assert len(few.hits) == min(5, answer.matched)


def test_explanations_add_up_to_the_distance(filled: Engine) -> None:
    client = filled.client()
    for space in ("chronos", "attack"):
        answer = ask(client, "e000050", space=space, top_k=5, explain=True)
        assert len(answer.explain) == len(answer.hits)
        for hit, why in zip(answer.hits, answer.explain, strict=True):
            assert why.event_id == hit.event.event_id  # type: ignore[union-attr]
            assert sum(c.contribution for c in why.contributions) == pytest.approx(hit.distance, rel=1e-3, abs=1e-4)
        assert answer.counter_example is not None
        assert answer.counter_example.event.family != make(50).event.family  # type: ignore[union-attr]
    fused = ask(client, "e000050", top_k=3, explain=True)
    for hit, why in zip(fused.hits, fused.explain, strict=True):
        assert sum(p * w for _, p, w in why.spaces.values()) == pytest.approx(hit.distance, rel=1e-6)
    told = client.explain("e000050", "e000054", space="attack").explanation
    assert told.event_id == "e000054"


def test_what_another_detector_said_of_a_connection_is_told_with_it(start: Starter, tmp_path: Path) -> None:
    engine = start()
    engine.cli("ingest", write(tmp_path / "flows.ndjson", several(10)))
    flow = make(1).event
    turned = {"src_ip": flow.dst_ip, "dst_ip": flow.src_ip, "src_port": flow.dst_port, "dst_port": flow.src_port}
    about = {"ts": flow.ts, "ts_start": flow.ts_start, "proto": flow.proto, "kind": "alert", "text": "ET SCAN | x"}
    engine.cli("ingest", write(tmp_path / "alerts.ndjson", [make(90, source="eve", **turned, **about)]))
    text = engine.cli("query_similar", "test/e000001", "--explain").stdout
    assert "alert: ET SCAN  from eve" in text
    text = engine.cli("query_similar", "test/e000005", "-k", "9", "--no-collapse", "--explain").stdout
    (rank,) = re.findall(r"^(\d+) +e000001 ", text, re.M)
    assert f"alerts      ET SCAN  from eve: #{rank}\n" in re.sub(" +\n", "\n", text)
    asked = engine.json("query_event", tmp_path / "flows.ndjson", "--explain", timeout_s=30)
    assert [len(one["query_alerts"]) for one in asked] == [0, 1, *[0] * 8]
    bare = {**turned, **about, "event_id": "bare"}
    engine.ingest([FeaturedEvent(make(91, source="zeek", **bare).event)])
    text = engine.cli("query_similar", "zeek/bare", "--space", "attack").stdout
    assert "too little is known" in text and "flowkin query_similar test/e000001" in text


def test_pages_of_list_and_recent_cover_everything_once(filled: Engine) -> None:
    client = filled.client()
    assert stored_ids(client) == ids(several(FILLED))
    newest = client.recent(limit=20).events
    assert [s.seq for s in newest] == list(range(FILLED - 1, FILLED - 21, -1))
    by_time = client.recent(limit=20, by_event_time=True, filter=Filter(families=["DDoS"])).events
    times = [s.event.ts for s in by_time]  # type: ignore[union-attr]
    assert times == sorted(times, reverse=True)
    with_all = client.get(["e000010", "test/e000011", "none"], features=True, raw=True)
    assert with_all.missing == ["none"]
    assert [len(s.features) for s in with_all.events] == [420, 420]


# ---- models -------------------------------------------------------------------------------------------------------


def test_a_model_is_fitted_and_used(start: Starter, tmp_path: Path) -> None:
    """An empty engine uses a new version at once; a filled one after `models use`, all events embedded anew."""
    engine = start(readers=1, env=ONE_THREAD)  # for the commands: their threads would only wait
    file = write(tmp_path / "e.ndjson", several(200))
    fitted = engine.json("fit", file, "--name", "first", timeout_s=180.0)
    assert fitted["used"]
    assert engine.json("info")["model"] == "first"
    engine.ingest(several(150))
    before = ask(engine.client(), "e000010", space="attack", top_k=5, collapse=False)
    assert before.model == "first"
    vectors = engine.row_maps()[0].vectors["attack"].copy()

    other = write(tmp_path / "o.ndjson", several(120, 5_000))
    second = engine.json("fit", other, "--name", "second", timeout_s=180.0)
    assert not second["used"]
    assert engine.json("info")["model"] == "first"
    used = engine.json("models", "use", "second", timeout_s=180.0)
    assert used["version"] == "second"
    after = ask(engine.client(), "e000010", space="attack", top_k=5, collapse=False)
    assert after.model == "second"
    assert engine.client().get(["e000149"]).missing == []
    assert not np.array_equal(engine.row_maps()[0].vectors["attack"], vectors)
    engine.ingest(several(50, 150))
    expected = answers(engine.client(), ["e000010", "e000180"], space="attack", top_k=5, collapse=False)
    engine.kill()
    engine.start()
    assert engine.facts()["model"] == "second"
    assert answers(engine.client(), ["e000010", "e000180"], space="attack", top_k=5, collapse=False) == expected
    assert engine.cli("models", "use", "third").returncode == 3

    target = tmp_path / "models"
    done = cli("train", "--data", other, "--out", target, "--name", "third", "--json", timeout_s=300.0, env=ONE_THREAD)
    trained = json.loads(done.stdout)
    assert trained["path"] == str(target / "third") and {"attack.onnx", "card.json"} <= trained["sha256"].keys()
    assert engine.json("models", "use", target / "third", timeout_s=180.0)["version"] == "third"
    neural = ask(engine.client(), "e000010", space="attack", top_k=5, collapse=False, explain=True)
    assert neural.model == "third"
    for hit, why in zip(neural.hits, neural.explain, strict=True):
        assert sum(c.contribution for c in why.contributions) == pytest.approx(hit.distance, rel=0.01)
    assert engine.json("models", "use", "second", timeout_s=180.0)["version"] == "second"


# ---- followed files -----------------------------------------------------------------------------------------------


def test_a_followed_file_is_stored_exactly_once(start: Starter, tmp_path: Path) -> None:
    """It grows, half a line at a time, and the ingest worker is killed in the middle of it."""
    file = tmp_path / "live.ndjson"
    lines = ndjson(several(900)).splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:100]))
    config = tmp_path / "flowkin.toml"
    config.write_text(f'[sources.live]\npath = "{file}"\nformat = "ndjson"\npoll_ms = 10\n')
    engine = start("--config", str(config), readers=1)

    def stored(count: int) -> None:
        def look() -> bool:
            with engine.client() as client:
                return bool(client.stats().facts["events"] >= count)

        eventually(look, within_s=60)

    stored(100)
    with file.open("ab") as out:
        for i, text in enumerate(lines[100:]):
            out.write(text[:40])
            out.flush()
            out.write(text[40:])
            out.flush()
            if i in (250, 600):
                stored(200)
                victim = engine.pid("ingest")
                os.kill(victim, signal.SIGKILL)
                eventually(lambda victim=victim: engine.pid("ingest") not in (0, victim), within_s=30)
    stored(900)
    assert stored_ids(engine.client()) == ids(several(900))
    engine.kill()
    with file.open("ab") as out:
        out.write(ndjson(several(50, 900)))
    engine.start("--config", str(config))
    stored(950)
    assert stored_ids(engine.client()) == ids(several(950))
    facts = engine.facts()
    assert facts["conflicts"] == 0
