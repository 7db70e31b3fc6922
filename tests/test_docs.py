"""What the pages in docs/ show works: Python is run, records are read by their readers, commands are parsed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from albef import cli
from albef.data.examples import open_examples
from albef.data.sources import open_sources
from albef.models.answering import AlbefForAnswering
from albef.models.classifier import AlbefForClassification, AlbefForPairs
from albef_demo.world import scene
from tests import test_imports, test_pipeline, test_readme

DOCS = Path(__file__).parents[1] / "docs"
TASKS, MIGRATE, LAVIS, FEATURES = (DOCS / f"{name}.md" for name in ("tasks", "migrate", "lavis", "features"))
KINDS = ("vqa", "classification", "pairs", "phrases")  # of the records in docs/tasks.md, after retrieval's


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.S | re.M)
    assert found, f"{page.name} has no block of {language}"
    return found


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `albef` of every command that is written out in full."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:torchrun .*?-m )?albef (.*)", line.partition(" #")[0])
            if found and "..." not in line:
                yield shlex.split(found[1])


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_readme, "README", TASKS)
    test_readme.test_python_blocks_run(tmp_path, monkeypatch)
    saved = {"vqa": AlbefForAnswering, "entailment": AlbefForClassification, "nlvr2": AlbefForPairs}
    for name, kind in saved.items():  # stand for the runs that the page has made
        test_pipeline.save(tmp_path / f"runs/world-{name}/model", kind)
    for name in ("left", "right"):
        scene("test", 1).image().save(tmp_path / f"{name}.png")
    for block in blocks(TASKS, "py"):
        exec(compile(block, TASKS.name, "exec"), {})


@pytest.mark.parametrize("page", [FEATURES, LAVIS], ids=lambda page: page.stem)
def test_pages_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks go on from each other; tensors have the shapes that their comments give."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
        for name, shape in re.findall(r"^ *(\w+) = .*# (\[[\d, ]+\])", block, re.M):
            assert list(names[name].shape) == json.loads(shape), name
    assert names["states"].values.shape == names["fused"].values.shape


def test_records_are_read(tmp_path: Path) -> None:
    records = blocks(TASKS, "json")
    for number, text in enumerate(records):
        (tmp_path / f"{number}.json").write_text(json.dumps([json.loads(text)]))
    assert len(open_sources([str(tmp_path / "0.json")])) == 1
    for number, kind in enumerate(KINDS, 1):
        example = open_examples(kind, [str(tmp_path / f"{number}.json")])[0]
        assert example.answers or example.label or (example.boxes and example.candidates and example.size)
    assert len(records) == 1 + len(KINDS)


@pytest.mark.parametrize("page", [test_readme.README, TASKS, MIGRATE, LAVIS, FEATURES], ids=lambda page: page.stem)
def test_commands_are_understood(page: Path) -> None:
    for words in commands(page):
        if not {"--resume", "--help"} & set(words):  # of a run that isn't here; ends the program
            assert cli.parse(words), words


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_order_of_imports_is_the_tables() -> None:
    text = (DOCS.parent / "CONTRIBUTING.md").read_text().partition("Imports point down only:")[2].split("```")[1]
    lines = text.replace("\n    ", " ").strip().splitlines()
    rows = dict(line.split(" → ") for line in lines[:-1])
    found = {part: set(others.split(", ")) for part, others in rows.items()}
    assert found == {part: set(others) for part, others in test_imports.MAY_IMPORT.items() if others}
    leaves = {part for part, others in test_imports.MAY_IMPORT.items() if part and not others}
    assert set(lines[-1].removeprefix("nothing: ").split(", ")) == leaves


def in_the_map() -> list[str]:
    """Paths that CONTRIBUTING.md's map names; a folder ends with a slash."""
    text = (DOCS.parent / "CONTRIBUTING.md").read_text()
    lines = text.partition("## The map")[2].split("```")[1].splitlines()
    found, folders = [], [""]
    for line in lines:
        if named := re.match(r"([│├└─ ]*?)([\w./]+)(?: |$)", line):
            depth = len(named[1]) // 4
            found.append(folders[depth] + named[2])
            folders = [*folders[: depth + 1], found[-1]]
    return found


def test_the_map_is_the_tree() -> None:
    paths, root = in_the_map(), DOCS.parent
    gone = [path for path in paths if not (root / path).exists()]
    assert not gone and len(set(paths)) == len(paths), gone
    folders = [root / name for name in ("albef", "albef_demo", "scripts")]
    modules = [path.relative_to(root) for folder in folders for path in folder.rglob("*.py")]
    described = [path.parent.as_posix() + "/" if path.name == "__init__.py" else path.as_posix() for path in modules]
    missing = sorted(set(described) - set(paths))
    assert not missing, f"give {missing} a line in CONTRIBUTING.md's map"
