"""The command line: `albef demo | train | evaluate | ask | ... | convert | recipes`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from albef.errors import AlbefError, AlbefFileNotFoundError, AlbefValueError

HELP = """\
Vision-language models that are aligned before they are fused.

start here
  albef demo                              pre-train a tiny model in four minutes, search with a shipped one, see why
  albef demo --query "red fruit"          search the emoji images
  albef recipes                           every run by name

train on your own images
  albef train pretrain-tiny --data.train captions.json --data.validation dev.json --out runs/mine
  albef train --resume runs/mine          go on after a stop or a crash
  albef train pretrain-tiny --help        every field that can be replaced
  torchrun --nproc-per-node 8 -m albef train ...    the same on eight GPUs

use a model
  albef ask runs/vqa/model bus.jpg "what colour is the bus?"      also: entail, compare, match, ground
  albef evaluate runs/mine/model --data dev.json    by the official rules of the model's task
  albef convert ALBEF.pth --out albef-14m           read a published checkpoint
"""


def main(arguments: list[str] | None = None) -> None:
    """Entry point; a known error ends with one line that says what to do, and exit status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.run is not _train:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        options.run(options, rest)
    except KeyboardInterrupt:
        sys.exit(130)
    except (AlbefError, OSError) as error:
        if options.traceback:
            raise
        sys.exit(f"albef: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("albef", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=lambda *_: parser.print_help(), traceback=False)
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run, text: str, **options) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "pre-train, search and explain on emoji; writes report.html", epilog=_DEMO_HELP)
    demo.add_argument("--query", action="append", help="only search with the shipped model; may be repeated")
    demo.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of the run and the report (default runs/demo)"
    )
    demo.add_argument("--minutes", type=float, default=4.0, help="training time of the emoji (default 4)")
    demo.add_argument("--all-tasks", action="store_true", help="then fine-tune for every task, a page for each")
    demo.add_argument(
        "--task-minutes", type=float, default=2.0, help="longest training time of each of the six runs (default 2)"
    )
    demo.add_argument("--seed", type=int, default=42, help="of the run (default 42)")
    demo.add_argument("--top", type=int, default=8, help="images to show per query (default 8)")

    train = command("train", _train, "run a recipe; `albef train NAME --help` lists its fields", add_help=False)
    train.add_argument("recipe", nargs="?", help="name of a recipe, or a recipe.json")
    train.add_argument("--out", type=Path, help="folder of the run (default runs/NAME); goes on if there is one")
    train.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder")
    train.add_argument("-h", "--help", action="store_true", dest="show_help")

    evaluate = command("evaluate", _evaluate, "a saved model of any task by that task's official rules")
    evaluate.add_argument("model", help=_MODEL)
    evaluate.add_argument(
        "--data", nargs="+", required=True, help="the task's JSON lists; tar shards, folders, world:test"
    )
    evaluate.add_argument("--image-root", help="folder that the paths in JSON lists are relative to")
    evaluate.add_argument("--image-size", **_IMAGE_SIZE)
    evaluate.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32",
        help="arithmetic (default float32, as in published figures; bfloat16 is quicker where a device knows it)",
    )  # fmt: skip
    evaluate.add_argument("--json", type=Path, help="also write the figures to this file")
    evaluate.add_argument("--results", type=Path, help="write what the model says; not for retrieval and grounding")
    evaluate.add_argument(
        "--task", choices=("retrieval", "grounding"), help="of a model that matches (default retrieval)"
    )
    evaluate.add_argument("--k", type=int, help="retrieval, vqa: candidates that are re-ranked (default 128)")
    group = evaluate.add_argument_group("retrieval")
    group.add_argument("--captions", type=int, help="only the first so many captions of each image")
    group.add_argument(
        "--protocol", choices=("coco", "flickr30k", "flickr30k-zero-shot"), help="size and k of the paper"
    )
    group.add_argument(
        "--memory", type=float, help="GiB for image tokens; halved precision if they need more (default 8)"
    )
    group = evaluate.add_argument_group("vqa")
    group.add_argument("--answers", type=Path, help="JSON list of answers (default: those the model learned)")
    group.add_argument("--official", action="store_true", help="count the first word twice, as the original")
    group.add_argument("--way", choices=("ranked", "generated"), help="answers in --results (default ranked)")
    group.add_argument("--vg-root", help="folder of Visual Genome's images")
    group = evaluate.add_argument_group("grounding")
    group.add_argument("--mode", nargs="+", choices=("itm", "itc"), help="kind of heat map (default both)")
    group.add_argument("--layer", type=int, help="layer of the heat map (default: as the paper)")

    for name, (text, things) in _ONE_IMAGE.items():
        one = command(name, _one_image, text)
        one.set_defaults(what=name)
        one.add_argument("model", help=_MODEL)
        for thing in things:
            one.add_argument(thing, help=_THINGS[thing])
        one.add_argument("--image-size", **_IMAGE_SIZE)
        one.add_argument("--json", action="store_true", help="print JSON")
        if name == "ask":
            one.add_argument("--k", type=int, default=5, help="answers to show (default 5)")
            one.add_argument("--answers", type=Path, help="JSON list of answers (default: those the model learned)")
            one.add_argument("--free", action="store_true", help="write answers freely instead of ranking a list")
        if name == "ground":
            one.add_argument("--mode", choices=("itm", "itc"), default="itm", help="kind of heat map (default itm)")
            one.add_argument("--layer", type=int, help="layer of the heat map (default: as the paper)")
            one.add_argument("--out", type=Path, default=Path("heat.png"), help="image to write (default heat.png)")

    answers = command("answers", _answers, "make the list of answers that VQA ranks, from annotations")
    answers.add_argument("data", nargs="+", help="VQA JSON lists")
    answers.add_argument("--out", type=Path, required=True, help="JSON list to write")
    answers.add_argument("--most", type=int, help="keep only the so many commonest")
    answers.add_argument("--least", type=int, default=9, help="times an answer must have been given (default 9)")

    convert = command("convert", _convert, "turn a published .pth file, of any task, into a folder that albef loads")
    convert.add_argument("checkpoint", nargs="?", type=Path, help="e.g. ALBEF.pth, or the folder of a saved model")
    convert.add_argument("--out", type=Path, help="folder to write")
    convert.add_argument("--image-size", **_IMAGE_SIZE)
    convert.add_argument("--vocabulary", type=Path, help="vocab.txt (default: BERT's, which comes along)")
    convert.add_argument("--vision-heads", type=int, help="attention heads of the image encoder, if not 64 wide")
    convert.add_argument("--text-heads", type=int, help="attention heads of BERT, if not 64 wide")
    convert.add_argument("--half", action="store_true", help="store the model's weights in half precision")
    convert.add_argument("--slim", action="store_true", help="leave out the momentum teacher and its queues")
    convert.add_argument("--deit", type=Path, help="start of pre-training: DeiT-B/16 weights for the image encoder")
    convert.add_argument("--bert", type=Path, help="start of pre-training: BERT's weights for text and fusion")
    convert.add_argument("--to-official", type=Path, metavar="FILE", help="write a .pth for the original or LAVIS")

    recipes = command("recipes", _recipes, "list the recipes, or show one with its source and result")
    recipes.add_argument("name", nargs="?", help="the one to show")
    return parser


