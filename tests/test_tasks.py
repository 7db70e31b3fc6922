"""Every task after pre-training: what it learns from, how it is measured, and its run from start to end."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from albef import distributed
from albef.data.examples import open_examples
from albef.data.processor import Processor
from albef.data.records import Example
from albef.data.text import load_tokenizer
from albef.engine import checkpointer
from albef.engine.train import Interrupted, train
from albef.files import ANSWERS
from albef.models.albef import AlbefModel
from albef.models.classifier import AlbefForPairs, AlbefForTextAssignment
from albef.models.folders import load
from albef.objectives.classify import AssignObjective
from albef.objectives.losses import soft_cross_entropy
from albef.recipe import Optim
from albef.tasks import answers, classification, grounding, make_task, nlvr2, vqa
from albef_demo.world import SIDE, png, scene
from tests.ranks import two_ranks
from tests.worlds import TINY, tiny_recipe

CPU = torch.device("cpu")
TASKS = ("retrieval", "vqa", "classification", "nlvr2", "text-assignment", "grounding")
DISTILLED = ("vqa", "classification", "nlvr2")  # those that need no teacher when alpha is 0
WORDS = "albef:world.txt"


def recipe_of(task, **changes):
    """Four steps on the generated world."""
    recipe = tiny_recipe(Path("world:train/64"), task=task, steps=4, **changes)
    data = replace(recipe.data, validation=("world:validation/5",), tokenizer=WORDS, max_tokens=16)
    return replace(recipe, data=data, objective=replace(recipe.objective, alpha_ramp_steps=0))


def with_objective(recipe, **changes):
    return replace(recipe, objective=replace(recipe.objective, **changes))


def with_data(recipe, **changes):
    return replace(recipe, data=replace(recipe.data, **changes))


def run(recipe, folder, task=None):
    folder.mkdir(exist_ok=True)
    return train(make_task if task is None else lambda *_: task, recipe, folder, CPU)


def state(folder):
    return checkpointer.read_newest(folder)["objective"]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A saved model of pre-training, as small as can be."""
    folder = tmp_path_factory.mktemp("pretrained")
    processor = Processor(load_tokenizer(WORDS), TINY.image_size)
    torch.manual_seed(5)
    AlbefModel(replace(TINY, vocab_size=processor.vocab_size)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# A run from start to end


def stop_after(task, steps):
    """A signal in the middle of step `steps`, as Ctrl-C gives one."""
    losses = task.losses

    def stopping(objective, batch, step, progress):
        if step == steps - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return losses(objective, batch, step, progress)

    task.losses = stopping
    return task


@pytest.mark.parametrize("augment", ["affine", "randaugment"])
@pytest.mark.parametrize("name", TASKS)
def test_a_run_goes_on_exactly_and_without_its_start(name, augment, pretrained, tmp_path):
    """In memory from a pre-trained model, which is gone by then; image by image from scratch with own words."""
    recipe = recipe_of(name, evaluate_steps=2)
    if augment == "affine":
        shutil.copytree(pretrained, tmp_path / "start")
        recipe = with_data(replace(recipe, init=str(tmp_path / "start")), colour=0.5, zoom=(0.6, 1.0))
    else:
        recipe = with_data(recipe, augment="randaugment", workers=0, tokenizer=None)
    whole = run(recipe, tmp_path / "whole")
    task = stop_after(make_task(recipe), 3)
    with pytest.raises(Interrupted, match="stopped at step 3 of 4"):
        run(recipe, tmp_path / "parts", task)
    shutil.rmtree(tmp_path / "start", ignore_errors=True)
    assert run(recipe, tmp_path / "parts") == whole
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert_equal(load(tmp_path / "whole" / "model")[1], load(tmp_path / "parts" / "model")[1])
    words = Processor.from_pretrained(tmp_path / "parts" / "model").tokenizer.get_vocab()
    assert (words == load_tokenizer(WORDS).get_vocab()) == (augment == "affine")
    check_figures(name, whole)
    assert (tmp_path / "whole" / "best" / "model.safetensors").exists() == (name != "text-assignment")
    if name == "vqa":
        listed = answers.read_answers(tmp_path / "whole" / "model" / ANSWERS)
        assert listed == answers.answer_list(open_examples("vqa", ["world:train/64"]))
        assert answers.read_answers(tmp_path / "whole" / "best" / ANSWERS) == listed


def check_figures(name, figures):
    if name == "retrieval":
        assert figures.keys() == {"itc", "itm", "sum", "odds"} and figures["itm"].keys() >= {
            "img_r1",
            "txt_r1",
            "r_mean",
        }
    elif name == "vqa":
        assert figures.keys() == {"questions", "ranked", "generated"} and figures["questions"] == 15
    elif name == "classification":
        assert figures.keys() == {"accuracy", "examples"} and figures["examples"] == 15
    elif name == "nlvr2":
        assert figures.keys() == {"accuracy", "examples", "consistency"} and figures["examples"] == 5
    elif name == "grounding":
        assert figures.keys() == {"itm", "itc"} and figures["itm"]["phrases"] == 10
        assert figures["itc"].keys() >= {"pointing", "free", "boxes", "boxes_validation", "without_peak"}
    else:
        assert figures == {}


def test_loader_workers_give_the_same_batches(tmp_path):
    recipe = with_data(recipe_of("vqa"), augment="randaugment", workers=0)
    alone = next(make_task(recipe).batches(0))
    batches = make_task(with_data(recipe, workers=1)).batches(0)
    found = next(batches)
    del batches
    assert found.keys() == alone.keys()
    for key in alone.keys() - {"broken"}:
        assert torch.equal(found[key], alone[key]), key


def scored(task, scores, seen):
    """Evaluations give these scores, one after the other; `seen` receives the weights that each was given for."""
    queue = iter(scores)

    def score(_):
        seen.append({name: value.clone() for name, value in task.model.state_dict().items()})
        return next(queue)

    task.score = score
    return task


def test_best_keeps_the_highest_score_and_of_equals_the_first(tmp_path):
    recipe, seen = recipe_of("classification", evaluate_steps=1), []
    recipe = replace(recipe, steps=5)
    first = stop_after(scored(make_task(recipe), [1.0, 3.0, 3.0], seen), 3)
    with pytest.raises(Interrupted):
        run(recipe, tmp_path, first)
    assert_equal(load(tmp_path / "best")[1], seen[1])
    run(recipe, tmp_path, scored(make_task(recipe), [2.0, 3.5], seen))  # goes on knowing of the 3
    assert len(seen) == 5
    assert_equal(load(tmp_path / "best")[1], seen[4])
    assert_equal(load(tmp_path / "model")[1], seen[4])


def test_best_survives_a_run_that_gets_worse(tmp_path):
    recipe, seen = recipe_of("classification", evaluate_steps=1), []
    task = stop_after(scored(make_task(recipe), [1.0, 3.0], seen), 2)
    with pytest.raises(Interrupted):
        run(recipe, tmp_path, task)
    run(recipe, tmp_path, scored(make_task(recipe), [2.0, 3.0], seen))
    assert_equal(load(tmp_path / "best")[1], seen[1])
    assert not torch.equal(load(tmp_path / "model")[1]["cls_head.0.weight"], seen[1]["cls_head.0.weight"])


def test_best_survives_a_crash(tmp_path):
    """What is kept as best knows its own score, or a worse model would take its place after a crash."""
    recipe, seen = recipe_of("classification", evaluate_steps=2, save_steps=2), []
    task = scored(make_task(recipe), [3.0], seen)
    losses = task.losses

    def crashing(objective, batch, step, progress):
        if step == 3:
            raise MemoryError
        return losses(objective, batch, step, progress)

    task.losses = crashing
    with pytest.raises(MemoryError):
        run(recipe, tmp_path, task)
    run(recipe, tmp_path, scored(make_task(recipe), [2.0], seen))
    assert_equal(load(tmp_path / "best")[1], seen[0])


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        ("vqa", {"validation": ("asked.json",)}, "none of its questions has an answer to be measured by"),
        ("vqa", {"answers": "absent.json"}, "absent.json: no list of answers here"),
        ("grounding", {"validation": ("phrases.json",)}, "the phrase 'a ring' has no box to compare with"),
        ("classification", {"labels": ("yes", "no")}, "its label is 'contradiction', but must be one of yes, no"),
        ("nlvr2", {"validation": ("asked.json",)}, '"images" to be a pair'),
        ("classification", {"validation": ("unknown.json",)}, "none of its examples has a label to be measured by"),
        ("classification", {"train": ("unknown.json",)}, "its label is missing, but must be one of contradiction"),
    ],
)
def test_wrong_data_fail_before_the_run(task, changes, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(png(scene("test", 0)))
    Path("asked.json").write_text('[{"image": "a.png", "question": "what is it", "question_id": 1}]')
    Path("phrases.json").write_text('[{"image": "a.png", "text": "a ring"}]')
    Path("unknown.json").write_text('[{"image": "a.png", "text": "a ring"}]')
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        next(make_task(with_data(recipe_of(task), **changes)).batches(0))


# Distillation


def task_and_batch(recipe, folder):
    task = make_task(recipe)
    batch = next(task.batches(0))
    batch.pop("broken")
    return task, task.prepare(batch, torch.device("cpu"))


def total(objective, batch, alpha):
    return torch.stack(list(objective(batch, alpha).values())).sum()


def disturb(model, scale=0.05):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)


