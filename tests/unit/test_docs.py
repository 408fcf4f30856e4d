"""What the documents say against what is there: links, commands, settings, sizes. Generated pages: test_tidy.py."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli import settings
from cli.errors import STATUSES
from cli.main import flowkin
from cli.pages import PAGES
from cli.reference import commands
from engine import errors
from engine.config import load
from engine.failpoint import POINTS
from engine.layout import Layout
from engine.limits import COLLAPSE_FETCH_MAX, ROW_FILE_ROWS
from engine.run.heartbeat import SLOTS
from engine.store import rows
from engine.store.catalog import TABLES
from engine.store.columns import COLUMNS
from engine.store.manifest import Manifest

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
WRITTEN = [p for p in DOCS if p.relative_to(ROOT).as_posix() not in PAGES]  # by hand
DEPLOY = [ROOT / "Vagrantfile", *sorted((ROOT / "deploy").iterdir())]
UNIT = (ROOT / "deploy/flowkin.service").read_text()

LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`([^`\n]+)`")
HOME = re.compile(r"(?<![\w.])/(?:home|root|Users)/")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def page(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def code_of(text: str) -> Iterator[str]:
    """Quoted pieces, and lines of code (indented by four or fenced)."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from QUOTED.findall(line)


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text("utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{target} is not there"
        assert there.is_relative_to(ROOT), f"{target} lies outside of the project"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}, target


@pytest.mark.parametrize("path", [*DOCS, *DEPLOY], ids=name)
def test_no_document_knows_a_home_directory(path: Path) -> None:
    found = [line for line in path.read_text("utf-8").splitlines() if HOME.search(line)]
    assert found == []


def command_of(line: str) -> tuple[click.Command, list[str]] | None:
    """The command that a line runs, and the options after it; None where it is none of ours."""
    line = re.sub(r"^\$ ", "", line.split("#", 1)[0] if " #" in line else line)
    found = re.match(r"(?:sudo )?(?:\.venv/bin/)?flowkin ([a-z_-]+)(.*)", line)
    if not found or found[1] in ("-", "rows"):
        return None
    command = flowkin.get_command(click.Context(flowkin), found[1])
    assert command is not None, f"there is no command {found[1]!r}: {line}"
    words = re.findall(r"(?<!\S)-{1,2}[a-z][a-z-]*", re.sub(r"'[^']*'|\"[^\"]*\"", "x", found[2]))
    if isinstance(command, click.Group):
        inner = found[2].split()
        sub = command.get_command(click.Context(command), inner[0]) if inner and inner[0][0].isalpha() else None
        command = sub or command
    return command, words


@pytest.mark.parametrize("path", [p for p in DOCS if p.name != "GLOSSARY.md"], ids=name)
def test_commands_quoted_exist_with_their_options(path: Path) -> None:
    common = {"--help", "--version", "--debug"} | {o for p in flowkin.params for o in p.opts}
    for line in code_of(path.read_text("utf-8")):
        for found in filter(None, map(command_of, line.split(" | "))):
            command, words = found
            known = common | {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            assert set(words) <= known, f"{command.name} has no {set(words) - known}: {line}"


def test_filters_named_in_the_guide_exist() -> None:
    text = page("docs/USER_GUIDE.md")
    every = dict(commands(flowkin, "flowkin")).values()
    known = {o for c in every for p in c.params for o in (*p.opts, *p.secondary_opts)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known


def test_make_targets_quoted_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.M))
    for path in WRITTEN:
        for line in code_of(path.read_text("utf-8")):
            for target in re.findall(r"(?:^|&& )make ([a-z]+)", line):
                assert target in targets, f"{path.name}: {line}"