def _size(text: str) -> int | tuple[int, int]:
    """`384`, or height and width as in `256x512`."""
    sides = text.split("x")
    if not (1 <= len(sides) <= 2 and all(side.isdecimal() and int(side) for side in sides)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give pixels, 384, or height and width, 256x512")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


_MODEL = "folder of a saved model, e.g. runs/mine/model; or emoji or world, which come along"
_IMAGE_SIZE: dict[str, Any] = {
    "type": _size,
    "metavar": "PIXELS",
    "help": "size of the images, if other than the model's: 384, or height and width, 256x512",
}


def _check_places(*paths: Path | None) -> None:
    """An error for a file that could not be written, before the work is done."""
    for path in filter(None, paths):
        if path.is_dir():
            raise IsADirectoryError(f"{path}: is a folder; name a file in it")
        if not path.parent.is_dir():
            raise AlbefFileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")


def _demo(options: argparse.Namespace, _: list[str]) -> None:
    import albef_demo as demo

    if options.query:
        demo.search(options.query, options.top, options.out)
    else:
        task_seconds = options.task_minutes * 60 if options.all_tasks else None
        demo.run(options.out, options.minutes * 60, options.seed, options.top, task_seconds)


_DEMO_HELP = """\
--all-tasks adds a page to the report for each of retrieval, vqa, entailment, nlvr2 (after text assignment, a run of its
own) and grounding: fine-tuned from the model `world` that comes along, on a generated world of coloured shapes. The
runs stay in OUT/world; what is there is taken up, Ctrl-C saves, the same command goes on. With --minutes 0 the tasks
alone.
"""


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    if options.show_help and not options.recipe:
        print(_TRAIN_HELP)
        return
    from albef.engine import train as engine
    from albef.recipe import Recipe

    folder = options.resume
    if folder is not None:
        if options.recipe or rest:
            extra = " ".join([*filter(None, [options.recipe]), *rest])
            raise AlbefValueError(f"--resume takes everything from {folder / engine.RECIPE}; leave out {extra}")
        if not (folder / engine.RECIPE).exists():
            raise AlbefFileNotFoundError(f"{folder}: no run here (no {engine.RECIPE}); start one with albef train NAME")
        recipe = Recipe.load(folder / engine.RECIPE)
    else:
        recipe = _resolve(options, rest)
        folder = options.out or Path("runs") / recipe.name
    from albef import distributed, evaluation
    from albef.tasks import make_task

    with distributed.session() as device:
        try:
            figures = engine.train(make_task, recipe, folder, device)
        except engine.Interrupted as stopped:
            if distributed.rank() == 0:
                print(stopped, file=sys.stderr)
            sys.exit(130)
        if distributed.rank() == 0:
            print(f"saved in {folder}; the model: {folder / 'model'}", file=sys.stderr)
            if figures:
                print(evaluation.table(figures))


_TRAIN_HELP = """\
usage: albef train NAME [--out FOLDER] [--FIELD VALUE ...]
       albef train --resume FOLDER

Runs a recipe. `albef recipes` lists the names, `albef train NAME --help` every field of one. The folder receives
recipe.json, log.jsonl, checkpoints and model/. Ctrl-C or SIGTERM saves; the same command, or --resume, goes on.
"""


def _resolve(options: argparse.Namespace, rest: list[str]):
    """The named recipe (or recipe.json) with single fields replaced by the command line."""
    import tyro

    from albef.recipe import Recipe

    if not options.recipe:
        raise AlbefValueError("which recipe? `albef recipes` lists them; or --resume FOLDER")
    path = Path(options.recipe)
    recipe = Recipe.load(path) if path.suffix == ".json" else find_recipe(options.recipe)()
    if options.show_help:
        rest = ["--help"]
    return tyro.cli(Recipe, prog=f"albef train {options.recipe}", default=recipe, args=rest)


def all_recipes():
    """Every recipe function by the name it has on the command line: the paper's, then the demonstration's."""
    from albef import recipes
    from albef_demo import recipes as demo_recipes

    return recipes.RECIPES | demo_recipes.RECIPES


def find_recipe(name: str):
    """The recipe function called `name`; an unknown name is an error with the nearest one."""
    import difflib

    recipes = all_recipes()
    if name not in recipes:
        nearest = difflib.get_close_matches(name, recipes, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(recipes)}, and it comes first"
        raise AlbefValueError(f"unknown recipe {name!r}; {hint}")
    return recipes[name]


def _evaluate(options: argparse.Namespace, _: list[str]) -> None:
    _check_places(options.results, options.json)
    from albef import evaluation

    evaluation.run(options)


_ONE_IMAGE = {
    "ask": ("answer a question about an image", ("image", "question")),
    "entail": ("does an image entail a text?", ("image", "text")),
    "compare": ("is a text true of two images?", ("left", "right", "text")),
    "match": ("do image and text belong together?", ("image", "text")),
    "ground": ("where in an image is a text seen? Writes a heat map", ("image", "text")),
}
_THINGS = {
    "image": "path of the image",
    "left": "path of the left image",
    "right": "path of the right image",
    "question": "what is asked",
    "text": "what is said of it",
}


def _one_image(options: argparse.Namespace, _: list[str]) -> None:
    _check_places(getattr(options, "out", None))
    from albef import shell

    found, lines = shell.COMMANDS[options.what](options)
    print(json.dumps(found) if options.json else "\n".join(lines))


def _answers(options: argparse.Namespace, _: list[str]) -> None:
    _check_places(options.out)
    from albef.data.examples import open_examples
    from albef.files import write_atomically
    from albef.tasks.answers import answer_list

    found = answer_list(open_examples("vqa", options.data), options.most, options.least)
    write_atomically(options.out, json.dumps(found, indent=0, ensure_ascii=False) + "\n")
    print(f"{len(found)} answers: {options.out}")


def _convert(options: argparse.Namespace, _: list[str]) -> None:
    from albef.conversion import convert

    given = {name: value for name, value in vars(options).items() if name not in ("run", "traceback")}
    print(convert(**given))


def _recipes(options: argparse.Namespace, _: list[str]) -> None:
    if options.name:
        function = find_recipe(options.name)
        print(textwrap.dedent(function.__doc__ or "").strip(), end="\n\n")
        from dataclasses import asdict

        print(json.dumps(asdict(function()), indent=2))
        return
    for name, function in all_recipes().items():
        print(f"{name:<16} {(function.__doc__ or '').splitlines()[0]}")