@pytest.mark.parametrize("name", DISTILLED)
def test_alpha_decides_whether_the_teacher_counts(name, pretrained, tmp_path):
    recipe = recipe_of(name, init=str(pretrained))
    task, batch = task_and_batch(recipe, tmp_path)
    free = make_task(with_objective(recipe, alpha=0.0)).objective.train()
    assert free.teacher is None and not [key for key in free.state_dict() if key.startswith("teacher")]
    taught = task.objective.train()
    free.load_state_dict({key: value for key, value in taught.state_dict().items() if not key.startswith("teacher")})
    disturb(taught.teacher.model)
    alone = total(free, batch, 0.0)
    assert total(taught, batch, 0.0).item() == pytest.approx(alone.item(), abs=1e-6)
    assert abs(total(taught, batch, 0.4).item() - alone.item()) > 1e-4


@pytest.mark.parametrize("name", (*DISTILLED, "retrieval", "grounding"))
def test_teachers_follow_by_momentum_and_learn_nothing_themselves(name, tmp_path):
    task, batch = task_and_batch(recipe_of(name), tmp_path)
    objective = task.objective.train()
    disturb(objective.model)
    before = [parameter.clone() for parameter in objective.teacher.model.parameters()]
    student = [parameter.detach().clone() for parameter in objective.model.parameters()]
    total(objective, batch, 0.4).backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    assert any(parameter.grad is not None for parameter in objective.model.parameters())
    assert not objective.teacher.model.training
    for now, old, target in zip(objective.teacher.model.parameters(), before, student, strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * target)


