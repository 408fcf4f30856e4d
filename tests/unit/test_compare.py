"""Two versions on stored events: the figures against plain loops, what is drawn, and that nothing is written."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import CIDRS_INTERNAL
from engine.embed import models
from engine.errors import BadRequestError, ModelError, NotFoundError
from engine.layout import Layout
from engine.maintain import compare
from engine.sources.synthetic import generate
from tests.events import make
from tests.store_fixture import OTHER, Store, other_model
from tests.unit.test_contrast import foreign, rewritten

SHIPPED = models.shipped().name


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """1,500 events of the generator, one of them labelled; two versions."""
    data_dir = tmp_path_factory.mktemp("compare") / "data"
    items = list(generate(1_500, 5))
    with Store(data_dir) as store:
        for at in range(0, 1_500, 500):
            store.publish(items[at : at + 500])
        store.publisher.annotate(store.ids()[-1], "Cryptomining", "ana")
        other_model(store.layout)
        return store.layout


def compared(layout: Layout, a: str = SHIPPED, b: str = OTHER, count: int = 300, seed: int = 0) -> dict[str, Any]:
    return compare.compare(layout, (a, b), CIDRS_INTERNAL, 1 << 30, count, seed)


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    for side in (found["a"], found["b"]):
        side["us_per_event"] = sorted(side["us_per_event"])
    if found["switch"]:
        found["switch"] |= {"us_per_event": 0, "seconds": 0, "free_bytes": 0}
    return found


def test_the_figures_are_those_of_plain_loops(stored: Layout) -> None:
    found = compared(stored)
    with Store(stored.data_dir) as store:
        sample = compare.drawn(stored, store.catalog, store.publisher.manifest, 300, 0)
    sides = [models.load(stored.model(name)).embedders["attack"] for name in (SHIPPED, OTHER)]
    vectors = [side.embed(sample.events, sample.features).astype(np.float64) for side in sides]
    names = [sample.names[f] for f in sample.families]
    rows: dict[str, list[tuple[float, ...]]] = {}
    for i, event in enumerate(sample.events):
        before = [j for j, other in enumerate(sample.events) if other.ts < event.ts]
        if sum(names[j] == names[i] for j in before) < 10:
            continue
        near = [sorted(before, key=lambda j, v=v: (np.linalg.norm(v[j] - v[i]), -j))[:10] for v in vectors]
        right = [[names[j] == names[i] for j in some] for some in near]
        rows.setdefault(names[i], []).append(
            (*(np.mean(r[:k]) for r in right for k in (5, 10)), len(set(near[0]) & set(near[1])) / 10)
        )
    shown = {
        row["family"]: (row["a_at_5"], row["a_at_10"], row["b_at_5"], row["b_at_10"], row["overlap"])
        for row in found["spaces"]["attack"]["families"]
    }
    assert shown.keys() == rows.keys() and len(shown) > 2
    for family, some in rows.items():
        assert shown[family] == pytest.approx(np.mean(some, axis=0), abs=2e-3), family
    judged = [np.mean(some, axis=0) for some in rows.values() if len(some) >= compare.FAMILY_ASKED_MIN]
    macro = found["spaces"]["attack"]["macro"]
    assert macro["a_at_10"] == pytest.approx(np.mean(judged, axis=0)[1], abs=2e-3)
    assert found["data"]["asked"] == sum(map(len, rows.values()))


def test_a_version_agrees_with_itself(stored: Layout) -> None:
    found = compared(stored, OTHER, OTHER)
    for space in found["spaces"].values():
        assert (space["macro"]["overlap"], space["macro"]["better"], space["macro"]["worse"]) == (1.0, 0.0, 0.0)
        assert space["distances"]["a"] == space["distances"]["b"]
        assert all(row["a_at_5"] == row["b_at_5"] for row in space["families"])


def test_the_same_seed_gives_the_same_figures_and_writes_nothing(stored: Layout) -> None:
    def content() -> dict[str, str]:
        files = [p for p in stored.data_dir.rglob("*") if p.is_file() and not p.name.endswith("-lock")]
        return {str(p): sha256(p.read_bytes()).hexdigest() for p in files}

    before = content()
    first = without_times(compared(stored))
    assert without_times(compared(stored)) == first
    assert without_times(compared(stored, seed=1))["data"] != first["data"]
    assert content() == before


def test_what_a_switch_would_take(stored: Layout) -> None:
    found = compared(stored)["switch"]
    assert (found["version"], found["events"]) == (OTHER, 1_500)
    assert found["disk_bytes"] > 1_500 * 2_000 and found["seconds"] > 0
    assert compared(stored, OTHER, SHIPPED)["switch"] is None  # it is in use


def test_an_analyst_is_believed(stored: Layout) -> None:
    with Store(stored.data_dir) as store:
        ids = store.ids()
        sample = compare.drawn(stored, store.catalog, store.publisher.manifest, 20_000, 0)
    names = {e.event_id: sample.names[f] for f, e in zip(sample.families, sample.events, strict=True)}
    assert [name for name, family in names.items() if family == "Cryptomining"] == [ids[-1]]
    assert "Unknown" not in names.values()


def test_versions_are_found_by_name_as_shipped_and_by_path(stored: Layout, tmp_path: Path) -> None:
    assert compare.directory(stored, SHIPPED) == stored.model(SHIPPED)
    assert compare.directory(Layout(tmp_path), SHIPPED) == models.shipped()
    assert compare.directory(stored, str(stored.model(OTHER))) == stored.model(OTHER)
    for name in ("none", "../models", str(tmp_path)):
        with pytest.raises(NotFoundError, match="no model version"):
            compare.directory(stored, name)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "card.json").write_bytes(b"{}")
    with pytest.raises(ModelError):
        compared(stored, str(tmp_path / "bad"))


def test_a_network_of_somebody_else_is_looked_through_before_it_runs(stored: Layout, tmp_path: Path) -> None:
    files = rewritten(models.read(models.shipped()), foreign)
    card = msgspec.json.decode(files[models.CARD], type=models.Card)
    files[models.CARD] = msgspec.json.encode(msgspec.structs.replace(card, version="theirs"))
    path = tmp_path / "theirs"
    path.mkdir()
    for name, blob in files.items():
        (path / name).write_bytes(blob)
    with pytest.raises(ModelError, match="not of the form that ours have"):
        compared(stored, str(path))


@pytest.mark.parametrize("events", [0, 12])
def test_too_few_events_are_refused(tmp_path: Path, events: int) -> None:
    with Store(tmp_path / "data") as store:
        other_model(store.layout)
        if events:
            store.publish([make(n, family=("DDoS", "C2")[n % 2]) for n in range(events)])
    with pytest.raises(BadRequestError, match=f"of {events} events of known family none has 10 of its family before"):
        compared(store.layout)


@given(st.lists(st.integers(-1, 4), max_size=200), st.integers(0, 120), st.integers(0, 3))
def test_no_family_takes_more_than_its_share(families: list[int], count: int, seed: int) -> None:
    numbers = np.array(families, np.int64)
    picked = compare._shared_out(numbers, count, np.random.default_rng(seed))
    assert sorted(set(picked.tolist())) == picked.tolist()
    assert (numbers[picked] >= 0).all()
    known = int((numbers >= 0).sum())
    taken = {f: int((numbers[picked] == f).sum()) for f in set(families) - {-1}}
    assert sum(taken.values()) == min(count, known)
    for f, n in taken.items():
        assert n == families.count(f) or n >= max(taken.values()) - 1
