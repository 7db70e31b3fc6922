"""The commands for fine-tuned models: what they print, what they write, and how they end."""

import json

import pytest
from PIL import Image

import albef
from albef.cli import main
from albef.data.world import scene
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.classifier import AlbefForClassification, AlbefForPairs, AlbefForTextAssignment
from tests.test_api import LISTED, save

KINDS = {
    "matching": AlbefModel,
    "answering": AlbefForAnswering,
    "judging": AlbefForClassification,
    "comparing": AlbefForPairs,
    "assigning": AlbefForTextAssignment,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of every kind, three pictures, and JSON lists about them."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, kind in KINDS.items():
        save(folder / name, kind)
    for number in range(3):
        scene("test", number).picture().save(folder / f"{number}.png")
    images = [f"{number}.png" for number in (0, 1, 2)]
    lists = {
        "asked": [
            {"image": image, "question": "what is it?", "answer": ["red", "red", "two"], "question_id": 9 - row}
            for row, image in enumerate(images)
        ],
        "unanswered": [{"image": "0.png", "question": "what is it?", "question_id": "q1"}],
        "statements": [{"image": image, "sentence": "there is a ring", "label": "neutral"} for image in images],
        "compared": [
            {"images": images[:2], "sentence": "both show a ring", "label": "True", "identifier": f"dev-{row}-0-0"}
            for row in range(3)
        ],
        "single": [{"images": images[:1], "sentence": "both show a ring", "label": "True"}],
        "phrases": [
            {"image": image, "text": "the ring", "ref_id": row, "boxes": [[1, 2, 12, 12]], "height": 36, "width": 36}
            for row, image in enumerate(images)
        ],
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


# One picture


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


@pytest.mark.parametrize("options", [[], ["--mode", "itc"], ["--layer", "0"]], ids=str)
def test_ground(run, tmp_path, options):
    mode = "itc" if "itc" in options else "itm"
    wanted = albef.load("matching").ground("0.png", "the ring", mode, 0 if "--layer" in options else None)
    out = tmp_path / "heat.png"
    found = json.loads(run("ground", "matching", "0.png", "the ring", *options, "--out", out, "--json"))
    assert found == {"box": list(map(float, wanted.box)), "points": wanted.points, "picture": str(out)}
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
    assert found == {"questions": 1} and json.loads(result.read_text())[0]["question_id"] == "q1"


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


def test_evaluate_retrieval(run, tmp_path):
    printed, found = figures(run, tmp_path, "matching", "--data", "captions.json", "--k", 2)
    assert found.keys() == {"itc", "itm", "sum"} and "3 pictures, 6 texts, 2 candidates re-ranked" in printed


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
        ("compare judging 0.png 1.png ring", "can't compare two pictures: load an AlbefForPairs"),
        ("match answering 0.png ring", "can't match: load an AlbefModel"),
        ("match matching 0.png ...", "the text '...' has no word in it"),
        ("ground comparing 0.png ring", "can't ground: load an AlbefModel"),
        ("ground matching 0.png ring --layer 7", "layer 7 doesn't exist; the fusion layers are 0 to 1"),
        ("ground matching 0.png ring --out heat.nothing", "unknown file extension"),
        ("answers asked.json --out x.json --least 99", "no answer was given at least 99 times"),
        ("answers absent.json --out x.json", "absent.json"),
        ("answers phrases.json --out x.json", "question"),
        ("evaluate answering --data asked.json --k 0", "--k 0: at least one candidate"),
        ("evaluate answering --data asked.json --answers empty.json", "empty.json is empty"),
        ("evaluate answering --data phrases.json", "question"),
        ("evaluate judging --data missing.json", "none of the examples could be read"),
        ("evaluate judging --data unlabelled.json", "its label is 'maybe', but must be one of contradiction, neutral"),
        ("evaluate comparing --data single.json", "to be a pair, the paths of two pictures"),
        ("evaluate comparing --data statements.json", "to be a pair, the paths of two pictures"),
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


@pytest.mark.parametrize("arguments", ["compare comparing 0.png ring", "ask answering 0.png", "evaluate answering"])
def test_what_is_left_out_is_named(run, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments.split())
    assert stopped.value.code == 2 and "are required" in capsys.readouterr().err
