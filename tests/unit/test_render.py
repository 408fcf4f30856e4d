"""What people and programs see, for fixed replies."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import msgspec
import pytest

from cli.answers import answer_document, event_document, outcome, split
from cli.render import Out
from cli.render.answer import hits
from cli.tables import Column, Span, Writer
from cli.text import clean, duration, instant, iso, quantity, when
from engine.features import FEATURES, INDEX
from ipc.event import FEATURE_COUNT, Annotation, Event, Hit, Verdict
from ipc.messages import (
    Alert,
    Answer,
    Contribution,
    CounterExample,
    Explanation,
    Flow,
    Found,
    Judgement,
    Precedent,
    Stored,
)

T0 = 1_778_000_000_000_000_000  # 2026-05-05T16:53:20Z
EVIL = "ET \x1b[31mred\x1b[0m \x00 \x07 \u202egnp.exe \u2066iso\u2069 \x9b2J \u200b end\nline\r"


def event(number: int = 1, **fields: Any) -> Event:
    given: dict[str, Any] = {
        "event_id": f"synthetic_{number:06d}",
        "source": "synthetic",
        "ts": T0 + number * 1_000_000_000,
        "ts_start": T0,
        "src_ip": "172.16.0.1",
        "dst_ip": "2001:db8::5",
        "src_port": 40_000 + number,
        "dst_port": 443,
        "proto": 6,
        "classification": "MALICIOUS",
        "family": "DDoS",
        "fast_score": 0.9,
        "discrepancy": 0.35,
        "decision": "DROP",
    }
    return Event(**(given | fields))


def contributions() -> list[Contribution]:
    return [
        Contribution("syn_flag_count", 12.0, 400.0, -5.3, 0.30),
        Contribution("flow_inter_arrival_time_mean", 12_000.0, 300_000.0, 1.0, 0.08),
        Contribution("traffic_amplification_factor", None, 0.2, None, 0.05),
        Contribution("flow_duration", 1.2, 1.25, -0.1, -0.01),
    ]


def answer(explain: bool = True) -> Answer:
    hits = [
        Hit(2, 0.0, 0.01, 14, event(2), Annotation(label="true_positive", firewall_action="BLOCK")),
        Hit(3, 0.42, 0.2, 1, event(3)),
        Hit(4, 0.55, 1.2, 1, event(4, family="Normal", classification="BENIGN", decision="ALLOW")),
    ]
    explanations = [
        Explanation(
            event_id=f"synthetic_{h.seq:06d}",
            space="attack",
            distance=h.distance,
            percentile=h.percentile,
            contributions=contributions(),
            agree=["flow_duration"],
            disagree=["syn_flag_count"],
        )
        for h in hits
    ]
    other = CounterExample(9, 0.55, event(9, family="Normal", classification="BENIGN"), contributions())
    return Answer(
        "attack", "lab-1", "l2", True, 12_345, 12_000, 3_210, event(1, text=EVIL), hits, 2 / 3, True,
        explanations if explain else [], other if explain else None, plan="exact over 12345 rows",
    )  # fmt: skip


def alerted() -> Answer:
    """Its first and third hit's connections were alerted on."""
    long = "ET MALWARE a signature that is longer than there is room for, M"
    said = [Alert(20 + i, f"a{i}", "eve", "alert", T0, "MALICIOUS", "PortScan", text, i + 1) for i, text in enumerate(
        ("ET SCAN nmap", EVIL, f"{long}1", f"{long}2", *(f"rule {i}" for i in range(3)))
    )]  # fmt: skip
    given = answer()
    given.query_alerts, given.alerts = said[1:2], [said, [], said[:1]]
    given.query_flows = [Flow(9, "synthetic_000009", "pcap", T0, "BENIGN", "Normal", 91)]
    return given


def judgement(of: Event, **more: Any) -> Judgement:
    precedent = Precedent(Hit(2, 0.5, 0.25, 14, of, Annotation(label=of.family)), of.family, True, 0.75)
    given: dict[str, Any] = {
        "query": of, "family": of.family, "probability": 0.875, "runners_up": [("DoS", 0.0625)], "novelty": 0.97,
        "no_close_precedent": True, "false_alarm": 0.05, "calibrated": False, "precedents": [precedent], "k": 1,
        "votes": {of.family: 0.75, "DoS": 0.125}, "doubt": 0.125, "distances": [0.5, 0.5, 0.5],
        "percentiles": [0.25, 0.25, 0.25], "space": "attack", "model": of.family, "exact": True, "scanned": 100,
        "matched": 50, "took_us": 1_500,
    }  # fmt: skip
    return Judgement(**(given | more))


