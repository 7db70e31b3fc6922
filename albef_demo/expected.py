"""What the run on the emoji reaches after how many steps, as it was measured, and what depends on the machine."""

from __future__ import annotations

import torch

from albef.engine.runtime import computes_in_bfloat16
from albef.recipe import Recipe
from albef_demo.curves import Rows

Growth = dict[int, float]  # step -> R@10 in percent, text -> image by ITC over the 1,811 images of the unseen style

# `albef train emoji-demo --seed 42 --max-seconds 0`, measured every 250 steps.
RECORDED: Growth = {
    250: 6.4,
    500: 11.5,
    750: 18.2,
    1000: 28.8,
    1250: 36.2,
    1500: 42.1,
    1750: 47.0,
    2000: 51.9,
    2250: 55.1,
    2500: 56.2,
}
_SOME = {step: RECORDED[step] for step in RECORDED if step % 500 == 0}
# At the end of runs that are shorter: the same command with `--steps`.
SHORTER: Growth = {500: 7.0, 1000: 23.0, 1500: 37.1}


def lines() -> list[str]:
    """What the announcement says of the result, before the run begins."""
    return [
        f"Expect R@10 by ITC to grow with the steps: {_in_words(_SOME)}. R@10 says for how many of a hundred "
        "names the right image is among the first ten of 1,811.",
        "Another machine needs another time for the steps but reaches about the same. A run that the time limit ends "
        f"before its last step reaches less: whole runs with fewer steps had {_in_words(SHORTER)}.",
        precision(),
    ]


def words(recipe: Recipe, step: int) -> str:
    """What the report says of the result after `step` steps."""
    ended = (
        f"The time limit ended this run after {step:,} of its {recipe.steps:,} steps, so it learned less than a whole "
        f"run. Whole runs with fewer steps had {_in_words(SHORTER)}. A new run with more --minutes makes all steps. "
        if step < recipe.steps
        else ""
    )
    return (
        "What a run reaches depends on its steps, and hardly on the machine. The table has R@10 by ITC, text → image, "
        "of this run and of one that was measured when the recipe was made. Another seed or another kind of processor "
        f"may change a figure by a few points. {ended}{precision()}"
    )


def growth(rows: Rows) -> dict[str, Growth]:
    """R@10 by ITC after each evaluation of a run's log, beside the recorded run's."""
    own = {row["step"]: row["evaluation"]["itc"]["img_r10"] for row in rows if "evaluation" in row}
    return {"this run": own, "recorded run": RECORDED}


def precision() -> str:
    """In what this machine computes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if computes_in_bfloat16(device):
        return "This machine computes in bfloat16."
    return (
        "This machine has no arithmetic for bfloat16, so the run computes in float32: it takes longer for the same "
        "steps, and that is no fault."
    )


def _in_words(figures: Growth) -> str:
    return ", ".join(f"{figure:.0f} % after {step:,} steps" for step, figure in figures.items())
