"""Upgrade triggers: which rules there may be, how the settings change them, and when they fire."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Config, load
from engine.errors import ConfigError
from engine.upgrade import METRICS, RULES, Gauge, Rule, fired

NOTHING = dict.fromkeys(METRICS, Gauge(None, 0))


def loaded(tmp_path: Path, text: str) -> dict[str, Rule]:
    file = tmp_path / "flowkin.toml"
    file.write_text(text)
    return load(file, env={}).upgrade


def test_the_rules_that_ship_are_the_default_and_look_at_metrics_that_there_are(tmp_path: Path) -> None:
    assert Config().upgrade == load(env={}).upgrade == loaded(tmp_path, "") == RULES
    assert {rule.metric for rule in RULES.values()} <= set(METRICS)
    assert list(fired(RULES, NOTHING)) == []


def test_one_field_is_changed_the_rest_stays_and_rules_are_added(tmp_path: Path) -> None:
    rules = loaded(
        tmp_path,
        """
        [upgrade.recall]
        below = 0.9
        [upgrade.features]
        off = true
        [upgrade.flood]
        metric = "near_duplicate_share"
        above = 0.95
        advice = "look for a loop"
        """,
    )
    assert rules["recall"] == msgspec.structs.replace(RULES["recall"], below=0.9)
    assert rules["features"].off and rules["features"].metric == "drifted_features_share"
    assert rules["flood"] == Rule(metric="near_duplicate_share", above=0.95, advice="look for a loop")
    assert {name: rules[name] for name in RULES if name not in ("recall", "features")} == {
        name: RULES[name] for name in RULES if name not in ("recall", "features")
    }


def test_the_other_side_replaces_the_one_that_ships(tmp_path: Path) -> None:
    rule = loaded(tmp_path, "[upgrade.recall]\nabove = 0.5\n")["recall"]
    assert (rule.above, rule.below) == (0.5, None)


def test_the_environment_changes_a_rule_too() -> None:
    assert load(env={"FLOWKIN_UPGRADE__RECALL__BELOW": "0.7"}).upgrade["recall"].below == 0.7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[upgrade.x]\nmetric = "recal"\nbelow = 1.0\nadvice = "a"',
            f"no metric 'recal'; there are {', '.join(METRICS)}",
        ),
        ('[upgrade.x]\nmetric = "recall_at_10"\nadvice = "a"', "needs either above or below"),
        ("[upgrade.recall]\nbelow = 0.9\nabove = 0.1", "needs either above or below"),
        ('[upgrade.x]\nmetric = "recall_at_10"\nbelow = 0.9', "missing required field `advice`"),
        ('[upgrade.recall]\nadvice = "one\\ntwo"', "is one line"),
        ("[upgrade.recall]\nunder = 0.9", "unknown field `under`"),
        ("[upgrade]\nrecall = 1", "Expected `object`"),
        ("upgrade = 1", "Expected `object`"),
        ("[upgrade.recall]\nn_min = 0", "Expected `int` >= 1"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        loaded(tmp_path, text)
    assert said in str(e.value) and "upgrade" in str(e.value)


@given(
    value=st.none() | st.floats(0, 1), n=st.integers(0, 1_000), threshold=st.floats(0, 1), n_min=st.integers(1, 1_000),
    above=st.booleans(), off=st.booleans(),
)  # fmt: skip
def test_a_rule_fires_just_beyond_its_threshold_with_enough_counted(
    value: float | None, n: int, threshold: float, n_min: int, above: bool, off: bool
) -> None:
    side = {"above": threshold} if above else {"below": threshold}
    rule = Rule(metric="novel_share", n_min=n_min, advice="a", off=off, **side)  # type: ignore[arg-type]
    found = list(fired({"x": rule}, NOTHING | {"novel_share": Gauge(value, n)}))
    beyond = value is not None and (value > threshold if above else value < threshold)
    assert bool(found) == (beyond and n >= n_min and not off)
    if found:
        assert found[0]["rule"] == "x" and (found[0]["value"], found[0]["n"]) == (value, n)
        assert found[0]["advice"] == "a" and found[0]["metric"] == "novel_share"
