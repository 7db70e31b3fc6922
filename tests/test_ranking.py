"""Two-stage retrieval on numbers that a person can check."""

import json
import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from albef.data.processor import Processor
from albef.data.sources import open_sources
from albef.data.text import train_tokenizer
from albef.models.albef import AlbefModel
from albef.models.seen import KeysValues, Tokens
from albef.tasks import ranking
from tests.worlds import TINY, make_world


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_sources([str(make_world(tmp_path_factory.mktemp("world"), copies=1))])


@pytest.fixture(scope="module")
def processor(source):
    captions = [caption for index in range(len(source)) for caption in source[index].captions]
    return Processor(train_tokenizer(captions, 120), TINY.image_size, max_tokens=12)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AlbefModel(TINY).eval()


@pytest.fixture(scope="module")
def gallery(model, processor, source):
    return ranking.encode_gallery(model, processor, source, batch_size=5)


def test_recalls_by_hand():
    # two captions each for images 0 and 1, one for image 2
    image_of_text = torch.tensor([0, 0, 1, 1, 2])
    to_text = torch.tensor(
        [
            [0.1, 0.9, 0.5, 0.4, 0.3],  # the best of its two captions is first
            [0.9, 0.8, 0.2, 0.7, 0.1],  # third
            [0.9, 0.8, 0.7, 0.6, 0.5],  # fifth
        ]
    )
    to_image = torch.tensor([[3.0, 2.0, 1.0]] * 5)  # always image 0, then 1, then 2
    found = ranking.recalls(to_text, to_image, image_of_text)
    assert found["txt_r1"] == pytest.approx(100 / 3) and found["txt_r5"] == found["txt_r10"] == 100
    assert found["img_r1"] == pytest.approx(40) and found["img_r5"] == 100
    assert found["txt_r_mean"] == pytest.approx((100 / 3 + 200) / 3)
    assert found["r_mean"] == pytest.approx((found["txt_r_mean"] + found["img_r_mean"]) / 2)


def test_every_pair_has_the_score_of_a_pass_of_its_own(model, processor, source, gallery):
    scores = dict(ranking.two_stage_scores(model, gallery, k=3))
    words = processor.texts([caption for index in range(len(source)) for caption in source[index].captions])
    pixels = processor.images([source[index].image for index in range(len(source))])
    to_text, to_image = scores["itm"]
    assert ((to_text > -100).sum(1) == 3).all() and ((to_image > -100).sum(1) == 3).all()
    with torch.no_grad():
        for image, text in (to_text > -100).nonzero().tolist():
            states = model.encode_text(words["input_ids"][text : text + 1], words["attention_mask"][text : text + 1])
            keys_values = model.fusion_encoder.keys_values(model.encode_image(pixels[image : image + 1]))
            logit = model.match(model.fuse(states, words["attention_mask"][text : text + 1], keys_values))[0, 1]
            assert to_text[image, text].item() == pytest.approx(logit.item(), abs=1e-4)
            if to_image[text, image] > -100:
                assert to_image[text, image] == to_text[image, text]


def test_the_shortlist_is_the_highest_cosines(model, gallery):
    scores = dict(ranking.two_stage_scores(model, gallery, k=4))
    cosines, _ = scores["itc"]
    for row, candidates in zip(cosines, scores["itm"][0] > -100, strict=True):
        assert row[candidates].min() >= row[~candidates].max()


def test_sum_adds_the_cosine(model, gallery):
    scores = dict(ranking.two_stage_scores(model, gallery, k=4))
    candidates = scores["itm"][1] > -100
    torch.testing.assert_close(
        scores["sum"][1][candidates], (scores["itm"][1] + scores["itc"][1])[candidates], atol=1e-5, rtol=1e-5
    )


def test_odds_by_hand(model):
    """Cosine / temperature plus the weighted difference of the logits."""
    with torch.no_grad():
        model = deepcopy(model)
        model.temp.fill_(0.05)
        cosines, logits = torch.tensor([0.5, 0.4]), torch.tensor([[1.0, -2.0], [-1.0, 2.0]])  # not matched, matched
        model.config = replace(TINY, match_weight=1.0)
        torch.testing.assert_close(ranking.odds(model, cosines, logits), torch.tensor([10.0 - 3, 8 + 3]))
        model.config = replace(TINY, match_weight=0.5)
        torch.testing.assert_close(ranking.odds(model, cosines, logits), torch.tensor([10.0 - 1.5, 8 + 1.5]))
        model.config = replace(TINY, match_temperature=2.0)
        share = math.exp(2 / 2) / (math.exp(2 / 2) + math.exp(-1 / 2))
        assert ranking.match_probabilities(model, logits)[1].item() == pytest.approx(share)


