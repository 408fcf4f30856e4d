"""What an event is, asked of a real engine: by its command line, by both clients, of ids and of files."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from engine.embed import models
from engine.sources.ndjson import dump
from ipc.aio import AsyncClient
from ipc.client import Client
from ipc.errors import BadRequestError, NotFoundError, NotReadyError
from ipc.event import Event, FeaturedEvent
from ipc.messages import Judgement, Options, Voting
from tests.conftest import FILLED
from tests.engine_fixture import Engine, Starter
from tests.events import FAMILIES, make, several, write


def one(client: Client, event_id: str, **options: object) -> Judgement:
    return client.classify([event_id], options=Voting(**options)).judgements[0]  # type: ignore[arg-type]


def test_a_stored_event_through_the_command_line(filled: Engine) -> None:
    document = filled.json("classify", "e000301")
    assert document["family"] == "PortScan" and document["query"]["event_id"] == "e000301"
    assert 0 < document["probability"] <= 1 and 0 <= document["novelty"] <= 1
    assert document["no_close_precedent"] is False
    assert document["k"] == 5 == len(document["precedents"])
    first = document["precedents"][0]
    assert (first["rank"], first["family"], first["labelled"]) == (1, "PortScan", False)
    assert {"event_id", "distance", "percentile", "count", "weight", "detector_family", "label", "ts"} <= first.keys()
    assert document["distances"]["min"] == first["distance"] <= document["distances"]["max"]
    text = filled.cli("classify", "e000301").stdout
    assert "PortScan" in text and "PROBABILITY" in text and "none of these" in text and first["event_id"] in text


def test_an_event_of_unknown_behaviour_is_classified_by_what_is_said_of_it(start: Starter, tmp_path: Path) -> None:
    """Stored or sent, asked in a space of features."""
    engine = start(readers=1)
    engine.ingest(several(60))
    alerts = [FeaturedEvent(make(n, kind="alert", src_ip="", dst_ip="").event) for n in (101, 102, 103)]
    engine.ingest(alerts[:2])
    with engine.client() as client:
        stored = client.classify(["e000005", "e000101"], options=Voting(space="attack")).judgements
        assert [j.space for j in stored] == ["attack", "sbert"]
        sent = client.classify((), [alerts[2], make(104)], options=Voting(space="chronos")).judgements
        assert [j.space for j in sent] == ["sbert", "chronos"]
        assert all(j.precedents for j in [*stored, *sent])
    text = engine.cli("classify", "e000101").stdout
    assert "by what is said of it: too little is known of its behaviour (0 features of 105)" in text
    text = engine.cli("query_similar", "e000101", "--space", "attack").stdout
    assert "too little is known of its behaviour (0 features of 105): --space sbert" in text
    assert "no close precedent" not in text


def test_several_and_a_file_are_a_line_each(filled: Engine, tmp_path: Path) -> None:
    lines = filled.cli("classify", "e000301", "e000302", "--ndjson").stdout.splitlines()
    assert [json.loads(line)["query"]["event_id"] for line in lines] == ["e000301", "e000302"]
    piped = filled.cli("classify", "-", "--ndjson", stdin=b"e000301\n\ne000302\n").stdout.splitlines()
    assert [json.loads(line)["family"] for line in piped] == ["PortScan", "C2"]

    items = several(150, 9_000)
    file = write(tmp_path / "new.ndjson", items)
    done = filled.cli("classify", file, "--ndjson")
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [d["query"]["event_id"] for d in documents] == [item.event.event_id for item in items]
    right = sum(d["family"] == FAMILIES[n % 4] for n, d in enumerate(documents, 9_000))
    assert right >= 145
    assert filled.client().get(["e009000"]).missing == ["e009000"]  # nothing of it is stored
    table = filled.cli("classify", file, "--format", "ndjson").stdout.splitlines()
    assert len(table) == 151 and "PROB" in table[0]
    alone = filled.json("classify", write(tmp_path / "one.ndjson", items[:1]))
    assert [d["query"]["event_id"] for d in alone] == ["e009000"]  # of a file: always a list


def test_a_file_is_seen_with_its_own_past_as_query_event_sees_it(filled: Engine, tmp_path: Path) -> None:
    """The context of the first hundred counts for the last ones, over messages: the same neighbours either way."""
    file = write(tmp_path / "new.ndjson", several(100, 9_000))
    classified = [
        json.loads(line) for line in filled.cli("classify", file, "--no-before", "--ndjson").stdout.splitlines()
    ]
    queried = [
        json.loads(line)
        for line in filled.cli("query_event", file, "--space", "attack", "-k", "1", "--ndjson").stdout.splitlines()
    ]
    assert len(classified) == len(queried) == 100
    for judgement, answer in zip(classified, queried, strict=True):
        assert judgement["precedents"][0]["distance"] == answer["hits"][0]["distance"]


def test_a_label_changes_the_very_next_answer(start: Starter) -> None:
    engine = start()
    engine.ingest(several(80))
    before = engine.json("classify", "e000077")
    assert before["family"] == "PortScan" and set(before["votes"]) == {"PortScan"}
    nearest = before["precedents"][0]["event_id"]
    assert engine.cli("label", nearest, "ransomware: see ticket 7", "--by", "ana").returncode == 0
    for _ in range(4):  # whichever reader answers
        with engine.client() as client:
            after = one(client, "e000077")
        assert after.precedents[0].family == "Ransomware" and after.precedents[0].labelled
        assert set(after.votes) == {"PortScan", "Ransomware"}
    text = engine.cli("classify", "e000077").stdout
    assert "Ransomware" in text and "an analyst" in text
    engine.kill()
    engine.start()
    assert "Ransomware" in engine.json("classify", "e000077")["votes"]


def test_what_is_far_from_everything_has_no_close_precedent(filled: Engine, tmp_path: Path) -> None:
    row = np.full(105, np.nan, np.float32)
    row[:65] = 1e12
    file = tmp_path / "far.ndjson"
    file.write_bytes(dump(make(9_999).event, row))
    document = filled.json("classify", file)[0]
    assert document["no_close_precedent"] and document["novelty"] > 1 - document["false_alarm"]
    assert "no close precedent" in filled.cli("classify", file).stdout


def test_before_is_on_unless_switched_off(filled: Engine) -> None:
    client = filled.client()
    early = one(client, "e000020", k=50)
    assert sorted(p.hit.seq for p in early.precedents) == list(range(20)) and early.matched == 20
    assert one(client, "e000020", before=False).matched == FILLED - 1
    assert filled.json("classify", "e000020", "--no-before")["matched"] == FILLED - 1
    assert filled.json("classify", "e000000")["family"] is None
    assert "no event may vote" in filled.cli("classify", "e000000").stdout


def test_ids_and_events_in_one_message_and_both_clients(filled: Engine) -> None:
    client = filled.client()
    reply = client.classify(["e000301", "e000302"], [make(9_003)])
    asked = [j.query.event_id for j in reply.judgements if isinstance(j.query, Event)]
    assert asked == ["e000301", "e000302", "e009003"]

    async def ask() -> list[Judgement]:
        async with AsyncClient(str(filled.layout.query_socket)) as c:
            return (await c.classify(["e000301", "e000302"], [make(9_003)])).judgements

    for a, b in zip(asyncio.run(ask()), reply.judgements, strict=True):
        assert (a.family, a.probability, a.votes) == (b.family, b.probability, b.votes)


def test_questions_and_votes_that_come_together_keep_their_answers(filled: Engine) -> None:
    client = filled.client()
    alone = {n: one(client, f"e{n:06d}").votes for n in range(200, 240)}
    from ipc.messages import Answers, Classified, Classify, QuerySimilar

    makes = [
        (lambda i, ms, n=n: Classify(i, [f"e{n:06d}"])) if n % 2 else (lambda i, ms, n=n: QuerySimilar(i, f"e{n:06d}"))  # type: ignore[misc]
        for n in range(200, 240)
    ]
    for n, reply in zip(range(200, 240), client.pipeline(makes, window=16), strict=True):
        if n % 2:
            assert isinstance(reply, Classified) and reply.judgements[0].votes == alone[n]
        else:
            assert isinstance(reply, Answers) and reply.answers[0].query.event_id == f"e{n:06d}"  # type: ignore[union-attr]


def test_what_cannot_be_classified_is_refused_by_name(filled: Engine, tmp_path: Path) -> None:
    client = filled.client()
    for options, error in (
        (Voting(space="fused"), BadRequestError),
        (Voting(space="tea"), BadRequestError),
    ):
        with pytest.raises(error, match="chronos, sbert, attack"):
            client.classify(["e000301"], options=options)
        with pytest.raises(error, match="chronos, sbert, attack"):
            client.classify((), [make(1)], options=options)
    with pytest.raises(NotFoundError, match="nobody"):
        client.classify(["e000301", "nobody"])
    with pytest.raises(BadRequestError, match="nothing to classify"):
        client.classify()
    with pytest.raises(BadRequestError, match="event 0"):
        client.classify((), [make(1, src_ip="nowhere")])
    with pytest.raises(NotReadyError):
        client.classify(["e000301"], options=Voting(min_generation=1 << 40), timeout_ms=300)
    assert client.query_similar("e000301", options=Options(top_k=1)).answers  # and the connection goes on
    file = write(tmp_path / "new.ndjson", several(1))
    for args, status, said in (
        (("classify", "nobody"), 3, "nobody"),
        (("classify", "/nowhere.csv", "--format", "cicflow"), 3, "/nowhere.csv: no such file"),
        (("classify", file, "e000301"), 2, "not both"),
        (("classify", "e000301", "--space", "fused"), 2, "fused"),
        (("classify",), 2, "missing argument"),
    ):
        done = filled.cli(*args)
        assert done.returncode == status and said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_in_the_shell_the_precedents_are_numbered(filled: Engine) -> None:
    done = filled.cli("shell", stdin=b"classify e000301\nshow #1\n")
    nearest = filled.json("classify", "e000301")["precedents"][0]["event_id"]
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(nearest) >= 2


def test_a_switch_of_models_counts_no_event_of_a_session_twice(start: Starter) -> None:
    engine = start(readers=1)
    engine.ingest(several(200))
    files = models.read(models.shipped())
    card = json.loads(files[models.CARD])
    files[models.CARD] = json.dumps(card | {"version": "other"}).encode()
    asked = several(20, 200)  # without features of a context: those come from the session

    def distances(session: int) -> list[list[float]]:
        reply = engine.client().query_events(asked, options=Options(space="chronos"), session=session)
        return [[hit.distance for hit in answer.hits] for answer in reply.answers]

    before = distances(1)
    engine.client().add_model("other", files)
    engine.client().use_model("other", timeout_ms=60_000)
    assert distances(2) == before  # the first question that the reader hears after the switch
    assert engine.client().info().facts["model"] == "other"
