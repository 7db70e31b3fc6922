"""`albef convert --bert`: sizes, words, cut and pooling of any BERT, and the outputs of the published implementation.

The weights come from a formula, the outputs from `tests/golden/bert/make.py`, which ran Hugging Face's `BertModel`.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from albef import cli
from albef.conversion import convert
from albef.data.processor import Processor
from albef.data.text import keeps_case
from albef.errors import AlbefValueError
from albef.models.albef import AlbefModel
from albef.models.layout import PackedText
from albef.models.names import to_official
from albef.models.start import load_model
from albef.tasks import make_task
from tests.bert_weights import CONFIG, INPUT_IDS, MASK, weights
from tests.worlds import TINY, make_world, tiny_recipe

OUTPUTS = json.loads((Path(__file__).parent / "golden" / "bert" / "outputs.json").read_text())
IDS, WORDS_OF = torch.tensor(INPUT_IDS), torch.tensor(MASK)
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GERMAN = ["[unused0]", "der", "Hund", "hund", "##e", "l\u00e4uft", "[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]"]
GERMAN += [f"wort{index}" for index in range(30 - len(GERMAN))]
STATES = {"atol": 1e-5, "rtol": 0.0}


def publish(folder, state=None, words=None, **config):
    """A folder as a hub has it; returns the path of its weights."""
    folder.mkdir(exist_ok=True)
    save_file({"embeddings.position_ids": torch.arange(12)[None]} | (state or weights()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    listed = words or [*SPECIALS, *(f"w{index}" for index in range(25))]
    (folder / "vocab.txt").write_text("\n".join(listed), encoding="utf-8")
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def deit(tmp_path_factory):
    """A small image encoder, so that starts are made in no time."""
    config = replace(TINY, vision_width=64, vision_layers=1, patch_size=16)
    state = to_official(AlbefModel(config).state_dict(), config)
    image = {n.removeprefix("visual_encoder."): t for n, t in state.items() if n.startswith("visual_encoder.")}
    path = tmp_path_factory.mktemp("deit") / "deit.pth"
    torch.save({"model": image}, path)
    return path


def started(out, **options):
    return convert(out=out, image_size=32, **options), load_model(out).eval()


def test_texts_are_encoded_as_by_the_published_implementation(deit, tmp_path):
    """Without `bert.` and MLM head, with the pooler; heads 8 wide, as its config.json says."""
    (tmp_path / "hub" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "hub" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    bert = publish(tmp_path / "hub")
    report, model = started(tmp_path / "start", deit=deit, bert=bert, text_layers=3, fusion_from=[2, 0])
    config = model.config
    assert (config.text_layers, config.fusion_layers, config.text_heads, config.text_pooling) == (3, 2, 3, "mean")
    assert (config.text_width, config.text_intermediate, config.vocab_size, config.max_positions) == (24, 40, 30, 12)
    assert report.splitlines()[1:5] == [
        "text layers from BERT's layers 0, 1, 2, fusion layers from 2, 0",
        "a text is compared by the mean of its words",
        "new: what reads the image in the fusion layers, mlm_head (the file has none)",
        "dropped: pooler",
    ]
    packed = PackedText.of(WORDS_OF)
    found = model.encode_text(IDS, packed)
    torch.testing.assert_close(found, torch.tensor([word for own in OUTPUTS["states"] for word in own]), **STATES)
    mean = torch.tensor(OUTPUTS["mean"])
    torch.testing.assert_close(model.pool_text(found, packed), mean, **STATES)
    torch.testing.assert_close(model.pool_text(model.encode_text(IDS, WORDS_OF), WORDS_OF), mean, **STATES)
    for ours, theirs in zip(model.fusion_encoder.layers, (2, 0), strict=True):
        for part in ("self_attention", "feed_forward"):
            own, source = (
                getattr(ours, part).state_dict(),
                getattr(model.text_encoder.layers[theirs], part).state_dict(),
            )
            assert all(own[name].equal(source[name]) for name in source)
        assert not ours.cross_attention.out.weight.equal(ours.self_attention.out.weight)


@pytest.mark.parametrize("old", [False, True])
def test_an_mlm_head_comes_along(deit, tmp_path, old):
    """With `bert.`, as `.bin`, in old files with gamma and beta; heads from the option."""
    state = weights(head=True)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    state |= {"cls.seq_relationship.weight": torch.zeros(2, 24), "bert.pooler.dense.bias": torch.zeros(24)}
    if old:
        state = {re.sub(r"(?<=LayerNorm\.)weight", "gamma", name): tensor for name, tensor in state.items()}
        state = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "bert.bin")
    (tmp_path / "words.txt").write_text("\n".join([*SPECIALS, *map(str, range(25))]))
    options = {"deit": deit, "bert": tmp_path / "bert.bin", "vocabulary": tmp_path / "words.txt", "text_heads": 3}
    report, model = started(tmp_path / "start", **options, text_layers=3, fusion_from=[1])
    assert "new: what reads the image in the fusion layers\n" in report
    assert "dropped: pooler, next-sentence head\n" in report and "compared by its [CLS]" in report
    logits = model.fill_in(model.encode_text(IDS, WORDS_OF))[:, 1]
    torch.testing.assert_close(logits, torch.tensor(OUTPUTS["mlm_logits"]), atol=2e-5, rtol=1e-5)
    report, halves = started(tmp_path / "halves", **options)
    assert "text layers from BERT's layers 0, fusion layers from 1, 2" in report
    upper = halves.fusion_encoder.layers[1].feed_forward.fc1.weight
    assert upper.equal(state["bert.encoder.layer.2.intermediate.dense.weight"])


def test_what_nothing_starts_from_is_named(deit, tmp_path):
    report = convert(deit=deit, bert=publish(tmp_path / "hub"), text_layers=1, fusion_from=[2], out=tmp_path / "start")
    assert "dropped: pooler, layer 1\n" in report
    (tmp_path / "hub" / "config.json").unlink()
    with pytest.raises(
        AlbefValueError, match="width 24 is not made of 64-wide heads; give their number by --text-heads"
    ):
        convert(deit=deit, bert=tmp_path / "hub" / "model.safetensors", out=tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder.layer.1.adapter.weight": torch.zeros(2, 2)},
            r"1 tensor left over: text_encoder.*1\.adapter\.weight",
        ),
        ({"classifier.weight": torch.zeros(2, 24)}, r"1 tensor left over: text_encoder\.classifier\.weight"),
        ({"encoder.layer.2.output.dense.bias": None}, r"1 tensor missing: .*layer\.2\.output\.dense\.bias"),
        ({"cls.predictions.bias": torch.zeros(30)}, r"4 tensors missing: .*cls\.predictions\.transform"),
        ({"bert.embeddings.LayerNorm.bias": torch.zeros(24)}, "stand twice, with and without `bert.`"),
        ({"embeddings.position_ids": torch.ones(1, 12)}, "position_ids must count from 0"),
    ],
)
def test_a_file_that_does_not_fit(deit, tmp_path, change, message):
    state = {name: tensor for name, tensor in (weights() | change).items() if tensor is not None}
    with pytest.raises(AlbefValueError, match=message):
        convert(deit=deit, bert=publish(tmp_path / "hub", state), out=tmp_path / "start")
    assert not (tmp_path / "start").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_layers": 4}, "--text-layers 4: .*model.safetensors has 3 layers; give a number from 1 to 3"),
        ({"text_layers": 0}, "--text-layers 0: .* give a number from 1 to 3"),
        ({"text_layers": 3}, "--fusion-from the rest: .*has the layers 0 to 2, and the lowest 3 encode texts; name"),
        ({"fusion_from": [1, 3]}, "--fusion-from 1,3: .*has the layers 0 to 2"),
        ({"text_pooling": "max"}, "text_pooling 'max' must be `cls` or `mean`"),
    ],
)
def test_layers_that_are_not_there(deit, tmp_path, options, message):
    with pytest.raises(AlbefValueError, match=message):
        convert(deit=deit, bert=publish(tmp_path / "hub"), out=tmp_path / "start", **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_act", "relu"), ("layer_norm_eps", 1e-5), ("model_type", "roberta"), ("hidden_size", 768)],
)
def test_a_config_of_another_network(deit, tmp_path, name, value):
    bert = publish(tmp_path / "hub", **{name: value})
    with pytest.raises(AlbefValueError, match=f"config.json, beside model.safetensors, describes .*{name} {value!r} "):
        convert(deit=deit, bert=bert, out=tmp_path / "start")
    (tmp_path / "hub" / "config.json").write_text("{")
    with pytest.raises(AlbefValueError, match=r"config\.json is no JSON"):
        convert(deit=deit, bert=bert, out=tmp_path / "start")


def test_the_command(deit, tmp_path, capsys):
    bert = publish(tmp_path / "hub")
    options = [
        "--deit",
        str(deit),
        "--bert",
        str(bert),
        "--text-layers",
        "3",
        "--fusion-from",
        "1,2",
        "--text-pooling",
        "mean",
    ]
    cli.main(["convert", *options, "--image-size", "32", "--out", str(tmp_path / "start")])
    assert "1 image, 3 text and 2 fusion layers, 30 words" in capsys.readouterr().out
    with pytest.raises(AlbefValueError, match="texts by the mean of their words, which the original"):
        convert(checkpoint=tmp_path / "start", to_official=tmp_path / "model.pth")
    with pytest.raises(SystemExit, match="--fusion-from '1,x' names no layers; give their numbers, 3,4,5"):
        cli.main(["convert", "--bert", str(bert), "--fusion-from", "1,x", "--out", str(tmp_path / "start")])
    with pytest.raises(AlbefValueError, match="--text-pooling say what is taken from --bert; give it"):
        convert(deit=deit, text_layers=3, out=tmp_path / "start")


# Words of another language


def ids(folder, text):
    return Processor.from_pretrained(folder).texts([text])["input_ids"][0].tolist()


def pieces(*names):
    return [GERMAN.index(name) for name in names]


@pytest.mark.parametrize("settings", [None, {"do_lower_case": False}])
def test_a_cased_bert_keeps_capital_letters(deit, tmp_path, settings):
    """Its special pieces have other numbers; by its settings, or by the capital letters in its words."""
    bert = publish(tmp_path / "hub", words=GERMAN)
    if settings:
        (tmp_path / "hub" / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(deit=deit, bert=bert, out=tmp_path / "start", image_size=32)
    assert ids(tmp_path / "start", "der Hund, l\u00e4uft!") == pieces("[CLS]", "der", "Hund", "l\u00e4uft")
    assert ids(tmp_path / "start", "hunde HUND") == pieces("[CLS]", "hund", "##e", "[UNK]")
    processor = Processor.from_pretrained(tmp_path / "start")
    padded = processor.texts(["Hund", "der Hund"])
    assert padded["input_ids"][0].tolist() == pieces("[CLS]", "Hund", "[PAD]")
    recipe = tiny_recipe(make_world(tmp_path / "world"), init=str(tmp_path / "start"))
    objective = make_task(recipe).objective
    assert [objective.cls_id, objective.mask_id] == pieces("[CLS]", "[MASK]")


@pytest.mark.parametrize("strip", [None, False])
def test_settings_beside_a_vocabulary(deit, tmp_path, strip):
    """Small letters although a word has a capital one; accents stay if the settings say so."""
    bert = publish(tmp_path / "hub", words=GERMAN)
    (tmp_path / "hub" / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "strip_accents": strip}))
    convert(deit=deit, bert=bert, out=tmp_path / "start", image_size=32)
    wanted = "[UNK]" if strip is None else "l\u00e4uft"
    assert ids(tmp_path / "start", "Hund L\u00e4uft") == pieces("[CLS]", "hund", wanted)
    (tmp_path / "hub" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(AlbefValueError, match=r"split by a BertJapaneseTokenizer, but .* give the tokenizer"):
        convert(deit=deit, bert=bert, out=tmp_path / "start")


@pytest.mark.parametrize("cased", [False, True])
def test_a_tokenizer_beside_the_file(deit, tmp_path, cased):
    """A published one frames texts by [CLS] and [SEP], cuts and pads; ours frames by [CLS], and the processor cuts."""
    bert = publish(tmp_path / "hub")
    (tmp_path / "hub" / "vocab.txt").unlink()
    numbers = {piece: index for index, piece in enumerate(GERMAN)}
    tokenizer = Tokenizer(models.WordPiece(vocab=numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"]))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8, pad_id=numbers["[PAD]"])
    tokenizer.save(str(tmp_path / "hub" / "tokenizer.json"))
    convert(deit=deit, bert=bert, out=tmp_path / "start", image_size=32)
    own = ("Hund", "l\u00e4uft") if cased else ("hund", "[UNK]")
    assert ids(tmp_path / "start", "der Hund L\u00e4uft der".replace("L", "l")) == pieces("[CLS]", "der", *own, "der")
    assert keeps_case(Processor.from_pretrained(tmp_path / "start").tokenizer) == cased
    tokenizer.model = models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]")
    tokenizer.save(str(tmp_path / "hub" / "tokenizer.json"))
    with pytest.raises(AlbefValueError, match=r"tokenizer.json lacks \[PAD\], \[CLS\]"):
        convert(deit=deit, bert=bert, out=tmp_path / "start")
