"""What the pages of the tasks say in words, whatever came out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prose:
    """A task's page in words: its title, the task in two sentences, its curves, its figures, its examples."""

    title: str
    what: str
    curves: str
    figures: str
    examples: str


PROSE = {
    "retrieval": Prose(
        "Retrieval",
        "One image among many is searched by a sentence that describes it, and a sentence by its image. ITC "
        "compares two vectors and makes a shortlist; ITM reads image and sentence together and puts the shortlist "
        "in order.",
        "Both losses begin low: the model that comes along was pre-trained on such pairs. ITC's may rise first, while "
        "the queue of others to tell apart fills. R@1 is how many of a hundred images of the validation part come "
        "first for their sentence.",
        "R@k: how many of a hundred are found within the first k. Chance is a blind draw. What ITC doesn't put on the "
        "shortlist stays lost for ITM.",
        "Left the image that the sentence was written for, then the first five by ITC, and after ITM re-ordered the "
        "shortlist. Below an image: what it shows, its cosine, the probability that it matches, and the place it "
        "came from. Framed in green: the right one. An example counts as right if it comes first in the second row.",
    ),
    "vqa": Prose(
        "Visual question answering",
        "A question about an image is answered. Twice: once by ranking a closed list of answers, and once by writing "
        "an answer freely, word by word.",
        "The loss adds up over the words of an answer. The accuracy is measured on the validation part.",
        "Accuracy: how many of a hundred answers are the right one. Guessing always gives the commonest answer of the "
        "test part, whatever is asked.",
        "The three likeliest answers of the list with their probabilities, then the answer written freely. An example "
        "counts as right if the first of the list is.",
    ),
    "entailment": Prose(
        "Visual entailment",
        "A statement is compared with an image: entailment, it is true; contradiction, it is false; neutral, nobody "
        "could know from the image. The statements are made so that their words alone don't give the class away.",
        "The loss should fall below the dashed line, which is what guessing costs. The accuracy is measured on the "
        "validation part.",
        "Accuracy: how many of a hundred statements get the right class. The three classes are equally frequent.",
        "The probabilities of the three classes. Heavy, new or warm are things that no image shows: such a "
        "statement is neutral if its thing is there, and false if it is not.",
    ),
    "nlvr2": Prose(
        "Reasoning about two images",
        "Is a statement true of two images, the left and the right one? Each of its words reads both images, and "
        "the answer is true or false.",
        "First the run learns text assignment: which of two images a sentence describes, or neither. Then true and "
        "false. Losses should fall below the dashed line, which is what guessing costs.",
        "Accuracy: how many of a hundred statements are judged rightly. Consistency: each statement is met with four "
        "pairs of images, true of two; for how many statements are all four right?",
        "Left and right image, and the probability that the statement is true of them.",
    ),
    "grounding": Prose(
        "Grounding",
        "Where in the image is the thing that a phrase means? No box was ever seen in training: the run learns "
        "which phrases match which images, and what a word looked at while matching shows where its thing is "
        "(Grad-CAM).",
        "ITC and ITM learn from pairs alone. Pointing is measured on the validation part by the true boxes, which "
        "only the measure sees.",
        "Pointing: the map's highest patch has its middle in the true box; guessing is the mean share of the image "
        "that a box takes. Boxes: of some boxes, the true one among them, the one that the map favours is right. Free: "
        "the box around the peak overlaps the true one by half (IoU); nobody guesses that.",
        "The image with the true box, then the maps of the whole phrase by ITM and by ITC, and by ITM those "
        "of its words, each with colours of its own from least (blue) to most (red). The map is "
        "coarse, six by six patches: expect regions, not outlines. An example counts as right if ITM's peak, the dot, "
        "lies in the true box.",
    ),
}
"""By the name of the page's file."""
