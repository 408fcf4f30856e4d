"""Words, colours and small pieces that several pages share."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from cli.tables import Span
from cli.text import end
from ipc.event import FEATURE_BYTES, FEATURE_COUNT, Annotation, Event

CLASS_STYLES = {"MALICIOUS": "bold red", "SUSPICIOUS": "yellow", "BENIGN": "green", "UNKNOWN": "dim"}
FAMILY_STYLES = {
    "Normal": "green", "Unknown": "dim", "DDoS": "magenta", "DoS": "magenta", "PortScan": "blue",
    "BruteForce": "yellow", "Ransomware": "bold red", "C2": "bright_red", "Botnet": "bright_red",
    "Exfiltration": "bright_magenta", "WebAttack": "cyan", "Infiltration": "bright_magenta",
}  # fmt: skip
DECISION_STYLES = {"DROP": "red", "ALERT": "yellow", "ALLOW": "green"}
DIM, BOLD, GOOD, WARN, BAD = "dim", "bold", "green", "yellow", "bold red"
GIST = 60
BAR = "█▉▊▋▌▍▎▏"


class Unit(NamedTuple):
    """context: it is of what was around the flow, not of the flow itself."""

    group: str
    unit: str
    definition: str = ""
    context: bool = False


def units_of_features() -> dict[str, Unit]:
    """Unit of each feature (the table of features, loaded only when one is shown to a person)."""
    from engine.features import CONTEXT_INDEXES, FEATURES

    return {f.name: Unit(f.group, f.unit, f.definition, f.column in CONTEXT_INDEXES) for f in FEATURES}


def class_span(word: str) -> Span:
    return Span(word, CLASS_STYLES.get(word, ""))


def family_span(word: str) -> Span:
    return Span(word or "-", FAMILY_STYLES.get(word, "cyan"))


def label_span(annotation: Annotation) -> Span:
    return Span(annotation.label, BOLD)


def ends(event: Event) -> str:
    if not event.src_ip and not event.dst_ip:
        return "-"
    return f"{end(event.src_ip, event.src_port)} -> {end(event.dst_ip, event.dst_port)}"


def gist(event: Event) -> Span:
    """What a detector said of it, cut: the signature of an alert, the note of a notice. A flow's text is not shown."""
    text = "" if event.kind == "flow" else event.text.split(" | ")[0]
    return Span(text if len(text) <= GIST else text[: GIST - 1] + "…", "italic")


def percent(value: float) -> str:
    return f"{value * 100:.0f} %"


def percent_exact(value: float | None) -> str:
    """A share in percent; 0 % and 100 % are exactly that."""
    if value is None:
        return "-"
    text = f"{value * 100:.1f}"
    if text == "0.0" and value > 0:
        return "<0.1 %"
    if text == "100.0" and value < 1:
        return ">99.9 %"
    return text.removesuffix(".0") + " %"


def bar(value: float, most: float, cells: int = 12) -> Span:
    eighths = round(abs(value) / most * cells * 8) if most > 0 else 0
    whole, part = divmod(eighths, 8)
    return Span("█" * whole + (BAR[8 - part] if part else ""), "green" if value < 0 else "red")


def tally(words: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {n:,}" for word, n in words.items())


def named_features(blob: bytes) -> dict[str, float | None]:
    """{name: value or None}; empty where the event has none stored."""
    if len(blob) != FEATURE_BYTES:
        return {}
    from engine.features import FEATURES

    values = struct.unpack(f"<{FEATURE_COUNT}f", blob)
    return {f.name: None if value != value else value for f, value in zip(FEATURES, values, strict=True)}


def raw_number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e15 else f"{value:,.6g}"
