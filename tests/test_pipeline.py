"""One image, one line: what `albef.load` gives, on untrained models of every kind."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import albef
from albef.data.broken import BrokenImage
from albef.data.processor import Processor
from albef.data.text import load_tokenizer
from albef.errors import AlbefTypeError, AlbefValueError
from albef.files import ANSWERS
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.classifier import AlbefForClassification, AlbefForPairs, AlbefForTextAssignment
from albef.pipeline import Pipeline
from albef.tasks import classification, decode, grounding, vqa
from albef_demo.world import scene
from tests.worlds import TINY

KINDS = (AlbefModel, AlbefForAnswering, AlbefForClassification, AlbefForPairs, AlbefForTextAssignment)
LISTED = ["red", "blue", "two", "yes"]


def save(folder, kind, answers=LISTED):
    processor = Processor(load_tokenizer("albef:world.txt"), TINY.image_size)
    torch.manual_seed(6)
    model = kind(replace(TINY, vocab_size=processor.vocab_size))
    if kind is AlbefForAnswering:
        with torch.no_grad():
            model.decoder.words.word_embeddings.weight *= 4  # else it is indifferent
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind is AlbefForAnswering and answers is not None:
        (folder / ANSWERS).write_text(json.dumps(answers))
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """By the name of its class, every kind of model."""
    folder = tmp_path_factory.mktemp("models")
    return {kind.__name__: albef.load(save(folder / kind.__name__, kind), device="cpu") for kind in KINDS}


@pytest.fixture(scope="module")
def answering(loaded):
    return loaded["AlbefForAnswering"]


@pytest.fixture(scope="module")
def matching(loaded):
    return loaded["AlbefModel"]


@pytest.fixture(scope="module")
def image():
    """50 x 30 pixels."""
    return scene("test", 3).image().resize((50, 30))


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# Images


def test_all_kinds_of_images_are_the_same(matching, image, tmp_path):
    image.save(tmp_path / "a.png")
    wanted = matching.match(image, "a red ring")
    assert 0 <= wanted.probability <= 1 and -1 <= wanted.cosine <= 1
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), png(image), io.BytesIO(png(image))):
        assert matching.match(source, "a red ring") == wanted


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "I;16", "1", "CMYK"])
def test_images_of_all_modes_can_be_used_and_painted_over(matching, image, mode):
    other = image.convert("L").convert("I").point(lambda v: v * 256).convert(mode) if mode == "I;16" else image
    other = other.convert(mode)
    if mode in ("RGBA", "LA"):
        other.putalpha(128)
    region = matching.ground(other, "a red ring")
    assert region.image.mode == "RGB" and region.overlay().size == (50, 30)
    if mode != "CMYK":  # which PNG doesn't have
        same = matching.ground(png(other), "a red ring")
        assert np.array_equal(np.asarray(region.image), np.asarray(same.image))
        np.testing.assert_allclose(region.heat_map, same.heat_map, atol=1e-7)


def test_an_image_that_lies_on_its_side_is_put_upright(matching, image):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    for source in (file.getvalue(), Image.open(file)):
        region = matching.ground(source, "a red ring")
        assert region.image.size == region.overlay().size == (30, 50) and region.heat_map.shape == (50, 30)


def test_what_is_no_image(matching, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    for source, error in (("absent.png", "no such file"), (tmp_path / "text.png", "not an image"), (b"", "empty")):
        with pytest.raises(BrokenImage, match=error):
            matching.match(source, "a ring")
    with pytest.raises(TypeError, match="cannot open a int as an image"):
        matching.match(7, "a ring")


@pytest.mark.parametrize("source", [np.zeros((3, 3, 3), np.uint8), torch.zeros(3, 3, 3), iter("ab"), None, {"a": b"b"}])
def test_what_is_no_image_either(matching, source):
    with pytest.raises(AlbefTypeError, match=r"images: cannot open a .* as an image; give a PIL image, .*fromarray"):
        matching.embed_images(source)
    with pytest.raises(AlbefTypeError, match=r"images\[1\]: cannot open a .* as an image"):
        matching.embed_images([Image.new("RGB", (3, 3)), source])


def test_an_address_is_not_fetched(matching):
    with pytest.raises(BrokenImage, match=r"https://x.org/a.png: an address, not a file; fetch it, and give its path"):
        matching.embed_images(["https://x.org/a.png"])


def test_a_broken_image_in_a_list_is_named_by_its_place(matching, loaded, image, tmp_path):
    """It was called `image of 2 bytes`; a PIL image raised whatever Pillow does."""
    cut = io.BytesIO(png(image.resize((200, 200)))[:300])
    for wrong, reason in ((b"xx", "not an image"), (io.BytesIO(b"xx"), "not an image"), (Image.open(cut), "damaged")):
        for use in (matching.embed_images, matching.tokens, lambda images: matching.rank("a ring", images)):
            with pytest.raises(BrokenImage, match=rf"images\[2\]: {reason}"):
                use([image, image, wrong])
        with pytest.raises(BrokenImage, match=rf"second\[1\]: {reason}"):
            loaded["AlbefForPairs"].compare(image, [image, wrong], "a ring")
    with pytest.raises(BrokenImage, match=r"absent.png: no such file"):
        matching.embed_images([image, "absent.png"])


def test_one_stream_for_many_texts(matching):
    """Four threads read it at a time, each from where another had left it."""
    texts, noise = ["a red ring", "a blue square"] * 16, np.random.default_rng(1).integers(256, size=(700, 700, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    wanted = matching.fuse(image, texts).values
    for opened in (lambda file: file, Image.open):
        torch.testing.assert_close(matching.fuse(opened(io.BytesIO(png(image))), texts).values, wanted)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (None, "cannot read a NoneType as a text; give a str, or a list of them"),
        (b"ring", "cannot read a bytes as a text"),
        (["ring", 7], "text 1 is 7 of type int; every text must be a string"),
    ],
)
@pytest.mark.parametrize("use", ["embed_texts", "states", "match", "fuse", "ground", "rank"])
def test_what_is_no_text(matching, image, use, texts, said):
    both = (texts,) if use in ("embed_texts", "states") else (image, texts)
    with pytest.raises(AlbefTypeError, match=said):
        getattr(matching, use)(*both)


# Answers


def test_answers_are_ranked(answering, image):
    found = answering.answer(image, "What colour is the ring?")
    assert sorted(answer.text for answer in found) == sorted(LISTED)  # of five that were asked for there are four
    shares = [answer.probability for answer in found]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-5)
    assert answering.answer(image, "what colour is the ring", k=2) == found[:2]
    assert answering.answer(image, "what colour is the ring", k=1000) == found


def test_answers_are_ranked_by_the_whole_list_whatever_is_shown(answering, image):
    """The probabilities are among 128, not among the k that are asked for; and of more than 128 all can be had."""
    many = [f"{word} {number}" for word in LISTED for number in range(50)]
    some = answering.answer(image, "what is it", k=3, answers=many)
    assert sum(answer.probability for answer in some) < 0.9
    assert [a.text for a in answering.answer(image, "what is it", k=128, answers=many)][:3] == [a.text for a in some]
    assert len(answering.answer(image, "what is it", k=500, answers=many)) == 200


def test_answers_of_ones_own(answering, image):
    assert [a.text for a in answering.answer(image, "what is it", answers=["ring"])] == ["ring"]
    assert len(answering.answer(image, "what is it", answers=["ring", "cross", "ring"])) == 2
    with pytest.raises(
        ValueError, match=r"the answer list is empty; make one with `albef answers.* by --answers, or .*--free"
    ):
        answering.answer(image, "what is it", answers=[])
    with pytest.raises(ValueError, match="answers 'ring': give a list of answers"):
        answering.answer(image, "what is it", answers="ring")
    with pytest.raises(ValueError, match="a list of answers is for ranking; leave it out to write freely"):
        answering.answer(image, "what is it", answers=["ring"], free=True)


def test_answers_are_written(answering, image):
    for k in (1, 3, 6):
        found = answering.answer(image, "what is it", k=k, free=True)
        assert len(found) == k
        assert all(0 <= answer.probability <= 1 and "[SEP]" not in answer.text for answer in found)
        shares = [answer.probability for answer in found]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-5
    model, processor = answering.model, answering.processor
    words = vqa.questions(processor, ["what is it"], 50, 30)
    with torch.no_grad():
        states = model.read(processor.images([image]), **words)
    ids, scores = decode.generate(model, states, words["attention_mask"], processor.cls_id, processor.sep_id, beams=6)
    assert [answer.text for answer in found] == [processor.words(row) for row in ids[0].tolist()]
    assert [answer.probability for answer in found] == pytest.approx(scores[0].exp().tolist())


def test_a_model_without_a_list_still_writes(image, tmp_path):
    model = albef.load(save(tmp_path, AlbefForAnswering, answers=None))
    assert model.answers == [] and model.answer(image, "what is it", k=1, free=True)
    with pytest.raises(ValueError, match="the answer list is empty"):
        model.answer(image, "what is it")


@pytest.mark.parametrize("question", ["?", "", "...", " "])
@pytest.mark.parametrize("free", [False, True])
def test_a_question_without_a_word(answering, image, question, free):
    with pytest.raises(ValueError, match="has no word in it; ask something"):
        answering.answer(image, question, free=free)


@pytest.mark.parametrize("k", [0, -1])
def test_less_than_one_answer(answering, image, k):
    with pytest.raises(ValueError, match=f"k {k}: ask for at least one answer"):
        answering.answer(image, "what is it", k=k)


# Verdicts


def test_entailment(loaded, image):
    model = loaded["AlbefForClassification"]
    found = model.entails(image, "there is a red ring")
    assert found.probabilities.keys() == {"contradiction", "neutral", "entailment"}
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert found.label == max(found.probabilities, key=found.probabilities.__getitem__)
    source = [replace(example, text="there is a red ring") for example in world_examples("classification")]
    ((_, shares),) = classification.predict(model.model, model.processor, source).values()
    again = model.entails(source[0].images[0], "there is a red ring")
    assert list(again.probabilities.values()) == pytest.approx(shares.tolist(), abs=1e-5)


def world_examples(kind):
    from albef.data.examples import open_examples

    return [open_examples(kind, ["world:test/1"])[0]]


def test_labels_of_ones_own(image, tmp_path):
    processor = Processor(load_tokenizer("albef:world.txt"), TINY.image_size)
    AlbefForClassification(replace(TINY, vocab_size=processor.vocab_size), ["dull", "bright"]).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert albef.load(tmp_path).entails(image, "a ring").probabilities.keys() == {"dull", "bright"}


def test_comparing_two_images(loaded, image):
    model, other = loaded["AlbefForPairs"], scene("test", 9).image()
    found = model.compare(image, other, "both pictures show a ring")
    assert found.probabilities.keys() == {"False", "True"} and found.label in ("False", "True")
    assert model.compare(other, image, "both pictures show a ring") != found
    assert model.compare(image, png(other), "both pictures show a ring") == found
    ((_, shares),) = classification.predict(model.model, model.processor, world_examples("pairs")).values()
    (example,) = world_examples("pairs")
    again = model.compare(*example.images, example.text)
    assert list(again.probabilities.values()) == pytest.approx(shares.tolist(), abs=1e-5)


# Regions


def test_grounding(matching, image):
    region = matching.ground(image, "the red ring", layer=0)
    assert region.heat_map.shape == (30, 50) and list(region.words) == ["the", "red", "ring"]
    assert all(word.shape == (30, 50) for word in region.words.values())
    x, y, width, height = region.box
    assert 0 <= x < x + width <= 50 and 0 <= y < y + height <= 30
    assert region.points == (region.heat_map.max() > 0)
    assert region.overlay().size == region.overlay("ring").size == (50, 30)
    assert region.overlay().tobytes() != image.convert("RGB").tobytes()
    with pytest.raises(KeyError):
        region.overlay("square")
    with torch.no_grad():
        words = matching.processor.texts(["the red ring"])
        maps = grounding.text_maps(matching.model, matching.processor.images([image]), *words.values(), "itm", 0)
    assert region.heat_map[0, 0] == pytest.approx(float(grounding.boxes.upsample(maps[0], 30, 50)[0, 0]), abs=1e-7)


def test_words_of_several_pieces_have_one_map(matching, image):
    words = matching.ground(image, "the red zebra", layer=0).words
    assert list(words) == ["the", "red", "zebra"]


def test_a_word_said_twice_has_the_maps_of_both(matching, image):
    found = matching.ground(image, "red ring red", layer=0)
    pixels, words = matching.processor.images([image]), matching.processor.texts(["red ring red"])
    maps = grounding.word_maps(matching.model, pixels, *words.values(), 0)[0]
    both = grounding.boxes.upsample(maps[1] + maps[3], 30, 50)
    assert list(found.words) == ["red", "ring"]
    np.testing.assert_allclose(found.words["red"], both, atol=1e-7)


def test_grounding_by_similarity(matching, image):
    region = matching.ground(image, "the red ring", "itc")
    assert region.heat_map.shape == (30, 50) and region.words == {} and region.overlay().size == (50, 30)
    other = matching.ground(image, "the red ring", "itc", layer=0)
    assert not np.array_equal(other.heat_map, region.heat_map)


def test_the_best_of_given_boxes(matching, image):
    heat = matching.ground(image, "the red ring", "itc").heat_map
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    boxes = [(60, 60, 5, 5), (0, 0, 0, 9), (int(x), int(y), 2, 2)]
    found = matching.ground(image, "the red ring", "itc", candidates=boxes)
    assert found.box == boxes[2] and found.points
    nowhere = matching.ground(image, "the red ring", "itc", candidates=boxes[:2])
    assert nowhere.box == boxes[0] and not nowhere.points and nowhere.overlay().size == (50, 30)
    with pytest.raises(ValueError, match="neither side negative"):
        matching.ground(image, "the red ring", candidates=[(1, 1, -2, 3)])
    for wrong in ([(1, 1, 2)], [(0, 0, 2, 2), (float("nan"), 1, 2, 3)]):
        with pytest.raises(ValueError, match="a box is x, y, width, height in pixels, all finite"):
            matching.ground(image, "the red ring", candidates=wrong)
    with pytest.raises(ValueError, match="candidates is empty; give boxes to choose among, or leave it out"):
        matching.ground(image, "the red ring", candidates=[])
    scored = matching.ground(image, "the red ring", "itc", candidates=np.array([[int(x), int(y), 2, 2, 0.9]]))
    assert scored.box == boxes[2], "a detector's score may follow"


def test_a_map_without_positive_values_says_so(matching, image, monkeypatch):
    monkeypatch.setattr(grounding, "similarity_maps", lambda *_: torch.zeros(1, 4, 4))
    region = matching.ground(image, "the red ring", "itc")
    assert not region.points and region.box == (0, 0, 50, 30) and region.overlay().size == (50, 30)
    region = matching.ground(image, "the red ring", "itc", candidates=[(0, 0, 2, 2), (1, 1, 3, 3)])
    assert not region.points and region.box == (1, 1, 3, 3)


@pytest.mark.parametrize(("mode", "name"), [("itm", "fusion"), ("itc", "image")])
@pytest.mark.parametrize("layer", [2, -3, 99])
def test_a_layer_that_does_not_exist(matching, image, mode, name, layer):
    with pytest.raises(ValueError, match=f"layer {layer} doesn't exist; the {name} layers are 0 to 1, or -2 to -1"):
        matching.ground(image, "the red ring", mode, layer)


# The wrong model, no text


USES = {
    "answer": (AlbefForAnswering, "answer questions", "vqa", ("what is it",)),
    "entails": (AlbefForClassification, "judge a text", "classification", ("a ring",)),
    "compare": (AlbefForPairs, "compare two images", "nlvr2", ("a ring",)),
    "match": (AlbefModel, "match", "retrieval", ("a ring",)),
    "ground": (AlbefModel, "ground", "grounding", ("a ring",)),
}


@pytest.mark.parametrize("use", USES)
def test_another_kind_of_model_says_what_to_load(loaded, image, use):
    right, what, task, arguments = USES[use]
    arguments = (image, *([image] if use == "compare" else []), *arguments)
    assert getattr(loaded[right.__name__], use)(*arguments)
    for name, model in loaded.items():
        if name != right.__name__:
            with pytest.raises(
                TypeError, match=f"is an {name}, which can't {what}: load an {right.__name__}.*`{task}`"
            ):
                getattr(model, use)(*arguments)


@pytest.mark.parametrize("text", ["", "..."])
def test_features_of_no_text(matching, image, text):
    for use in (matching.embed_texts, matching.states, lambda texts: matching.fuse(image, texts)):
        with pytest.raises(ValueError, match="has no word in it; describe something"):
            use(["a ring", text])
    with pytest.raises(ValueError, match="has no word in it; describe something"):
        matching.classify(image, ["ring", text])


@pytest.mark.parametrize("use", ["entails", "compare", "match", "ground"])
@pytest.mark.parametrize("text", ["", "  ", "?", "..."])
def test_no_text(loaded, image, use, text):
    images = [image] * (2 if use == "compare" else 1)
    with pytest.raises(ValueError, match="has no word in it; describe something"):
        getattr(loaded[USES[use][0].__name__], use)(*images, text)


def test_a_single_image_where_a_pair_is_needed(loaded, image):
    with pytest.raises(TypeError, match="text"):
        loaded["AlbefForPairs"].compare(image, "both show a ring")
    with pytest.raises(TypeError, match="load an AlbefForClassification"):
        loaded["AlbefForPairs"].entails(image, "a ring")


def test_a_mode_that_does_not_exist(matching, image):
    """It was taken for ITC."""
    with pytest.raises(ValueError, match="mode 'gradcam': there are itm and itc"):
        matching.ground(image, "a ring", "gradcam")


def test_labels_from_a_generator_and_labels_twice(matching, image):
    found = matching.classify(image, (label for label in ("ring", "cross")))
    assert found.probabilities.keys() == {"ring", "cross"}
    with pytest.raises(ValueError, match=r"labels \['ring', 'cross', 'ring'\]: one is there twice"):
        matching.classify(image, ["ring", "cross", "ring"])


# Loading


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu", ""])
def test_a_device_that_is_not_there(device):
    with pytest.raises(AlbefValueError, match=rf"device '{device}': PyTorch can't use it here .*; leave it out, or"):
        albef.load("world", device=device)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"dtype": "float16"}, TypeError, "dtype 'float16': give torch.float32, torch.bfloat16 or torch.float16"),
        ({"dtype": torch.int8}, TypeError, "dtype torch.int8: give torch.float32"),
        ({"image_size": 0}, ValueError, "image_size 0: give pixels, at least 1"),
        ({"image_size": (36, -36)}, ValueError, r"image_size \(36, -36\): give pixels, at least 1"),
    ],
)
def test_what_cannot_be_loaded(options, error, said):
    with pytest.raises(error, match=said):
        albef.load("world", device="cpu", **options)


def test_a_folder_without_words(tmp_path):
    (save(tmp_path, AlbefModel) / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no saved model here \(a folder with tokenizer.json and preproc"):
        albef.load(tmp_path)


def test_another_size(tmp_path, image):
    folder = save(tmp_path, AlbefModel)
    model = albef.load(folder, image_size=(16, 48))
    assert model.processor.image_size == model.model.config.image_size == (16, 48)
    region = model.ground(image, "the red ring")
    assert region.heat_map.shape == (30, 50)


def test_a_name_that_leads_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no saved model here.*emoji"):
        albef.load(tmp_path / "absent")


def test_a_model_that_comes_along():
    model = albef.load("emoji")
    assert isinstance(model, Pipeline) and model.match(scene("test", 0).image(), "a red apple").probability >= 0
