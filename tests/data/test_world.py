"""What is said of the generated world is true of it: every text is read again here, by rules of its own."""

import collections
import itertools
import pickle
import re

import numpy as np
import pytest

from albef.data.examples import open_examples
from albef.data.images import open_image
from albef.data.sources import open_sources
from albef.data.text import load_tokenizer
from albef_demo import world_tasks
from albef_demo.world import COLOURS, QUARTERS, SHAPES, SIDE, SIZES, scene
from albef_demo.world_tasks import LABELS, WorldExamples

COUNT = 300  # scenes looked at
NUMBERS = {word: number for number, word in enumerate(["zero", "one", "two", "three", "four", "five", "six"])}
RELATIONS = "left of|right of|above|below"
WORDS = {**dict.fromkeys(COLOURS, "colour"), **dict.fromkeys(SHAPES, "shape"), **dict.fromkeys(SIZES, "size")}
VISIBLE = {*WORDS, "the", "a", "an", "thing"}


def things_named(text, things):
    """Those that a phrase such as `the small red thing`, `square left of the ring` or `thing at the top left` fits."""
    if found := re.fullmatch(rf"(.+?) ({RELATIONS}) (.+)", text):
        anchors = things_named(found[3], things)
        return [thing for thing in things_named(found[1], things) if any(lies(thing, found[2], b) for b in anchors)]
    text, _, quarter = text.partition(" at the ")
    assert set(text.split()) <= VISIBLE, text
    wanted = [(WORDS[word], word) for word in text.split() if word in WORDS]
    found = [thing for thing in things if all(getattr(thing, what) == word for what, word in wanted)]
    return [thing for thing in found if quarter in ("", thing.quarter)]


def lies(a, words, b):
    """By the half of the image that the middles of the boxes lie in."""
    axis, first = {"left of": (0, a), "right of": (0, b), "above": (1, a), "below": (1, b)}[words]
    second = b if first is a else a
    return first.box[axis] + first.box[axis + 2] / 2 < SIDE / 2 <= second.box[axis] + second.box[axis + 2] / 2


def judge(text, things):
    """The label that a statement about one image deserves."""
    hidden = [word for word in text.split() if word in world_tasks.HIDDEN]
    if hidden:
        described = things_named(" ".join(word for word in text.split() if word in WORDS), things)
        return "neutral" if described else "entailment" if " no " in text else "contradiction"
    return "entailment" if holds(text, things) else "contradiction"


def holds(text, things):
    if (found := re.fullmatch(r"there (?:is|are) (\w+) things?", text)) and found[1] in NUMBERS:
        return len(things) == NUMBERS[found[1]]
    if found := re.fullmatch(rf"(.+) is ({RELATIONS}) (.+)", text):
        return bool(things_named(f"{found[1]} {found[2]} {found[3]}", things))
    if found := re.fullmatch(r"there is (.+)", text):
        return bool(things_named(found[1], things))
    if found := re.fullmatch(r"(.+) is (at the .+)", text):
        return bool(things_named(f"{found[1]} {found[2]}", things))
    if found := re.fullmatch(r"the (.+) is (.+)", text):
        return any(thing in things_named(found[1], things) for thing in things_named(found[2], things))
    return bool(things_named(text, things))


def answer(question, things):
    if question == "how many things are there":
        return next(word for word, number in NUMBERS.items() if number == len(things))
    if found := re.fullmatch(r"is there (.+)", question):
        return "yes" if things_named(found[1], things) else "no"
    start, name = re.fullmatch(r"(what colour is|what shape is|how big is|where is|what is) (.+)", question).groups()
    what = {"what colour is": "colour", "how big is": "size", "where is": "quarter"}.get(start, "shape")
    [thing] = things_named(f"thing {name}" if start == "what is" else name, things)
    return getattr(thing, what)


