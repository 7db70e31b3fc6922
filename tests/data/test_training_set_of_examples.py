import pickle
import re
import warnings

import pytest
import torch

from albef.data import training_set
from albef.data.augment import RandAugment, TrainTransform
from albef.data.examples import open_examples
from albef.data.images import open_image
from albef.data.loader import StepBatches, make_loader, read_examples
from albef.data.training_set import CachedSet, Collate, TrainingSet
from tests.data.conftest import image, write_json


def encode(pixel_values, examples):
    """A number for every key, which is one or ends in one."""
    return {
        "pixel_values": pixel_values,
        "key": torch.tensor([int(re.search(r"\d+$", str(example.key))[0]) for example in examples]),
    }


def same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.equal(second[key]) if isinstance(value, torch.Tensor) else value == second[key], key


@pytest.fixture
def folder(tmp_path):
    """Four images of greys 0, 50, 100 and 150, of which the last is damaged."""
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"damage" if number == 3 else image((number * 50,) * 3))
    return tmp_path


@pytest.fixture
def questions(folder):
    """Two questions on each image."""
    records = [{"image": f"{n // 2}.png", "question": f"what {n}?", "answer": "dog"} for n in range(8)]
    return open_examples("vqa", [str(write_json(folder / "vqa.json", records))])


@pytest.fixture
def pairs(folder):
    records = [
        {"images": [f"{a}.png", f"{b}.png"], "sentence": "dog", "label": "True"}
        for a, b in ((0, 1), (1, 2), (2, 3), (3, 0))
    ]
    return open_examples("pairs", [str(write_json(folder / "pairs.json", records))])


def greys(pixels):
    return pixels.flatten(-3).float().mean(-1).tolist()


class TestReadExamples:
    def test_pixels(self, questions, pairs, processor):
        examples, pixels = read_examples(questions, [5, 0], processor)
        assert [example.text for example in examples] == ["what 5?", "what 0?"]
        assert all(example.images == () for example in examples)
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (2, 1, 3, 16, 24))
        assert greys(pixels) == [[100], [0]]
        assert greys(read_examples(pairs, [1], processor)[1]) == [[50, 100]]

    def test_unreadable_ones_are_left_out_and_named(self, pairs, processor):
        with pytest.warns(
            UserWarning, match=r"left out, because unreadable: .*3\.png \(not an image in a known format"
        ):
            examples, pixels = read_examples(pairs, range(4), processor)
        assert [example.key for example in examples] == [0, 1]
        assert greys(pixels) == [[0, 50], [50, 100]]
        with pytest.warns(UserWarning, match="left out"):
            assert len(read_examples(pairs, [2], processor)[1]) == 0

    def test_images_without_a_path_have_the_examples_name(self, processor):
        source = open_examples("vqa", ["world:test/1"])
        examples, pixels = read_examples(source, [0], processor)
        assert pixels[0, 0].equal(processor.resize(open_image(source[0].images[0])))
        assert examples[0].name == "world:test/0"


class TestTrainingSet:
    def test_a_sample(self, questions, processor):
        sample = TrainingSet(questions, processor)[0, 4]
        assert sample["record"].text == "what 4?"
        assert sample["record"].images == ()
        assert sample["pixel_values"].shape == (1, 3, 16, 24)
        assert (greys(sample["pixel_values"]), sample["broken"]) == ([100], [])

    def test_depends_on_seed_epoch_and_index_only(self, processor):
        source = open_examples("pairs", ["world:train/20"])

        def samples(seed):
            data = TrainingSet(source, processor, TrainTransform((16, 24), augment=RandAugment()), seed)
            return [data[epoch, index]["pixel_values"] for epoch in range(2) for index in (0, 5)]

        first, again, other = samples(1), samples(1), samples(2)
        assert all(a.equal(b) for a, b in zip(first, again, strict=True))
        assert not any(a.equal(b) for a, b in zip(first, other, strict=True))
        assert not first[0].equal(first[2])

    def test_images_of_a_pair_are_augmented_independently(self, folder, processor):
        records = [{"images": ["noise.png"] * 2, "sentence": "dog", "label": "True"}]
        (folder / "noise.png").write_bytes(open_examples("vqa", ["world:test/1"])[0].images[0])
        source = open_examples("pairs", [str(write_json(folder / "pairs.json", records))])
        left, right = TrainingSet(source, processor, TrainTransform((16, 24)))[0, 0]["pixel_values"]
        assert not left.equal(right)

    def test_broken_images_are_replaced_and_named(self, pairs, processor):
        data = TrainingSet(pairs, processor)
        for index in (2, 3):
            sample = data[0, index]
            assert sample["record"].key in (0, 1)
            assert {name[-5:] for name, _ in sample["broken"]} == {"3.png"}
            same(sample, data[0, index])

    def test_gives_up_when_nothing_can_be_read(self, folder, processor):
        source = open_examples("vqa", [str(write_json(folder / "l.json", [{"image": "3.png", "question": "x"}]))])
        with pytest.raises(RuntimeError, match=r"20 images in a row could not be read, .*3\.png"):
            TrainingSet(source, processor)[0, 0]


