"""One image, a text and a class: visual entailment, or any labels of one's own (paper §4.1; spec §3.3)."""

# B examples, C classes

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from albef.data.example_sets import Encode
from albef.data.examples import Example, ExampleSource, Kind
from albef.data.processor import Processor
from albef.errors import AlbefValueError
from albef.metrics.classification import accuracy
from albef.metrics.pairing import counts
from albef.models.classifier import AlbefForClassification, AlbefForPairs
from albef.models.config import AlbefConfig
from albef.objectives.classify import ClassifyObjective
from albef.tasks.finetune import FineTune, gather_results, in_batches

Judged = dict[str | int, tuple[Example, Tensor]]  # by key, an example and the probabilities of its classes [C]


class Classification(FineTune):
    """Fine-tuning on the statements of `recipe.data.train`, whose labels are `recipe.data.labels`."""

    kind: Kind = "classification"

    def make(self, config: AlbefConfig) -> AlbefForClassification | AlbefForPairs:
        return AlbefForClassification(config, self.recipe.data.labels)

    def teach(self, model: Any) -> ClassifyObjective:
        options = self.recipe.objective
        return ClassifyObjective(model, options.momentum, options.alpha > 0, options.official)

    def probe(self, source: ExampleSource) -> None:
        super().probe(source)
        if not any(source[index].label is not None for index in range(len(source))):
            raise AlbefValueError(
                "data.validation: none of its examples has a label to be measured by; leave it out, and have them "
                "judged afterwards by `albef evaluate --results`"
            )

    def check(self, example: Example) -> None:
        label_index(example, self.model.labels)

    def encoder(self) -> Encode:
        return partial(encode, self.processor, self.recipe.data.max_tokens, self.model.labels)

    def measure(self, source: ExampleSource) -> dict[str, Any]:
        return evaluate(self.model, self.processor, source)

    def score(self, evaluation: dict[str, Any]) -> float:
        return evaluation["accuracy"]

    def headline(self, evaluation: dict[str, Any]) -> str:
        return f"accuracy {evaluation['accuracy']:.2f} %"


def encode(
    processor: Processor, max_tokens: int, labels: Sequence[str], examples: Sequence[Example]
) -> dict[str, Tensor]:
    """Texts as input_ids and attention_mask [B, L], `labels` [B]."""
    words = processor.texts([example.text for example in examples], max_tokens)
    return {**words, "labels": torch.tensor([label_index(example, labels) for example in examples])}


def label_index(example: Example, labels: Sequence[str]) -> int:
    """The class of an example; capital letters don't matter. ValueError if it has none of `labels`."""
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
) -> Judged:
    """Every readable example with the probabilities of the classes [C], by key."""
    found: list[tuple[str | int, tuple[Example, Tensor]]] = []
    for examples, pixels in in_batches(source, processor, batch_size, tick):
        pixels = pixels.to(model.device)
        words = processor.texts([example.text for example in examples], model.config.max_positions)
        inputs = [words[name].to(model.device) for name in ("input_ids", "attention_mask")]
        if isinstance(model, AlbefForClassification):
            pixels = pixels[:, 0]
        probabilities = model(pixels, *inputs).logits.float().softmax(-1).cpu()
        found += [(example.key, (example, row)) for example, row in zip(examples, probabilities, strict=True)]
    return gather_results(found)


def evaluate(
    model: AlbefForClassification,
    processor: Processor,
    source: ExampleSource,
    tick: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """`figures` of what the model says of a source."""
    return figures(predict(model, processor, source, tick=tick), model.labels)


def figures(found: Judged, labels: Sequence[str]) -> dict[str, Any]:
    """`accuracy` in percent over all readable examples whose label is known, each counted once."""
    chosen, truth = chosen_and_true(found, labels)
    judged = [chosen[key] for key in truth]
    share = {"accuracy": 100 * accuracy(judged, list(truth.values()))} if truth else {}
    return share | counts("examples", chosen, truth)


def chosen_and_true(found: Judged, labels: Sequence[str]) -> tuple[dict[str | int, str], dict[str | int, str]]:
    """By key, the likeliest label of every example, and the true one of those that have it."""
    chosen = {key: labels[int(row.argmax())] for key, (_, row) in found.items()}
    known = {key: example for key, (example, _) in found.items() if example.label is not None}
    return chosen, {key: labels[label_index(example, labels)] for key, example in known.items()}


def write_results(path: Path, found: Judged, labels: Sequence[str]) -> None:
    """A JSON list of what was read, with the likeliest `label` and the `probabilities` of all; SNLI-VE has no form."""
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
    path.write_text(json.dumps(rows, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
