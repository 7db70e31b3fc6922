"""What a model finds for typed queries, as a page, with the judgement of a person who has looked at each first find:

    python -m benchmarks.queries MODEL --data retrieval_val.json --out docs/photos.md --sheets runs/sheets

`--queries` is a JSON file of lists of queries by their kind. `--judged` says for each query at which place of the data
the judged image stands, whether it fits, and why not: `{"a black dog": [17, "the dog is brown"]}`, and `[17, ""]` for
one that fits. A first find that nobody has judged is marked; the sheets show it, to be judged. They stay out of the
repository, like the photos.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw

import albef
from albef.data.images import open_image
from albef.data.sources import Source, open_sources
from albef.results import Ranked

SHOWN, CANDIDATES = 3, 64
SIDE, ROWS = 256, 5
Found = dict[str, list[Ranked]]
Judged = dict[str, tuple[int, str]]


def main() -> None:
    options = parse()
    kinds: dict[str, list[str]] = json.loads(options.queries.read_text(encoding="utf-8"))
    judged: Judged = json.loads(options.judged.read_text(encoding="utf-8")) if options.judged.is_file() else {}
    source = open_sources([options.data])
    queries = [query for own in kinds.values() for query in own]
    images = [source[index].image for index in range(len(source))]
    ranked = albef.load(options.model).rank(queries, images, k=CANDIDATES)
    found = {query: own[:SHOWN] for query, own in zip(queries, ranked, strict=True)}
    options.out.write_text(page(kinds, found, judged, source, options.intro), encoding="utf-8")
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(queries), ROWS):
            sheet(queries[start : start + ROWS], found, source).save(options.sheets / f"{start + 1:02}.png")
    print(f"{options.out}: {count(queries, found, judged)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a saved model, or the name of one that comes along")
    parser.add_argument("--data", required=True, help="JSON list, shard or folder of images with captions")
    parser.add_argument("--queries", type=Path, default=Path("docs/photos-queries.json"), help="JSON, by kind")
    parser.add_argument("--judged", type=Path, default=Path("docs/photos-judged.json"), help="JSON, by query")
    parser.add_argument("--intro", default="", help="a sentence on model and data that the page begins with")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--sheets", type=Path, help="folder for images with the finds, to be judged by looking")
    return parser.parse_args()


def page(kinds: dict[str, list[str]], found: Found, judged: Judged, source: Source, intro: str) -> str:
    queries = [query for own in kinds.values() for query in own]
    lines = [
        "# What typed queries find",
        "",
        *([intro, ""] if intro else []),
        f"**{count(queries, found, judged)}.** The queries were written down before any result was seen. The "
        f"{CANDIDATES} photos that ITC holds nearest are ordered by both scores on one scale (`odds`). A find is given "
        "by its place in the list of photos, the probability of a match, and its first caption, which the search does "
        "not see. Each first photo was looked at to judge whether all of the query is true of it.",
    ]
    for kind, own in kinds.items():
        lines += ["", f"## {kind.capitalize()}: {count(own, found, judged)}", ""]
        lines += ["| query | first | fits | second | third |", "|---|---|---|---|---|"]
        for query in own:
            first, second, third = (cell(one, source) for one in found[query])
            lines.append(f"| *{query}* | {first} | {verdict(query, found, judged)} | {second} | {third} |")
    return "\n".join(lines) + "\n"


def cell(one: Ranked, source: Source) -> str:
    caption = " ".join(source.captions(one.index)[0].split()).replace("|", "/")
    return f"{one.index} ({one.probability:.2f}): {caption}"


def verdict(query: str, found: Found, judged: Judged) -> str:
    """`yes`, `no` with the reason, or that nobody has judged this photo for the query."""
    place, why_not = judged.get(query, (None, ""))
    if place != found[query][0].index:
        return "not judged"
    return f"no: {why_not}" if why_not else "yes"


def count(queries: list[str], found: Found, judged: Judged) -> str:
    verdicts = [verdict(query, found, judged) for query in queries]
    open_ones = verdicts.count("not judged")
    return f"{verdicts.count('yes')} of {len(queries)} first finds fit" + (
        f", {open_ones} not judged" if open_ones else ""
    )


def sheet(queries: list[str], found: Found, source: Source) -> Image.Image:
    """A row of finds under each query."""
    made = Image.new("RGB", (SHOWN * SIDE, len(queries) * (SIDE + 20)), "white")
    draw = ImageDraw.Draw(made)
    for row, query in enumerate(queries):
        top = row * (SIDE + 20)
        draw.text((4, top + 4), f"{query}: {[one.index for one in found[query]]}", "black")
        for column, one in enumerate(found[query]):
            photo = open_image(source[one.index].image)
            photo.thumbnail((SIDE, SIDE))
            made.paste(photo, (column * SIDE, top + 20))
    return made


if __name__ == "__main__":
    main()
