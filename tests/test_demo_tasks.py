"""Every task of the generated world: learnt in a few steps, shown on a page each, taken up by the next call."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import albef_demo as demo
from albef.data.processor import Processor
from albef.data.text import load_tokenizer
from albef.engine import train as engine
from albef.models.albef import AlbefModel
from albef.recipe import Recipe
from albef_demo import every_task, pages, recipes, report
from albef_demo.report.chart import Chart, Line
from albef_demo.report.prose import PROSE
from albef_demo.report.tasks import Block, Found, JudgedExample, Pointed, Spot, enlarged
from tests.test_report import EVIL, Page, image
from tests.test_report import figures as recalls

NAMES = ("retrieval", "vqa", "entailment", "nlvr2", "grounding")


def judged(images: int, right: bool = False, written: str | None = None) -> JudgedExample:
    shares = [(EVIL, 0.625), ("circle", 0.25)]
    return JudgedExample([(image(), EVIL)] * images, EVIL, shares, EVIL if right else "circle", right, written)


def found(place: int | None) -> Found:
    hits = [report.Hit(image(), EVIL, 0.25, 3, 0.5), report.Hit(image("blue"), "other", 0.2, 1, 0.1)]
    return Found((image(), EVIL), report.Query(EVIL, hits[::-1], hits, hits), place)


def pointed(right: bool) -> Pointed:
    spots = [Spot("ITM", np.eye(8), (0, 0), (0, 0, 3, 3)), Spot("ITC", np.zeros((8, 8)), None, None)]
    return Pointed((image(), EVIL), EVIL, (1, 1, 4, 4), spots, [(EVIL, np.eye(8))], right)


BLOCKS: dict[str, tuple[Block, Block]] = {
    "retrieval": (found(1), found(None)),
    "vqa": (judged(1, True, EVIL), judged(1, False, "")),
    "entailment": (judged(1, True), judged(1)),
    "nlvr2": (judged(2, True), judged(2)),
    "grounding": (pointed(True), pointed(False)),
}


def task_page(key: str, wrong: bool = True) -> report.TaskPage:
    right_one, wrong_one = BLOCKS[key]
    curve = Chart(EVIL, "step", 10.0, [Line("ITC", [(1.0, 7.0), (10.0, 3.0)], 0)])
    figures = {"guessing": {EVIL: 12.5}, EVIL: {EVIL: 75.126, "more": 50.0}}
    if key == "retrieval":
        figures = {"chance": recalls(12.5), EVIL: recalls(75.126)}
    return report.TaskPage(
        key, EVIL, EVIL, [curve], figures, [right_one, wrong_one], [wrong_one] if wrong else [], 44, EVIL
    )


EVERY = [task_page(name) for name in NAMES]


@pytest.mark.parametrize("key", NAMES)
def test_page_says_all_escaped_and_loads_nothing(key: str) -> None:
    text = report.render_task(task_page(key), EVERY)
    page = Page(text)
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == [
        "curves", "figures", "drawn", "wrong",
    ]  # fmt: skip
    for shown in (PROSE[key].title, "12.50", "75.13", "1 of these 2 are right", "✓ right", "✗ wrong", "44 were"):
        assert shown in text, shown
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|src=\"(?!data:image/webp;base64,)", text)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_pages_lead_to_each_other_and_the_report() -> None:
    tags = Page(report.render_task(EVERY[0], EVERY)).tags
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert links[:5] == ["report.html", *(f"{name}.html" for name in NAMES[1:])]
    overview = report.render_tasks(EVERY)
    Page(overview)
    assert all(f'href="{name}.html"' in overview for name in NAMES) and "<script" not in overview


def test_each_kind_of_example_shows_its_own() -> None:
    texts = {key: report.render_task(task_page(key), []) for key in NAMES}
    assert texts["vqa"].count("written freely: ") == 3 and "nothing</b>" in texts["vqa"] and "63" not in texts["nlvr2"]
    assert "<td>–</td>" in texts["vqa"]
    assert "62%" in texts["vqa"] and 'style="width:25.0%"' in texts["entailment"]
    assert texts["nlvr2"].count("<img") == 2 * 3 and texts["entailment"].count("<img") == 3
    assert "not on the shortlist" in texts["retrieval"] and texts["retrieval"].count('class="found"') == 3 * 3
    assert "points nowhere" in texts["grounding"] and "the true box" in texts["grounding"]
    assert texts["grounding"].count("<img") == 4 * 3
    assert "No more wrong ones are among the first 44" in report.render_task(task_page("vqa", wrong=False), [])


def test_enlarged_keeps_every_pixel_a_square() -> None:
    small = Image.fromarray(np.arange(27, dtype=np.uint8).reshape(3, 3, 3))
    large = np.asarray(enlarged(small, 10))
    assert (
        large.shape == (9, 9, 3) and (large[::3, ::3] == np.asarray(small)).all() and (large[0, 0] == large[2, 2]).all()
    )
    assert enlarged(small, 2).size == (3, 3)


def test_the_draw_is_fixed_and_looks_on_for_wrong_ones() -> None:
    def make(index: int) -> JudgedExample:
        return replace(judged(1, index % 5 > 0), text=str(index))

    drawn, wrong, looked = pages._draw(100, make)
    assert [block.text for block in drawn] == [block.text for block in pages._draw(100, make)[0]]
    assert len(drawn) == pages.SHOWN and len(wrong) == pages.MORE_WRONG and looked > len(drawn)
    assert not any(block.right for block in wrong) and not {b.text for b in drawn} & {b.text for b in wrong}
    assert pages._draw(5, lambda index: judged(1, True))[1:] == ([], 5)


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The world's recipes as runs of four steps on a tiny untrained model and few scenes."""
    config = replace(
        recipes.world().model, vision_width=16, vision_layers=1, vision_heads=2, text_width=16, text_layers=1,
        fusion_layers=1, text_heads=2, text_intermediate=32, embed_dim=16,
    )  # fmt: skip
    tokenizer = load_tokenizer("albef:world.txt")
    torch.manual_seed(0)
    AlbefModel(replace(config, vocab_size=tokenizer.get_vocab_size())).save_pretrained(tmp_path / "start")
    Processor(tokenizer, config.image_size).save_pretrained(tmp_path / "start")

    def small(make: Callable[[], Recipe]) -> Callable[[], Recipe]:
        old = make()
        data = replace(old.data, train=("world:train/60",), validation=("world:validation/8",))
        recipe = replace(
            old, model=config, data=data, init=str(tmp_path / "start"), batch_size=8, steps=4, evaluate_steps=2,
            log_steps=1, k_test=4, objective=replace(old.objective, queue_size=16),
        )  # fmt: skip
        return lambda: recipe

    for name in [name for names in every_task.RUNS.values() for name in names]:
        monkeypatch.setitem(recipes.RECIPES, name, small(recipes.RECIPES[name]))
    monkeypatch.setattr(pages, "TEST", ("world:test/16",))
    monkeypatch.setattr(pages, "SHOWN", 3)
    monkeypatch.setattr(pages, "MORE_WRONG", 1)
    yield tmp_path / "out"


