"""The figures of quality as they are kept and told: what was last measured, and what the readers count.

Always true
  - DATA_DIR/run/quality.json is what the ingest worker last had measured (engine/maintain/quality.py), whole; it is the
    truth about nothing, and losing it loses figures only.
  - Every metric is told, None where it was not measured, and then why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from engine.files import replace
from engine.layout import Layout
from engine.run import heartbeat
from engine.upgrade import METRICS, Gauge, Rule, fired

MOVED_MAX = 8  # features named by stats and doctor


class FeatureDrift(Struct, frozen=True):
    """One feature against the training data. p: of the two-sample test; major: as in engine/maintain/drift.py."""

    feature: str
    psi: float
    p: float
    n: int
    major: bool


class SpaceFigures(Struct, frozen=True):
    """One space. psi_p: of the test of the dimension that moved most, times their number. None: not measured."""

    recall_at_10: float | None
    indexed: int
    near_duplicate_share: float | None
    novel_share: float | None
    psi_mean: float | None
    psi_max: float | None
    psi_p: float | None


class Measured(Struct, frozen=True):
    """What one measurement found. window: the last so many events; sample: how many of them were looked up."""

    measured_at: int  # ns
    seconds: float
    cpu_s: float
    generation: int
    events: int
    model: str
    window: int
    sample: int
    seed: int
    gauges: dict[str, Gauge]
    spaces: dict[str, SpaceFigures]
    drift: list[FeatureDrift]  # of each feature known often enough, the largest index first
    unmeasured: dict[str, str]  # metric -> why


def read(path: Path) -> Measured | None:
    """What was last measured; None where there is nothing to be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measured)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def of_model(measured: Measured | None, model: str) -> Measured | None:
    """None where it was measured with another model: nobody should retrain twice for one figure."""
    return measured if measured is not None and measured.model == model else None


def write(path: Path, measured: Measured) -> None:
    """By the ingest worker. Raises OSError."""
    replace(path, msgspec.json.encode(measured))


def questions(layout: Layout) -> Gauge:
    """no_close_precedent_share, of the readers that live now."""
    beats = [heartbeat.read(path) for path in layout.run.glob("reader-*.heartbeat")]
    living = [b for b in beats if b is not None and b.pid and os.path.exists(f"/proc/{b.pid}")]  # noqa: PTH110
    asked = sum(b.questions for b in living)
    return Gauge(sum(b.novel for b in living) / asked if asked else None, asked)


def facts(
    layout: Layout, measured: Measured | None, rules: Mapping[str, Rule], *, whole: bool = False
) -> dict[str, Any]:
    """As stats show it: every metric, measured or not, the features that moved most, and the rules that fire. whole:
    with the drift of each feature."""
    gauges = dict.fromkeys(METRICS, Gauge(None, 0)) | (measured.gauges if measured else {})
    gauges["no_close_precedent_share"] = questions(layout)
    found: dict[str, Any] = dict.fromkeys(Measured.__struct_fields__) | {"spaces": {}, "unmeasured": {}, "drift": []}
    if measured is not None:
        found |= msgspec.to_builtins(measured)
    if not whole:
        del found["drift"]
    moved = [d for d in msgspec.to_builtins(measured.drift if measured else []) if d.pop("major")]
    found["moved"] = moved[:MOVED_MAX]
    found["gauges"] = msgspec.to_builtins(gauges)
    found["advice"] = list(fired(rules, gauges))
    return found


def findings(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(severity, object, detail) of facts: a line a metric, then one for each rule that fires."""
    for metric, gauge in found["gauges"].items():
        if gauge["value"] is None:
            yield "ok", metric, f"- ({found['unmeasured'].get(metric, 'nothing was counted')})"
        else:
            yield "ok", metric, f"{gauge['value']:.4g} (n {gauge['n']})"
    for a in found["advice"]:
        than = f"above {a['above']:g}" if a["above"] is not None else f"below {a['below']:g}"
        moved = ""
        if a["metric"] == "drifted_features_share":
            moved = "; moved most: " + ", ".join(f"{m['feature']} {m['psi']:.2f}" for m in found["moved"])
        yield "note", f"upgrade {a['rule']}", (
            f"{a['metric']} {a['value']:.4g} is {than} (n {a['n']}){moved}; {a['advice']}"
        )  # fmt: skip
