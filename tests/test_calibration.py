"""What validation pairs tell of a model: the weight of ITM in a search, the temperature of its probability."""

import json
import math

import pytest
import torch

import albef
from albef import calibration
from albef.data.processor import Processor
from albef.data.sources import open_sources
from albef.data.text import train_tokenizer
from albef.models.albef import AlbefModel
from albef.models.start import load_model
from albef.tasks import ranking
from tests.ranks import two_ranks
from tests.test_cli_tasks import folder, run  # noqa: F401 - fixtures
from tests.worlds import TINY, make_world


def test_a_known_temperature_is_found():
    """Pairs that are right as often as the sigmoid of a quarter of their log-odds says."""
    log_odds = torch.linspace(-12, 12, 101, dtype=torch.float64)
    share = (log_odds / 4).sigmoid()
    right = torch.cat([torch.ones(101), torch.zeros(101)]).double()
    found = calibration.fit_temperature(log_odds.repeat(2), right, torch.cat([share, 1 - share]))
    assert found == pytest.approx(4, rel=1e-3)


def test_a_known_weight_is_found():
    """Right candidates drawn by a softmax in which log-odds count three times as much; its sharpness plays no part."""
    generator = torch.Generator().manual_seed(1)
    aligned, log_odds = torch.randn(2, 20000, 8, generator=generator, dtype=torch.float64).unbind()
    chances = (0.4 * aligned + 1.2 * log_odds).softmax(1)
    right = torch.zeros(20000, 8, dtype=torch.bool)
    right.scatter_(1, chances.multinomial(1, generator=generator), True)
    found = calibration.fit_weight([(aligned, log_odds, right), (aligned[:0], log_odds[:0], right[:0])])
    assert found == pytest.approx(3, rel=0.1)
    with pytest.raises(ValueError, match=r"no query has a right candidate on its shortlist.*raise --k"):
        calibration.fit_weight([(aligned, log_odds, torch.zeros_like(right))])


def test_calibration_error_by_hand():
    """Of four pairs at 0.95 three are right, and of two at 0.35 the one that counts twice."""
    shares = torch.tensor([0.95] * 4 + [0.35] * 2)
    right = torch.tensor([1.0, 1, 1, 0, 1, 0])
    found = calibration.calibration_error(shares.logit(), right, torch.tensor([1.0, 1, 1, 1, 2, 1]))
    assert found == pytest.approx(100 * (abs(4 * 0.95 - 3) + abs(3 * 0.35 - 2)) / 7)


def test_hard_candidates_count_as_often_as_they_would_be_drawn():
    aligned = torch.tensor([[5.0, math.log(3), 0.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    right = torch.tensor([[True, False, False, True], [True, True, True, True]])
    listed = torch.tensor([[True, True, True, True], [True, True, True, True]])
    found = calibration._hard(aligned, right, listed)
    torch.testing.assert_close(found, torch.tensor([[0, 1.5, 0.5, 0], [0.0, 0, 0, 0]]))  # two right pairs draw
    listed[0, 2] = False
    torch.testing.assert_close(calibration._hard(aligned, right, listed)[0], torch.tensor([0.0, 2, 0, 0]))


def test_a_drawn_image_is_another_one():
    drawn = calibration._drawn(torch.arange(3).repeat_interleave(200), 3)
    counts = drawn.view(3, 3, 200).sum(2)
    assert (drawn.sum(0) == 1).all() and counts.diag().eq(0).all() and counts.sum(1).min() > 150


def work(rank: int, results, world) -> None:
    torch.manual_seed(0)
    source = open_sources([str(world)])
    captions = [caption for index in range(len(source)) for caption in source[index].captions]
    processor = Processor(train_tokenizer(captions, 120), TINY.image_size, max_tokens=12)
    model = AlbefModel(TINY).eval()
    gallery = ranking.encode_gallery(model, processor, source, batch_size=5)
    (results / f"{rank}.json").write_text(json.dumps(calibration.fit(model, gallery, 6)))


def test_two_ranks_fit_the_same(tmp_path):
    world = make_world(tmp_path / "world")
    work(2, tmp_path, world)
    two_ranks(work, tmp_path, world)
    alone, *both = (json.loads((tmp_path / f"{name}.json").read_text()) for name in (2, 0, 1))
    assert both[0] == both[1]
    for found, wanted in zip(both[0][1].values(), alone[1].values(), strict=True):
        assert found == pytest.approx(wanted, rel=1e-2)
    numbers, figures = alone
    assert figures["true_pairs"] == pytest.approx(100 / 3), "one pair in three is true"
    assert numbers == {name: figures[name]["after"] for name in ("match_weight", "match_temperature")}
    assert figures["match_weight"]["before"] == 1


def test_the_command_writes_into_the_model(run, folder, tmp_path):  # noqa: F811
    said = run("calibrate", "matching", "--data", "captions.json", "--k", 3, "--out", tmp_path / "own")
    assert "odds before" in said and said.endswith(f"written: {tmp_path / 'own' / 'config.json'}\n")
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder / "matching", tmp_path / "own"))
    own = {"match_weight": after["match_weight"], "match_temperature": after["match_temperature"]}
    assert after == {**before, **own} and before["match_weight"] == before["match_temperature"] == 1
    model = albef.load(tmp_path / "own")
    assert model.model.config.match_temperature == own["match_temperature"] != 1
    shares = albef.load("matching").match("0.png", "a ring"), model.match("0.png", "a ring")
    plain, calibrated = (math.log(one.probability / (1 - one.probability)) for one in shares)
    assert calibrated == pytest.approx(plain / own["match_temperature"], abs=1e-4)
    printed = run("match", tmp_path / "own", "0.png", "a ring")
    assert printed == f"match {shares[1].probability:.1%}, cosine {shares[1].cosine:.3f}\n"
    run("calibrate", tmp_path / "own", "--data", "captions.json", "--k", 3)  # in place, and from the same logits
    assert json.loads((tmp_path / "own" / "config.json").read_text()) == after
    load_model(tmp_path / "own").save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == after


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["emoji"], "emoji is no folder of yours to be changed; add --out FOLDER"),
        (["nothing"], "nothing: no saved model here"),
        (["matching", "--out", "judging"], "--out judging: is there already; name a new folder"),
        (["judging"], "judging is an AlbefForClassification, which does not match"),
        (["matching", "--k", 1], "--k 1: give at least 2"),
        (["matching", "--captions", 0], "--captions 0: give at least 1"),
    ],
)
def test_what_cannot_be_calibrated(run, words, message):  # noqa: F811
    with pytest.raises(SystemExit, match=f"albef: {message}"):
        run("calibrate", *words, "--data", "captions.json")
