"""`albef ask | entail | compare | match | ground | classify | embed`: a model and some images, from a shell."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from albef.commands.common import check_places, check_suffix, image_size
from albef.errors import AlbefFileNotFoundError, AlbefRuntimeError, AlbefValueError
from albef.files import printable, write_atomically

if TYPE_CHECKING:
    from albef.pipeline import Pipeline
    from albef.results import Verdict


@dataclass(frozen=True, kw_only=True)
class _Use:
    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """folder of a saved model, e.g. runs/mine/model; or emoji, photos or world, which come along; or hf://owner/name"""

    image_size: str | None = None
    """pixels, if other than the model's: 384, or height and width, 256x512"""

    json: bool = False
    """print JSON"""

    def loaded(self) -> Pipeline:
        from albef import pipeline

        return pipeline.load(self.model, image_size=image_size(self.image_size))

    def show(self, found: Any, lines: Iterable[str]) -> None:
        print(json.dumps(found) if self.json else printable("\n".join(lines), kept="\n"))


@dataclass(frozen=True, kw_only=True)
class _UseOfBoth(_Use):
    image: Positional[Annotated[Path, arg(metavar="IMAGE")]]
    """path of the image"""

    text: Positional[Annotated[str, arg(metavar="TEXT")]]
    """what is said of it"""


@dataclass(frozen=True, kw_only=True)
class Ask(_Use):
    """Answer a question about an image.

    albef ask runs/vqa/model bus.jpg "what colour is the bus?"
    """

    image: Positional[Annotated[Path, arg(metavar="IMAGE")]]
    """path of the image"""

    question: Positional[Annotated[str, arg(metavar="QUESTION")]]
    """what is asked"""

    k: int = 5
    """answers to show"""

    answers: Path | None = None
    """JSON list of answers (by default those the model learnt)"""

    free: bool = False
    """write answers freely instead of ranking a list"""

    def run(self) -> None:
        from albef.tasks.answers import read_answers

        listed = read_answers(self.answers) if self.answers else None
        found = self.loaded().answer(self.image, self.question, self.k, listed, self.free)
        self.show([asdict(one) for one in found], [_share(one.probability, one.text) for one in found])


@dataclass(frozen=True, kw_only=True)
class Entail(_UseOfBoth):
    """Does an image entail a text? Prints the probability of every label that the model knows.

    albef entail runs/ve/model bus.jpg "people are waiting for a bus"
    """

    def run(self) -> None:
        found = self.loaded().entails(self.image, self.text)
        self.show(asdict(found), _shares(found))


@dataclass(frozen=True, kw_only=True)
class Compare(_Use):
    """Is a text true of two images, the left and the right one?

    albef compare runs/nlvr2/model left.jpg right.jpg "both images show a bus"
    """

    left: Positional[Annotated[Path, arg(metavar="LEFT")]]
    """path of the left image"""

    right: Positional[Annotated[Path, arg(metavar="RIGHT")]]
    """path of the right image"""

    text: Positional[Annotated[str, arg(metavar="TEXT")]]
    """what is said of them"""

    def run(self) -> None:
        found = self.loaded().compare(self.left, self.right, self.text)
        self.show(asdict(found), _shares(found))


@dataclass(frozen=True, kw_only=True)
class Match(_UseOfBoth):
    """Do image and text belong together? Prints ITM's probability and ITC's cosine.

    albef match emoji apple.png "a red apple"
    """

    def run(self) -> None:
        found = self.loaded().match(self.image, self.text)
        self.show(asdict(found), [f"match {found.probability:.1%}, cosine {found.cosine:.3f}"])


@dataclass(frozen=True, kw_only=True)
class Ground(_UseOfBoth):
    """Where in an image is a text seen? Writes a heat map, prints the box around its peak.

    albef ground runs/mine/model bus.jpg "the red bus" --out heat.png
    """

    mode: Literal["itm", "itc"] = "itm"
    """kind of heat map: itm looks at every word, itc at the text as a whole"""

    layer: int | None = None
    """layer of the heat map (by default as in the paper)"""

    out: Path = Path("heat.png")
    """image to write"""

    def run(self) -> None:
        check_places(self.out)
        from PIL import Image

        kinds = (suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE)
        check_suffix("--out", self.out, kinds, ".png, .jpg or another image's")
        region = self.loaded().ground(self.image, self.text, self.mode, self.layer)
        kind = Image.registered_extensions()[self.out.suffix.lower()]
        write_atomically(self.out, lambda file: region.overlay().save(file, kind))
        x, y, width, height = (float(side) for side in region.box)
        note = "" if region.points else " (the map has no positive value: the box says nothing)"
        lines = [f"x {x:g}, y {y:g}, width {width:g}, height {height:g}{note}", f"heat map: {self.out}"]
        self.show({"box": [x, y, width, height], "points": region.points, "image": str(self.out)}, lines)


