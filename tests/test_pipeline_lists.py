"""Lists in, tensors and lists out: features, matching, ranking and the rest; in half precision, in threads."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import albef
from albef import features, inputs
from albef import pipeline as pipelines
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.classifier import AlbefForClassification, AlbefForPairs
from albef.results import Ranked
from albef.tasks import ranking
from albef_demo.world import scene
from tests.test_pipeline import save
from tests.worlds import TINY

TEXTS = ["a red ring", "the small blue square at the top left", "two rings", "a cross"]
KINDS = {
    "match": AlbefModel,
    "answer": AlbefForAnswering,
    "entails": AlbefForClassification,
    "compare": AlbefForPairs,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {use: save(tmp_path_factory.mktemp(use), kind) for use, kind in KINDS.items()}


@pytest.fixture(scope="module")
def loaded(folders):
    return {use: albef.load(folder, device="cpu") for use, folder in folders.items()}


@pytest.fixture(scope="module")
def matching(loaded):
    return loaded["match"]


@pytest.fixture(scope="module")
def images():
    return [scene("test", number).image() for number in range(4)]


# Features


def test_features_of_images(matching, images) -> None:
    vectors, tokens = matching.embed_images(images), matching.tokens(images)
    assert vectors.shape == (4, 16) and tokens.shape == (4, 17, 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(matching.embed_images(images[2]), vectors[2])
    torch.testing.assert_close(matching.tokens(images[2]), tokens[2])
    assert not vectors.requires_grad and matching.embed_images([]).shape == (0, 16)
    assert matching.tokens([]).shape == (0, 17, 32)


def test_features_of_texts(matching) -> None:
    vectors, states = matching.embed_texts(TEXTS), matching.states(TEXTS)
    assert vectors.shape == (4, 16) and states.values.shape == (4, 9, 32) and states.first.shape == (4, 32)
    assert states.mask.sum(1).tolist() == [4, 9, 4, 3]
    torch.testing.assert_close(matching.embed_texts(TEXTS[0]), vectors[0])
    alone = matching.states(TEXTS[0])
    torch.testing.assert_close(alone.values, states.values[0, :4])
    torch.testing.assert_close(alone.first, states.first[0])
    assert matching.embed_texts([]).shape == (0, 16) and matching.states([]).values.shape == (0, 0, 32)


def test_features_of_both(matching, images) -> None:
    """The ITM head on the first word's fused state gives what `match` says."""
    fused = matching.fuse(images, TEXTS)
    assert fused.values.shape == (4, 9, 32)
    logits = matching.model.itm_head(fused.first)
    found = [match.probability for match in matching.match(images, TEXTS)]
    assert logits.softmax(1)[:, 1].tolist() == pytest.approx(found, abs=1e-5)
    torch.testing.assert_close(matching.fuse(images[1], TEXTS).first[2], matching.fuse(images[1], TEXTS[2]).first)


def test_similarities(matching, images) -> None:
    found = matching.similarity(images, TEXTS)
    assert found.shape == (4, 4)
    torch.testing.assert_close(matching.similarity(images[1], TEXTS), found[1])
    torch.testing.assert_close(matching.similarity(images, TEXTS[2]), found[:, 2])
    assert float(matching.similarity(images[1], TEXTS[2])) == pytest.approx(float(found[1, 2]), abs=1e-6)


@pytest.mark.parametrize("at_once", [1, 3])
def test_batches_change_nothing(matching, images, monkeypatch, at_once: int) -> None:
    wanted = matching.tokens(images), matching.fuse(images, TEXTS).values
    monkeypatch.setattr(inputs, "AT_ONCE", at_once)
    monkeypatch.setattr(features, "TEXTS_AT_ONCE", at_once)
    monkeypatch.setattr(pipelines, "PAIRS_KEPT", at_once)
    torch.testing.assert_close((matching.tokens(images), matching.fuse(images, TEXTS).values), wanted)
    torch.testing.assert_close(matching.states(TEXTS).first, torch.stack([matching.states(t).first for t in TEXTS]))
    assert len(matching.match(images, TEXTS)) == 4


# Pairs, ranking, labels


