"""Picture files of any kind to upright RGB, or a message that says what is wrong with them."""

import contextlib
import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from albef.data.broken import BrokenPicture

PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
_EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error)

PictureSource = str | Path | bytes | BinaryIO


def open_picture(source: PictureSource, name: str | None = None) -> Image.Image:
    """Upright RGB picture from a path, the bytes of a file or a binary stream.

    EXIF rotation is applied, transparency laid over white (the original drops it), 16-bit grey scaled to 8 bits, and
    of an animation the first frame taken. `name` stands in messages in place of the source's own. Raises BrokenPicture
    for whatever cannot be read whole, and for more pixels than PIL.Image.MAX_IMAGE_PIXELS allows.
    """
    name = name or _name_of(source)
    if isinstance(source, (str, Path)) and not Path(source).is_file():
        raise BrokenPicture(name, "no such file", "check the path and image_root")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise BrokenPicture(name, f"absurdly large ({error})", "scale it down or leave it out") from error
    except UnidentifiedImageError as error:
        reason = "the file is empty (0 bytes)" if _is_empty(source) else "not a picture in a known format"
        raise BrokenPicture(name, reason, "fetch it again or leave it out") from error
    except Exception as error:  # damaged files make the decoders raise nearly anything, from OSError to SyntaxError
        raise BrokenPicture(name, f"damaged ({error})", "fetch it again or leave it out") from error


def _name_of(source: PictureSource) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    if hasattr(source, "read"):
        return str(getattr(source, "name", "picture from a stream"))
    raise TypeError(f"cannot open a {type(source).__name__} as a picture; give a path, bytes or a binary stream")


def _is_empty(source: PictureSource) -> bool:
    if isinstance(source, bytes):
        return not source
    if isinstance(source, (str, Path)):
        return Path(source).stat().st_size == 0
    return source.seek(0, io.SEEK_END) == 0


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL picture of any mode as upright 8-bit RGB; see `open_picture`."""
    with contextlib.suppress(*_EXIF_ERRORS):  # a picture with damaged EXIF data is still a picture: leave it as it lies
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey picture of 16 or 32 bits scaled to 0..255 by the range its values need: 1, 255, 65535 or their peak."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0).clip(min=0)
    peak = values.max()
    if image.mode.startswith("I;16"):
        peak = 65535
    elif image.mode == "F" and peak <= 1:
        peak = 1
    else:
        peak = next((limit for limit in (255, 65535) if peak <= limit), peak)
    return Image.fromarray((values * (255 / peak)).round().astype(np.uint8))


def pixels_of(image: Image.Image) -> Tensor:
    """RGB PIL picture to uint8 [3, H, W]."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
