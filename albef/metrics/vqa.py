"""VQA accuracy by the rule of the official scorer since 2021 (GT-Vision-Lab/VQA).

The older copy that ALBEF and LAVIS carry always normalises the prediction and never applies the digit and article rule
to the truth: figures made with it differ. Quirks of the official rule are kept, as the leaderboard has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from albef.errors import AlbefValueError
from albef.metrics.pairing import Id, check_ids

MARKS = ';/[]"{}()=+\\_-><@`,?!'
MOST_STOPS = 32  # the official scorer passes a flag, re.UNICODE, where `count` belongs
ARTICLES = {"a", "an", "the"}
ENOUGH_ANSWERS = 4
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
# As spelt right; each stands for its misspellings. Those with a capital never match, the text being lower-case by then.
SPELT_RIGHT = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've
    mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _misspellings(word: str) -> list[str]:
    """`word` with one of its apostrophes left out: "he'd've" -> "hed've", "he'dve"."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


# Official table of 120; three of its entries follow no pattern, one of them turned round by mistake.
CONTRACTIONS = {wrong: right for right in SPELT_RIGHT.split() for wrong in _misspellings(right)} | {
    "let's": "let's",
    "she's": "she's",
    "somebody'd": "somebodyd",
}


def one_line(text: str) -> str:
    """`text` without white space around it; newlines and tabs become spaces."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def apply_punctuation_rule(text: str) -> str:
    """`text` without the marks of `MARKS` and without full stops that no digit follows.

    A mark is deleted if anywhere in `text` it touches a space, or a comma stands between digits; else it becomes a
    space.
    """
    thousands = re.search(r"\d,\d", text)
    cleaned = text
    for mark in MARKS:
        deleted = thousands or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if deleted else " ")
    return re.sub(r"\.(?!\d)", "", cleaned, count=MOST_STOPS)


def apply_digit_article_rule(text: str) -> str:
    """`text` in lower case with digits for numbers up to ten, no articles, and apostrophes in contractions."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise_answer(text: str) -> str:
    """An answer as the official scorer compares it: `"The T-shirt."` -> `"t shirt"`."""
    return apply_digit_article_rule(apply_punctuation_rule(one_line(text)))


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one prediction in [0, 1] given the answers of (ten) annotators, each a different person.

    Mean over annotators of min(1, others who agree with the prediction / 3). As in the official scorer, answers that
    are all equal are compared as they are ("Yes" is wrong where all ten say "yes"), others once both sides are
    normalised. That rule can't reach 1 with fewer than four answers (DAQUAR has one): there a prediction is right, 1,
    if after normalisation it equals any of them, else 0. ValueError if there are no answers.
    """
    if not answers:
        raise AlbefValueError(
            f"no answers to compare {prediction!r} with; give at least one, or leave the question out"
        )
    if len(answers) < ENOUGH_ANSWERS:
        return float(normalise_answer(prediction) in map(normalise_answer, answers))
    truths, guess = [one_line(answer) for answer in answers], one_line(prediction)
    if len(set(truths)) > 1:
        truths, guess = [normalise_answer(truth) for truth in truths], normalise_answer(guess)
    agreeing = truths.count(guess)
    return sum(min(1.0, (agreeing - (truth == guess)) / 3) for truth in truths) / len(truths)


def vqa_accuracy(predictions: Mapping[Id, str], truths: Mapping[Id, Sequence[str]]) -> float:
    """Mean `answer_accuracy` in percent, from question ids to answers.

    ValueError naming ids that only one side has, or if there are none.
    """
    check_ids(predictions, truths)
    for key, answers in truths.items():
        texts = [predictions[key], *answers]
        if isinstance(answers, str) or not all(isinstance(text, str) for text in texts):
            raise AlbefValueError(
                f"question {key!r}: prediction {predictions[key]!r}, answers {answers!r}; give a string, and a list of "
                "strings, one of each person who was asked"
            )
    return 100 * sum(answer_accuracy(predictions[key], answers) for key, answers in truths.items()) / len(truths)
