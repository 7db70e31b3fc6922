"""`albef convert` as a function: starts from any BERT, files for the original, what does not go together."""

from dataclasses import replace

import pytest
import torch

from albef import cli
from albef.conversion import convert
from albef.data.processor import Processor
from albef.errors import AlbefValueError
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.models.names import to_official
from albef.models.start import load_model

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = AlbefConfig(
    image_size=(32, 32),
    patch_size=16,
    vision_width=64,
    vision_layers=1,
    vision_heads=1,
    text_width=64,
    text_layers=1,
    fusion_layers=2,
    text_heads=1,
    text_intermediate=96,
    vocab_size=21_128,  # that of the Chinese BERT
    max_positions=40,
    embed_dim=256,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A BERT of three layers and 21,128 words, a DeiT of one layer, and the list of the words."""
    folder, state = tmp_path_factory.mktemp("start"), to_official(AlbefModel(SMALL).state_dict(), SMALL)
    text = {n.removeprefix("text_encoder."): t for n, t in state.items() if n.startswith("text_encoder.")}
    torch.save({n: t for n, t in text.items() if "crossattention" not in n}, folder / "bert.bin")
    image = {n.removeprefix("visual_encoder."): t for n, t in state.items() if n.startswith("visual_encoder.")}
    torch.save({"model": image}, folder / "deit.pth")
    words = [*SPECIAL, "\u732b", *(f"word{index}" for index in range(SMALL.vocab_size - 6))]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return folder


def test_another_languages_bert(files, tmp_path):
    start = {"deit": files / "deit.pth", "bert": files / "bert.bin", "vocabulary": files / "vocab.txt"}
    report = convert(**start, out=tmp_path / "start")
    assert "1 image, 1 text and 2 fusion layers, 21128 words" in report
    model = load_model(tmp_path / "start")
    assert model.config == SMALL.at_size(256)
    bert = torch.load(files / "bert.bin")
    assert model.text_encoder.word_embeddings.weight.equal(bert["bert.embeddings.word_embeddings.weight"])
    words = Processor.from_pretrained(tmp_path / "start").texts(["\u732b"])
    assert words["input_ids"].tolist() == [[2, 5]]


def test_another_languages_bert_without_its_words(files, tmp_path):
    (tmp_path / "bert.bin").symlink_to(files / "bert.bin")  # without the list beside it
    with pytest.raises(
        AlbefValueError, match=r"bert.bin knows 21128 words, but the vocabulary has 30522.*--vocabulary"
    ):
        convert(bert=tmp_path / "bert.bin", out=tmp_path / "start")
    assert not (tmp_path / "start").exists()


def test_words_without_a_bert(files, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "a"]), encoding="utf-8")
    convert(deit=files / "deit.pth", vocabulary=tmp_path / "vocab.txt", image_size=32, out=tmp_path / "start")
    config = load_model(tmp_path / "start").config
    assert (config.vocab_size, config.vision_width, config.text_width) == (6, 64, 768)
    assert config.image_size == (32, 32)


@pytest.mark.parametrize("option", ["deit", "bert"])
def test_a_start_from_something_else(tmp_path, option):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "some.pth")
    with pytest.raises(AlbefValueError, match=f"(?i)some.pth is no file of {option}: .*missing or of another shape"):
        convert(**{option: tmp_path / "some.pth"}, out=tmp_path / "start")


def test_files_of_the_original(tmp_path, capsys):
    config = replace(SMALL, vocab_size=20, mlm_head=False)
    AlbefModel(config).save_pretrained(tmp_path / "ours")
    cli.main(["convert", str(tmp_path / "ours"), "--to-official", str(tmp_path / "new" / "model.pth"), "--half"])
    assert "in half precision" in capsys.readouterr().out
    state = torch.load(tmp_path / "new" / "model.pth", weights_only=True)["model"]
    assert state["temp"].dtype == torch.float16 and state["text_encoder.embeddings.position_ids"].dtype == torch.int64
    convert(checkpoint=tmp_path / "ours", to_official=tmp_path / "large.pth", image_size=64)
    state = torch.load(tmp_path / "large.pth", weights_only=True)["model"]
    assert state["visual_encoder.pos_embed"].shape == state["visual_encoder_m.pos_embed"].shape == (1, 17, 64)
    with pytest.raises(AlbefValueError, match="32 x 64 pixels, but the original knows square ones only"):
        convert(checkpoint=tmp_path / "ours", to_official=tmp_path / "wide.pth", image_size=(32, 64))


def test_files_in_the_wrapping_of_lavis(tmp_path):
    """Its runner writes the model beside the state of its optimiser, its config, the scaler and the epoch."""
    config = replace(SMALL, vocab_size=6, mlm_head=False)
    model = AlbefModel(config)
    beside = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]}, "scaler": {"scale": 65536.0}, "epoch": 4}
    wrapped = {"model": to_official(model.state_dict(), config), "config": {"run": {"task": "retrieval"}}, **beside}
    torch.save(wrapped, tmp_path / "albef_lavis.pt")
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "a"]), encoding="utf-8")
    ours = {"out": tmp_path / "ours", "vocabulary": tmp_path / "vocab.txt"}
    assert "dropped config, optimizer, scaler, epoch" in convert(checkpoint=tmp_path / "albef_lavis.pt", **ours)
    state = load_model(tmp_path / "ours").state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a checkpoint, or --deit and --bert"),
        ({"checkpoint": "some.pth", "bert": "bert.bin", "out": "out"}, "give either a checkpoint, or --deit and"),
        ({"checkpoint": "some.pth"}, "give either --out FOLDER, or --to-official FILE.pth"),
        ({"checkpoint": "ours", "out": "out", "to_official": "new.pth"}, "give either --out FOLDER, or"),
        ({"checkpoint": "some.pth", "to_official": "new.pth"}, "writes a saved model of ours, but .*some.pth is given"),
        ({"bert": "bert.bin", "to_official": "new.pth"}, "writes a saved model of ours, but nothing is given"),
        ({"checkpoint": "ours", "to_official": "ours"}, "is a folder; name a file in it"),
    ],
)
def test_arguments_that_do_not_go_together(tmp_path, arguments, message):
    (tmp_path / "some.pth").touch()
    (tmp_path / "ours").mkdir()
    with pytest.raises(AlbefValueError, match=message):
        convert(**{name: tmp_path / value for name, value in arguments.items()})
