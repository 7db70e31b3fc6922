"""Visual entailment, NLVR2 and text assignment against the official losses, gradients and predictions."""

import pytest
import torch

from albef.models.names import to_official
from albef.objectives.classify import AssignObjective, ClassifyObjective
from tests.parity import golden

MOMENTUM = 0.995  # fixed in the official code


def batch_of(name):
    record, tensors = golden.json_of(name), golden.tensors_of(name)
    if name == "ve":
        pixels = golden.images("downstream", record["image_index"])
    else:
        images = (golden.images("downstream", record[f"image{side}_index"]) for side in (0, 1))
        pixels = torch.stack(list(images), dim=1)
    words = {key: tensors[key] for key in ("input_ids", "attention_mask")}
    return {"pixel_values": pixels, **words, "labels": tensors["targets"]}


def learner(name, distill):
    """The objective as the official script starts it; NLVR2's is recorded whole, with a teacher of its own."""
    if name == "nlvr":
        model, teacher = golden.model("nlvr"), golden.checkpoint("nlvr").teacher
    else:
        model, teacher, _ = golden.started(name)
    made = ClassifyObjective(model, MOMENTUM, distill)
    if distill:
        assert made.teacher is not None and teacher is not None
        made.teacher.model.load_state_dict(teacher)
    return made.train()


def cases(name):
    return [(name, case) for case in golden.json_of(name)["cases"]]


@pytest.mark.parametrize(("name", "case"), cases("ve") + cases("nlvr"))
def test_step(name, case):
    recorded = golden.json_of(name)["cases"][case]
    made = learner(name, recorded["distill"])
    loss = made(batch_of(name), recorded["alpha"])["classify"]
    loss.backward()
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-4, abs=1e-4)
    norms = [parameter.grad.norm() for parameter in made.model.parameters() if parameter.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(recorded["total_grad_norm"], rel=1e-3)
    wanted = golden.tensors_of(name).get(f"{case}.prediction_m")
    if wanted is not None:
        batch = batch_of(name)
        with torch.no_grad():
            got = made.teacher.model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"]).logits
        golden.close(got, wanted, f"{case}.prediction_m")


@pytest.mark.parametrize("name", ["ve", "nlvr"])
def test_predictions(name):
    model = golden.started("ve")[0].eval() if name == "ve" else golden.model("nlvr")
    batch = batch_of(name)
    with torch.no_grad():
        got = model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"]).logits
    golden.close(got, golden.tensors_of(name)["prediction"])
    if name == "ve":
        accuracy = (got.argmax(1) == batch["labels"]).float().mean().item()
        assert f"{accuracy:.4f}" == golden.json_of("ve")["evaluate"]["acc"]


class Replay(AssignObjective):
    """Takes the recorded pairs instead of its own."""

    pairs: tuple

    def draw_pairs(self, tokens, image_id=None):
        self.drawn_from = self.weights(tokens)
        return self.pairs


def test_text_assignment():
    record, tensors = golden.json_of("nlvr_ta"), golden.tensors_of("nlvr_ta")
    made = Replay(golden.started("nlvr_ta")[0], official=True).train()
    made.pairs = tensors["pairs"], tensors["labels"]
    count = len(record["texts"])
    batch = {
        "pixel_values": golden.images("pretrain", list(range(count))),
        "input_ids": tensors["input_ids"],
        "attention_mask": tensors["attention_mask"],
    }
    with golden.outputs_of(made.model.ta_head) as logits:
        loss = made(batch)["assign"]
    golden.close(torch.cat(logits), tensors["pred"], "pred")
    loss.backward()
    golden.close(made.drawn_from, tensors["weights"], "weights")
    assert loss.item() == pytest.approx(record["loss"], rel=1e-4, abs=1e-4)
    model = made.model
    learnt = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    total = torch.stack([gradient.norm() for gradient in learnt.values()]).norm()
    assert total.item() == pytest.approx(record["total_grad_norm"], rel=1e-3)
    assert not [name for name in learnt if name in record["no_grad_params"]]
    whole = {name: learnt.get(name, torch.zeros_like(p)) for name, p in model.named_parameters()}
    official = to_official(whole, model.config, type(model))
    for name, norm in record["grad_norms"].items():
        assert official[name].norm().item() == pytest.approx(norm, rel=1e-3), name
