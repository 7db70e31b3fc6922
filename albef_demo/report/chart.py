"""Curves as inline SVG."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 348, 34, 210  # of the area between the axes


@dataclass(frozen=True)
class Line:
    """A curve of (x, y) points; `colour` is 0 to 3."""

    label: str
    points: list[tuple[float, float]]
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over x from 0 to `x_max`. `mark` is a place on the x-axis with its words."""

    title: str
    x_label: str
    x_max: float
    lines: list[Line]
    mark: tuple[float, str] | None = None


@dataclass(frozen=True)
class _Axes:
    x_ticks: list[float]
    y_ticks: list[float]
    x_max: float
    y_min: float
    y_max: float

    @classmethod
    def of(cls, chart: Chart) -> _Axes:
        """The y-axis starts at 0, unless the curves would then use less than half of it."""
        heights = [y for line in chart.lines for _, y in line.points] or [0.0, 1.0]
        low, high = min(heights), max(heights)
        low, span = (low, high - low) if low > high / 2 else (0.0, high)
        low, high = max(0.0, low - 0.05 * span), high + 0.05 * span
        return cls(
            _ticks(0.0, chart.x_max), _ticks(low, high), chart.x_max or 1.0, low, high if high > low else low + 1
        )

    def x(self, value: float) -> float:
        return LEFT + (RIGHT - LEFT) * value / self.x_max

    def y(self, value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - self.y_min) / (self.y_max - self.y_min)


def chart_svg(chart: Chart) -> str:
    """The chart as inline SVG: axes, ticks, legend and curves."""
    axes = _Axes.of(chart)
    parts = [*_grid(axes), _text((LEFT + RIGHT) / 2, HEIGHT - 5, chart.x_label, "middle")]
    for number, line in enumerate(chart.lines):
        parts += _legend(line, LEFT + number * (RIGHT - LEFT) / len(chart.lines)) + _curve(line, axes)
    if chart.mark:
        x, side = axes.x(chart.mark[0]), -5 if axes.x(chart.mark[0]) > WIDTH / 2 else 5
        parts.append(f'<path class="mark" d="M{x:.1f} {TOP}V{BOTTOM}"/>')
        parts.append(_text(x + side, TOP + 32, chart.mark[1], "end" if side < 0 else "start"))
    words = escape(f"{chart.title} over {chart.x_label}: {'; '.join(map(_in_words, chart.lines))}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{"".join(parts)}</svg>'


def _grid(axes: _Axes) -> list[str]:
    parts = []
    for tick in axes.y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {axes.y(tick):.1f}H{RIGHT}"/>')
        parts.append(_text(LEFT - 6, axes.y(tick) + 4, f"{tick:g}", "end"))
    return parts + [_text(axes.x(tick), BOTTOM + 16, f"{tick:g}", "middle") for tick in axes.x_ticks]


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _curve(line: Line, axes: _Axes) -> list[str]:
    places = [(axes.x(x), axes.y(y)) for x, y in line.points]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    few = len(places) < 25 and not line.dashed
    dots = [f'<circle class="c{line.colour} dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places if few]
    return [f'<polyline class="{_style(line)}" points="{points}"/>', *dots]


def _legend(line: Line, x: float) -> list[str]:
    return [
        f'<path class="{_style(line)}" d="M{x:.1f} 14h16"/>',
        f'<text class="t{line.colour}" x="{x + 21:.1f}" y="18">{escape(line.label)}</text>',
    ]


def _style(line: Line) -> str:
    return f"c{line.colour} dashed" if line.dashed else f"c{line.colour}"


def _in_words(line: Line) -> str:
    if not line.points:
        return f"{line.label} has no points yet"
    return f"{line.label} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers in low..high, about five."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough * 0.999)
    return [round(i * step, 10) for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