def test_every_task_and_reuse(
    small_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.run(small_world, 0.0, 1, 3, task_seconds=60.0)
    printed = capsys.readouterr().out
    assert "nlvr2 2:00" in printed and "5 of 5: grounding" in printed and "minutes in all" in printed
    assert sorted(folder.name for folder in (small_world / "world").iterdir()) == sorted([*NAMES, "assignment"])
    start = Recipe.load(small_world / "world" / "nlvr2" / engine.RECIPE).init
    assert start == str((small_world / "world" / "assignment" / "model").resolve())
    for name in NAMES:
        text = (small_world / f"{name}.html").read_text()
        links = re.findall(r'href="([a-z0-9]+\.html)"', text)
        assert sorted(links) == sorted({"report.html", *(f"{other}.html" for other in NAMES)} - {f"{name}.html"})
        assert "Trained for 4 steps" in text and len(text) < 1e6
    assert "albef train world-nlvr2" in (small_world / "nlvr2.html").read_text()

    shutil.copytree(small_world / "world" / "nlvr2", small_world / "world" / pages.WITHOUT_ASSIGNMENT)
    monkeypatch.setattr(engine, "train", lambda *_: pytest.fail("trained again"))
    demo.run(small_world, 0.0, 1, 3, task_seconds=60.0)
    assert capsys.readouterr().out.count("holds this run already (4 steps)") == 6
    assert "without text assignment" in (small_world / "nlvr2.html").read_text()


def test_other_settings_are_not_mixed_up(small_world: Path) -> None:
    folder = small_world / "world" / "vqa"
    folder.mkdir(parents=True)
    replace(recipes.RECIPES["world-vqa"](), seed=7).save(folder / engine.RECIPE)
    (folder / "log.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="max_seconds"):
        demo.run(small_world, 0.0, 1, 3, task_seconds=60.0)
    assert not (small_world / "world" / "retrieval" / "log.jsonl").exists()


@pytest.mark.parametrize("seconds, task_seconds", [(60.0, 0.0), (0.0, 0.0), (-60.0, 60.0)])
def test_no_time_is_an_error(tmp_path: Path, seconds: float, task_seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        demo.run(tmp_path, seconds, 1, 3, task_seconds)


def test_interrupted_says_how_to_go_on(
    small_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise engine.Interrupted("stopped")

    monkeypatch.setattr(engine, "train", stop)
    with pytest.raises(SystemExit) as stopped:
        demo.run(small_world, 0.0, 1, 3, task_seconds=60.0)
    assert stopped.value.code == 130
    assert "the same command continues it" in capsys.readouterr().err
