"""Objective and ranking against the same written plainly (`benchmarks/textbook.py`): same weights, same draws."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from albef.engine.optim import make_optimizer
from albef.models.albef import AlbefModel
from albef.models.config import preset
from albef.models.flops import pretraining_flops
from albef.objectives.pretrain import PretrainObjective
from albef.recipe import Optim
from albef.tasks import ranking
from benchmarks import textbook, timing
from benchmarks.flops import FLOOR, OURS, TEXTBOOK, ranking_flops, step_flops
from benchmarks.gallery import measure
from benchmarks.ranking import gallery_of
from benchmarks.step import caption_lengths
from tests.worlds import TINY

CONFIG = replace(TINY, text_layers=2, fusion_layers=3, vision_width=48)
LENGTHS = (9, 3, 12, 5, 7, 2)  # [CLS] included; what they are padded to is the longest
SIZE, MASK_ID, CLS_ID = len(LENGTHS), 4, 2
NEGATIVES = (torch.tensor([1, 0, 5, 2, 2, 4]), torch.tensor([3, 2, 1, 5, 0, 2]))  # images of texts, texts of images


class Ours(PretrainObjective):
    """With the draws of these tests instead of its own."""

    def draw_negatives(self, logits_i2t, logits_t2i, same):
        return NEGATIVES[0][:, None], NEGATIVES[1][:, None]

    def mask_words(self, input_ids, attention_mask):
        return masked(input_ids, attention_mask)


def masked(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Every third word from the second on: hidden, or replaced at even positions. The text of two tokens loses none."""
    places = torch.arange(input_ids.shape[1])
    chosen = attention_mask.bool() & (places >= 2) & (places % 3 == 2)
    hidden = torch.where(places % 2 == 0, (input_ids * 7) % 100 + 5, MASK_ID)
    return torch.where(chosen, hidden, input_ids), input_ids.masked_fill(~chosen, -100)


def texts(lengths: tuple[int, ...], pad_to: int) -> tuple[Tensor, Tensor]:
    mask = (torch.arange(pad_to) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, CONFIG.vocab_size, mask.shape)
    ids[:, 0] = CLS_ID
    return ids * mask, mask


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids, mask = texts(LENGTHS, max(LENGTHS))
    rows = torch.arange(SIZE)
    images = torch.randn(SIZE, 3, *CONFIG.image_size)
    return {"pixel_values": images, "input_ids": ids, "attention_mask": mask, "image_id": rows, "text_id": rows}


@pytest.fixture
def ours() -> Ours:
    torch.manual_seed(0)
    objective = Ours(AlbefModel(CONFIG), queue_size=4 * SIZE, momentum=0.9, mask_id=MASK_ID, cls_id=CLS_ID)
    with torch.no_grad():  # biases and norms that do something, and a teacher that is not the student
        for parameter in (*objective.model.parameters(), *objective.teacher.model.parameters()):
            parameter += 0.02 * torch.randn_like(parameter)
    return objective.train()


@pytest.fixture
def plain(ours) -> textbook.Textbook:
    return textbook.Textbook(ours).train()


def run(objective, batch, alpha: float, **draws) -> dict[str, Tensor]:
    found = objective(batch, alpha, **draws)
    torch.stack(list(found.values())).sum().backward()
    return {name: loss.detach() for name, loss in found.items()}


def draws(batch) -> dict[str, tuple[Tensor, Tensor]]:
    return {"negatives": NEGATIVES, "masked": masked(batch["input_ids"], batch["attention_mask"])}


def close(ours: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float, floor: float = 0.0) -> None:
    """Each tensor differs by at most `tolerance` of its norm; norms below `floor` are rounding."""
    assert ours.keys() == plain.keys()
    for name, expected in plain.items():
        limit = tolerance * max(float(expected.norm()), floor)
        assert float((ours[name] - expected).norm()) <= limit, name


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_losses_and_gradients(ours, plain, batch, alpha):
    expected, found = run(plain, batch, alpha, **draws(batch)), run(ours, batch, alpha)
    for loss, value in expected.items():
        assert float(found[loss]) == pytest.approx(float(value), abs=1e-5), loss
    gradients = textbook.translate({name: grad_of(p) for name, p in ours.model.named_parameters()}, CONFIG)
    plainly = {name: grad_of(p) for name, p in plain.network.named_parameters()}
    # keys' biases move no probability: their gradients are rounding alone
    close(gradients, plainly, 1e-4, floor=1e-3 * max(float(gradient.norm()) for gradient in plainly.values()))


