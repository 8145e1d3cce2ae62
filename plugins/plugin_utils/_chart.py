# SPDX-License-Identifier: Apache-2.0
"""Throughput and time per token over concurrency, as SVG: two panels, a line a replica. No library draws it, so that a controller needs none."""

from __future__ import annotations

import math
import statistics
import typing as t
from xml.etree import ElementTree as ET

#: Up to so many lines have a colour and a name each; more are grey, with their median in front.
FEW = 8
#: Colours of Okabe and Ito, which readers who see no red or green tell apart as well; black is the baseline's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#5B4FA2")
INK, MUTED, GRID = "#222222", "#666666", "#DDDDDD"
WIDTH, PANEL_WIDTH, PLOT, TOP = 960, 390, 300, 84
LEFTS = (70, 540)
ROW = 20


class Line(t.NamedTuple):
    """A replica, or a baseline: (concurrency, output tokens a second, milliseconds per output token) of each round."""

    name: str
    points: t.Sequence[tuple[int, float, float]]
    is_baseline: bool = False


def document(title: str, about: str, lines: t.Sequence[Line]) -> str:
    """The whole file."""
    drawn = [line for line in lines if line.points]
    shown = _shown(drawn)
    height = TOP + PLOT + 62 + ROW * math.ceil(len([entry for entry in shown if entry[1]]) / 2) + 16
    root = ET.Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {height}", "width": str(WIDTH), "height": str(height),
        "role": "img", "aria-labelledby": "title about", "font-family": "system-ui, sans-serif", "font-size": "12", "fill": INK,
    })  # fmt: skip
    ET.SubElement(root, "title", id="title").text = title
    ET.SubElement(root, "desc", id="about").text = f"{about}. " + " ".join(map(_words, drawn))
    ET.SubElement(root, "rect", width="100%", height="100%", fill="#FFFFFF")
    _text(root, LEFTS[0], 28, title, size=17, weight="600")
    _text(root, LEFTS[0], 48, about, fill=MUTED)
    for left, column, name in zip(
        LEFTS, (1, 2), ("Output, tokens/s", "Time per output token (TPOT), p50, ms"), strict=True
    ):
        _panel(root, left, name, shown, column)
    _legend(root, shown)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


#: A line with its name in the legend ("" for none) and how it is drawn.
Shown = tuple[Line, str, dict[str, str]]


def _shown(lines: t.Sequence[Line]) -> list[Shown]:
    measured = [line for line in lines if not line.is_baseline]
    baselines = [line for line in lines if line.is_baseline]
    found: list[Shown] = []
    if len(measured) <= FEW:
        found += [(line, line.name, {"stroke": COLOURS[number]}) for number, line in enumerate(measured)]
    else:
        grey = {"stroke": "#BBBBBB", "stroke-width": "1"}
        found += [
            (line, f"{len(measured)} replicas" if not number else "", grey) for number, line in enumerate(measured)
        ]
        found.append((Line("median", _median(measured)), "median of them", {"stroke": COLOURS[0]}))
    dashed = {"stroke": INK, "stroke-dasharray": "6 4", "stroke-width": "1.5"}
    return found + [(line, line.name, dashed) for line in baselines[:FEW]]


def _median(lines: t.Sequence[Line]) -> list[tuple[int, float, float]]:
    by_concurrency: dict[int, list[tuple[int, float, float]]] = {}
    for line in lines:
        for point in line.points:
            by_concurrency.setdefault(point[0], []).append(point)
    return [
        (number, statistics.median(point[1] for point in points), statistics.median(point[2] for point in points))
        for number, points in sorted(by_concurrency.items())
    ]


def _words(line: Line) -> str:
    """The line for whoever does not see it."""
    said = ", ".join(f"{output:,.4g} tokens/s and {tpot:,.4g} ms at {number}" for number, output, tpot in line.points)
    return f"{line.name}: {said}."


def steps(most: float) -> list[float]:
    """Where the scale from nothing to ``most`` has its lines: four to seven round numbers, the last at or above it."""
    rough = max(most, 1e-9) / 5
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def _panel(root: ET.Element, left: int, name: str, shown: t.Sequence[Shown], column: int) -> None:
    values = [point[column] for line, _name, _style in shown for point in line.points]
    ticks = sorted({point[0] for line, _name, _style in shown for point in line.points})
    scale = steps(max(values, default=1.0))
    low, high = (math.log2(ticks[0]), math.log2(ticks[-1])) if ticks else (0.0, 1.0)
    # A single concurrency stands in the middle.
    low, high = (low - 1, high + 1) if low == high else (low, high)

    def x(concurrency: float) -> float:
        return left + PANEL_WIDTH * (math.log2(concurrency) - low) / (high - low)

    def y(value: float) -> float:
        return TOP + PLOT - PLOT * value / scale[-1]

    panel = ET.SubElement(root, "g")
    _text(panel, left, TOP - 12, name, weight="600")
    for step in scale:
        ET.SubElement(panel, "path", d=f"M{left} {y(step):.1f}h{PANEL_WIDTH}", stroke=GRID)
        _text(panel, left - 8, y(step) + 4, f"{step:,.10g}", anchor="end", fill=MUTED)
    for tick in ticks:
        ET.SubElement(panel, "path", d=f"M{x(tick):.1f} {TOP + PLOT}v5", stroke=MUTED)
        _text(panel, x(tick), TOP + PLOT + 20, str(tick), anchor="middle", fill=MUTED)
    _text(panel, left + PANEL_WIDTH / 2, TOP + PLOT + 40, "requests at once", anchor="middle", fill=MUTED)
    for line, _name, style in shown:
        points = [(x(point[0]), y(point[column])) for point in line.points]
        group = ET.SubElement(panel, "g", {"fill": "none", "stroke-width": "2", "stroke-linejoin": "round", **style})
        ET.SubElement(group, "title").text = line.name
        ET.SubElement(group, "polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points))
        if not line.is_baseline:
            for a, b in points:
                ET.SubElement(group, "circle", cx=f"{a:.1f}", cy=f"{b:.1f}", r="3", fill=style["stroke"], stroke="none")


def _legend(root: ET.Element, shown: t.Sequence[Shown]) -> None:
    for number, (_line, name, style) in enumerate(entry for entry in shown if entry[1]):
        left, base = LEFTS[number % 2], TOP + PLOT + 66 + ROW * (number // 2)
        ET.SubElement(root, "path", {"d": f"M{left} {base - 4}h26", "stroke-width": "2", "fill": "none", **style})
        _text(root, left + 34, base, name)


def _text(
    parent: ET.Element,
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    weight: str = "",
    anchor: str = "",
    fill: str = "",
) -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font-size": str(size)}
    attributes |= {
        name: value for name, value in {"font-weight": weight, "text-anchor": anchor, "fill": fill}.items() if value
    }
    ET.SubElement(parent, "text", attributes).text = text
