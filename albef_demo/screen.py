"""What the demonstration prints on the terminal, and the queries that a user types there."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from albef_demo import report
from albef_demo.image_search import ImageSearch

console = Console(markup=False, highlight=False, emoji=False)


def print_query(query: report.Query) -> None:
    """The images found for a query, by ITC on the left and re-ranked by ITC and ITM on the right."""
    table = Table(title=f"“{query.text}”", title_justify="left", title_style="bold", box=None, header_style="dim")
    for head, width in (("by ITC", 26), ("ITC", 5), ("by ITC and ITM", 26), ("ITC", 5), ("match", 5)):  # fits in 80
        table.add_column(head, max_width=width, no_wrap=True, justify="left" if width > 5 else "right")
    for before, after in zip(query.by_itc, query.by_odds, strict=True):
        table.add_row(before.name, f"{before.itc:.2f}", after.name, f"{after.itc:.2f}", f"{after.match:.0%}")
    console.print(table)


def print_paintings(sentences: Sequence[report.Sentence]) -> None:
    """The first three paintings that each sentence finds."""
    for sentence in sentences:
        table = Table(title=f"“{sentence.text}”", title_justify="left", title_style="bold", box=None, show_header=False)
        for width in (38, 22, 5, 5):  # fits in 80
            table.add_column(max_width=width, no_wrap=True, justify="right" if width == 5 else "left")
        for found in sentence.found[:3]:
            table.add_row(found.title, found.artist, f"{found.match:.0%}", "" if found.fits else "wrong")
        console.print(table)
        console.print(f" {sentence.verdict}", style="dim")


def print_figures(figures: dict[str, dict[str, float]]) -> None:
    """Recalls by row name, as `recall_rows` returns them."""
    console.print("\nfound in the unseen style, in percent: images for a text, then texts for an image")
    table = Table("", box=None, header_style="dim")
    keys = [f"{side}_r{k}" for side in ("img", "txt") for k in (1, 5, 10)]
    for key in keys:
        table.add_column(key.replace("img_r", "R@").replace("txt_r", "R@"), justify="right")
    for name, values in figures.items():
        table.add_row(name, *(f"{values[key]:.2f}" for key in keys))
    console.print(table)


def ask(images: ImageSearch, top: int) -> list[report.Query]:
    """Searches what the user types, until an empty line; returns nothing where nobody can type."""
    typed: list[report.Query] = []
    if not sys.stdin.isatty() or os.environ.get("CI"):
        return typed
    console.print("\nSearch the unseen style: type a query and press Enter. An empty line ends the search.")
    try:
        while text := input("query> ").strip():
            typed.append(images.find(text, top))
            print_query(typed[-1])
    except (EOFError, KeyboardInterrupt):
        print()
    return typed
