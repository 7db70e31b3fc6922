"""The page of typed queries counts what was judged, and no judgement of another photo."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import queries


def test_a_page_with_judgements(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    records = []
    for name in ("red", "green", "blue", "white"):
        Image.new("RGB", (60, 40), name).save(tmp_path / f"{name}.png")
        records.append({"image": f"{name}.png", "caption": [f"a {name} | thing", "unseen"]})
    (tmp_path / "data.json").write_text(json.dumps(records))
    (tmp_path / "queries.json").write_text(json.dumps({"colours": ["red", "blue"], "others": ["a cat"]}))
    given = {"data": "data.json", "queries": "queries.json", "judged": "judged.json", "out": "page.md"}
    words = [word for name, path in given.items() for word in (f"--{name}", path)]
    monkeypatch.setattr(sys, "argv", ["queries", "world", *words, "--sheets", "sheets", "--intro", "By world."])
    queries.main()
    assert capsys.readouterr().out == "page.md: 0 of 3 first finds fit, 3 not judged\n"
    rows = [line.split(" | ") for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| *")]
    assert [len(row) for row in rows] == [5] * 3 and all("/ thing" in row[1] for row in rows)
    assert Image.open(tmp_path / "sheets/01.png").size == (768, 3 * 276)

    first = {row[0].strip("|* "): int(row[1].split()[0]) for row in rows}
    judged = {"red": [first["red"], ""], "blue": [first["blue"], "it is green"], "a cat": [first["a cat"] + 1, ""]}
    (tmp_path / "judged.json").write_text(json.dumps(judged))
    queries.main()
    page = (tmp_path / "page.md").read_text()
    assert "**1 of 3 first finds fit, 1 not judged.**" in page and "By world." in page
    assert "## Colours: 1 of 2 first finds fit\n" in page and "| no: it is green |" in page


def test_every_query_is_there_once():
    kinds = json.loads((Path(__file__).parents[1] / "docs/photos-queries.json").read_text())
    listed = [query for own in kinds.values() for query in own]
    assert len(listed) == len(set(listed)) == 50


@pytest.mark.parametrize(
    ("place", "why_not", "shown"), [(3, "", "yes"), (3, "no dog", "no: no dog"), (4, "", "not judged")]
)
def test_verdicts(place, why_not, shown):
    found = {"a dog": [queries.Ranked(3, 0.9, 0.5, 1.0)]}
    assert queries.verdict("a dog", found, {"a dog": (place, why_not)}) == shown
