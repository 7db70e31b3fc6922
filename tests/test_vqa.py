"""Answers: ranking against scoring each by itself, writing against trying everything, lists and result files."""

import itertools
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from albef.data.processor import Processor
from albef.data.records import Example
from albef.data.text import load_tokenizer
from albef.models.answering import AlbefForAnswering
from albef.tasks import answers, decode, vqa
from albef_demo.world import png, scene
from tests.worlds import TINY

QUESTIONS = ["what colour is the ring", "how big is it", "is there a small red circle at the top left"]
ANSWERS = ["red", "blue square", "small ring at the top", "yes", "no", "two", "top left", "zero things in the image"]


@pytest.fixture(scope="module")
def processor():
    return Processor(load_tokenizer("albef:world.txt"), (32, 32))


@pytest.fixture(scope="module")
def model(processor):
    return made(processor.vocab_size)


def made(vocab_size: int) -> AlbefForAnswering:
    """An untrained model that isn't indifferent between words."""
    torch.manual_seed(0)
    model = AlbefForAnswering(replace(TINY, vocab_size=vocab_size)).eval().requires_grad_(False)
    model.decoder.words.word_embeddings.weight *= 4
    return model


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(len(QUESTIONS), 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def read(model, processor, pixels):
    """States and mask of all questions, padded to the longest."""
    words = vqa.questions(processor, QUESTIONS, 50, 30)
    assert words["attention_mask"].sum(1).unique().numel() > 1
    return model.read(pixels, **words), words["attention_mask"]


@pytest.fixture(scope="module")
def alone(model, processor, pixels):
    """The same, each question by itself."""
    found = []
    for text, image in zip(QUESTIONS, pixels, strict=True):
        words = vqa.questions(processor, [text], 50, 30)
        found.append((model.read(image[None], **words), words["attention_mask"]))
    return found


def log_likelihoods(model, states, mask, ids):
    """Of every word of one answer, each from a pass of its own over the words before it; no batch, nothing kept."""
    found = []
    for end in range(1, len(ids)):
        read = model.decoder(torch.tensor([ids[:end]]), model.decoder.keys_values(states), mask)
        found.append(float(model.decoder.fill_in(read)[0, -1].log_softmax(-1)[ids[end]]))
    return found


def rank_slowly(model, states, mask, answers, k, official):
    """Indices, best first, and probabilities: the rule in plain words."""
    words = [log_likelihoods(model, states, mask, ids) for ids in answers]
    chosen = sorted(range(len(answers)), key=lambda index: -words[index][0])[:k]
    scores = {index: sum(words[index]) + (words[index][0] if official else 0.0) for index in chosen}
    order = sorted(chosen, key=lambda index: -scores[index])
    return order, torch.tensor([scores[index] for index in order]).softmax(0)


def rows_of(listed):
    return [ids[mask.bool()].tolist() for ids, mask in zip(listed["input_ids"], listed["attention_mask"], strict=True)]


def ranked(model, read, listed, k, official=False):
    return decode.rank_answers(model, *read, listed["input_ids"], listed["attention_mask"], k, official)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("k", [1, 3, 8, 200])
def test_ranking_is_that_of_each_answer_scored_alone(model, processor, read, alone, k, official):
    listed = processor.answers(ANSWERS)
    order, probabilities = ranked(model, read, listed, k, official)
    assert order.shape == probabilities.shape == (3, min(k, 8))
    for row, (states, mask) in enumerate(alone):
        wanted, shares = rank_slowly(model, states, mask, rows_of(listed), k, official)
        assert order[row].tolist() == wanted
        torch.testing.assert_close(probabilities[row], shares, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))


def test_the_rules_differ_and_the_shortlist_matters(model, processor, read):
    """Else the test above would show little."""
    listed = processor.answers(ANSWERS)
    everything = ranked(model, read, listed, 8)
    assert not torch.allclose(everything[1], ranked(model, read, listed, 8, official=True)[1], atol=1e-2)
    assert not everything[0][:, :3].equal(ranked(model, read, listed, 3)[0])


