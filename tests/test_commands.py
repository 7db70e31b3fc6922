"""How commands end, print and help: embed, classify, code pages, defects, torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import albef
from albef import cli
from albef.files import printable
from tests.test_cli_tasks import folder, run  # noqa: F401 - fixtures
from tests.test_imports import best_of_three


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-m", "albef", *words], capture_output=True, env=environ, check=False)


# embed, classify


def test_embed_to_numpy(run, tmp_path, folder) -> None:  # noqa: F811
    out, lines = tmp_path / "vectors.npz", tmp_path / "texts.txt"
    lines.write_text("a red ring\na blue square\n")
    said = run("embed", "0.png", "1.png", "--model", "matching", "--out", out, "--texts", lines)
    assert said == f"2 images, 2 texts: {out}\n"
    found, model = np.load(out), albef.load(folder / "matching")
    assert found["images"].tolist() == ["0.png", "1.png"] and found["texts"].tolist() == ["a red ring", "a blue square"]
    np.testing.assert_allclose(found["image_vectors"], model.embed_images(["0.png", "1.png"]), atol=1e-6)
    np.testing.assert_allclose(found["text_vectors"], model.embed_texts(["a red ring", "a blue square"]), atol=1e-6)


def test_texts_that_are_not_utf_8(run, tmp_path) -> None:  # noqa: F811
    (tmp_path / "texts.txt").write_bytes(b"ring\n\xe9t\xe9\n")
    with pytest.raises(SystemExit, match=r"albef: .*texts.txt: the file is not UTF-8 .*; convert it to UTF-8"):
        run("embed", "--model", "matching", "--out", tmp_path / "v.npz", "--texts", tmp_path / "texts.txt")


def test_embed_to_parquet(run, tmp_path) -> None:  # noqa: F811
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "texts.txt").write_text("a red ring\n")
    out = tmp_path / "vectors.parquet"
    run("embed", "0.png", "--model", "matching", "--out", out, "--texts", tmp_path / "texts.txt")
    found = parquet.read_table(out).to_pylist()
    assert [(row["kind"], row["name"], len(row["vector"])) for row in found] == [
        ("image", "0.png", 16),
        ("text", "a red ring", 16),
    ]


def test_parquet_needs_pyarrow(run, tmp_path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit, match=r"albef: a \.parquet file needs pyarrow: `pip install albef\[parquet\]`"):
        run("embed", "0.png", "--model", "absent", "--out", tmp_path / "v.parquet")


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "train"])
def test_help_says_defaults_in_words(name: str, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.parse([name, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"albef {name}" in said and "None" not in said and "(default: )" not in said


def test_a_wrong_choice_is_told_the_right_ones(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.parse(["evaluate", "matching", "--data", "l.json", "--protocol", "cocoa"])
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "unknown protocol 'cocoa'; there are coco, flickr30k, flickr30k-zero-shot" in said and "None" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("embed 0.png --model matching --out v.csv", "--out v.csv: its suffix says how it is written; give .npz or"),
        ("classify --model matching --labels a b", "no images; give at least one path"),
        ("embed --model matching --out v.npz", "nothing to embed; give paths of images, or --texts FILE"),
        ("embed --texts no.txt --model matching --out v.npz", "--texts no.txt: no such file; give a file with a text"),
        ("embed 0.png --model matching --out absent/v.npz", "there is no folder absent; make it first"),
        ("embed 0.png --model answering --out v.npz", "can't embed images: load an AlbefModel"),
        ("classify 0.png --model matching --labels a b --template ring", "template 'ring': must hold {}"),
    ],
)
def test_what_cannot_be_done(run, words: str, said: str) -> None:  # noqa: F811
    with pytest.raises(SystemExit) as stopped:
        run(*words.split())
    assert str(stopped.value.code).startswith("albef: ") and said in str(stopped.value.code)


@pytest.mark.parametrize("size", ["64", "16x48"])
def test_images_of_another_size(run, folder, tmp_path, size: str) -> None:  # noqa: F811
    wanted = (64, 64) if size == "64" else (16, 48)
    model = albef.load(folder / "matching", image_size=wanted)
    run("embed", "0.png", "--model", "matching", "--image-size", size, "--out", tmp_path / "v.npz")
    np.testing.assert_allclose(np.load(tmp_path / "v.npz")["image_vectors"], model.embed_images(["0.png"]), atol=1e-6)
    words = ("classify", "0.png", "--model", "matching", "--image-size", size, "--labels", "a", "b", "--json")
    assert json.loads(run(*words))[0]["probabilities"] == pytest.approx(
        model.classify("0.png", ["a", "b"]).probabilities
    )


def test_classify(run, folder) -> None:  # noqa: F811
    wanted = albef.load(folder / "matching").classify(["0.png", "1.png"], ["ring", "blue square"])
    words = ("classify", "0.png", "1.png", "--model", "matching", "--labels", "ring", "blue square")
    assert [row["label"] for row in json.loads(run(*words, "--json"))] == [one.label for one in wanted]
    assert [line.split("  ")[-2:] for line in run(*words).splitlines()] == [
        [one.label, name] for one, name in zip(wanted, ["0.png", "1.png"], strict=True)
    ]


# Measuring


def test_half_a_test_set_is_an_error(run, folder, tmp_path) -> None:  # noqa: F811
    """Recalls over the other half would look like those of the whole."""
    rows = [{"image": "absent.png" if row % 2 else f"{row % 3}.png", "caption": f"ring {row}"} for row in range(8)]
    (folder / "half.json").write_text(json.dumps([{**row, "image_id": n} for n, row in enumerate(rows)]))
    with pytest.warns(UserWarning, match="left out"), pytest.raises(SystemExit, match=r"4 of 8 images \(50.00%\)"):
        run("evaluate", "matching", "--data", "half.json", "--json", tmp_path / "figures.json")
    assert not (tmp_path / "figures.json").exists()
    with pytest.warns(UserWarning, match="left out"):
        words = ("--broken-limit", "0.6", "--json", tmp_path / "figures.json")
        said = run("evaluate", "matching", "--data", "half.json", *words)
    assert json.loads((tmp_path / "figures.json").read_text())["left_out"] == {"unreadable": 4, "of": 8}
    assert "left_out unreadable      4\nleft_out of              8" in said


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("judging", {"sentence": "there is a ring", "label": "neutral"}),
        ("answering", {"question": "what is it", "answer": "red"}),
    ],
)
def test_missing_images_of_other_tasks(run, folder, model: str, row: dict) -> None:  # noqa: F811
    rows = [{"image": name, "question_id": number, **row} for number, name in enumerate(["0.png", "absent.png"])]
    (folder / "half-missing.json").write_text(json.dumps(rows))
    with pytest.warns(UserWarning, match="left out"), pytest.raises(RuntimeError, match=r"1 of 2 images \(50.00%\)"):
        albef.evaluate(model, "half-missing.json")
    with pytest.warns(UserWarning, match="left out"):
        found = albef.evaluate(model, "half-missing.json", broken_limit=0.5)
    assert found["left_out"] == {"unreadable": 1, "of": 2}


def test_measuring_from_python(run, folder) -> None:  # noqa: F811
    """The command is a thin caller; a pipeline may be given in place of a name."""
    model = albef.load("matching", device="cpu")
    found = albef.evaluate(model, ["captions.json"], k=2)
    assert found.keys() == {"itc", "itm", "sum", "odds"} and found == albef.evaluate(
        folder / "matching", "captions.json", k=2
    )
    assert albef.evaluate(model, "phrases.json", task="grounding", mode=("itc",)).keys() == {"itc"}
    assert albef.PROTOCOLS["coco"] == {"image_size": 384, "k": 256}
    with pytest.raises(ValueError, match="unknown protocol 'cocoa'; there are coco, flickr30k"):
        albef.evaluate(model, "captions.json", "cocoa")
    with pytest.raises(ValueError, match="--layer 0: is for grounding"):
        albef.evaluate(model, "captions.json", layer=0)
    with pytest.raises(TypeError, match="candidates"):
        albef.evaluate(model, "captions.json", candidates=3)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"precision": "half"}, "unknown precision 'half'; there are float32, bfloat16"),
        ({"task": "grounding", "mode": "gradcam"}, "unknown mode 'gradcam'; there are itm, itc"),
        ({"task": "vqa"}, "unknown task 'vqa'; there are retrieval, grounding"),
        ({"broken_limit": 3}, "broken_limit 3: is a share of the images, from 0 to 1"),
    ],
)
def test_rules_with_values_that_do_not_exist(rules: dict, said: str) -> None:
    """Some were measured by another rule, without a word."""
    with pytest.raises(ValueError, match=said):
        albef.evaluate("world", "world:test/2", **rules)


def test_a_single_mode_by_its_name(run) -> None:  # noqa: F811
    """Its letters were taken for three modes."""
    assert albef.evaluate("matching", "phrases.json", task="grounding", mode="itc").keys() == {"itc"}


def test_an_image_that_is_left_out_of_two_heat_maps_counts_once(run, folder) -> None:  # noqa: F811
    rows = [{"image": name, "text": "the ring", "box": [1, 1, 9, 9]} for name in ("0.png", "absent.png")]
    (folder / "half-phrases.json").write_text(json.dumps(rows))
    with pytest.warns(UserWarning, match="left out"):
        found = albef.evaluate("matching", "half-phrases.json", task="grounding", broken_limit=0.5)
    assert found["left_out"] == {"unreadable": 1, "of": 2} and found["itc"]["phrases"] == 1


# How commands end and print


def test_a_defect_shows_where_it_is(run, monkeypatch) -> None:  # noqa: F811
    """Only what a user can mend is one line; there is no option that one would have had to think of before."""
    monkeypatch.setattr(albef.Pipeline, "match", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("match", "matching", "0.png", "a ring")


def test_interrupted(run, monkeypatch) -> None:  # noqa: F811
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(albef.Pipeline, "match", stop)
    with pytest.raises(SystemExit) as stopped:
        run("match", "matching", "0.png", "a ring")
    assert stopped.value.code == 130


def test_under_torchrun_errors_are_recorded(run, monkeypatch, tmp_path) -> None:  # noqa: F811
    record = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(record))
    with pytest.raises(SystemExit, match="albef: absent: no saved model here"):
        run("match", "absent", "0.png", "a ring")
    assert "no saved model here" in record.read_text()


def test_an_unknown_command(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["matsch"])
    assert stopped.value.code == 2 and "no command 'matsch'; there are demo, train" in capsys.readouterr().err


def test_a_narrow_code_page(folder) -> None:  # noqa: F811
    """A letter that a pipe's code page lacks ended the command after its work."""
    answers = folder / "foreign.json"
    answers.write_text(json.dumps(["red", "\u8d64"]))
    for page, foreign in (("cp1252", b"\\u8d64"), ("ascii", b"\\u8d64"), ("utf-8", "\u8d64".encode())):
        words = ("ask", str(folder / "answering"), str(folder / "0.png"), "what?", "--answers", str(answers))
        done = command(*words, PYTHONIOENCODING=page)
        assert done.returncode == 0, done.stderr
        assert b"red" in done.stdout and foreign in done.stdout
    assert command("recipes", "pretrain-14m", PYTHONIOENCODING="ascii").returncode == 0


def test_names_of_strangers_do_not_reach_the_terminal_as_commands(run) -> None:  # noqa: F811
    assert printable("a\x1b[2Jb\x9b\u8d64 \u00e9\n", kept="\n") == "a\\x1b[2Jb\\x9b\u8d64 \u00e9\n"
    with pytest.raises(SystemExit) as stopped:
        run("match", "matching", "\x1b[2Jabsent.png", "a ring")
    assert "\x1b" not in stopped.value.code and "\\x1b[2Jabsent.png" in stopped.value.code


@pytest.mark.parametrize("words", [*cli.COMMANDS, "train pretrain-tiny"])
def test_help_of_a_command_needs_no_torch(words: str) -> None:
    def measure() -> float:
        start = time.perf_counter()
        call = f"main([*'{words}'.split(), '--help'])"
        code = f"import sys; from albef.cli import main\ntry: {call}\nexcept SystemExit: pass\n"
        done = subprocess.run(
            [sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, check=False
        )
        assert done.returncode == 0 and f"usage: albef {words}".encode() in done.stdout, done.stderr
        assert b"{None" not in done.stdout or words.startswith("train "), "an option is left out, not given as None"
        return time.perf_counter() - start

    assert best_of_three(measure) < 0.5
