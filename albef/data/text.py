"""Words: how captions and questions are cleaned, split into pieces, and spelled again."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

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
        return _tokenizer_of(path)
    return build_tokenizer(read_text(path).rstrip().replace("\r\n", "\n").split("\n"))


def _tokenizer_of(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(read_text(path))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise AlbefValueError(f"{path}: no tokenizer ({error}); give a tokenizer.json or a vocab.txt") from error


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
