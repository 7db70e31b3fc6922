"""Fine-tuning for retrieval against the official losses, targets, draws, queues and three optimiser steps."""

import pytest
import torch
import torch.nn.functional as F

from albef.engine.optim import make_optimizer
from albef.models.names import to_official
from albef.objectives.losses import contrastive_targets
from albef.objectives.retrieval import RetrievalObjective
from albef.recipe import Optim
from tests.parity import golden


class Replay(RetrievalObjective):
    """Takes the recorded negatives, and keeps what it would have drawn from."""

    negatives: tuple

    def draw_negatives(self, logits_i2t, logits_t2i, same):
        self.drawn_from = (logits_i2t, logits_t2i, same)
        return self.negatives


def start():
    """The objective in training mode, as pretrain.pth is loaded into it."""
    read = golden.checkpoint("pretrain")
    model, teacher, _ = golden.started("retrieval")
    made = Replay(
        model,
        queue_size=len(read.queue["image_queue"]),
        momentum=golden.json_of("meta")["ft_config"]["momentum"],
        official=True,
    )
    made.teacher.model.load_state_dict(teacher)
    made.queue.load_state_dict(read.queue)
    return made.train()


def batch_of(image_index, idx, words):
    idx = torch.as_tensor(idx)
    return {
        "pixel_values": golden.images("downstream", image_index),
        "input_ids": words["input_ids"],
        "attention_mask": words["attention_mask"],
        "image_id": idx,
        "text_id": torch.arange(len(idx)),
    }


def replay(made, record):
    made.negatives = tuple(torch.tensor(record[name])[:, None] for name in ("neg_image_idx", "neg_text_idx"))


@pytest.mark.parametrize("case", golden.json_of("retrieval_loss")["cases"])
def test_step(case):
    record, tensors = golden.json_of("retrieval_loss"), golden.tensors_of("retrieval_loss")
    recorded, made = record["cases"][case], start()
    replay(made, recorded)
    # without distillation the official model takes the hard targets alone: alpha 0
    losses = made(batch_of(record["image_index"], tensors["idx"], tensors), recorded["alpha"])
    assert losses["itc"].item() == pytest.approx(recorded["loss_ita"], rel=1e-4, abs=1e-4)
    assert losses["itm"].item() == pytest.approx(recorded["loss_itm"], rel=1e-4, abs=1e-4)
    sum(losses.values()).backward()
    own = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in made.model.named_parameters()}
    official = to_official(own, made.model.config, type(made.model))
    for name, norm in recorded["grad_norms"].items():
        found = official.get(name, official.get(name.replace("text_encoder.", "text_encoder.bert.", 1)))
        assert found.norm().item() == pytest.approx(norm, rel=1e-3), name
    i2t, t2i, same = made.drawn_from
    size = len(same)
    for name, logits in (("sim_i2t", i2t), ("sim_t2i", t2i)):
        golden.close(logits, tensors[f"{case}.{name}"][:, :size], name)
    for logits, wanted in ((i2t, "weights_i2t"), (t2i, "weights_t2i")):
        golden.close(logits.softmax(1).masked_fill(same, 0.0), tensors[f"{case}.{wanted}"], wanted)
    golden.close(made.queue.image_queue.T, tensors[f"{case}.image_queue_after"], "image_queue")
    assert made.queue.image_id.equal(tensors[f"{case}.idx_queue_after"][0])
    assert int(made.queue.pointer) == recorded["queue_ptr"]


def candidates(vectors, queued):
    """Unit vectors of the batch, then those of the queue: what the other side is compared with."""
    return torch.cat([F.normalize(vectors.float(), dim=-1), queued])


