"""The evaluation rules, with numbers that a person can check."""

import re

import numpy as np
import pytest
import torch

from albef.metrics.boxes import (
    accuracy_by_split,
    box_of_map,
    box_score,
    choose_box,
    contains,
    iou,
    official_iou,
    peak,
    point,
    upsample,
)
from albef.metrics.classification import accuracy
from albef.metrics.nlvr2 import nlvr2_accuracy, nlvr2_consistency, sentence_of
from albef.metrics.vqa import (
    CONTRACTIONS,
    answer_accuracy,
    apply_punctuation_rule,
    normalise_answer,
    vqa_accuracy,
)


def raises(text: str):
    return pytest.raises(ValueError, match=re.escape(text))


# VQA


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("A T-shirt.", "t shirt"),
        ("\tnone\n", "0"),
        ("dont know!", "don't know"),
        ("1,000 (people)", "1000 people"),
        ("left,right", "left right"),
        ("wasnt\nthe\tone", "wasn't 1"),
        ("2.5", "2.5"),
        ("the", ""),
    ],
)
def test_normalised_answers(text: str, normalised: str) -> None:
    assert normalise_answer(text) == normalised


def test_contractions_of_every_pattern() -> None:
    assert len(CONTRACTIONS) == 120
    assert [CONTRACTIONS[word] for word in ("yall'll", "y'allll", "twas")] == ["y'all'll", "y'all'll", "'twas"]
    assert {wrong for wrong, right in CONTRACTIONS.items() if right == "'ow's'at"} == {"ow's'at", "'ows'at", "'ow'sat"}
    assert [CONTRACTIONS[word] for word in ("let's", "she's", "somebody'd")] == ["let's", "she's", "somebodyd"]
    assert not {"its", "well", "were", "shell", "hell", "ill", "id", "shed", "lets", "shes"} & set(CONTRACTIONS)


def test_only_32_full_stops_are_removed() -> None:
    assert apply_punctuation_rule("." * 40) == "." * 8


def test_a_mark_that_touches_a_space_anywhere_is_deleted_everywhere() -> None:
    assert apply_punctuation_rule("a-b/c") == "a b c"
    assert apply_punctuation_rule("a-b/c -d") == "ab c d"
    assert apply_punctuation_rule("a-/b") == "a  b"  # spaces that the rule itself makes don't count


@pytest.mark.parametrize(("agreeing", "percent"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (9, 100)])
def test_ten_annotators(agreeing: int, percent: int) -> None:
    answers = ["cat"] * agreeing + ["dog"] * (10 - agreeing)
    assert 100 * answer_accuracy("The cat", answers) == pytest.approx(percent)


def test_unanimous_answers_are_compared_as_they_are() -> None:
    assert answer_accuracy("yes", [" yes\n"] * 10) == 1
    assert answer_accuracy("Yes", ["yes"] * 10) == 0
    assert answer_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1


@pytest.mark.parametrize("answers", [["two"], ["two", "3"], ["two"] * 3])
def test_few_answers_are_matched_exactly(answers: list[str]) -> None:
    assert answer_accuracy("2", answers) == 1
    assert answer_accuracy("4", answers) == 0


def test_four_answers_follow_the_official_rule() -> None:
    assert answer_accuracy("a", ["a"] * 4) == 1
    # each of the two who agree sees one other, the other two see both: (1/3 + 1/3 + 2/3 + 2/3) / 4
    assert answer_accuracy("cat", ["cat", "cat", "dog", "dog"]) == pytest.approx(0.5)


def test_vqa_accuracy_is_the_mean_in_percent() -> None:
    assert vqa_accuracy({1: "red", 2: "blue"}, {2: ["red"], 1: ["red"]}) == 50


def test_ids_must_agree() -> None:
    with raises("no prediction for 1 ids, e.g. [7]; no truth for 2 ids, e.g. ['7', 8]"):
        vqa_accuracy({"7": "red", 8: "red"}, {7: ["red"]})
    with raises("no truths"):
        vqa_accuracy({}, {})
    with raises("no answers to compare 'red' with"):
        vqa_accuracy({7: "red"}, {7: []})


# NLVR2


def test_nlvr2_by_hand() -> None:
    truths = {"dev-1-0-0": "True", "dev-1-1-0": "False", "dev-1-0-1": "True", "dev-2-0-0": "False"}
    predictions = {"dev-1-0-0": "true", "dev-1-1-0": True, "dev-1-0-1": True, "dev-2-0-0": "FALSE"}
    assert nlvr2_accuracy(predictions, truths) == 3 / 4
    # sentences dev-1-0 (one pair wrong), dev-1-1, dev-2-0
    assert nlvr2_consistency(predictions, truths) == pytest.approx(2 / 3)


