"""Encoded images that are kept between calls, in one file of the user's cache folder.

The file is a safetensors file followed by a SHA-256 digest. The digest covers the key (a digest of everything that the
encoded images depend on) and the content, so a damaged file and a file made from another model, from other images or by
another version of the library are told apart from the right one in the same way, and made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from albef import __version__
from albef.files import cache_folder, write_atomically

DIGEST_SIZE = 32  # bytes of SHA-256


@dataclass(frozen=True)
class EncodedImages:
    """Images as a model sees them.

    tokens      [images, tokens of an image, width], in half precision
    z_image     [images, embed_dim], unit vectors, in single precision
    names       of the images, in the same order
    """

    tokens: Tensor
    z_image: Tensor
    names: list[str]


def cache_file() -> Path:
    """Where the encoded images are kept."""
    return cache_folder() / "shipped-images.safetensors"


def key_of(paths: Iterable[Path]) -> bytes:
    """A digest of the library's version and of the names and contents of the files; folders stand for their files."""
    key = hashlib.sha256(__version__.encode())
    for path in paths:
        for file in sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]:
            key.update(hashlib.sha256(file.name.encode()).digest() + hashlib.sha256(file.read_bytes()).digest())
    return key.digest()


def kept(key: bytes, encode: Callable[[], EncodedImages]) -> EncodedImages:
    """The encoded images of that key from the cache; where it does not hold them, what `encode` makes, which is then
    kept for the next call. A cache folder that cannot be read or written costs the time of encoding and nothing else.
    """
    try:
        found = _read(cache_file(), key)
    except (OSError, RuntimeError):  # unreadable; RuntimeError where the user has no home folder
        found = None
    if found is None:
        found = encode()
        with contextlib.suppress(OSError, RuntimeError):
            _write(cache_file(), key, found)
    return found


def _read(path: Path, key: bytes) -> EncodedImages | None:
    """What the file holds; None if there is no file, or not one that was written whole for this key."""
    if not path.is_file():
        return None
    whole = path.read_bytes()
    content, digest = whole[:-DIGEST_SIZE], whole[-DIGEST_SIZE:]
    if hashlib.sha256(key + content).digest() != digest:
        return None
    tensors = load(content)
    names = json.loads(bytes(tensors["names"].tolist()))
    return EncodedImages(tensors["tokens"], tensors["z_image"], names)


def _write(path: Path, key: bytes, images: EncodedImages) -> None:
    names = torch.tensor(list(json.dumps(images.names).encode()), dtype=torch.uint8)
    content = save({"tokens": images.tokens, "z_image": images.z_image, "names": names})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content + hashlib.sha256(key + content).digest())
