"""The commands for fine-tuned models: what they print, what they write, and how they end."""

import json

import pytest
import torch
from PIL import Image

import albef
import albef.pipeline
from albef.cli import main, parse
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.classifier import AlbefForClassification, AlbefForPairs, AlbefForTextAssignment
from albef.protocols import TASKS_OF, Rules
from albef_demo.world import scene
from tests.test_pipeline import LISTED, save

KINDS = {
    "matching": AlbefModel,
    "answering": AlbefForAnswering,
    "judging": AlbefForClassification,
    "comparing": AlbefForPairs,
    "assigning": AlbefForTextAssignment,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of every kind, three images, and JSON lists about them."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, kind in KINDS.items():
        save(folder / name, kind)
    for number in range(3):
        scene("test", number).image().save(folder / f"{number}.png")
    images = [f"{number}.png" for number in (0, 1, 2)]
    lists = {
        "asked": [
            {"image": image, "question": "what is it?", "answer": ["red", "red", "two"], "question_id": 9 - row}
            for row, image in enumerate(images)
        ],
        "half-answered": [
            {"image": "0.png", "question": "what is it?", "question_id": "q1"},
            {"image": "1.png", "question": "what is it?", "question_id": "q2", "answer": "red"},
        ],
        "unanswered": [{"image": "0.png", "question": "what is it?", "question_id": "q1"}],
        "statements": [{"image": image, "sentence": "there is a ring", "label": "neutral"} for image in images],
        "compared": [
            {"images": images[:2], "sentence": "both show a ring", "label": "True", "identifier": f"dev-{row}-0-0"}
            for row in range(3)
        ],
        "unknown": [{"image": image, "sentence": "there is a ring"} for image in images],
        "half-known": [{"image": images[0], "sentence": "a ring"}, {"image": "1.png", "text": "a", "label": "Neutral"}],
        "unknown-pairs": [
            {"images": images[:2], "sentence": "both show a ring", "identifier": f"test1-0-{row}-0"} for row in range(2)
        ],
        "half-known-pairs": [
            {"images": images[:2], "sentence": "both show a ring", "identifier": f"test1-0-{row}-0", **label}
            for row, label in enumerate([{"label": "True"}, {}])
        ],
        "single": [{"images": images[:1], "sentence": "both show a ring", "label": "True"}],
        "phrases": [
            {"image": image, "text": "the ring", "ref_id": row, "boxes": [[1, 2, 12, 12]], "height": 36, "width": 36}
            for row, image in enumerate(images)
        ],
        "outside": [{"image": "0.png", "text": "the ring", "box": [50, 40, 9, 9], "candidates": [[50, 40, 9, 9]]}],
        "bad-box": [{"image": "0.png", "text": "the ring", "boxes": [[1, 2, -3, 4]]}],
        "captions": [{"image": image, "caption": [f"a ring {image}", "a square"]} for image in images],
        "missing": [{"image": "absent.png", "sentence": "there is a ring", "label": "neutral"}],
        "unlabelled": [{"image": "0.png", "sentence": "there is a ring", "label": "maybe"}],
        "empty": [],
        "words": ["ring", "square"],
    }
    for name, rows in lists.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """Runs a command in the folder; gives what it printed."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


# One image


def test_ask(run):
    question = "what colour is the ring?"
    wanted = albef.load("answering").answer("0.png", question)
    lines = run("ask", "answering", "0.png", question).splitlines()
    assert lines == [f"{answer.probability:>6.1%}  {answer.text}" for answer in wanted] and len(lines) == 4
    found = json.loads(run("ask", "answering", "0.png", question, "--json", "--k", 2))
    assert found == [{"text": answer.text, "probability": answer.probability} for answer in wanted[:2]]
    found = json.loads(run("ask", "answering", "0.png", question, "--json", "--answers", "words.json"))
    assert {answer["text"] for answer in found} == {"ring", "square"}
    free = albef.load("answering").answer("0.png", question, k=1, free=True)
    assert json.loads(run("ask", "answering", "0.png", question, "--json", "--free", "--k", 1)) == [
        {"text": free[0].text, "probability": free[0].probability}
    ]


def test_entail(run):
    wanted = albef.load("judging").entails("0.png", "there is a ring")
    found = json.loads(run("entail", "judging", "0.png", "there is a ring", "--json"))
    assert found == {"label": wanted.label, "probabilities": wanted.probabilities}
    lines = run("entail", "judging", "0.png", "there is a ring").splitlines()
    assert len(lines) == 3 and lines[0].endswith(f"%  {wanted.label}")


def test_compare(run):
    wanted = albef.load("comparing").compare("0.png", "1.png", "both show a ring")
    found = json.loads(run("compare", "comparing", "0.png", "1.png", "both show a ring", "--json"))
    assert found == {"label": wanted.label, "probabilities": wanted.probabilities}
    assert run("compare", "comparing", "0.png", "1.png", "both show a ring").splitlines()[0].endswith(wanted.label)


def test_match(run):
    wanted = albef.load("matching").match("0.png", "a ring")
    assert json.loads(run("match", "matching", "0.png", "a ring", "--json")) == vars(wanted)
    assert run("match", "matching", "0.png", "a ring") == (
        f"match {wanted.probability:.1%}, cosine {wanted.cosine:.3f}\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "answering", "0.png", "what is it"),
        ("entail", "judging", "0.png", "there is a ring"),
        ("compare", "comparing", "0.png", "1.png", "both show a ring"),
        ("match", "matching", "0.png", "a ring"),
        ("ground", "matching", "0.png", "a ring", "--mode", "itc"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_images_of_another_size(run, tmp_path, arguments, monkeypatch):
    """One number for squares, or height and width; the model's own is the default."""
    out = ["--out", tmp_path / "heat.png"] if arguments[0] == "ground" else []
    sizes, load = [], albef.pipeline.load

    def loading(*given, **options):
        found = load(*given, **options)
        sizes.append(found.model.config.image_size)
        return found

    monkeypatch.setattr(albef.pipeline, "load", loading)
    for option in ([], ["--image-size", 64], ["--image-size", "16x48"]):
        assert run(*arguments, *option, *out, "--json")
    assert sizes == [(32, 32), (64, 64), (16, 48)]


@pytest.mark.parametrize("size", ["0", "-32", "x32", "32x", "32x32x32", "wide"])
def test_what_is_no_size(run, capsys, size):
    with pytest.raises(SystemExit) as stopped:
        run("match", "matching", "0.png", "a ring", f"--image-size={size}")
    message = f"albef: --image-size '{size}' is no size; give pixels, 384, or height and width, 256x512"
    assert stopped.value.code == message


def test_a_map_without_positive_values_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr(albef.pipeline.grounding, "similarity_maps", lambda *_: torch.zeros(1, 4, 4))
    arguments = ("ground", "matching", "0.png", "the ring", "--mode", "itc", "--out", tmp_path / "heat.png")
    assert run(*arguments).startswith("x 0, y 0, width 36, height 36 (the map has no positive value: the box says no")
    assert json.loads(run(*arguments, "--json"))["points"] is False


@pytest.mark.parametrize("options", [[], ["--mode", "itc"], ["--layer", "0"]], ids=str)
def test_ground(run, tmp_path, options):
    mode = "itc" if "itc" in options else "itm"
    wanted = albef.load("matching").ground("0.png", "the ring", mode, 0 if "--layer" in options else None)
    out = tmp_path / "heat.png"
    found = json.loads(run("ground", "matching", "0.png", "the ring", *options, "--out", out, "--json"))
    assert found == {"box": list(map(float, wanted.box)), "points": wanted.points, "image": str(out)}
    assert Image.open(out).size == (36, 36)
    first, second = run("ground", "matching", "0.png", "the ring", *options, "--out", out).splitlines()
    x, y, width, height = wanted.box
    assert first.startswith(f"x {x:g}, y {y:g}, width {width:g}, height {height:g}") and second == f"heat map: {out}"
    assert ("no positive value" in first) != wanted.points


# Lists


def test_answers(run, tmp_path, folder):
    out = tmp_path / "list.json"
    assert run("answers", "asked.json", "--least", 1, "--out", out) == f"2 answers: {out}\n"
    assert json.loads(out.read_text()) == ["red", "two"]
    run("answers", "asked.json", "asked.json", "--least", 7, "--out", out)
    assert json.loads(out.read_text()) == ["red"]
    run("answers", "asked.json", "--least", 1, "--most", 1, "--out", out)
    assert json.loads(out.read_text()) == ["red"]
    assert json.loads(run("ask", "answering", "0.png", "what is it", "--answers", out, "--json"))[0]["text"] == "red"


def figures(run, tmp_path, *arguments):
    """What is printed, and what is written."""
    out = tmp_path / "figures.json"
    printed = run("evaluate", *arguments, "--json", out)
    return printed, json.loads(out.read_text())


def test_evaluate_questions(run, tmp_path, folder):
    result = tmp_path / "result.json"
    printed, found = figures(run, tmp_path, "answering", "--data", "asked.json", "--results", result)
    assert found.keys() == {"questions", "ranked", "generated"} and found["questions"] == 3
    assert f"3 answers, ranked: {result}" in printed and f"{found['ranked']:.2f}" in printed
    rows = json.loads(result.read_text())
    assert [row["question_id"] for row in rows] == [9, 8, 7] and all(row["answer"] in LISTED for row in rows)
    run("evaluate", "answering", "--data", "asked.json", "--results", result, "--way", "generated")
    assert [row["question_id"] for row in json.loads(result.read_text())] == [9, 8, 7]
    run("evaluate", "answering", "--data", "asked.json", "--answers", "words.json", "--results", result)
    assert all(row["answer"] in ("ring", "square") for row in json.loads(result.read_text()))


def test_questions_without_answers_are_answered(run, tmp_path):
    result = tmp_path / "result.json"
    _, found = figures(run, tmp_path, "answering", "--data", "unanswered.json", "--results", result)
    assert found == {"questions": 1, "measured": 0} and json.loads(result.read_text())[0]["question_id"] == "q1"
    _, found = figures(run, tmp_path, "answering", "--data", "half-answered.json", "--results", result)
    assert found.keys() == {"questions", "measured", "ranked", "generated"}
    assert (found["questions"], found["measured"]) == (2, 1) and len(json.loads(result.read_text())) == 2


def test_statements_without_labels_are_judged(run, tmp_path):
    """The file holds what `albef entail` says of each."""
    result, said = tmp_path / "result.json", "no example has its label: no figures but their number"
    printed, found = figures(run, tmp_path, "judging", "--data", "unknown.json", "--results", result)
    assert found == {"examples": 3, "measured": 0} and said in printed and f"3 labels: {result}" in printed
    rows = json.loads(result.read_text())
    assert [(row["id"], row["image"], row["sentence"]) for row in rows] == [
        (number, f"{number}.png", "there is a ring") for number in range(3)
    ]
    wanted = albef.load("judging").entails("0.png", "there is a ring")
    assert rows[0]["label"] == wanted.label and rows[0]["probabilities"] == pytest.approx(wanted.probabilities)
    printed, found = figures(run, tmp_path, "judging", "--data", "half-known.json")
    assert (found["examples"], found["measured"]) == (2, 1) and found["accuracy"] in (0, 100) and said not in printed
    printed, found = figures(run, tmp_path, "judging", "--data", "statements.json", "--results", result)
    right = sum(row["label"] == "neutral" for row in json.loads(result.read_text()))
    assert found == {"examples": 3, "accuracy": pytest.approx(100 * right / 3)}


def test_pairs_without_labels_are_compared(run, tmp_path):
    """NLVR2's official script reads `identifier,prediction` from every line."""
    result = tmp_path / "result.csv"
    printed, found = figures(run, tmp_path, "comparing", "--data", "unknown-pairs.json", "--results", result)
    assert found == {"examples": 2, "measured": 0} and "no example has its label" in printed
    label = albef.load("comparing").compare("0.png", "1.png", "both show a ring").label
    assert result.read_text() == f"test1-0-0-0,{label}\ntest1-0-1-0,{label}\n"
    _, found = figures(run, tmp_path, "comparing", "--data", "half-known-pairs.json")
    assert found == {"examples": 2, "measured": 1, "accuracy": 100.0 * (label == "True")}, "every pair's, or no consis"


def test_evaluate_statements_and_pairs(run, tmp_path):
    printed, found = figures(run, tmp_path, "judging", "--data", "statements.json")
    assert found.keys() == {"accuracy", "examples"} and found["examples"] == 3 and "accuracy" in printed
    printed, found = figures(run, tmp_path, "comparing", "--data", "compared.json")
    assert found.keys() == {"accuracy", "examples", "consistency"} and found["examples"] == 3
    _, found = figures(run, tmp_path, "comparing", "--data", "world:test/5")
    assert found["examples"] == 5


def test_evaluate_grounding(run, tmp_path):
    printed, found = figures(run, tmp_path, "matching", "--task", "grounding", "--data", "phrases.json")
    assert found.keys() == {"itm", "itc"} and found["itm"]["phrases"] == 3 and "itc pointing" in printed
    options = ("--mode", "itc", "--layer", "-2")
    _, found = figures(run, tmp_path, "matching", "--task", "grounding", "--data", "phrases.json", *options)
    assert found.keys() == {"itc"}


def test_boxes_outside_of_their_image_are_told(run, tmp_path):
    with pytest.warns(UserWarning, match=r"1 of 1 phrases have no right box that shows any.*0\.png, 'the ring', \[50"):
        _, found = figures(run, tmp_path, "matching", "--task", "grounding", "--data", "outside.json", "--mode", "itc")
    assert found["itc"]["pointing"] == found["itc"]["free"] == 0


def test_evaluate_retrieval(run, tmp_path):
    printed, found = figures(run, tmp_path, "matching", "--data", "captions.json", "--k", 2)
    assert found.keys() == {"itc", "itm", "sum", "odds"}
    assert "3 pictures, 6 texts, up to 2 candidates re-ranked" in printed


def test_zero_shot_says_which_weights_it_needs(run, tmp_path):
    protocol = ("--protocol", "flickr30k-zero-shot")
    printed, _ = figures(run, tmp_path, "matching", "--data", "captions.json", *protocol)
    assert "must have been fine-tuned on COCO (mscoco.pth" in printed and "128 candidates re-ranked" in printed
    printed, _ = figures(run, tmp_path, "matching", "--data", "captions.json", "--protocol", "coco")
    assert "fine-tuned on COCO" not in printed and "256 candidates re-ranked" in printed


# Errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("ask answering absent.png what", "absent.png"),
        ("ask answering 0.png ?", "the question '?' has no word in it"),
        ("ask answering 0.png what --k 0", "k 0: ask for at least one answer"),
        ("ask answering 0.png what --answers empty.json", "empty.json is empty; make one with `albef answers"),
        ("ask answering 0.png what --answers absent.json", "absent.json: no list of answers here"),
        ("ask judging 0.png what", "can't answer questions: load an AlbefForAnswering"),
        ("ask absent 0.png what", "absent: no saved model here"),
        ("entail matching 0.png ring", "can't judge a text: load an AlbefForClassification"),
        ("compare judging 0.png 1.png ring", "can't compare two images: load an AlbefForPairs"),
        ("match answering 0.png ring", "can't match: load an AlbefModel"),
        ("match matching 0.png ...", "the text '...' has no word in it"),
        ("ground comparing 0.png ring", "can't ground: load an AlbefModel"),
        ("ground matching 0.png ring --layer 7", "layer 7 doesn't exist; the fusion layers are 0 to 1"),
        (
            "ground matching 0.png ring --out heat.nothing",
            "--out heat.nothing: its suffix says how it is written; give",
        ),
        ("ground matching 0.png ring --out heat", "--out heat: its suffix says how it is written"),
        ("ground matching 0.png ring --out heat.psd", "--out heat.psd: its suffix"),  # read, but not written
        ("ground absent 0.png ring --out absent/heat.png", "absent/heat.png: there is no folder absent; make it first"),
        ("ground absent 0.png ring --out matching", "matching: is a folder; name a file in it"),
        ("ask answering 0.png what --free --answers words.json", "a list of answers is for ranking; leave it out to"),
        ("answers asked.json --out absent/x.json", "absent/x.json: there is no folder absent; make it first"),
        ("answers asked.json --out x.json --most -1", "most -1: a list of answers has at least one"),
        ("answers asked.json --out x.json --least 99", "no answer was given at least 99 times"),
        ("answers absent.json --out x.json", "absent.json"),
        ("answers phrases.json --out x.json", "question"),
        ("evaluate answering --data asked.json --k 0", "--k 0: give at least 1, or leave it out"),
        ("evaluate matching --data captions.json --captions 0", "--captions 0: give at least 1, or leave it out"),
        ("evaluate matching --data captions.json --json absent/x.json", "there is no folder absent; make it first"),
        ("evaluate answering --data asked.json --results absent/x.json", "there is no folder absent; make it first"),
        (
            "evaluate answering --data unanswered.json",
            "unanswered.json: no example has its answer, so there is nothing",
        ),
        (
            "evaluate judging --data unknown.json",
            "no example has its label, so there is nothing to measure by; add --re",
        ),
        ("evaluate matching --data phrases.json", "phrases.json: phrases, not captions; add --task grounding"),
        ("evaluate matching --data asked.json", 'expected "caption" to be a string or a list of strings'),
        ("evaluate answering --data asked.json --answers empty.json", "empty.json is empty"),
        ("evaluate answering --data phrases.json", "question"),
        ("evaluate judging --data missing.json", "none of the examples could be read"),
        ("evaluate judging --data unlabelled.json", "its label is 'maybe', but must be one of contradiction, neutral"),
        ("evaluate comparing --data single.json", "to be a pair, the paths of two images"),
        ("evaluate comparing --data statements.json", "to be a pair, the paths of two images"),
        ("evaluate matching --task grounding --data bad-box.json", "[x, y, width, height] in pixels"),
        ("evaluate matching --task grounding --data phrases.json --layer 9", "layer 9 doesn't exist"),
        ("evaluate matching --data captions.json --image-size 33", "not a multiple of patch_size"),
        ("evaluate assigning --data asked.json", "only a start for others; fine-tune it first"),
    ],
)
@pytest.mark.filterwarnings("ignore:left out")
def test_errors_are_one_line_and_status_1(run, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments.split())
    message = str(stopped.value.code)  # a text: it is printed, and the status is 1
    assert message.startswith("albef: ") and said in message and "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "option", "tasks"),
    [
        ("judging --data statements.json --k 3", "--k 3", "retrieval, vqa"),
        ("comparing --data compared.json --answers words.json", "--answers words.json", "vqa"),
        ("judging --data statements.json --official", "--official", "vqa"),
        ("judging --data statements.json --vg-root /vg", "--vg-root /vg", "vqa"),
        ("judging --data statements.json --results x.json --way ranked", "--way ranked", "vqa"),
        ("answering --data asked.json --mode itm itc", "--mode itm itc", "grounding"),
        ("answering --data asked.json --layer 0", "--layer 0", "grounding"),
        ("answering --data asked.json --captions 1", "--captions 1", "retrieval"),
        ("answering --data asked.json --protocol coco", "--protocol coco", "retrieval"),
        ("matching --data captions.json --layer 0", "--layer 0", "grounding"),
        ("matching --data captions.json --results x.json", "--results x.json", "vqa, classification, nlvr2"),
        ("matching --task grounding --data phrases.json --k 2", "--k 2", "retrieval, vqa"),
    ],
)
def test_an_option_that_would_do_nothing(run, arguments, option, tasks):
    with pytest.raises(SystemExit) as stopped:
        run("evaluate", *arguments.split())
    model = arguments.split()[0]
    said = str(stopped.value.code)
    assert said.startswith(f"albef: {option}: is for {tasks}, but {model} is measured by the rules of ")
    assert "; leave it out" in said
    assert said.endswith(" or add --task grounding") == ("captions.json --layer" in arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "judging --data statements.json --task retrieval",
            "--task retrieval: only a model that matches has the choice",
        ),
        (
            "answering --data asked.json --way ranked",
            "--way ranked: says which answers --results writes; add --results",
        ),
    ],
)
def test_options_that_need_another(run, arguments, said):
    with pytest.raises(SystemExit, match=f"albef: {said}"):
        run("evaluate", *arguments.split())


def test_every_option_of_evaluate_is_for_all_tasks_or_says_for_which():
    options = vars(parse(["evaluate", "model", "--data", "x.json"]))
    common = {"model", "data", "image_root", "image_size", "precision", "json", "task", "broken_limit"}
    assert options.keys() == common | TASKS_OF.keys()
    assert not Rules().given(), "else they would look given"


def test_a_model_without_a_list_of_answers(run, tmp_path):
    save(tmp_path / "model", AlbefForAnswering, answers=None)
    for command in (
        ["ask", tmp_path / "model", "0.png", "what"],
        ["evaluate", tmp_path / "model", "--data", "asked.json"],
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*command)
        assert "albef answers" in str(stopped.value.code)
    assert run("ask", tmp_path / "model", "0.png", "what", "--free")


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [("compare comparing 0.png ring", "TEXT"), ("ask answering 0.png", "QUESTION"), ("evaluate answering", "--data")],
)
def test_what_is_left_out_is_named(run, arguments, missing, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "Required options" in said and missing in said