def text_of(do: Any, fmt: Any = "text") -> str:
    stream = io.StringIO()
    do(Out(fmt, Writer(stream)))
    return stream.getvalue()


def test_json_of_an_answer_has_every_promised_key():
    document = json.loads(text_of(lambda out: out.answers([(answer(), 42)], several=False), "json"))
    assert {
        "generation", "space", "metric", "exact", "scanned", "matched", "took_ms", "query", "hits", "same_family",
        "no_close_precedent", "explain", "outcome",
    } <= document.keys()  # fmt: skip
    assert document["generation"] == 42 and document["took_ms"] == 3.21 and document["space"] == "attack"
    hit = document["hits"][0]
    assert list(hit)[:10] == [
        "rank", "event_id", "distance", "percentile", "count", "classification", "family", "label", "ts", "source",
    ]  # fmt: skip
    assert (hit["rank"], hit["count"], hit["label"], hit["ts"]) == (1, 14, "true_positive", "2026-05-05T16:53:22Z")
    assert set(Event.__struct_fields__) <= hit.keys()
    assert document["hits"][1]["label"] is None
    one = document["explain"][0]
    assert one["event_id"] == "synthetic_000002"
    assert one["contributions"][2] == {
        "feature": "traffic_amplification_factor", "query": None, "hit": 0.2, "z": None, "contribution": 0.05,
    }  # fmt: skip
    assert document["query"]["text"] == EVIL  # raw in JSON, which escapes on its own
    assert document["counter_example"]["event"]["family"] == "Normal"


def test_json_tells_what_was_said_of_the_connections():
    document = json.loads(text_of(lambda out: out.answers([(alerted(), 42)], several=False), "json"))
    assert document["query_flows"][0]["coverage"] == 91
    assert document["query_alerts"][0]["text"] == EVIL and document["query_alerts"][0]["count"] == 2
    assert [len(of_hit) for of_hit in document["alerts"]] == [7, 0, 1]
    first = document["alerts"][0][0]
    assert (first["kind"], first["source"], first["text"]) == ("alert", "eve", "ET SCAN nmap")
    assert document["outcome"]["alerts"]["ET SCAN nmap"] == 2 and document["outcome"]["alerts"]["rule 0"] == 1
    none = json.loads(text_of(lambda out: out.answers([(answer(), 42)], several=False), "json"))
    assert (none["query_alerts"], none["alerts"], none["outcome"]["alerts"]) == ([], [], {})


def test_what_was_said_of_the_connections_stands_by_what_became_of_the_hits():
    text = text_of(lambda out: out.answers([(alerted(), 42)], several=False))
    lines = [line.strip() for line in text.splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith("alerts"))
    assert lines[first].split(maxsplit=1)[1] == "ET SCAN nmap  from eve: #1 #3"
    assert lines[first + 3].endswith("room for, M2  from eve: #1") and lines[first + 5] == "and 2 others"
    assert any(line.startswith("alert: ") and line.endswith("from eve  x2") for line in lines)
    assert any(line.startswith("flow: pcap/synthetic_000009") and line.endswith("91 features") for line in lines)
    assert "\x1b" not in text
    many = answer()
    many.alerts = [[Alert(1, "a", "eve", "alert", T0, "UNKNOWN", "Unknown", "one", 1)]] * 12
    assert "#1 #2 #3 #4 #5 #6 #7 #8 #9 #10 and 2 more" in text_of(lambda out: out.answers([(many, 1)], several=False))
    assert "alerts" not in text_of(lambda out: out.answers([(answer(), 42)], several=False))