def test_nlvr2_bad_input() -> None:
    assert sentence_of("test1-12-3-0") == "test1-12-0"
    with raises("'12-3': the form is split-set-pair-sentence"):
        nlvr2_consistency({"12-3": "True"}, {"12-3": "True"})
    with raises("no prediction for 1 ids, e.g. ['dev-1-0-0']"):
        nlvr2_accuracy({}, {"dev-1-0-0": "True"})
    with raises("no truths"):
        nlvr2_consistency({}, {})


# Boxes


def test_iou_by_hand() -> None:
    assert iou((0, 0, 2, 2), (1, 0, 2, 2)) == pytest.approx(2 / 6)
    assert iou((0, 0, 2, 2), (2, 0, 2, 2)) == 0
    assert iou((0, 0, 2, 2), (5, 5, 2, 2)) == 0
    assert iou((-1, -1, 2, 2), (-1, -1, 2, 2, 0.9)) == 1


def test_official_iou_does_not_count_one_pixel() -> None:
    assert official_iou((0, 0, 4, 4), (3, 0, 4, 4)) == 0
    assert official_iou((0, 0, 4, 4), (2.5, 0, 4, 4)) == pytest.approx(iou((0, 0, 4, 4), (2.5, 0, 4, 4))) != 0
    assert official_iou((0, 0, 9, 1), (0, 0, 9, 1)) == 0
    for thin in ((4, 4, 1, 3), (4, 4, 3, 1)):
        assert official_iou((0, 0, 9, 9), thin) == official_iou(thin, (0, 0, 9, 9)) == 0


def test_empty_boxes_overlap_with_nothing() -> None:
    for measure in (iou, official_iou):
        assert measure((1, 1, 0, 0), (1, 1, 0, 0)) == 0
        assert measure((1, 1, 0, 5), (0, 0, 9, 9)) == 0


@pytest.mark.parametrize("box", [(5, 5, -1, 2), (5, 5, 2, -1), (5, 5, float("nan"), 1), (5, 5, 2)])
def test_boxes_are_checked(box: tuple[float, ...]) -> None:
    for measure in (
        lambda: iou(box, (0, 0, 1, 1)),
        lambda: official_iou((0, 0, 1, 1), box),
        lambda: choose_box(np.ones((9, 9)), [box]),
        lambda: contains(box, (1, 1)),
    ):
        with raises("a box is x, y, width, height in pixels"):
            measure()


def test_accuracy_by_split() -> None:
    assert accuracy_by_split([0.5, 0.49, 1.0], ["val", "val", "testA"]) == {"val": 0.5, "testA": 1.0}
    with raises("1 IoUs and 2 splits"):
        accuracy_by_split([0.5], ["val", "val"])


def test_score_by_hand() -> None:
    heat_map = np.arange(12.0).reshape(3, 4)
    assert box_score(heat_map, (1, 1, 2, 2)) == (5 + 6 + 9 + 10) / 2
    assert box_score(heat_map, (1, 1, 2, 2), area_exponent=1) == (5 + 6 + 9 + 10) / 4
    assert box_score(heat_map, (-2, 0, 4, 1)) == (0 + 1) / 2  # half of it outside, with all its area
    assert box_score(heat_map, (3, 2, 3, 3)) == pytest.approx(11 / 3)
    assert box_score(heat_map, (1, 1, 0, 2)) == box_score(heat_map, (9, 9, 2, 2)) == 0


def test_choice_by_hand() -> None:
    heat_map = np.zeros((4, 6))
    heat_map[1:3, 2:4] = 1
    wide, tight, one = (0, 0, 6, 4), (2, 1, 2, 2), (2, 1, 1, 1)
    # sums 4, 4, 1 over the roots of areas 24, 4, 1
    assert choose_box(heat_map, [wide, tight, one]) == 1
    assert choose_box(heat_map, [wide, tight, one], area_exponent=0) == 0  # 4, 4, 1: the first of equals
    assert choose_box(heat_map, [wide, one, tight], area_exponent=1) == 1  # 1/6, 1, 1
    assert choose_box(heat_map, [(2.9, 1.9, 1.2, 1.2)]) == 0  # columns 2 to 4, rows 1 to 3


def test_nothing_to_choose() -> None:
    heat_map = np.ones((4, 6))
    assert choose_box(heat_map, []) is None
    assert choose_box(heat_map, [(1, 1, 0, 2), (1, 1, 2, 0)]) is None
    assert choose_box(heat_map, [(6, 0, 3, 3), (0, 9, 3, 3), (-5, -5, 3, 3)]) is None
    assert choose_box(np.zeros((4, 6)), [(0, 0, 2, 2)]) is None
    assert choose_box(-heat_map, [(0, 0, 2, 2)]) is None


