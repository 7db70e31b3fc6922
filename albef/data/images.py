"""Image files of any kind to upright RGB, or a message that says what is wrong with them."""

import contextlib
import functools
import io
import os
import stat
import struct
import unicodedata
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from albef.data.broken import BrokenImage
from albef.data.formats import FORMATS
from albef.data.reading import foreign, is_passing, patiently
from albef.errors import AlbefRuntimeError

T = TypeVar("T")

MAX_PIXELS = 50_000_000  # that an image may have by its header; eight threads then decode into 1.2 GB at most
_PNG = b"\x89PNG\r\n\x1a\n"
_NEEDLESS_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # of a PNG: texts and the colour profile
_EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error)

_CHECK = "check the path and image_root"
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

ImageSource = str | Path | bytes | BinaryIO
Edges = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Pixels = NDArray[np.uint8]  # [H, W, 3], RGB


def open_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Reads an upright RGB image from a path, from the bytes of a file, or from a binary stream.

    The EXIF rotation is applied. Transparency is laid over white (the original drops it), 16-bit grey is scaled to 8
    bits, and of an animation the first frame is taken. Messages give `name` in place of the source's own name. Raises
    BrokenImage for whatever cannot be read whole, for formats other than `formats.FORMATS`, and for more pixels than
    MAX_PIXELS or PIL.Image.MAX_IMAGE_PIXELS allow. Raises AlbefRuntimeError if the system fails to read the file.
    """
    return _opened(source, name, _whole)


def open_crop(
    source: ImageSource, edges_of: Callable[[int, int], Edges], size: tuple[int, int], name: str | None = None
) -> Pixels:
    """Reads a crop of what `open_image` gives, which the caller then scales to `size` (height, width).

    `edges_of` turns the width and height of the upright image into the edges of the crop. It is called once, even if
    the file has to be read again. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the crop is still at least `size`
    then; the crop's edges are moved to the nearest of those coarser pixels.
    """
    edges_of = functools.cache(edges_of)
    return _opened(source, name, lambda image: _cropped(image, edges_of, size))


def _opened(source: ImageSource, name: str | None, decode: Callable[[Image.Image], T]) -> T:
    """What `decode` makes of the image as it lies in its file; BrokenImage for whatever goes wrong there."""
    name = name or _name_of(source)
    try:
        return patiently(lambda: _decoded(source, name, decode), name)
    except (BrokenImage, AlbefRuntimeError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BrokenImage(name, f"absurdly large ({error})", "scale it down or leave it out") from error
    except UnidentifiedImageError as error:
        start = _start_of(source)
        reason = "not an image in a known format" if start else "the file is empty (0 bytes)"
        what = foreign(start) and f": it is {foreign(start)}"
        raise BrokenImage(name, reason, f"fetch it again or leave it out{what}") from error
    except Exception as error:  # damaged files make the decoders raise nearly anything, from OSError to SyntaxError
        raise BrokenImage(name, f"damaged ({error})", "fetch it again or leave it out") from error


def _decoded(source: ImageSource, name: str, decode: Callable[[Image.Image], T]) -> T:
    if isinstance(source, (str, Path)):
        _check_file(source, name)
    try:
        return _read(io.BytesIO(source) if isinstance(source, bytes) else source, name, decode)
    except BrokenImage:
        raise
    except (ValueError, SyntaxError):  # a PNG's long texts or a damaged profile; its pixels may be whole all the same
        pixels = _pixels_alone(source)
        if pixels is None:
            raise
    return _read(io.BytesIO(pixels), name, decode)


def _read(file: str | Path | BinaryIO, name: str, decode: Callable[[Image.Image], T]) -> T:
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            size = f"{image.width} x {image.height} pixels are more than the limit albef.data.images.MAX_PIXELS"
            raise BrokenImage(name, f"{size} of {MAX_PIXELS:,}", "scale it down or leave it out")
        return decode(image)


def _check_file(path: str | Path, name: str) -> None:
    """Raises BrokenImage unless there is a file. Passing faults of the system go on to `patiently`."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        near = _near(str(path))
        raise BrokenImage(name, "no such file" + (f", but there is {near!r}" if near else ""), _CHECK) from None
    except OSError as error:
        if is_passing(error):
            raise
        raise BrokenImage(name, f"no file of this name can be read ({error.strerror})", _CHECK) from error
    except ValueError as error:  # a null character
        raise BrokenImage(name, f"no file can have this name ({error})", _CHECK) from error
    if not stat.S_ISREG(mode):
        raise BrokenImage(
            name, f"it is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}, not an image", _CHECK
        )