def holds_of_both(text, left, right):
    if found := re.fullmatch(r"there are (\w+) things in total", text):
        return len(left) + len(right) == NUMBERS[found[1]]
    if found := re.fullmatch(r"the left picture shows (more|fewer) things than the right picture", text):
        return len(left) > len(right) if found[1] == "more" else len(left) < len(right)
    if found := re.fullmatch(r"(the .+ is .+) in both pictures", text):
        return holds(found[1], left) and holds(found[1], right)
    said, what = re.fullmatch(r"(.+ pictures? shows?) (.+)", text).groups()
    shown = [bool(things_named(what, things)) for things in (left, right)]
    return {
        "both pictures show": all(shown), "neither picture shows": not any(shown),
        "exactly one picture shows": sum(shown) == 1, "only the left picture shows": shown == [True, False],
        "only the right picture shows": shown == [False, True],
    }[said]  # fmt: skip


def examples(kind, name=f"world:test/{COUNT}"):
    source = WorldExamples(kind, name)
    return [source[index] for index in range(len(source))]


def things_of(example):
    split, number = example.name.removeprefix("world:").split("/")
    return scene(split, int(number)).things


def ceiling(truths):
    """Share of right guesses for who knows the most frequent of some truths."""
    return max(collections.Counter(truths).values()) / len(truths)


class TestScenes:
    def test_things_differ_and_lie_in_quarters_of_their_own(self):
        for index in range(COUNT):
            things = scene("train", index).things
            for what in ("shape", "colour", "quarter"):
                assert len({getattr(thing, what) for thing in things}) == len(things) in (1, 2, 3)
            for x, y, width, height in (thing.box for thing in things):
                assert 0 <= x <= x + width <= SIDE and 0 <= y <= y + height <= SIDE

    def test_the_image_shows_the_things_in_their_boxes(self):
        found = scene("test", 0)
        pixels = np.asarray(found.image()).astype(int)
        for thing in found.things:
            x, y, width, height = thing.box
            inside = pixels[round(y) : round(y + height), round(x) : round(x + width)]
            near = abs(inside - COLOURS[thing.colour]).max(-1) < 40
            assert near.mean() > 0.3, thing

    def test_captions_of_the_source(self):
        source = open_sources(["world:test/50"])
        assert source[3].captions == source.captions(3)
        assert len({captions[0] for captions in map(source.captions, range(len(source)))}) == len(source)


@pytest.mark.parametrize("kind", ["vqa", "classification", "pairs", "phrases"])
class TestEveryKind:
    def test_a_pure_function_of_the_index(self, kind):
        first, second = open_examples(kind, ["world:train/40"]), WorldExamples(kind, "world:train")
        assert [first[index] for index in range(40)] == [second[index] for index in range(39, -1, -1)][::-1]
        assert pickle.loads(pickle.dumps(first))[7] == first[7]
        assert len({first[index].key for index in range(len(first))}) == len(first)
        with pytest.raises(IndexError, match=f"record {len(first)} of a source of {len(first)}"):
            first[len(first)]

    def test_splits_differ(self, kind):
        assert examples(kind, "world:validation/20") != examples(kind, "world:test/20")

    def test_words_are_in_the_vocabulary_and_few(self, kind):
        tokenizer = load_tokenizer("albef:world.txt")
        texts = [text for example in examples(kind) for text in (example.text, *example.answers)]
        for encoding in tokenizer.encode_batch(texts):
            assert len(encoding.ids) <= 14
            assert not any(token.startswith("##") or token == "[UNK]" for token in encoding.tokens), encoding.tokens

    def test_images(self, kind):
        for example in examples(kind, "world:test/2"):
            assert len(example.images) == (2 if kind == "pairs" else 1)
            for image in example.images:
                assert open_image(image).size == (SIDE, SIDE)


class TestQuestions:
    def test_answers_are_right(self):
        for example in examples("vqa"):
            assert example.answers == (answer(example.text, things_of(example)),), example

    def test_three_different_ones_a_scene(self):
        for three in zip(*[iter(examples("vqa"))] * 3, strict=True):
            assert len({example.text for example in three}) == 3

    def test_answers_cannot_be_guessed(self):
        answers = collections.defaultdict(list)
        for example in examples("vqa", "world:test"):
            answers[" ".join(example.text.split()[:2])].append(example.answers[0])
        shares = {start: ceiling(found) for start, found in answers.items()}
        assert shares.keys() == {"what colour", "what shape", "how big", "how many", "is there", "what is", "where is"}
        chances = {"how big": 1 / 2, "is there": 1 / 2, "how many": 1 / 3, "where is": 1 / 4, "what is": 1 / 5}
        for start, share in shares.items():
            assert share < chances.get(start, 1 / 5) + 0.12, start

    def test_what_is_not_there_nearly_is(self):
        for example in examples("vqa"):
            if example.answers == ("no",):
                colour, shape = example.text.split()[-2:]
                things = things_of(example)
                near = [any(colour == t.colour for t in things), any(shape == t.shape for t in things)]
                assert all(near) if len(things) > 1 else sum(near) == 1