def test_settings_named_exist() -> None:
    known = {s.key for s in settings.settings()}
    sections = "|".join(sorted({k.split(".")[0] for k in known if "." in k}))
    for path in [*WRITTEN, *DEPLOY]:
        for key in re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z_]+)(?![\w/(.])", path.read_text("utf-8")):
            found = key in known or key.startswith(("sources.", "upgrade.")) or (ROOT / key).exists()
            assert found or key.split(".")[1] in ("py", "toml", "md", "json"), f"{path.name}: {key}"


def test_modules_named_can_be_run() -> None:
    for path in WRITTEN:
        for line in code_of(path.read_text("utf-8")):
            for module in re.findall(r"python -m ((?:bench|cli|engine)[\w.]*)", line):
                base = ROOT.joinpath(*module.split("."))
                assert base.with_suffix(".py").exists() or (base / "__main__.py").exists(), f"{path.name}: {line}"


# ---- figures that are facts of the code


def test_the_bytes_of_a_row_file_are_as_described() -> None:
    text = page("docs/DATA_DIR.md")
    assert f"{rows.file_bytes(ROW_FILE_ROWS):,} bytes for {ROW_FILE_ROWS:,} rows" in text
    for region, offset in rows._offsets(ROW_FILE_ROWS).items():
        assert re.search(rf"^\| {region} \| .* \| {offset:,} \|$", text, re.M), region
    assert f"| columns | {COLUMNS.itemsize} bytes, below |" in text
    described: dict[str, int] = {}
    for places, names in re.findall(r"^\| ([\d, ]+) \| ([a-z_, ]+) \| [uif]\d+ \|", text, re.M):
        described |= dict(zip(names.split(", "), map(int, places.split(", ")), strict=True))
    assert described == {field: COLUMNS.fields[field][1] for field in COLUMNS.names}  # type: ignore[index,union-attr]


def test_everything_of_a_data_directory_is_named() -> None:
    text = page("docs/DATA_DIR.md")
    layout = Layout(Path("D"))
    paths = [getattr(layout, p) for p in dir(Layout) if isinstance(getattr(Layout, p), property)]
    assert [p.name for p in paths if p.name not in text] == []
    assert [t for t in TABLES if f"| {t} |" not in text] == []
    assert [f for f in Manifest.__struct_fields__ if not re.search(rf"^\|[^|]*\b{f}\b", text, re.M)] == []
    slots = ", ".join(SLOTS).replace("stamp_ns,", "stamp_ns (monotonic clock, the sign of life),")
    assert slots in " ".join(text.split())


def test_every_failpoint_and_what_it_leaves_is_in_the_architecture() -> None:
    assert [p for p in POINTS if f"| {p} |" not in page("docs/ARCHITECTURE.md")] == []


def test_every_dependency_has_its_line_and_its_reason() -> None:
    text = page("docs/DECISIONS.md")
    for wanted in tomllib.loads(page("pyproject.toml"))["project"]["dependencies"]:
        package = re.split(r"[<>=]", wanted)[0]
        assert re.search(rf"^\| [^|]*\b{re.escape(package)}\b", text, re.M), package
    assert f"up to {COLLAPSE_FETCH_MAX:,} candidates" in text


def test_exit_statuses_are_told_and_the_unit_knows_them() -> None:
    text = page("docs/OPERATIONS.md")
    for status in STATUSES:
        assert re.search(rf"\b{status} [a-z]", text), status
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.EngineError)]
    final = {c.exit_status for c in classes if 70 <= c.exit_status <= 79}
    assert [s for s in final if f"| {s} |" not in text] == []
    prevented = re.search(r"^RestartPreventExitStatus=(.*)$", UNIT, re.M)
    assert prevented is not None
    assert final | {2} == set(map(int, prevented[1].split()))


# ---- provisioning


def test_the_provisioned_configuration_is_one() -> None:
    """The edits of provision.sh each change one line of the example, and the result loads."""
    text = page("examples/flowkin.toml")
    edits = re.findall(r"-e 's\|\^([^|]+)\|([^|]+)\|'", page("deploy/provision.sh"))
    assert len(edits) == 3
    for before, after in edits:
        assert len(re.findall(rf"^{before}", text, re.M)) == 1, before
        text = re.sub(rf"^{before}", after, text, flags=re.M)
    tree = tomllib.loads(text)["sockets"]
    assert (tree["query"], tree["write_group"]) == ("/run/flowkin/query.sock", "flowkin-write")