@pytest.mark.parametrize("official", [False, True])
def test_the_teacher_of_nlvr2(official, pretrained, tmp_path):
    """The original forgot to copy: its teacher begins with the values the model had before it was loaded."""
    task = make_task(with_objective(recipe_of("nlvr2", init=str(pretrained)), official=official))
    start = load(pretrained)[1]
    student, teacher = task.objective.model.state_dict(), task.objective.teacher.model.state_dict()
    assert torch.equal(student["text_encoder.word_embeddings.weight"], start["text_encoder.word_embeddings.weight"])
    for name, value in student.items():
        if name.endswith("weight") and value.ndim > 1:
            kept = not official or name.startswith("cls_head")  # the head has no start to be loaded from
            assert torch.equal(teacher[name], value) == kept, name


def test_alpha_ramps_up_over_the_first_epoch(tmp_path):
    recipe = with_objective(recipe_of("classification"), alpha_ramp_steps=None)
    task = make_task(recipe)
    assert task.pairs == 192
    assert [task.alpha(step) for step in (0, 12, 24, 99)] == pytest.approx([0, 0.2, 0.4, 0.4])
    assert make_task(recipe_of("classification")).alpha(0) == 0.4


# Retrieval


def retrieval_batch(tmp_path, image_id):
    task, batch = task_and_batch(recipe_of("retrieval"), tmp_path)
    batch["image_id"] = torch.tensor(image_id)
    batch["text_id"] = torch.arange(8)
    drawn = []
    draw = task.objective.draw_negatives
    task.objective.draw_negatives = lambda *logits: drawn.append(draw(*logits)) or drawn[-1]
    return task.objective.train(), batch, drawn


