"""The objective: what it draws, what it never draws, and the inputs that break the original."""

import pytest
import torch

from albef.models.albef import AlbefModel
from albef.models.classifier import AlbefForTextAssignment
from albef.models.layout import PackedText
from albef.objectives import losses
from albef.objectives.align import Aligned, Weights
from albef.objectives.classify import AssignObjective
from albef.objectives.momentum import FeatureQueue, MomentumTeacher
from albef.objectives.pretrain import PretrainObjective
from albef.objectives.retrieval import RetrievalObjective
from tests.worlds import TINY


def make_objective(**options):
    torch.manual_seed(0)
    return PretrainObjective(AlbefModel(TINY), queue_size=10, momentum=0.9, mask_id=4, cls_id=2, **options).train()


def make_batch(size=4, image_id=None, text_id=None, words=6):
    torch.manual_seed(size)
    ids = torch.randint(5, 120, (size, words))
    ids[:, 0] = 2
    return {
        "pixel_values": torch.randn(size, 3, 32, 32),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_id": torch.arange(size) if image_id is None else torch.tensor(image_id),
        "text_id": torch.arange(size) + 100 if text_id is None else torch.tensor(text_id),
    }


def learn(objective, batch, alpha=0.4, **options):
    found = objective(batch, alpha, **options)
    sum(found.values()).backward()
    assert all(torch.isfinite(value) for value in found.values())
    assert all(torch.isfinite(p.grad).all() for p in objective.model.parameters() if p.grad is not None)
    return found


def test_three_losses_start_near_guessing():
    found = learn(make_objective(), make_batch(8), alpha=0.0)
    assert list(found) == ["itc", "itm", "mlm"]
    assert 0.3 < found["itm"] < 1.5 and 2 < found["mlm"] < 8


def test_alignment_alone():
    objective = make_objective()
    assert list(learn(objective, make_batch(), fuse=False)) == ["itc"]
    assert all(p.grad is None for p in objective.model.fusion_encoder.parameters())


def test_teacher_follows_and_learns_nothing_itself():
    objective = make_objective()
    with torch.no_grad():
        objective.model.itm_head.bias.add_(1.0)
    learn(objective, make_batch())
    expected = objective.model.itm_head.bias - 0.9  # 0.9 * old + 0.1 * (old + 1)
    torch.testing.assert_close(objective.teacher.model.itm_head.bias, expected)
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())


def test_teacher_drops_nothing_unless_asked():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    assert not MomentumTeacher(model, 0.9).train().model[1].training
    assert MomentumTeacher(model, 0.9, dropout=True).train().model[1].training


@pytest.mark.parametrize("size", [1, 3, 7, 10, 23])
def test_queue_of_any_size_with_any_batch(size):
    queue, features = FeatureQueue(size, 4), torch.randn(40, 4)
    pushed = 0
    for batch in (4, 3, 8, 1, 8):
        rows, ids = features[pushed : pushed + batch], torch.arange(pushed, pushed + batch)
        queue.push(rows, -rows, ids, ids + 100)
        pushed += batch
    kept = range(max(0, pushed - size), pushed)
    assert sorted(queue.image_id[queue.image_id >= 0].tolist()) == list(kept)
    for place, row in enumerate(queue.image_id.tolist()):
        if row >= 0:
            torch.testing.assert_close(queue.image_queue[place], features[row])
            torch.testing.assert_close(queue.text_queue[place], -features[row])
            assert queue.text_id[place] == row + 100
    assert queue.pointer == pushed % size


def test_queues_start_equal_everywhere():
    torch.manual_seed(1)
    first = FeatureQueue(5, 4)
    torch.manual_seed(2)
    torch.testing.assert_close(first.image_queue, FeatureQueue(5, 4).image_queue, atol=0, rtol=0)


def test_batches_larger_than_the_queue_train():
    objective = make_objective()
    for size in (4, 3, 16):
        learn(objective, make_batch(size))


@pytest.mark.parametrize(
    ("image_id", "text_id"),
    [([7, 7, 8, 9], None), (None, [5, 6, 6, 6]), ([7, 7, 8, 8], [1, 2, 2, 3])],
)
def test_same_image_or_caption_is_never_a_negative(image_id, text_id):
    objective, batch = make_objective(), make_batch(4, image_id, text_id)
    related = batch["image_id"][:, None] == batch["image_id"]
    related |= batch["text_id"][:, None] == batch["text_id"]
    drawn = []
    original = objective.draw_negatives

    def spy(*arguments):
        drawn.append(original(*arguments))
        return drawn[-1]

    objective.draw_negatives = spy
    for _ in range(10):
        learn(objective, batch)
    for image_n, text_n in drawn:
        for row in range(4):
            for negative in (image_n[row], text_n[row]):
                assert negative == -1 or not related[row, negative]
        assert (image_n[:, 0] == -1).tolist() == related.all(1).tolist()


