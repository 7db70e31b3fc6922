"""The plot of docs/performance.md, from what two sweeps wrote.

python -m benchmarks.step --preset tiny --sweep --json step.json
python -m benchmarks.ranking --preset tiny --sweep --json ranking.json
    python -m benchmarks.plot step.json ranking.json --out docs/performance.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from albef_demo.report.chart import HEIGHT, WIDTH, Chart, Line, chart_svg

STYLE = """
svg { font: 12px system-ui, sans-serif } rect { fill: #fff } text { fill: #5b6270 }
.title { font-weight: 600; fill: #1c2330 }
.grid { stroke: #e3e6eb } .c0, .c1, .c2, .c3 { fill: none; stroke-width: 2; stroke-linejoin: round }
.c0 { stroke: #0068ad } .c1 { stroke: #b34700 } .c2 { stroke: #00735a } .c3 { stroke: #6b7280 }
circle { stroke: none } circle.c0 { fill: #0068ad } circle.c1 { fill: #b34700 } circle.c2 { fill: #00735a }
circle.c3 { fill: #6b7280 } text.t0 { fill: #0068ad } text.t1 { fill: #b34700 } text.t2 { fill: #00735a }
"""
LINES = [
    ("textbook", "float32", "textbook", 1),
    ("ours", "float32", "ours", 0),
    ("ours", "bfloat16", "ours, bfloat16", 2),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", type=Path, help="JSON of benchmarks.step --sweep")
    parser.add_argument("ranking", type=Path, help="JSON of benchmarks.ranking --sweep")
    parser.add_argument("--out", type=Path, required=True, help="SVG to write")
    options = parser.parse_args()
    step, ranking = (json.loads(path.read_text()) for path in (options.step, options.ranking))
    charts = [
        chart("CPU ms of a pair's step", "pairs in the batch", step, "batch", "batch"),
        chart("CPU ms of a pair's step", "pixels of a side", step, "resolution", "batch"),
        chart("CPU ms of a pair's step", "tokens of every caption", step, "captions", "batch"),
        chart("CPU ms of a ranked pair", "candidates of an image", ranking, "k", "k"),
    ]
    options.out.write_text(sheet(charts))


def chart(title: str, words: str, found: dict[str, Any], field: str, size: str) -> Chart:
    """Cost of a pair where `field` alone differs from the run's own setting; `size` says how many pairs were timed."""
    own = found["settings"]
    others = {name for name in ("batch", "resolution", "captions", "k") if name in own and name != field}
    rows = [row for row in found["rows"] if all(row[name] == own[name] for name in others) and row[field] != "real"]
    lines = []
    for way, precision, label, colour in LINES:
        mine = [row for row in rows if (row["way"], row["precision"]) == (way, precision)]
        points = {float(row[field]): row["cpu_ms"] / row[size] / own.get("images", 1) for row in mine}
        lines.append(Line(label, sorted(points.items()), colour))
    return Chart(title, words, max(x for line in lines for x, _ in line.points), lines)


def sheet(charts: list[Chart]) -> str:
    """Two charts in a row."""
    room, rows = 26, (len(charts) + 1) // 2
    parts = []
    for number, one in enumerate(charts):
        x, y = number % 2 * (WIDTH + 20), number // 2 * (HEIGHT + room)
        drawn = chart_svg(one).replace("<svg ", f'<svg x="{x}" y="{y + room}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        parts += [f'<text class="title" x="{x + 8}" y="{y + 18}">{one.title}</text>', drawn]
    width, height = 2 * WIDTH + 20, rows * (HEIGHT + room)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><style>{STYLE}</style>'
        f'<rect width="{width}" height="{height}"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    main()
