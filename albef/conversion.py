"""`albef convert`: published files into folders of ours, and folders of ours into files that the original reads."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from albef.data.processor import Processor
from albef.data.text import load_tokenizer
from albef.errors import AlbefValueError
from albef.files import ANSWERS
from albef.models import convert as published
from albef.models import folders
from albef.models.config import preset

ImageSize = int | tuple[int, int]


def convert(
    *,
    checkpoint: Path | None = None,
    out: Path | None = None,
    image_size: ImageSize | None = None,
    vocabulary: Path | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    half: bool = False,
    slim: bool = False,
    deit: Path | None = None,
    bert: Path | None = None,
    to_official: Path | None = None,
) -> str:
    """Writes the folder `out`, or with `to_official` a file of the original's; returns a report in words.

    checkpoint    a `.pth` file of ALBEF's code or of LAVIS, or the folder of a saved model of ours
    image_size    pixels, one number or height and width; the grid of positions is resized to it
    vocabulary    the `vocab.txt` that the model learned with; by default that of bert-base-uncased
    *_heads       attention heads, where they are not 64 wide: files do not say how many there are
    half          stores the model in half precision
    slim          leaves out the momentum teacher and the queues
    deit, bert    in place of a checkpoint: what a pre-training starts from. Sizes are those of the files
    to_official   in place of `out`: the `.pth` file to write the saved model `checkpoint` to

    AlbefError for files that are not there, are damaged or don't fit, and for arguments that don't go together.
    """
    if (checkpoint is None) == (deit is None and bert is None):
        raise AlbefValueError("give either a checkpoint, or --deit and --bert to make the start of a pre-training")
    if to_official is not None and out is None:
        return _to_official(checkpoint, to_official, image_size, half, slim)
    if to_official is not None or out is None:
        raise AlbefValueError("give either --out FOLDER, or --to-official FILE.pth to write a file of the original's")
    if checkpoint is not None and checkpoint.is_dir():
        return f"{_from_folder(checkpoint, out, image_size, half, slim)}\nsaved in {out}"
    processor = Processor(load_tokenizer(str(vocabulary or "bert")), preset("base").image_size)
    words, heads = processor.tokenizer.get_vocab(), (vision_heads, text_heads)
    if checkpoint is not None:
        report = published.convert_file(checkpoint, out, words, image_size, *heads, half=half, slim=slim)
    else:
        report = _start(deit, bert, out, words, image_size, heads, half)
    _save_processor(processor, out)
    return f"{report}\nsaved in {out}"


def _to_official(checkpoint: Path | None, file: Path, image_size: ImageSize | None, half: bool, slim: bool) -> str:
    """A saved model of ours as a file of the original's."""
    if checkpoint is None or checkpoint.is_file():
        raise AlbefValueError(
            f"--to-official {file} writes a saved model of ours, but {checkpoint or 'nothing'} is given; give its "
            "folder, for example runs/mine/model"
        )
    if file.is_dir():
        raise AlbefValueError(f"--to-official {file}: is a folder; name a file in it, such as model.pth")
    return published.write_official(str(checkpoint), file, image_size, half, slim)


def _from_folder(folder: Path, out: Path, image_size: ImageSize | None, half: bool, slim: bool) -> str:
    """A saved model of ours anew, with its words and, if it answers, its answers."""
    processor = Processor.from_pretrained(folder)
    report = published.convert_folder(folder, out, image_size, half, slim)
    if (folder / ANSWERS).is_file() and folder.resolve() != out.resolve():
        shutil.copyfile(folder / ANSWERS, out / ANSWERS)
    _save_processor(processor, out)
    return report


def _start(
    deit: Path | None, bert: Path | None, out: Path, words: dict[str, int], image_size: ImageSize | None,
    heads: tuple[int | None, int | None], half: bool,
) -> str:  # fmt: skip
    """What a pre-training starts from; without a file of BERT the model takes its size from the vocabulary."""
    base = preset("base") if image_size is None else preset("base").at_size(image_size)
    config = published.starting_config(base, deit, bert, *heads)
    if bert is None:
        config = replace(config, vocab_size=len(words))
    else:
        published.check_vocabulary(config, words, bert)
    published.initial_model(config, deit, bert).save_pretrained(out, torch.float16 if half else None)
    folders.save_training(out, None, None)
    files = " and ".join(str(file) for file in (deit, bert) if file)
    return (
        f"start of a pre-training from {files}: {config.vision_layers} image, {config.text_layers} text and "
        f"{config.fusion_layers} fusion layers, {config.vocab_size} words"
    )


def _save_processor(processor: Processor, out: Path) -> None:
    height, width = folders.load_config(out)["image_size"]
    processor.image_size = height, width
    processor.save_pretrained(out)