def close(found, wanted) -> None:
    assert [m.probability for m in found] == pytest.approx([m.probability for m in wanted], abs=1e-5)
    assert [m.cosine for m in found] == pytest.approx([m.cosine for m in wanted], abs=1e-5)


def test_matching_lists(matching, images) -> None:
    close(matching.match(images, TEXTS), [matching.match(*pair) for pair in zip(images, TEXTS, strict=True)])
    close(matching.match(images[0], TEXTS), [matching.match(images[0], text) for text in TEXTS])
    close(matching.match(images, TEXTS[1]), [matching.match(image, TEXTS[1]) for image in images])
    close(matching.match([images[0]] * 4, TEXTS), matching.match(images[0], TEXTS))
    assert matching.match([], []) == []


@pytest.mark.parametrize("use", ["match", "fuse", "ground"])
def test_lists_of_different_lengths(matching, images, use: str) -> None:
    with pytest.raises(ValueError, match=r"4 images and 3 texts: lists are pairs.*`similarity` or `rank`"):
        getattr(matching, use)(images, TEXTS[:3])


def test_few_texts_make_no_keys_and_values(matching, monkeypatch) -> None:
    """They cost more than the texts themselves where an image has few; many texts use them again."""
    seen, fusion = [], matching.model.fusion_encoder
    once = fusion.seen_once
    monkeypatch.setattr(fusion, "seen_once", lambda tokens, words: seen.append(once(tokens, words)) or seen[-1])
    texts, _ = ranking.encode_texts(matching.model, matching.processor, TEXTS * 8)
    tokens = [torch.randn(17, 32), torch.randn(17, 32)]
    found = list(ranking.score_texts(matching.model, tokens, texts, [torch.tensor([0]), torch.arange(32)]))
    assert [type(one).__name__ for one in seen] == ["Tokens", "KeysValues"] and len(found[1][1]) == 32


def test_ranking_images_for_a_text(matching, images) -> None:
    matches = matching.match(images, TEXTS[0])
    for by in ("odds", "itm"):
        found = matching.rank(TEXTS[0], images, k=4, by=by)
        assert sorted(one.index for one in found) == [0, 1, 2, 3]
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4
        close(found, [matches[one.index] for one in found])
    nearest = matching.similarity(images, TEXTS[0]).topk(2).indices.tolist()
    assert {one.index for one in matching.rank(TEXTS[0], images, k=2)} == set(nearest)
    several = matching.rank(TEXTS, images, k=3)
    assert [[one.index for one in own] for own in several] == [
        [one.index for one in matching.rank(text, images, k=3)] for text in TEXTS
    ]


def test_what_a_search_is_ordered_by(matching, images) -> None:
    """The score is what the definition makes of cosine and probability; the paper's order is an option."""
    temp, config = matching.model.temp.item(), matching.model.config
    for one in matching.rank(images[0], TEXTS, k=4):
        log_odds = math.log(one.probability / (1 - one.probability))
        assert one.score == pytest.approx(one.cosine / temp + log_odds, abs=1e-3)
    matching.model.config = replace(config, match_weight=0.0)
    try:
        by_cosine = [one.cosine for one in matching.rank(images[0], TEXTS, k=4)]
    finally:
        matching.model.config = config
    assert by_cosine == sorted(by_cosine, reverse=True)
    with pytest.raises(ValueError, match="by 'itc': there are odds and itm"):
        matching.rank(images[0], TEXTS, by="itc")


def test_a_calibrated_probability(matching, images) -> None:
    before, config = matching.match(images[0], TEXTS[0]), matching.model.config
    matching.model.config = replace(config, match_temperature=4.0)
    try:
        after, ranked = matching.match(images[0], TEXTS[0]), matching.rank(images[0], TEXTS[:1])[0]
    finally:
        matching.model.config = config
    log_odds = math.log(before.probability / (1 - before.probability))
    assert after.probability == pytest.approx(1 / (1 + math.exp(-log_odds / 4)), abs=1e-6)
    assert ranked.probability == pytest.approx(after.probability, abs=1e-6) and after.cosine == before.cosine


