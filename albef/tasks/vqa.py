"""The task of questions about an image, whose answers are ranked or written (paper §4.1; spec §3.2, §4.2)."""

# B questions, Lq words of a question, A answers of the list, L of an answer

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from albef.batches import AnswerBatch
from albef.data.broken import BrokenCounter
from albef.data.examples import Example, ExampleSource
from albef.data.processor import Processor
from albef.data.text import clean_question
from albef.errors import AlbefValueError
from albef.files import write_atomically
from albef.metrics.pairing import counts
from albef.metrics.vqa import vqa_accuracy
from albef.models.answering import AlbefForAnswering
from albef.objectives.answer import AnswerObjective, words_asked
from albef.recipe import Recipe
from albef.tasks.answers import answer_list, checked_answers, read_answers, spelled_alike
from albef.tasks.begin import Saved
from albef.tasks.decode import generate, rank_answers
from albef.tasks.examples import gather_results, in_batches
from albef.tasks.task import Figures, Task
from albef.tasks.training_data import Examples, open_both

TRAIN_WORDS, TEST_WORDS = 30, 50


def make(recipe: Recipe, saved: Saved) -> Task[AlbefForAnswering, AnswerObjective, AnswerBatch]:
    """Returns fine-tuning on the questions of `recipe.data.train`. An answer weighs the share of people who gave it.

    Raises ValueError if none of the validation questions has an answer.
    """
    source, validation = open_both("vqa", recipe)
    if validation is not None and not any(validation[index].answers for index in range(len(validation))):
        raise AlbefValueError(
            "data.validation: none of its questions has an answer to be measured by; leave it out, and have them "
            "answered afterwards by `albef evaluate --results`"
        )
    options, listed = recipe.objective, recipe.data.answers
    answers = saved["answers"] if saved is not None else read_answers(listed) if listed else answer_list(source)
    return Task(
        recipe,
        saved,
        Examples(source, recipe, lambda words: partial(question_batch, words, recipe.data.max_tokens), check_question),
        AlbefForAnswering,
        lambda model, _: AnswerObjective(model, options.momentum, options.alpha > 0, options.official),
        None if validation is None else Questions(validation, answers, recipe.k_test),
        answers=answers,
        on_host=lambda _, batch: {**batch, "asked": words_asked(batch["answer_mask"])},
    )


class Questions:
    """Measures the accuracy of ranked and of written answers on a source of questions."""

    def __init__(self, source: ExampleSource, answers: Sequence[str], k: int) -> None:
        self.source, self.answers, self.k = source, answers, k

    def evaluate(self, model: AlbefForAnswering, processor: Processor) -> Figures:
        return evaluate_questions(model, processor, self.source, self.answers, self.k)[0]

    def score(self, figures: Figures) -> float:
        return figures["ranked"]

    def headline(self, figures: Figures) -> str:
        return f"accuracy ranked {figures['ranked']:.2f} %, generated {figures['generated']:.2f} %"


def question_batch(
    processor: Processor, max_tokens: int, pixel_values: Tensor, examples: Sequence[Example]
) -> AnswerBatch:
    """Returns the batch of questions with all their answers, of examples whose pixels are given."""
    weighed = [answer_weights(example) for example in examples]
    answers = processor.answers([answer for own in weighed for answer in own])
    asked = questions(processor, [example.text for example in examples], TRAIN_WORDS, max_tokens)
    return {
        "pixel_values": pixel_values,
        "input_ids": asked["input_ids"],
        "attention_mask": asked["attention_mask"],
        "answer_ids": answers["input_ids"],
        "answer_mask": answers["attention_mask"],
        "answer_of": torch.tensor([row for row, own in enumerate(weighed) for _ in own]),
        "weights": torch.tensor([weight for own in weighed for weight in own.values()]),
    }