@pytest.mark.parametrize(("weight", "same_as"), [(0.0, "itc"), (1e6, "log-odds")])
def test_the_weight_of_odds(model, gallery, weight, same_as):
    """Without ITM it orders as ITC; with a huge weight as ITM's log-odds, however far below -100 its scores lie."""
    model = deepcopy(model)
    model.config = replace(TINY, match_weight=weight)
    scores = dict(ranking.two_stage_scores(model, gallery, k=5))
    pairs = scores["itm"][0] > -100
    logits = ranking.match_logits(model, gallery, pairs)
    log_odds = torch.zeros_like(scores["itc"][0])
    log_odds[pairs] = logits[:, 1] - logits[:, 0]
    wanted = scores["itc"][0] if same_as == "itc" else log_odds
    torch.testing.assert_close(logits[:, 1], scores["itm"][0][pairs])
    for found, expected, listed in zip(scores["odds"][0], wanted, pairs, strict=True):
        best = expected.masked_fill(~listed, -torch.inf).topk(5).indices
        assert found.topk(5).indices.equal(best) and found[~listed].isneginf().all()


def test_k_above_the_gallery_ranks_everything(model, gallery):
    scores = dict(ranking.two_stage_scores(model, gallery, k=1000))["itm"]
    assert (scores[0] > -100).all() and (scores[1] > -100).all()


def test_ranking_tells_of_every_image(model, gallery):
    done = []
    dict(ranking.two_stage_scores(model, gallery, 2, done.append))
    assert sum(done) == len(gallery.z_image) == 16


def test_first_captions_only(model, processor, source, gallery):
    assert len(ranking.encode_gallery(model, processor, source, captions_per_image=1).z_text) == 16


def test_unreadable_images_are_left_out_with_their_captions(model, processor, tmp_path):
    world = make_world(tmp_path, copies=1)
    (tmp_path / "red-left-0.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="red-left-0.png"):
        gallery = ranking.encode_gallery(model, processor, open_sources([str(world)]))
    assert len(gallery.z_image) == len(gallery.z_text) == 15
    assert gallery.image_of_text.tolist() == list(range(15))


def test_a_list_with_a_caption_per_record_has_each_image_once(model, processor, tmp_path):
    world = make_world(tmp_path, copies=1)
    records = json.loads(world.read_text())
    world.write_text(
        json.dumps([{**record, "caption": f"{word} {record['caption']}"} for word in "xy" for record in records])
    )
    gallery = ranking.encode_gallery(model, processor, open_sources([str(world)]), batch_size=5)
    assert len(gallery.z_image) == 16 and len(gallery.z_text) == 32
    assert gallery.image_of_text.tolist() == [image for image in range(16) for _ in "xy"]


def test_no_readable_image_is_an_error(model, processor, tmp_path):
    world = make_world(tmp_path, copies=1)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="check the paths and image_root"):
        ranking.encode_gallery(model, processor, open_sources([str(world)], image_root="/nowhere"))


def test_tokens_that_do_not_fit_wait_in_half_precision(model, processor, source, gallery):
    gib = len(source) * model.config.image_tokens * model.config.vision_width * 4 / 2**30  # for an image a record
    halved = ranking.encode_gallery(model, processor, source, batch_size=5, memory=gib * 0.6)
    assert {tokens.dtype for tokens in halved.image_tokens} == {torch.float16} and gallery.image_tokens[
        0
    ].dtype == torch.float32
    scores, wanted = (dict(ranking.two_stage_scores(model, found, k=4))["itm"][0] for found in (halved, gallery))
    torch.testing.assert_close(scores, wanted, atol=5e-3, rtol=5e-3)
    with pytest.raises(ValueError, match="allow more `memory`"):
        ranking.encode_gallery(model, processor, source, memory=gib * 0.4)


def test_ranking_in_bfloat16(model, gallery):
    wanted = dict(ranking.two_stage_scores(model, gallery, k=4))["itm"][0]
    with torch.autocast("cpu", torch.bfloat16):
        scores = dict(ranking.two_stage_scores(model, gallery, k=4))
    assert scores["itm"][0].dtype == torch.float32
    torch.testing.assert_close(scores["itm"][0], wanted, atol=0.1, rtol=0.1)
    assert scores["itc"][0].equal(gallery.z_image @ gallery.z_text.T), "cosines keep all their digits"


