import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from albef.data.augment import RandAugment, TrainTransform
from albef.data.broken import BrokenCounter
from albef.data.images import open_image
from albef.data.loader import StepBatches, make_loader
from albef.data.records import Record
from albef.data.sources import open_sources
from albef.data.training_set import CachedSet, Collate, TrainingSet, caption_batch, caption_draws, stable_id
from albef.errors import AlbefRuntimeError
from tests.data.conftest import image, write_json, write_tar


@pytest.fixture
def source(colours):
    return open_sources([str(colours)])


@pytest.fixture
def half_broken(tmp_path):
    """Eight samples: every other image is damaged, and one has no caption."""
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"damage" if number % 2 else image((number * 30,) * 3))
        (tmp_path / f"{number}.txt").write_text("" if number == 6 else f"dog {number}")
    return open_sources([str(tmp_path)])


def same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.equal(second[key]) if isinstance(value, torch.Tensor) else value == second[key], key


def collated(processor):
    return Collate(partial(caption_batch, processor, None))


def cached_set(source, processor, image_size=(16, 24), max_tokens=None, seed=0):
    return CachedSet(source, processor, image_size, partial(caption_batch, processor, max_tokens), seed)


def test_stable_ids_never_change():
    assert stable_id("a dog") == 9151722581430185315
    assert stable_id("a cat") != stable_id("a dog")
    assert 0 <= stable_id("\ud83d") < 2**63


def test_caption_draws_are_even_and_independent():
    pairs = [(epoch, index) for epoch in range(20) for index in range(500)]
    draws = caption_draws(3, pairs)
    assert len(set(draws.tolist())) == len(pairs)
    counts = np.bincount((draws % np.uint64(5)).astype(int), minlength=5)
    assert (abs(counts - 2000) < 4 * 2000**0.5).all()
    np.testing.assert_array_equal(caption_draws(3, pairs[7:9]), draws[7:9])
    assert not np.array_equal(caption_draws(4, pairs), draws)


class TestTrainingSet:
    def test_a_sample(self, source, processor):
        sample = TrainingSet(source, processor)[0, 3]
        assert sample["pixel_values"].shape == (1, 3, 16, 24)
        assert sample["pixel_values"].unique().tolist() == [60]
        (caption,) = sample["record"].captions
        assert caption in ("A dog 3.", "a cat 3")
        assert sample["record"] == replace(source[3], image=b"", captions=[caption])
        assert sample["broken"] == []

    def test_depends_on_seed_epoch_and_index_only(self, source, processor):
        def samples(seed):
            transform = TrainTransform((8, 8), augment=RandAugment())
            data = TrainingSet(source, processor, transform, seed)
            return [data[epoch, index] for epoch in range(6) for index in (0, 5)]

        for first, second in zip(samples(1), samples(1), strict=True):
            same(first, second)
        captions = {seed: [sample["record"].captions[0] for sample in samples(seed)] for seed in (1, 2)}
        assert len(set(captions[1])) == 4
        assert captions[1] != captions[2]

    def test_broken_images_are_replaced_and_named(self, half_broken, processor):
        data = TrainingSet(half_broken, processor)
        good = {half_broken[n].image_id for n in (0, 2, 4)}
        for index in range(8):
            sample = data[0, index]
            assert sample["record"].image_id in good
            reasons = {name.rpartition("/")[2]: reason for name, reason in sample["broken"]}
            assert (f"{index}.png" in reasons) == (index % 2 == 1 or index == 6)
            assert reasons.pop("6.png", "it has no caption") == "it has no caption"
            assert set(reasons.values()) <= {"not an image in a known format"}
            same(sample, data[0, index])

    def test_damaged_texts_and_missing_files_are_replaced_too(self, tmp_path, processor):
        tar = write_tar(tmp_path / "x.tar", {"0.png": image(), "0.json": b"{", "1.png": image(), "1.txt": b"dog"})
        file = write_json(tmp_path / "l.json", [{"image": "gone.png", "caption": "x"}])
        data = TrainingSet(open_sources([str(tar), str(file)]), processor)
        names = [data[0, index]["broken"][0][0] for index in (0, 2)]
        assert names == ["record 0", str(tmp_path / "gone.png")]

    def test_gives_up_when_nothing_can_be_read(self, tmp_path, processor):
        file = write_json(tmp_path / "l.json", [{"image": "gone.png", "caption": "x"}])
        with pytest.raises(RuntimeError, match=r"20 images in a row could not be read, .*gone\.png \(no such file\)"):
            TrainingSet(open_sources([str(file)]), processor)[0, 0]