def test_texts_of_one_image_are_positives_and_no_negatives(tmp_path):
    objective, batch, drawn = retrieval_batch(tmp_path, [1, 1, 1, 2, 2, 3, 4, 5])
    image_id = batch["image_id"]
    queue = objective.queue.text_queue.clone(), objective.queue.image_queue.clone()
    for _ in range(40):
        found = objective(batch, 0.0)
        for negatives in drawn.pop():
            assert (negatives >= 0).all() and (image_id[negatives[:, 0]] != image_id).all()
    objective.queue.text_queue.copy_(queue[0]), objective.queue.image_queue.copy_(queue[1])
    objective.queue.image_id.fill_(-100), objective.queue.text_id.fill_(-100), objective.queue.pointer.zero_()
    found = objective(batch, 0.0)
    with torch.no_grad():  # the teacher is still equal to the model
        model = objective.model
        z_image = model.project_image(model.encode_image(batch["pixel_values"]))
        z_text = model.project_text(model.encode_text(batch["input_ids"], batch["attention_mask"]))
        wanted = 0.0
        for z, candidates in ((z_image, torch.cat([z_text, queue[0]])), (z_text, torch.cat([z_image, queue[1]]))):
            targets = F.pad((image_id[:, None] == image_id).float(), (0, len(queue[0])))
            wanted += soft_cross_entropy(z @ candidates.T / model.temp, targets / targets.sum(1, keepdim=True)) / 2
    assert found["itc"].item() == pytest.approx(wanted.item(), abs=1e-4)
    assert objective.queue.image_id[:8].tolist() == image_id.tolist()


def test_a_batch_of_one_image_has_no_negatives(tmp_path):
    objective, batch, drawn = retrieval_batch(tmp_path, [7] * 8)
    loss = total(objective, batch, 0.4)
    loss.backward()
    assert all((negatives == -1).all() for negatives in drawn[0])
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in objective.model.parameters() if p.grad is not None)


def test_phrases_of_an_image_are_no_negatives_of_each_other(tmp_path):
    task = make_task(recipe_of("grounding"))
    records = [task.data.source[index] for index in range(4)]
    assert [record.image_id for record in records] == ["world:train/0"] * 2 + ["world:train/1"] * 2
    assert all(record.captions == task.data.source.captions(index) for index, record in enumerate(records))


# Text assignment and pairs


@pytest.fixture
def assign():
    torch.manual_seed(0)
    return AssignObjective(AlbefForTextAssignment(replace(TINY, vocab_size=173)))


@pytest.mark.parametrize("repeats", [1, 3])
def test_images_for_text_assignment(assign, repeats):
    image_id = torch.arange(60) // repeats
    tokens = torch.randn(60, 17, 32)
    own, counts = torch.arange(60), torch.zeros(3)
    for _ in range(60):
        pairs, labels = assign.draw_pairs(tokens, image_id)
        counts += labels.bincount(minlength=3)
        first, second = pairs.unbind(1)
        same_first, same_second = image_id[first] == image_id, image_id[second] == image_id
        assert (first[labels == 0] == own[labels == 0]).all() and (second[labels == 1] == own[labels == 1]).all()
        assert same_first.equal(labels == 0) and same_second.equal(labels == 1)
        assert (first != second).all()
    assert (counts / counts.sum()).tolist() == pytest.approx([1 / 3] * 3, abs=0.035)