def test_padding_of_the_list_changes_nothing(model, processor, read):
    listed = processor.answers(ANSWERS)
    longer = {name: torch.nn.functional.pad(ids, (0, 5)) for name, ids in listed.items()}
    longer["input_ids"][:, -5:] = 7  # whatever stands there
    for got, wanted in zip(ranked(model, read, longer, 5), ranked(model, read, listed, 5), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("most", [1, 9, 16])
def test_ranking_some_questions_at_a_time(model, processor, read, monkeypatch, most):
    listed = processor.answers(ANSWERS)
    wanted = ranked(model, read, listed, 8)
    sizes = []

    def rows(candidates):
        for part in vqa_rows(candidates, most):
            sizes.append(len(part[0]))
            yield part

    vqa_rows = decode._rows
    monkeypatch.setattr(decode, "_rows", rows)
    order, probabilities = ranked(model, read, listed, 8)
    assert sum(sizes) == 24 and max(sizes) == most
    assert order.equal(wanted[0])
    torch.testing.assert_close(probabilities, wanted[1])


@pytest.fixture
def write(model, processor):
    return partial(decode.generate, model, cls_id=processor.cls_id, sep_id=processor.sep_id)


def next_word(model, states, mask, ids):
    """Log-probabilities of what follows `ids`, all computed anew."""
    read = model.decoder(torch.tensor([ids]), model.decoder.keys_values(states), mask)
    return model.decoder.fill_in(read)[0, -1].log_softmax(-1)


def up_to(sep: int, ids: list[int]) -> list[int]:
    return ids[: ids.index(sep) + 1] if sep in ids else ids


def test_greedy_writing_is_the_likeliest_word_again_and_again(model, processor, read, alone, write):
    ids, scores = write(*read, beams=1, max_tokens=6)
    lengths = []
    for row, (states, mask) in enumerate(alone):
        written, total = [processor.cls_id], 0.0
        while len(written) < 7 and written[-1] != processor.sep_id:
            step = next_word(model, states, mask, written)
            written.append(int(step.argmax()))
            total += float(step.max())
        assert up_to(processor.sep_id, ids[row, 0].tolist()) == written[1:]
        assert scores[row, 0].item() == pytest.approx(total, abs=1e-3)
        lengths.append(len(written))
    assert max(lengths) > 3


def beams_slowly(model, states, mask, cls_id, sep_id, beams, max_tokens):
    """Beam search on lists of words, nothing kept between the steps."""
    found = [(0.0, [cls_id])]
    for _ in range(max_tokens):
        grown = [(score, ids) for score, ids in found if ids[-1] == sep_id]
        for score, ids in found:
            if ids[-1] != sep_id:
                step = next_word(model, states, mask, ids).tolist()
                grown += [(score + value, [*ids, word]) for word, value in enumerate(step)]
        found = sorted(grown, key=lambda pair: -pair[0])[:beams]
    return [(score, ids[1:]) for score, ids in found]


@pytest.mark.parametrize("sep_bias", [0.0, 4.0])
def test_beam_search_equals_one_that_keeps_nothing(model, processor, read, alone, write, sep_bias):
    """With [SEP] likely, answers of several lengths compete, and finished ones must stay as they are."""
    sep = processor.sep_id
    bias = model.decoder.head.bias
    with torch.no_grad():
        bias[sep] += sep_bias
        ids, scores = write(*read, beams=3, max_tokens=4)
        wanted = [beams_slowly(model, *one, processor.cls_id, sep, 3, 4) for one in alone]
        bias[sep] -= sep_bias
    for row in range(3):
        assert [up_to(sep, beam) for beam in ids[row].tolist()] == [beam for _, beam in wanted[row]]
        assert scores[row].tolist() == pytest.approx([score for score, _ in wanted[row]], abs=1e-3)
    if sep_bias:
        assert len({len(beam) for row in wanted for _, beam in row}) > 1
        assert all(set(beam[beam.index(sep) :]) == {sep} for beam in ids.flatten(0, 1).tolist() if sep in beam)


def test_enough_beams_find_the_likeliest_of_all_answers():
    """Every answer of up to three words of a vocabulary of seven, tried one after the other."""
    model, cls, sep = made(7), 2, 3
    mask = torch.ones(1, 4, dtype=torch.int64)
    states = model.read(torch.randn(1, 3, 32, 32), torch.tensor([[2, 4, 5, 6]]), mask)
    answers = [(*start, word) for n in range(3) for start in itertools.product([0, 1, 2, 4, 5, 6], repeat=n)
               for word in ([sep] if n < 2 else range(7))]  # fmt: skip
    every = sorted(((sum(log_likelihoods(model, states, mask, [cls, *ids])), ids) for ids in answers), reverse=True)
    ids, scores = decode.generate(model, states, mask, cls, sep, beams=49, max_tokens=3)
    assert scores[0, :20].tolist() == pytest.approx([score for score, _ in every[:20]], abs=1e-4)
    assert [tuple(up_to(sep, beam)) for beam in ids[0, :20].tolist()] == [found for _, found in every[:20]]
    assert float(torch.tensor([score for score, _ in every]).exp().sum()) == pytest.approx(1, abs=1e-4)


def test_kept_keys_and_values_equal_computing_anew(model, read):
    decoder = model.decoder
    ids = torch.tensor([[2, 9, 30, 11, 45], [2, 77, 12, 8, 100], [2, 6, 6, 6, 3]])
    states, mask = read
    keys_values = decoder.keys_values(states)
    piece, past = decoder.go_on(ids[:, :2], keys_values, mask)
    pieces, kept = [piece], past[0][0].clone()
    for place in range(2, 5):
        piece, longer = decoder.go_on(ids[:, place : place + 1], keys_values, mask, past)
        assert past[0][0].equal(kept), "what was given stays as it is"
        pieces, past, kept = [*pieces, piece], longer, longer[0][0].clone()
    torch.testing.assert_close(torch.cat(pieces, 1), decoder(ids, keys_values, mask), atol=1e-5, rtol=1e-4)


def test_writing_stops_when_all_have_ended(model, processor, read, write):
    bias = model.decoder.head.bias
    before = bias.clone()
    bias[processor.sep_id] = 1e4
    ids, scores = write(*read, beams=1)
    bias.copy_(before)
    assert ids.tolist() == [[[processor.sep_id]]] * 3 and scores.abs().max() < 1e-3


def test_answers_far_apart_keep_their_order(model, monkeypatch):
    """Their probabilities are all 0 but the first's, so that the scores themselves have to be sorted."""
    scores = torch.tensor([0.0, -300.0, -200.0, -400.0])
    monkeypatch.setattr(decode, "_likelihoods", lambda model, ids, *rest: scores[ids[:, 1] - 5])
    ids = torch.tensor([[2, word, 3] for word in (5, 6, 7, 8)])
    states, mask = torch.zeros(1, 2, model.config.text_width), torch.ones(1, 2, dtype=torch.long)
    order, probabilities = decode.rank_answers(model, states, mask, ids, torch.ones_like(ids), 4)
    assert ids[order[0], 1].tolist() == [5, 7, 6, 8] and probabilities[0].tolist() == [1, 0, 0, 0]


# Questions, answers, lists


def test_answers_end_in_sep_and_words_inverts_them(processor):
    listed = processor.answers(ANSWERS)
    for text, ids in zip(ANSWERS, rows_of(listed), strict=True):
        assert ids[0] == processor.cls_id and ids[-1] == processor.sep_id and ids.count(processor.sep_id) == 1
        assert processor.words(ids) == text
        assert processor.words([*ids[1:], processor.tokenizer.token_to_id("red")]) == text  # nothing after the end
    assert processor.words([processor.cls_id, processor.sep_id]) == ""


def test_pieces_are_put_together_again():
    bert = Processor(load_tokenizer("bert"), (32, 32))
    for text in ("playing frisbee", "skateboarding", "black and white"):
        assert bert.words(bert.answers([text])["input_ids"][0].tolist()) == text


@pytest.mark.parametrize("text", ["?", "", "...", "  ", '"!"'])
def test_a_question_without_a_word(processor, text):
    with pytest.raises(ValueError, match=r"has no word in it; ask something"):
        vqa.questions(processor, ["what is it", text], 50, 30)


def example(key=7, answers=(), weight=1.0, text="what is it?", number=0):
    return Example(f"image {number}", (png(scene("test", number)),), text, key, answers=answers, weight=weight)


def test_an_answer_weighs_the_share_of_people_who_gave_it():
    assert vqa.answer_weights(example(answers=("b", "a", "b", "c"))) == {"b": 0.5, "a": 0.25, "c": 0.25}
    assert vqa.answer_weights(example(answers=("b", "a"), weight=0.5)) == {"b": 0.25, "a": 0.25}


@pytest.mark.parametrize(("changes", "said"), [({}, "has no answer to learn"), ({"text": "?"}, "has no word in it")])
def test_questions_that_teach_nothing(changes, said):
    with pytest.raises(ValueError, match=f"image 0: the question '.*' {said}"):
        vqa.check_question(example(**{"answers": () if not changes else ("yes",), **changes}))


def test_answers_of_a_batch_know_their_questions(processor):
    asked = [example(answers=("red", "blue", "red")), example(answers=("two",))]
    batch = vqa.question_batch(processor, 30, torch.empty(2, 3, 16, 16), asked)
    assert batch["answer_of"].tolist() == [0, 0, 1]
    assert batch["weights"].tolist() == pytest.approx([2 / 3, 1 / 3, 1])
    assert [processor.words(ids) for ids in batch["answer_ids"].tolist()] == ["red", "blue", "two"]
    assert len(batch["input_ids"]) == len(batch["attention_mask"]) == 2


def test_spellings_of_an_answer_are_one_answer():
    """A tokenizer in lower case sees no capitals: each would be ranked, and shown, several times."""
    source = [example(answers=("Red", "red", "RED ", "Red", "Café", "cafe", "blue"))]
    assert answers.answer_list(source) == ["Red", "Café", "blue"]
    assert answers.answer_list(source, least=4) == ["Red"]
    assert answers.checked_answers(["yes", "Yes", "YES", "no"]) == ["yes", "no"]
    assert vqa.answer_weights(source[0]) == pytest.approx({"Red": 4 / 7, "Café": 2 / 7, "blue": 1 / 7})


def test_list_of_answers():
    source = [example(answers=("no", "yes", "no")), example(answers=(" yes", "two", "", "three")), example()]
    assert answers.answer_list(source) == ["no", "yes", "two", "three"]  # ties stand as they were met
    assert answers.answer_list(source, most=1) == ["no"]
    assert answers.answer_list(source, least=2) == ["no", "yes"]
    assert answers.answer_list(source, most=9, least=2) == ["no", "yes"]
    with pytest.raises(ValueError, match="no answer was given at least 3 times; lower that"):
        answers.answer_list(source, least=3)
    with pytest.raises(ValueError, match="no answer was given at least 1 times"):
        answers.answer_list([example()])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "is empty; make one with `albef answers"),
        ('["yes", ""]', r"expected a list of answers such as .* none of them empty"),
        ('["yes", "  "]', "none of them empty"),
        ('["yes", 2]', "expected a list of answers"),
        ('{"yes": 1}', "expected a list of answers"),
        ("yes, no", "is no JSON"),
    ],
)
def test_wrong_lists_of_answers(tmp_path, content, said):
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"list.json.*{said}"):
        answers.read_answers(path)


