"""Data as people have them: cut, doubled, misnamed, half empty. Nothing may vanish unsaid, and no error be raw."""

import contextlib
import errno
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from albef.data import formats, images, reading, shards
from albef.data.broken import BrokenImage, listing
from albef.data.examples import open_examples
from albef.data.images import open_crop, open_image
from albef.data.loader import read_record
from albef.data.records import Record
from albef.data.sources import open_sources
from albef.data.training_set import TrainingSet
from albef.errors import AlbefRuntimeError, AlbefValueError
from tests.data.conftest import image, write_json

RED, BLUE = image((255, 0, 0)), image((0, 0, 255))
JPEG = image((0, 255, 0), kind="JPEG")


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar file whose names may come twice."""
    with tarfile.open(path, "w") as file:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return path


def pairs(*names: str, kind: str = "png") -> list[tuple[str, bytes]]:
    return [
        member for name in names for member in ((f"{name}.{kind}", RED), (f"{name}.txt", f"text of {name}".encode()))
    ]


def opened(path: Path, message: str = "") -> list[Record]:
    """The records of a source; a warning with this message must come, or none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = open_sources([str(path)])
    said = " ".join(str(warning.message) for warning in caught)
    assert (message in said and str(path) in said) if message else not said, said
    return [source[index] for index in range(len(source))]


def captions(records: list[Record]) -> list[str]:
    return [caption for record in records for caption in record.captions]


class TestTarFiles:
    def test_without_its_end_mark(self, tmp_path):
        whole = tar(tmp_path / "whole.tar", pairs("a", "b", "c"))
        with tarfile.open(whole) as file:
            end = file.getmembers()[4].offset
        (tmp_path / "x.tar").write_bytes(whole.read_bytes()[:end])
        assert len(opened(tmp_path / "x.tar", "1 tar files lack the mark at their end")) == 2

    @pytest.mark.parametrize("cut", [100, 511])
    def test_cut_in_a_header(self, tmp_path, cut):
        whole = tar(tmp_path / "whole.tar", pairs("a", "b"))
        with tarfile.open(whole) as file:
            end = file.getmembers()[2].offset
        (tmp_path / "x.tar").write_bytes(whole.read_bytes()[: end + cut])
        with pytest.raises(AlbefValueError, match=r"x\.tar: not a whole tar file \(after 2,048 bytes there is no head"):
            open_sources([str(tmp_path / "x.tar")])

    def test_damaged_header_in_the_middle(self, tmp_path):
        whole = tar(tmp_path / "whole.tar", pairs("a", "b", "c"))
        with tarfile.open(whole) as file:
            place = file.getmembers()[2].offset
        data = bytearray(whole.read_bytes())
        data[place : place + 8] = b"garbage!"
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(AlbefValueError, match=r"x\.tar: not a whole tar file"):
            open_sources([str(tmp_path / "x.tar")])

    def test_written_one_after_the_other(self, tmp_path):
        parts = [tar(tmp_path / f"{name}.tar", pairs(name)).read_bytes() for name in "ab"]
        (tmp_path / "x.tar").write_bytes(b"".join(parts))
        records = opened(tmp_path / "x.tar")
        assert captions(records) == ["text of a", "text of b"]
        assert [record.image for record in records] == [RED, RED]
        for name, data in (
            ("x.tar.gz", b"".join(map(gzip.compress, parts))),
            ("y.tgz", gzip.compress(b"".join(parts))),
        ):
            (tmp_path / name).write_bytes(data)
            assert len(opened(tmp_path / name)) == 2

    def test_cut_gzip(self, tmp_path):
        whole = gzip.compress(tar(tmp_path / "w.tar", pairs("a", "b")).read_bytes())
        (tmp_path / "x.tar.gz").write_bytes(whole[:-20])
        with pytest.raises(AlbefValueError, match=r"x\.tar\.gz: not a whole tar file .*; fetch it again"):
            open_sources([str(tmp_path / "x.tar.gz")])

    def test_too_large_when_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shards, "UNPACKED_LIMIT", 2**20)
        bomb = tar(tmp_path / "bomb.tar", [*pairs("a"), ("zeros", bytes(2**21))]).read_bytes()
        (tmp_path / "x.tar.gz").write_bytes(gzip.compress(bomb))
        with pytest.raises(AlbefValueError, match=r"more than 1 MiB when .* `gzip -dc .*/x\.tar\.gz > .*/x\.tar`"):
            open_sources([str(tmp_path / "x.tar.gz")])

    def test_hard_links_are_what_they_stand_for(self, tmp_path):
        with tarfile.open(tmp_path / "x.tar", "w") as file:
            for name, data in pairs("a"):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
            link = tarfile.TarInfo("b.png")
            link.type, link.linkname = tarfile.LNKTYPE, "a.png"
            file.addfile(link)
            entry = tarfile.TarInfo("b.txt")
            entry.size = 3
            file.addfile(entry, io.BytesIO(b"two"))
        assert [record.image for record in opened(tmp_path / "x.tar")] == [RED, RED]

    def test_changed_after_it_was_indexed(self, tmp_path):
        source = open_sources([str(tar(tmp_path / "x.tar", pairs("a")))])
        (tmp_path / "x.tar").write_bytes(bytes(600))
        with pytest.raises(BrokenImage, match="it has become shorter since it was indexed"):
            read_record(source, 0)