def test_the_unit_starts_what_there_is_with_paths_that_provision_makes(tmp_path: Path) -> None:
    start = re.search(r"^ExecStart=(.*)$", UNIT, re.M)
    assert start is not None
    program, name_, *options = shlex.split(start[1])
    provision = page("deploy/provision.sh")
    command = flowkin.get_command(click.Context(flowkin), name_)
    assert command is not None
    assert set(options[::2]) <= {o for p in command.params for o in p.opts}
    for path in (program.partition("/.venv")[0], *(o.removesuffix("/flowkin.toml") for o in options[1::2])):
        assert f" {path}\n" in provision, path
    groups = re.findall(r"^(?:Group|SupplementaryGroups)=(.*)$", UNIT, re.M)
    assert all(f"groupadd --system {g}\n" in provision for g in groups)
    assert load(ROOT / "examples/flowkin.toml", env={}).drain_ms / 1e3 < int(
        (re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.M) or pytest.fail("no TimeoutStopSec"))[1]
    )


EXPOSURE_MAX = 1.0  # of 10; 0.8 as it ships


def test_the_unit_is_as_closed_as_it_is_said_to_be() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={round(EXPOSURE_MAX * 10)}",
         ROOT / "deploy/flowkin.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "Unknown" in done.stderr or "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze knows no --offline")
    assert done.returncode == 0, done.stdout[-400:] + done.stderr
    found = re.search(r"Overall exposure level for flowkin\.service: ([\d.]+)", done.stdout)
    assert found is not None and float(found[1]) <= EXPOSURE_MAX
    for path in ("docs/DEPLOYMENT.md", "docs/SECURITY.md"):
        assert f"level for flowkin.service: {found[1]}" in page(path)


def test_systemd_finds_nothing_to_say_of_the_unit(tmp_path: Path) -> None:
    """An unknown key, or a value that it would ignore; with a program that is there in the place of the one to be."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    (program,) = re.findall(r"^ExecStart=(\S+)", UNIT, re.M)
    found = {}
    for name, text in (("flowkin", UNIT), ("wrong", UNIT.replace("ProtectHome=", "ProtectHomes="))):
        unit = tmp_path / f"{name}.service"
        unit.write_text(text.replace(program, sys.executable))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
        )
        found[name] = (done.returncode, [line for line in (done.stdout + done.stderr).splitlines() if name in line])
    assert found["flowkin"] == (0, [])
    assert any("Unknown key" in line for line in found["wrong"][1])


def test_the_unit_lets_readers_confine_themselves() -> None:
    """None of these is in @system-service (systemd 252)."""
    allowed = " ".join(re.findall(r"^SystemCallFilter=([^~].*)$", UNIT, re.M)).split()
    assert {"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} <= set(allowed)
    assert re.search(r"^NoNewPrivileges=yes$", UNIT, re.M) and re.search(r"^ProtectSystem=strict$", UNIT, re.M)
    assert re.search(r"^MemoryMax=\d+%$", UNIT, re.M)


@pytest.mark.parametrize("program", [["bash", "-n"], ["shellcheck"]], ids=["bash", "shellcheck"])
def test_the_provisioning_script_is_clean(program: list[str]) -> None:
    if shutil.which(program[0]) is None:
        pytest.skip(f"{program[0]} is not here")
    done = subprocess.run([*program, ROOT / "deploy/provision.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_claim_of_security_names_where_and_a_test() -> None:
    section = page("docs/SECURITY.md").split("## What holds them")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", section, re.M)[2:]
    assert len(rows) > 15
    for claim, where, tests in rows:
        for path in (where if where != "the tree" else "tests").split(", ") + tests.split(", "):
            assert (ROOT / path).exists(), f"{claim}: {path}"
        assert all(test.startswith("tests/") for test in tests.split(", ")), claim
