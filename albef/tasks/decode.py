"""Finds answers to fused questions: ranks a list by likelihood, or writes an answer word by word (spec §3.2)."""

# B questions, Lq words of a question, A answers of the list, L of an answer, k candidates, V vocabulary

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from albef.models.answering import AlbefForAnswering
from albef.models.seen import KeysValues


@torch.no_grad()
def rank_answers(
    model: AlbefForAnswering,
    states: Tensor,
    mask: Tensor,
    answer_ids: Tensor,
    answer_mask: Tensor,
    k: int,
    official: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns the k likeliest answers of a list [B, k], best first, with their probabilities among the k (spec §3.2).

    `states` [B, Lq, D] and `mask` [B, Lq] are those of the questions. `answer_ids` and `answer_mask` [A, L] are those
    of the list, `[CLS] words [SEP]`. The k answers, of which there are at most A, are chosen by their first word and
    ordered by the likelihood of all their words. `official` counts the first word twice, as the original does
    (BLIP #208).
    """
    k, decoder = min(k, len(answer_ids)), model.decoder
    keys_values = decoder.keys_values(states)
    first = decoder.fill_in(decoder(answer_ids[:1, :1].expand(len(states), 1), keys_values, mask)[:, 0])
    starts, candidates = first.float().log_softmax(-1)[:, answer_ids[:, 1]].topk(k)  # [B, k] each
    likelihoods = torch.cat(
        [
            _likelihoods(model, answer_ids[own], answer_mask[own], keys_values[rows], mask[rows])
            for rows, own in _rows(candidates)
        ]
    ).view(-1, k)
    scores = likelihoods + starts if official else likelihoods
    # sorted before the softmax, in which far scores are all 0
    ranked, order = scores.sort(descending=True, stable=True)
    return candidates.gather(1, order), ranked.softmax(-1)


def _rows(candidates: Tensor, most: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields questions and answers of the pairs to score, row by row of the candidates [B, k], `most` at a time."""
    count = candidates.shape[1]
    rows = torch.arange(len(candidates), device=candidates.device).repeat_interleave(count)
    yield from zip(rows.split(most), candidates.flatten().split(most), strict=True)


def _likelihoods(model: AlbefForAnswering, ids: Tensor, mask: Tensor, keys_values: KeysValues, seen: Tensor) -> Tensor:
    """Returns the log-likelihood [rows] of every answer, given its question."""
    length = int(mask.sum(1).max())
    ids, asked = ids[:, :length], mask[:, 1:length].bool()
    states = model.decoder(ids[:, :-1], keys_values, seen)
    logits = model.decoder.fill_in(states[asked]).float()
    found = -F.cross_entropy(logits, ids[:, 1:][asked], reduction="none")
    return torch.zeros(asked.shape, device=ids.device).masked_scatter(asked, found).sum(1)


@torch.no_grad()
def generate(
    model: AlbefForAnswering,
    states: Tensor,
    mask: Tensor,
    cls_id: int,
    sep_id: int,
    beams: int = 3,
    max_tokens: int = 10,
) -> tuple[Tensor, Tensor]:
    """Writes answers word by word; returns ids [B, beams, n] and log-likelihoods [B, beams], likeliest first.

    Answers end with `[SEP]`, or are cut after `max_tokens`. They are found by beam search, which is greedy with one
    beam. The keys and values of the words so far are kept and not computed again.
    """
    decoder, batch = model.decoder, len(states)
    rows = torch.arange(batch, device=states.device).repeat_interleave(beams)
    keys_values, seen = decoder.keys_values(states)[rows], mask[rows]
    past = None
    ids = torch.full((batch, beams, 1), cls_id, device=states.device)
    scores = torch.full((batch, beams), float("-inf"), device=states.device)
    scores[:, 0] = 0.0  # all beams are equal at first: go on from one
    for _ in range(max_tokens):
        words, past = decoder.go_on(ids[..., -1:].flatten(0, 1), keys_values, seen, past)
        step = decoder.fill_in(words[:, -1]).float().log_softmax(-1).unflatten(0, (batch, beams))  # [B, beams, V]
        done = ids[..., -1] == sep_id
        step[done] = float("-inf")
        step[..., sep_id].masked_fill_(done, 0.0)  # a finished answer stays as it is
        scores, best = (scores[..., None] + step).flatten(1).topk(beams)
        origin, word = best // step.shape[-1], best % step.shape[-1]
        ids = torch.cat([ids.gather(1, origin[..., None].expand_as(ids)), word[..., None]], dim=2)
        rows = (torch.arange(batch, device=states.device)[:, None] * beams + origin).flatten()
        past = tuple((keys[rows], values[rows]) for keys, values in past)
        if (word == sep_id).all():
            break
    return ids[..., 1:], scores