class TestNames:
    def test_twice_in_a_shard(self, tmp_path):
        records = opened(
            tar(tmp_path / "x.tar", [*pairs("a", "b"), *pairs("a", "b")]), "2 names stand there more than once"
        )
        assert captions(records) == ["text of a", "text of b"] * 2
        assert len({record.image_id for record in records}) == 4

    def test_twice_across_shards_with_other_captions(self, tmp_path):
        tar(tmp_path / "0.tar", [("a.png", RED), ("a.txt", b"red")])
        tar(tmp_path / "1.tar", [("a.png", BLUE), ("a.txt", b"blue")])
        with pytest.warns(
            UserWarning, match=r"0\.tar and .*1\.tar: 1 keys stand in two shards, such as a, but with other"
        ):
            open_sources([f"{tmp_path}/*.tar"])

    def test_the_same_thing_in_two_shards(self, tmp_path):
        for number in range(2):
            tar(tmp_path / f"{number}.tar", pairs("a"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(open_sources([f"{tmp_path}/*.tar"])) == 2

    def test_ids_of_other_images_in_a_list(self, tmp_path):
        records = [{"image": f"{n}.png", "caption": "x", "image_id": n % 3} for n in range(4)]
        opened(
            write_json(tmp_path / "l.json", records), "1 records have the \"image_id\" of another image, such as '0'"
        )
        records = [{"image": "0.png", "caption": c, "image_id": 0} for c in "xy"]
        opened(write_json(tmp_path / "l.json", records))

    @pytest.mark.parametrize("in_folder", [False, True])
    def test_several_images_of_a_name(self, tmp_path, in_folder):
        members = [
            ("a.png", BLUE),
            ("a.JPG", JPEG),
            ("a.webp", RED),
            ("a.txt", b"green"),
            ("b.png", RED),
            ("b.txt", b"red"),
        ]
        place = put(tmp_path, members, in_folder)
        records = opened(place, "1 samples have several images: the first in the order .jpg, .jpeg,")
        assert sorted(open_image(record.image).getpixel((0, 0))[1] > 200 for record in records) == [False, True]

    @pytest.mark.parametrize("in_folder", [False, True])
    def test_dots(self, tmp_path, in_folder):
        members = [*pairs("shot 1.5", "shot 1.6", "v2.0/a"), ("7.image.png", RED), ("7.caption.txt", b"seven")]
        records = opened(put(tmp_path, members, in_folder))
        assert sorted(captions(records)) == ["seven", "text of shot 1.5", "text of shot 1.6", "text of v2.0/a"]

    @pytest.mark.parametrize("in_folder", [False, True])
    def test_dots_that_part_a_sample(self, tmp_path, in_folder):
        members = [*pairs("a"), ("shot 1.5.png", RED), ("shot 1.6.txt", b"other")]
        place = put(tmp_path, members, in_folder)
        message = "left out 1 samples without an image and 1 without a caption; 2 of them have a dot inside their name"
        assert captions(opened(place, message)) == ["text of a"]

    @pytest.mark.parametrize("in_folder", [False, True])
    def test_a_mask_with_a_word(self, tmp_path, in_folder):
        place = put(tmp_path, [*pairs("a"), ("a.mask.png", BLUE)], in_folder)
        assert len(opened(place, "1 samples have several images")) == 1

    @pytest.mark.parametrize("in_folder", [False, True])
    def test_known_suffixes(self, tmp_path, in_folder):
        members = []
        for suffix in (*formats.IMAGE_SUFFIXES, ".JPG", ".JFIF", ".Png"):
            name = f"{suffix[1:]}{len(members)}"
            members += [(name + suffix, RED), (name + ".txt", b"red")]
        assert len(opened(put(tmp_path, members, in_folder))) == len(members) / 2

    def test_names_of_data_in_capital_letters(self, tmp_path):
        assert len(opened(tar(tmp_path / "X.TAR", pairs("a")))) == 1
        assert len(opened(write_json(tmp_path / "L.JSON", [{"image": "a.png", "caption": "x"}]))) == 1
        packed = gzip.compress((tmp_path / "X.TAR").read_bytes())
        (tmp_path / "X.TGZ").write_bytes(packed)
        assert len(opened(tmp_path / "X.TGZ")) == 1

    @pytest.mark.parametrize("in_folder", [False, True])
    def test_unknown_suffixes_are_counted_and_named(self, tmp_path, in_folder):
        members = [*pairs("a"), *pairs("b", "c", kind="heic"), *pairs("d", kind="SVG")]
        place = put(tmp_path, members, in_folder)
        message = (
            "left out 3 samples without an image and 0 without a caption (passed over beside them: 2 .heic, 1 .svg;"
        )
        assert len(opened(place, message)) == 1
        with pytest.raises(AlbefValueError, match=r"passed over beside them: 1 \.heic"):
            open_sources([str(put(tmp_path / "all", pairs("b", kind="heic"), in_folder))])

    @pytest.mark.parametrize("in_folder", [False, True])
    def test_companions_of_macos(self, tmp_path, in_folder):
        members = [*pairs("a"), *((f"._{name}", b"\0\5\x16\7") for name, _ in pairs("a")), (".DS_Store", b"")]
        members += [(f"__MACOSX/{name}", data) for name, data in pairs("a", "._a")]
        assert len(opened(put(tmp_path, members, in_folder))) == 1

    def test_control_characters_do_not_reach_the_terminal(self, tmp_path):
        (record,) = opened(tar(tmp_path / "x.tar", [("a\x1b[2J.png", b"damage"), ("a\x1b[2J.txt", b"x")]))
        with pytest.raises(BrokenImage) as caught:
            open_image(record.image, record.name)
        assert str(caught.value).isprintable()
        assert listing([(caught.value.name, caught.value.reason)]).isprintable()
        with pytest.raises(BrokenImage, match=r"b\\x1b\[2J\.png: no such file"):
            open_image(tmp_path / "b\x1b[2J.png")


def put(path: Path, members: list[tuple[str, bytes]], in_folder: bool) -> Path:
    """The members as a shard, or as files of a folder."""
    path.mkdir(exist_ok=True)
    if not in_folder:
        return tar(path / "x.tar", members)
    for name, data in members:
        (path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "files" / name).write_bytes(data)
    return path / "files"


class TestTexts:
    def test_halves_of_characters_are_dropped(self, tmp_path):
        half, pair = "green\ud83d", "🐕"
        (record,) = opened(write_json(tmp_path / "l.json", [{"image": "a\udce9.png", "caption": [half, pair]}]))
        assert record.captions == ["green", pair]
        assert record.image == tmp_path / "a\udce9.png"  # there it stands for a byte that is not UTF-8
        asked = {"image": "a.png", "question": half, "answer": [half, pair], "question_id": "q\udc00"}
        (found,) = (open_examples("vqa", [str(write_json(tmp_path / "l.json", [asked]))])[0],)
        assert (found.text, found.answers, found.key) == ("green", ("green", pair), "q")
        judged = {"image": "a.png", "sentence": half, "label": half}
        found = open_examples("classification", [str(write_json(tmp_path / "l.json", [judged]))])[0]
        assert (found.text, found.label) == ("green", "green")
        facts = json.dumps({"caption": half, "category": half}).encode()
        (record,) = opened(tar(tmp_path / "x.tar", [("a.png", RED), ("a.json", facts)]))
        assert (record.captions, record.category) == (["green"], "green")

    def test_empty_captions_are_left_out(self, tmp_path):
        records = [{"image": "a.png", "caption": c} for c in ("", "x", [" ", "y"], ["", "\n"], "\ud83d")]
        found = opened(write_json(tmp_path / "l.json", records), "left out 3 of 5 records, whose caption is empty")
        assert captions(found) == ["x", "y"]
        with pytest.raises(AlbefValueError, match=r"l\.json: the captions of all 1 records are empty"):
            open_sources([str(write_json(tmp_path / "l.json", records[:1]))])

    @pytest.mark.parametrize(
        ("kind", "name"), [("vqa", "question"), ("classification", "sentence"), ("phrases", "text")]
    )
    def test_empty_texts_are_left_out(self, tmp_path, kind, name):
        records = [{"image": "a.png", name: text} for text in ("x", " ", "", "y")]
        with pytest.warns(UserWarning, match=r"l\.json: left out 2 of 4 records, whose text is empty"):
            source = open_examples(kind, [str(write_json(tmp_path / "l.json", records))])
        assert [(source[n].text, source[n].key) for n in range(len(source))] == [("x", 0), ("y", 3)]
        with pytest.raises(AlbefValueError, match=r"l\.json: the texts of all 2 records are empty"):
            open_examples(kind, [str(write_json(tmp_path / "l.json", records[1:3]))])

    def test_marks_of_windows(self, tmp_path):
        mark = b"\xef\xbb\xbf"
        members = [("a.png", RED), ("a.txt", mark + b"red"), ("b.png", RED), ("b.json", mark + b'{"caption": "two"}')]
        assert captions(opened(tar(tmp_path / "x.tar", members))) == ["red", "two"]
        text = json.dumps([{"image": "a.png", "caption": "x"}])
        (tmp_path / "l.json").write_text(text, encoding="utf-8-sig")
        assert captions(opened(tmp_path / "l.json")) == ["x"]
        (tmp_path / "l.json").write_text(text, encoding="utf-16")
        with pytest.raises(AlbefValueError, match=r"l\.json: the file is UTF-16; save it as UTF-8"):
            open_sources([str(tmp_path / "l.json")])
        source = open_sources([str(tar(tmp_path / "x.tar", [("a.png", RED), ("a.txt", "x".encode("utf-16"))]))])
        with pytest.raises(BrokenImage, match="its caption is UTF-16"):
            read_record(source, 0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('[{"image": "a", "caption": "b", "image": "c"}]', r'record 0: it has "image" twice; a right record'),
            ('[{"image": "a", "caption": NaN}]', r'record 0: expected "caption" to be .*, got a number: NaN'),
            (f'[{{"image": "a", "caption": {"[" * 100_000}{"]" * 100_000}}}]', "record 0: too many lists"),
            ("[" * 100_000, "record 0: too many lists"),
        ],
    )  # fmt: skip
    def test_odd_json(self, tmp_path, text, message):
        (tmp_path / "l.json").write_text(text)
        with pytest.raises(AlbefValueError, match=rf"l\.json, {message}"):
            open_sources([str(tmp_path / "l.json")])

    def test_json_of_a_shard_that_is_too_deep(self, tmp_path):
        source = open_sources([str(tar(tmp_path / "x.tar", [("a.png", RED), ("a.json", b"[" * 100_000)]))])
        with pytest.raises(BrokenImage, match="its JSON is damaged"):
            read_record(source, 0)


class TestExamples:
    def test_a_pair_may_stand_under_image(self, tmp_path):
        record = {"image": ["a.png", "b.png"], "sentence": "both", "label": "True"}
        found = open_examples("pairs", [str(write_json(tmp_path / "l.json", [record]))])[0]
        assert found.images == (tmp_path / "a.png", tmp_path / "b.png")

    def test_snli_ve_finds_the_images_of_flickr30k(self, tmp_path):
        (tmp_path / "flickr" / "flickr30k-images").mkdir(parents=True)
        (tmp_path / "flickr" / "flickr30k-images" / "2.jpg").touch()
        records = [{"image": name, "sentence": "x"} for name in ("1", "2", "shot 1.5")]
        file = str(write_json(tmp_path / "ve.json", records))
        source = open_examples("classification", [file], str(tmp_path / "flickr"))
        inner = tmp_path / "flickr" / "flickr30k-images"
        assert [source[n].images[0] for n in range(3)] == [inner / "1.jpg", inner / "2.jpg", inner / "shot 1.5.jpg"]
        (tmp_path / "flickr" / "1.jpg").touch()
        assert (
            open_examples("classification", [file], str(tmp_path / "flickr"))[0].images[0] == tmp_path / "flickr/1.jpg"
        )


class TestImages:
    @pytest.mark.parametrize("name", ["a long text " * 40, "a\0b.png", "a.png/b.png", "."])
    def test_impossible_paths(self, tmp_path, name, processor):
        (tmp_path / "a.png").write_bytes(RED)
        records = [{"image": name, "caption": "x"}, {"image": "a.png", "caption": "y"}]
        source = open_sources([str(write_json(tmp_path / "l.json", records))])
        (broken,) = TrainingSet(source, processor)[0, 0]["broken"][:1]
        assert "no" in broken[1]
        assert broken[0].isprintable()

    def test_long_texts_in_a_png(self):
        text = PngImagePlugin.PngInfo()
        text.add_text("workflow", "x" * 3_000_000, zip=True)
        for after in (False, True):
            data = io.BytesIO()
            Image.new("RGB", (20, 10), "red").save(data, "PNG", pnginfo=None if after else text)
            png = data.getvalue()
            if after:  # behind the pixels
                body = b"workflow\0\0" + zlib.compress(b"x" * 3_000_000)
                chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
                png = png[:-12] + chunk + png[-12:]
            assert open_image(png).getpixel((3, 3)) == (255, 0, 0)
            assert open_crop(png, lambda *size: (0, 0, *size), (5, 5)).shape == (10, 20, 3)

    def test_a_damaged_png_is_still_broken(self):
        data = bytearray(RED)
        data[-20] ^= 255
        with pytest.raises(BrokenImage, match="damaged"):
            open_image(bytes(data))

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_large_profiles_and_trailing_bytes(self, kind):
        profile = os.urandom(2_000_000)
        assert open_image(image(size=(20, 10), kind=kind, icc_profile=profile) + b"junk" * 100).size == (20, 10)

    def test_too_many_pixels_by_the_header(self, monkeypatch):
        monkeypatch.setattr(images, "MAX_PIXELS", 95)
        with pytest.raises(BrokenImage, match=r"12 x 8 pixels are more than the limit albef\.data\.images\.MAX_PIXELS"):
            open_image(RED)

    def test_only_known_formats_are_tried(self):
        postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
        with pytest.raises(BrokenImage, match="not an image in a known format"):
            open_image(postscript)

    def test_memory_errors_pass(self, monkeypatch):
        def full(*_):
            raise MemoryError

        monkeypatch.setattr(images, "_whole", full)
        with pytest.raises(MemoryError):
            open_image(RED)


class TestFaultsOfTheMachine:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(reading.time, "sleep", lambda seconds: None)

    def failing(self, monkeypatch, times):
        """Image.open fails so many times as a network disk does."""
        left, whole = [errno.ESTALE] * times, Image.open

        def fail(*arguments, **options):
            if left:
                raise OSError(left.pop(), "Stale file handle")
            return whole(*arguments, **options)

        monkeypatch.setattr(images.Image, "open", fail)

    def test_passing_ones_are_waited_for(self, tmp_path, monkeypatch):
        (tmp_path / "a.png").write_bytes(RED)
        self.failing(monkeypatch, 3)
        assert open_image(tmp_path / "a.png").size == (12, 8)

    def test_lasting_ones_end_the_run(self, tmp_path, monkeypatch, processor):
        (tmp_path / "a.png").write_bytes(RED)
        source = open_sources([str(write_json(tmp_path / "l.json", [{"image": "a.png", "caption": "x"}]))])
        self.failing(monkeypatch, 99)
        with pytest.raises(AlbefRuntimeError, match=r"a\.png: reading failed 4 times .*Stale file handle"):
            TrainingSet(source, processor)[0, 0]


def test_the_old_name_of_an_image(tmp_path):
    (record,) = opened(tar(tmp_path / "x.tar", pairs("a")))
    with pytest.warns(DeprecationWarning, match=r"Record\.picture is now Record\.image"):
        assert record.picture == record.image


names = st.sampled_from(["a", "b", "a.b", "a.1", "._a", "__MACOSX/a", "d/a", "", ".", "a..", "\udce9"])
suffixes = st.sampled_from([".jpg", ".PNG", ".txt", ".TXT", ".json", ".heic", ".image", ".mask.png", ""])
contents = st.sampled_from(
    [RED, b"", b"\xff", b"{}", b'{"caption": "x"}', b'{"caption": NaN}', b"text", b"\xef\xbb\xbf "]
)
fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def attempt(path: Path) -> None:
    """Opens and reads all there is; only errors that a user is meant to see may come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = pickle.loads(pickle.dumps(open_sources([str(path)])))
        except AlbefValueError as error:
            assert path.name in str(error)
            return
        for index in range(len(source)):
            with contextlib.suppress(BrokenImage):
                open_image(read_record(source, index).image)


@fuzzed
@given(st.lists(st.tuples(names, suffixes, contents), max_size=8), st.binary(max_size=3), st.integers(-3000, 0))
def test_any_shard(tmp_path, members, noise, cut):
    file = tar(tmp_path / "x.tar", [(name + suffix, data) for name, suffix, data in members])
    attempt(file)
    data = bytearray(file.read_bytes())
    place = len(data) // 3
    data[place : place + len(noise)] = noise
    file.write_bytes(data[: cut or None])
    attempt(file)


@fuzzed
@given(st.lists(st.tuples(names, suffixes), max_size=8))
def test_no_member_vanishes_unsaid(members):
    gathered: formats.Gathered[int] = formats.Gathered((".json", ".txt"))
    for number, (name, suffix) in enumerate(members):
        gathered.add(name + suffix, number)
    used = [place for _, sample, _ in gathered.samples() for place in sample.values()]
    assert len(used) == len(set(used))
    images = [
        n for n, (name, suffix) in enumerate(members) if formats.split(name + suffix)[1] in formats.IMAGE_SUFFIXES
    ]
    ours = [
        n for n in images if formats.split("".join(members[n]))[0] and not formats.is_companion("".join(members[n]))
    ]
    if set(ours) - set(used):
        assert gathered.passed
        assert " ".join(gathered.passed.sentences())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["\ud83d", "a\0b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "image images caption image_id category question answer sentence text label boxes box height width split ref_id"
)
fields = st.sampled_from([*FIELDS.split(), "question_id", "identifier", "detections", "dataset"])
right = {
    "image": st.just("a.png"), "caption": st.just("x"), "question": st.just("x"), "sentence": st.just("x"),
    "text": st.just("x"), "images": st.just(["a.png", "b.png"]),
}  # fmt: skip


@fuzzed
@given(st.lists(st.tuples(st.fixed_dictionaries({}, optional=right), st.dictionaries(fields, values)), max_size=3))
def test_any_list(tmp_path, records):
    file = write_json(tmp_path / "l.json", [{**known, **odd} for known, odd in records])
    attempt(file)
    for kind in ("vqa", "classification", "pairs", "phrases"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                source = open_examples(kind, [str(file)])
            except AlbefValueError as error:
                assert "l.json" in str(error)
                continue
        for index in range(len(source)):
            for place in source[index].images:
                with contextlib.suppress(BrokenImage):
                    open_image(place)


@fuzzed
@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:\\ud8ax1', max_size=60).map(str.encode))
def test_any_bytes_as_a_list(tmp_path, data):
    (tmp_path / "l.json").write_bytes(data)
    attempt(tmp_path / "l.json")


@fuzzed
@given(st.sampled_from([RED, JPEG, image(kind="WEBP"), image(kind="TIFF"), image(kind="GIF")]), st.data())
def test_any_damage_of_an_image(whole, data):
    damaged = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BrokenImage):
        open_image(bytes(damaged[: data.draw(st.integers(0, len(whole)))]))