def test_a_command_to_copy_holds_no_words_of_others():
    asked = event(1, coverage=3)
    none = Answer("attack", "v", "l2", True, 0, 0, 0, asked, [])
    none.query_flows = [Flow(9, "x; reboot", "pcap", T0, "BENIGN", "Normal", 91)]
    assert "flowkin query_similar 'pcap/x; reboot'" in text_of(lambda out: out.answers([(none, 1)], several=False))
    none.query_flows = [Flow(9, "x", "pcap", T0, "BENIGN", "Normal", 5)]
    assert "query_similar" not in text_of(lambda out: out.answers([(none, 1)], several=False))


def test_json_is_one_line_in_a_pipe_and_ndjson_one_line_each():
    assert text_of(lambda out: out.answers([(answer(), 1)], several=False), "json").count("\n") == 1
    lines = text_of(lambda out: out.answers([(answer(), 1), (answer(), 2)], several=True), "ndjson").splitlines()
    assert [json.loads(line)["generation"] for line in lines] == [1, 2]
    several = json.loads(text_of(lambda out: out.answers([(answer(), 1), (answer(), 2)], several=True), "json"))
    assert [one["generation"] for one in several] == [1, 2]
    assert json.loads(text_of(lambda out: out.answers([], several=True), "json")) == []


@pytest.mark.parametrize("format", ["json", "ndjson"])
def test_what_passes_is_a_line_each_for_it_has_no_end(format):
    stream = io.StringIO()
    Out(format, Writer(stream)).passing([Stored(n, event(n)) for n in (1, 2)])
    assert [json.loads(line)["seq"] for line in stream.getvalue().splitlines()] == [1, 2]


def test_a_judgement_in_words_and_as_json():
    given = [(judgement(event(1)), 42)]
    text = text_of(lambda out: out.judgements(given, several=False, listed=False))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "DDoS 88 % 75 % of the vote" in lines and "none of these 6 % 12 % doubt" in lines
    assert "not calibrated" in text and "no close precedent: 97 % of events with a precedent had" in text
    assert "x14" in text and "an analyst" in text and "50 may vote" in text
    document = json.loads(text_of(lambda out: out.judgements(given, several=False, listed=False), "json"))
    assert {
        "generation", "query", "family", "probability", "runners_up", "novelty", "no_close_precedent", "false_alarm",
        "calibrated", "precedents", "k", "votes", "doubt", "distances", "percentiles", "space", "model",
    } <= document.keys()  # fmt: skip
    assert document["runners_up"] == [{"family": "DoS", "probability": 0.0625}]
    assert document["distances"] == {"min": 0.5, "median": 0.5, "max": 0.5}
    first = document["precedents"][0]
    assert [first[key] for key in ("family", "detector_family", "labelled", "weight")] == ["DDoS", "DDoS", True, 0.75]
    assert set(Event.__struct_fields__) <= first.keys()
    nobody = judgement(event(1), precedents=[], family="", probability=0.0, distances=[], percentiles=[])
    assert "no event may vote" in text_of(lambda out: out.judgements([(nobody, 1)], several=False, listed=False))
    said = json.loads(text_of(lambda out: out.judgements([(nobody, 1)], several=False, listed=False), "json"))
    assert said["family"] is None and said["distances"] is None


def test_nan_is_null_in_json():
    nan = Answer("attack", "m", "l2", True, 1, 1, 1, None, [Hit(1, float("nan"), float("inf"), 1, event())])
    hit = json.loads(text_of(lambda out: out.answers([(nan, 1)], several=False), "json"))["hits"][0]
    assert hit["distance"] is None and hit["percentile"] is None