def test_ranking_more_images_than_are_kept(matching, images, monkeypatch) -> None:
    """Their tokens are made again, some at a time, for those that are ranked."""
    wanted = matching.rank(TEXTS, images, k=3)
    monkeypatch.setattr(pipelines, "PAIRS_KEPT", 2)
    for own, expected in zip(matching.rank(TEXTS, images, k=3), wanted, strict=True):
        assert [one.index for one in own] == [one.index for one in expected]
        assert [one.probability for one in own] == pytest.approx([one.probability for one in expected], abs=1e-6)


def test_ranking_texts_for_an_image(matching, images, tmp_path) -> None:
    found = matching.rank(images[3], TEXTS, k=3)
    assert len(found) == 3 and all(isinstance(one, Ranked) for one in found)
    close(found, matching.match([images[3]] * 3, [TEXTS[one.index] for one in found]))
    images[3].save(tmp_path / "a.png")
    close(matching.rank(tmp_path / "a.png", TEXTS, k=3), found)
    assert [own[0].index for own in matching.rank(images, TEXTS, k=1)] == matching.similarity(images, TEXTS).argmax(
        1
    ).tolist()
    assert len(matching.rank(images[0], TEXTS, k=99)) == 4 and matching.rank(images[0], []) == []
    with pytest.raises(ValueError, match="k 0: ask for at least one candidate"):
        matching.rank(images[0], TEXTS, k=0)


def test_labels_without_training(matching, images) -> None:
    found = matching.classify(images, ["ring", "square"])
    assert [verdict.label in ("ring", "square") for verdict in found] == [True] * 4
    cosines = matching.similarity(images[1], ["an image of a ring", "an image of a square"])
    shares = (cosines / matching.model.temp).softmax(0).tolist()
    alone = matching.classify(images[1], ["ring", "square"], template="an image of a {}")
    assert list(alone.probabilities.values()) == pytest.approx(shares, abs=1e-5)
    with pytest.raises(ValueError, match=r"template .ring.: must hold \{\}"):
        matching.classify(images, ["ring"], template="ring")
    with pytest.raises(ValueError, match="give a list of at least one label"):
        matching.classify(images, [])


def test_fine_tuned_models_take_lists(loaded, images) -> None:
    questions = ["what colour is it", "is there a small ring", "what", "how many rings"]
    for options in ({}, {"free": True}, {"answers": ["ring", "cross"], "k": 1}):
        alone = [loaded["answer"].answer(*pair, **options) for pair in zip(images, questions, strict=True)]
        together = loaded["answer"].answer(images, questions, **options)
        assert [[a.text for a in own] for own in together] == [[a.text for a in own] for own in alone]
    several = loaded["entails"].entails(images[0], TEXTS)
    for one, text in zip(several, TEXTS, strict=True):
        assert one.probabilities == pytest.approx(loaded["entails"].entails(images[0], text).probabilities, abs=1e-5)
    several = loaded["compare"].compare(images, images[::-1], TEXTS[0])
    for one, left, right in zip(several, images, images[::-1], strict=True):
        wanted = loaded["compare"].compare(left, right, TEXTS[0])
        assert one.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)
    with pytest.raises(ValueError, match=r"4 first and 3 second and 4 texts"):
        loaded["compare"].compare(images, images[:3], TEXTS)


def test_regions_of_lists(matching, images) -> None:
    several = matching.ground(images, TEXTS)
    for region, image, text in zip(several, images, TEXTS, strict=True):
        np.testing.assert_allclose(region.heat_map, matching.ground(image, text).heat_map, atol=1e-6)
    boxes = [[(0, 0, 9, 9)], [(1, 1, 9, 9)], [(2, 2, 9, 9)], [(3, 3, 9, 9)]]
    assert [r.box[0] for r in matching.ground(images, TEXTS, candidates=boxes)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="3 lists of candidates for 4 pairs"):
        matching.ground(images, TEXTS, candidates=boxes[:3])


