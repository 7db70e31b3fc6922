"""Where images and their captions lie: JSON lists, WebDataset shards, folders; one map-style interface for all.

A source knows its length and gives a Record at random by number. It keeps little per sample (packed bytes and numpy
arrays, no Python objects), so that millions of samples stay small; loader workers share them with the process that
they work for.
"""

import difflib
import glob
import itertools
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from albef.data.formats import IMAGE_SUFFIXES, UNREAD_SUFFIXES, Gathered, is_companion, split
from albef.data.lists import ADDRESS, Fault, is_texts, json_records, path_faults, root_of
from albef.data.progress import tracked
from albef.data.reading import captions_in, decoded, patiently
from albef.data.records import ChainSource, PackedStrings, Record, Source, checked, warn_passed_over
from albef.data.shards import TAR_SUFFIXES, TarSource
from albef.errors import AlbefFileNotFoundError, AlbefValueError
from albef.files import data_path, generator

EXAMPLE = '{"image": "train/0001.jpg", "caption": "a dog runs"} ("caption" may be a list; "image_id" may be added)'


def open_sources(paths: Sequence[str | Path], image_root: str | Path | None = None) -> Source:
    """One source from JSON lists, tar shards and folders, in the given order.

    Patterns such as `shards/{00000..00012}.tar` and `shards/*.tar` stand for the files they match, and
    `albef:emoji/noto.tar.gz` for a file that comes with the package. `image_root` is the folder that the `image` of
    JSON records is relative to; without it, that of the JSON file. FileNotFoundError with the nearest names for a
    missing path; ValueError for a wrong or empty file. Samples without image or caption, and records whose captions are
    all empty, are left out with a warning that counts them.
    """
    paths = checked_paths("open_sources", paths)
    made = {name: module for name in paths if (module := generator(name))}
    files = [file for pattern in paths if pattern not in made for file in expand(data_path(pattern))]
    sources: list[Source] = [module.open_records(name) for name, module in made.items()]
    for are_tars, group in itertools.groupby(files, key=lambda file: file.name.lower().endswith(TAR_SUFFIXES)):
        members = list(group)
        sources += [TarSource(members)] if are_tars else [_open(file, image_root) for file in members]
    if not sources:
        raise AlbefValueError("no data: the list of paths is empty; name a JSON list, tar shards or a folder of images")
    return sources[0] if len(sources) == 1 else ChainSource(sources)


def checked_paths(caller: str, paths: Sequence[str | Path]) -> list[str]:
    """The paths as strings; TypeError for a single one, a warning for one that is given twice."""
    if isinstance(paths, (str, Path)):
        kind = "string" if isinstance(paths, str) else "path"
        raise TypeError(f"{caller} wants a list of paths, got the {kind} {str(paths)!r}; write [path]")
    for place, times in Counter(map(os.path.abspath, paths)).items():
        if times > 1:
            what = f"{place} is given {times} times, and its samples count as often"
            warnings.warn(f"{what}; name it once, unless that is meant", stacklevel=3)
    return list(map(str, paths))


def captions_of(source: Source, indices: Sequence[int]) -> Iterator[str]:
    """All captions of the records `indices`, without reading images.

    Records that cannot be read are passed over: whoever reads their images counts and names them.
    """
    for index in tracked(indices, len(indices), "reading captions"):
        try:
            captions = source.captions(index)
        except (ValueError, OSError):
            continue
        yield from captions


def _open(file: Path, image_root: str | Path | None) -> Source:
    if file.is_dir():
        return FolderSource(file)
    if file.suffix.lower() == ".json":
        return JsonSource(file, image_root)
    raise AlbefValueError(
        f"{file}: unknown kind of data; give a .json list, {', '.join(TAR_SUFFIXES)} shards or a folder"
    )


def expand(pattern: str) -> list[Path]:
    """Existing files that a path with braces and wildcards stands for, braces in order, wildcards sorted."""
    found: list[Path] = []
    if ADDRESS.match(pattern):
        raise AlbefValueError(f"{pattern}: only files of this machine are read; fetch the data first and name its path")
    for text in [pattern] if os.path.exists(pattern) else _braces(pattern):
        matches = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
        if not matches:
            _missing(Path(text))
        found += map(Path, matches)
    return found


