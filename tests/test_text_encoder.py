"""What a text is compared by (its `[CLS]` or the mean of its words), and text layers that learn nothing."""

import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from albef.data.processor import Processor
from albef.data.text import load_tokenizer
from albef.engine import checkpointer
from albef.engine.train import Interrupted, train
from albef.errors import AlbefValueError
from albef.models.albef import AlbefModel
from albef.models.folders import save_training
from albef.models.layout import PackedText, Padded
from albef.models.start import load_start
from albef.objectives.momentum import MomentumTeacher
from albef.objectives.retrieval import RetrievalObjective
from albef.tasks import make_task
from albef.tasks.grounding import similarity_maps
from albef.tasks.ranking import encode_texts
from tests.worlds import TINY, make_world, tiny_recipe

CPU = torch.device("cpu")
WORDS = "albef:world.txt"
MASK = (torch.arange(6) < torch.tensor([6, 1, 4])[:, None]).long()
MEAN, FROZEN = replace(TINY, text_pooling="mean"), replace(TINY, text_layers=2, text_frozen=1, dropout=0.1)


def texts():
    torch.manual_seed(1)
    return torch.randint(5, 100, MASK.shape) * MASK


def vectors(model, states):
    """What ITC compares, written out: the mean over the words of each text."""
    rows = [states[row, : int(length)].mean(0) for row, length in enumerate(MASK.sum(1))]
    return F.normalize(model.text_proj(torch.stack(rows)), dim=-1)


def model_of(config):
    torch.manual_seed(0)
    return AlbefModel(config).eval()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_packed_and_padded_texts_are_pooled_alike(pooling):
    model, ids = model_of(replace(TINY, text_pooling=pooling)), texts()
    words, gradients = PackedText.of(MASK), []
    padded, twice = model.encode_text(ids, MASK), torch.cat([ids, ids])
    packed = model.encode_text(twice, PackedText.join(words, words))  # the texts, then others, as masked ones follow
    whole = padded.flatten(0, 1), PackedText.whole(MASK)
    for states, layout in ((padded, MASK), (padded, Padded(MASK)), (packed, words), whole):
        found = model.project_text(states, layout)
        torch.testing.assert_close(found, model.project_text(padded, MASK))
        model.zero_grad()
        found[:, 0].sum().backward(retain_graph=True)
        gradients.append(model.text_encoder.word_embeddings.weight.grad.clone())
    for one in gradients:
        torch.testing.assert_close(one, gradients[0])


def test_the_mean_is_that_of_the_words():
    model, ids = model_of(MEAN), texts()
    states = model.encode_text(ids, MASK)
    torch.testing.assert_close(model.project_text(states, MASK), vectors(model, states))
    assert not torch.allclose(vectors(model, states)[0], F.normalize(model.text_proj(states[0, 0]), dim=-1))
    assert model.half().pool_text(states.half(), MASK).dtype == torch.float16


def test_every_path_pools_by_the_mean():
    """Whole model, training, ranking and heat maps give the vectors of `project_text`."""
    model = model_of(MEAN)
    processor = Processor(load_tokenizer("bert"), TINY.image_size)
    said = ["a red dog", "a", "dogs in a large red box"]
    ids, mask = processor.texts(said).values()
    model.text_encoder.word_embeddings = type(model.text_encoder.word_embeddings)(30522, TINY.text_width)
    pixels = torch.randn(3, 3, *TINY.image_size)
    z_text = model(pixels, ids, mask).text_vectors
    torch.testing.assert_close(encode_texts(model, processor, said)[1], z_text)
    batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
    objective = RetrievalObjective(model, queue_size=4)
    for one in (
        objective.features(model, batch, PackedText.of(mask)).z_text,
        objective.teach(batch, PackedText.of(mask)).z_text,
    ):
        torch.testing.assert_close(one, z_text)
    longer, longer_mask = F.pad(ids, (0, 3)), F.pad(mask, (0, 3))
    torch.testing.assert_close(
        similarity_maps(model, pixels, longer, longer_mask), similarity_maps(model, pixels, ids, mask)
    )


def test_a_mean_without_a_mask():
    model = model_of(MEAN)
    with pytest.raises(AlbefValueError, match="text_pooling `mean` needs attention_mask"):
        model.project_text(model.encode_text(texts(), MASK))
    with pytest.raises(AlbefValueError, match="text_pooling 'max' must be `cls` or `mean`"):
        replace(TINY, text_pooling="max")


