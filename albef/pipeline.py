"""A saved model with what it needs for images and texts: `albef.load(name)`, then `embed_images`, `match`, `answer`.

All methods take one image or text and give one result, or take lists and give a tensor or a list with a row for each.
"""

# I images, T texts

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from albef.data.processor import Processor
from albef.data.progress import tracked
from albef.data.records import Box
from albef.errors import AlbefTypeError, AlbefValueError
from albef.features import Features
from albef.files import fetched
from albef.inputs import Given, ImageLike, Images, Texts, distinct, list_captions, list_images, list_texts, paired
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.classifier import AlbefForClassification, AlbefForPairs
from albef.models.start import load_model
from albef.regions import checked_candidates, region
from albef.results import Answer, Match, Ranked, Region, Verdict
from albef.tasks import answers as answers_of
from albef.tasks import decode, grounding, ranking, vqa

Order = Literal["odds", "itm"]
PAIRS_KEPT = 512  # pairs whose images' tokens are kept together while they are matched


def load(
    folder: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    image_size: int | tuple[int, int] | None = None,
    revision: str | None = None,
) -> Pipeline:
    """A saved model of any kind: a folder, the name of one that comes along or of a published one that `albef pull` has
    fetched, or `hf://owner/name` on the hub.

    `device` as PyTorch names it, by default the accelerator that PyTorch finds, else the CPU; `dtype` of the weights,
    e.g. torch.bfloat16; `image_size` in pixels, if other than the model's (one number, or height and width);
    `revision` of a repository on the hub. FileNotFoundError if there is nothing of that name; ValueError for a device
    that PyTorch cannot use here.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise AlbefTypeError(f"dtype {dtype!r}: give torch.float32, torch.bfloat16 or torch.float16, or leave it out")
    if image_size is not None and min([image_size] if isinstance(image_size, int) else image_size) < 1:
        raise AlbefValueError(f"image_size {image_size}: give pixels, at least 1, or leave it out")
    device = default_device() if device is None else _usable(device)
    name, folder = str(folder), fetched(folder, revision)
    model = load_model(folder, image_size).to(device, dtype)
    processor = Processor.from_pretrained(folder)
    processor.image_size = model.config.image_size
    path = answers_of.answers_file(folder)
    return Pipeline(model, processor, answers_of.read_answers(path) if path.is_file() else [], name)


def default_device() -> torch.device:
    """The accelerator that PyTorch finds (CUDA, MPS, XPU, ...), else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch that was built without it
        reason = str(error).splitlines()[0]
        raise AlbefValueError(
            f"device {str(device)!r}: PyTorch can't use it here ({reason}); leave it out, or give 'cpu'"
        ) from error


