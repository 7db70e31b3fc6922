"""Words: how captions and questions are cleaned, split into pieces, and spelled again."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from albef.data.reading import read_text, whole
from albef.errors import AlbefFileNotFoundError, AlbefValueError
from albef.files import ASSETS, data_path

BERT_VOCABULARY = ASSETS / "bert-base-uncased.txt"
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_WITHOUT_PUNCTUATION = str.maketrans({**dict.fromkeys(""",.'!?"()*#:;~"""), "-": " ", "/": " "})
_WHITESPACE_RUN = re.compile(r"\s{2,}")
_SPACED_INSIDE = re.compile(r"(?<=\w) ([':.,/-]) (?=\w)")
_SPACED_AFTER = re.compile(r"([$#(]) (?=\w)")
_SPACED_BEFORE = re.compile(r"(?<=\w) ([%.,!?)])")


def clean_caption(text: str, max_words: int = 30, lower: bool = True) -> str:
    """Caption as the original feeds it: lower case, little punctuation, at most `max_words` words (spec 2.10).

    Without `lower` capital letters stay, for a vocabulary that has them.
    """
    text = (text.lower() if lower else text).translate(_WITHOUT_PUNCTUATION).replace("<person>", "person")
    text = _WHITESPACE_RUN.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean_question(text: str, max_words: int) -> str:
    """Question as the original feeds it: repeated spaces stay and count as words (spec 5.3; 30 train, 50 test)."""
    text = text.lower().translate(_WITHOUT_PUNCTUATION).rstrip(" ")
    return " ".join(text.split(" ")[:max_words])


def build_tokenizer(vocabulary: Sequence[str], lower: bool = True, strip_accents: bool | None = None) -> Tokenizer:
    """BERT's WordPiece that yields `[CLS] pieces` and no [SEP] (spec 1.4).

    `lower` makes letters small, as BERT-uncased does; `strip_accents` takes accents away, by default if `lower` does.
    A piece's place in `vocabulary` is its id. The special pieces are found by name; the same letters inside a text are
    ordinary text, as in the recordings of the official tokenizer. ValueError when a special piece is missing or
    a piece comes twice.
    """
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    missing = [name for name in SPECIALS if name not in ids]
    if missing:
        raise AlbefValueError(f"the vocabulary of {len(ids)} pieces lacks {', '.join(missing)}; add one line for each")
    if len(ids) < len(vocabulary):
        again, count = Counter(vocabulary).most_common(1)[0]
        raise AlbefValueError(f"the vocabulary has {again!r} on {count} lines; leave one, since its line is its number")
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100))
    strip = lower if strip_accents is None else strip_accents
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=strip)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _framed(tokenizer)


def _framed(tokenizer: Tokenizer) -> Tokenizer:
    """Every text becomes `[CLS] pieces`, neither cut nor padded, whatever the tokenizer did before."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]"))]
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def keeps_case(tokenizer: Tokenizer) -> bool:
    """Whether the vocabulary tells capital letters from small ones, as that of BERT-cased does."""
    return getattr(tokenizer.normalizer, "lowercase", True) is False


def load_tokenizer(source: str) -> Tokenizer:
    """A tokenizer from a `vocab.txt` (one piece a line), a `tokenizer.json`, or `bert` for BERT's own.

    Beside a `vocab.txt`, `tokenizer_config.json` says whether letters are made small. Without it they are, unless a
    piece has a capital letter.
    """
    path = BERT_VOCABULARY if source == "bert" else Path(data_path(source))
    if not path.is_file():
        raise AlbefFileNotFoundError(
            f"{source}: no such vocabulary; give a vocab.txt, a tokenizer.json, or the word `bert`"
        )
    if path.suffix == ".json":
        return _tokenizer_of(path)
    pieces = read_text(path).rstrip().replace("\r\n", "\n").split("\n")
    settings = _settings_beside(path)
    cased = any(piece != piece.lower() for piece in pieces if not piece.startswith("["))
    return build_tokenizer(pieces, settings.get("do_lower_case", not cased), settings.get("strip_accents"))


def _settings_beside(path: Path) -> dict[str, Any]:
    """What Hugging Face's `tokenizer_config.json` says of a `vocab.txt`, if there is one."""
    file = path.with_name("tokenizer_config.json")
    settings = json.loads(read_text(file)) if file.is_file() else {}
    kind = settings.get("tokenizer_class", "BertTokenizer").removesuffix("Fast")
    if kind != "BertTokenizer":
        raise AlbefValueError(
            f"{file}: texts are split by a {kind}, but a vocab.txt is read for BERT's WordPiece alone; give the "
            "tokenizer.json of the same model"
        )
    return settings


