"""The generator: the same bytes for the same seed, in order, consistent, with every family and its look-alikes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from itertools import islice

import msgspec
import numpy as np
import pytest

from engine.features import CONTEXT_INDEXES, F32, INDEX, NAMES, unpack
from engine.flows.derived import derive
from engine.normalize import complete
from engine.sources.synthetic import PROFILE, START_NS, flow_features, generate
from ipc.event import FeaturedEvent

N = 6_000
DIGEST = (
    "import hashlib, msgspec; from engine.sources.synthetic import generate;"
    "print(hashlib.sha256(b''.join(msgspec.msgpack.encode(e) for e in generate(800, 3))).hexdigest())"
)


@pytest.fixture(scope="module")
def events() -> list[FeaturedEvent]:
    return list(generate(N, seed=7))


@pytest.fixture(scope="module")
def rows(events: list[FeaturedEvent]) -> F32:
    return unpack([e.features for e in events])


def column(rows: F32, name: str) -> F32:
    return rows[:, INDEX[name]]


def close(a: F32, b: F32) -> bool:
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-3, equal_nan=True))


def test_the_same_seed_gives_the_same_bytes_in_any_process() -> None:
    here = hashlib.sha256(b"".join(msgspec.msgpack.encode(e) for e in generate(800, 3))).hexdigest()
    for hash_seed in ("0", "1"):
        env = {"PYTHONHASHSEED": hash_seed}
        there = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=True)
        assert there.stdout.strip() == here


def test_fewer_events_are_a_prefix_of_more_and_another_seed_differs(events: list[FeaturedEvent]) -> None:
    assert list(generate(500, seed=7)) == events[:500]
    assert list(islice(generate(10**9, seed=7), 500)) == events[:500]
    assert next(generate(1, seed=8)).event.ts != events[0].event.ts


def test_events_are_numbered_in_order_of_time_and_valid(events: list[FeaturedEvent]) -> None:
    assert [e.event.event_id for e in events] == [f"synthetic_{i:06d}" for i in range(N)]
    times = [e.event.ts for e in events]
    assert times == sorted(times) and times[0] >= START_NS
    assert len({e.raw for e in events}) == N and all(e.raw.startswith(b"synthetic 2 seed=7 ") for e in events)
    for item in generate(300, seed=2):
        complete(msgspec.msgpack.decode(msgspec.msgpack.encode(item), type=FeaturedEvent))


def test_every_family_appears_and_classification_mostly_follows(events: list[FeaturedEvent]) -> None:
    seen = Counter((e.event.family, e.event.classification == "BENIGN") for e in generate(40_000, seed=1))
    families = {family for family, _ in seen}
    assert families == {"Normal", "DDoS", "PortScan", "Ransomware", "BruteForce", "C2", "Exfiltration"}
    for family in families:
        right, wrong = seen[family, family == "Normal"], seen[family, family != "Normal"]
        assert right > 4 * wrong, family
    assert len({e.event.discrepancy for e in events}) > N / 4
    assert sum(bool(e.event.text) for e in events) > N / 4


def test_look_alikes_are_there(events: list[FeaturedEvent], rows: F32) -> None:
    benign = np.array([e.event.family == "Normal" for e in events])
    assert (benign & (column(rows, "total_forward_bytes") > 1e7)).any()  # a backup
    assert sum(e.event.src_ip == "10.0.0.60" for e in events) > 200  # the monitoring system
    assert sum(e.event.dst_ip.startswith("203.0.113.1") for e in events) > 50  # updates


def test_flow_features_agree_with_each_other(events: list[FeaturedEvent], rows: F32) -> None:
    assert np.isnan(rows[:, list(CONTEXT_INDEXES)]).all()
    seconds = column(rows, "flow_duration")
    spans = np.array([e.event.ts - e.event.ts_start for e in events]) / 1e9
    assert close(seconds, spans.astype(np.float32))
    n = column(rows, "total_forward_packets") + column(rows, "total_backward_packets")
    several = n > 1
    assert close(column(rows, "flow_inter_arrival_time_mean")[several], seconds[several] * 1e6 / (n[several] - 1))
    for side in ("forward", "backward"):
        packets, size = column(rows, f"total_{side}_packets"), column(rows, f"total_{side}_bytes")
        smallest, mean, largest = (column(rows, f"{side}_packet_length_{w}") for w in ("min", "mean", "max"))
        assert close(mean * packets, size)
        assert (smallest <= mean * 1.0001).all() and (mean <= largest * 1.0001 + 1e-3).all() and (largest <= 1460).all()
        assert (column(rows, f"{side}_packet_length_std")[packets < 2] == 0).all()
        gaps = packets > 1
        total, gap = (column(rows, f"{side}_inter_arrival_time_{w}")[gaps] for w in ("total", "mean"))
        assert close(gap * (packets[gaps] - 1), total) and (total <= seconds[gaps] * 1e6 * 1.0001).all()
        assert np.isnan(column(rows, f"{side}_inter_arrival_time_mean")[~gaps]).all()
    tcp = column(rows, "protocol_number") == 6
    flags = [c for c, name in enumerate(INDEX) if name.endswith(("_flag_count", "_flags"))]
    assert (rows[~tcp][:, flags] == 0).all()
    assert (column(rows, "ack_flag_count") <= n).all() and (column(rows, "packet_size_entropy") >= 0).all()


def test_memory_is_bounded() -> None:
    code = (
        "import resource; from collections import deque; from engine.sources.synthetic import generate\n"
        "deque(generate(3_000, 1), 0); a = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "deque(generate(60_000, 1), 0); b = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(b - a)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 32 * 1024


def separation(a: F32, b: F32) -> tuple[float, str]:
    """Balanced accuracy of the best threshold on one feature between two kinds of flows, and the feature."""
    found = []
    for column, name in enumerate(NAMES):
        x, y = a[:, column], b[:, column]
        x, y = x[~np.isnan(x)], y[~np.isnan(y)]
        if len(x) < len(a) / 2 or len(y) < len(b) / 2:
            continue
        for edge in np.unique(np.quantile(np.concatenate([x, y]), np.linspace(0, 1, 201))):
            right = (np.mean(x > edge) + np.mean(y <= edge)) / 2
            found.append((float(max(right, 1 - right)), name))
    return max(found)


@pytest.mark.parametrize(
    ("benign", "attack", "at_most"),
    [
        ("backup", "upload", 0.87),
        ("monitor", "probe", 0.91),
        ("update", "beacon", 0.91),
        ("http", "http_flood", 0.85),
        ("file", "encrypting", 0.92),
        ("dns", "dns_beacon", 0.80),
    ],
)
def test_no_threshold_on_one_flow_feature_tells_a_look_alike_from_an_attack(
    benign: str, attack: str, at_most: float
) -> None:
    """Entropy among them: an archive has as much of it as what was encrypted."""
    rng, n = np.random.default_rng(1), 2_000
    kinds = []
    for name in (benign, attack):
        rows, _ = flow_features(rng, np.full(n, PROFILE[name]))
        derive(rows)
        kinds.append(rows)
    found, name = separation(*kinds)
    assert 0.55 < found < at_most, name


def test_no_threshold_tells_a_family_from_the_rest(events: list[FeaturedEvent]) -> None:
    """With the context features, too: an attack takes more than one look."""
    from engine.config import CIDRS_INTERNAL
    from engine.context import Tracker
    from engine.featurize import featurize

    items = list(generate(20_000, seed=7))
    rows = unpack([item.features for item in items])
    featurize([item.event for item in items], rows, Tracker(CIDRS_INTERNAL))
    family = np.array([item.event.family for item in items])
    for name in sorted(set(family) - {"Normal"}):
        found, feature = separation(rows[family == name], rows[family == "Normal"])
        assert found < 0.997, (name, feature)


def test_quiet_beacons_ask_for_names_like_others() -> None:
    """Hosts with a word of hex are asked for by everybody, by beacons more often, and not by most of them."""
    named: dict[bool, list[bool]] = {False: [], True: []}
    for item in generate(12_000, seed=8):
        event = item.event
        if event.dst_port == 53 and event.text.startswith("dns | ") and event.family in ("Normal", "C2"):
            first = event.text.split(" | ")[1].partition(".")[0]
            named[event.family == "C2"].append(len(first) == 8 and not set(first) - set("0123456789abcdef"))
    assert len(named[True]) > 20
    assert 0.05 < np.mean(named[False]) < np.mean(named[True]) < 0.6


def test_an_engine_alone_is_often_wrong(events: list[FeaturedEvent]) -> None:
    """Verdicts overlap: scores of attacks and of everyday traffic cover each other."""
    score = {False: [], True: []}  # type: ignore[var-annotated]
    for item in generate(12_000, seed=3):
        score[item.event.family == "Normal"].append(item.event.fast_score)
    attacks, everyday = (np.sort(np.array(score[key])) for key in (False, True))
    assert np.mean(attacks < everyday[int(0.98 * len(everyday))]) > 0.03
    assert np.mean(everyday > attacks[int(0.02 * len(attacks))]) > 0.03


def test_a_day_has_its_rhythm() -> None:
    """Fewer flows at night and at the weekend."""
    hour_ns = 3600 * 10**9

    def workstation_flows_per_s(hours_later: int) -> float:
        start_ns = START_NS + hours_later * hour_ns
        times = [
            item.event.ts for item in generate(1_200, seed=5, start_ns=start_ns)
            if item.event.family == "Normal" and item.event.src_ip.startswith("10.1.")
        ]  # fmt: skip
        return len(times) / ((times[-1] - start_ns) / 1e9)

    noon, night, saturday = (workstation_flows_per_s(hours) for hours in (5, 19, 5 * 24 + 5))
    assert noon > 2 * night and noon > 1.5 * saturday