class TestStepBatches:
    def test_every_epoch_is_a_new_permutation_without_the_rest(self):
        batches = list(StepBatches(10, 4, steps=6))
        assert [len(batch) for batch in batches] == [4] * 6
        assert [pair[0] for batch in batches for pair in batch] == [0] * 8 + [1] * 8 + [2] * 8
        epochs = [[index for batch in batches[i : i + 2] for _, index in batch] for i in (0, 2, 4)]
        assert all(len(set(epoch)) == 8 for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]

    @pytest.mark.parametrize("world", [1, 2, 4])
    def test_a_step_has_the_same_samples_for_any_number_of_ranks(self, world):
        whole = list(StepBatches(50, 8, steps=20, seed=5))
        ranks = [list(StepBatches(50, 8, steps=20, seed=5, rank=rank, world=world)) for rank in range(world)]
        for step in range(20):
            assert [len(rank[step]) for rank in ranks] == [8 // world] * world
            assert list(itertools.chain(*(rank[step] for rank in ranks))) == whole[step]

    @pytest.mark.parametrize("start", [0, 1, 6, 7, 20])
    def test_goes_on_at_any_step(self, start):
        rest = StepBatches(50, 8, steps=20, seed=5, start=start)
        assert list(rest) == list(StepBatches(50, 8, steps=20, seed=5))[start:]
        assert len(rest) == 20 - start

    def test_seeds_differ(self):
        assert list(StepBatches(50, 8, 3, seed=1)) != list(StepBatches(50, 8, 3, seed=2))

    def test_wrong_sizes(self):
        with pytest.raises(ValueError, match=r"batch_size 11 must lie in 1..10, the number of samples; lower it"):
            StepBatches(10, 11, 1)
        with pytest.raises(ValueError, match="batch_size 10 must divide by the 4 ranks"):
            StepBatches(10, 10, 1, world=4)
        with pytest.raises(ValueError, match="and rank 2 be one of them"):
            StepBatches(10, 10, 1, rank=2, world=2)


class TestLoading:
    def test_batch(self, source, processor):
        batches = StepBatches(12, 4, steps=3)
        collate = Collate(partial(caption_batch, processor, 3))
        batch = next(iter(make_loader(TrainingSet(source, processor), batches, collate)))
        assert batch["pixel_values"].shape == (4, 3, 16, 24)
        assert batch["pixel_values"].dtype == torch.uint8
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 3)
        assert batch["image_id"].dtype == batch["text_id"].dtype == torch.int64
        assert batch["image_id"].tolist() == [stable_id(source[index].image_id) for _, index in batches.batch(0)]
        assert batch["broken"] == []

    def test_captions_are_cleaned_and_padded_to_the_longest(self, processor):
        pixels = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
        first, second = Record("a", b"", ["A DOG!"], "1"), Record("b", b"", [""], "2")
        batch = collated(processor)(
            [
                {"pixel_values": pixels, "record": first, "broken": []},
                {"pixel_values": pixels, "record": second, "broken": [("a", "b")]},
            ]
        )
        expected = processor.texts(["a dog", ""], clean=False)
        assert batch["input_ids"].equal(expected["input_ids"])
        assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
        assert batch["text_id"].tolist() == [stable_id("a dog"), stable_id("")]
        assert batch["broken"] == [("a", "b")]

    def test_workers_give_the_same_batches(self, source, processor):
        def batches(workers, start):
            data = TrainingSet(source, processor, TrainTransform((8, 8), augment=RandAugment()), seed=2)
            steps = StepBatches(len(data), 4, steps=5, seed=2, start=start)
            return list(make_loader(data, steps, collated(processor), workers))

        alone, together = batches(0, start=0), batches(2, start=1)
        assert len(together) == 4
        for first, second in zip(alone[1:], together, strict=True):
            same(first, second)