def check_question(example: Example) -> None:
    """Raises ValueError for a question without a word or without an answer: there is nothing to learn from it."""
    if not clean_question(example.text, TRAIN_WORDS).strip():
        raise AlbefValueError(f"{example.name}: the question {example.text!r} has no word in it; leave it out")
    if not example.answers:
        raise AlbefValueError(
            f"{example.name}: the question {example.text!r} has no answer to learn from; leave it out"
        )


def answer_weights(example: Example) -> dict[str, float]:
    """Returns the distinct answers of a question in their order, each with the share of people who gave it (spec §3.2).

    Spellings that are one answer to the model count together, under the first of them.
    """
    first: dict[str, str] = {}
    counts = Counter(first.setdefault(spelled_alike(answer), answer) for answer in example.answers)
    return {answer: example.weight * count / len(example.answers) for answer, count in counts.items()}


def questions(processor: Processor, texts: Sequence[str], max_words: int, max_tokens: int) -> dict[str, Tensor]:
    """Turns questions into input_ids and attention_mask [B, Lq]. Raises ValueError for a question without a word."""
    cleaned = [clean_question(text, max_words) for text in texts]
    for text, words in zip(texts, cleaned, strict=True):
        if not words.strip():
            raise AlbefValueError(
                f"the question {text!r} has no word in it; ask something, e.g. 'what colour is the bus?'"
            )
    return processor.texts(cleaned, max_tokens, clean=False)


@torch.no_grad()
def evaluate_questions(
    model: AlbefForAnswering,
    processor: Processor,
    source: ExampleSource,
    answers: Sequence[str],
    k: int = 128,
    official: bool = False,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
    counter: BrokenCounter | None = None,
) -> tuple[Figures, dict[str | int, dict[str, str]]]:
    """Returns figures, and what was answered: `{question_id: {"ranked": .., "generated": ..}}`, each question once.

    `ranked` and `generated` are accuracies in percent by the official rule of 2021, over the questions with known
    answers; `measured` counts those, unless all have some. Capital letters do not count: the model knows none, and
    VQA's answers have none. `k` and `official` are those of `rank_answers`, `tick` and `counter` those of `in_batches`.
    """
    answers = checked_answers(answers)
    listed = processor.answers(answers)
    ids, mask = (listed[name].to(model.device) for name in ("input_ids", "attention_mask"))
    rows: list[tuple[str | int, tuple[dict[str, str], tuple[str, ...]]]] = []
    for examples, pixels in in_batches(source, processor, batch_size, tick, model.device, counter):
        texts = [clean_question(example.text, TEST_WORDS) for example in examples]
        words = processor.texts(texts, model.config.max_positions, clean=False)
        seen = words["attention_mask"].to(model.device)
        states = model.read(pixels[:, 0], words["input_ids"].to(model.device), seen)
        ranked = rank_answers(model, states, seen, ids, mask, k, official)[0][:, 0].tolist()
        written = generate(model, states, seen, processor.cls_id, processor.sep_id)[0][:, 0].tolist()
        for example, best, pieces in zip(examples, ranked, written, strict=True):
            both = {"ranked": answers[best], "generated": processor.words(pieces)}
            rows.append((example.key, (both, example.answers)))
    found = gather_results(rows)
    given = {key: both for key, (both, _) in found.items()}
    known = {key: truth for key, (_, truth) in found.items() if truth}
    figures: Figures = dict(counts("questions", given, known))
    if known:
        for way in ("ranked", "generated"):
            said = {key: given[key][way].lower() for key in known}
            figures[way] = vqa_accuracy(said, {key: [one.lower() for one in truth] for key, truth in known.items()})
    return figures, given


def write_results(path: Path, given: dict[str | int, dict[str, str]], way: str = "ranked") -> None:
    """Writes the file that EvalAI takes: `[{"question_id": .., "answer": ..}, ...]`, each question once (spec §4.2)."""
    rows = [{"question_id": key, "answer": answers[way]} for key, answers in given.items()]
    write_atomically(path, json.dumps(rows, ensure_ascii=False) + "\n")