@pytest.mark.parametrize("terminal", [False, True])
def test_json_has_nothing_that_a_terminal_acts_on_and_the_same_value(terminal, monkeypatch):
    hostile = "a\x9b31m\u202egpj\x7f\u2028\U000e0041 \N{LATIN SMALL LETTER E WITH ACUTE}\U0001f600"
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    Out("json", Writer(stream)).document({"event_id": hostile, "n": [1, None]})
    text = stream.getvalue()
    assert json.loads(text) == {"event_id": hostile, "n": [1, None]}
    assert not set(text) & set("\x9b\u202e\x7f\u2028\U000e0041") and "\U0001f600" in text
    assert (len(text.splitlines()) > 1) == terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_text_of_an_event_is_escaped_in_tables_and_lines(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    evil = event(7, text=EVIL, event_id=EVIL.replace("\x00", ""), family=EVIL, decision="DROP", source="a\x1bb")
    said = Annotation(label=EVIL, history=[(T0, EVIL, "label", EVIL)])
    hit = Hit(1, 0.1, 0.1, 1, evil, said)
    asked = Answer("sbert", EVIL, "l2", True, 1, 1, 1, evil, [hit], plan=EVIL)
    asked.explain = [Explanation(event_id=EVIL, space="sbert", distance=0.1, words=[(EVIL, 0.5)])]
    stream = io.StringIO()
    writer = Writer(stream)
    writer.terminal = terminal
    out = Out("text", writer)
    out.answers([(asked, 1)], several=False, plan=True)
    out.answers([(asked, 1)], several=True, brief=True)
    out.judgements([(judgement(evil), 1)], several=False, listed=False)
    out.judgements([(judgement(evil), 1)] * 2, several=True, listed=True)
    out.events([Found(1, 1, [Stored(1, evil, said)])])
    out.passing([Stored(1, evil, said)])
    out.stored(Stored(1, evil, said, struct.pack(f"<{FEATURE_COUNT}f", *[1.0] * FEATURE_COUNT)), 1)
    out.stored(Stored(1, evil, said, raw=EVIL.encode()), 1, raw=True)
    out.facts({EVIL: EVIL, "nested": {EVIL: {"x": EVIL}}}, generation=1)
    text = stream.getvalue()
    for bad in "\x00\x07\r\x9b\u202e\u2066\u2069\u200b":
        assert bad not in text, repr(bad)
    assert "\x1b[31m" not in text and "\x1b[0m red" not in text
    if not terminal:
        assert "\x1b" not in text
    assert "\\x1b[31mred" in text and "\\u202e" in text


def test_a_pipe_gets_aligned_text_whose_columns_begin_at_the_same_place():
    lines = text_of(lambda out: hits(out.to, answer().hits)).splitlines()
    assert lines[0].split()[:4] == ["#", "ID", "DISTANCE", "PCTL"]
    assert len(lines) == 4
    for title in ("ID", "FAMILY", "CLASS", "SOURCE"):
        at = lines[0].index(title)
        assert all(line[at - 1] == " " and line[at] != " " for line in lines[1:])
    assert "[2001:db8::5]:443" in lines[1] and "x14" in lines[1]


def test_wide_characters_keep_columns_aligned():
    stream = io.StringIO()
    Writer(stream).table([Column("A"), Column("B")], [["日本", "x"], ["ab", "x"]])
    assert stream.getvalue().splitlines()[1:] == ["日本  x", "ab    x"]


def test_empty_columns_are_left_out():
    stream = io.StringIO()
    Writer(stream).table([Column("A"), Column("B"), Column("C")], [["1", "", "3"], ["4", Span(""), "6"]])
    assert stream.getvalue().splitlines()[0].split() == ["A", "C"]


def test_the_human_answer_says_all_that_was_promised():
    text = text_of(lambda out: out.answers([(answer(), 42)], several=False, plan=True))
    for part in (
        "query  synthetic_000001", "discrepancy 0.35", "67 % of the hits are DDoS (2 of 3)", "no close precedent",
        "nearer than 99.80 % of random pairs", "agree", "disagree", "pulls together", "12 packets", "300 ms", "-5.3",
        "+0.3000", "counter-example", "set apart by", "true_positive 1 (of 3)", "DROP 2, ALLOW 1", "BLOCK 1",
        "first seen", "last seen", "2026-05-05 16:53:22.000", "exact", "12,345 scanned", "generation 42",
        "plan: exact over 12345 rows",
    ):  # fmt: skip
        assert part in text, part


def test_a_counter_example_that_is_a_hit_is_told_by_its_number():
    given = answer()
    assert given.counter_example is not None
    given.counter_example.seq = given.hits[2].seq
    text = text_of(lambda out: out.answers([(given, 42)], several=False))
    assert "nearest of another family: hit #3, above  Normal" in text and "set apart by" not in text


def test_a_fused_percentile_is_no_rank_among_pairs_and_none_is_rounded_to_all():
    given = answer()
    given.explain = given.explain[:2]
    given.explain[0].spaces = {"attack": (0.4, 0.8, 0.6), "sbert": (0.1, 5.0, 0.4)}
    given.explain[1].percentile = 0.001
    text = text_of(lambda out: out.answers([(given, 42)], several=False))
    assert "the mean of these percentiles" in text and "nearer than over 99.99 % of random pairs" in text


def test_what_is_of_the_flow_comes_before_what_was_around_it_and_what_one_side_lacks_is_said():
    given = answer()
    given.explain = given.explain[:1]
    given.explain[0].disagree = ["traffic_amplification_factor", "access_frequency", "syn_flag_count"]
    given.explain[0].contributions.append(Contribution("access_frequency", 0.2, 0.1, 0.4, 0.02))
    text = text_of(lambda out: out.answers([(given, 42)], several=False))
    lines = [line for line in text.splitlines() if "+0." in line or "-0." in line]
    at = {name: next(i for i, line in enumerate(lines) if name in line) for name in given.explain[0].disagree}
    assert at["traffic_amplification_factor"] < at["syn_flag_count"] < at["access_frequency"]
    assert "told of the hit only" in lines[at["traffic_amplification_factor"]]
    assert "disagree, around" in lines[at["access_frequency"]]


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(1.0, "packets", "1 packet"), (1.0, "packets/s", "1 packet/s"), (1.0, "s", "1 s"), (2.0, "packets", "2 packets")],
)
def test_one_is_one(value, unit, said):
    assert quantity(value, unit) == said


