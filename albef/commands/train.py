"""`albef train` and `albef recipes`."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from albef.errors import AlbefFileNotFoundError, AlbefValueError
from albef.recipe import Recipe

HELP = """\
usage: albef train NAME [--out FOLDER] [--FIELD VALUE ...]
       albef train --resume FOLDER

Runs a recipe. `albef recipes` lists the names, `albef train NAME --help` every field of one. The folder receives
recipe.json, log.jsonl, two checkpoints, and at the end model/. Ctrl-C or SIGTERM saves; the same command, or --resume,
goes on.
"""


@dataclass(frozen=True)
class Train:
    """Run a recipe; `albef train NAME --help` lists its fields."""

    recipe: Positional[str | None] = None
    """name of a recipe, or a recipe.json"""

    out: Path | None = None
    """folder of the run (by default runs/NAME); goes on if there is one"""

    resume: Path | None = None
    """go on with the run in this folder"""


@dataclass(frozen=True)
class Training:
    """A recipe, ready to be run in a folder."""

    recipe: Recipe
    folder: Path

    def run(self) -> None:
        from albef import distributed, evaluation
        from albef.engine import train as engine
        from albef.tasks import make_task

        with distributed.session() as device:
            try:
                figures = engine.train(make_task, self.recipe, self.folder, device)
            except engine.Interrupted as stopped:
                if distributed.rank() == 0:
                    print(stopped, file=sys.stderr)
                sys.exit(130)
            if distributed.rank() == 0:
                print(f"saved in {self.folder}; the model: {self.folder / 'model'}", file=sys.stderr)
                if figures:
                    print(evaluation.table(figures))


def parse_train(arguments: list[str]) -> Training:
    """What `albef train ARGUMENTS` asks for: fields of the recipe are options of the command. Ends for --help."""
    asked = [word for word in arguments if word not in ("-h", "--help")]
    chosen, fields = tyro.cli(Train, prog="albef train", args=asked, return_unknown_args=True)
    if chosen.resume is None:
        if asked != arguments:
            if not chosen.recipe:
                print(HELP, end="")
                sys.exit()
            fields = ["--help"]
        recipe = _resolve(chosen.recipe, fields)
        return Training(recipe, chosen.out or Path("runs") / recipe.name)
    return Training(_saved(chosen, fields), chosen.resume)


def _saved(chosen: Train, fields: list[str]) -> Recipe:
    from albef.engine.train import RECIPE

    path = Path(chosen.resume or ".") / RECIPE
    if chosen.recipe or fields:
        extra = " ".join([*filter(None, [chosen.recipe]), *fields])
        raise AlbefValueError(f"--resume takes everything from {path}; leave out {extra}")
    if not path.exists():
        raise AlbefFileNotFoundError(f"{chosen.resume}: no run here (no {RECIPE}); start one with albef train NAME")
    return Recipe.load(path)


def _resolve(name: str | None, fields: list[str]) -> Recipe:
    """The named recipe (or recipe.json) with single fields replaced by the command line."""
    if not name:
        raise AlbefValueError("which recipe? `albef recipes` lists them; or --resume FOLDER")
    path = Path(name)
    recipe = Recipe.load(path) if path.suffix == ".json" else find_recipe(name)()
    return tyro.cli(Recipe, prog=f"albef train {name}", default=recipe, args=fields)


def all_recipes() -> dict[str, Callable[[], Recipe]]:
    """Every recipe function by the name it has on the command line: the paper's, then the demonstration's."""
    from albef import recipes
    from albef_demo import recipes as demo_recipes

    return recipes.RECIPES | demo_recipes.RECIPES


def find_recipe(name: str) -> Callable[[], Recipe]:
    """The recipe function called `name`; an unknown name is an error with the nearest one."""
    import difflib

    from albef.recipes import RECIPES

    if name in RECIPES:
        return RECIPES[name]
    recipes = all_recipes()
    if name not in recipes:
        nearest = difflib.get_close_matches(name, recipes, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(recipes)}, and it comes first"
        raise AlbefValueError(f"unknown recipe {name!r}; {hint}")
    return recipes[name]


@dataclass(frozen=True)
class Recipes:
    """List the recipes, or show one with its source and result."""

    name: Positional[Annotated[str | None, arg(metavar="[NAME]", help_behavior_hint="")]] = None
    """the one to show"""

    def run(self) -> None:
        if self.name:
            function = find_recipe(self.name)
            print(textwrap.dedent(function.__doc__ or "").strip(), end="\n\n")
            values: dict[str, Any] = asdict(function())
            print(json.dumps(values, indent=2))
            return
        for name, function in all_recipes().items():
            print(f"{name:<16} {(function.__doc__ or '').splitlines()[0]}")
