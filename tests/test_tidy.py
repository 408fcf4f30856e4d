"""What must stay true of the tree itself: arrows, imports, failpoints, generated pages, nothing that unpickles."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.pages import PAGES
from engine import failpoint
from tests import reliability

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ipc", "engine", "cli")
MAY_IMPORT = {"ipc": {"ipc"}, "engine": {"engine", "ipc"}, "cli": {"cli", "engine", "ipc"}}
OURS = {"ipc", "engine", "cli", "tests", "bench"}
ROOMS = ("flows", "context", "sources", "run", "embed", "store", "search", "maintain")  # of the engine
WORKERS = ("ingest", "reader", "orders", "admission", "facts", "export")
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "joblib", "marshal", "shelve"}
LINES_MAX = 620
REAL_TIME = {  # who may let time pass, and why
    "tests/wait.py": "the one helper that polls",
    "tests/process/fake_role.py": "a worker that hangs",
    "tests/unit/test_client.py": "an engine that answers too late",
}
WALL = {  # who may ask what time it is, and why; what lasts is measured by a monotonic clock
    "engine/run/audit.py": "told: when it was done",
    "engine/run/guard.py": "compared with the times of events",
    "engine/run/lag.py": "told; how long something waits is monotonic",
    "engine/maintain/measuring.py": "when it was last measured, perhaps by another; one that was put back means now",
    "engine/store/publish.py": "told; when a row file was full, for retention by days",
    "engine/maintain/quality.py": "told",
    "engine/maintain/retention.py": "days, which outlive processes",
    "engine/maintain/scrub.py": "told",
    "engine/sources/follow.py": "compared with the times of files",
    "engine/sources/look.py": "compared with the times of files",
    "engine/store/switch.py": "told",
    "engine/maintain/take.py": "told: the name of a backup",
    "cli/text.py": "24h ago",
    "cli/training.py": "told: the name of a version",
}
HEAVY = ("numpy", "faiss", "lmdb", "torch", "onnxruntime", "sentence_transformers")


def modules(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        (name, module)
        for name, tree in modules(package)
        for module in imported(tree)
        if module.split(".")[0] in OURS - MAY_IMPORT[package]
    ]
    assert wrong == []


def test_a_room_of_the_engine_stands_on_those_before_it() -> None:
    wrong = [
        (name, module)
        for i, room in enumerate(ROOMS)
        for name, tree in modules(f"engine/{room}")
        for module in imported(tree)
        if module.startswith("engine.") and module.split(".")[1] in (*ROOMS[i + 1 :], *WORKERS)
    ]
    assert wrong == []


def test_nothing_is_unpickled_and_nothing_evaluated() -> None:
    for name, tree in modules(*PACKAGES, "bench"):
        assert not {m.split(".")[0] for m in imported(tree)} & UNSAFE, name
        calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert not calls & {"eval", "exec"}, name


def test_nothing_loads_objects_nor_runs_a_shell() -> None:
    """numpy and torch unpickle where they are told to (or not told not to); a shell takes apart what it is given."""
    for name, tree in modules(*PACKAGES, "bench", "tests"):
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert given.get("allow_pickle", "False") == "False", name
            assert given.get("shell") != "True", name
            called = ast.unparse(call.func)
            assert called not in ("os.system", "os.popen", "yaml.load", "yaml.unsafe_load"), name
            assert called != "torch.load" or given.get("weights_only") == "True", name
            if name.startswith(("engine/", "ipc/", "cli/")):  # decoding to a type bounds what a message can become
                assert called not in ("msgpack.unpackb", "msgpack.unpack", "msgpack.Unpacker"), name


def test_every_module_says_what_it_is() -> None:
    bare = [name for name, tree in modules(*PACKAGES) if tree.body and not ast.get_docstring(tree)]
    assert bare == []


def test_files_can_be_held_in_mind() -> None:
    long = {name: n for name, _ in modules(*PACKAGES) if (n := len((ROOT / name).read_text().splitlines())) > LINES_MAX}
    assert long == {}


def test_nothing_that_lasts_is_measured_by_the_clock_on_the_wall() -> None:
    asked = {
        name
        for name, tree in modules(*PACKAGES)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns", "datetime.now")
    }
    assert asked == WALL.keys()


def test_failpoints_are_all_listed_and_all_there() -> None:
    calls = [
        node
        for _, tree in modules(*PACKAGES)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "failpoint"
    ]
    assert all(len(call.args) == 1 and isinstance(call.args[0], ast.Constant) for call in calls)  # spelt out
    used = {call.args[0].value for call in calls}  # type: ignore[attr-defined]
    assert used == set(failpoint.POINTS)


def test_the_supervisor_and_a_client_load_nothing_heavy() -> None:
    for module in ("engine.run.supervisor", "ipc.client", "cli.main"):
        code = f"import {module}, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]", module


@pytest.mark.parametrize("name", sorted(PAGES))
def test_generated_pages_are_fresh(name: str) -> None:
    assert (ROOT / name).read_text() == PAGES[name](), f"{name} is stale: make docs"


def test_every_fault_has_tests_that_exist() -> None:
    """A test named in tests/reliability.toml, and none of its 35 rows without one."""
    rows = reliability.rows()
    assert [row["number"] for row in rows] == list(range(1, 36))
    for test in (test for row in rows for test in row["tests"] or pytest.fail(row["fault"])):
        path, _, name = test.partition("::")
        there = {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert name in there, test


def test_the_page_of_faults_is_fresh() -> None:
    record = reliability.recorded()
    assert record["current"] == reliability.code(), "the storage code was changed: make docs marks results stale"
    assert reliability.PAGE.read_text() == reliability.page(record), "docs/RELIABILITY.md is stale: make docs"


def test_tests_wait_for_things_not_for_time() -> None:
    """time.sleep stands only where REAL_TIME says why."""
    sleeping = [
        name
        for name, tree in modules("tests")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "sleep" and getattr(node.value, "id", "") == "time"
    ]
    assert set(sleeping) <= set(REAL_TIME), sleeping


def test_links_between_documents_lead_somewhere() -> None:
    path = re.compile(r"\b((?:docs|examples|deploy|bench|engine|ipc|cli|tests)/[\w./-]+\.\w+)")
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in path.findall(page.read_text()):
            assert (ROOT / target).exists(), f"{page.name} names {target}"
