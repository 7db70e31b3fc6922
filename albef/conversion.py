"""`albef convert`: published files into folders of ours, and folders of ours into files that the original reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from albef.data.processor import IMAGENET_MEAN, IMAGENET_STD, Processor
from albef.data.sources import captions_of, open_sources
from albef.data.text import chosen_pieces, load_tokenizer, with_pieces
from albef.errors import AlbefValueError
from albef.files import ANSWERS, write_atomically
from albef.models import folders
from albef.models.config import preset
from albef.models.convert import (
    bert_notes,
    check_vocabulary,
    initial_model,
    read_checkpoint,
    read_folder,
    starting_config,
    with_words,
    write_folder,
    write_official,
)
from albef.published import PUBLISHED

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
    int8: bool = False,
    slim: bool = False,
    words: int | None = None,
    words_of: Sequence[str | Path] = (),
    deit: Path | None = None,
    bert: Path | None = None,
    trunk: Path | None = None,
    trunk_levels: int | None = None,
    vision_width: int | None = None,
    vision_layers: int | None = None,
    to_official: Path | None = None,
    text_layers: int | None = None,
    fusion_from: Sequence[int] | None = None,
    text_pooling: Literal["cls", "mean"] | None = None,
) -> str:
    """Writes the folder `out`, or with `to_official` a file of the original's; returns a report in words.

    checkpoint    a `.pth` file of ALBEF's code or of LAVIS, or the folder of a saved model of ours
    image_size    pixels, one number or height and width; the grid of positions is resized to it
    vocabulary    the `vocab.txt` or `tokenizer.json` that the model learned with; by default the one beside the file
                  of `bert`, else that of bert-base-uncased
    *_heads       attention heads, where they are not 64 wide: files do not say how many there are, but a
                  `config.json` beside the file of `bert` does
    half          stores the model in half precision
    int8          stores its matrices as whole numbers of eight bits with a scale for each row, and all that is smaller,
                  biases and norms for example, in half precision: about a quarter of the size of float32
    slim          leaves out the momentum teacher and the queues
    words         how many words (pieces, as WordPiece has them) a saved model keeps, see `chosen_pieces`; it spells the
                  others in pieces. Teacher and queues are left out, and an MLM head keeps its rows of these words
    words_of      images with captions, as training takes them: their words are kept first
    deit, bert    in place of a checkpoint: what a pre-training starts from. Sizes are those of the files
    trunk         in place of DeiT: the convolutional trunk of a hybrid image encoder, EfficientNet-Lite 0, 1 or 2.
                  `trunk_levels` (1 or 2) of its map are read; upon it stand `vision_layers` blocks (by default 1) of
                  `vision_width` (by default that of the text). The processor normalises as such trunks want it
    text_layers   how many of the lowest layers of `bert` encode texts; by default half of them
    fusion_from   the layers of `bert` that fusion layers start from, counted from 0; by default all that are left
    text_pooling  whether texts are compared by their `cls` or the `mean` of their words; by default as the
                  `1_Pooling` of a sentence encoder beside the file of `bert` says, else `cls`
    to_official   in place of `out`: the `.pth` file to write the saved model `checkpoint` to

    AlbefError for files that are not there, are damaged or don't fit, and for arguments that don't go together.
    """
    of_trunk = {"trunk_levels": trunk_levels, "vision_width": vision_width, "vision_layers": vision_layers}
    of_bert = {"text_layers": text_layers, "fusion_from": fusion_from}
    _check_arguments(checkpoint, out, deit, bert, to_official, trunk)
    _check_trunk(trunk, deit, of_trunk)
    if bert is None and (text_layers, fusion_from, text_pooling) != (None, None, None):
        raise AlbefValueError("--text-layers, --fusion-from and --text-pooling say what is taken from --bert; give it")
    dtype = _precision(half, int8, to_official)
    _check_words(words, words_of, checkpoint, to_official)
    if to_official is not None:
        assert checkpoint is not None  # checked above
        return write_official(read_folder(checkpoint, image_size), checkpoint, to_official, half, slim)
    assert out is not None  # checked above
    if checkpoint is not None and (checkpoint.is_dir() or str(checkpoint) in PUBLISHED):
        processor, read = Processor.from_pretrained(checkpoint), read_folder(checkpoint, image_size)
        notes: list[str] = []
        if words is not None:
            check_vocabulary(read.config, processor.tokenizer.get_vocab(), checkpoint)
            ids, notes = _choose_words(processor, words, words_of)
            processor.tokenizer, read = with_pieces(processor.tokenizer, ids), with_words(read, ids)
        report = "\n".join([write_folder(read, checkpoint, out, dtype, slim), *notes])
        if (checkpoint / ANSWERS).is_file() and checkpoint.resolve() != out.resolve():
            write_atomically(out / ANSWERS, (checkpoint / ANSWERS).read_bytes())
    else:
        listed = vocabulary or (bert and _vocabulary_beside(bert)) or "bert"
        processor = Processor(load_tokenizer(str(listed)), preset("base").image_size)
        pieces = processor.tokenizer.get_vocab()
        if checkpoint is not None:
            read = read_checkpoint(checkpoint, image_size, vision_heads, text_heads)
            check_vocabulary(read.config, pieces, checkpoint)
            report = write_folder(read, checkpoint, out, dtype, slim)
        else:
            heads = {"vision_heads": vision_heads, "text_heads": text_heads}
            report = _start(deit, bert, trunk, out, pieces, image_size, heads | of_trunk | of_bert, text_pooling, dtype)
            if trunk is not None:
                processor.mean, processor.std = IMAGENET_MEAN, IMAGENET_STD
    processor.image_size = tuple(folders.load_config(out)["image_size"])
    processor.save_pretrained(out)
    return f"{report}\nsaved in {out}"


def _check_arguments(
    checkpoint: Path | None,
    out: Path | None,
    deit: Path | None,
    bert: Path | None,
    to_official: Path | None,
    trunk: Path | None,
) -> None:
    if (checkpoint is None) == (deit is None and bert is None and trunk is None):
        raise AlbefValueError(
            "give either a checkpoint, or --deit and --bert to make the start of a pre-training; --trunk may stand in "
            "place of --deit"
        )
    if (out is None) == (to_official is None):
        raise AlbefValueError("give either --out FOLDER, or --to-official FILE.pth to write a file of the original's")
    if to_official is None:
        return
    if checkpoint is None or checkpoint.is_file():
        raise AlbefValueError(
            f"--to-official {to_official} writes a saved model of ours, but {checkpoint or 'nothing'} is given; give "
            "its folder, for example runs/mine/model"
        )
    if to_official.is_dir():
        raise AlbefValueError(f"--to-official {to_official}: is a folder; name a file in it, such as model.pth")


def _precision(half: bool, int8: bool, to_official: Path | None) -> torch.dtype | None:
    if half and int8:
        raise AlbefValueError("--half and --int8 are two ways to store the same numbers; give one of them")
    if int8 and to_official is not None:
        raise AlbefValueError(f"--int8: the original cannot read such numbers in {to_official}; give --half or neither")
    return torch.int8 if int8 else torch.float16 if half else None


def _check_trunk(trunk: Path | None, deit: Path | None, options: dict[str, Any]) -> None:
    given = [f"--{name.replace('_', '-')} {value}" for name, value in options.items() if value is not None]
    if trunk is None and given:
        raise AlbefValueError(f"{' '.join(given)} is of an image encoder upon a trunk; give --trunk FILE.pth with it")
    if trunk is not None and deit is not None:
        raise AlbefValueError(f"--deit {deit} and --trunk {trunk} both are image encoders; give one of them")


def _check_words(
    words: int | None, words_of: Sequence[str | Path], checkpoint: Path | None, to_official: Path | None
) -> None:
    if words is None and words_of:
        raise AlbefValueError(f"--words-of {words_of[0]} says which words are kept first; say by --words how many")
    if words is not None and (checkpoint is None or checkpoint.is_file() or to_official is not None):
        raise AlbefValueError(
            f"--words {words} makes a smaller folder of the folder of a saved model; convert to a folder first, and "
            f"then `albef convert FOLDER --out OTHER --words {words}`"
        )


def _choose_words(processor: Processor, count: int, lists: Sequence[str | Path]) -> tuple[list[int], list[str]]:
    """Ids of the words that are kept, and what the report says of them."""
    texts: list[str] = []
    if lists:
        source = open_sources(lists)
        texts = list(captions_of(source, range(len(source))))
    used = torch.bincount(processor.texts(texts)["input_ids"].flatten(), minlength=processor.vocab_size)
    ids = chosen_pieces(processor.tokenizer, count, used.tolist())
    seen, kept = int((used > 0).sum()), int((used[ids] > 0).sum())
    of_texts = f", {kept} of the {seen} that {', '.join(map(str, lists))} use" if lists else ""
    return ids, [f"words: {count} of {processor.vocab_size}{of_texts}; no teacher and no queues"]


def _vocabulary_beside(bert: Path) -> Path | None:
    """The words of a BERT that stand beside its file, as they are published."""
    return next((file for name in ("vocab.txt", "tokenizer.json") if (file := bert.with_name(name)).is_file()), None)


def _start(
    deit: Path | None,
    bert: Path | None,
    trunk: Path | None,
    out: Path,
    words: dict[str, int],
    image_size: ImageSize | None,
    sizes: dict[str, Any],
    text_pooling: Literal["cls", "mean"] | None,
    dtype: torch.dtype | None,
) -> str:
    """What a pre-training starts from; without a file of BERT the model takes its size from the vocabulary."""
    base = preset("base") if image_size is None else preset("base").at_size(image_size)
    config = starting_config(base, deit, bert, trunk_path=trunk, **sizes)
    config = replace(config, text_pooling=text_pooling or config.text_pooling)
    if bert is None:
        config = replace(config, vocab_size=len(words))
    else:
        check_vocabulary(config, words, bert)
    model = initial_model(config, deit, bert, trunk, sizes["fusion_from"])
    model.save_pretrained(out, dtype)
    folders.save_training(out, None, None)
    files = " and ".join(str(file) for file in (deit, trunk, bert) if file)
    upon = f"upon {config.trunk} " if config.trunk else ""
    lines = [
        f"start of a pre-training from {files}: {upon}{config.vision_layers} image, {config.text_layers} text and "
        f"{config.fusion_layers} fusion layers, {config.vocab_size} words",
        *([] if bert is None else bert_notes(bert, config, sizes["fusion_from"])),
    ]
    return "\n".join(lines)
