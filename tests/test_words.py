"""Models that keep some of their words: those say what they said before, and the others are spelled in pieces."""

import json
from dataclasses import replace

import pytest
import torch

from albef import cli
from albef.conversion import convert
from albef.data.processor import Processor
from albef.data.text import SPECIALS, build_tokenizer, chosen_pieces, with_pieces
from albef.errors import AlbefValueError
from albef.models import folders
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.start import load_model
from albef.pipeline import load
from albef.tasks.answers import write_answers
from tests.worlds import TINY

LETTERS = "abcdehnorsw"
CHARACTERS = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
PIECES = ["[PAD]", "[unused0]", *SPECIALS[1:], *CHARACTERS, "the", "a", "horse", "bed", "snow", "##board", "snowboard"]
PIECES = list(dict.fromkeys(PIECES))
LEAST = len(SPECIALS) + len(CHARACTERS)
SMALL = replace(TINY, vocab_size=len(PIECES))


def save(folder, kind=AlbefModel):
    torch.manual_seed(0)
    model = kind(SMALL)
    model.save_pretrained(folder)
    Processor(build_tokenizer(PIECES), SMALL.image_size).save_pretrained(folder)
    folders.save_training(folder, dict(model.state_dict()), None)
    return folder


def cut(folder, words, *texts):
    """The folder that `albef convert --words` makes, with the words of `texts` first."""
    out, options = folder.parent / "cut", []
    if texts:
        (folder.parent / "list.json").write_text(json.dumps([{"image": "a.jpg", "caption": list(texts)}]))
        options = ["--words-of", str(folder.parent / "list.json")]
    cli.main(["convert", str(folder), "--out", str(out), "--words", str(words), *options])
    return out


def pieces(processor, text):
    return [processor.tokenizer.id_to_token(index) for index in processor.texts([text])["input_ids"][0].tolist()]


def test_kept_words_say_the_same(tmp_path, capsys):
    saved = save(tmp_path / "saved")
    out = cut(saved, LEAST + 2, "snow", "a horse")  # `a` is there in any case
    said = capsys.readouterr().out
    assert f"words: {LEAST + 2} of {len(PIECES)}, " in said and "no teacher and no queues" in said
    assert not (out / "training.safetensors").exists()
    whole, small = (Processor.from_pretrained(folder) for folder in (saved, out))
    assert pieces(small, "a snow horse") == pieces(whole, "a snow horse") == ["[CLS]", "a", "snow", "horse"]
    states = []
    for folder, processor in ((saved, whole), (out, small)):
        model, inputs = load_model(folder), processor.texts(["a snow horse", "snow snow"])
        with torch.no_grad():
            states.append(model.encode_text(**inputs))
            scores = model.fill_in(states[-1])
    assert states[0].equal(states[1]) and scores.shape[-1] == LEAST + 2


def test_other_words_are_spelled(tmp_path):
    small = Processor.from_pretrained(cut(save(tmp_path / "saved"), LEAST + 2, "snow snow", "the snow", "the bed"))
    assert pieces(small, "the snowed horse") == [
        "[CLS]", "the", "snow", "##e", "##d", "h", "##o", "##r", "##s", "##e"
    ]  # fmt: skip
    assert pieces(small, "bed") == ["[CLS]", "b", "##e", "##d"]  # less common than the two that are kept


def test_the_head_keeps_its_rows(tmp_path):
    saved = save(tmp_path / "saved")
    _, state = folders.load(saved)
    state["mlm_head.bias"] = torch.arange(len(PIECES)).float()
    config = folders.load_config(saved)
    folders.save(saved, config, state, None)
    _, small = folders.load(cut(saved, LEAST + 1, "horse"))
    kept = [PIECES[int(index)] for index in small["mlm_head.bias"]]
    assert kept == [piece for piece in PIECES if piece in (*SPECIALS, *CHARACTERS, "horse")]


def test_without_texts_the_vocabularys_order_counts():
    tokenizer = build_tokenizer(PIECES)
    kept = [PIECES[index] for index in chosen_pieces(tokenizer, LEAST + 2, [0] * len(PIECES))]
    assert kept == [piece for piece in PIECES if piece in (*SPECIALS, *CHARACTERS, "the", "horse")]
    last = chosen_pieces(tokenizer, len(PIECES) - 1, [0] * len(PIECES))
    assert PIECES.index("[unused0]") not in last


def test_special_pieces_that_a_tokenizer_adds_are_kept():
    tokenizer = build_tokenizer(PIECES)
    tokenizer.add_special_tokens(["[MASK]", "[MORE]"])
    ids = chosen_pieces(tokenizer, LEAST + 1, [0] * (len(PIECES) + 1))
    small = with_pieces(tokenizer, ids)
    assert small.get_vocab_size() == LEAST + 1 and small.encode("horse [MORE]").tokens[-1] == "[MORE]"


def test_a_model_that_answers_goes_on(tmp_path):
    """Its answers are texts, which are spelled anew."""
    from PIL import Image

    saved = save(tmp_path / "saved", AlbefForAnswering)
    write_answers(saved / "answers.json", ["snow", "horse", "bed"])
    small = load(cut(saved, LEAST + 1, "snow"), device="cpu")
    answered = small.answer(Image.new("RGB", (32, 32)), "the bed")
    assert str(answered).strip()
    state = folders.load(tmp_path / "cut")[1]
    assert len(state["decoder.words.word_embeddings.weight"]) == len(state["decoder.head.bias"]) == LEAST + 1


@pytest.mark.parametrize("words", [LEAST - 1, len(PIECES)])
def test_too_few_words_and_too_many(tmp_path, words):
    with pytest.raises(AlbefValueError, match=f"words {words} must be from {LEAST}, .* to {len(PIECES) - 1}"):
        convert(checkpoint=save(tmp_path / "saved"), out=tmp_path / "cut", words=words)


def test_what_it_takes_words_from(tmp_path):
    with pytest.raises(AlbefValueError, match="say by --words how many"):
        convert(checkpoint=tmp_path, out=tmp_path / "cut", words_of=["list.json"])
    with pytest.raises(AlbefValueError, match="--words 9 makes a smaller folder of the folder of a saved model"):
        convert(checkpoint=tmp_path, to_official=tmp_path / "model.pth", words=9)