def _braces(text: str) -> list[str]:
    """`a{0..2}b{x,y}` to its six words; numbers keep their leading zeros."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if match is None:
        return [text]
    first, last, words = match.groups()
    if first and int(first) > int(last):
        raise AlbefValueError(f"{text}: the numbers in {match[0]} fall; write {{{last}..{first}}}")
    parts = words.split(",") if words else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return [text[: match.start()] + part + rest for part in parts for rest in _braces(text[match.end() :])]


def _missing(path: Path) -> NoReturn:
    """Raise FileNotFoundError that names what does exist near `path`."""
    part, parent = path.name, path.parent
    while not parent.is_dir() and parent != parent.parent:
        part, parent = parent.name, parent.parent
    names = sorted(os.listdir(parent)) if parent.is_dir() else []
    near = difflib.get_close_matches(part, names, n=3, cutoff=0.4) or names[:3]
    raise AlbefFileNotFoundError(
        f"{path}: no such file or folder; nearest in {parent}/: {', '.join(near) or 'nothing'}"
    )


class JsonSource:
    """The original's annotation lists for pre-training and retrieval (spec 5.1).

    Ids, given as "image_id" or else the path, count within the images' folder: other data sets may use the same.
    While the list is read, the file's text is held whole (for a moment as bytes too), its records one at a time. Empty
    captions are left out.
    """

    def __init__(self, file: Path, image_root: str | Path | None = None) -> None:
        essences = _spoken(file, map(_essence, json_records(file, EXAMPLE, _faults)))
        self.packed = PackedStrings(json.dumps(essence, ensure_ascii=False) for essence in essences)
        self.root = Path(image_root) if image_root else root_of(file, self._essence(0)[0])

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> Record:
        image, captions, image_id, category = self._essence(index)
        return Record(str(self.root / image), self.root / image, captions, str(self.root / image_id), category)

    def captions(self, index: int) -> list[str]:
        return self._essence(index)[1]

    def _essence(self, index: int) -> list[Any]:
        return json.loads(self.packed[checked(index, len(self))])


def _spoken(file: Path, essences: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """Those with a caption. Warns of the others, and of equal ids of different images; ValueError if none is left."""
    images: dict[str, int] = {}  # of ids that differ from the image: which image they stand for
    kept = blank = 0
    twice: list[str] = []
    for image, captions, image_id, category in essences:
        if not captions:
            blank += 1
            continue
        kept += 1
        if image_id != image and images.setdefault(image_id, hash(image)) != hash(image):
            twice.append(image_id)
        yield [image, captions, image_id, category]
    if not kept:
        raise AlbefValueError(f"{file}: the captions of all {blank:,} records are empty; give each image a text")
    if blank:
        warnings.warn(f"{file}: left out {blank:,} of {kept + blank:,} records, whose caption is empty", stacklevel=6)
    if twice:
        warnings.warn(
            f'{file}: {len(twice):,} records have the "image_id" of another image, such as {twice[0]!r}; they count as '
            "the same image: leave the ids out if they are not",
            stacklevel=6,
        )


def _essence(record: dict[str, Any]) -> list[Any]:
    """What a record says: image, captions, image_id, category."""
    image, category = record["image"], record.get("category")
    return [image, captions_in(record["caption"]), str(record.get("image_id", image)), category]


def _faults(record: dict[str, Any]) -> Iterator[Fault]:
    """Where the record differs from EXAMPLE's shape."""
    image_id, category = record.get("image_id", ""), record.get("category")
    yield from path_faults("image", record.get("image"))
    if not is_texts(record.get("caption")):
        yield '"caption" to be a string or a list of strings', record.get("caption")
    if type(image_id) not in (str, int):
        yield '"image_id" to be a string or a number' + " without a fraction" * isinstance(image_id, float), image_id
    if not isinstance(category, (str, type(None))):
        yield '"category" to be a string', category


class FolderSource:
    """A folder of images with a `.txt` of the same name beside each, one caption per line; subfolders included.

    Folders whose names begin with a dot, such as `.git`, are passed over. The rules by which image and text belong
    together are those of shards (`formats.Gathered`).
    """

    def __init__(self, folder: Path) -> None:
        gathered: Gathered[str] = Gathered((".txt",))
        others = []
        for name in _files_below(folder):
            if split(name)[1] in (".txt", *IMAGE_SUFFIXES, *UNREAD_SUFFIXES):
                gathered.add(name, name)
            else:
                others.append(name)
        for name in others:  # such as 0001.json: only those beside an image or a text are worth a word
            if (split(name)[0], 1) in gathered.found:
                gathered.add(name, name)
        pairs = sorted(
            ((sample[image], sample[".txt"]) for _, sample, image in gathered.samples()),
            key=lambda pair: pair[0].split("/"),
        )
        if not pairs:
            hint = _instead(folder)
            found = f" ({'; '.join(gathered.passed.sentences())})" if gathered.passed else ""
            images = gathered.passed.without_caption
            raise AlbefValueError(
                f"{folder}: {images} images, none with a caption file of the same name; {hint}{found}"
            )
        warn_passed_over(str(folder), gathered.passed)
        self.folder = folder
        self.images, self.texts = (PackedStrings(names) for names in zip(*pairs, strict=True))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        path = self.folder / self.images[checked(index, len(self))]
        return Record(str(path), path, self.captions(index), str(path))

    def captions(self, index: int) -> list[str]:
        path = self.folder / self.texts[checked(index, len(self))]
        return captions_in(decoded(patiently(path.read_bytes, str(path)), str(path), "its caption").splitlines())


def _instead(folder: Path) -> str:
    """Says what to name in the place of a folder without pairs, or else how a pair looks."""
    for suffix in TAR_SUFFIXES:
        if shards := [path for path in folder.glob(f"*{suffix}") if not is_companion(path.name)]:
            return f"it has {len(shards)} shards: write {folder}/*{suffix}"
    lists = list(folder.glob("*.json"))
    return f"it has {lists[0].name}: write {lists[0]}" if len(lists) == 1 else "put KEY.txt beside KEY.jpg"


def _files_below(folder: Path) -> Iterator[str]:
    """Names within the folder of all files in it and its subfolders but hidden ones. OSError for one that cannot be
    listed.

    Links to folders elsewhere are followed, each once; those to a folder that is read anyway are not.
    """
    top = os.path.realpath(folder)
    seen = set[str]()

    def is_new(path: str) -> bool:
        if not os.path.islink(path):
            return True
        target = os.path.realpath(path)
        new = target not in seen and os.path.commonpath([top, target]) not in (top, target)
        seen.add(target)
        return new

    def fail(error: OSError) -> NoReturn:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        shown = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(name for name in shown if is_new(os.path.join(place, name)))
        inner = Path(place).relative_to(folder)
        yield from ((inner / name).as_posix() for name in sorted(files))