def _tokenizer_of(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(read_text(path))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise AlbefValueError(f"{path}: no tokenizer ({error}); give a tokenizer.json or a vocab.txt") from error
    if missing := [name for name in SPECIALS if tokenizer.token_to_id(name) is None]:
        raise AlbefValueError(f"{path} lacks {', '.join(missing)}; give the tokenizer of a BERT")
    return _framed(tokenizer)


def chosen_pieces(tokenizer: Tokenizer, count: int, used: Sequence[int]) -> list[int]:
    """Ids of the `count` pieces that a smaller vocabulary keeps, rising.

    First all special pieces and every single character, alone and as a continuation, so that any other word can still
    be spelled; then those `used` (by id, how often a piece occurs in texts), commonest first; then the vocabulary's
    order, in which BERT's has the commonest words first. Its places that were left unused come last. ValueError if
    `count` leaves no room for the first.
    """
    pieces = [tokenizer.id_to_token(index) or "" for index in range(tokenizer.get_vocab_size())]
    special = {*SPECIALS, *(added.content for added in tokenizer.get_added_tokens_decoder().values())}
    needed = [piece in special or len(piece.removeprefix("##")) == 1 for piece in pieces]
    if not sum(needed) <= count < len(pieces):
        raise AlbefValueError(
            f"words {count} must be from {sum(needed)}, the special pieces and single characters, to "
            f"{len(pieces) - 1}, since the vocabulary has {len(pieces)}; give a number between them"
        )
    unused = [re.fullmatch(r"\[unused\d+\]", piece) is not None for piece in pieces]
    ranked = sorted(range(len(pieces)), key=lambda index: (not needed[index], -used[index], unused[index], index))
    return sorted(ranked[:count])


def with_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> Tokenizer:
    """The same tokenizer with the pieces `ids` alone, numbered anew in that order; ValueError if it isn't WordPiece."""
    parts = json.loads(tokenizer.to_str())
    if parts["model"]["type"] != "WordPiece":
        raise AlbefValueError(f"the words of a {parts['model']['type']} can't be chosen, only those of a WordPiece")
    numbers = {tokenizer.id_to_token(old): new for new, old in enumerate(ids)}
    parts["model"]["vocab"] = numbers
    for added in parts["added_tokens"]:
        added["id"] = numbers[added["content"]]
    return _framed(Tokenizer.from_str(json.dumps(parts)))


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """WordPiece learned from the user's captions; the same captions give the same vocabulary.

    At most `vocab_size` pieces: the five specials, every character (the commonest where there are too many) alone and
    as a continuation, then the merges seen at least twice. ValueError when `vocab_size` leaves no room for them.
    """
    if vocab_size < 2 * len(SPECIALS):
        raise AlbefValueError(f"vocab_size {vocab_size} must be at least {2 * len(SPECIALS)}; 2,500 suits small sets")
    blank = build_tokenizer(SPECIALS)
    texts = [blank.normalizer.normalize_str(whole(clean_caption(caption))) for caption in captions]
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


def spelled(pieces: Iterable[str]) -> str:
    """The text that pieces spell, without the special ones.

    The pieces don't tell where a text had spaces around its punctuation. The usual places are put right: `don't`,
    `10:30`, `20%`.
    """
    text = " ".join(piece for piece in pieces if piece not in SPECIALS).replace(" ##", "")
    return _SPACED_BEFORE.sub(r"\1", _SPACED_AFTER.sub(r"\1", _SPACED_INSIDE.sub(r"\1", text)))
