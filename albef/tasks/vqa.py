"""Questions about an image: ranking a closed list of answers, or writing one freely (paper §4.1; spec §3.2, §4.2)."""

# B questions, Lq words of a question, A answers of the list, L of an answer, k candidates, V vocabulary

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from albef.data.example_sets import Encode
from albef.data.examples import Example, ExampleSource
from albef.data.processor import Processor, clean_question
from albef.errors import AlbefFileNotFoundError, AlbefValueError
from albef.files import ANSWERS, model_folder
from albef.metrics.pairing import counts
from albef.metrics.vqa import vqa_accuracy
from albef.models.answering import AlbefForAnswering
from albef.models.bert import KeysValues
from albef.models.config import AlbefConfig
from albef.models.hub import CONFIG, WEIGHTS
from albef.objectives.answer import AnswerObjective
from albef.tasks.finetune import FineTune, gather_results, in_batches

TRAIN_WORDS, TEST_WORDS = 30, 50


class Vqa(FineTune):
    """Fine-tuning on the questions of `recipe.data.train`; an answer weighs the share of people who gave it."""

    kind = "vqa"

    def make(self, config: AlbefConfig) -> AlbefForAnswering:
        return AlbefForAnswering(config)

    def teach(self, model: Any) -> AnswerObjective:
        options = self.recipe.objective
        made = AnswerObjective(model, options.momentum, options.alpha > 0, options.official)
        given = self.recipe.data.answers
        self.answers = read_answers(given) if given else answer_list(self.source)
        return made

    def probe(self, source: ExampleSource) -> None:
        super().probe(source)
        if not any(source[index].answers for index in range(len(source))):
            raise AlbefValueError(
                "data.validation: none of its questions has an answer to be measured by; leave it out, and have them "
                "answered afterwards by `albef evaluate --results`"
            )

    def check(self, example: Example) -> None:
        check_question(example)

    def encoder(self) -> Encode:
        return partial(encode, self.processor, self.recipe.data.max_tokens)

    def measure(self, source: ExampleSource) -> dict[str, Any]:
        return evaluate(self.model, self.processor, source, self.answers, self.recipe.k_test)[0]

    def score(self, evaluation: dict[str, Any]) -> float:
        return evaluation["ranked"]

    def headline(self, evaluation: dict[str, Any]) -> str:
        return f"accuracy ranked {evaluation['ranked']:.2f} %, generated {evaluation['generated']:.2f} %"

    def save_model(self, folder: Path) -> None:
        super().save_model(folder)
        (folder / ANSWERS).write_text(json.dumps(self.answers, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def encode(processor: Processor, max_tokens: int, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Questions and their answers as `AnswerObjective` takes them."""
    weighed = [answer_weights(example) for example in examples]
    answers = processor.answers([answer for own in weighed for answer in own])
    return {
        **questions(processor, [example.text for example in examples], TRAIN_WORDS, max_tokens),
        "answer_ids": answers["input_ids"],
        "answer_mask": answers["attention_mask"],
        "answer_of": torch.tensor([row for row, own in enumerate(weighed) for _ in own]),
        "weights": torch.tensor([weight for own in weighed for weight in own.values()]),
    }


def check_question(example: Example) -> None:
    """ValueError for a question without a word, or that nobody answered: there is nothing to learn from it."""
    if not clean_question(example.text, TRAIN_WORDS).strip():
        raise AlbefValueError(f"{example.name}: the question {example.text!r} has no word in it; leave it out")
    if not example.answers:
        raise AlbefValueError(
            f"{example.name}: the question {example.text!r} has no answer to learn from; leave it out"
        )


def answer_weights(example: Example) -> dict[str, float]:
    """Distinct answers of a question in their order, each with the share of people who gave it (spec §3.2)."""
    counts = Counter(example.answers)
    return {answer: example.weight * count / len(example.answers) for answer, count in counts.items()}


def questions(processor: Processor, texts: Sequence[str], max_words: int, max_tokens: int) -> dict[str, Tensor]:
    """Questions to input_ids and attention_mask [B, Lq]. ValueError for one without a word."""
    cleaned = [clean_question(text, max_words) for text in texts]
    for text, words in zip(texts, cleaned, strict=True):
        if not words.strip():
            raise AlbefValueError(
                f"the question {text!r} has no word in it; ask something, e.g. 'what colour is the bus?'"
            )
    return processor.texts(cleaned, max_tokens, clean=False)


def answer_list(source: ExampleSource, most: int | None = None, least: int = 1) -> list[str]:
    """The answers of a source, commonest first: the `most` common ones that people gave at least `least` times.

    ValueError if none is left, or none is asked for.
    """
    if most is not None and most < 1:
        raise AlbefValueError(f"most {most}: a list of answers has at least one; leave it out to keep all")
    times: Counter[str] = Counter()
    for index in range(len(source)):
        times.update(answer.strip() for answer in source[index].answers)
    found = [answer for answer, count in times.most_common() if count >= least and answer][:most]
    if not found:
        raise AlbefValueError(f"no answer was given at least {least} times; lower that, or give questions with answers")
    return found


def answers_file(folder: str | Path) -> Path:
    """Where the list lies that a saved model ranks, if it has one; the name of a folder as for `from_pretrained`."""
    return model_folder(folder, (CONFIG, WEIGHTS)) / ANSWERS


def read_answers(path: str | Path) -> list[str]:
    """A JSON list of answers, each once. ValueError if it is anything else, or empty; FileNotFoundError without one."""
    if not Path(path).is_file():
        raise AlbefFileNotFoundError(
            f"{path}: no list of answers here; make one with `albef answers`, name it by --answers"
        )
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise AlbefValueError(f"{path} is no JSON ({error}); make one with `albef answers questions.json`") from error
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise AlbefValueError(f'{path}: expected a list of answers such as ["yes", "no", "two"], none of them empty')
    return checked_answers(values, str(path))


def checked_answers(answers: Sequence[str], name: str = "the answer list") -> list[str]:
    """Each answer once, in order. ValueError if there is none."""
    if not answers:
        raise AlbefValueError(f"{name} is empty; make one with `albef answers questions.json --out answers.json`")
    return list(dict.fromkeys(answers))


@torch.no_grad()
def rank_answers(
    model: AlbefForAnswering,
    states: Tensor,
    mask: Tensor,
    answer_ids: Tensor,
    answer_mask: Tensor,
    k: int,
    official: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k likeliest of a list's answers [B, k], best first, with their probabilities among the k (spec §3.2).

    `states` [B, Lq, D] and `mask` are the questions', `answer_ids` [A, L] the list's, `[CLS] words [SEP]`. The k are
    chosen by their first word and ordered by the likelihood of all their words; k is at most A. `official` counts the
    first word twice, as the original does (BLIP #208).
    """
    k, decoder = min(k, len(answer_ids)), model.decoder
    keys_values = decoder.keys_values(states)
    first = decoder.fill_in(decoder(answer_ids[:1, :1].expand(len(states), 1), keys_values, mask)[:, 0])
    starts, candidates = first.float().log_softmax(-1)[:, answer_ids[:, 1]].topk(k)  # [B, k] each
    likelihoods = torch.cat(
        [
            _likelihoods(model, answer_ids[own], answer_mask[own], keys_values[rows], mask[rows])
            for rows, own in _rows(candidates)
        ]
    ).view(-1, k)
    scores = likelihoods + starts if official else likelihoods
    ranked, order = scores.sort(descending=True, stable=True)  # probabilities would tie where scores are 100 apart
    return candidates.gather(1, order), ranked.softmax(-1)


def _rows(candidates: Tensor, most: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    """Questions and answers of the pairs to score, row by row of the candidates [B, k], at most so many at a time."""
    count = candidates.shape[1]
    rows = torch.arange(len(candidates), device=candidates.device).repeat_interleave(count)
    yield from zip(rows.split(most), candidates.flatten().split(most), strict=True)


def _likelihoods(model: AlbefForAnswering, ids: Tensor, mask: Tensor, keys_values: KeysValues, seen: Tensor) -> Tensor:
    """Log-likelihood [rows] of every answer, given its question."""
    length = int(mask.sum(1).max())
    ids, asked = ids[:, :length], mask[:, 1:length].bool()
    states = model.decoder(ids[:, :-1], keys_values, seen)
    logits = model.decoder.fill_in(states[asked]).float()
    found = -F.cross_entropy(logits, ids[:, 1:][asked], reduction="none")
    return torch.zeros(asked.shape, device=ids.device).masked_scatter(asked, found).sum(1)


@torch.no_grad()
def generate(
    model: AlbefForAnswering,
    states: Tensor,
    mask: Tensor,
    cls_id: int,
    sep_id: int,
    beams: int = 3,
    max_tokens: int = 10,
) -> tuple[Tensor, Tensor]:
    """Answers written word by word, likeliest first: ids [B, beams, n] and log-likelihoods [B, beams].

    An answer ends with `[SEP]`, or is cut after `max_tokens`.

    Beam search, greedy with one beam; keys and values of the words so far are kept, not computed again.
    """
    decoder, batch = model.decoder, len(states)
    rows = torch.arange(batch, device=states.device).repeat_interleave(beams)
    keys_values, seen = decoder.keys_values(states)[rows], mask[rows]
    past: list[list[Tensor]] = [[] for _ in decoder.layers]
    ids = torch.full((batch, beams, 1), cls_id, device=states.device)
    scores = torch.full((batch, beams), float("-inf"), device=states.device)
    scores[:, 0] = 0.0  # all beams are equal at first: go on from one
    for start in range(max_tokens):
        words = decoder(ids[..., -1:].flatten(0, 1), keys_values, seen, past, start)[:, -1]
        step = decoder.fill_in(words).float().log_softmax(-1).unflatten(0, (batch, beams))  # [B, beams, V]
        done = ids[..., -1] == sep_id
        step[done] = float("-inf")
        step[..., sep_id].masked_fill_(done, 0.0)  # a finished answer stays as it is
        scores, best = (scores[..., None] + step).flatten(1).topk(beams)
        origin, word = best // step.shape[-1], best % step.shape[-1]
        ids = torch.cat([ids.gather(1, origin[..., None].expand_as(ids)), word[..., None]], dim=2)
        rows = (torch.arange(batch, device=states.device)[:, None] * beams + origin).flatten()
        for layer in past:
            layer[:] = [kept[rows] for kept in layer]
        if (word == sep_id).all():
            break
    return ids[..., 1:], scores


@torch.no_grad()
def evaluate(
    model: AlbefForAnswering,
    processor: Processor,
    source: ExampleSource,
    answers: Sequence[str],
    k: int = 128,
    official: bool = False,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], dict[str | int, dict[str, str]]]:
    """Figures, and what was answered: `{question_id: {"ranked": .., "generated": ..}}`, each question once.

    `ranked` and `generated` are accuracies in percent by the official rule of 2021, over the questions with known
    answers; `measured` counts those, unless all have some. `k` and `official` are those of `rank_answers`.
    """
    answers = checked_answers(answers)
    listed = processor.answers(answers)
    ids, mask = (listed[name].to(model.device) for name in ("input_ids", "attention_mask"))
    rows: list[tuple[str | int, tuple[dict[str, str], tuple[str, ...]]]] = []
    for examples, pixels in in_batches(source, processor, batch_size, tick):
        texts = [clean_question(example.text, TEST_WORDS) for example in examples]
        words = processor.texts(texts, model.config.max_positions, clean=False)
        seen = words["attention_mask"].to(model.device)
        states = model.read(pixels[:, 0].to(model.device), words["input_ids"].to(model.device), seen)
        ranked = rank_answers(model, states, seen, ids, mask, k, official)[0][:, 0].tolist()
        written = generate(model, states, seen, processor.cls_id, processor.sep_id)[0][:, 0].tolist()
        for example, best, pieces in zip(examples, ranked, written, strict=True):
            both = {"ranked": answers[best], "generated": processor.words(pieces)}
            rows.append((example.key, (both, example.answers)))
    found = gather_results(rows)
    given = {key: both for key, (both, _) in found.items()}
    known = {key: truth for key, (_, truth) in found.items() if truth}
    figures: dict[str, Any] = dict(counts("questions", given, known))
    if known:
        for way in ("ranked", "generated"):
            figures[way] = vqa_accuracy({key: given[key][way] for key in known}, known)
    return figures, given


def write_results(path: Path, given: dict[str | int, dict[str, str]], way: str = "ranked") -> None:
    """The file that EvalAI takes: `[{"question_id": .., "answer": ..}, ...]`, each question once (spec §4.2)."""
    rows = [{"question_id": key, "answer": answers[way]} for key, answers in given.items()]
    path.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")