def test_names_that_say_little_are_explained_once():
    given = answer()
    given.explain = [msgspec.structs.replace(e, disagree=["traffic_amplification_factor"]) for e in given.explain]
    text = text_of(lambda out: out.answers([(given, 1)], several=False))
    assert text.count("what the names mean") == 1
    assert text.count(FEATURES[INDEX["traffic_amplification_factor"]].definition[:30]) == 1
    assert FEATURES[INDEX["flow_duration"]].definition not in text  # its name says it


def test_a_table_says_what_a_detector_said_and_not_what_a_flow_carried():
    alert = Stored(7, event(7, kind="alert", text="ET MALWARE beacon | more"))
    text = text_of(lambda out: out.events([Found(1, 9, [alert, Stored(8, event(8, text="GET /"))], [])]))
    assert "SAYS" in text and "ET MALWARE beacon" in text and "more" not in text and "GET /" not in text


def test_shown_contributions_and_the_rest_add_up_to_the_distance():
    text = text_of(lambda out: out.answers([(answer(), 42)], several=False))
    assert "0.4200" in text  # 0.30 + 0.08 + 0.05 - 0.01
    parts = split(answer().explain[0])
    assert [c.feature for c in parts.agree] == ["flow_duration"]
    assert [c.feature for c in parts.disagree] == ["syn_flag_count"]


def test_what_a_division_misses_has_a_line():
    exact, off = answer(), answer()
    off.explain[0].distance = 0.4212
    assert "+0.0012" not in text_of(lambda out: out.answers([(exact, 42)], several=False))
    text = text_of(lambda out: out.answers([(off, 42)], several=False))
    assert "not divided" in text and "+0.0012" in text and "0.4212" in text


def test_a_distance_of_nothing_says_how_much_was_compared():
    bare = answer()
    both, one = Contribution("protocol_number", 6.0, 6.0, 0.0, 0.0), Contribution("flow_duration", None, 1.0, None, 0.0)
    bare.explain = [Explanation(event_id="x", space="attack", distance=0.0, contributions=[both, one])]
    assert "1 feature in common, no difference" in text_of(lambda out: out.answers([(bare, 42)], several=False))


def test_split_without_names_takes_what_pulls_most():
    bare = Explanation(event_id="x", space="attack", distance=0.42, contributions=contributions())
    parts = split(bare, most=1)
    assert [c.feature for c in parts.disagree] == ["syn_flag_count"]
    assert [c.feature for c in parts.agree] == ["flow_duration"]