def test_likely_mistakes_stand_beside_the_right_image(assign):
    tokens = torch.randn(6, 17, 32)
    tokens[1] = tokens[0] + 0.1 * torch.randn(17, 32)
    weights = assign.weights(tokens)
    assert (weights.diagonal() == 0).all() and weights[0].argmax() == 1 and weights[1].argmax() == 0
    for identical in (torch.zeros(6, 17, 32), tokens[:1].expand(6, -1, -1) * 1e4):
        weights = assign.weights(identical, torch.tensor([1, 1, 1, 1, 1, 2]))
        assert ((weights > 0).sum(1) >= 2).all() and (weights.diagonal() == 0).all()


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_for_text_assignment(assign, count):
    with pytest.raises(ValueError, match=f"needs at least 3 images in a batch, got {count}; raise batch_size"):
        assign.draw_pairs(torch.randn(count, 17, 32))


def test_text_assignment_learns_all_but_the_likeness(assign):
    batch = {
        "pixel_values": torch.randn(6, 3, 32, 32),
        "input_ids": torch.randint(5, 99, (6, 7)),
        "attention_mask": torch.ones(6, 7, dtype=torch.int64),
        "image_id": torch.arange(6),
    }
    assign(batch)["assign"].backward()
    without = {name for name, p in assign.model.named_parameters() if p.grad is None}
    assert {
        "vision_proj.weight",
        "vision_proj.bias",
    } <= without and "pair_encoder.layers.3.self_attention.qkv.weight" not in without


@pytest.fixture
def pair():
    torch.manual_seed(3)
    model = AlbefForPairs(replace(TINY, vocab_size=173)).eval().requires_grad_(False)
    words = torch.randint(5, 99, (3, 7))
    return model, torch.randn(3, 2, 3, 32, 32), words, torch.ones_like(words)


def test_the_first_image_is_read_by_even_layers(pair):
    model, pixels, *words = pair
    before = model(pixels, *words).logits
    swapped = pixels.flip(1)
    assert not torch.allclose(before, model(swapped, *words).logits, atol=1e-4)
    torch.testing.assert_close(model(pixels[:, [0, 0]], *words).logits, model(pixels[:, [0, 0]].flip(1), *words).logits)
    for blind in (0, 1):
        layers = model.pair_encoder.layers[blind::2]
        kept = [layer.cross_attention.out.weight.clone() for layer in layers]
        for layer in layers:
            layer.cross_attention.out.weight.zero_()
        seen = model(pixels, *words).logits
        other = pixels.clone()
        other[:, blind] = torch.randn(3, 3, 32, 32)
        torch.testing.assert_close(model(other, *words).logits, seen)  # nobody reads it any more
        other = pixels.clone()
        other[:, 1 - blind] = torch.randn(3, 3, 32, 32)
        assert not torch.allclose(model(other, *words).logits, seen, atol=1e-4)
        for layer, weight in zip(layers, kept, strict=True):
            layer.cross_attention.out.weight.copy_(weight)


def test_keys_and_values_of_both_images_are_computed_once(pair):
    model, pixels, *words = pair
    calls, made = [], model.pair_encoder.keys_values
    model.visual_encoder.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    model.pair_encoder.keys_values = lambda tokens: calls.append(len(tokens)) or made(tokens)
    model(pixels, *words)
    assert calls == [6, 6]


# Labels


def labelled(label):
    return Example("a.png", (), "a text", 1, label=label)


def test_labels():
    assert classification.label_index(labelled("TRUE"), ("False", "True")) == 1
    with pytest.raises(ValueError, match=r"a\.png: its label is missing, but must be one of False, True"):
        classification.label_index(labelled(None), ("False", "True"))
    for wrong in ("maybe", None, ""):
        with pytest.raises(ValueError, match=r"a\.png: its label is .*must be one of False, True.*--data\.labels"):
            classification.label_index(labelled(wrong), ("False", "True"))


@pytest.mark.parametrize("kind", ["vqa", "classification", "phrases"])
def test_nothing_readable_is_an_error(kind, pretrained):
    examples = [replace(open_examples(kind, ["world:test/1"])[0], images=(b"nothing",))]
    processor, model = Processor.from_pretrained(pretrained), models()[kind]
    measure = {
        "vqa": lambda *a: vqa.evaluate_questions(*a, ["red"]),
        "classification": classification.evaluate_statements,
    }
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="none of the examples could be read; check the paths and image_root"),
    ):
        measure.get(kind, grounding.evaluate_phrases)(model, processor, examples)


