"""Images and words to tensors: what a saved model carries besides its weights.

Sizes are (height, width) in pixels. B images or texts, L tokens, H x W pixels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from albef.data.images import ImageSource, open_image, pixels_of, to_rgb
from albef.data.reading import read_text, whole
from albef.data.text import clean_caption, keeps_case, spelled
from albef.errors import AlbefValueError
from albef.files import model_folder, write_atomically

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


TOKENIZER, PREPROCESSOR = "tokenizer.json", "preprocessor_config.json"


@dataclass
class Processor:
    """Turns images and words into the tensors a model wants; saved with it, so that both always agree.

    tokenizer    gives `[CLS] pieces` (see `build_tokenizer`)
    image_size   (height, width) in pixels that every image is resized to, aspect ratio not kept
    mean, std    of the red, green and blue values in 0..1; the original uses CLIP's
    max_words    words that caption cleaning keeps
    max_tokens   tokens, [CLS] included, that `texts` keeps
    """

    tokenizer: Tokenizer
    image_size: tuple[int, int]
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    max_words: int = 30
    max_tokens: int = 30

    def __post_init__(self) -> None:
        size = self.image_size
        if not (isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
            raise AlbefValueError(f"image_size {size!r} must be (height, width) in pixels, for example (256, 256)")
        if self.max_tokens < 1 or self.max_words < 0:
            raise AlbefValueError(
                f"max_tokens {self.max_tokens} must be at least 1, max_words {self.max_words} at least 0"
            )
        self.image_size = (size[0], size[1])

    def images(self, images: Sequence[Image.Image | ImageSource]) -> Tensor:
        """Images (PIL, paths, bytes or streams) to normalised float32 [B, 3, H, W]; BrokenImage if one is."""
        if isinstance(images, (str, bytes, Path, Image.Image)):
            raise TypeError(f"images wants a list of images, got one {type(images).__name__}; write [image]")
        pixels = [self.resize(p if isinstance(p, Image.Image) else open_image(p)) for p in images]
        return self.normalise(torch.stack(pixels) if pixels else torch.empty(0, 3, *self.image_size, dtype=torch.uint8))

    def resize(self, image: Image.Image) -> Tensor:
        """One PIL image, bicubic with antialiasing, to uint8 [3, H, W]."""
        height, width = self.image_size
        return pixels_of(to_rgb(image).resize((width, height), Image.Resampling.BICUBIC))

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W], 0..255, to float32 of mean about 0 and deviation about 1, on the device it lies on."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise AlbefValueError(f"normalise wants uint8 [B, 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
        found = pixels / 255  # float32
        for channel, mean, std in zip(found.unbind(1), self.mean, self.std, strict=True):
            channel.sub_(mean).div_(std)  # numbers, since a tensor of them would have to be copied there
        return found

    def texts(self, texts: Sequence[str], max_tokens: int | None = None, clean: bool = True) -> dict[str, Tensor]:
        """Texts to {"input_ids", "attention_mask"}, both int64 [B, L]; the mask is 1 at tokens, 0 at padding.

        L is the longest text's number of tokens. Each text is cut to `max_tokens` (default: the field), [CLS] included.
        `clean=False` is for texts that were cleaned in another way, questions for example.
        """
        _check_texts(texts)
        limit = self.max_tokens if max_tokens is None else max_tokens
        if limit < 1:
            raise AlbefValueError(f"max_tokens {limit} must be at least 1")
        lower = not keeps_case(self.tokenizer)
        cleaned = [clean_caption(text, self.max_words, lower) for text in texts] if clean else list(texts)
        return self._padded([row[:limit] for row in self._ids(cleaned)])

    def answers(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Answers to the same tensors as `texts`, but `[CLS] pieces [SEP]`, neither cleaned nor cut (spec 3.2)."""
        _check_texts(texts)
        return self._padded([[*row, self.sep_id] for row in self._ids(texts)])

    def words(self, ids: Sequence[int]) -> str:
        """The text that the pieces of these ids spell, up to the first [SEP] (see `spelled`)."""
        pieces = [self.tokenizer.id_to_token(index) or "[UNK]" for index in ids]
        return spelled(pieces[: pieces.index("[SEP]")] if "[SEP]" in pieces else pieces)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(map(whole, texts)))]

    def _padded(self, rows: list[list[int]]) -> dict[str, Tensor]:
        length = max(map(len, rows), default=0)
        input_ids = torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows]).view(len(rows), length)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        mask = torch.arange(length) < lengths[:, None]
        return {"input_ids": input_ids.long(), "attention_mask": mask.long()}

    @property
    def pad_id(self) -> int:
        return self._id("[PAD]")

    @property
    def cls_id(self) -> int:
        return self._id("[CLS]")

    @property
    def sep_id(self) -> int:
        return self._id("[SEP]")

    @property
    def mask_id(self) -> int:
        return self._id("[MASK]")

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def _id(self, piece: str) -> int:
        found = self.tokenizer.token_to_id(piece)
        if found is None:
            raise AlbefValueError(
                f"the tokenizer has no piece {piece}; make it with build_tokenizer or train_tokenizer"
            )
        return found

    def files(self) -> dict[str, str]:
        """What `save_pretrained` writes: by name, the text of each file."""
        height, width = self.image_size
        config = {
            "do_convert_rgb": True, "do_resize": True, "size": {"height": height, "width": width},
            "resample": int(Image.Resampling.BICUBIC), "do_center_crop": False, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(self.mean), "image_std": list(self.std),
            "max_words": self.max_words, "max_tokens": self.max_tokens,
        }  # fmt: skip
        return {TOKENIZER: self.tokenizer.to_str(pretty=True), PREPROCESSOR: json.dumps(config, indent=2) + "\n"}

    @classmethod
    def from_files(cls, files: dict[str, str], source: str) -> "Processor":
        """From what `files` gave; ValueError that names the file, and `source`, for one that is damaged."""
        name = TOKENIZER
        try:
            tokenizer = Tokenizer.from_str(files[name])
            name = PREPROCESSOR
            config: dict[str, Any] = json.loads(files[name])
            size, mean, std = config["size"], config["image_mean"], config["image_std"]
            words = {key: config[key] for key in ("max_words", "max_tokens") if key in config}
            return cls(tokenizer, (size["height"], size["width"]), tuple(mean), tuple(std), **words)
        except Exception as error:  # `tokenizers` raises plain Exception
            raise AlbefValueError(f"{source}/{name}: {error!r}; give a folder that save_pretrained wrote") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `preprocessor_config.json` (Hugging Face's names) into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in self.files().items():
            write_atomically(Path(folder, name), text)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Processor":
        """Read what `save_pretrained` wrote; ValueError that names the file when one is missing or unreadable."""
        folder = model_folder(folder, (TOKENIZER, PREPROCESSOR))
        return cls.from_files({name: _read(folder / name) for name in (TOKENIZER, PREPROCESSOR)}, str(folder))


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"texts wants a list of strings, got the string {texts[:40]!r}; write [text]")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is {text!r} of type {type(text).__name__}; every text must be a string")


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except ValueError as error:
        raise AlbefValueError(f"{path}: {error!r}; give a folder that save_pretrained wrote") from error