def test_an_image_without_candidates(model, gallery):
    found = list(ranking.score_texts(model, gallery.image_tokens[:2], gallery.texts, [torch.tensor([], dtype=int)] * 2))
    assert [logits.shape for _, logits in found] == [(0, 2)] * 2
    assert not ranking.match_logits(model, gallery, torch.zeros(16, len(gallery.texts), dtype=torch.bool)).any()


@pytest.mark.parametrize(("own", "total"), [(2, 5), (3, 5), (1, 1), (4, 16)])
def test_a_share_tells_of_the_whole(own, total):
    told = []
    report = ranking._of_all(told.append, own, total)
    for _ in range(own):
        report(1)
    assert sum(told) == total and len(told) == own


def test_what_a_text_scores_does_not_depend_on_its_company(model, processor, gallery):
    """Texts of other lengths, in other numbers, in any order."""
    said = ["red", "a circle to the left", "blue square", "left", "a green circle on the right of something", "square"]
    texts, _ = ranking.encode_texts(model, processor, said)
    tokens, order = gallery.image_tokens[:1], torch.tensor([3, 1, 5, 0, 4, 2])
    ((rows, logits),) = ranking.score_texts(model, tokens, texts, [order])
    assert sorted(rows.tolist()) == list(range(6)) and len(texts.lengths.unique()) > 2
    for row, logit in zip(rows.tolist(), logits, strict=True):
        alone, _ = ranking.encode_texts(model, processor, [said[row]])
        ((_, wanted),) = ranking.score_texts(model, tokens, alone, [torch.tensor([0])])
        torch.testing.assert_close(logit, wanted[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("said", ["left", "a green circle left"])
def test_one_text_without_keys_and_values(model, processor, gallery, said, monkeypatch):
    monkeypatch.setattr(ranking, "IMAGES_AT_ONCE", 5)
    model = deepcopy(model)
    for parameter in model.parameters():  # biases too, which begin as zeros
        parameter.data += 0.05 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    text, _ = ranking.encode_texts(model, processor, [said])
    image = gallery.image_tokens[0][None]
    assert isinstance(model.fusion_encoder.seen_once(image, len(text.states)), Tokens)
    assert isinstance(model.fusion_encoder.seen_once(image, 12), KeysValues)
    found = ranking.score_images(model, gallery.image_tokens, text)
    only = [torch.tensor([0])] * len(gallery.image_tokens)
    wanted = torch.cat([logits for _, logits in ranking.score_texts(model, gallery.image_tokens, text, only)])
    assert len(found) == 16 and found.std(0).min() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = ranking.score_images(model, [tokens.half() for tokens in gallery.image_tokens], text)
    torch.testing.assert_close(coarse, wanted, atol=0.05, rtol=0.05)
    assert ranking.score_images(model, [], text).shape == (0, 2)


def test_reading_without_keys_is_for_evaluation(model, gallery):
    seen = model.fusion_encoder.seen_once(torch.stack(gallery.image_tokens[:2]), 3)
    states, mask = torch.randn(2, 3, model.config.text_width), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"for evaluation.*model\.eval"):
        model.fuse(states, mask, seen, record=[])


@pytest.mark.parametrize(("count", "kind"), [(1, Tokens), (2, Tokens), (4, KeysValues)])
def test_few_texts_of_an_image_need_no_keys_and_values(model, processor, gallery, count, kind, monkeypatch):
    """However it is read, the score is the same; which way is quicker depends on the words of all its texts."""
    made, encoder = [], type(model.fusion_encoder)
    choose = encoder.seen_once
    monkeypatch.setattr(encoder, "seen_once", lambda *a: made.append(choose(*a)) or made[-1])
    texts, _ = ranking.encode_texts(model, processor, ["red", "green left", "a blue square", "a red square"][:count])
    ((_, found),) = ranking.score_texts(model, gallery.image_tokens[:1], texts, [torch.arange(count)])
    assert [type(one) for one in made] == [kind]
    monkeypatch.setattr(encoder, "seen_once", lambda self, image, words: self.keys_values(image))
    ((_, wanted),) = ranking.score_texts(model, gallery.image_tokens[:1], texts, [torch.arange(count)])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
