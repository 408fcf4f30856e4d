"""docs/RELIABILITY.md: each fault, the tests that hold its promise, how often, and with what result.

    python -m tests.reliability          the page, from what was last recorded
    python -m tests.reliability --run    run those tests first, and record what came of them
    python -m tests.reliability --from X    record what a run of the whole suite on this code wrote by --junitxml X

Always true
  - The page is a pure function of tests/reliability.toml, docs/reliability.json and the last lines of bench/results.
  - A result counts for the storage code that it was made with; once that is changed it is marked stale.
  - What a test counts (kills, states) it says by pytest's record_property, as a whole number.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xxhash

ROOT = Path(__file__).parents[1]
PAGE, RECORD = ROOT / "docs" / "RELIABILITY.md", ROOT / "docs" / "reliability.json"
STORAGE = ("engine/store", "engine/maintain", "engine/search/snapshot.py", "engine/files.py", "engine/ingest.py")
READS_ONLY = ("quality.py", "drift.py", "gauges.py", "compare.py")  # of engine/maintain: they measure stored events
HEAD = """# What was tried against it

Generated from tests/reliability.toml and what was recorded (`python -m tests.reliability --run`); do not edit.

In the suite: how many cases of the named tests passed, and what they count. By hand: the last line of bench/results,
with its commit. Stale: the storage code was changed since.

"""


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads((ROOT / "tests" / "reliability.toml").read_text())["row"]
    return found


class _Bare(ast.NodeTransformer):
    """Without docstrings, and with the last part only of what names a module of ours."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        node.module = (node.module or "").rpartition(".")[2]
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and re.fullmatch(r"engine(\.\w+)+", node.value):
            node.value = node.value.rpartition(".")[2]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        self.generic_visit(node)
        return node


def _does(text: str) -> str:
    """What a module does: comments, docstrings, the order of imports, and where modules lie, do not matter."""
    tree = _Bare().visit(ast.parse(text))
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join([*sorted(imports), ast.unparse(tree)])


def code() -> str:
    """Of the storage code, as it is."""
    files = [path for name in STORAGE for path in [*(ROOT / name).glob("*.py"), ROOT / name] if path.is_file()]
    files = [path for path in files if path.name not in READS_ONLY]
    digest = xxhash.xxh3_64()
    for path in sorted(files, key=lambda path: path.name):
        digest.update(_does(path.read_text()).encode())
    return digest.hexdigest()


class Recorder:
    """A pytest plugin: test function -> outcomes and counts."""

    def __init__(self) -> None:
        self.found: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            of = self.found.setdefault(report.nodeid.partition("[")[0], Counter())
            of[report.outcome] += 1
            for name, value in report.user_properties if report.when == "call" else ():
                of[name] += int(value)  # type: ignore[call-overload]


def run() -> int:
    """Run what the rows name; keep what came of it. pytest's exit status."""
    recorder = Recorder()
    names = sorted({test for row in rows() for test in row["tests"]}, key=lambda test: ("/unit/" not in test, test))
    try:
        return int(pytest.main(["-q", "-p", "no:cacheprovider", *names], plugins=[recorder]))
    finally:  # also where it was interrupted: the rest is "not run"
        keep(recorder.found)


def taken(junit: Path) -> dict[str, Counter[str]]:
    """As a Recorder's, of what pytest wrote by --junitxml."""
    found: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        parts = case.attrib["classname"].split(".")
        n = next(n for n in range(len(parts), 0, -1) if (ROOT / Path(*parts[:n])).with_suffix(".py").exists())
        node = "::".join((f"{'/'.join(parts[:n])}.py", *parts[n:], case.attrib["name"].partition("[")[0]))
        of = found.setdefault(node, Counter())
        tags = {child.tag for child in case}
        of["failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"] += 1
        for told in case.iter("property"):
            of[told.attrib["name"]] += int(told.attrib["value"])
    return found


def keep(found: dict[str, Counter[str]]) -> None:
    """Record it, as of the storage code that there is; since when it is so stays."""
    named = {test for row in rows() for test in row["tests"]}
    record = {"code": code(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    record = recorded() | record | {"tests": {test: of for test, of in found.items() if test in named}}
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def _in_suite(row: dict[str, Any], record: dict[str, Any]) -> tuple[str, str]:
    """What was counted, and the result."""
    total = Counter[str]()
    for test in row["tests"]:
        total.update(record["tests"].get(test, {"not run": 1}))
    outcomes = {name: total.pop(name, 0) for name in ("passed", "failed", "skipped", "not run")}
    counts = [f"{outcomes['passed']} passed", *(f"{n} {name}" for name, n in sorted(total.items()))]
    bad = [f"{n} {name}" for name, n in outcomes.items() if n and name != "passed"]
    stale = "; stale" if record["code"] != record.get("current") else ""
    return ", ".join(counts), (", ".join(bad) or "holds") + stale


def _by_hand(row: dict[str, Any], record: dict[str, Any]) -> str:
    if "by_hand" not in row:
        return ""
    name, figure = row["by_hand"]
    line = json.loads((ROOT / "bench" / "results" / f"{name}.jsonl").read_text().splitlines()[-1])
    wrong = len(line.get("findings", line.get("broken", ())))
    stale = "; stale" if line["at"] < record["changed_at"] else ""
    return f"{line[figure]} {figure}, {wrong} findings, {line['commit']} of {line['at'][:10]}{stale}"


def page(record: dict[str, Any]) -> str:
    lines = [f"Recorded {record['at'][:10]}.", "", "| # | fault | promise | tests | in the suite | by hand | result |"]
    lines.append("|---:|---|---|---|---|---|---|")
    for row in rows():
        tests = "<br>".join(f"{test}" for test in row["tests"])
        counts, result = _in_suite(row, record)
        short = f"{result}; short of it: {row['short']}" if "short" in row else result
        cells = (row["number"], row["fault"], row["promise"], tests, counts, _by_hand(row, record), short)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text())
    return found


def main() -> int:
    status = 0
    match sys.argv[1:]:
        case ["--run"]:
            status = run()
        case ["--from", junit]:
            keep(taken(Path(junit)))
    record = recorded()
    if record.get("current") != code():
        record |= {"current": code(), "changed_at": datetime.now(UTC).isoformat(timespec="seconds")}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(record))
    return status


if __name__ == "__main__":
    sys.exit(main())
