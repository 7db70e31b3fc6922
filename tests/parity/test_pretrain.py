"""Pre-training steps replayed with the recorded draws: losses, gradients, teacher and queues of the official code."""

import pytest
import torch
import torch.nn.functional as F

from albef.models.names import ALIASES, POSITION_IDS
from albef.objectives import align, losses
from tests.parity import golden
from tests.parity.replay import gradients, recorded_step, replay_draws, start, teacher_state

STEPS = ("pretrain_alpha0", "pretrain_alpha04")
UNTRAINED = {*ALIASES, POSITION_IDS}


class Watch:
    """Everything that passed through the objective's parts in one forward: outputs of modules, calls of losses."""

    def __init__(self, objective, monkeypatch):
        self.seen = {}
        for side, model in (("", objective.model), ("_m", objective.teacher.model)):
            for name, module in model.named_children():
                last = module.layers[-1].feed_forward if name == "fusion_encoder" else module
                last.register_forward_hook(lambda _, __, output, key=name + side: self._note(key, output))
        for name in ("contrastive_targets", "soft_cross_entropies"):
            original = getattr(align, name)
            monkeypatch.setattr(align, name, lambda *args, f=original, key=name: self._call(key, f, args))

    def _note(self, key, output):
        self.seen.setdefault(key, []).append(output)

    def _call(self, key, function, args):
        result = function(*args)
        self._note(key, (args, result))
        return result

    def __getitem__(self, key):
        return self.seen[key]


@pytest.fixture(scope="module", params=STEPS)
def step(request):
    """One forward and backward pass, watched."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        batch, record, tensors = recorded_step(request.param)
        objective = start()
        replay_draws(objective, tensors)
        watch = Watch(objective, monkeypatch)
        found = objective(batch, record["alpha"])
        sum(found.values()).backward()
    return objective, watch, found, record, tensors


def test_losses(step):
    _, watch, found, record, _ = step
    for ours, theirs in (("mlm", "loss_mlm"), ("itc", "loss_ita"), ("itm", "loss_itm")):
        golden.close(found[ours], torch.tensor(record[theirs]), ours)
    for (_, rows), name in zip(watch["soft_cross_entropies"], ("loss_i2t", "loss_t2i"), strict=True):
        golden.close(rows.mean(), torch.tensor(record[name]), name)


def test_features(step):
    _, watch, _, _, tensors = step
    for ours, theirs in (("visual_encoder", "image_embeds"), ("visual_encoder_m", "image_embeds_m")):
        golden.close(watch[ours][0], tensors[theirs], theirs)
    words = tensors["attention_mask"].bool()  # ours computes nothing for padding
    golden.close(watch["text_encoder"][0][: words.sum()], tensors["text_embeds"][words])  # the masked texts follow
    for ours, theirs in (("vision_proj", "image_feat"), ("text_proj", "text_feat")):
        golden.close(F.normalize(watch[ours][0], dim=-1), tensors[theirs], theirs)
        golden.close(F.normalize(watch[f"{ours}_m"][0], dim=-1), tensors[f"{theirs}_m"], f"{theirs}_m")


@pytest.mark.parametrize(("index", "name"), [(0, "sim_i2t"), (1, "sim_t2i")])
def test_similarities_and_targets(step, index, name):
    _, watch, _, _, tensors = step
    (_, teacher_logits, _), targets = watch["contrastive_targets"][index]
    (logits, _), _ = watch["soft_cross_entropies"][index]
    golden.close(teacher_logits, tensors[f"{name}_m"], f"{name}_m")
    golden.close(targets, tensors[f"{name}_targets"], f"{name}_targets")
    golden.close(logits, tensors[name], name)


def test_sampling_weights(step, monkeypatch):
    """Ours leaves the pair itself out before the softmax, so rows sum to one; the original's do after scaling."""
    objective, _, _, _, tensors = step
    logits_i2t, logits_t2i, same = objective.drawn_from
    seen, multinomial = [], torch.multinomial

    def watched(weights, *arguments, **options):
        seen.append(weights)
        return multinomial(weights, *arguments, **options)

    monkeypatch.setattr(losses.torch, "multinomial", watched)
    for logits in (logits_i2t, logits_t2i):
        losses.draw_negatives(logits, same)
    for ours, name in zip(seen, ("weights_i2t", "weights_t2i"), strict=True):
        golden.close(ours, F.normalize(tensors[name], p=1, dim=1), name)