def test_itc_does_not_punish_the_same_image():
    positives = torch.tensor([[True, True, False]])
    targets = losses.contrastive_targets(positives, torch.zeros(1, 3), alpha=0.0)
    assert targets.tolist() == [[0.5, 0.5, 0.0]]
    official = losses.contrastive_targets(torch.tensor([[True, False, False]]), torch.zeros(1, 3), alpha=0.3)
    torch.testing.assert_close(official, torch.tensor([[0.8, 0.1, 0.1]]))


def test_queued_twins_are_positives_too():
    objective, batch = make_objective(), make_batch(3)
    objective(batch, 0.0)
    seen = []
    original = losses.contrastive_targets
    try:
        import albef.objectives.align as module

        module.contrastive_targets = lambda same, *rest: seen.append(same) or original(same, *rest)
        objective(batch, 0.0)
    finally:
        module.contrastive_targets = original
    assert seen[0][:, :3].equal(torch.eye(3, dtype=torch.bool))
    assert seen[0][:, 3:6].equal(torch.eye(3, dtype=torch.bool)), "the same pairs, pushed in the step before"


def test_official_behaviour_is_reachable():
    objective, batch = make_objective(official=True), make_batch(3, [1, 1, 1], [2, 2, 2])
    drawn = []
    original = objective.draw_negatives
    objective.draw_negatives = lambda *arguments: drawn.append(original(*arguments)) or drawn[-1]
    learn(objective, batch)
    assert all((row >= 0).all() for row in drawn[0])


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_tiny_batches_do_not_crash(size, official):
    learn(make_objective(official=official), make_batch(size))


def test_batch_of_one_image_does_not_crash():
    found = learn(make_objective(), make_batch(4, image_id=[3, 3, 3, 3]))
    assert found["itm"] > 0, "the true pairs are still learnt from"


def test_saturated_softmax_still_draws():
    logits = torch.full((4, 4), -1e4) + torch.eye(4) * 2e4
    drawn = losses.draw_negatives(logits, torch.eye(4, dtype=torch.bool), count=5)
    assert all(0 <= column < 4 and column != row for row, columns in enumerate(drawn.tolist()) for column in columns)


def test_hard_negatives_are_drawn_more_often():
    torch.manual_seed(0)
    logits = torch.tensor([[9.0, 2.0, 0.0, 0.0]]).expand(4000, 4)
    positives = torch.tensor([[True, False, False, False]]).expand(4000, 4)
    share = losses.draw_negatives(logits, positives).flatten().bincount(minlength=4) / 4000
    expected = torch.tensor([0.0, *torch.tensor([2.0, 0.0, 0.0]).softmax(0)])
    torch.testing.assert_close(share, expected, atol=0.03, rtol=0)


def matching(positive, negative, drawn):
    weights = losses.matching_weights(len(positive), torch.tensor(drawn))
    return losses.matching_losses(torch.cat([positive, negative]), len(positive), weights).sum() / weights.sum()


def test_matching_loss_is_the_papers_mean_with_one_negative_each():
    torch.manual_seed(0)
    positive, negative = torch.randn(3, 2), torch.randn(6, 2)
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0])
    plain = torch.nn.functional.cross_entropy(torch.cat([positive, negative]), labels)
    torch.testing.assert_close(matching(positive, negative, [0] * 6), plain)
    torch.testing.assert_close(matching(positive, negative.repeat(2, 1), [0] * 12), plain)  # they share a weight


def test_rows_without_a_negative_count_nothing():
    positive, negative = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [9.0, 0.0]] * 2)
    expected = (2 * torch.tensor(2.0).log() + 2 * torch.log1p(torch.tensor(-9.0).exp())) / 4
    torch.testing.assert_close(matching(positive, negative, [-1, 1, -1, 1]), expected)


def test_several_negatives_train():
    learn(make_objective(itm_negatives=5), make_batch())


def test_nothing_masked_gives_zero():
    found = learn(make_objective(mlm_probability=0.0), make_batch())
    assert found["mlm"] == 0