@dataclass(frozen=True, kw_only=True)
class Classify(_Use):
    """Which of some labels suits each image best, without training for them.

    albef classify *.jpg --model runs/mine/model --labels cat dog "traffic light"
    """

    images: Positional[Annotated[tuple[Path, ...], arg(metavar="IMAGE ...", help_behavior_hint="")]]
    """paths of the images"""

    model: str
    """folder of a saved model; or emoji, photos or world, which come along; or hf://owner/name"""

    labels: tuple[str, ...]
    """the labels to choose among"""

    template: str = "a photo of a {}"
    """the text about an image; the label replaces {}"""

    def run(self) -> None:
        if not self.images:
            raise AlbefValueError("no images; give at least one path")
        found = self.loaded().classify(list(self.images), list(self.labels), self.template)
        both = list(zip(self.images, found, strict=True))
        rows = [{"image": str(path), **asdict(one)} for path, one in both]
        self.show(rows, [f"{_share(one.probabilities[one.label], one.label)}  {path}" for path, one in both])


@dataclass(frozen=True, kw_only=True)
class Embed(_Use):
    """Unit vectors of images and texts, in the space that both share, to a file.

    albef embed *.jpg --model runs/mine/model --out vectors.npz

    A .npz file has `images` and `texts` (paths and lines) with `image_vectors` and `text_vectors` beside them; a
    .parquet file has a row for each with the columns `kind`, `name` and `vector`.
    """

    images: Positional[Annotated[tuple[Path, ...], arg(metavar="[IMAGE ...]", help_behavior_hint="")]] = ()
    """paths of the images"""

    model: str
    """folder of a saved model; or emoji, photos or world, which come along; or hf://owner/name"""

    out: Path
    """file to write, .npz or .parquet"""

    texts: Path | None = None
    """file with a text a line"""

    def run(self) -> None:
        check_places(self.out)
        check_suffix("--out", self.out, (".npz", ".parquet"), ".npz or .parquet")
        if not self.images and not self.texts:
            raise AlbefValueError("nothing to embed; give paths of images, or --texts FILE with a text a line")
        if self.texts and not self.texts.exists():
            raise AlbefFileNotFoundError(f"--texts {self.texts}: no such file; give a file with a text a line")
        from albef.data.reading import read_text

        write = _write_npz if self.out.suffix.lower() == ".npz" else _parquet_writer()
        texts = read_text(self.texts).splitlines() if self.texts else []
        loaded = self.loaded()
        names = [str(path) for path in self.images]
        vectors = loaded.embed_images(list(self.images)).numpy(), loaded.embed_texts(texts).numpy()
        write(self.out, names, texts, *vectors)
        counts = {"images": len(names), "texts": len(texts), "file": str(self.out)}
        self.show(counts, [f"{len(names)} images, {len(texts)} texts: {self.out}"])


def _write_npz(path: Path, images: list[str], texts: list[str], image_vectors: Any, text_vectors: Any) -> None:
    import numpy as np

    names, lines = np.array(images, dtype=str), np.array(texts, dtype=str)
    arrays = {"images": names, "image_vectors": image_vectors, "texts": lines, "text_vectors": text_vectors}
    write_atomically(path, lambda file: np.savez(file, **arrays))


def _parquet_writer() -> Any:
    """The function that writes; an error that says what to install, before the work is done."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise AlbefRuntimeError(
            "a .parquet file needs pyarrow: `pip install albef[parquet]`, or name a .npz file"
        ) from error

    def write(path: Path, images: list[str], texts: list[str], image_vectors: Any, text_vectors: Any) -> None:
        import numpy as np

        values = np.concatenate([image_vectors, text_vectors])
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        kinds = ["image"] * len(images) + ["text"] * len(texts)
        table = pa.table({"kind": kinds, "name": images + texts, "vector": vectors})
        write_atomically(path, lambda file: parquet.write_table(table, file))

    return write


def _shares(found: Verdict) -> list[str]:
    ranked = sorted(found.probabilities.items(), key=lambda pair: -pair[1])
    return [_share(share, label) for label, share in ranked]


def _share(share: float, text: str) -> str:
    return f"{share:>6.1%}  {text}"