def test_itm_logits(step):
    _, watch, _, _, tensors = step
    true, with_texts, with_images = watch["itm_head"][0].chunk(3)  # the original has negative images first
    golden.close(torch.cat([true, with_images, with_texts]), tensors["vl_output"])
    assert int(tensors["itm_labels"].sum()) * 3 == len(tensors["itm_labels"]) == len(watch["itm_head"][0])


@pytest.mark.parametrize(("side", "name"), [("", "mlm_logits"), ("_m", "logits_m")])
def test_mlm_logits(step, side, name):
    objective, watch, _, _, tensors = step
    model = objective.teacher.model if side else objective.model
    fused = watch[f"fusion_encoder{side}"][-1]
    golden.close(model.fill_in(fused[0]), tensors[f"{name}_row0"], f"{name}_row0")
    if f"{name}_at_masked" in tensors:
        asked, places = tensors["mlm_labels"] >= 0, tensors["masked_positions"]
        logits = torch.zeros(*asked.shape, model.config.vocab_size)
        logits[asked] = watch[f"mlm_head{side}"][0].detach()
        golden.close(logits[places[:, 0], places[:, 1]], tensors[f"{name}_at_masked"], name)


def test_gradients(step):
    objective, _, _, _, tensors = step
    ours = gradients(objective)
    for name in tensors:
        if name.startswith("grad."):
            golden.close(ours[name.removeprefix("grad.")], tensors[name], name, rtol=1e-3)


def test_gradient_norms(step):
    objective, _, _, record, _ = step
    ours = {name: float(gradient.norm()) for name, gradient in gradients(objective).items() if name not in UNTRAINED}
    assert ours.keys() == record["grad_norms"].keys() | set(record["no_grad_params"])
    total = record["total_grad_norm"]
    noise = 1e-6 * total  # keys' biases have no gradient but rounding
    assert not any(ours[name] for name in record["no_grad_params"])
    for name, norm in record["grad_norms"].items():
        assert ours[name] == pytest.approx(norm, rel=1e-3, abs=noise), name
    assert sum(norm**2 for norm in ours.values()) ** 0.5 == pytest.approx(total, rel=1e-3)


def test_teacher_after_the_step(step):
    objective, _, _, record, tensors = step
    ours = teacher_state(objective)
    for name, digest in record["momentum_state_digest"].items():
        golden.assert_digest(ours[name], digest, name, atol=1e-6)
    for name in tensors:
        if name.startswith("after_momentum."):
            golden.close(ours[name.removeprefix("after_momentum.")], tensors[name], name, atol=1e-6, rtol=1e-5)


def test_queues_after_the_step(step):
    objective, _, _, _, tensors = step
    for name in ("image_queue", "text_queue"):
        golden.close(getattr(objective.queue, name).T, tensors[f"{name}_after"], name)
    assert int(objective.queue.pointer) == int(tensors["queue_ptr_after"])


@pytest.mark.parametrize("name", STEPS)
def test_mended_objective_agrees_where_no_pairs_coincide(name):
    batch, record, tensors = recorded_step(name)
    if len(set(record["texts"])) < len(record["texts"]):
        pytest.skip("two texts of the batch are equal: the mended objective takes them for positives")
    found = []
    for official in (True, False):
        objective = start(official)
        replay_draws(objective, tensors)
        found.append(objective(batch, record["alpha"]))
    for loss, value in found[0].items():
        golden.close(found[1][loss], value, loss, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", golden.json_of("pretrain_temp_clamp"), ids=lambda case: f"{case['temp_in']:g}")
def test_temperature_is_clamped(case):
    batch, record, tensors = recorded_step("pretrain_alpha04")
    objective = start()
    replay_draws(objective, tensors)
    objective.negatives = None  # where the original has nothing to draw from, ours has
    with torch.no_grad():
        objective.model.temp.fill_(case["temp_in"])
    found = objective(batch, record["alpha"])
    assert objective.model.temp.item() == pytest.approx(case["temp_after"], rel=1e-6)
    assert all(torch.isfinite(loss) for loss in found.values())  # also where the original stops with an error
    if "error" not in case:
        golden.close(found["itc"], torch.tensor(case["loss_ita"]), "itc")
