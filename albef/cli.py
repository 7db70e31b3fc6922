"""The command line: `albef demo | train | evaluate | convert | recipes`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

HELP = """\
Vision-language models that are aligned before they are fused.

start here
  albef demo                              pre-train a tiny model in four minutes, search with a shipped one, see why
  albef demo --query "red fruit"          search the emoji pictures
  albef recipes                           every run by name

train on your own pictures
  albef train pretrain-tiny --data.train captions.json --data.validation dev.json --out runs/mine
  albef train --resume runs/mine          go on after a stop or a crash
  albef train pretrain-tiny --help        every field that can be replaced
  torchrun --nproc-per-node 8 -m albef train ...    the same on eight GPUs

use a model
  albef evaluate runs/mine/model --data dev.json    recalls by ITC, by ITM and by their sum
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
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
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

    demo = command("demo", _demo, "pre-train, search and explain on emoji; writes report.html")
    demo.add_argument("--query", action="append", help="only search with the shipped model; may be repeated")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the run and the report")
    demo.add_argument("--minutes", type=float, default=4.0, help="training time (default 4)")
    demo.add_argument("--seed", type=int, default=42, help="of the run (default 42)")
    demo.add_argument("--top", type=int, default=8, help="pictures to show per query (default 8)")

    train = command("train", _train, "run a recipe; `albef train NAME --help` lists its fields", add_help=False)
    train.add_argument("recipe", nargs="?", help="name of a recipe, or a recipe.json")
    train.add_argument("--out", type=Path, help="folder of the run (default runs/NAME); goes on if there is one")
    train.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder")
    train.add_argument("-h", "--help", action="store_true", dest="show_help")

    evaluate = command("evaluate", _evaluate, "two-stage retrieval with a saved model")
    evaluate.add_argument("model", help="folder of a saved model, e.g. runs/mine/model")
    evaluate.add_argument("--data", nargs="+", required=True, help="JSON lists, tar shards or folders of pictures")
    evaluate.add_argument("--image-root", help="folder that the paths in JSON lists are relative to")
    evaluate.add_argument("--captions", type=int, help="use only the first so many captions of each picture")
    evaluate.add_argument("--k", type=int, default=128, help="candidates that are re-ranked (default 128)")
    evaluate.add_argument("--image-size", type=int, help="pixels, if other than the model's (e.g. 384)")
    evaluate.add_argument("--json", type=Path, help="also write the figures to this file")

    convert = command("convert", _convert, "turn a published .pth file into a folder that albef loads")
    convert.add_argument("checkpoint", nargs="?", type=Path, help="e.g. ALBEF.pth, or the folder of a saved model")
    convert.add_argument("--out", type=Path, required=True, help="folder to write")
    convert.add_argument("--image-size", type=int, help="resize the position grid to this many pixels (e.g. 384)")
    convert.add_argument("--vocabulary", type=Path, help="vocab.txt (default: BERT's, which comes along)")
    convert.add_argument("--vision-heads", type=int, help="attention heads of the image encoder, if not 64 wide")
    convert.add_argument("--text-heads", type=int, help="attention heads of BERT, if not 64 wide")
    convert.add_argument("--half", action="store_true", help="store the weights in half precision")
    convert.add_argument("--new-mlm-head", action="store_true", help="fine-tuned files have none: add an untrained one")
    convert.add_argument("--deit", type=Path, help="start of pre-training: DeiT-B/16 weights for the image encoder")
    convert.add_argument("--bert", type=Path, help="start of pre-training: BERT-base weights for text and fusion")

    recipes = command("recipes", _recipes, "list the recipes, or show one with its source and result")
    recipes.add_argument("name", nargs="?")
    return parser


def _demo(options: argparse.Namespace, _: list[str]) -> None:
    from albef import demo

    if options.query:
        demo.search(options.query, options.top, options.out)
    else:
        demo.run(options.out, options.minutes * 60, options.seed, options.top)


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
            raise ValueError(f"--resume takes everything from {folder / engine.RECIPE}; leave out {extra}")
        if not (folder / engine.RECIPE).exists():
            raise FileNotFoundError(f"{folder}: no run here (no {engine.RECIPE}); start one with albef train NAME")
        recipe = Recipe.load(folder / engine.RECIPE)
    else:
        recipe = _resolve(options, rest)
        folder = options.out or Path("runs") / recipe.name
    from albef import distributed
    from albef.tasks import make_task

    with distributed.session() as device:
        engine.prepare_folder(recipe, folder)
        try:
            figures = engine.train(make_task(recipe, folder), recipe, folder, device)
        except engine.Interrupted as stopped:
            if distributed.rank() == 0:
                print(stopped, file=sys.stderr)
            sys.exit(130)
        if distributed.rank() == 0:
            print(f"saved in {folder}; the model: {folder / 'model'}", file=sys.stderr)
            if figures:
                print(table(figures))