def grad_of(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def test_weights_teacher_and_queues_after_two_steps(ours, plain, batch):
    """The second of other images and captions: ours takes those in the queue for positives if they are the same."""
    later = batch | {name: batch[name] + SIZE for name in ("image_id", "text_id")}
    for objective, given in ((ours, {}), (plain, draws(batch))):
        for inputs in (batch, later):
            run(objective, inputs, 0.4, **given)
            with torch.no_grad():
                for parameter in objective.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.01 * parameter.grad
                        parameter.grad = None
    for model, network in ((ours.model, plain.network), (ours.teacher.model, plain.teacher)):
        close(textbook.translate(model.state_dict(), CONFIG), network.state_dict(), 1e-4)
    torch.testing.assert_close(ours.queue.image_queue.T, plain.image_queue, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.queue.text_queue.T, plain.text_queue, atol=1e-5, rtol=1e-4)
    assert int(ours.queue.pointer) == plain.pointer == 2 * SIZE


def test_both_optimisers_take_the_same_steps(ours, plain):
    """On the same made-up gradients, for AdamW makes whole steps of what is rounding in real ones."""
    optim = Optim(lr=1e-3, weight_decay=0.1)
    for objective, make in ((ours, make_optimizer), (plain, textbook.make_optimizer)):
        optimizer = make(objective, optim)
        for _ in range(2):
            for parameter in objective.parameters():
                if parameter.requires_grad:
                    parameter.grad = parameter.detach().sin() + 0.1
            optimizer.step()
    close(textbook.translate(ours.model.state_dict(), CONFIG), plain.network.state_dict(), 1e-6)


TO_RANK = (4, 12, 2, 7, 9, 3, 5, 11, 6, 8)


@torch.no_grad()
def encoded(model: AlbefModel) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Seven images and ten texts, padded to 30 tokens as the original's."""
    ids, mask = texts(TO_RANK, 30)
    image = model.encode_image(torch.randn(7, 3, *CONFIG.image_size))
    text = model.encode_text(ids, mask)
    return image, model.project_image(image), text, mask, model.project_text(text)


def gallery(model: AlbefModel, everything) -> ranking.Gallery:
    return gallery_of(model, *everything, torch.arange(len(TO_RANK)) % 7)


@pytest.mark.parametrize("k", [3, 7])
def test_ranking(ours, k):
    model = ours.model.eval()
    everything = encoded(model)
    found = dict(ranking.two_stage_scores(model, gallery(model, everything), k))["itm"]
    for scores, expected in zip(found, textbook.rank(textbook.network_of(model).eval(), *everything, k), strict=True):
        assert ((expected > -100).sum(1) == k).all()
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_the_textbook_encodes_alike(ours, plain, batch):
    model = ours.model.eval()
    image, text, z_image, z_text = plain.network.eval().encode(batch)
    torch.testing.assert_close(image, model.encode_image(batch["pixel_values"]), atol=1e-5, rtol=1e-4)
    states = model.encode_text(batch["input_ids"], batch["attention_mask"])
    words = batch["attention_mask"].bool()
    torch.testing.assert_close(text[words], states[words], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(z_image, model.project_image(image), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(z_text, model.project_text(states), atol=1e-5, rtol=1e-4)


def test_its_own_draws(plain, batch):
    """Never a pair itself, and nothing hidden but words."""
    images, captions = textbook.draw(5 * torch.eye(SIZE), 5 * torch.eye(SIZE))
    rows = torch.arange(SIZE)
    assert (images != rows).all() and (captions != rows).all()
    plain.mlm_probability = 1.0
    ids, wanted = plain.mask_words(batch["input_ids"], batch["attention_mask"])
    words = batch["attention_mask"].bool() & (batch["input_ids"] != CLS_ID)
    assert torch.equal(wanted >= 0, words)
    assert torch.equal(ids[~words], batch["input_ids"][~words])
    assert 0.5 < float((ids[words] == MASK_ID).float().mean()) < 1
    assert torch.equal(wanted[words], batch["input_ids"][words])


def counted(function, *arguments) -> float:
    """Operations of products and convolutions, as PyTorch counts them."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops()


def test_operations_of_a_step(ours, plain, batch):
    """Formula against counter; what the formula leaves out is small even here: packed texts' padded attention."""
    asked = (masked(batch["input_ids"], batch["attention_mask"])[1] >= 0).sum()
    share = float(asked) / (sum(LENGTHS) - SIZE)
    for objective, savings, left_out in ((plain, TEXTBOOK, 0.02), (ours, OURS, 0.05)):
        work = partial(run, objective, batch, 0.4, **(draws(batch) if objective is plain else {}))
        expected = SIZE * step_flops(CONFIG, LENGTHS, share, savings=savings)
        assert counted(work) == pytest.approx(expected, rel=left_out)


def test_operations_of_a_ranked_pair(ours):
    model, k = ours.model.eval(), 7
    everything = encoded(model)
    plainly = counted(textbook.rank, textbook.network_of(model), *everything, k) / (7 * k + len(TO_RANK) * k)
    assert plainly == pytest.approx(ranking_flops(CONFIG, TO_RANK, k, padded=30, savings=TEXTBOOK), rel=0.02)
    pairs = torch.ones(7, len(TO_RANK), dtype=torch.bool)
    found = counted(lambda: ranking.match_logits(model, gallery(model, everything), pairs)) / pairs.numel()
    assert found == pytest.approx(ranking_flops(CONFIG, TO_RANK, len(TO_RANK), 7), rel=0.05)


@pytest.mark.parametrize("name", vars(FLOOR))
def test_the_floor_needs_every_saving(name):
    config, words = preset("base"), [12, 25]
    least, most = (step_flops(config, words, savings=way) for way in (FLOOR, TEXTBOOK))
    assert least < step_flops(config, words, savings=replace(FLOOR, **{name: False})) < most
    assert least < step_flops(config, words) < most


@pytest.mark.parametrize("fuse", [True, False])
def test_training_counts_what_we_compute(fuse):
    config, words = preset("base"), [12, 25, 3]
    wanted = step_flops(config, words, 0.2, 3, fuse, OURS)
    assert pretraining_flops(config, words, 0.2, 3, fuse) == pytest.approx(wanted)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory a process has had")
def test_memory_of_ranking_a_whole_test_set():
    sizes = {"preset": "tiny", "images": 6, "captions": 30, "k": 4, "timed": 2}
    config = preset("tiny").at_size(384)
    three_bytes_each = 3 * 6 * config.image_tokens * config.vision_width / 2**30  # GiB
    said = measure(Namespace(**sizes, memory=three_bytes_each, precision="float32"))
    assert said.startswith("6 images, 30 captions, k 4: ") and "in torch.float16" in said


def test_caption_lengths_are_spread_over_the_real_ones():
    lengths = caption_lengths("real", 3000)
    assert sum(lengths) / 3000 == pytest.approx(12.24, abs=0.02)
    assert (lengths[0], lengths[-1], len(set(lengths))) == (3, 25, 23)
    assert caption_lengths("9", 2) == [9, 9]


def test_kinds_take_turns():
    seen = []
    found = timing.interleaved({kind: partial(seen.append, kind) for kind in "ab"}, repeats=3, warm_up=1)
    assert "".join(seen) == "abababab"
    assert found.keys() == {"a", "b"}
    assert timing.summary([(1.0, 5.0), (9.0, 7.0), (2.0, 6.0)]) == timing.Seconds(2.0, 1.0, 9.0, 6.0)


def test_benchmarks_do_not_count_waiting_as_work():
    code = "import sys, benchmarks.timing, os; assert 'torch' in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "passive\n"
