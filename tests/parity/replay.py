"""Our pre-training objective as the official code left it in pretrain.pth, fed with the recorded draws."""

import torch

from albef.models.names import to_official
from albef.objectives.pretrain import PretrainObjective
from tests.parity import golden
from tests.published import load_objective


class Replay(PretrainObjective):
    """Takes the recorded draws instead of its own, where there are some, and keeps what it would have drawn from."""

    negatives = masked = None

    def draw_negatives(self, logits_i2t, logits_t2i, same):
        self.drawn_from = (logits_i2t, logits_t2i, same)
        return super().draw_negatives(*self.drawn_from) if self.negatives is None else self.negatives

    def mask_words(self, input_ids, attention_mask):
        return super().mask_words(input_ids, attention_mask) if self.masked is None else self.masked


def start(official=True):
    """The objective in training mode, as pretrain.pth has it."""
    read, meta = golden.checkpoint("pretrain"), golden.json_of("meta")
    assert read.queue is not None
    words = golden.processor(read.config.image_size)
    objective = Replay(
        golden.model("pretrain"),
        queue_size=len(read.queue["image_queue"]),
        momentum=meta["base_config"]["momentum"],
        mask_id=words.mask_id,
        cls_id=words.cls_id,
        official=official,
    )
    load_objective(objective, read)
    return objective.train()


def batch_of(image_index, texts, input_ids, attention_mask):
    """Ids tell equal texts and images from different ones."""
    return {
        "pixel_values": golden.images("pretrain", image_index),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "image_id": torch.tensor(image_index),
        "text_id": torch.tensor([texts.index(text) for text in texts]),
    }


def recorded_step(name):
    """The batch, the record and the tensors of a single step."""
    record, tensors = golden.json_of(name), golden.tensors_of(name)
    texts = record["texts"]
    return batch_of(list(range(len(texts))), texts, tensors["input_ids"], tensors["attention_mask"]), record, tensors


def replay_draws(objective, tensors):
    image, text, ids, labels = (
        torch.as_tensor(tensors[name]) for name in ("neg_image_idx", "neg_text_idx", "mlm_input_ids", "mlm_labels")
    )
    objective.negatives, objective.masked = (image[:, None], text[:, None]), (ids, labels)


def gradients(objective):
    """Under official names; zeros where a parameter took no part."""
    own = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in objective.model.named_parameters()
    }
    return to_official(own, objective.model.config)


def teacher_state(objective):
    state = to_official(objective.teacher.model.state_dict(), objective.model.config)
    return {golden.twin(name): tensor for name, tensor in state.items()}
