"""The model that comes along is small, loads by its name, and finds what it promises in a style it never saw."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import albef
from albef import AlbefModel, Processor, open_sources
from albef.files import ASSETS, MODELS
from albef.tasks import ranking
from albef_demo.emoji import QUERIES
from albef_demo.kept import cache_file
from albef_demo.report import Query
from albef_demo.shipped import shipped_search

FOLDER = MODELS / "emoji"
NAMES = sorted(path.parent.name for path in MODELS.glob("*/model.safetensors"))
COMMANDS = sorted((ASSETS.parent / "commands").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_by_its_name_and_is_listed(name: str):
    assert isinstance(albef.load(name, device="cpu"), albef.Pipeline)
    listed = [line for path in COMMANDS for line in path.read_text().splitlines() if "which come along" in line]
    assert len(listed) >= 5 and not [line for line in listed if name not in line]
    with pytest.raises(FileNotFoundError, match=rf"comes with the package \({', '.join(NAMES)}\)"):
        albef.load("absent")


def test_files_are_small():
    """All but the weights of `photos`, whose folder may have 32 MB."""
    photos = MODELS / "photos"
    large = [path for path in ASSETS.rglob("*") if path.stat().st_size > 5e6]
    assert not set(large) - {photos / "model.safetensors"}
    assert sum(path.stat().st_size for path in photos.iterdir()) <= 32e6


def test_photos_has_its_card_and_terms():
    card, notice = (MODELS / "photos" / "README.md").read_text(), (ASSETS.parents[1] / "NOTICE").read_text()
    for section in ("Terms of use", "What it learnt from", "Figures", "Failures", "Made by"):
        assert f"\n## {section}\n" in card
    assert "non-commercial" in notice and "albef/assets/models/photos/README.md" in notice
    if "photos" in NAMES:
        assert "TO BE FILLED IN" not in card


def test_it_is_small_and_comes_with_its_log():
    assert (FOLDER / "model.safetensors").stat().st_size < 5e6
    evaluations = [line for line in map(json.loads, (FOLDER / "log.jsonl").open()) if "evaluation" in line]
    assert evaluations[-1]["step"] == 10_000


def test_it_finds_names_in_the_unseen_style():
    model, processor = AlbefModel.from_pretrained("emoji"), Processor.from_pretrained("emoji")
    gallery = ranking.encode_gallery(
        model, processor, open_sources(["albef:emoji/fluent.tar.gz"]), captions_per_image=1
    )
    assert len(gallery.z_image) == 1811
    found = ranking.two_stage_recalls(model, gallery, k=16)
    assert found["itc"]["img_r1"] >= 40 and found["itc"]["img_r10"] >= 70
    assert found["itm"]["img_r1"] >= 40 and found["itm"]["img_r10"] >= 70
    for name in ("img_r1", "txt_r1", "r_mean"):  # on one scale, re-ranking gains
        assert found["odds"][name] > max(found["itc"][name], found["itm"][name]) + 0.5
    last = [json.loads(line) for line in (FOLDER / "log.jsonl").open()][-1]["evaluation"]
    for way in ("itc", "itm", "sum"):  # half precision, and evaluation in bfloat16 at the time, move it a little
        assert found[way]["img_r1"] == pytest.approx(last[way]["img_r1"], abs=1.0)


def test_kept_images_find_the_same_as_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also in half precision, in which they are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    new = shipped_search()
    kept = shipped_search()
    assert cache_file().stat().st_size < 10e6
    gallery = ranking.encode_gallery(kept.model, kept.processor, kept.source, captions_per_image=1)
    exact = replace(kept, images=replace(kept.images, tokens=torch.stack(list(gallery.image_tokens))))
    assert exact.images.tokens.dtype == torch.float32
    for text in QUERIES:
        found = [names(search.find(text, 8)) for search in (new, kept, exact)]
        assert found[0] == found[1] == found[2], text


def names(query: Query) -> list[list[str]]:
    """What is found, in the order of ITC, in that of ITM and in that of both."""
    return [[hit.name for hit in own] for own in (query.by_itc, query.by_itm, query.by_odds)]