# Grounding


def phrase(**changes):
    values = {"boxes": ((20.0, 2.0, 8.0, 10.0),), "candidates": (), "size": (24, 40)} | changes
    return Example("a.png", (png(scene("test", 0)),), "the ring", 4, **values)


def spot(x, y, width, height):
    heat = np.zeros((24, 40), dtype=np.float32)
    heat[y : y + height, x : x + width] = 1
    return heat


def test_a_map_is_judged_by_peak_and_box():
    found = grounding.judge(spot(20, 2, 8, 10), phrase(candidates=((0, 0, 9, 9), (20, 2, 8, 9)), split="val"))
    assert found == {
        "pointing": True, "free": 1.0, "split": "val", "without_peak": False, "boxes": 0.9, "invisible": ""
    }  # fmt: skip
    found = grounding.judge(spot(0, 0, 8, 8), phrase(candidates=((0, 0, 9, 9), (20, 2, 8, 9))))
    assert not (found["pointing"] or found["free"] or found["boxes"] or found["without_peak"])
    assert "boxes" not in grounding.judge(spot(20, 2, 8, 10), phrase())
    two = phrase(boxes=((0, 12, 3, 3), (20, 2, 8, 10)))
    assert grounding.judge(spot(20, 2, 8, 10), two)["pointing"]


@pytest.mark.parametrize("box", [(40, 2, 8, 10), (-9, -9, 8, 8), (20, 2, 0, 10), (20, 2, 8, 0)])
def test_right_boxes_that_show_nothing_of_the_image(box):
    found = grounding.judge(spot(20, 2, 8, 10), phrase(boxes=(box,), candidates=((20, 2, 8, 10),)))
    assert found["invisible"] == f"a.png, 'the ring', {list(box)}" and found["free"] == found["boxes"] == 0
    two = phrase(boxes=(box, (20, 2, 8, 10)))
    assert not grounding.judge(spot(20, 2, 8, 10), two)["invisible"], "any of the right boxes counts"


def test_a_map_without_positive_values_falls_back_to_the_largest_box():
    candidates = ((0, 0, 2, 2), (19, 1, 9, 11), (0, 0, 5, 0))
    for heat in (spot(0, 0, 0, 0), -spot(0, 0, 40, 24)):
        assert grounding.best_box(heat, candidates) == ((19, 1, 9, 11), False)
        found = grounding.judge(heat, phrase(candidates=candidates))
        assert found["without_peak"] and not found["pointing"] and found["boxes"] > 0.5


def test_boxes_that_show_nothing_are_not_chosen():
    heat = spot(20, 2, 8, 10)
    outside, empty, right = (50, 50, 9, 9), (22, 4, 0, 5), (20, 2, 8, 10)
    assert grounding.best_box(heat, [outside, empty, right]) == (right, True)
    assert grounding.best_box(heat, [empty, outside, (-9, -9, 8, 8)]) == (outside, False)
    assert grounding.best_box(heat, [empty]) == (empty, False)
    assert grounding.judge(heat, phrase(candidates=(outside, empty, right)))["boxes"] == 1


def test_a_phrase_without_a_box_cannot_be_judged():
    with pytest.raises(
        ValueError, match=r"a\.png: the phrase 'the ring' has no box to compare with; add .* name the folder of REFER"
    ):
        grounding.judge(spot(0, 0, 1, 1), phrase(boxes=()))


@pytest.fixture(scope="module")
def wide():
    """A model for images of 16 x 48 pixels: two rows of six patches."""
    torch.manual_seed(2)
    model = AlbefModel(replace(TINY, image_size=(16, 48), vocab_size=173)).eval().requires_grad_(False)
    return model, Processor(load_tokenizer(WORDS), (16, 48))


