"""What the pages of the tasks say in words, whatever the runs reached."""

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
        "One image among many is searched by a sentence that describes it, and a sentence by its image. ITC compares "
        "two vectors and makes a shortlist; ITM reads image and sentence together; both put the shortlist in order.",
        "Both losses begin low, because the model was pre-trained on such pairs. The loss of ITC may rise at first, "
        "while its queue fills with other images to tell apart. R@1 says how many of a hundred images of the "
        "validation part come first for their sentence.",
        "R@k says how many of a hundred are found among the first k. Chance is a blind draw. ITM cannot find what ITC "
        "does not put on the shortlist.",
        "On the left is the image that the sentence was written for. The rows show the first five images by ITC, and "
        "the first five of the shortlist in the order of ITM alone, and of ITC and ITM on one scale. Below each image "
        "stand what it shows, its cosine, the probability that it matches, and in the lower rows its place by ITC. The "
        "right image has a green frame. An example counts as right if it comes first in the last row.",
    ),
    "vqa": Prose(
        "Visual question answering",
        "A question about an image is answered twice: once by ranking a closed list of answers, and once by writing "
        "an answer freely, word by word.",
        "The loss adds up over the words of an answer. The accuracy is measured on the validation part.",
        "Accuracy says how many of a hundred answers are the right one. Guessing always gives the commonest answer of "
        "the test part, whatever is asked.",
        "Shown are the three likeliest answers of the list with their probabilities, then the answer written freely. "
        "An example counts as right if the likeliest answer of the list is right.",
    ),
    "entailment": Prose(
        "Visual entailment",
        "A statement is compared with an image. The class is entailment if it is true, contradiction if it is false, "
        "and neutral if nobody can know from the image. The words of a statement alone do not give its class away.",
        "The loss should fall below the dashed line, which is what guessing costs. The accuracy is measured on the "
        "validation part.",
        "Accuracy says how many of a hundred statements get the right class. The three classes are equally frequent.",
        "Shown are the probabilities of the three classes. No image shows whether a thing is heavy, new or warm: such "
        "a statement is neutral if its thing is there, and false if it is not.",
    ),
    "nlvr2": Prose(
        "Reasoning about two images",
        "Is a statement true of two images, the left and the right one? Each of its words reads both images, and the "
        "answer is true or false.",
        "The first run learns text assignment: which of two images a sentence describes, or that it describes "
        "neither. The second run learns true and false. The losses should fall below the dashed line, which is what "
        "guessing costs.",
        "Accuracy says how many of a hundred statements are judged rightly. Each statement comes with four pairs of "
        "images and is true of two of them; consistency says for how many statements all four are judged rightly.",
        "Shown are the left and the right image, and the probability that the statement is true of them.",
    ),
    "grounding": Prose(
        "Grounding",
        "Where in the image is the thing that a phrase means? Training never saw a box: the run learns which phrases "
        "match which images. What a word reads of the image while it is matched then shows where its thing is (Grad- "
        "CAM).",
        "ITC and ITM learn from pairs of image and phrase alone. Pointing is measured on the validation part by the "
        "true boxes, which training does not see.",
        "Pointing: the middle of the map's highest patch lies in the true box; guessing is the mean share of the "
        "image that a box takes. Boxes: of several boxes, the map favours the true one. Free: the box around the peak "
        "and the true box overlap by half (IoU); there is no figure for guessing that.",
        "Shown are the image with the true box, the maps of the whole phrase by ITM and by ITC, and the maps of its "
        "words by ITM, each with colours of its own from least (blue) to most (red). A map is coarse, with six by six "
        "patches, so it shows regions and not outlines. An example counts as right if ITM's peak, the dot, lies in "
        "the true box.",
    ),
}
"""By the name of the page's file."""