def test_what_differs_is_never_said_to_agree():
    """Where the engine names none that does, there may be none."""
    apart = Explanation(event_id="x", space="attack", distance=0.01, disagree=["psh_flag_count"])
    apart.contributions = [
        Contribution("psh_flag_count", 9.0, 1.0, -3.1, 0.05), Contribution("ack_flag_count", 9.0, 1.0, 3.0, -0.04)
    ]  # fmt: skip
    assert split(apart).agree == []
    apart.contributions.append(Contribution("ssh", 1.0, 1.0, None, 0.0))  # a word
    assert [c.feature for c in split(apart).agree] == ["ssh"]


def test_an_event_without_a_time_is_not_of_1970():
    hits = [Hit(n, 0.1, 0.1, 1, event(n, ts=ts)) for n, ts in enumerate((0, T0, T0 + 10**9, 0))]
    assert (outcome(hits).first_seen, outcome(hits).last_seen) == (T0, T0 + 10**9)
    assert outcome(hits[:1]).first_seen is None


def test_a_counter_example_by_its_text_has_words_in_common():
    said = answer()
    same = [Contribution("ssh", 1.0, 1.0, None, 0.0)]
    said.counter_example = CounterExample(9, 0.0, event(9, family="DDoS"), same)
    for space, weights, noun in (("attack", {}, "feature"), ("sbert", {}, "word"), ("fused", {"sbert": 1.0}, "word")):
        told = msgspec.structs.replace(said, space=space, weights=weights, explain=[])
        assert f"1 {noun} in common, no difference" in text_of(lambda out, a=told: out.answers([(a, 1)], several=False))


def test_outcome_counts_what_became_of_the_hits():
    o = outcome(answer().hits)
    assert (o.hits, o.events, o.unlabelled) == (3, 16, 2)
    assert o.labels == {"true_positive": 1} and o.decisions == {"DROP": 2, "ALLOW": 1}
    assert o.firewall_actions == {"BLOCK": 1}
    assert (o.first_seen, o.last_seen) == (T0 + 2 * 10**9, T0 + 4 * 10**9)
    assert outcome([]).first_seen is None


def test_an_answer_without_hits_says_so():
    known = msgspec.structs.replace(event(), coverage=60)
    nothing = Answer("attack", "m", "l2", True, 0, 0, 10, known, [], no_close_precedent=True)
    text = text_of(lambda out: out.answers([(nothing, 1)], several=False))
    assert "no event matches" in text and "nearest" not in text
    assert answer_document(nothing, 1)["outcome"]["first_seen"] is None


def test_features_are_shown_by_group_with_units():
    values = [float(i) if i else float("nan") for i in range(FEATURE_COUNT)]
    stored = Stored(1, event(verdicts=[Verdict("fast", "MALICIOUS", 0.9)]), None, struct.pack("<105f", *values))
    text = text_of(lambda out: out.stored(stored, 1))
    assert "104 of 105 features present" in text and "missing: protocol_number" in text
    assert "flow_duration" in text and "SIG_MATCH" not in text and "fast" in text
    document = json.loads(text_of(lambda out: out.stored(stored, 1), "json"))
    assert document["features"]["flow_duration"] == 3.0 and document["features"]["protocol_number"] is None
    assert document["history"] == []


def test_an_event_whose_label_was_taken_away_says_so_in_its_history_only():
    history = [(T0, "ana", "label", "seen"), (T0, "ana", "label", "")]
    said = Annotation(labelled_by="ana", labelled_at=T0, history=history)
    text = text_of(lambda out: out.stored(Stored(1, event(), said), 1))
    assert "labelled_" not in text and text.count("ana") == 2


def test_raw_record_is_printed_escaped():
    stored = Stored(1, event(), None, raw=b'{"a": "\x1b[2J\xff"}')
    assert text_of(lambda out: out.stored(stored, 1, raw=True)) == '{"a": "\\x1b[2J\ufffd"}\n'


def test_list_says_how_to_go_on():
    page = Found(1, 9, [Stored(5, event())], [], 5)
    assert "--after 5" in text_of(lambda out: out.events([page]))
    document = json.loads(text_of(lambda out: out.events([page]), "json"))
    assert document["next_seq"] == 5 and document["generation"] == 9 and document["events"][0]["seq"] == 5
    assert "no event matches" in text_of(lambda out: out.events([Found(1, 9, [])]))


