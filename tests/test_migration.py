"""What somebody meets who comes from the original: lists where its configs have them, words about the start."""

import json
import pickle
import warnings
from dataclasses import replace

import pytest

from albef.commands.train import all_recipes
from albef.data.examples import open_examples
from albef.data.processor import Processor
from albef.data.sources import open_sources
from albef.data.text import load_tokenizer
from albef.models.albef import AlbefModel
from albef.tasks.answers import read_answers
from albef.tasks.begin import start_model
from tests.worlds import TINY

STARTED = [name for name, make in all_recipes().items() if make().usual_init]
PAPER = [name for name in STARTED if not name.startswith("photos")]
KINDS = {"vqa": "vqa", "classification": "classification", "nlvr2": "pairs", "grounding": "phrases"}
RECORDS = {
    "pretrain": {"image": "/images/1.jpg", "caption": ["a dog", "a cat"]},
    "retrieval": {"image": "flickr30k-images/1.jpg", "caption": "a dog", "image_id": 1},
    "text-assignment": {"image": "/images/1.jpg", "caption": "a dog"},
    "vqa": {"image": "val2014/1.jpg", "question": "what?", "answer": ["a dog"], "question_id": 1, "dataset": "vqa"},
    "classification": {"image": "1", "sentence": "a dog", "label": "neutral"},
    "nlvr2": {"images": ["dev/a.png", "dev/b.png"], "sentence": "two dogs", "label": "True"},
    "grounding": {"image": "train2014/1.jpg", "text": "left dog", "ref_id": 1},
}
"""A record of the original's lists for each task."""


def write_refer(folder):
    """REFER's files of RefCOCO+ with one reference."""
    folder.mkdir()
    ref = {"ref_id": 1, "ann_id": 2, "image_id": 3, "split": "val", "sentences": [{"sent": "left dog"}]}
    (folder / "refs(unc).p").write_bytes(pickle.dumps([ref], protocol=2))
    image, thing = {"id": 3, "file_name": "1.jpg", "height": 4, "width": 5}, {"id": 2, "bbox": [0, 0, 2, 2]}
    (folder / "instances.json").write_text(json.dumps({"images": [image], "annotations": [thing]}))


@pytest.fixture
def official(tmp_path):
    """The original's folder, with `data/` in it and tiny lists of every recipe in there."""
    data = tmp_path / "data"
    data.mkdir()
    write_refer(data / "refcoco+")
    for name in PAPER:
        recipe = all_recipes()[name]()
        for file in (*recipe.data.train, *recipe.data.validation):
            if file.endswith(".json"):
                (data / file).write_text(json.dumps([RECORDS[recipe.task]]))
    (data / "answer_list.json").write_text('["yes", "no"]')
    return tmp_path


@pytest.mark.parametrize("inside", [False, True], ids=["from the official folder", "inside data"])
@pytest.mark.parametrize("name", PAPER)
def test_lists_of_every_paper_recipe_are_found(official, monkeypatch, name, inside):
    monkeypatch.chdir(official / "data" if inside else official)
    recipe = all_recipes()[name]()
    for paths in filter(None, (recipe.data.train, recipe.data.validation)):
        if recipe.task in KINDS:
            found = open_examples(KINDS[recipe.task], paths, "/data")
        else:
            found = open_sources(paths, "/data")
        assert len(found) == len(paths)
    if recipe.data.answers:
        assert read_answers(recipe.data.answers) == ["yes", "no"]


def test_a_list_as_the_configs_name_it_is_found_too(official, monkeypatch):
    monkeypatch.chdir(official)
    assert len(open_sources(["data/coco.json"])) == 1
    assert len(open_examples("phrases", ["data/refcoco+/val", "refcoco+/val", "data/refcoco+", "refcoco+"])) == 4


def test_the_working_folder_comes_first(official, monkeypatch):
    (official / "coco.json").write_text(json.dumps([RECORDS["pretrain"]] * 2))
    monkeypatch.chdir(official)
    assert len(open_sources(["coco.json"])) == 2


def started(recipe):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start_model(AlbefModel, recipe, None, lambda: iter(["a dog"]))
    return [str(one.message) for one in caught if "random weights" in str(one.message)]


@pytest.mark.parametrize("name", STARTED)
def test_a_recipe_without_its_start_says_what_it_is_meant_to_start_from(name):
    recipe = replace(all_recipes()[name](), model=TINY)
    (message,) = started(recipe)
    origin = {"pretrain": "DeiT", "nlvr2": "text assignment"}.get(recipe.task, "a pre-trained model")
    origin = {"photos-flickr8k": "MiniLM", "photos-flickr8k-fusion": "`photos-flickr8k`"}.get(name, origin)
    assert message.startswith(f"recipe {name!r} without --init starts from random weights; it is meant to start from")
    assert origin in message and "--init " in message


def test_other_starts_need_no_word(tmp_path):
    assert not started(replace(all_recipes()["pretrain-tiny"](), model=TINY))
    bert = load_tokenizer("bert").get_vocab_size()
    AlbefModel(replace(TINY, vocab_size=bert)).save_pretrained(tmp_path / "start")
    Processor(load_tokenizer("bert"), TINY.image_size).save_pretrained(tmp_path / "start")
    recipe = replace(all_recipes()["retrieval-coco"](), model=TINY, init=str(tmp_path / "start"))
    assert not started(recipe)
