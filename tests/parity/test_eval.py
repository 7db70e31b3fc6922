"""Public scorers, replayed from the folder that the environment variable ALBEF_GOLDEN_EVAL names."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from albef.data.text import clean_caption, clean_question
from albef.metrics import boxes, vqa
from albef.metrics.classification import accuracy
from albef.metrics.nlvr2 import nlvr2_accuracy, nlvr2_consistency
from albef.tasks.ranking import recalls

DEFAULT = Path(__file__).resolve().parents[1] / "golden" / "eval"


def folder() -> Path:
    return Path(os.environ.get("ALBEF_GOLDEN_EVAL", DEFAULT))


def recorded(name: str) -> Any:
    """Content of `name`.json; raises FileNotFoundError when the folder is not there."""
    if not folder().is_dir():
        raise FileNotFoundError(
            f"no folder of recorded scores at {folder()}: set ALBEF_GOLDEN_EVAL to one with {name}.json"
        )
    return json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))


def close(figure: float) -> Any:
    return pytest.approx(figure, abs=1e-9)


def test_vqa_normalisation() -> None:
    found = recorded("vqa_normalisation")
    assert len(vqa.CONTRACTIONS) == found["n_contractions"]
    for case in found["cases"]:
        text = case["input"]
        stages = {
            "punctuation": vqa.apply_punctuation_rule(text),
            "punctuation_then_digit_article": vqa.apply_digit_article_rule(vqa.apply_punctuation_rule(text)),
            "digit_article_only": vqa.apply_digit_article_rule(text),
            "full_pipeline": vqa.normalise_answer(text),
        }
        assert stages == {stage: case[stage] for stage in stages}, text


def test_vqa_accuracy() -> None:
    """Percent, recorded to six digits; then all cases together, as questions of one set."""
    cases = recorded("vqa_accuracy")["cases"]
    for case in cases:
        measured = 100 * vqa.answer_accuracy(case["prediction"], case["answers"])
        assert measured == pytest.approx(case["accuracy_official_v2"], abs=1e-5), case["name"]
    predictions = {index: case["prediction"] for index, case in enumerate(cases)}
    truths = {index: case["answers"] for index, case in enumerate(cases)}
    wanted = np.mean([case["accuracy_official_v2"] for case in cases])
    assert vqa.vqa_accuracy(predictions, truths) == pytest.approx(wanted, abs=1e-5)


def mappings(value: Any, place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object inside `value`, with the names that lead to it."""
    if isinstance(value, Mapping):
        yield place, value
        for name, inner in value.items():
            yield from mappings(inner, f"{place} {name}")


def test_vqa_aggregate() -> None:
    """Questions of one set, where a set has them: each, all together, and by type of question and of answer.

    A form that this test doesn't know is skipped.
    """
    whole = recorded("vqa_accuracy")
    found = {place: inner for place, inner in mappings(whole.get("aggregate", {})) if "legacy" not in place}
    lists = [value for inner in found.values() for value in inner.values() if isinstance(value, list)]
    questions = next((one for one in lists if one and isinstance(one[0], Mapping) and "prediction" in one[0]), None)
    if questions is None or not isinstance(questions[0].get("answers"), list):
        pytest.skip("no aggregate of questions with `prediction` and `answers` in this set")
    measured = [100 * vqa.answer_accuracy(one["prediction"], one["answers"]) for one in questions]
    for one, figure in zip(questions, measured, strict=True):
        assert figure == pytest.approx(one.get("accuracy_official_v2", figure), abs=1e-5), one
    groups = [{"overall": measured}]
    for kind in ("answer_type", "question_type"):
        groups.append({})
        for one, figure in zip(questions, measured, strict=True):
            groups[-1].setdefault(one.get(kind, ""), []).append(figure)
    for group in groups:  # the official scorer rounds to two digits
        for wanted in (inner for inner in found.values() if group.keys() <= inner.keys()):
            for name, figures in group.items():
                assert np.mean(figures) == pytest.approx(wanted[name], abs=0.006), name


CLEANING = {"caption": clean_caption, "question": clean_question}


def cleaned(case: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What we make of a recorded string, and what the original does: `caption`, `question`, `caption_max5`, ..."""
    raw = case.get("raw", case.get("input"))
    for name, wanted in case.items():
        form = re.fullmatch(r"(?:pre_)?(caption|question)(?:_max(\d+))?", name)
        if form and isinstance(raw, str) and isinstance(wanted, str):
            yield CLEANING[form[1]](raw, int(form[2] or 30)), wanted


def test_text_cleanup() -> None:
    """Captions and questions, where a set has them; a form that this test doesn't know is skipped."""
    if not (folder() / "text_cleanup.json").is_file():
        pytest.skip("no text_cleanup.json in this set")
    found = [pair for case in recorded("text_cleanup").get("cases", []) for pair in cleaned(case)]
    if not found:
        pytest.skip("text_cleanup.json has no cases with `raw` or `input`, and `caption` or `question`")
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]


def test_nlvr2() -> None:
    for case in recorded("nlvr2")["cases"]:
        truths = {example["identifier"]: example["label"] for example in case["examples"]}
        assert nlvr2_accuracy(case["predictions"], truths) == close(case["accuracy"])
        assert nlvr2_consistency(case["predictions"], truths) == close(case["consistency"])


def test_retrieval() -> None:
    for case in recorded("retrieval")["cases"]:
        image_to_text, text_to_image = torch.tensor(case["scores_i2t"]), torch.tensor(case["scores_t2i"])
        image_of_text = torch.full((len(text_to_image),), -1)
        for image, texts in case["img2txt"].items():
            image_of_text[texts] = int(image)
        measured = recalls(image_to_text, text_to_image, image_of_text)
        assert measured == {name: close(figure) for name, figure in case["result"].items()}, case["name"]


