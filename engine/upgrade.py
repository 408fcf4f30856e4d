"""Upgrade triggers: rules over measured figures that advise a person what to do next.

Always true
  - A figure comes with what it was counted over, n. What was not measured is None, never a guess, and fires no rule.
  - A rule names a metric of METRICS, fires above or below its threshold, only with n_min counted, and has one line of
    advice. Nothing is done about it: a person decides.
  - Nothing is imported here but msgspec: settings are made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct


class Gauge(Struct, frozen=True):
    value: float | None
    n: int


METRICS = {
    "recall_at_10": "of the exact ten nearest, the share that a search finds; the lowest of the three spaces",
    "same_family_at_5": "of the five nearest places of an event of a known family (attack space), the share of its "
    "family; families count alike",
    "duplicate_share": "of the records sent since the directory was born, those that were stored already",
    "near_duplicate_share": "of the events, those with another one in the same place of the attack space",
    "drifted_features_share": "of the features known often enough, those with PSI above 0.25 against the training data",
    "psi_chronos": "PSI of the space's dimensions against the training data, their mean",
    "psi_sbert": "the same for sbert",
    "psi_attack": "the same for attack",
    "novel_share": "of the events, those beyond the precedent bound of the attack space from every other one",
    "no_close_precedent_share": "of the questions without a filter since the readers started, those so answered",
    "coverage_ratio": "features known of an event, the mean over that of the training data",
}


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An upgrade trigger, [upgrade.NAME]."""

    metric: Annotated[str, Meta(description="The figure it looks at: " + ", ".join(METRICS) + ".")]
    above: Annotated[float | None, Meta(description="It fires above this; give either above or below.")] = None
    below: Annotated[float | None, Meta(description="It fires below this.")] = None
    n_min: Annotated[int, Meta(ge=1, le=1_000_000_000, description="Only where so many were counted.")] = 200
    advice: Annotated[str, Meta(min_length=1, max_length=512, description="What to do, one line.")]
    off: Annotated[bool, Meta(description="It never fires.")] = False

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"no metric {self.metric!r}; there are {', '.join(METRICS)}")
        if (self.above is None) == (self.below is None):
            raise ValueError(f"a rule over {self.metric} needs either above or below")
        if "\n" in self.advice:
            raise ValueError(f"the advice of a rule over {self.metric} is one line")


RULES = {
    "recall": Rule(
        metric="recall_at_10", below=0.98,
        advice="the indexes miss neighbours: flowkin doctor --deep finds damaged ones; a switch (flowkin models use) "
        "builds all anew",
    ),
    "families": Rule(
        metric="same_family_at_5", below=0.7,
        advice="neighbours are of other families: add labels (flowkin label), then flowkin train on labelled events",
    ),
    "features": Rule(
        metric="drifted_features_share", above=0.5, n_min=500,
        advice="the features left the training data: refit the scaler on labelled events of yours (flowkin fit)",
    ),
    "space": Rule(
        metric="psi_attack", above=0.25, n_min=500,
        advice="vectors lie elsewhere than those of the training data: retrain on events of yours (flowkin train)",
    ),
    "novelty": Rule(
        metric="novel_share", above=0.15,
        advice="three times as many events without a precedent as calibrated: label the new kinds and retrain "
        "(flowkin train)",
    ),
    "precedents": Rule(
        metric="no_close_precedent_share", above=0.15,
        advice="three times as many questions without a precedent as calibrated: ingest events like those asked about, "
        "or retrain (flowkin train)",
    ),
    "coverage": Rule(
        metric="coverage_ratio", below=0.7, n_min=500,
        advice="events know fewer features than the training data: flowkin stats --features says which; fit on what "
        "the sources give (flowkin fit)",
    ),
    "duplicates": Rule(
        metric="duplicate_share", above=0.5, n_min=10_000,
        advice="most of what is sent is stored already: see that sources go on where they ended",
    ),
}  # fmt: skip


def fired(rules: Mapping[str, Rule], gauges: Mapping[str, Gauge]) -> Iterator[dict[str, Any]]:
    """The rules that fire, in their order, with what was measured."""
    for name, rule in rules.items():
        gauge = gauges[rule.metric]
        if rule.off or gauge.value is None or gauge.n < rule.n_min:
            continue
        if (rule.above is not None and gauge.value > rule.above) or (
            rule.below is not None and gauge.value < rule.below
        ):
            yield {
                "rule": name, "metric": rule.metric, "value": gauge.value, "n": gauge.n, "above": rule.above,
                "below": rule.below, "advice": rule.advice,
            }  # fmt: skip
