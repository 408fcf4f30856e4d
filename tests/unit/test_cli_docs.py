"""Pages that are made from code: stale ones fail here."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from cli import reference, settings
from cli.errors import STATUSES
from cli.group import ALIASES, FILES
from cli.main import flowkin
from engine.config import Config, load

ROOT = Path(__file__).parents[2]
PAGES = {
    "docs/CLI.md": (reference.reference, "python -m cli.reference > docs/CLI.md"),
    "docs/SETTINGS.md": (settings.page, "python -m cli.settings > docs/SETTINGS.md"),
    "examples/flowkin.toml": (settings.example, "python -m cli.settings --toml > examples/flowkin.toml"),
}


@pytest.mark.parametrize("page", PAGES)
def test_page_is_fresh(page, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # what is generated does not depend on the terminal
    make, command = PAGES[page]
    assert (ROOT / page).read_text("utf-8") == make(), f"stale: run `{command}`"


def test_the_example_is_the_default_configuration():
    assert load(ROOT / "examples/flowkin.toml", env={}) == Config()


def test_every_setting_is_described_and_named_once():
    every = list(settings.settings())
    keys = [s.key for s in every]
    assert len(keys) == len(set(keys)) and "readers.count" in keys and "sources.NAME.path" in keys
    assert all(s.meaning.endswith(".") for s in every), [s.key for s in every if not s.meaning.endswith(".")]
    assert all(f"`{key}`" in settings.page() for key in keys)


def test_every_command_has_a_chapter():
    """Each file in cli/commands holds the commands that CHAPTERS says, and no others."""
    for path in sorted((ROOT / "cli/commands").glob("[!_]*.py")):
        held = import_module(f"cli.commands.{path.stem}").group.commands
        assert sorted(held) == sorted(name for name, file in FILES.items() if file == path.stem), path.name
    assert set(ALIASES.values()) <= set(FILES)


def test_the_reference_names_every_option_and_status():
    text = reference.reference()
    for command in dict(reference.commands(flowkin, "flowkin")).values():
        for param in command.params:
            assert all(f"`{o}" in text or f", {o}" in text for o in param.opts if o.startswith("--")), param.opts
    assert all(f"| {status} | {meaning} |" in text for status, meaning in STATUSES.items())