def test_iou() -> None:
    for case in recorded("grounding")["iou"]:
        pair = case["box_a"], case["box_b"]
        assert boxes.official_iou(*pair) == close(case["iou_official"]), pair
        assert boxes.iou(*pair) == close(case["iou_continuous"]), pair


def map_of(sample: dict[str, Any]) -> np.ndarray:
    """The heat map of `sample`, [height, width] of its image; its name holds its size, e.g. map24."""
    (name,) = [name for name in sample if name.startswith("map")]
    return boxes.upsample(sample[name], sample["image"]["height"], sample["image"]["width"])


def choices(sample: dict[str, Any]) -> dict[float, dict[str, Any]]:
    """What was recorded of `sample` by area exponent: alpha05 is 0.5."""
    return {int(name[len("alpha") :]) / 10: found for name, found in sample.items() if name.startswith("alpha")}


def test_box_scores() -> None:
    """Recorded to five decimals, of sums in 32 bits."""
    for sample in recorded("grounding")["samples"]:
        heat_map = map_of(sample)
        for exponent, wanted in choices(sample).items():
            scores = [boxes.box_score(heat_map, box, exponent) for box in sample["detections"]]
            assert scores == pytest.approx(wanted["scores"], abs=2e-5, rel=1e-5), sample["ref_id"]
            assert boxes.choose_box(heat_map, sample["detections"], exponent) == wanted["best"], sample["ref_id"]


def test_grounding_accuracy() -> None:
    """Every chosen box's IoU with the right one, and what of each split is correct."""
    samples = recorded("grounding")["samples"]
    for exponent in choices(samples[0]):
        ious, wanted, splits = [], [], []
        for sample in samples:
            best = boxes.choose_box(map_of(sample), sample["detections"], exponent)
            if best is not None:  # else the original takes the box of another sample
                ious.append(boxes.official_iou(sample["ref_box"], sample["detections"][best]))
                wanted.append(choices(sample)[exponent]["iou"])
                splits.append(sample["split"])
        assert ious == [close(figure) for figure in wanted]
        for split, measured in boxes.accuracy_by_split(ious, splits).items():
            right = [figure >= 0.5 for figure, own in zip(wanted, splits, strict=True) if own == split]
            assert measured == close(np.mean(right)), split


def overlaps_by_the_original(samples: Sequence[dict[str, Any]], exponent: float) -> list[float]:
    """IoU of every sample's chosen box; where no score is positive, the original keeps the box of the sample before."""
    ious, kept = [], None
    for sample in samples:
        best = boxes.choose_box(map_of(sample), sample["detections"], exponent)
        kept = kept if best is None else sample["detections"][best]
        assert kept is not None, "the original stops when this happens to the first sample"
        ious.append(boxes.official_iou(sample["ref_box"], kept))
    return ious


def test_grounding_accuracy_with_the_box_of_the_phrase_before() -> None:
    """All samples of every exponent, and the accuracies where a set has them: one of each exponent, or by split."""
    found = recorded("grounding")
    samples = found["samples"]
    names = sorted({name for sample in samples for name in sample if re.fullmatch(r"alpha\d+", name)})
    for name in names:
        own = [sample for sample in samples if name in sample]
        ious = overlaps_by_the_original(own, int(name.removeprefix("alpha")) / 10)
        assert ious == [close(sample[name]["iou"]) for sample in own], name
        wanted = found.get("accuracy", {}).get(name, {})
        measured = boxes.accuracy_by_split(ious, [sample["split"] for sample in own])
        if isinstance(wanted, Mapping):
            shares = {split.removesuffix("_d"): share for split, share in wanted.items()}
            assert shares == {split: close(measured[split]) for split in shares}, name
        else:
            assert boxes.accuracy(ious) == close(wanted), name


def test_pointing_game() -> None:
    for sample in recorded("grounding")["samples"]:
        heat_map = map_of(sample)
        for wanted in (sample, *choices(sample).values()):
            if "peak_xy" in wanted:
                peak = boxes.peak(heat_map)
                assert list(peak) == wanted["peak_xy"], sample["ref_id"]
                inside = boxes.contains(sample["ref_box"], peak) and heat_map.max() > 0
                assert inside == wanted["peak_in_box"], sample["ref_id"]


def test_snli_ve() -> None:
    found = recorded("snli_ve")
    assert accuracy(found["logits"], found["targets"]) == close(found["accuracy"])
    assert accuracy(np.argmax(found["logits"], 1), found["targets"]) == close(found["accuracy"])


def test_padding_samplers_are_what_changes_snli_ve() -> None:
    """The original's samplers go on with the first rows until every rank has as many; ours counts a row once."""
    found = recorded("snli_ve")
    logits, targets = np.array(found["logits"]), np.array(found["targets"])
    for padded in found["accuracy_when_a_padding_sampler_duplicates_rows"].values():
        rows = np.arange(padded["n"]) % len(targets)
        assert accuracy(logits[rows], targets[rows]) == close(padded["accuracy"])
        rows = np.unique(rows)
        assert accuracy(logits[rows], targets[rows]) == close(found["accuracy"])


def test_cases_are_there() -> None:
    """Empty lists would pass everything above."""
    lists = [recorded(name)["cases"] for name in ("vqa_normalisation", "vqa_accuracy", "nlvr2", "retrieval")]
    grounding = recorded("grounding")
    assert all([*lists, grounding["iou"], grounding["samples"], recorded("snli_ve")["targets"]])
    assert all(choices(sample) for sample in grounding["samples"])
    assert any("peak_xy" in found for sample in grounding["samples"] for found in choices(sample).values())
