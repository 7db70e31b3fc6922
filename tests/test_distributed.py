"""Two processes compute what one does on the same global batch.

What depends on which rank draws what: random negatives come from a rank's own half, and masks, dropout and augmentation
from its own random numbers. Here these are functions of the data, so everything else must agree.
"""

from dataclasses import replace

import pytest
import torch

from albef import distributed
from albef.engine.train import train
from albef.recipe import Optim
from albef.tasks import make_task, ranking
from tests.ranks import two_ranks
from tests.worlds import make_world, tiny_recipe


def reproducible(recipe):
    """Negatives are the neighbours in the batch, masks every third word: no rank draws anything. And the losses of all
    ranks in each step, which fill while it learns."""
    task, seen = make_task(recipe), []
    task.objective.draw_negatives, task.objective.mask_words = neighbours, every_third
    losses = task.losses

    def recorded(*arguments):
        found = losses(*arguments)
        means = {name: distributed.total(loss) / distributed.world_size() for name, loss in found.items()}
        seen.append(torch.stack([means.get(name, torch.zeros(())) for name in ("itc", "itm", "mlm")]))
        return found

    task.losses = recorded
    return task, seen


def neighbours(logits_i2t, logits_t2i, same):
    rows = torch.arange(len(same)) ^ 1
    rows = torch.where(same[torch.arange(len(same)), rows], -1, rows)[:, None]
    return rows, rows


def every_third(input_ids, attention_mask):
    places = (torch.arange(input_ids.shape[1]) % 3 == 1) & attention_mask.bool()
    return input_ids.masked_fill(places, 4), input_ids.masked_fill(~places, -100)


def work(rank, world_size, world, folder, changes):
    torch.set_num_threads(1)
    # a low rate: AdamW makes full steps of rounding noise where a gradient is zero, such as that of key biases
    recipe = tiny_recipe(world, steps=20, optim=Optim(lr=1e-4, min_lr=1e-5, warmup_lr=1e-5, clip_norm=1.0))
    recipe = replace(recipe, objective=replace(recipe.objective, **changes))
    with distributed.session() as device:
        run = folder / f"{world_size}"
        run.mkdir(exist_ok=True)
        task, seen = reproducible(recipe)
        train(lambda *_: task, recipe, run, device)
        # the odd record gives the ranks unequal shares; the last one shows an image that the first rank has, too
        source = [task.data.source[row] for row in (*range(14), 0)]
        gallery = ranking.encode_gallery(task.model, task.processor, source, batch_size=3)
        assert len(gallery.image_tokens) < 14 or world_size == 1, "each rank keeps its own images only"
        scores = torch.stack([to_text for _, (to_text, _) in ranking.two_stage_scores(task.model, gallery, k=4)])
        torch.save((torch.stack(seen), task.objective.state_dict(), scores), folder / f"{world_size}-{rank}.pt")


@pytest.mark.parametrize("changes", [{}, {"align_first": 0.3}, {"itc": False}], ids=str)
def test_two_processes_equal_one(tmp_path, changes):
    world = make_world(tmp_path / "world")
    work(0, 1, world, tmp_path, changes)
    two_ranks(work, 2, world, tmp_path, changes)
    (alone, one, wanted), (first, left, scores), (_, right, others) = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    assert left.keys() == one.keys()
    for name in left:  # student, teacher and queue
        assert torch.equal(left[name], right[name]), f"{name} differs between the ranks"
        torch.testing.assert_close(left[name], one[name], atol=5e-5, rtol=5e-5, msg=lambda m, n=name: f"{n}: {m}")
    # the words of a half are counted over all ranks, so even the mean over masked words is the global one
    torch.testing.assert_close(first, alone, atol=1e-5, rtol=1e-5)
    assert scores.equal(others)
    torch.testing.assert_close(scores, wanted, atol=1e-3, rtol=1e-3)


def test_gather_and_total_are_the_identity_when_alone():
    x = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(distributed.gather(x), x) and not distributed.gather(x).requires_grad
    assert torch.equal(distributed.total(x), x)
