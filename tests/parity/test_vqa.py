"""Answering against the official losses, gradients, question states and ranking."""

import pytest
import torch

from albef.models.names import to_official
from albef.objectives.answer import AnswerObjective
from albef.tasks.decode import rank_answers
from albef.tasks.vqa import questions
from tests.parity import golden

MOMENTUM = 0.995  # fixed in the official code


@pytest.fixture(scope="module")
def record():
    return golden.json_of("vqa")


@pytest.fixture(scope="module")
def tensors():
    return golden.tensors_of("vqa")


def batch_of(record, tensors):
    return {
        "pixel_values": golden.images("downstream", record["image_index"]),
        "input_ids": tensors["q_input_ids"],
        "attention_mask": tensors["q_attention_mask"],
        "answer_ids": tensors["a_input_ids"],
        "answer_mask": tensors["a_attention_mask"],
        "answer_of": torch.tensor([row for row, count in enumerate(record["k"]) for _ in range(count)]),
        "weights": tensors["weights"],
    }


def learner(distill):
    model, teacher, _ = golden.started("vqa")
    made = AnswerObjective(model, MOMENTUM, distill)
    if distill:
        made.teacher.model.load_state_dict(teacher)
    return made.train()


@pytest.mark.parametrize("case", golden.json_of("vqa")["cases"])
def test_step(record, tensors, case):
    recorded = record["cases"][case]
    made, batch = learner(recorded["distill"]), batch_of(record, tensors)
    loss = made(batch, recorded["alpha"])["answer"]
    loss.backward()
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-4, abs=1e-4)
    gradients = {
        name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in made.model.named_parameters()
    }
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert total.item() == pytest.approx(recorded["total_grad_norm"], rel=1e-3)
    official = to_official(gradients, made.model.config, type(made.model))
    for name, norm in recorded["grad_norms"].items():
        assert official[name].norm().item() == pytest.approx(norm, rel=1e-3), name


@pytest.mark.parametrize("case", golden.json_of("vqa")["cases"])
def test_loss_of_every_answer(record, tensors, case):
    recorded = record["cases"][case]
    losses = learner(recorded["distill"]).answer_losses(batch_of(record, tensors), recorded["alpha"])
    golden.close(losses, torch.tensor(recorded["per_answer_loss"]))


def test_question_states_and_teacher(record, tensors):
    made, batch = learner(distill=True).eval(), batch_of(record, tensors)
    inputs = [batch[name] for name in ("pixel_values", "input_ids", "attention_mask")]
    with torch.no_grad():
        golden.close(made.model.read(*inputs), tensors["question_states"])
        made.teacher.update(made.model)
        golden.close(made.teacher.model.read(*inputs), tensors["momentum_question_states"])
    teacher = to_official(made.teacher.model.state_dict(), made.model.config, type(made.model))
    teacher = {golden.twin(name): tensor for name, tensor in teacher.items()}
    for name, tensor in tensors.items():
        if name.startswith("after_momentum."):
            golden.close(teacher[name.removeprefix("after_momentum.")], tensor, name)


def test_ranking_by_the_original_rule(record, tensors):
    """The recorder ran the evaluation on the model as started; its first word counts twice."""
    model, batch = golden.started("vqa")[0].eval(), batch_of(record, tensors)
    with torch.no_grad():
        states = model.read(batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
    listed = tensors["answer_input_ids"], tensors["answer_attention_mask"]
    order, probabilities = rank_answers(
        model, states, batch["attention_mask"], *listed, k=record["k_test"], official=True
    )
    assert order.equal(tensors["topk_ids"])
    golden.close(probabilities, tensors["topk_probs"])
    answers = [record["answer_list"][index] for index in order[:, 0].tolist()]
    assert answers == [result["answer"] for result in record["evaluation_result"]]


def test_questions_are_cleaned_and_cut_to_the_recorded_ids(record, tensors):
    processor = golden.processor((32, 32))
    words = questions(processor, record["raw_questions"], max_words=50, max_tokens=tensors["q_input_ids"].shape[1])
    assert words["input_ids"].equal(tensors["q_input_ids"])
    assert words["attention_mask"].equal(tensors["q_attention_mask"])