def _near(path: str) -> str:
    """A file that `path` may mean: with slashes for backslashes, without spaces around it, its letters spelt otherwise,
    its suffix in other letters; empty if there is none."""
    stem, suffix = os.path.splitext(path)
    folder, base = os.path.split(path)
    tries = (
        path.replace("\\", "/"),
        os.path.join(folder, base.strip()),
        urllib.parse.unquote(path),
        *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")),
        *(stem + other for other in (suffix.lower(), suffix.upper())),
    )
    return next((found for found in tries if found != path and os.path.isfile(found)), "")


def _pixels_alone(source: ImageSource) -> bytes | None:
    """A PNG without its texts and colour profile; None for another file."""
    if isinstance(source, (str, Path)):
        data = Path(source).read_bytes()
    elif isinstance(source, bytes):
        data = source
    else:
        source.seek(0)
        data = source.read()
    if not data.startswith(_PNG):
        return None
    parts, place = [_PNG], len(_PNG)
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + size  # size, kind, content, checksum
        if kind not in _NEEDLESS_CHUNKS:
            parts.append(data[place:end])
        place = end
    return b"".join(parts)


def _name_of(source: ImageSource) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    if hasattr(source, "read"):
        return str(getattr(source, "name", "image from a stream"))
    raise TypeError(f"cannot open a {type(source).__name__} as an image; give a path, bytes or a binary stream")


def _start_of(source: ImageSource) -> bytes:
    """The first bytes of a file; none if it is empty."""
    if isinstance(source, bytes):
        return source[:512]
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            return file.read(512)
    source.seek(0)
    return source.read(512)


def _whole(image: Image.Image) -> Image.Image:
    image.load()
    return to_rgb(image)


def _cropped(image: Image.Image, edges_of: Callable[[int, int], Edges], size: tuple[int, int]) -> Pixels:
    if not isinstance(image, JpegImageFile):
        image.load()  # may bring the EXIF data that stand at a PNG's end
    orientation = _orientation(image)
    width, height = (image.height, image.width) if orientation in SIDEWAYS else image.size
    edges = edges_of(width, height)
    reduction = reduction_of(edges[2] - edges[0], edges[3] - edges[1], size)
    if isinstance(image, JpegImageFile) and image.mode in ("L", "RGB") and orientation == 1:
        with contextlib.suppress(ValueError):  # whatever is wrong with it, Pillow reads it or says what
            pixels = _jpeg(image, reduction)
            left, top, right, bottom = _moved(edges, (width, height), (pixels.shape[1], pixels.shape[0]))
            return pixels[top:bottom, left:right]
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))  # nothing happens but to a JPEG
    image.load()
    found = _rgb(_upright(image))
    return np.array(found.crop(_moved(edges, (width, height), found.size)))


def _jpeg(image: Any, reduction: int) -> Pixels:
    """Decodes the opened JPEG at 1 / `reduction` of its size; ValueError if anything about the file is odd.

    simplejpeg calls the same library as Pillow and gives the same pixels, but Pillow feeds it in small portions.
    """
    width, height = (-(-side // reduction) for side in image.size)  # rounded up, as libjpeg does
    image.fp.seek(0)
    return simplejpeg.decode_jpeg(image.fp.read(), "RGB", min_width=width, min_height=height)


def _moved(edges: Edges, size: tuple[int, int], found: tuple[int, int]) -> Edges:
    """Moves edges in an image of `size` (width, height) to the nearest pixels of the same image at size `found`."""
    left, right = _moved_along(edges[0], edges[2], size[0], found[0])
    top, bottom = _moved_along(edges[1], edges[3], size[1], found[1])
    return left, top, right, bottom


def _moved_along(start: int, end: int, size: int, found: int) -> tuple[int, int]:
    length = max(1, round((end - start) * found / size))
    start = min(round(start * found / size), found - length)
    return start, start + length


def reduction_of(width: int, height: int, size: tuple[int, int]) -> int:
    """The largest of 8, 4, 2, 1 that leaves a crop of width x height pixels at least `size` (height, width), or 1."""
    return max((n for n in (2, 4, 8) if height >= n * size[0] and width >= n * size[1]), default=1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turns a PIL image of any mode into a new one, upright and in 8-bit RGB; see `open_image`."""
    found = _rgb(_upright(image))
    return found.copy() if found is image else found


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(*_EXIF_ERRORS):  # an image with damaged EXIF data is still an image: leave it as it lies
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) == 1:
        return image
    with contextlib.suppress(*_EXIF_ERRORS):
        return ImageOps.exif_transpose(image)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales a grey image of 16 or 32 bits to 0..255, by the range its values need: 1, 255, 65535 or their peak."""
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
    """RGB PIL image to uint8 [3, H, W]."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def resized_for_training(pixels: Pixels, size: tuple[int, int]) -> Tensor:
    """Resizes to uint8 [height, width, 3], bicubic and with antialiasing.

    PyTorch does it in a sixth of Pillow's time. Its values differ from Pillow's by at most 0.3 of 255 in the mean.
    """
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # [1, 3, h, w], colours innermost in memory
    return F.interpolate(image, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0)