SLOW_LOADER = """
import signal, time
from albef.data.loader import make_loader

class Slow:
    def __getitem__(self, index):
        time.sleep(0.1)
        return index

if __name__ == "__main__":
    caught = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: caught.append(number))
    batches = iter(make_loader(Slow(), [[index] for index in range(30)], list, workers=2))
    print(next(batches), flush=True)
    while len(caught) < 2:
        time.sleep(0.01)
    print(caught, sum(index for [index] in batches), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a group")
class TestSignals:
    """A process that trains is signalled with its whole group, as a terminal and torchrun do."""

    @pytest.fixture
    def trainer(self, tmp_path):
        """Has had its first batch. Its output ends when the last process that it left has ended."""
        (tmp_path / "slow.py").write_text(SLOW_LOADER)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, str(tmp_path / "slow.py")]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        ) as process:
            assert process.stdout.readline() == "[0]\n"
            yield process
            process.kill()

    def test_workers_live_on_while_the_run_is_saved(self, trainer):
        os.killpg(trainer.pid, signal.SIGINT)
        os.killpg(trainer.pid, signal.SIGTERM)
        rest, _ = trainer.communicate(timeout=60)
        assert rest.endswith(f"] {sum(range(1, 30))}\n")
        assert trainer.returncode == 0

    def test_workers_end_with_a_process_that_is_killed(self, trainer):
        os.killpg(trainer.pid, signal.SIGKILL)
        assert trainer.communicate(timeout=60) == ("", None)


def ran(tmp_path, script):
    """What a script says, on both channels."""
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "script.py")]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment).stdout


def test_a_script_without_its_guard_is_told_so(tmp_path):
    script = "from albef.data.loader import make_loader\nnext(iter(make_loader([1, 2], [[0], [1]], list, workers=1)))\n"
    last = ran(tmp_path, script).strip().splitlines()[-1]
    assert "a process that loads images ended unexpectedly" in last
    assert 'a script must put what it does under `if __name__ == "__main__":`' in last


@pytest.mark.skipif(sys.platform == "win32", reason="groups of processes")
def test_importing_every_module_leaves_the_process_in_its_group(tmp_path):
    script = "import os\nbefore = os.getpgid(0)\nimport albef.data.forkserver\nprint(os.getpgid(0) == before)\n"
    assert ran(tmp_path, script) == "True\n"


class TestCachedSet:
    def test_same_batch_as_the_loader_but_for_augmentation(self, source, processor):
        whole = TrainTransform(processor.image_size, scale=None, flip=False)
        data = TrainingSet(source, processor, whole, seed=9)
        cached = cached_set(source, processor, (16, 24), seed=9)
        for batch in StepBatches(len(cached), 5, steps=6, seed=9):
            same(cached.batch(batch), collated(processor)([data[pair] for pair in batch]))

    def test_own_size(self, source, processor):
        cached = cached_set(source, processor, (6, 5), max_tokens=2)
        assert cached.pixels.shape == (12, 3, 6, 5)
        assert cached.batch([(0, 11), (3, 0)])["input_ids"].shape == (2, 2)
        assert cached.batch([(0, 11)])["pixel_values"].unique().tolist() == [220]
        assert processor.image_size == (16, 24)

    def test_resizing_is_the_processors(self, tmp_path, processor):
        (tmp_path / "a.png").write_bytes(image((3, 140, 250), size=(90, 70)))
        (tmp_path / "a.txt").write_text("dog")
        cached = cached_set(open_sources([str(tmp_path)]), processor)
        assert cached.pixels[0].equal(processor.resize(open_image(tmp_path / "a.png")))

    def test_broken_images_are_never_drawn(self, half_broken, processor):
        cached = cached_set(half_broken, processor)
        assert len(cached) == 3
        assert [name[-5:] for name, _ in cached.broken] == ["1.png", "3.png", "5.png", "6.png", "7.png"]
        batch = cached.batch([(0, index) for index in range(3)])
        assert batch["image_id"].tolist() == [stable_id(half_broken[n].image_id) for n in (0, 2, 4)]
        assert batch["pixel_values"].flatten(1).float().mean(1).tolist() == [0, 60, 120]

    def test_nothing_readable(self, tmp_path, processor):
        file = write_json(tmp_path / "l.json", [{"image": "gone.png", "caption": "x"}])
        with pytest.raises(ValueError, match=r"none of 1 records could be read, .*gone\.png \(no such file\)"):
            cached_set(open_sources([str(file)]), processor)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_worker_is_raised_as_it_is(tmp_path, processor, workers):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"damage")
        (tmp_path / f"{number}.txt").write_text("a dog")
    training = TrainingSet(open_sources([str(tmp_path)]), processor)
    loader = make_loader(training, StepBatches(2, 2, 1), collated(processor), workers)
    with pytest.raises(AlbefRuntimeError, match=r"^20 images in a row could not be read, .*; check the data$"):
        next(iter(loader))


class TestBrokenCounter:
    def test_stops_over_the_limit_after_a_while(self):
        counter = BrokenCounter(limit=0.1, patience=100)
        counter.add([("a.jpg", "damaged")] * 5, read=10)
        counter.check()
        counter.add([(f"{n}.jpg", "empty") for n in range(20)], read=70)
        message = r"25 of 105 images \(23.81%\) could not be read: a.jpg \(damaged\), 0.jpg \(empty\), .* and 11 more"
        with pytest.raises(RuntimeError, match=message + r"\. More than 10\.00% is not tolerated: mend or remove"):
            counter.check()

    def test_small_sets_are_judged_at_the_end(self):
        counter = BrokenCounter()
        counter.add([("a.jpg", "damaged")], read=50)
        counter.check()
        with pytest.raises(RuntimeError, match=r"1 of 51 images"):
            counter.check(final=True)

    def test_few_broken_images_are_tolerated(self):
        counter = BrokenCounter()
        counter.add([("a.jpg", "damaged")], read=9999)
        counter.check(final=True)
        assert counter.report() == "1 of 10,000 images (0.01%) could not be read: a.jpg (damaged)"

    def test_nothing_seen(self):
        counter = BrokenCounter()
        counter.check(final=True)
        assert counter.report() == "all of 0 images could be read"