def frozen_names(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_the_lowest_layers_learn_nothing():
    assert not frozen_names(model_of(TINY))
    model = model_of(FROZEN).train()
    parts = ("text_encoder.word_", "text_encoder.position_", "text_encoder.token_", "text_encoder.norm.")
    wanted = {name for name in model.state_dict() if name.startswith((*parts, "text_encoder.layers.0."))}
    assert frozen_names(model) == wanted
    lowest = [m for m in model.text_encoder.layers[0].modules() if hasattr(m, "dropout")]
    assert model.text_encoder.dropout == 0 and {m.dropout for m in lowest} == {0.0}  # nor do they change at random
    assert (
        model.text_encoder.layers[1].feed_forward.dropout == model.fusion_encoder.layers[0].feed_forward.dropout == 0.1
    )


@pytest.mark.parametrize("count", [-1, 3])
def test_as_many_frozen_layers_as_there_are(count):
    with pytest.raises(AlbefValueError, match=f"text_frozen {count} must be between 0 and text_layers, which is 2"):
        AlbefModel(replace(FROZEN, text_frozen=count))


def test_the_teacher_follows_what_learns():
    student = model_of(FROZEN)
    teacher = MomentumTeacher(student, 0.9)
    learnt = {name: value.clone() for name, value in student.state_dict().items() if name not in frozen_names(student)}
    with torch.no_grad():
        for name in learnt:
            student.get_parameter(name).add_(1)
    teacher.update(student)
    for name, own in teacher.model.state_dict().items():
        if name in learnt:
            torch.testing.assert_close(own, learnt[name] + 0.1)
        else:
            assert own.equal(student.state_dict()[name]), name


def test_a_saved_teacher_has_the_frozen_layers_of_the_model(tmp_path):
    model = model_of(replace(FROZEN, text_frozen=0))
    model.save_pretrained(tmp_path)
    save_training(tmp_path, {name: value + 1 for name, value in model.state_dict().items()}, None)
    student = AlbefModel(FROZEN)
    taught = load_start(student, tmp_path)[1]
    frozen = frozen_names(student)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(taught[name], value if name in frozen else value + 1, msg=name)


@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
def test_a_run_with_frozen_layers_goes_on_exactly(tmp_path, clip_norm):
    """Frozen layers stay as the start has them, in student, teacher and what is saved; the rest learns."""
    recipe, start = tiny_recipe(make_world(tmp_path / "world")), tmp_path / "start"
    processor = Processor(load_tokenizer(WORDS), TINY.image_size)
    model = model_of(replace(MEAN, text_layers=2, vocab_size=processor.vocab_size))
    model.save_pretrained(start)
    processor.save_pretrained(start)
    optim = replace(recipe.optim, clip_norm=clip_norm)
    recipe = replace(recipe, init=str(start), optim=optim, model=replace(recipe.model, text_frozen=1), steps=4)
    train(make_task, recipe, tmp_path / "whole", CPU)
    whole = checkpointer.read_newest(tmp_path / "whole")
    task = make_task(recipe)
    frozen = frozen_names(task.model)
    assert len(frozen) == 17 and not any(name.removeprefix("model.") in frozen for name in whole["optimizer"])
    own = model.state_dict()
    for name in own:
        values = [whole["objective"][f"{part}model.{name}"] for part in ("", "teacher.")]
        assert all(value.equal(own[name]) == (name in frozen) for value in values), name
    saved = AlbefModel.from_pretrained(tmp_path / "whole" / "model")
    assert saved.config == replace(model.config, text_frozen=1)
    assert all(saved.state_dict()[name].equal(own[name]) for name in frozen)

    losses = task.losses

    def stopping(objective, batch, step, progress):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return losses(objective, batch, step, progress)

    task.losses = stopping
    with pytest.raises(Interrupted):
        train(lambda *_: task, recipe, tmp_path / "parts", CPU)
    train(make_task, recipe, tmp_path / "parts", CPU)
    parts = checkpointer.read_newest(tmp_path / "parts")
    for name, value in whole["objective"].items():
        assert value.equal(parts["objective"][name]), name