@pytest.mark.parametrize("mode", ["itm", "itc"])
def test_maps_of_images_that_are_not_square(wide, mode):
    model, processor = wide
    words = processor.texts(["the ring", "a small red thing at the top left"])
    pixels = torch.randn(2, 3, 16, 48)
    inputs = (pixels, words["input_ids"], words["attention_mask"])
    maps = grounding.text_maps(model, *inputs, mode)
    assert maps.shape == (2, 2, 6) and (maps >= 0).all() and maps.max() > 0
    for row in range(2):  # by itself; padded to the same length, which the mean is over
        alone = grounding.text_maps(model, *(x[row : row + 1] for x in inputs), mode)
        torch.testing.assert_close(alone[0], maps[row], atol=1e-6, rtol=1e-4)
    layers = model.config.fusion_layers if mode == "itm" else model.config.vision_layers
    first, last = (grounding.text_maps(model, *inputs, mode, layer) for layer in (0, layers - 1))
    for layer, wanted in ((-layers, first), (-1, last)):
        torch.testing.assert_close(grounding.text_maps(model, *inputs, mode, layer), wanted)
    assert not torch.allclose(first, last)
    # by default the last image layer, but the last fusion layer but one: in the last only [CLS] has a map
    torch.testing.assert_close(maps, last if mode == "itc" else first)
    for wrong in (layers, -layers - 1):
        with pytest.raises(ValueError, match=f"layer {wrong} doesn't exist; the .* layers are 0 to {layers - 1}"):
            grounding.text_maps(model, *inputs, mode, wrong)


def test_maps_are_those_of_probabilities_and_gradients(wide):
    """Every number by the formula, one patch after the other; none at padding."""
    model, processor = wide
    words = processor.texts(["the ring", "a small red thing"])
    ids, mask = words["input_ids"], words["attention_mask"]
    pixels = torch.randn(2, 3, 16, 48)
    maps = grounding.word_maps(model, pixels, ids, mask, 0)
    keys_values = model.fusion_encoder.keys_values(model.encode_image(pixels))
    record = []
    states = model.encode_text(ids, mask).requires_grad_()  # the model is frozen
    fused = model.fuse(states, mask, keys_values, record=record, record_layer=0)
    (gradient,) = torch.autograd.grad(model.match(fused)[:, 1].sum(), record)
    for text in range(2):
        for word in range(ids.shape[1]):
            for row in range(2):
                for column in range(6):
                    at = (text, slice(None), word, 1 + 6 * row + column)
                    wanted = (record[0][at] * gradient[at].clamp(min=0)).mean() * mask[text, word]
                    assert maps[text, word, row, column].item() == pytest.approx(wanted.item(), abs=1e-7)
    assert mask[0, -1] == 0 and (maps[0, -1] == 0).all()


def test_grounding_counts_maps_without_a_peak(wide, monkeypatch):
    model, processor = wide
    sizes = []
    judge = grounding.judge
    monkeypatch.setattr(grounding, "judge", lambda grid, example: sizes.append(example.size) or judge(grid, example))
    source = [
        phrase(boxes=((19.0, 0.0, 9.0, 13.0),)),
        replace(phrase(candidates=((0, 0, 40, 24),)), split="val"),
        phrase(size=None),
    ]
    grounding.evaluate_phrases(model, processor, source)
    assert sizes == [(24, 40), (24, 40), (SIDE, SIDE)], "the size that is given, else that of the image itself"
    maps = torch.zeros(3, 2, 6)
    maps[0, 0, 3] = 1  # of 24 x 40 pixels: x 20 to 27, y 0 to 12
    monkeypatch.setattr(grounding, "text_maps", lambda *_: maps)
    figures = grounding.evaluate_phrases(model, processor, source)
    assert figures == pytest.approx(
        {
            "phrases": 3, "pointing": 100 / 3, "free": 100 / 3, "boxes": 0, "boxes_val": 0, "with_candidates": 1,
            "without_peak": 2,
        }
    )  # fmt: skip


