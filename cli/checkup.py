"""The doctor's report as documents. No printing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from engine.layout import Layout


class Report(NamedTuple):
    """problems: how many findings are one and were not mended."""

    findings: list[dict[str, Any]]
    problems: int
    summary: dict[str, Any]


def run(layout: Layout, *, deep: bool, fix: bool) -> Report:
    import msgspec

    from engine import doctor

    found = doctor.run(layout, deep=deep, fix=fix)
    problems = sum(f.severity == "problem" and not f.fixed for f in found)
    summary = {"data_dir": str(layout.data_dir), "deep": deep, "fix": fix, "problems": problems}
    return Report([msgspec.to_builtins(f) for f in found], problems, summary)