@pytest.mark.parametrize("case", golden.json_of("retrieval_loss")["cases"])
def test_features_similarities_targets_and_logits(case):
    """What lies inside the losses: vectors, similarities to the batch and the whole queue, targets, ITM logits."""
    record, tensors = golden.json_of("retrieval_loss"), golden.tensors_of("retrieval_loss")
    recorded, made, queue = record["cases"][case], start(), golden.checkpoint("pretrain").queue
    replay(made, recorded)
    wanted = {name.removeprefix(f"{case}."): one for name, one in tensors.items() if name.startswith(f"{case}.")}
    model, teacher, batch = made.model, made.teacher.model, batch_of(record["image_index"], tensors["idx"], tensors)
    with (
        golden.outputs_of(model.vision_proj) as image,
        golden.outputs_of(model.text_proj) as text,
        golden.outputs_of(teacher.vision_proj) as image_t,
        golden.outputs_of(teacher.text_proj) as text_t,
        golden.outputs_of(model.itm_head) as matched,
    ):
        made(batch, recorded["alpha"])
    features = {"image_feat": F.normalize(image[0], dim=-1), "text_feat": F.normalize(text[0], dim=-1)}
    images, texts = candidates(image_t[0], queue["image_queue"]), candidates(text_t[0], queue["text_queue"])
    found = features | {
        "sim_i2t": features["image_feat"] @ texts.T / model.temp,
        "sim_t2i": features["text_feat"] @ images.T / model.temp,
    }
    for name, tensor in found.items():
        golden.close(tensor, wanted[name], name)
    ids = torch.cat([batch["image_id"], queue["image_id"]])
    targets = contrastive_targets(batch["image_id"][:, None] == ids, torch.zeros(len(batch["image_id"]), len(ids)), 0.0)
    golden.close(targets, wanted["sim_targets"], "sim_targets")
    # ours: own pairs, each image's negative text, each text's negative image; the original has the last two swapped
    own, negative_texts, negative_images = torch.cat(matched).chunk(3)
    golden.close(torch.cat([own, negative_images, negative_texts]), wanted["vl_output"], "vl_output")


def test_three_steps():
    record, tensors = golden.json_of("retrieval_train"), golden.tensors_of("retrieval_train")
    made = start()
    optimizer = make_optimizer(made, Optim(lr=record["lr"]))
    processor = golden.processor((32, 32))
    for number, step in enumerate(record["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = step["lr"]
        replay(made, step)
        words = processor.texts(step["texts"], max_tokens=512)
        losses = made(batch_of(step["image_index"], step["idx"], words), step["alpha"])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        assert losses["itc"].item() == pytest.approx(step["loss_ita"], abs=5e-4), number
        assert losses["itm"].item() == pytest.approx(step["loss_itm"], abs=5e-4), number
    assert made.queue.image_id.equal(tensors["idx_queue"][0])
    for name in ("image_queue", "text_queue"):
        golden.close(getattr(made.queue, name).T, tensors[name], name, atol=1e-3)
    assert int(made.queue.pointer) == int(tensors["queue_ptr"])
    ours = to_official(made.model.state_dict(), made.model.config, type(made.model))
    ours |= {
        golden.twin(name): tensor
        for name, tensor in to_official(made.teacher.model.state_dict(), made.model.config, type(made.model)).items()
    }
    for name, tensor in tensors.items():
        if name.startswith("final."):
            golden.close(ours[name.removeprefix("final.")], tensor, name, atol=1e-3)
    ours |= {name: getattr(made.queue, name).T for name in ("image_queue", "text_queue")}
    ours |= {"idx_queue": made.queue.image_id[None], "queue_ptr": made.queue.pointer.reshape(1)}
    ours |= {name.replace(".bert.", ".", 1): tensor for name, tensor in ours.items()}  # fine-tuning leaves `bert.` out
    # the gradient of keys' biases is rounding noise, which AdamW turns into full steps; ViT's are part of qkv
    drift = 2 * sum(step["lr"] for step in record["steps"])
    assert record["final_state_digest"]
    for name, digest in record["final_state_digest"].items():
        noisy = name.endswith((".key.bias", ".attn.qkv.bias"))
        golden.assert_digest(ours[name], digest, name, atol=drift if noisy else 1e-4)
