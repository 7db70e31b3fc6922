"""The command line: `albef demo | train | evaluate | ask | ... | convert | recipes`.

Nothing slow is imported before a command is known, and a command's help needs no torch.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from albef.errors import AlbefError

HELP = """\
usage: albef COMMAND ...

Vision-language models that are aligned before they are fused.

start here
  albef demo                              pre-train a tiny model in some minutes, search with a shipped one, see why
  albef demo --query "red fruit"          search the emoji images
  albef recipes                           every run by name

train on your own images
  albef train pretrain-tiny --data.train captions.json --data.validation dev.json --out runs/mine
  albef train --resume runs/mine          go on after a stop or a crash
  albef train pretrain-tiny --help        every field that can be replaced
  torchrun --nproc-per-node 8 -m albef train ...    the same on eight GPUs

use a model
  albef ask runs/vqa/model bus.jpg "what colour is the bus?"      also: entail, compare, match, ground
  albef embed *.jpg --model runs/mine/model --out vectors.npz     for a search engine of your own
  albef evaluate runs/mine/model --data dev.json    by the official rules of the model's task
  albef pull albef-14m                              fetch a published model; `albef pull` lists them
  albef convert ALBEF.pth --out albef-14m           read a published checkpoint

commands (albef COMMAND --help)
"""
# name -> module of albef.commands, class in it, what it does
COMMANDS = {
    "demo": ("demo", "Demo", "pre-train, search and explain on emoji; writes report.html"),
    "train": ("train", "Train", "run a recipe; `albef train NAME --help` lists its fields"),
    "evaluate": ("evaluate", "Evaluate", "a saved model of any task by that task's official rules"),
    "calibrate": (
        "calibrate",
        "Calibrate",
        "fit on validation pairs how ITM counts in a search, and its probabilities",
    ),
    "ask": ("use", "Ask", "answer a question about an image"),
    "entail": ("use", "Entail", "does an image entail a text?"),
    "compare": ("use", "Compare", "is a text true of two images?"),
    "match": ("use", "Match", "do image and text belong together?"),
    "ground": ("use", "Ground", "where in an image is a text seen? Writes a heat map"),
    "classify": ("use", "Classify", "which of some labels suits each image best?"),
    "embed": ("use", "Embed", "unit vectors of images and texts, to a file"),
    "pull": ("pull", "Pull", "fetch published models by name, or list them"),
    "answers": ("files", "Answers", "make the list of answers that VQA ranks, from annotations"),
    "convert": ("files", "Convert", "turn a published .pth file, of any task, into a folder that albef loads"),
    "recipes": ("train", "Recipes", "list the recipes, or show one with its source and result"),
}


class Command(Protocol):
    """What the words of a command line ask for."""

    def run(self) -> None: ...


def main(arguments: list[str] | None = None) -> None:
    """Entry point; an error that the user can mend ends with one line that says how, and exit status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _never_fail_to_print()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return
    run: Callable[[list[str]], None] = lambda words: parse(words).run()  # noqa: E731
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        run = record(run)  # so that torchrun shows where the first rank failed, not only that one did
    try:
        run(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except (AlbefError, OSError) as error:
        from albef.files import printable

        sys.exit(f"albef: {printable(str(error), kept=chr(10))}")


def help_text() -> str:
    width = max(map(len, COMMANDS))
    return HELP + "\n".join(f"  {name:<{width}}  {summary}" for name, (_, _, summary) in COMMANDS.items())


def parse(arguments: list[str]) -> Command:
    """The command that `albef ARGUMENTS` means, not yet run. Ends the program for --help and for wrong options."""
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"albef: no command {name!r}; there are {', '.join(COMMANDS)}. See albef --help", file=sys.stderr)
        sys.exit(2)
    module: Any = import_module(f"albef.commands.{COMMANDS[name][0]}")
    if name == "train":
        command: Command = module.parse_train(rest)
        return command
    import tyro

    from albef.commands.common import without_none

    kind: Callable[..., Command] = without_none(getattr(module, COMMANDS[name][1]))
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    return tyro.cli(kind, prog=f"albef {name}", args=rest, config=config)


def _never_fail_to_print() -> None:
    """A letter that the terminal's code page lacks is written as an escape; it ended commands after their work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
