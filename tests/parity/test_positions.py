"""Resized position grids against the official interpolation."""

import pytest

from albef.models.vit import resize_positions
from tests.parity import golden


@pytest.mark.parametrize(
    "pair", sorted(name[: -len(".in")] for name in golden.tensors_of("pos_embed") if name.endswith(".in"))
)
def test_square_grids(pair):
    tensors = golden.tensors_of("pos_embed")
    old, new = (int(side) for side in pair.split("to"))
    got = resize_positions(tensors[f"{pair}.in"], (old, old), (new, new))
    golden.close(got, tensors[f"{pair}.out"], pair, atol=1e-6, rtol=1e-6)


def test_grids_of_a_checkpoint_read_for_larger_images():
    recorded = golden.tensors_of("retrieval_loaded_extra")
    read = golden.checkpoint("pretrain", image_size=golden.json_of("meta")["ft_config"]["image_res"])
    assert read.teacher is not None
    for part, name in ((read.model, "visual_encoder"), (read.teacher, "visual_encoder_m")):
        golden.close(part["visual_encoder.pos_embed"], recorded[f"{name}.pos_embed"], name, atol=1e-6, rtol=1e-6)
