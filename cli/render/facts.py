"""Facts as aligned lines and tables, whatever their names: info, stats, one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.render.style import BOLD, DIM, GOOD
from cli.tables import Cell, Column, Span, Writer
from cli.text import duration, iso, size


def tree(to: Writer, facts: Mapping[str, Any], indent: int) -> None:
    simple = {k: v for k, v in facts.items() if not isinstance(v, dict | list) or v in ({}, []) or _flat(v)}
    rows: list[list[Cell]] = [[Span(_title(k), DIM), _fact(k, v)] for k, v in simple.items()]
    if rows:
        to.table([Column("", keep=True), Column("")], rows, indent=indent)
    for name, value in facts.items():
        if name in simple:
            continue
        to.line()
        if table := _as_table(name, value):
            if isinstance(value, list):
                to.line(Span(_title(name), BOLD), indent=indent)
            to.table(*table, indent=indent)
        elif isinstance(value, dict):
            to.line(Span(_title(name), BOLD), indent=indent)
            tree(to, value, indent + 2)
        else:
            to.line(Span(_title(name), BOLD), indent=indent)
            for item in value:
                to.line(str(item), indent=indent + 2)


def _title(name: str) -> str:
    return str(name).replace("_", " ")


def _flat(value: Any) -> bool:
    """A list of plain values fits on a line, or is named by its ends."""
    return isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)


def _fact(name: str, value: Any) -> Cell:
    if value is None or value in ({}, [], ""):
        return Span("-", DIM)
    if isinstance(value, bool):
        return Span("yes" if value else "no", GOOD if value else "")
    if isinstance(value, list):
        return ", ".join(map(str, value)) if len(value) <= 16 else f"{len(value):,} values, {value[0]} to {value[-1]}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name == "pid":  # a name, not a sum
            return str(value)
        if name.endswith("_at"):  # ns
            return iso(int(value))
        if name.endswith("_bytes") or name in ("bytes", "size"):
            return size(value)
        if name.endswith("_per_s"):
            return f"{value:,.4g}"
        if name.endswith("_s") or name in ("seconds", "uptime"):
            return duration(float(value))
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return str(value)


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    """A dict within it takes a column for each of its own."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        out |= {f"{key}_{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return out


def _as_table(name: str, value: Any) -> tuple[list[Column], list[list[Cell]]] | None:
    """Dicts of dicts, and lists of dicts, of plain values with mostly the same keys."""
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        rows = [{_title(name): key} | v for key, v in value.items()]
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        rows = [_spread(v) for v in value]
    else:
        return None
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if len(keys) > 14 or any(isinstance(v, dict) for row in rows for v in row.values()):
        return None
    right = {key for key in keys if all(isinstance(row.get(key), int | float | None) for row in rows if key in row)}
    columns = [Column(_title(key).upper(), right=key in right, keep=i == 0) for i, key in enumerate(keys)]
    return columns, [[_fact(key, row[key]) if key in row else "" for key in keys] for row in rows]
