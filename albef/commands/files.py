"""`albef answers` and `albef convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from albef.commands.common import check_places, image_size, layers


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Make the list of answers that VQA ranks, from annotations.

    albef answers vqa_train.json vqa_val.json --out answers.json
    """

    data: Positional[Annotated[tuple[str, ...], arg(metavar="DATA ...", help_behavior_hint="")]]
    """VQA JSON lists"""

    out: Path
    """JSON list to write"""

    most: int | None = None
    """keep only the so many commonest"""

    least: int = 9
    """times an answer must have been given"""

    def run(self) -> None:
        check_places(self.out)
        from albef.data.examples import open_examples
        from albef.tasks.answers import answer_list, write_answers

        found = answer_list(open_examples("vqa", self.data), self.most, self.least)
        write_answers(self.out, found)
        print(f"{len(found)} answers: {self.out}")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turn a published .pth file, of any task, into a folder that albef loads, and back.

    albef convert ALBEF.pth --out albef-14m

    albef convert runs/mine/model --to-official model.pth
    """

    checkpoint: Positional[Annotated[Path | None, arg(metavar="[CHECKPOINT]", help_behavior_hint="")]] = None
    """e.g. ALBEF.pth, or the folder of a saved model"""

    out: Path | None = None
    """folder to write"""

    image_size: str | None = None
    """pixels, if other than the model's: 384, or height and width, 256x512"""

    vocabulary: Path | None = None
    """vocab.txt or tokenizer.json (by default that beside --bert, else BERT's, which comes along)"""

    vision_heads: int | None = None
    """attention heads of the image encoder, if not 64 wide"""

    text_heads: int | None = None
    """attention heads of BERT, if not 64 wide and no config.json beside --bert says how many"""

    half: bool = False
    """store the model's weights in half precision"""

    int8: bool = False
    """store its matrices in eight bits, with a scale for each row"""

    slim: bool = False
    """leave out the momentum teacher and its queues"""

    words: int | None = None
    """keep so many words of a saved model, and spell the others in pieces; leaves out teacher and queues, too"""

    words_of: tuple[str, ...] = ()
    """with --words: images with captions, whose words are kept first; then the commonest of the vocabulary"""

    deit: Path | None = None
    """start of pre-training: DeiT-B/16 weights for the image encoder"""

    bert: Path | None = None
    """start of pre-training: weights of any BERT for text and fusion"""

    text_layers: int | None = None
    """how many of the lowest layers of --bert encode texts (by default half)"""

    fusion_from: str | None = None
    """layers of --bert that fusion layers start from, counted from 0: 3,4,5 (by default all that are left)"""

    text_pooling: Literal["cls", "mean"] | None = None
    """what a text is compared by: its [CLS], or the mean of its words (by default as 1_Pooling beside --bert says)"""

    trunk: Path | None = None
    """start of pre-training: EfficientNet-Lite 0, 1 or 2 under the image encoder, in place of --deit"""

    trunk_levels: int | None = None
    """with --trunk: maps that are read, 1 (default) or 2"""

    vision_width: int | None = None
    """with --trunk: width of the image encoder (default: the text's)"""

    vision_layers: int | None = None
    """with --trunk: transformer blocks upon it (default: 1)"""

    to_official: Path | None = None
    """write the folder of a saved model as a .pth file for the original code or LAVIS"""

    def run(self) -> None:
        from albef.conversion import convert

        parsed = {"image_size": image_size(self.image_size), "fusion_from": layers(self.fusion_from)}
        print(convert(**{**vars(self), **parsed}))