def test_ingest_document_is_passed_through():
    summary = {"accepted": 3, "duplicates": 0, "rejected": 1, "dead_letters": "/x", "joined": 0, "waiting": 0,
               "generation": 2, "seconds": 0.5}  # fmt: skip
    assert json.loads(text_of(lambda out: out.ingested(summary), "json")) == summary
    assert "/x" in text_of(lambda out: out.ingested(summary))


def test_facts_become_lines_and_tables():
    facts = {
        "events": 12_345,
        "data_bytes": 5 << 20,
        "sources": {"eve": {"events": 3, "coverage": "11/105"}, "cicflow": {"events": 4, "coverage": "80/105"}},
        "empty": {},
        "followed_files": [{"path": "conn.log", "event_at": 959_830_277_000}],  # a capture of relative times
        "switch": {"events_per_s": 512.0, "left_s": 512.0},
        "readers": [{"pid": 12345, "confined": {"seccomp": True}}, {"pid": 2, "confined": {"seccomp": False}}],
    }
    text = text_of(lambda out: out.facts(facts, generation=3))
    for part in (
        "12,345",
        "5.0 MiB",
        "SOURCES",
        "11/105",
        "COVERAGE",
        "PID",
        "CONFINED SECCOMP",
        "12345",
        "1970-01-01T00:15:59",
        "512",
        "8 min 32 s",
    ):
        assert part in text, part
    assert "{" not in text
    assert json.loads(text_of(lambda out: out.facts(facts, generation=3), "json")) == {"generation": 3} | facts


def test_colours_only_on_a_terminal_and_not_with_no_color(monkeypatch):
    def drawn() -> str:
        stream = io.StringIO()
        writer = Writer(stream)
        writer.terminal = True
        Out("text", writer).answers([(answer(), 1)], several=False)
        return stream.getvalue()

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in drawn()
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in drawn()


@pytest.mark.parametrize("columns", [60, 80, 100, 140, 200])
def test_ids_are_never_cut_on_a_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    writer = Writer(stream)
    writer.terminal = True
    hits(writer, answer().hits)
    assert all(f"synthetic_{n:06d}" in stream.getvalue() for n in (2, 3, 4))


def test_times():
    assert iso(T0) == "2026-05-05T16:53:20Z"
    assert iso(T0 + 5_000_000) == "2026-05-05T16:53:20.005Z"
    assert iso(T0 + 5_000) == "2026-05-05T16:53:20.000005Z"
    assert iso(T0 + 5) == "2026-05-05T16:53:20.000000005Z"
    assert iso((1 << 63) - 1).startswith("2262-04-11")
    assert when(T0) == "2026-05-05 16:53:20.000" and when(0) == "-"
    assert event_document(event(ts=T0 + 5))["ts"].endswith(".000000005Z")


def test_instants():
    now = 1_000_000_000_000_000_000
    assert instant("24h", now) == now - 86_400 * 10**9
    assert instant("7d", now) == now - 7 * 86_400 * 10**9
    assert instant("1h30m", now) == now - 5_400 * 10**9
    assert instant("now", now) == now
    assert instant("9" * 400 + "d", now) == 0
    assert instant("9999-12-31", now) == (1 << 63) - 1
    assert instant("2026-05-05T16:53:20Z") == T0
    assert instant("2026-05-05 16:53:20.000000005") == T0 + 5
    assert instant("2026-05-05T18:53:20+02:00") == T0
    assert instant("2026-05-05") == 1_777_939_200 * 10**9
    for bad in ("", "yesterday", "5 parsecs", "2026-13-01", "12", "24h7x"):
        with pytest.raises(ValueError):
            instant(bad)


def test_words():
    assert clean("a\tb") == "a\\x09b" and clean("plain \u00e9 \U0001f600") == "plain \u00e9 \U0001f600"
    assert [duration(s) for s in (0.0000005, 0.0009998, 0.0032, 0.9997, 3.0, 250, 7_300, 200_000)] == [
        "0.5 us", "1 ms", "3.2 ms", "1 s", "3 s", "4 min 10 s", "2 h 1 min", "2 d 7 h",
    ]  # fmt: skip
    assert quantity(None) == "-" and quantity(float("nan")) == "-"
    assert quantity(1_500_000.0, "us") == "1.5 s" and quantity(12.0, "packets") == "12 packets"
    assert quantity(0.00001) == "1e-05"
