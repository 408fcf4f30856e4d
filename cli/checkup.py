"""The doctor's report as documents. No printing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from engine.layout import Layout

HARMLESS = frozenset({"ok", "info", "fixed", "note"})


class Report(NamedTuple):
    findings: list[dict[str, Any]]
    problems: int
    summary: dict[str, Any]


def run(layout: Layout, *, deep: bool, fix: bool) -> Report:
    import msgspec

    from engine import doctor

    findings = [_document(msgspec.to_builtins(found)) for found in doctor.run(layout, deep=deep, fix=fix)]
    problems = sum(f.get("severity") not in HARMLESS and not f.get("fixed") for f in findings)
    summary = {"data_dir": str(layout.data_dir), "deep": deep, "fix": fix, "problems": problems}
    return Report(findings, problems, summary)


def _document(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {"severity": "problem", "detail": str(found)}