_TRAIN_HELP = """\
usage: albef train NAME [--out FOLDER] [--FIELD VALUE ...]
       albef train --resume FOLDER

Runs a recipe. `albef recipes` lists the names, `albef train NAME --help` every field of one. The folder receives
recipe.json, log.jsonl, checkpoint.pt and model/. Ctrl-C or SIGTERM saves; the same command, or --resume, goes on.
"""


def _resolve(options: argparse.Namespace, rest: list[str]):
    """The named recipe (or recipe.json) with single fields replaced by the command line."""
    import tyro

    from albef.recipe import Recipe

    if not options.recipe:
        raise ValueError("which recipe? `albef recipes` lists them; or --resume FOLDER")
    path = Path(options.recipe)
    recipe = Recipe.load(path) if path.suffix == ".json" else find_recipe(options.recipe)()
    if options.show_help:
        rest = ["--help"]
    return tyro.cli(Recipe, prog=f"albef train {options.recipe}", default=recipe, args=rest)


def find_recipe(name: str):
    """The recipe function called `name`; an unknown name is an error with the nearest one."""
    import difflib

    from albef.recipes import RECIPES

    if name not in RECIPES:
        nearest = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(RECIPES)}, and it comes first"
        raise ValueError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]


def _evaluate(options: argparse.Namespace, _: list[str]) -> None:
    from albef import distributed
    from albef.data.processor import Processor
    from albef.data.progress import with_bar
    from albef.data.sources import open_sources
    from albef.models.albef import AlbefModel
    from albef.tasks import retrieval

    if options.k < 1:
        raise ValueError(f"--k {options.k}: at least one candidate must be re-ranked")
    source = open_sources(options.data, options.image_root)
    with distributed.session() as device:
        model = AlbefModel.from_pretrained(options.model, options.image_size).to(device)
        processor = Processor.from_pretrained(options.model)
        processor.image_size = model.config.image_size
        gallery = with_bar(
            "encoding pictures",
            len(source),
            lambda tick: retrieval.encode(model, processor, source, options.captions, tick=tick),
        )
        pictures = len(gallery.z_image)
        figures = with_bar("re-ranking", pictures, lambda tick: retrieval.evaluate(model, gallery, options.k, tick))
        if distributed.rank() == 0:
            print(f"{pictures} pictures, {len(gallery.z_text)} texts, {options.k} candidates re-ranked")
            print(table(figures))
            if options.json:
                options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _convert(options: argparse.Namespace, _: list[str]) -> None:
    import torch

    from albef.data.processor import Processor, load_tokenizer
    from albef.models import convert
    from albef.models.albef import AlbefModel
    from albef.models.config import preset

    if bool(options.checkpoint) == bool(options.deit or options.bert):
        raise ValueError("give either a checkpoint, or --deit and --bert to make the start of a pre-training")
    processor = Processor(load_tokenizer(str(options.vocabulary or "bert")), preset("base").image_size)
    if options.checkpoint and options.checkpoint.is_dir():
        model = AlbefModel.from_pretrained(options.checkpoint, options.image_size)
        processor = Processor.from_pretrained(options.checkpoint)
    elif options.checkpoint:
        report = convert.convert_file(
            options.checkpoint,
            options.out,
            processor.tokenizer.get_vocab(),
            options.image_size,
            options.vision_heads,
            options.text_heads,
            options.new_mlm_head,
        )
        print(report)
        model = AlbefModel.from_pretrained(options.out)
    else:
        model = convert.initial_model(preset("base"), options.deit, options.bert)
    model.save_pretrained(options.out, torch.float16 if options.half else None)
    processor.image_size = model.config.image_size
    processor.save_pretrained(options.out)
    print(f"saved in {options.out}")


def _recipes(options: argparse.Namespace, _: list[str]) -> None:
    from albef.recipes import RECIPES

    if options.name:
        function = find_recipe(options.name)
        print(textwrap.dedent(function.__doc__ or "").strip(), end="\n\n")
        from dataclasses import asdict

        print(json.dumps(asdict(function()), indent=2))
        return
    for name, function in RECIPES.items():
        print(f"{name:<16} {(function.__doc__ or '').splitlines()[0]}")


def table(figures: Mapping[str, dict[str, float]]) -> str:
    """Recalls as text: a row per way of scoring."""
    heads = ["text->picture R@1", "R@5", "R@10", "picture->text R@1", "R@5", "R@10"]
    keys = [f"{side}_r{k}" for side in ("img", "txt") for k in (1, 5, 10)]
    widths = [len(head) + 4 for head in heads]
    rows = [" " * 4 + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for name, values in figures.items():
        cells = (f"{values[key]:>{width}.2f}" for key, width in zip(keys, widths, strict=True))
        rows.append(f"{name:<4}" + "".join(cells))
    return "\n".join(rows)