def test_a_list_of_answers_is_read_once(loaded, images, monkeypatch) -> None:
    """Three thousand answers took longer to read than a question to answer."""
    model, read = loaded["answer"], []
    answers = type(model.processor).answers
    monkeypatch.setattr(type(model.processor), "answers", lambda own, texts: read.append(texts) or answers(own, texts))
    for _ in range(3):
        model.answer(images[0], "what is it", answers=["a ring", "a cross", "a square"])
    assert len(read) == 1
    model.answer(images[0], "what is it", answers=["a ring"])
    assert len(read) == 2


# Number types, threads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(folders, images, dtype) -> None:
    """Every method works, and says nearly the same as in single precision."""
    halves = {use: albef.load(folder, device="cpu", dtype=dtype) for use, folder in folders.items()}
    whole = {use: albef.load(folder, device="cpu") for use, folder in folders.items()}
    half, full = halves["match"], whole["match"]
    assert all(one.model.dtype == dtype for one in halves.values())
    for feature in ("embed_images", "tokens"):
        found = getattr(half, feature)(images)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, getattr(full, feature)(images), atol=0.1, rtol=0.1)
    torch.testing.assert_close(half.embed_texts(TEXTS), full.embed_texts(TEXTS), atol=0.1, rtol=0.1)
    torch.testing.assert_close(half.states(TEXTS).values, full.states(TEXTS).values, atol=0.2, rtol=0.1)
    torch.testing.assert_close(half.fuse(images, TEXTS).values, full.fuse(images, TEXTS).values, atol=0.2, rtol=0.1)
    torch.testing.assert_close(half.similarity(images, TEXTS), full.similarity(images, TEXTS), atol=0.05, rtol=0)
    for pair in zip(half.match(images, TEXTS), full.match(images, TEXTS), strict=True):
        assert pair[0].probability == pytest.approx(pair[1].probability, abs=0.05)
    assert len(half.rank(TEXTS[0], images)) == len(half.rank(images[0], TEXTS * 8, k=20)[:4]) == 4
    assert half.classify(images[0], ["ring", "cross"]).probabilities.keys() == {"ring", "cross"}
    for mode in ("itm", "itc"):
        assert half.ground(images[0], TEXTS[0], mode).heat_map.dtype == np.float32
    assert len(halves["answer"].answer(images[0], "what is it")) == 4
    assert halves["answer"].answer(images[0], "what is it", free=True)
    wanted = whole["entails"].entails(images[0], TEXTS[0]).probabilities
    assert halves["entails"].entails(images[0], TEXTS[0]).probabilities == pytest.approx(wanted, abs=0.05)
    wanted = whole["compare"].compare(images[0], images[1], TEXTS[0]).probabilities
    assert halves["compare"].compare(images[0], images[1], TEXTS[0]).probabilities == pytest.approx(wanted, abs=0.05)


def test_weights_want_no_gradients(loaded) -> None:
    """A heat map kept a graph over all of them."""
    assert not any(p.requires_grad for one in loaded.values() for p in one.model.parameters())


def test_six_threads_share_a_pipeline(loaded, images) -> None:
    model, answering = loaded["match"], loaded["answer"]
    uses = [
        lambda: model.match(images, TEXTS),
        lambda: model.ground(images[0], TEXTS[0]).box,
        lambda: model.embed_images(images).tolist(),
        lambda: model.rank(TEXTS[1], images),
        lambda: answering.answer(images[0], "what is it", answers=["a ring", "two"]),
        lambda: answering.answer(images[0], "what is it"),
    ]
    alone = [use() for use in uses]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda use: use(), uses * 5)) == alone * 5


def test_long_lists_show_how_far_they_are(matching, images, monkeypatch, capsys) -> None:
    from albef.data import progress

    monkeypatch.setattr(progress, "PATIENCE", -1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(inputs, "AT_ONCE", 1)
    matching.embed_images(images)
    assert "images" in capsys.readouterr().err


def test_the_device_that_pytorch_finds(monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert pipelines.default_device() == torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert pipelines.default_device() == torch.device("cpu")


def test_sizes(folders) -> None:
    assert albef.load(folders["match"], device="cpu", image_size=64).model.config.image_size == (64, 64)
    assert TINY.image_size == (32, 32)
