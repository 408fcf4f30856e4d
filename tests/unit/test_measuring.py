"""What is measured of a data directory: recall against exact search, neighbours, drift, coverage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from engine.config import CIDRS_INTERNAL, Config
from engine.context import Tracker
from engine.embed import fit as fitting
from engine.embed import models, reference
from engine.embed.base import SPACES
from engine.embed.models import CARD, Data
from engine.embed.ship import observed
from engine.errors import ModelError
from engine.features import INDEX, pack, unpack
from engine.maintain import gauges, quality
from engine.maintain.gauges import Measured
from engine.maintain.measuring import Measuring
from engine.store import index
from engine.store.manifest import IndexFile
from engine.upgrade import METRICS, RULES, Gauge, fired
from ipc.event import FeaturedEvent
from tests.events import make, several
from tests.store_fixture import ROWS, Store

FITTED = 600
NOTHING = dict.fromkeys(METRICS, Gauge(None, 0))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A version with the reference of the first FITTED events, as they are stored."""
    events, features = observed(several(FITTED), Tracker(CIDRS_INTERNAL))
    return fitting.fit(events, features, version="t1", seed=1, data=Data(description="a test"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "data") as made:
        yield made


def measured(store: Store, *, window: int = 10_000, sample: int = 200, seed: int = 0) -> Measured:
    return quality.measure(store.layout, store.catalog, window=window, sample=sample, seed=seed)


def used(store: Store, files: dict[str, bytes]) -> None:
    store.switch(models.save(store.layout.models, files).name)


def values(found: Measured) -> dict[str, float | None]:
    return {name: gauge.value for name, gauge in found.gauges.items()}


def value(found: Measured, metric: str) -> float:
    known = found.gauges[metric].value
    assert known is not None, found.unmeasured
    return known


def moved(items: list[FeaturedEvent], names: tuple[str, ...]) -> list[FeaturedEvent]:
    """Copies whose features of these names are ten times as large."""
    out = []
    for item in items:
        row = unpack([item.features])[0].copy()
        row[[INDEX[name] for name in names]] *= 10
        out.append(FeaturedEvent(item.event, pack(row), item.raw))
    return out


# ---- recall


def reindexed(store: Store, nprobe: int, *, scrambled: bool = False) -> None:
    """One index in each space over all rows, 40 in a list; scrambled: built over the rows in another order."""
    count, files, made = store.publisher.manifest.count, store.files(), []
    for space in SPACES:
        rows = np.concatenate([file.vectors[space] for file in files])[:count]
        rows = rows[np.random.default_rng(1).permutation(count)] if scrambled else rows
        name = f"{space}-{nprobe}-{scrambled}"
        built = index.Made(index.inverted([rows], count // 40, half=False), "ivf_flat", nprobe, None)
        size, checksum = index.write(built, store.layout.index_file(name))
        made.append(IndexFile(space, 0, count, name, size, checksum, built.kind, nprobe))
    store.publisher.drop_indexes([file.file for file in store.publisher.manifest.indexes])
    store.publisher.swap_in(made)


def test_recall_is_1_where_rows_are_searched_exactly_and_falls_with_what_an_index_misses(store: Store) -> None:
    store.publish(several(640))
    exact = measured(store)
    assert value(exact, "recall_at_10") == 1.0 and exact.spaces["attack"].indexed == 0
    store.index()
    usual = measured(store)
    assert usual.spaces["attack"].indexed == 640 and value(usual, "recall_at_10") > 0.98
    reindexed(store, nprobe=1)
    few = measured(store)
    reindexed(store, nprobe=4)
    more = measured(store)
    reindexed(store, nprobe=16, scrambled=True)
    wrong = measured(store)
    assert all((s.recall_at_10 or 0.0) < 0.5 for s in wrong.spaces.values())
    assert value(few, "recall_at_10") < 0.98 and value(few, "recall_at_10") < value(more, "recall_at_10")
    assert value(few, "recall_at_10") == min(s.recall_at_10 or 0.0 for s in few.spaces.values())
    assert "recall" in [a["rule"] for a in fired(RULES, NOTHING | few.gauges)]
    assert "recall" not in [a["rule"] for a in fired(RULES, NOTHING | usual.gauges)]


def test_an_index_that_cannot_be_opened_leaves_its_rows_exact(store: Store) -> None:
    store.publish(several(2 * ROWS))
    store.index()
    for file in store.publisher.manifest.indexes[:1]:
        store.layout.index_file(file.file).unlink()
    found = measured(store)
    assert found.spaces[store.publisher.manifest.indexes[0].space].indexed == ROWS
    assert values(found)["recall_at_10"] is not None


# ---- neighbours


def test_families_that_lie_apart_are_each_others_neighbours_until_labels_say_otherwise(store: Store) -> None:
    store.publish(several(400))
    before = measured(store)
    assert value(before, "same_family_at_5") > 0.9 and before.gauges["same_family_at_5"].n == 200
    for n in range(400):  # every second one of each family
        store.publisher.annotate(f"e{n:06d}", "Ransomware" if n // 4 % 2 else "Botnet", "ann")
    after = measured(store)
    assert value(after, "same_family_at_5") < value(before, "same_family_at_5") - 0.2


def test_a_flood_is_near_duplicates_and_what_is_sent_again_is_counted(store: Store) -> None:
    store.publish(several(100))
    assert value(measured(store), "near_duplicate_share") == 0.0
    store.publish(several(100))
    again = measured(store).gauges["duplicate_share"]
    assert (again.value, again.n) == (0.5, 200)
    flood = [FeaturedEvent(item.event, several(1)[0].features, b"") for item in several(300, 100, src_ip="", dst_ip="")]
    store.publish(flood)
    assert value(measured(store), "near_duplicate_share") > 0.3


def test_what_was_purged_is_not_measured(store: Store, files: dict[str, bytes]) -> None:
    """Its rows are there still, and empty."""
    store.publish(several(FITTED))
    used(store, files)
    before = measured(store)
    store.purge(ids=[f"e{n:06d}" for n in range(100, 500)])
    after = measured(store)
    assert after.window == FITTED - 400
    assert value(after, "coverage_ratio") == pytest.approx(value(before, "coverage_ratio"), rel=0.02)
    assert {drift.n for drift in after.drift} <= set(range(FITTED - 399))


def test_of_events_of_which_too_little_is_known_no_behaviour_is_measured(store: Store) -> None:
    """Their features are all alike for being unknown; no question finds one by them (KNOWN_MIN)."""
    store.publish(several(40))
    alone = measured(store)
    store.publish([FeaturedEvent(make(n, src_ip="", dst_ip="", proto=None).event) for n in range(100, 160)])
    found = measured(store)
    assert found.gauges["near_duplicate_share"] == alone.gauges["near_duplicate_share"] == Gauge(0.0, 40)
    assert found.sample == 100 and found.gauges["novel_share"].n == 40


def test_what_is_like_nothing_is_novel(store: Store, files: dict[str, bytes]) -> None:
    store.publish(several(FITTED))
    used(store, files)
    assert value(measured(store), "novel_share") < 0.15
    rng = np.random.default_rng(3)
    lonely = []
    for item in several(100, FITTED):
        row = unpack([item.features])[0].copy()
        row[:65] *= np.exp(rng.normal(0, 4, 65)).astype(np.float32)
        lonely.append(FeaturedEvent(item.event, pack(row), b""))
    store.publish(lonely)
    found = measured(store, window=1_000)
    assert value(found, "novel_share") > 0.1


# ---- drift


def test_events_like_the_training_data_have_not_moved_and_others_are_named(
    store: Store, files: dict[str, bytes]
) -> None:
    store.publish(several(FITTED))
    used(store, files)
    same = measured(store)
    assert (
        value(same, "drifted_features_share") == 0.0 and not any(d.major for d in same.drift) and same.unmeasured == {}
    )
    assert value(same, "psi_attack") < 0.1 and value(same, "coverage_ratio") == pytest.approx(1.0, abs=0.02)
    names = ("flow_duration", "total_forward_packets", "total_backward_packets")
    store.publish(moved(several(FITTED, FITTED), names))
    store.publish(several(1, 9_999))  # so that the last row file is not full
    after = measured(store, window=FITTED)
    assert set(names) <= {d.feature for d in after.drift if d.major}
    assert all(d.psi > 0.25 and d.p < 0.001 and d.n == FITTED for d in after.drift if d.feature in names)
    share = value(after, "drifted_features_share")
    assert 0 < share < 0.5
    assert value(after, "psi_attack") > value(same, "psi_attack")


def test_few_events_and_a_model_without_a_reference_are_not_judged(store: Store, files: dict[str, bytes]) -> None:
    store.publish(several(150))
    used(store, files)
    few = measured(store)
    assert values(few)["psi_attack"] is None and few.unmeasured["psi_attack"] == "too few events"
    store.switch()  # a version that was made without
    found = measured(store)
    drift = {"drifted_features_share", "coverage_ratio", "psi_chronos", "psi_sbert", "psi_attack"}
    assert {name for name, value in values(found).items() if value is None} == drift == set(found.unmeasured)
    assert "no reference" in found.unmeasured["psi_attack"]


# ---- bounds


def test_nothing_and_one_event(store: Store) -> None:
    nothing = measured(store)
    assert all(value is None for value in values(nothing).values()) and nothing.events == 0
    store.publish(several(1))
    one = measured(store)
    assert values(one)["recall_at_10"] is None and one.window == one.sample == 1


def test_the_same_seed_measures_the_same_and_nothing_is_written(store: Store) -> None:
    store.publish(several(300))
    store.index()
    before = {p: p.read_bytes() for p in store.layout.data_dir.rglob("*") if p.is_file() and "lock" not in p.name}

    def told(seed: int) -> dict[str, object]:
        found = msgspec.to_builtins(measured(store, sample=50, seed=seed))
        return {k: v for k, v in found.items() if k not in ("measured_at", "seconds", "cpu_s")}

    assert told(1) == told(1)
    assert told(1) != told(2)
    after = {p: p.read_bytes() for p in store.layout.data_dir.rglob("*") if p.is_file() and "lock" not in p.name}
    assert after == before


def test_the_window_is_the_last_events(store: Store) -> None:
    store.publish(several(300))
    found = measured(store, window=100, sample=60)
    assert (found.window, found.sample, found.events) == (100, 60, 300)
    assert value(found, "recall_at_10") == 1.0


def test_it_is_due_after_every_s_and_where_the_clock_was_put_back(store: Store) -> None:
    worker = SimpleNamespace(layout=store.layout, config=Config())
    due = Measuring(worker, lambda: store.publisher.manifest)._due  # type: ignore[arg-type]
    assert due()
    store.publish(several(10))
    found = measured(store)

    def at(age_s: float) -> bool:
        gauges.write(
            store.layout.quality, msgspec.structs.replace(found, measured_at=time.time_ns() - int(age_s * 1e9))
        )
        return due()

    assert not at(4_000)  # nothing was stored since
    store.publish(several(10, 10))
    assert [at(age_s) for age_s in (60, 3_500, 3_700, -60, -3_600, -1e8)] == [False, False, True, True, True, True]


# ---- as told


def test_every_metric_is_told_with_its_count_and_a_rule_that_fires_says_what_to_do(store: Store) -> None:
    store.publish(several(300))
    store.publish(several(300))
    found = measured(store)
    gauges.write(store.layout.quality, found)
    assert gauges.read(store.layout.quality) == found == gauges.of_model(found, found.model)
    assert gauges.of_model(found, "another") is None
    rules = RULES | {"again": msgspec.structs.replace(RULES["duplicates"], above=0.4, n_min=600)}
    facts = gauges.facts(store.layout, found, rules)
    assert set(facts["gauges"]) == set(METRICS)
    assert facts["gauges"]["no_close_precedent_share"] == {"value": None, "n": 0}
    lines = list(gauges.findings(facts))
    assert [line[1] for line in lines[: len(METRICS)]] == list(facts["gauges"])
    assert lines[len(METRICS) :] == [
        ("note", "upgrade again", f"duplicate_share 0.5 is above 0.4 (n 600); {RULES['duplicates'].advice}")
    ]
    nothing = gauges.facts(store.layout, None, RULES)
    assert all(gauge == {"value": None, "n": 0} for gauge in nothing["gauges"].values())
    assert (
        nothing.keys() == facts.keys()
        and nothing["measured_at"] is None
        and nothing["advice"] == [] == nothing["moved"]
    )


# ---- the reference of a version


def test_a_version_is_whole_with_a_reference_and_without(files: dict[str, bytes], tmp_path: Path) -> None:
    assert models.reference_of(models.save(tmp_path, files)) is not None
    damaged = files | {reference.FILE: files[reference.FILE][:-1] + b"\x01"}
    with pytest.raises(ModelError, match="damaged"):
        models.from_files(damaged)
    with pytest.raises(ModelError, match=f"{reference.FILE} is missing"):
        models.from_files({name: blob for name, blob in files.items() if name != reference.FILE})
    card = msgspec.json.decode(files[CARD])
    del card["sha256"][reference.FILE]
    card["version"] = "t0"
    before = {n: b for n, b in files.items() if n != reference.FILE} | {CARD: msgspec.json.encode(card)}
    assert models.reference_of(models.save(tmp_path, before)) is None


def test_a_reference_is_of_all_training_events_and_of_a_sample_of_their_texts(files: dict[str, bytes]) -> None:
    made = reference.from_bytes(files[reference.FILE])
    assert (made.features.counts.sum(1) == FITTED).all()
    assert (made.spaces["attack"].counts.sum(1) == FITTED).all()
    assert 0 < made.spaces["sbert"].counts.sum(1)[0] <= FITTED
    known = np.isfinite(observed(several(FITTED), Tracker(CIDRS_INTERNAL))[1]).sum(0)
    assert (made.features.counts[:, :-1].sum(1) == known).all()
