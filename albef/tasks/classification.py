"""The task of an image, a text and a class: visual entailment, or labels of one's own (paper §4.1; spec §3.3)."""

# B examples, C classes

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from albef.batches import LabelBatch
from albef.data.broken import BrokenCounter
from albef.data.examples import Example, ExampleSource, Kind
from albef.data.processor import Processor
from albef.data.training_set import Encode
from albef.errors import AlbefValueError
from albef.files import write_atomically
from albef.metrics.classification import accuracy
from albef.metrics.pairing import counts
from albef.models.classifier import AlbefForClassification, AlbefForPairs
from albef.objectives.classify import ClassifyObjective
from albef.recipe import Recipe
from albef.tasks.begin import Saved
from albef.tasks.examples import gather_results, in_batches
from albef.tasks.task import Figures, M, Task
from albef.tasks.training_data import Examples, open_both

Judged = dict[str | int, tuple[Example, Tensor]]  # by key, an example and the probabilities of its classes [C]


def make(recipe: Recipe, saved: Saved) -> Task[AlbefForClassification, ClassifyObjective, LabelBatch]:
    """Returns fine-tuning on the statements of `recipe.data.train`, whose labels are `recipe.data.labels`."""
    labels = recipe.data.labels
    data, validation = labelled("classification", recipe, labels)
    return Task(
        recipe,
        saved,
        data,
        lambda config: AlbefForClassification(config, labels),
        lambda model, _: objective_of(model, recipe),
        None if validation is None else Statements(validation, evaluate_statements),
    )


def labelled(kind: Kind, recipe: Recipe, labels: Sequence[str]) -> tuple[Examples[LabelBatch], ExampleSource | None]:
    """Opens training data whose every example has one of `labels`, and validation data if the recipe names any.

    Raises ValueError if none of the validation examples has a label.
    """
    source, validation = open_both(kind, recipe)
    if validation is not None and not any(validation[index].label is not None for index in range(len(validation))):
        raise AlbefValueError(
            "data.validation: none of its examples has a label to be measured by; leave it out, and have them "
            "judged afterwards by `albef evaluate --results`"
        )

    def encode_with(processor: Processor) -> Encode[LabelBatch]:
        return partial(statement_batch, processor, recipe.data.max_tokens, labels)

    return Examples(source, recipe, encode_with, lambda example: label_index(example, labels)), validation


def objective_of(model: AlbefForClassification | AlbefForPairs, recipe: Recipe) -> ClassifyObjective:
    """Returns the objective of classes, with a teacher where the recipe gives it a share of the targets."""
    options = recipe.objective
    return ClassifyObjective(model, options.momentum, options.alpha > 0, options.official)


class Statements(Generic[M]):
    """Measures accuracy on a source of statements by `measure`, and for pairs of images consistency too."""

    def __init__(self, source: ExampleSource, measure: Callable[[M, Processor, ExampleSource], Figures]) -> None:
        self.source, self.measure = source, measure

    def evaluate(self, model: M, processor: Processor) -> Figures:
        return self.measure(model, processor, self.source)

    def score(self, figures: Figures) -> float:
        return figures["accuracy"]

    def headline(self, figures: Figures) -> str:
        consistency = figures.get("consistency")
        more = f", consistency {consistency:.2f} %" if consistency is not None else ""
        return f"accuracy {figures['accuracy']:.2f} %{more}"


def statement_batch(
    processor: Processor, max_tokens: int, labels: Sequence[str], pixel_values: Tensor, examples: Sequence[Example]
) -> LabelBatch:
    """Returns the batch of examples whose pixels are given. Raises ValueError for an example without a label."""
    words = processor.texts([example.text for example in examples], max_tokens)
    return {
        "pixel_values": pixel_values,
        "input_ids": words["input_ids"],
        "attention_mask": words["attention_mask"],
        "labels": torch.tensor([label_index(example, labels) for example in examples]),
    }


def label_index(example: Example, labels: Sequence[str]) -> int:
    """Returns the class of an example; capital letters don't matter. Raises ValueError if it has none of `labels`."""
    known = {label.lower(): index for index, label in enumerate(labels)}
    if example.label is None or example.label.lower() not in known:
        label = "missing" if example.label is None else repr(example.label)
        raise AlbefValueError(
            f"{example.name}: its label is {label}, but must be one of {', '.join(labels)}; mend the file or name its "
            "labels with --data.labels"
        )
    return known[example.label.lower()]


@torch.no_grad()
def predict(
    model: AlbefForClassification | AlbefForPairs,
    processor: Processor,
    source: ExampleSource,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
    counter: BrokenCounter | None = None,
) -> Judged:
    """Returns every readable example with the probabilities of its classes [C], by the example's key."""
    found: list[tuple[str | int, tuple[Example, Tensor]]] = []
    for examples, pixels in in_batches(source, processor, batch_size, tick, model.device, counter):
        words = processor.texts([example.text for example in examples], model.config.max_positions)
        inputs = [words[name].to(model.device) for name in ("input_ids", "attention_mask")]
        if isinstance(model, AlbefForClassification):
            pixels = pixels[:, 0]
        probabilities = model(pixels, *inputs).logits.float().softmax(-1).cpu()
        found += [(example.key, (example, row)) for example, row in zip(examples, probabilities, strict=True)]
    return gather_results(found)


def evaluate_statements(
    model: AlbefForClassification,
    processor: Processor,
    source: ExampleSource,
    tick: Callable[[int], None] | None = None,
) -> Figures:
    """Returns the `figures` of what the model says about a source."""
    return figures(predict(model, processor, source, tick=tick), model.labels)


def figures(found: Judged, labels: Sequence[str]) -> Figures:
    """Returns `accuracy` in percent over all readable examples whose label is known; each is counted once."""
    chosen, truth = chosen_and_true(found, labels)
    judged = [chosen[key] for key in truth]
    share = {"accuracy": 100 * accuracy(judged, list(truth.values()))} if truth else {}
    return share | counts("examples", chosen, truth)


def chosen_and_true(found: Judged, labels: Sequence[str]) -> tuple[dict[str | int, str], dict[str | int, str]]:
    """Returns by key the likeliest label of every example, and the true label of those that have one."""
    chosen = {key: labels[int(row.argmax())] for key, (_, row) in found.items()}
    known = {key: example for key, (example, _) in found.items() if example.label is not None}
    return chosen, {key: labels[label_index(example, labels)] for key, example in known.items()}


def write_results(path: Path, found: Judged, labels: Sequence[str]) -> None:
    """Writes a JSON list of what was read, with the likeliest `label` and the `probabilities` of all.

    The form is our own, since SNLI-VE defines none.
    """
    rows = [
        {
            "id": key,
            "image": example.name,
            "sentence": example.text,
            "label": labels[int(row.argmax())],
            "probabilities": dict(zip(labels, row.tolist(), strict=True)),
        }
        for key, (example, row) in found.items()
    ]
    write_atomically(path, json.dumps(rows, indent=0, ensure_ascii=False) + "\n")