class Pipeline(Features):
    """A model with its processor. Each kind of model can do some of it; the others say which kind can (TypeError).

    An image is a PIL image, a path, the bytes of a file or a stream; BrokenImage if it can't be read. Tensors that are
    given back are float32 on the CPU. Weights want no gradients. Several threads may use one pipeline.
    """

    # Matching

    @overload
    def match(self, images: ImageLike, texts: str) -> Match: ...  # type: ignore[overload-overlap]
    @overload
    def match(self, images: Images, texts: Texts) -> list[Match]: ...
    @torch.no_grad()
    def match(self, images: Images, texts: Texts) -> Any:
        """Do image and text belong together? By ITM, which looks at words and patches together, and by ITC.

        The probability is calibrated if the model is (`albef calibrate`).
        Lists of one length are pairs; a single image or text goes with all of the other. Put the texts of one image
        side by side: it is read and encoded once for them. ValueError for lists of different lengths.
        """
        model = self._model(AlbefModel, "match", "retrieval")
        (listed, said), one = paired(images=list_images(images), texts=list_captions(texts))
        starts = range(0, len(listed), PAIRS_KEPT)
        parts = (self._matches(model, listed[at : at + PAIRS_KEPT], said[at : at + PAIRS_KEPT]) for at in starts)
        found = [match for part in tracked(parts, len(starts), "matching") for match in part]
        return found[0] if one else found

    def _matches(self, model: AlbefModel, images: list[Given], texts: list[str]) -> list[Match]:
        (own_images, of_image), (own_texts, of_text) = distinct(images), distinct(texts)
        tokens, z_image = ranking.encode_images(model, (pixels for _, pixels in self._batches(own_images, silent=True)))
        encoded, z_text = ranking.encode_texts(model, self.processor, own_texts)
        pairs = torch.zeros(len(own_images), len(own_texts), dtype=torch.bool)
        pairs[of_image, of_text] = True
        logits = _logits(model, tokens, encoded, pairs)[of_image, of_text]
        shares = ranking.match_probabilities(model, logits)
        cosines = (z_image.cpu()[of_image] * z_text.cpu()[of_text]).sum(1)
        return [Match(*both) for both in zip(shares.tolist(), cosines.tolist(), strict=True)]

    @overload
    def rank(self, query: ImageLike, candidates: Images | Texts, k: int = 10, by: Order = ...) -> list[Ranked]: ...
    @overload
    def rank(
        self, query: Sequence[Any], candidates: Images | Texts, k: int = 10, by: Order = ...
    ) -> list[list[Ranked]]: ...
    @torch.no_grad()
    def rank(self, query: Any, candidates: Any, k: int = 10, by: Order = "odds") -> Any:
        """The k best candidates, best first: chosen by ITC, and ordered by ITC and ITM on one scale.

        The order is that of `odds` in `albef.tasks.ranking`; `by="itm"` orders as the paper does, by ITM's logit of
        "matched" alone. Each result has the score that it is ordered by, and the probability and cosine of `match`.
        A query of the type str is a text, and the candidates are images; any other query (also a list of them) is an
        image, and the candidates are texts. So give the path of an image as pathlib.Path. Several queries give a list
        for each. ValueError for k below 1, and for another order.
        """
        model = self._model(AlbefModel, "rank", "retrieval")
        if by not in get_args(Order):
            raise AlbefValueError(f"by {by!r}: there are {' and '.join(get_args(Order))}")
        if k < 1:
            raise AlbefValueError(f"k {k}: ask for at least one candidate")
        by_text = isinstance(query[0] if isinstance(query, (list, tuple)) and query else query, str)
        images, one_image = list_images(candidates if by_text else query)
        texts, one_text = list_captions(query if by_text else candidates)
        one = one_text if by_text else one_image
        if not images or not texts:
            return [] if one else [[] for _ in query]
        encoded, z_text = ranking.encode_texts(model, self.processor, texts)
        few = len(images) <= PAIRS_KEPT
        if few:
            tokens, z_image = ranking.encode_images(model, (pixels for _, pixels in self._batches(images)))
        else:
            z_image = self._image_vectors(model, images)
        cosines = z_image.float().cpu() @ z_text.float().cpu().T  # [I, T]
        chosen = ranking.shortlist(cosines.T, k).T if by_text else ranking.shortlist(cosines, k)
        logits, asked = torch.zeros(*chosen.shape, 2), chosen.any(1).nonzero().squeeze(1)
        for start in range(0, len(asked), PAIRS_KEPT):
            own = asked[start : start + PAIRS_KEPT]
            if few:
                seen = [tokens[row] for row in own.tolist()]
            else:  # the tokens of all would not fit: those that are asked for are made again
                again = self._batches([images[row] for row in own.tolist()], silent=True)
                seen, _ = ranking.encode_images(model, (pixels for _, pixels in again))
            logits[own] = _logits(model, seen, encoded, chosen[own])
        scores = ranking.odds(model, cosines, logits) if by == "odds" else logits[..., 1]
        scores, shares = scores.masked_fill(~chosen, -torch.inf), ranking.match_probabilities(model, logits)
        if by_text:
            shares, cosines, scores = shares.T, cosines.T, scores.T
        found = [_best(*own, k) for own in zip(shares, cosines, scores, strict=True)]
        return found[0] if one else found

    @overload
    def classify(self, images: ImageLike, labels: Sequence[str], template: str = ...) -> Verdict: ...  # type: ignore[overload-overlap]
    @overload
    def classify(self, images: Images, labels: Sequence[str], template: str = ...) -> list[Verdict]: ...
    def classify(self, images: Any, labels: Sequence[str], template: str = "a photo of a {}") -> Any:
        """Which of the labels suits an image best, without any training for them, by ITC.

        The label replaces `{}` in the template. The probabilities of all labels sum to 1: a label alone says nothing.
        ValueError for a template without `{}`, for no labels, or for one twice.
        """
        model = self._model(AlbefModel, "classify", "retrieval")
        if "{}" not in template:
            raise AlbefValueError(f"template {template!r}: must hold {{}}, which each label replaces")
        listed, single = list_captions(labels)
        if single or not listed:
            raise AlbefValueError(f"labels {labels!r}: give a list of at least one label")
        if len(set(listed)) < len(listed):
            raise AlbefValueError(f"labels {listed!r}: one is there twice; give each once")
        z_text = self.embed_texts([template.replace("{}", label) for label in listed])
        shares = (self.embed_images(images) @ z_text.T / float(model.temp)).softmax(-1)
        if shares.ndim == 1:
            return Verdict.of(listed, shares.tolist())
        return [Verdict.of(listed, row) for row in shares.tolist()]

    # Fine-tuned models

    @overload
    def answer(  # type: ignore[overload-overlap]
        self, images: ImageLike, questions: str, k: int = ..., answers: Sequence[str] | None = ..., free: bool = ...
    ) -> list[Answer]: ...
    @overload
    def answer(
        self, images: Images, questions: Texts, k: int = ..., answers: Sequence[str] | None = ..., free: bool = ...
    ) -> list[list[Answer]]: ...
    @torch.no_grad()
    def answer(
        self, images: Any, questions: Any, k: int = 5, answers: Sequence[str] | None = None, free: bool = False
    ) -> Any:
        """The k likeliest answers, best first: ranked from `answers` (by default those it learnt), or written freely.

        Pairs as in `match`. ValueError for a question without a word, an empty list, or one to write freely from; k
        larger than the list gives all of it.
        """
        model = self._model(AlbefForAnswering, "answer questions", "vqa")
        if free and answers is not None:
            raise AlbefValueError("a list of answers is for ranking; leave it out to write freely, or leave out free")
        if isinstance(answers, str):
            raise AlbefValueError(f"answers {answers!r}: give a list of answers")
        if k < 1:
            raise AlbefValueError(f"k {k}: ask for at least one answer")
        (listed, asked), one = paired(images=list_images(images), questions=list_texts(questions))
        words = vqa.questions(self.processor, asked, vqa.TEST_WORDS, model.config.max_positions)
        chosen = None if free else tuple(answers_of.checked_answers(self.answers if answers is None else answers))
        found: list[list[Answer]] = []
        for rows, pixels in self._batches(listed):
            ids, mask = self._on(words["input_ids"][rows], words["attention_mask"][rows])
            states = model.read(pixels, ids, mask)
            if chosen is None:
                ends = self.processor.cls_id, self.processor.sep_id
                pieces, scores = decode.generate(model, states, mask, *ends, beams=max(k, 3))
                texts, shares = [[self.processor.words(row) for row in own] for own in pieces.tolist()], scores.exp()
            else:
                order, shares = decode.rank_answers(model, states, mask, *self._answer_words(chosen), max(k, 128))
                texts = [[chosen[index] for index in own] for own in order.tolist()]
            for own in zip(texts, shares.tolist(), strict=True):
                found.append([Answer(*both) for both in zip(*own, strict=True)][:k])
        return found[0] if one else found

    @overload
    def entails(self, images: ImageLike, texts: str) -> Verdict: ...  # type: ignore[overload-overlap]
    @overload
    def entails(self, images: Images, texts: Texts) -> list[Verdict]: ...
    def entails(self, images: Any, texts: Any) -> Any:
        """Does the image entail the text? Or whichever labels the model was trained with. Pairs as in `match`."""
        model = self._model(AlbefForClassification, "judge a text", "classification")
        (listed, said), one = paired(images=list_images(images), texts=list_captions(texts))
        found = self._judged(model, listed, said, 1)
        return found[0] if one else found

    @overload
    def compare(self, first: ImageLike, second: ImageLike, texts: str) -> Verdict: ...  # type: ignore[overload-overlap]
    @overload
    def compare(self, first: Images, second: Images, texts: Texts) -> list[Verdict]: ...
    def compare(self, first: Any, second: Any, texts: Any) -> Any:
        """Is the text true of the two images, the left and the right one? Lists as in `match`."""
        model = self._model(AlbefForPairs, "compare two images", "nlvr2")
        (left, right, said), one = paired(
            first=list_images(first, "first"), second=list_images(second, "second"), texts=list_captions(texts)
        )
        found = self._judged(model, [image for both in zip(left, right, strict=True) for image in both], said, 2)
        return found[0] if one else found

    @torch.no_grad()
    def _judged(
        self, model: AlbefForClassification | AlbefForPairs, images: list[Given], texts: list[str], each: int
    ) -> list[Verdict]:
        """The texts, of `each` images a text, in one list."""
        words = self.processor.texts(texts, model.config.max_positions)
        found: list[Verdict] = []
        for rows, pixels in self._batches(images):
            own = slice(rows.start // each, -(-rows.stop // each))
            seen = pixels.view(-1, each, *pixels.shape[1:]) if each > 1 else pixels
            said = model(seen, *self._on(words["input_ids"][own], words["attention_mask"][own]))
            found += [Verdict.of(model.labels, row) for row in said.logits.float().softmax(-1).tolist()]
        return found

    # Regions

    @overload
    def ground(  # type: ignore[overload-overlap]
        self, images: ImageLike, texts: str, mode: grounding.Mode = ..., layer: int | None = ...,
        candidates: Sequence[Box] | None = ...,
    ) -> Region: ...  # fmt: skip
    @overload
    def ground(
        self, images: Images, texts: Texts, mode: grounding.Mode = ..., layer: int | None = ...,
        candidates: Sequence[Sequence[Box]] | None = ...,
    ) -> list[Region]: ...  # fmt: skip
    def ground(
        self, images: Any, texts: Any, mode: grounding.Mode = "itm", layer: int | None = None, candidates: Any = None
    ) -> Any:
        """Where the text is seen; `mode` and `layer` as `tasks.grounding.text_maps` has them. Pairs as in `match`.

        With `candidates` (boxes in pixels; for lists, a list of boxes for each pair) the box is the best of them.
        ValueError for an empty list of them, and for wrong ones.
        """
        model = self._model(AlbefModel, "ground", "grounding")
        if mode not in grounding.MODES:
            raise AlbefValueError(f"mode {mode!r}: there are {' and '.join(grounding.MODES)}")
        (listed, said), one = paired(images=list_images(images), texts=list_captions(texts))
        given = [candidates] * len(listed) if one or candidates is None else list(candidates)
        if len(given) != len(listed):
            raise AlbefValueError(f"{len(given)} lists of candidates for {len(listed)} pairs; give one for each")
        pairs = zip(listed, said, [checked_candidates(own) for own in given], strict=True)
        found = [
            region(model, self.processor, image.open(), text, own, mode, layer)
            for image, text, own in tracked(pairs, len(listed), "heat maps")
        ]
        return found[0] if one else found


def _logits(model: AlbefModel, tokens: Sequence[Tensor], texts: ranking.Texts, pairs: Tensor) -> Tensor:
    """ITM's logits [I, T, 2] of the pairs marked True in [I, T], on the CPU; 0 elsewhere."""
    logits = torch.zeros(*pairs.shape, 2)
    if len(texts) == 1:  # a search by one text makes no keys and values of images
        rows = pairs[:, 0].nonzero().squeeze(1)
        logits[rows, 0] = ranking.score_images(model, [tokens[row] for row in rows.tolist()], texts).cpu()
        return logits
    chosen = [row.nonzero().squeeze(1) for row in pairs]
    for own, (rows, found) in zip(logits, ranking.score_texts(model, tokens, texts, chosen), strict=True):
        own[rows] = found.cpu()
    return logits


def _best(shares: Tensor, cosines: Tensor, scores: Tensor, k: int) -> list[Ranked]:
    order = scores.topk(min(k, len(scores))).indices.tolist()
    return [Ranked(index, *(float(one[index]) for one in (shares, cosines, scores))) for index in order]
