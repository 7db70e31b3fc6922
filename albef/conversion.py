"""`albef convert`: published files into folders of ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from albef.data.processor import Processor, load_tokenizer
from albef.errors import AlbefValueError
from albef.files import ANSWERS
from albef.models import convert as published
from albef.models import hub
from albef.models.config import preset


def convert(
    *,
    checkpoint: Path | None = None,
    out: Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    vocabulary: Path | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    half: bool = False,
    slim: bool = False,
    deit: Path | None = None,
    bert: Path | None = None,
    to_official: Path | None = None,
) -> str:
    """Writes the folder `out` from a published checkpoint, or the start of a pre-training; returns a report."""
    if bool(checkpoint) == bool(deit or bert):
        raise AlbefValueError("give either a checkpoint, or --deit and --bert to make the start of a pre-training")
    if out is None or to_official is not None:
        raise AlbefValueError("--out is missing; name the folder to write")
    processor, report = Processor(load_tokenizer(str(vocabulary or "bert")), preset("base").image_size), ""
    if checkpoint and checkpoint.is_dir():
        processor = Processor.from_pretrained(checkpoint)
        report = published.convert_folder(checkpoint, out, image_size, half, slim)
        if (checkpoint / ANSWERS).is_file():
            shutil.copyfile(checkpoint / ANSWERS, out / ANSWERS)
    elif checkpoint:
        words, heads = processor.tokenizer.get_vocab(), {"vision_heads": vision_heads, "text_heads": text_heads}
        report = published.convert_file(checkpoint, out, words, image_size, **heads, half=half, slim=slim)
    else:
        model = published.initial_model(preset("base"), deit, bert)
        model.save_pretrained(out, torch.float16 if half else None)
        hub.save_training(out, None, None)
    height, width = hub.load_config(out)["image_size"]
    processor.image_size = height, width
    processor.save_pretrained(out)
    return f"{report}\nsaved in {out}".lstrip()