def test_grounding_by_split_counts_those_with_candidates(wide, monkeypatch):
    """The official accuracy of RefCOCO+'s parts; where the detector found nothing there is nothing to judge."""
    model, processor = wide
    maps = torch.zeros(4, 2, 6)
    maps[:, 0, 3] = 1  # of 24 x 40 pixels: x 20 to 27, y 0 to 12
    monkeypatch.setattr(grounding, "text_maps", lambda _, pixels, *rest: maps[: len(pixels)])
    here, there = (19.0, 0.0, 9.0, 13.0), (0.0, 0.0, 9.0, 13.0)
    source = [
        phrase(boxes=(truth,), candidates=candidates, split=split)
        for truth, candidates, split in (
            (here, (here, there), "testA"), (there, (here, there), "testB"), (here, (there, here), "testB"),
            (here, (), "testB"),
        )
    ]  # fmt: skip
    found = grounding.evaluate_phrases(model, processor, source)
    assert found["boxes"] == pytest.approx(200 / 3) and found["with_candidates"] == 3
    assert (found["boxes_testA"], found["boxes_testB"]) == (100, 50)
    assert "with_candidates" not in grounding.evaluate_phrases(model, processor, source[:2])


# Two processes


def models():
    """An untrained model for every kind of examples."""
    from albef.models.answering import AlbefForAnswering
    from albef.models.classifier import AlbefForClassification

    kinds = {
        "vqa": AlbefForAnswering,
        "classification": AlbefForClassification,
        "pairs": AlbefForPairs,
        "phrases": AlbefModel,
    }
    torch.manual_seed(4)
    return {kind: make(replace(TINY, vocab_size=173)).eval() for kind, make in kinds.items()}


def evaluated():
    """All that is measured, on odd numbers of examples; two phrases are the same, and count twice."""
    processor = Processor(load_tokenizer(WORDS), TINY.image_size)
    listed = ["red", "blue", "two", "ring", "yes", "top left"]
    measures = {
        "vqa": lambda *arguments: vqa.evaluate_questions(*arguments, listed, 3, batch_size=2),
        "classification": classification.evaluate_statements,
        "pairs": nlvr2.evaluate_pairs,
        "phrases": grounding.evaluate_phrases,
    }
    found = {}
    for kind, model in models().items():
        every = open_examples(kind, ["world:test/7"])
        source = [every[index] for index in range(7)]
        if kind == "phrases":
            source[1] = source[0]
        found[kind] = measures[kind](model, processor, source)
    return found


def trained(name, folder):
    """Losses of every step, over all ranks, and the weights."""
    optim = Optim(lr=1e-4, min_lr=1e-5, warmup_lr=1e-5, clip_norm=1.0)
    recipe = recipe_of(name, optim=optim)
    folder.mkdir(exist_ok=True)
    task, losses = make_task(recipe), []
    learn = task.losses

    def recorded(*arguments):
        found = learn(*arguments)
        losses.append(distributed.total(torch.stack(list(found.values()))) / distributed.world_size())
        return found

    task.losses = recorded
    figures = train(lambda *_: task, recipe, folder, CPU)
    return torch.stack(losses), task.objective.state_dict(), figures


def work(rank, world_size, folder):
    torch.set_num_threads(1)
    with distributed.session():
        found = {"evaluated": evaluated()}
        found |= {name: trained(name, folder / f"{name}-{world_size}") for name in ("vqa", "classification")}
        torch.save(found, folder / f"{world_size}-{rank}.pt")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """What one process finds, and each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    work(0, 1, folder)
    two_ranks(work, 2, folder)
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]


def test_two_processes_count_every_example_once(compared):
    alone, first, second = (found["evaluated"] for found in compared)
    assert first == second
    for kind in ("classification", "pairs", "phrases"):
        assert first[kind] == pytest.approx(alone[kind])
    assert first["vqa"] == alone["vqa"]  # figures, and what was answered
    assert alone["vqa"][0]["questions"] == len(alone["vqa"][1]) == alone["classification"]["examples"] == 7
    assert alone["pairs"]["examples"] == alone["phrases"]["phrases"] == 7


@pytest.mark.parametrize("name", ["vqa", "classification"])
def test_two_processes_learn_what_one_does(name, compared):
    (alone, one, figures), (first, left, theirs), (_, right, _) = (found[name] for found in compared)
    torch.testing.assert_close(first, alone, atol=1e-5, rtol=1e-5)
    assert left.keys() == one.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), f"{key} differs between the ranks"
        torch.testing.assert_close(left[key], one[key], atol=5e-5, rtol=5e-5, msg=lambda m, n=key: f"{n}: {m}")
    assert theirs.keys() == figures.keys()
