"""Heat maps over images: colours say where, boxes stand where they should."""

import numpy as np
from PIL import Image

from albef.heat import heat

WHITE = Image.new("RGB", (8, 8), "white")


def painted(*arguments, **options) -> np.ndarray:
    return np.asarray(heat(*arguments, **options)).astype(int)


def test_red_is_where_the_map_is_high() -> None:
    values = np.zeros((4, 4))
    values[0, 0] = 2.0
    pixels = painted(WHITE, values, (40, 40))
    assert pixels[2, 2, 0] > pixels[2, 2, 2]
    assert pixels[35, 35, 2] > pixels[35, 35, 0]


def test_a_flat_map_is_even() -> None:
    pixels = painted(Image.new("RGB", (8, 8), "teal"), np.ones((2, 2)), (20, 20))
    assert (pixels == pixels[0, 0]).all()


def test_size_is_width_and_height() -> None:
    assert heat(Image.new("RGB", (8, 4)), np.ones((2, 2)), (30, 15)).size == (30, 15)


def test_a_box_is_drawn_in_the_pixels_of_the_image() -> None:
    pixels = painted(WHITE, np.zeros((2, 2)), (80, 40), box=(2, 2, 4, 4))
    assert (pixels[10, 20:59] == 255).all(), "its upper edge"
    assert (pixels[29, 20:59] == 255).all(), "its lower edge"
    assert not (pixels[20, 40] == 255).all(), "its inside is left alone"
