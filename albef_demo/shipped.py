"""`albef demo --query`: the model that comes with the package searches a drawing style that it never saw."""

from __future__ import annotations

from pathlib import Path

from albef.files import MODELS, write_atomically
from albef_demo import recipes, report
from albef_demo.image_search import ImageSearch
from albef_demo.screen import console, print_query

SHIPPED = MODELS / "emoji"


def shipped_search() -> ImageSearch:
    """The images of the unseen style for the shipped model; kept in the cache, so encoded only by the first call."""
    recipe = recipes.emoji_demo()
    return ImageSearch.load(SHIPPED, recipe.data.validation, recipe.k_test, keep=True)


def search(queries: list[str], top: int, out: Path) -> None:
    """Prints the first `top` images for each query, and writes them to `out`/search.html."""
    images = shipped_search()
    found = [images.find(query, top) for query in queries]
    for query in found:
        print_query(query)
    lead = (
        f"The model searched {len(images.names):,} images in a drawing style that it never saw. Below each image stand "
        f"its cosine (ITC), the probability that it matches (ITM, for the first {images.candidates} images by ITC) and "
        "its place by ITC."
    )
    page = write_page(out / "search.html", report.render_search(found, lead))
    console.print(f"images: {page}", soft_wrap=True)


def write_page(path: Path, page: str) -> Path:
    """Writes an HTML page, and the folder that it lies in; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path
