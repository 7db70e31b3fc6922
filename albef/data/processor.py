"""Images and words to tensors: what a saved model carries besides its weights.

Sizes are (height, width) in pixels. B images or texts, L tokens, H x W pixels.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from albef.data.images import ImageSource, open_image, pixels_of, to_rgb
from albef.errors import AlbefFileNotFoundError, AlbefValueError
from albef.files import ASSETS, data_path, model_folder, write_atomically

BERT_VOCABULARY = ASSETS / "bert-base-uncased.txt"
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_WITHOUT_PUNCTUATION = str.maketrans({**dict.fromkeys(""",.'!?"()*#:;~"""), "-": " ", "/": " "})
_WHITESPACE_RUN = re.compile(r"\s{2,}")
_SPACED_INSIDE = re.compile(r"(?<=\w) ([':.,/-]) (?=\w)")
_SPACED_AFTER = re.compile(r"([$#(]) (?=\w)")
_SPACED_BEFORE = re.compile(r"(?<=\w) ([%.,!?)])")


def clean_caption(text: str, max_words: int = 30) -> str:
    """Caption as the original feeds it: lower case, little punctuation, at most `max_words` words (spec 2.10)."""
    text = text.lower().translate(_WITHOUT_PUNCTUATION).replace("<person>", "person")
    text = _WHITESPACE_RUN.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean_question(text: str, max_words: int) -> str:
    """Question as the original feeds it: repeated spaces stay and count as words (spec 5.3; 30 train, 50 test)."""
    text = text.lower().translate(_WITHOUT_PUNCTUATION).rstrip(" ")
    return " ".join(text.split(" ")[:max_words])


def build_tokenizer(vocabulary: Sequence[str]) -> Tokenizer:
    """BERT-uncased WordPiece that yields `[CLS] pieces` and no [SEP] (spec 1.4).

    A piece's place in `vocabulary` is its id. The special pieces are found by name; the same letters inside a text are
    ordinary text, as in the recordings of the official tokenizer. ValueError when a special piece is missing.
    """
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    missing = [name for name in SPECIALS if name not in ids]
    if missing:
        raise AlbefValueError(f"the vocabulary of {len(ids)} pieces lacks {', '.join(missing)}; add one line for each")
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", ids["[CLS]"])]
    )
    return tokenizer


def load_tokenizer(source: str) -> Tokenizer:
    """A tokenizer from a `vocab.txt` (one piece a line), a `tokenizer.json`, or `bert` for BERT's own."""
    path = BERT_VOCABULARY if source == "bert" else Path(data_path(source))
    if not path.is_file():
        raise AlbefFileNotFoundError(
            f"{source}: no such vocabulary; give a vocab.txt, a tokenizer.json, or the word `bert`"
        )
    if path.suffix == ".json":
        return Tokenizer.from_file(str(path))
    return build_tokenizer(path.read_text(encoding="utf-8").splitlines())


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """WordPiece learned from the user's captions; the same captions give the same vocabulary.

    At most `vocab_size` pieces: the five specials, every character (the commonest where there are too many) alone and
    as a continuation, then the merges seen at least twice. ValueError when `vocab_size` leaves no room for them.
    """
    if vocab_size < 2 * len(SPECIALS):
        raise AlbefValueError(f"vocab_size {vocab_size} must be at least {2 * len(SPECIALS)}; 2,500 suits small sets")
    blank = build_tokenizer(SPECIALS)
    texts = [blank.normalizer.normalize_str(_whole(clean_caption(caption))) for caption in captions]
    counts = Counter(character for text in texts for character in text if not character.isspace())
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = sorted(ranked[: (vocab_size - len(SPECIALS)) // 2])
    rare = dict.fromkeys(map(ord, set(ranked) - set(alphabet)))
    # The trainer numbers continuations in the random order of a hash map and breaks ties by number: number them first.
    first = [*SPECIALS, *alphabet, *("##" + character for character in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=first
    )
    blank.train_from_iterator((text.translate(rare) for text in texts), trainer)
    ids = blank.get_vocab()
    return build_tokenizer(sorted(ids, key=ids.__getitem__))


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
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def texts(
        self, texts: Sequence[str], max_tokens: int | None = None, pad_to: int | None = None, clean: bool = True
    ) -> dict[str, Tensor]:
        """Texts to {"input_ids", "attention_mask"}, both int64 [B, L]; the mask is 1 at tokens, 0 at padding.

        L is the longest text's number of tokens or `pad_to`. Each text is cut to `max_tokens` (default: the field),
        [CLS] included. `clean=False` is for texts that were cleaned in another way, questions for example.
        """
        _check_texts(texts)
        limit = min(self.max_tokens, pad_to or self.max_tokens) if max_tokens is None else max_tokens
        if limit < 1 or (pad_to is not None and pad_to < limit):
            raise AlbefValueError(f"max_tokens {limit} must be at least 1 and at most pad_to ({pad_to})")
        cleaned = [clean_caption(text, self.max_words) for text in texts] if clean else list(texts)
        return self._padded([row[:limit] for row in self._ids(cleaned)], pad_to)

    def answers(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Answers to the same tensors as `texts`, but `[CLS] pieces [SEP]`, neither cleaned nor cut (spec 3.2)."""
        _check_texts(texts)
        return self._padded([[*row, self.sep_id] for row in self._ids(texts)])

    def words(self, ids: Sequence[int]) -> str:
        """The text that pieces spell, up to the first [SEP]; other special pieces are left out.

        Words don't keep the spaces around their punctuation; the usual ones are put right: `don't`, `10:30`, `20%`.
        """
        pieces = [self.tokenizer.id_to_token(index) or "[UNK]" for index in ids]
        pieces = pieces[: pieces.index("[SEP]")] if "[SEP]" in pieces else pieces
        text = " ".join(piece for piece in pieces if piece not in SPECIALS).replace(" ##", "")
        return _SPACED_BEFORE.sub(r"\1", _SPACED_AFTER.sub(r"\1", _SPACED_INSIDE.sub(r"\1", text)))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(map(_whole, texts)))]

    def _padded(self, rows: list[list[int]], pad_to: int | None = None) -> dict[str, Tensor]:
        length = pad_to or max(map(len, rows), default=0)
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


def _whole(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can hold but no tokenizer takes."""
    return text.encode("utf-8", "ignore").decode()


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"texts wants a list of strings, got the string {texts[:40]!r}; write [text]")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is {text!r} of type {type(text).__name__}; every text must be a string")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise AlbefValueError(f"{path}: {error!r}; give a folder that save_pretrained wrote") from error