def test_captions_of_one_token_train():
    learn(make_objective(), make_batch(words=1))


def test_masking_follows_berts_shares():
    torch.manual_seed(0)
    ids = torch.full((400, 50), 50)
    ids[:, 0] = 2
    mask = torch.ones_like(ids)
    mask[:, 40:] = 0
    masked, labels = losses.mask_words(ids, mask, 0.15, mask_id=4, cls_id=2, vocab_size=1000)
    chosen = labels >= 0
    assert not chosen[:, 0].any() and not chosen[:, 40:].any()
    assert chosen[:, 1:40].float().mean().item() == pytest.approx(0.15, abs=0.01)
    became_mask = (masked[chosen] == 4).float().mean().item()
    stayed = (masked[chosen] == 50).float().mean().item()
    assert became_mask == pytest.approx(0.8, abs=0.02) and stayed == pytest.approx(0.1, abs=0.02)
    assert (masked[~chosen] == ids[~chosen]).all() and (labels[chosen] == 50).all()


def test_masked_word_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0]])
    teacher = torch.tensor([[100.0, 0.0]])
    (loss,) = losses.masked_word_losses(logits, torch.tensor([1]), teacher, 0.4)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_temperature_stays_in_its_range():
    objective = make_objective()
    for start, kept in ((0.9, 0.5), (1e-5, 0.001)):
        objective.model.temp.data.fill_(start)
        learn(objective, make_batch())
        assert objective.model.temp.item() == pytest.approx(kept)


def stepped(alpha=0.4, **options):
    objective = make_objective(**options)
    torch.manual_seed(5)
    return objective.step(make_batch(), alpha)


def test_a_step_can_be_looked_into():
    """What lies inside is what the losses are made of."""
    found = stepped(itm_negatives=2)
    rows = torch.arange(4)
    assert found.aligned.targets_i2t.shape == found.aligned.logits_t2i.shape == (4, 14)
    torch.testing.assert_close(found.aligned.targets_t2i.sum(1), torch.ones(4))
    assert found.aligned.first == 0 and found.aligned.same[rows, rows].all()
    torch.testing.assert_close(found.losses["itc"], found.aligned.losses.mean())
    assert found.matched.image_n.shape == found.matched.text_n.shape == (4, 2)
    assert found.matched.logits.shape == (20, 2) and found.matched.losses.shape == (20,)
    torch.testing.assert_close(found.losses["itm"], found.matched.losses.sum() / found.matched.count)
    assert found.taught.word_logits.shape == found.filled.logits.shape == (len(found.filled.losses), 120)
    torch.testing.assert_close(found.losses["mlm"], found.filled.losses.mean())
    assert found.features.image.requires_grad and not found.taught.word_logits.requires_grad


def test_only_the_ends_of_a_step_change_anything():
    objective, batch = make_objective(), make_batch()
    words = batch_words(batch)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    with torch.no_grad():
        taught = objective.features(objective.teacher.model, batch, words)
        found = objective.features(objective.model, batch, words)
        aligned = objective.align(batch, found, taught, 0.4)
    assert all(before[name].equal(tensor) for name, tensor in objective.state_dict().items())
    objective.end_step(aligned)
    assert objective.queue.pointer == 4


def batch_words(batch):
    return PackedText.of(batch["attention_mask"])


def test_weights_of_the_losses():
    plain, heavy = stepped().losses, stepped(weights=Weights(2.0, 3.0, 0.5, 2.0, 0.5)).losses
    for name, weight in (("itc", 2.0), ("itm", 3.0), ("mlm", 0.5)):
        torch.testing.assert_close(heavy[name], weight * plain[name])


def test_weights_of_momentum_distillation():
    """`(1 - alpha) * hard + alpha * soft`, each with its weight; the loss is linear in the targets."""
    hard, soft = stepped(0.0).losses, stepped(1.0).losses
    mixed = stepped(0.4, weights=Weights(itc=2.0, mlm=3.0, itc_mod=0.5, mlm_mod=0.25)).losses
    torch.testing.assert_close(mixed["itc"], 0.6 * 2.0 * hard["itc"] + 0.4 * 0.5 * soft["itc"])
    torch.testing.assert_close(mixed["mlm"], 0.6 * 3.0 * hard["mlm"] + 0.4 * 0.25 * soft["mlm"])
    assert stepped(1.0, weights=Weights(itc_mod=0.0)).losses["itc"] == 0


