"""Two-stage evaluation and its recalls against the official evaluation of a fine-tuned checkpoint."""

import pytest
import torch

from albef.tasks.ranking import NOT_A_CANDIDATE, Gallery, encode_images, encode_texts, recalls, two_stage_scores
from tests.parity import golden


@pytest.fixture(scope="module")
def record():
    return golden.json_of("retrieval_eval")


@pytest.fixture(scope="module")
def tensors():
    return golden.tensors_of("retrieval_eval")


@pytest.fixture(scope="module")
def model(record):
    return golden.model(record["checkpoint"].removesuffix(".pth"))


@pytest.fixture(scope="module")
def gallery(record, model):
    processor = golden.processor(model.config.image_size)
    processor.max_tokens = record["max_length"]
    batches = golden.images("downstream", list(range(len(record["img2txt"])))).split(4)
    image_of_text = torch.tensor([record["txt2img"][str(text)] for text in range(len(record["texts"]))])
    return Gallery(*encode_images(model, batches), *encode_texts(model, processor, record["texts"]), image_of_text)


@pytest.fixture(scope="module")
def scores(record, model, gallery):
    return dict(two_stage_scores(model, gallery, record["k_test"]))


def test_features(gallery, tensors):
    golden.close(gallery.z_image, tensors["image_embeds"])
    golden.close(gallery.z_text, tensors["text_embeds"])
    length = gallery.texts.mask.shape[1]
    assert gallery.texts.mask.equal(tensors["text_atts"][:, :length]) and not tensors["text_atts"][:, length:].any()


def test_similarities(scores, tensors):
    golden.close(scores["itc"][0], tensors["sims"])
    golden.close(scores["itc"][1], tensors["sims"].T)


@pytest.mark.parametrize(("name", "way"), [("score_i2t", 0), ("score_t2i", 1)])
def test_reranked_scores(scores, tensors, name, way):
    ours, wanted = scores["itm"][way], tensors[name]
    assert (ours == NOT_A_CANDIDATE).equal(wanted == NOT_A_CANDIDATE)
    golden.close(ours, wanted, name)


def test_recalls_of_the_evaluation(scores, record, gallery):
    """Outside the shortlist all scores are equal, and the original leaves open which of them comes first."""
    correct = gallery.image_of_text == torch.arange(len(gallery.z_image))[:, None]  # [I, T]

    def with_ties(nudge):
        i2t, t2i = scores["itm"]
        tied = [(i2t == NOT_A_CANDIDATE) & correct, (t2i == NOT_A_CANDIDATE) & correct.T]
        return recalls(i2t + nudge * tied[0], t2i + nudge * tied[1], gallery.image_of_text)

    worst, best = with_ties(-1.0), with_ties(1.0)
    for name, recorded in record["metrics"].items():
        assert worst[name] - 1e-6 <= recorded <= best[name] + 1e-6, name
        if name.endswith("_r1"):
            assert worst[name] == best[name] == pytest.approx(recorded)


def test_recalls_of_random_scores(record):
    matrices, tensors = record["random_matrices"], golden.tensors_of("retrieval_metrics")
    for index, metrics in enumerate(matrices["metrics"]):
        i2t, t2i = tensors[f"i2t{index}"], tensors[f"t2i{index}"]
        image_of_text = torch.arange(len(t2i)) // matrices["texts_per_image"]
        assert recalls(i2t, t2i, image_of_text) == pytest.approx(metrics, rel=1e-9)