def test_reading_a_list_of_answers(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('["yes", "a caf\\u00e9", "yes", "no"]')
    assert answers.read_answers(path) == ["yes", "a café", "no"]
    with pytest.raises(FileNotFoundError, match=r"absent\.json: no list of answers here.*albef answers"):
        answers.read_answers(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="the answer list is empty"):
        answers.checked_answers([])


# Evaluation


def test_evaluation_and_the_file_for_evalai(model, processor, tmp_path):
    source = [
        example(31, ("red",), text=QUESTIONS[0], number=0),
        example("b-4", ("yes", "no"), text=QUESTIONS[1], number=1),
        example(5, (), text=QUESTIONS[2], number=2),
    ]
    figures, given = vqa.evaluate_questions(model, processor, source, ANSWERS, k=4, batch_size=2)
    assert list(given) == [31, "b-4", 5] and (figures["questions"], figures["measured"]) == (3, 2)
    pixels = processor.images([one.images[0] for one in source])
    for row in range(3):
        words = vqa.questions(processor, [source[row].text], 50, 30)
        states, mask = model.read(pixels[row : row + 1], **words), words["attention_mask"]
        best, _ = rank_slowly(model, states, mask, rows_of(processor.answers(ANSWERS)), 4, official=False)
        written, _ = decode.generate(model, states, mask, processor.cls_id, processor.sep_id)
        assert given[source[row].key] == {
            "ranked": ANSWERS[best[0]],
            "generated": processor.words(written[0, 0].tolist()),
        }
    right = (given[31]["ranked"] == "red") + (given["b-4"]["ranked"] in ("yes", "no"))
    assert figures["ranked"] == 50 * right
    for way in ("ranked", "generated"):
        vqa.write_results(tmp_path / "result.json", given, way)
        rows = json.loads((tmp_path / "result.json").read_text())
        assert rows == [{"question_id": key, "answer": given[key][way]} for key in (31, "b-4", 5)]


def test_an_id_that_stands_for_two_questions_is_an_error(model, processor):
    source = [example(31, ("red",), number=0), example(31, ("blue",), number=1)]
    with pytest.raises(ValueError, match="two examples have the id 31"):
        vqa.evaluate_questions(model, processor, source, ANSWERS)


def test_a_question_without_a_word_is_answered_all_the_same(model, processor):
    assert list(vqa.evaluate_questions(model, processor, [example(7, text="?")], ANSWERS)[1]) == [7]


@pytest.mark.parametrize(
    "answer", ["don't know", "10:30", "1.5", "3,000", "20%", "$5", "women's", "o'clock", "t-shirt", "7/11"]
)
def test_a_free_answer_is_spelt_as_people_spell_it(answer):
    processor = Processor(load_tokenizer("bert"), (32, 32))
    assert processor.words(processor.answers([answer])["input_ids"][0].tolist()) == answer


def test_evaluation_without_known_answers_still_answers(model, processor):
    figures, given = vqa.evaluate_questions(model, processor, [example(1)], ANSWERS)
    assert figures == {"questions": 1, "measured": 0} and list(given) == [1]


def test_a_list_with_repeats_names_the_right_answers(model, processor):
    source = [example(row, ("red",), text=text, number=row) for row, text in enumerate(QUESTIONS)]
    once = vqa.evaluate_questions(model, processor, source, ANSWERS)
    assert vqa.evaluate_questions(model, processor, source, [ANSWERS[0]] * 3 + ANSWERS) == once
    with pytest.raises(ValueError, match="the answer list is empty"):
        vqa.evaluate_questions(model, processor, source, [])