def test_boxes_over_the_edge_are_cut() -> None:
    heat_map = np.ones((4, 6))
    heat_map[:, -1] = 100
    # columns -1 and 0: the image's first one alone, not its last as a negative index would have it
    assert choose_box(heat_map, [(-1, 0, 2, 4), (0, 0, 2, 4)]) == 1
    assert choose_box(heat_map, [(4, 0, 9, 9)]) == 0


def test_upsampled_maps() -> None:
    flat = upsample(torch.full((2, 2), 3.0, requires_grad=True), 5, 7)
    assert flat.shape == (5, 7) and flat == pytest.approx(np.full((5, 7), 3.0))
    sharp = np.zeros((3, 4))
    sharp[0, 3] = 1
    large = upsample(sharp, 30, 40)
    assert large[5, 35] == pytest.approx(1, abs=0.1) and large.min() < 0  # cubic: it overshoots
    assert upsample(sharp, 3, 4) == pytest.approx(sharp)


def test_pointing_by_hand() -> None:
    heat_map = np.zeros((4, 6))
    heat_map[1, 5] = 1
    assert peak(heat_map) == (5, 1)
    assert contains((3, 0, 2, 1), (5, 1)) and not contains((3, 0, 1.9, 1), (5, 1))
    assert contains((5, 1, 0, 0), (5, 1)) and not contains((5, 1.1, 2, 2), (5, 1))


class OnDevice(torch.Tensor):
    """A tensor that behaves as one on an accelerator: numpy can't read it before it is on the CPU."""

    def __array__(self, *_):
        raise TypeError("can't convert a device tensor to numpy. Use Tensor.cpu() first")

    numpy = __array__

    def cpu(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_on_a_device_are_fetched(dtype) -> None:
    """`ground` gave its map, which lay on the GPU, to numpy."""
    grid = torch.zeros(3, 4, dtype=dtype)
    grid[1, 2] = 4
    there = grid.as_subclass(OnDevice)
    with pytest.raises(TypeError, match="cpu"):
        np.asarray(there)
    assert peak(there) == (2, 1) and point(there, 30, 40) == (25.0, 15.0)
    assert upsample(there, 6, 8).shape == (6, 8) and box_of_map(there) == (2, 1, 1, 1)
    assert box_score(there, (2, 1, 1, 1)) == 4 and choose_box(there, [(0, 0, 1, 1), (2, 1, 1, 1)]) == 1


def test_the_point_of_a_map_is_in_the_middle_of_its_highest_patch():
    """Enlarged, the peak of a corner's patch moves to the image's edge."""
    grid = np.zeros((6, 6))
    grid[0, 5] = 1
    assert point(grid, 24, 48) == (44.0, 2.0) and peak(upsample(grid, 24, 48)) == (46, 0)
    assert contains((69, 4, 1, 1), (70, 5)) and not contains((69, 4, 0.9, 1), (70, 5))


def test_box_of_a_map() -> None:
    heat_map = np.array(
        [
            [9, 0, 0, 0, 0, 9],
            [0, 0, 5, 6, 0, 9],
            [0, 0, 0, 10, 0, 0],
            [0, 4, 5, 7, 0, 0],
        ]
    )
    assert box_of_map(heat_map) == (2, 1, 2, 3)  # the nines don't hang together with the ten
    assert box_of_map(torch.tensor([[0.0, 2.0]])) == (1, 0, 1, 1)


def test_spots_may_wind() -> None:
    snake = np.array([[1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1], [1, 0, 0, 0], [2, 0, 1, 1]])
    assert box_of_map(snake) == (0, 0, 4, 5)
    assert box_of_map(np.eye(3)) == (0, 0, 1, 1)  # corners don't hang together


def test_box_of_a_map_without_positive_values() -> None:
    assert box_of_map(np.zeros((4, 6))) == (0, 0, 6, 4)
    assert box_of_map(np.full((4, 6), -1.0)) == (0, 0, 6, 4)


# Classification


def test_accuracy_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [-1.0, -2.0]])
    assert accuracy(logits, torch.tensor([1, 1, 0])) == pytest.approx(2 / 3)
    assert accuracy([1, 0, 0], [1, 1, 0]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("predictions", "targets", "text"),
    [
        ([], [], "predictions [0] and targets [0]"),
        ([1, 0], [1], "predictions [2] and targets [1]"),
        ([1], [[1]], "predictions [1] and targets [1, 1]"),
        (np.zeros((3, 2)), [1], "predictions [3, 2] and targets [1]"),
    ],
)
def test_accuracy_of_other_shapes(predictions, targets, text: str) -> None:
    with raises(text):
        accuracy(predictions, targets)
