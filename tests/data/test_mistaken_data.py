"""Data that are not what their names or keys say: the right result, or one line that says what is so."""

import bz2
import gzip
import io
import os
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from albef.data.broken import BrokenImage
from albef.data.examples import open_examples
from albef.data.images import open_image
from albef.data.sources import open_sources
from albef.data.text import SPECIALS, build_tokenizer, load_tokenizer
from albef.errors import AlbefValueError
from albef.metrics.boxes import iou
from albef.metrics.nlvr2 import nlvr2_accuracy
from albef.metrics.vqa import vqa_accuracy
from tests.data.conftest import image, write_json, write_tar

RED = image()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"
PAGE = b"<!DOCTYPE html><html>404"
PAIR = {"a.png": RED, "a.txt": b"a dog"}
RECORD = {"image": "a.png", "caption": "a dog"}


def opened(*paths: Path | str):
    """A source, and all that was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = open_sources([str(path) for path in paths])
    return source, " ".join(str(warning.message) for warning in caught)


def captions(source) -> list[str]:
    return [caption for index in range(len(source)) for caption in source.captions(index)]


class TestShards:
    @pytest.mark.parametrize(("name", "mode"), [("x.tar", "w:gz"), ("x.tar.gz", "w"), ("x.tgz", "w")])
    def test_the_content_says_whether_it_is_compressed(self, tmp_path, name, mode):
        assert captions(opened(write_tar(tmp_path / name, PAIR, mode))[0]) == ["a dog"]

    @pytest.mark.parametrize(
        ("data", "what"),
        [(LFS, "git lfs pull"), (PAGE, "a web page"), (bz2.compress(RED), "bzip2: unpack"), (b"PK\3\4", "a zip file")],
    )
    def test_no_tar_file(self, tmp_path, data, what):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(AlbefValueError, match=rf"x\.tar: no tar file; it is .*{what}"):
            opened(tmp_path / "x.tar")

    def test_links(self, tmp_path):
        write_tar(tmp_path / "x.tar", {"d/a.png": RED, "d/a.txt": b"a dog", "d/b.txt": b"a cat"})
        with tarfile.open(tmp_path / "x.tar", "a") as file:
            for name, target in (("d/b.png", "a.png"), ("d/c.png", "gone.png"), ("d/c.txt", "gone.txt")):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                file.addfile(entry)
        source, said = opened(tmp_path / "x.tar")
        assert captions(source) == ["a dog", "a cat"] and source[1].image == RED
        assert "2 links, such as d/c.png, lead to nothing that stands before them" in said

    @pytest.mark.parametrize(
        ("facts", "message"),
        [
            ('{"text": "a dog"}', "its JSON has no \"caption\", but 'text'; call the captions"),
            ('{"caption": 7}', 'its "caption" holds no text; give a string or a list'),
            ('{"caption": "a", "caption": "b"}', r'its JSON is damaged \("caption" twice\)'),
            ('{"caption": 1' + "0" * 5000 + "}", r"its JSON is damaged \(a number of 5,001 digits"),
        ],
    )
    def test_wrong_json(self, tmp_path, facts, message):
        source, _ = opened(write_tar(tmp_path / "x.tar", {"a.png": RED, "a.json": facts.encode()}))
        with pytest.raises(AlbefValueError, match=rf"x\.tar:a: {message}"):
            source.captions(0)


class TestLists:
    @pytest.mark.parametrize(
        ("record", "message"),
        [
            (
                {"image": "a.png", "text": "a"},
                '"caption" .* got nothing: null; the record has "image", "text"; a right',
            ),
            ({"image": "https://x.org/a.png", "caption": "a"}, r"\"image\" to be a path of this machine \(fetch"),
            (RECORD | {"image_id": 1.0}, "a number without a fraction, got a number: 1.0"),
            (RECORD | {"image_id": True}, '"image_id" .*, got a truth value'),
        ],
    )
    def test_wrong_records(self, tmp_path, record, message):
        with pytest.raises(AlbefValueError, match=rf"l\.json, record 0: expected .*{message}"):
            opened(write_json(tmp_path / "l.json", [record]))

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b'[{"image": 1' + b"0" * 5000 + b"}]", ", record 0: it has a number of 5,001 digits, which is too long"),
            (b'{"image": "a"}\n{"image": "b"}\n', ": it holds JSON Lines, one record a line; write them as one list"),
            (LFS, ": the file is a pointer of Git LFS: run `git lfs pull`"),
            (PAGE, ": the file is a web page"),
            (gzip.compress(b"[]", mtime=0), ": the file is compressed by gzip: unpack it"),
            ("[]".encode("utf-16-le"), ": the file has null characters, as UTF-16 has; save it as UTF-8"),
        ],
    )
    def test_other_files(self, tmp_path, data, message):
        (tmp_path / "l.json").write_bytes(data)
        with pytest.raises(AlbefValueError, match=rf"l\.json{message}"):
            opened(tmp_path / "l.json")

    @pytest.mark.parametrize("caption", ["...", "\u200b\ufeff", " - "])
    def test_captions_that_say_nothing(self, tmp_path, caption):
        records = [RECORD, RECORD | {"caption": caption}]
        source, said = opened(write_json(tmp_path / "l.json", records))
        assert len(source) == 1 and "left out 1 of 2 records, whose caption is empty" in said

    @pytest.mark.parametrize(
        ("kind", "record", "message"),
        [
            ("vqa", {"image": "a.png", "question": "q", "answers": ["a"]}, '"answers" to be called "answer"'),
            ("vqa", {"image": "http://x/a.png", "question": "q"}, '"image" to be a path of this machine'),
            ("pairs", {"images": ["a.png", "s3://b/a.png"], "sentence": "s"}, '"images" to be a path of this machine'),
        ],
    )
    def test_examples(self, tmp_path, kind, record, message):
        with pytest.raises(AlbefValueError, match=rf"l\.json, record 0: expected {message}"):
            open_examples(kind, [str(write_json(tmp_path / "l.json", [record]))])

    def test_labels(self, tmp_path):
        record = {"image": "a.png", "sentence": "s", "label": " neutral\n"}
        source = open_examples("classification", [str(write_json(tmp_path / "l.json", [record]))])
        assert source[0].label == "neutral"
        with pytest.raises(
            AlbefValueError, match='record 0: expected "label" to be a string, or missing, got a string'
        ):
            open_examples("classification", [str(write_json(tmp_path / "l.json", [record | {"label": " "}]))])

    def test_no_references(self, tmp_path):
        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([]))
        (tmp_path / "instances.json").write_text('{"images": [], "annotations": []}')
        with pytest.raises(AlbefValueError, match=r"refs\(unc\)\.p: it holds no references; unpack"):
            open_examples("phrases", [str(tmp_path)])

    def test_vocabularies(self, tmp_path):
        (tmp_path / "v.txt").write_bytes("\r\n".join([*SPECIALS, "a", "b\u2028c", "", ""]).encode())
        assert load_tokenizer(str(tmp_path / "v.txt")).get_vocab_size() == 7
        with pytest.raises(AlbefValueError, match="the vocabulary has 'a' on 2 lines; leave one"):
            build_tokenizer([*SPECIALS, "a", "a", "b"])


class TestPaths:
    def test_objects_for_paths(self, tmp_path):
        (tmp_path / "a.png").write_bytes(RED)
        assert len(open_sources([write_json(tmp_path / "l.json", [RECORD])], tmp_path)) == 1
        record = {"image": "a.png", "question": "what is it?"}
        assert len(open_examples("vqa", [write_json(tmp_path / "q.json", [record])], tmp_path)) == 1
        with pytest.raises(TypeError, match=r"got the path '.*l\.json'; write \[path\]"):
            open_sources(tmp_path / "l.json")

    @pytest.mark.parametrize("path", ["https://x.org/s.tar", "s3://x/{0..2}.tar", "pipe:curl -s x"])
    def test_addresses(self, path):
        with pytest.raises(AlbefValueError, match="only files of this machine are read; fetch the data first"):
            opened(path)

    def test_falling_numbers(self):
        with pytest.raises(
            AlbefValueError, match=r"x-\{5\.\.2\}\.tar: the numbers in \{5\.\.2\} fall; write \{2\.\.5\}"
        ):
            opened("x-{5..2}.tar")

    @pytest.mark.parametrize("wrong", ["d\\a b.png", "d/a b.png ", "d/a%20b.png", "d/a b.PNG"])
    def test_a_file_that_may_be_meant(self, tmp_path, monkeypatch, wrong):
        monkeypatch.chdir(tmp_path)
        Path("d").mkdir()
        Path("d/a b.png").write_bytes(RED)
        with pytest.raises(BrokenImage, match=r"no such file, but there is 'd/a b\.png'; check the path"):
            open_image(wrong)

    def test_a_folder_is_no_image(self, tmp_path):
        with pytest.raises(BrokenImage, match="it is a folder, not an image; check the path"):
            open_image(tmp_path)

    @pytest.mark.parametrize(("data", "what"), [(LFS, "a pointer of Git LFS"), (PAGE, "a web page")])
    def test_files_that_are_no_images(self, tmp_path, data, what):
        (tmp_path / "a.png").write_bytes(data)
        for source in (data, io.BytesIO(data), tmp_path / "a.png"):
            with pytest.raises(
                BrokenImage, match=f"not an image in a known format; fetch it again or leave it out: it is {what}"
            ):
                open_image(source)


class TestFolders:
    def fill(self, folder: Path, *names: str) -> Path:
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(RED if name.endswith(".png") else name.encode())
        return folder

    def test_links_to_folders(self, tmp_path):
        folder = self.fill(tmp_path / "a", "0.png", "0.txt")
        other = self.fill(tmp_path / "b", "1.png", "1.txt")
        for number in range(2):
            os.symlink(other, folder / f"other{number}")  # the second is the same folder
        os.symlink(folder, folder / "loop")
        os.symlink(tmp_path, other / "above")
        assert sorted(captions(opened(folder)[0])) == ["0.txt", "1.txt"]

    def test_hidden_folders_are_passed_over(self, tmp_path):
        folder = self.fill(tmp_path / ".a", "0.png", "0.txt")
        self.fill(folder / ".thumbnails", "0.png", "0.txt", "1.png")
        assert captions(opened(folder)[0]) == ["0.txt"]

    @pytest.mark.parametrize("again", ["a", "./a"])
    def test_one_given_twice(self, tmp_path, monkeypatch, again):
        self.fill(tmp_path / "a", "0.png", "0.txt")
        monkeypatch.chdir(tmp_path)
        with pytest.warns(UserWarning, match=r"/a is given 2 times, and its samples count as often; name it once"):
            assert len(open_sources(["a", again])) == 2

    def test_captions_of_another_suffix(self, tmp_path):
        folder = self.fill(tmp_path / "a", "0.png", "0.caption", "1.png", "1.txt", "README.md")
        assert "1 without a caption (passed over beside them: 1 .caption; images" in opened(folder)[1]

    @pytest.mark.parametrize(
        ("name", "hint"), [("x.tar.gz", r"1 shards: write .*\*\.tar\.gz"), ("l.json", "write .*/l")]
    )
    def test_what_to_name_in_its_place(self, tmp_path, name, hint):
        with pytest.raises(AlbefValueError, match=f"none with a caption file of the same name; it has .*{hint}"):
            opened(self.fill(tmp_path / "a", name))


class TestMetrics:
    @pytest.mark.parametrize(("guess", "answers"), [("yes", "yes"), (None, ["yes"] * 10), ("2", [2] * 10)])
    def test_answers_are_strings(self, guess, answers):
        with pytest.raises(AlbefValueError, match=r"question 1: prediction .*; give a string, and a list of strings"):
            vqa_accuracy({1: guess}, {1: answers})
        assert vqa_accuracy({np.int64(1): np.str_("yes")}, {1: ["yes"] * 10}) == 100

    def test_labels_with_spaces(self):
        assert nlvr2_accuracy({"a": np.bool_(True)}, {"a": " true\n"}) == 1

    @pytest.mark.parametrize("box", [None, ["1", "2", "3", "4"], 7])
    def test_no_box(self, box):
        with pytest.raises(AlbefValueError, match=r"box .*: a box is x, y, width, height in pixels"):
            iou(box, [1, 2, 3, 4])