class TestBatches:
    def test_of_one_image(self, questions, processor):
        loader = make_loader(TrainingSet(questions, processor), StepBatches(8, 4, steps=3), Collate(encode))
        batch = next(iter(loader))
        assert batch["pixel_values"].shape == (4, 3, 16, 24)
        assert batch["key"].shape == (4,)
        assert all(name[-5:] == "3.png" for name, _ in batch["broken"])

    def test_of_pairs(self, pairs, processor):
        data = TrainingSet(pairs, processor)
        batch = Collate(encode)([data[0, 1], data[0, 0]])
        assert batch["pixel_values"].shape == (2, 2, 3, 16, 24)
        assert greys(batch["pixel_values"]) == [[50, 100], [0, 50]]
        assert batch["key"].tolist() == [1, 0]

    def test_workers_give_the_same(self, processor):
        source = open_examples("classification", ["world:train/4"])
        data = TrainingSet(source, processor, TrainTransform((16, 24)), seed=3)

        def batches(workers):
            return list(make_loader(data, StepBatches(12, 4, steps=3), Collate(encode), workers))

        for alone, together in zip(batches(0), batches(1), strict=True):
            same(alone, together)


class TestCachedSet:
    @pytest.mark.parametrize("kind", ["vqa", "pairs", "phrases"])
    def test_same_batch_as_the_loader_but_for_augmentation(self, kind, processor):
        def numbers(pixel_values, examples):
            lengths = torch.tensor([len(example.text) for example in examples])
            return {"pixel_values": pixel_values, "lengths": lengths}

        source = open_examples(kind, ["world:test/8"])
        data, cached = TrainingSet(source, processor), CachedSet(source, processor, (16, 24), numbers)
        for batch in StepBatches(len(cached), 3, steps=2):
            same(cached.batch(batch), Collate(numbers)([data[pair] for pair in batch]))

    def test_every_image_is_decoded_once(self, questions, processor, monkeypatch):
        opened = []
        monkeypatch.setattr(training_set, "open_image", lambda *of: opened.append(of) or open_image(*of))
        cached = CachedSet(questions, processor, (6, 5), encode)
        assert len(opened) == 4
        assert cached.pixels.shape == (3, 3, 6, 5)  # the fourth is damaged
        assert len(CachedSet(open_examples("vqa", ["world:test/5"]), processor, (6, 5), encode).pixels) == 5

    def test_broken_images_are_never_drawn(self, questions, pairs, processor):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cached = CachedSet(questions, processor, (6, 5), encode)
        assert len(cached) == 6
        assert [(name[-5:], reason) for name, reason in cached.broken] == [("3.png", "not an image in a known format")]
        assert cached.batch([(0, 5), (9, 2)])["key"].tolist() == [5, 2]
        assert greys(cached.batch([(0, 5), (9, 2)])["pixel_values"]) == [100, 50]
        assert [example.key for example in CachedSet(pairs, processor, (6, 5), encode).records] == [0, 1]

    def test_nothing_readable(self, folder, processor):
        source = open_examples("vqa", [str(write_json(folder / "l.json", [{"image": "3.png", "question": "x"}]))])
        with pytest.raises(ValueError, match=r"none of 1 records could be read, .*3\.png \(not an image in a known"):
            CachedSet(source, processor, (6, 5), encode)

    def test_can_be_sent_to_another_process(self, questions, processor):
        cached = CachedSet(questions, processor, (6, 5), encode)
        same(pickle.loads(pickle.dumps(cached)).batch([(0, 1)]), cached.batch([(0, 1)]))