class TestStatements:
    def test_labels_are_right(self):
        for example in examples("classification"):
            assert example.label == judge(example.text, things_of(example)), example

    def test_labels_are_balanced_and_no_wording_gives_them_away(self):
        found = examples("classification", "world:test")
        assert set(collections.Counter(example.label for example in found).values()) == {len(found) // 3}
        wordings = collections.defaultdict(list)
        for example in found:
            hidden = any(word in world_tasks.HIDDEN for word in example.text.split())
            wordings[hidden, " no " in example.text].append(example.label)
        assert {frozenset(labels) for labels in wordings.values()} == {
            frozenset(pair) for pair in itertools.combinations(LABELS, 2)
        }
        assert all(ceiling(labels) < 0.55 for labels in wordings.values())

    def test_numbers_are_balanced(self):
        labels = collections.defaultdict(list)
        for example in examples("classification", "world:train/2000"):
            if example.text.endswith(("one thing", "two things", "three things")):
                labels[example.text].append(example.label)
        assert len(labels) == 3
        assert all(0.25 < found.count("entailment") / len(found) < 0.75 for found in labels.values())


class TestPairs:
    @pytest.fixture
    def found(self, monkeypatch):
        """Examples whose images are the scenes themselves."""
        monkeypatch.setattr(world_tasks, "png", lambda scene: scene)
        return examples("pairs")

    def test_labels_are_right(self, found):
        for example in found:
            left, right = (scene.things for scene in example.images)
            assert example.label == str(holds_of_both(example.text, left, right)), example

    def test_every_statement_is_true_of_two_pairs_in_four(self, found):
        sentences = collections.defaultdict(list)
        for example in found:
            split, group, pair, sentence = example.key.split("-")
            sentences[split, group, sentence].append((int(pair), example.text, example.label))
        for four in sentences.values():
            pairs, texts, labels = zip(*four, strict=True)
            assert (pairs, len(set(texts)), sorted(labels)) == ((0, 1, 2, 3), 1, ["False", "False", "True", "True"])

    def test_scenes_are_as_others(self, found):
        for example in found:
            for shown in example.images:
                assert len({thing.colour for thing in shown.things}) == len(shown.things)
        assert len({example.images for example in found}) == len(found)


class TestPhrases:
    def test_fit_one_thing_only(self):
        for example in examples("phrases"):
            [thing] = things_named(example.text, things_of(example))
            assert example.boxes == (thing.box,), example

    def test_boxes_to_choose_among(self):
        places = collections.Counter()
        for example in examples("phrases"):
            things = things_of(example)
            assert {thing.box for thing in things} < set(example.candidates)
            assert len(example.candidates) == len(things) + 2
            assert (example.size, example.split) == ((SIDE, SIDE), "test")
            places[example.candidates.index(example.boxes[0])] += 1
            for x, y, width, height in example.candidates:
                assert 0 <= x <= x + width <= SIDE and 0 <= y <= y + height <= SIDE
        assert ceiling(list(places.elements())) < 0.35

    def test_two_things_of_a_scene(self):
        for first, second in zip(*[iter(examples("phrases"))] * 2, strict=True):
            assert first.boxes != second.boxes or len(things_of(first)) == 1
            assert first.candidates == second.candidates


def test_unknown_part():
    with pytest.raises(ValueError, match=r"world:exam: no such part .* there are world:train \(20,000 scenes\)"):
        open_examples("vqa", ["world:exam"])


def test_quarters_are_the_words_for_places():
    assert {example.answers[0] for example in examples("vqa") if example.text.startswith("where")} == set(QUARTERS)