@pytest.mark.parametrize("name", ["itc", "mlm"])
def test_momentum_distillation_per_loss(name):
    hard, mixed, one = stepped(0.0).losses, stepped(0.4).losses, stepped(0.4, distill=[name]).losses
    other = {"itc": "mlm", "mlm": "itc"}[name]
    assert one[name] == mixed[name] and one[other] == hard[other] != mixed[other]


@pytest.mark.parametrize("kind", [PretrainObjective, RetrievalObjective])
def test_even_negatives(kind):
    logits = torch.tensor([[0.0, 50.0, 0.0, 0.0]]).expand(400, 4)
    same = torch.tensor([[True, False, False, False]]).expand(400, 4)
    for hard, least in ((True, 0), (False, 90)):
        objective = kind(AlbefModel(TINY), queue_size=10, hard_negatives=hard)
        torch.manual_seed(0)
        for drawn in objective.draw_negatives(logits, logits, same):
            assert drawn.flatten().bincount(minlength=4)[2:].min() >= least


@pytest.mark.parametrize(("hardness", "temperature"), [(0.0, 1.0), (0.5, 0.2), (1.0, 0.04)])
@pytest.mark.parametrize("kind", [PretrainObjective, RetrievalObjective])
def test_negatives_harden(kind, hardness, temperature):
    """The temperature that they are drawn at goes geometrically from 1 to the model's own."""
    objective = kind(AlbefModel(TINY), queue_size=10, itm_negatives=4000)
    objective.model.temp.data.fill_(0.04)
    similarities = torch.tensor([[0.9, 0.5, 0.45, 0.4]]).expand(4, 4)
    same = torch.tensor([[True, False, False, False]]).expand(4, 4)
    logits = similarities / objective.model.temp
    aligned = Aligned(logits, logits, logits, logits, same, 0, logits, ())
    own = aligned.among_own(objective.softening(hardness))
    torch.testing.assert_close(own[0], similarities / temperature)
    assert hardness < 1 or own[0].equal(logits), "at the end exactly the model's own logits"
    wanted = (similarities[0, 1:] / temperature).softmax(0)
    assert wanted[0] == pytest.approx({0.0: 1 / 3, 0.5: 0.42, 1.0: 0.73}[hardness], abs=0.03)
    torch.manual_seed(0)
    for drawn in objective.draw_negatives(*own):
        shares = drawn.flatten().bincount(minlength=4) / drawn.numel()
        torch.testing.assert_close(shares[1:], wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", [PretrainObjective, RetrievalObjective])
def test_a_step_draws_by_its_hardness(kind):
    drawn_from = {}
    for hardness in (0.0, 1.0, None):
        torch.manual_seed(0)
        objective = kind(AlbefModel(TINY), queue_size=10)
        draw = objective.draw_negatives
        objective.draw_negatives = lambda *own, key=hardness, draw=draw: drawn_from.update({key: own}) or draw(*own)
        objective.step(make_batch(), 0.4, **({} if hardness is None else {"hardness": hardness}))
    for even, hard, paper in zip(drawn_from[0.0][:2], drawn_from[1.0][:2], drawn_from[None][:2], strict=True):
        torch.testing.assert_close(even, hard * objective.model.temp.detach())
        assert hard.equal(paper) and not hard.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_draws_evenly(value):
    logits = torch.zeros(300, 4)
    logits[:, 1:] = value
    same = torch.tensor([[True, False, False, False]]).expand(300, 4)
    drawn = losses.draw_negatives(logits, same).flatten().bincount(minlength=4)
    assert drawn[0] == 0 and drawn[1:].min() > 60
    assert losses.draw_negatives(logits, torch.ones_like(same)).eq(-1).all()


@pytest.mark.parametrize("official", [False, True])
def test_a_model_that_is_not_finite_gives_a_loss_that_is_not(official):
    """No draw raises on the way: the loop says what happened, in its own words."""
    for objective in (make_objective(official=official), RetrievalObjective(AlbefModel(TINY), 10, official=official)):
        objective.model.vision_proj.weight.data[0, 0] = float("nan")
        assert objective(make_batch(), 0.4)["itc"].isnan()
    objective = AssignObjective(AlbefForTextAssignment(TINY), official)
    for where in (objective.model.vision_proj, objective.model.visual_encoder.norm):
        where.weight.data.fill_(float("nan"))
        found = objective(make_batch())["assign"]
    assert found.isnan()
