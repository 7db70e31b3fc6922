"""The network as one graph: exported with free batch and length, compiled without a break."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from albef.models.albef import AlbefModel, AlbefOutput
from albef.models.answering import AlbefForAnswering
from albef.models.layers import CrossAttention, FeedForward, Past, SelfAttention
from albef.models.seen import KeysValues
from albef.models.vit import Block
from albef.objectives.pretrain import PretrainObjective
from tests.worlds import TINY

MODELS = Path(__file__).resolve().parents[1] / "albef" / "models"
BATCH, LENGTH, SEEN, PAST = Dim("batch", min=2, max=64), Dim("length", min=2, max=30), Dim("seen", max=30), Dim("past")


class ImagePart(nn.Module):
    def __init__(self, model: AlbefModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.encode_image(pixel_values)
        return tokens, self.model.project_image(tokens)


class TextPart(ImagePart):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        states = self.model.encode_text(input_ids, attention_mask)
        return states, self.model.project_text(states)


class MatchingPart(ImagePart):
    def forward(self, image_tokens: Tensor, text_states: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        seen = self.model.fusion_encoder.keys_values(image_tokens)
        return self.model.match(self.model.fuse(text_states, attention_mask, seen, cls_only=True))


class DecoderStep(nn.Module):
    def __init__(self, model: AlbefForAnswering) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self, input_ids: Tensor, keys_values: KeysValues, mask: Tensor, past: tuple[Past, ...]
    ) -> tuple[Tensor, tuple[Past, ...]]:
        states, past = self.decoder.go_on(input_ids, keys_values, mask, past)
        return self.decoder.fill_in(states[:, -1]), past


def image_part(batch: int, length: int) -> tuple[nn.Module, tuple, tuple]:
    return ImagePart(AlbefModel(TINY)), (torch.randn(batch, 3, 32, 32),), ({0: BATCH},)


def hybrid_image_part(batch: int, length: int) -> tuple[nn.Module, tuple, tuple]:
    config = replace(
        TINY, trunk="efficientnet-lite0", patch_size=32, image_size=(64, 64), trunk_trained=2, trunk_levels=2
    )
    torch.manual_seed(0)
    return ImagePart(AlbefModel(config)), (torch.randn(batch, 3, 64, 64),), ({0: BATCH},)


def text_part(batch: int, length: int) -> tuple[nn.Module, tuple, tuple]:
    free = {0: BATCH, 1: LENGTH}
    return TextPart(AlbefModel(TINY)), (torch.randint(5, 99, (batch, length)), mask_of(batch, length)), (free, free)


def matching_part(batch: int, length: int) -> tuple[nn.Module, tuple, tuple]:
    free = {0: BATCH, 1: LENGTH}
    inputs = torch.randn(batch, 17, 32), torch.randn(batch, length, 32), mask_of(batch, length)
    return MatchingPart(AlbefModel(TINY)), inputs, ({0: BATCH}, free, free)


def decoder_step(batch: int, length: int) -> tuple[nn.Module, tuple, tuple]:
    model = AlbefForAnswering(TINY)
    seen = model.decoder.keys_values(torch.randn(batch, length, 32))
    past = tuple((torch.randn(batch, 2, length + 1, 16), torch.randn(batch, 2, length + 1, 16)) for _ in range(2))
    free, kept = {0: BATCH, 1: SEEN}, {0: BATCH, 2: PAST}
    shapes = ({0: BATCH}, [[free, free]], free, ((kept, kept), (kept, kept)))
    return DecoderStep(model), (torch.randint(5, 99, (batch, 1)), seen, mask_of(batch, length), past), shapes


def mask_of(batch: int, length: int) -> Tensor:
    return (torch.arange(length) < torch.randint(1, length + 1, (batch, 1))).long()


PARTS = (image_part, hybrid_image_part, text_part, matching_part, decoder_step)


@pytest.mark.parametrize("make", PARTS, ids=lambda make: make.__name__)
def test_exported_with_free_batch_and_length(make) -> None:
    part, inputs, shapes = make(3, 7)
    exported = torch.export.export(part.eval(), inputs, dynamic_shapes=shapes, strict=False).module()
    for batch, length in ((3, 7), (5, 4), (2, 11)):
        _, others, _ = make(batch, length)
        with torch.no_grad():
            torch.testing.assert_close(exported(*others), part(*others), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", PARTS, ids=lambda make: make.__name__)
def test_compiled_without_a_break(make) -> None:
    part, inputs, _ = make(3, 7)
    compiled = torch.compile(part.eval(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), part(*inputs), atol=1e-5, rtol=1e-5)


def test_the_whole_model_is_called() -> None:
    model = AlbefModel(TINY).eval()
    inputs = torch.randn(3, 3, 32, 32), torch.randint(5, 99, (3, 7)), mask_of(3, 7)
    found = model(*inputs)
    assert isinstance(found, AlbefOutput) and found.match_logits.shape == (3, 2)
    assert found.fused_states.shape == found.text_states.shape == (3, 7, 32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs).match_logits, found.match_logits, atol=1e-5, rtol=1e-5)


COUNTED = {
    "albef": set(),
    "answering": set(),
    "attention": set(),
    "backbone": set(),
    "bert": {"self.layers", "self.image_keys_values"},
    "classifier": {"self.labels"},
    "layers": {"seen"},
    "layout": set(),
    "seen": set(),
    "trunk": {"InvertedResidual"},
    "vit": {"self.blocks", "str"},
}
"""Modules of the network, and what they count that is no tensor."""


@pytest.mark.parametrize("module", COUNTED)
def test_a_tensor_is_not_asked_for_its_len(module: str) -> None:
    """`len` of a tensor makes its batch a constant of the exported graph; `.shape[0]` doesn't."""
    for node in ast.walk(ast.parse((MODELS / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("len", "map"):
            asked = ast.unparse(node.args[0])
            assert asked in COUNTED[module], f"{module}.py, line {node.lineno}: {node.func.id}({asked})"


def test_the_parts_of_a_step_are_compiled_without_a_break() -> None:
    """As `--compile` does, forward and backward, with packed texts of two lengths."""
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        objective = PretrainObjective(AlbefModel(TINY), queue_size=10, mask_id=4, cls_id=2).train()
        parts = [module for module in objective.modules() if isinstance(module, COMPILED)]
        assert len(parts) == 2 * (2 + 2 + 2 * 3), "of student and teacher: blocks, a text layer, two fusion layers"
        for part in parts if compiled else ():
            part.compile(backend="aot_eager", fullgraph=True)
        with torch._dynamo.config.patch(recompile_limit=64):
            for length in (6, 9):
                torch.manual_seed(length)
                losses.append(torch.stack(list(objective(pairs(4, length), 0.4).values())))
                losses[-1].sum().backward()
        losses.append(torch.stack([p.grad.norm() for p in objective.model.parameters() if p.grad is not None]))
    for plain, found in zip(losses[:3], losses[3:], strict=True):
        torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


COMPILED = (SelfAttention, CrossAttention, FeedForward, Block)


def pairs(batch: int, length: int) -> dict[str, Tensor]:
    mask, rows = mask_of(batch, length), torch.arange(batch)
    texts = {"input_ids": torch.randint(5, 99, mask.shape) * mask, "attention_mask": mask}
    return {"pixel_values": torch.randn(batch, 3, 32, 32), **texts, "image_id": rows, "text_id": rows}
