"""Panels of curves as SVG: a logarithmic x axis (or a linear one), y from 0, a label at the end of each curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, ACROSS = 330, 190, 52, 84, 30, 30, 2
COLOURS = ("#1b6ca8", "#c0504d", "#4f8f3c", "#7d5ba6")


class Panel(NamedTuple):
    """curves: y values by label, one for each x."""

    title: str
    curves: Mapping[str, Sequence[float]]


def svg(panels: Sequence[Panel], xs: Sequence[float], x_label: str, *, linear: bool = False) -> str:
    """linear: a time series; three of `xs` are labelled and points not marked."""
    rows = -(-len(panels) // ACROSS)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * ACROSS}" height="{HEIGHT * rows}" '
        'font-family="sans-serif" font-size="10">',
        f'<rect width="{WIDTH * ACROSS}" height="{HEIGHT * rows}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        out.append(f'<g transform="translate({i % ACROSS * WIDTH},{i // ACROSS * HEIGHT})">')
        out += _panel(panel, xs, x_label, linear)
        out.append("</g>")
    return "\n".join([*out, "</svg>", ""])


def _panel(panel: Panel, xs: Sequence[float], x_label: str, linear: bool) -> list[str]:
    most = max((y for ys in panel.curves.values() for y in ys), default=0.0) or 1.0
    scale = float if linear else log10
    low, high = scale(min(xs)), scale(max(xs))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - low) / (high - low) if high > low else 0.5
        return round(LEFT + across * (right - LEFT), 1), round(bottom - y / most * (bottom - TOP), 1)

    out = [f'<text x="{LEFT}" y="16" font-weight="bold">{escape(panel.title)}</text>']
    for share in (0.0, 0.5, 1.0):
        _, y = place(xs[0], most * share)
        out.append(f'<line x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 4}" y="{y + 3}" text-anchor="end">{_short(most * share)}</text>')
    for x in (xs[0], xs[len(xs) // 2], xs[-1]) if linear else xs:
        out.append(f'<text x="{place(x, 0)[0]}" y="{bottom + 14}" text-anchor="middle">{_short(x)}</text>')
    out.append(f'<text x="{right + 4}" y="{bottom + 14}" fill="#777">{escape(x_label)}</text>')
    taken: list[float] = []
    for colour, (label, ys) in zip(COLOURS, panel.curves.items(), strict=False):
        points = [place(x, y) for x, y in zip(xs, ys, strict=True)]
        path = " ".join(f"{x},{y}" for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if not linear:
            out += [f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}"/>' for x, y in points]
        at = points[-1][1] + 3
        while any(abs(at - other) < 10 for other in taken):  # labels do not cover each other
            at -= 10
        taken.append(at)
        out.append(f'<text x="{right + 5}" y="{at}" fill="{colour}">{escape(label)} {_short(ys[-1])}</text>')
    return out


def _short(value: float) -> str:
    """12, 1.5k, 1M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
