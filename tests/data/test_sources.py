import gc
import gzip
import io
import json
import os
import pickle
import sys
import tempfile
import warnings

import numpy as np
import pytest

from albef.data import progress, records, shards
from albef.data.images import open_image
from albef.data.sources import captions_of, expand, open_sources
from tests.data.conftest import image, write_json, write_tar

RED = image((255, 0, 0))


def texts(source, folder):
    """Ids within the folder that they count in, and captions."""
    return [(os.path.relpath(record.image_id, folder), record.captions) for record in source]


@pytest.fixture(autouse=True)
def no_unexpected_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestJson:
    def test_records(self, tmp_path):
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.png").write_bytes(RED)
        file = write_json(
            tmp_path / "list.json",
            [
                {"image": "images/a.png", "caption": "one", "extra": 1},
                {"image": "b.png", "caption": ["two", "🐕 كلب"], "image_id": 7, "category": "animal"},
                {"image": "/far/c.png", "caption": "half \ud83d", "image_id": "seven"},
            ],
        )
        source = open_sources([str(file)])
        assert texts(source, tmp_path) == [
            ("images/a.png", ["one"]), ("7", ["two", "🐕 كلب"]), ("seven", ["half"])]  # fmt: skip
        assert open_image(source[0].image).size == (12, 8)
        assert source[1].image == tmp_path / "b.png"
        assert source[1].category == "animal"
        assert str(source[2].image) == source[2].name == "/far/c.png"

    def test_image_root(self, tmp_path):
        file = write_json(tmp_path / "list.json", [{"image": "a.png", "caption": "x"}])
        record = open_sources([str(file)], image_root="/photos")[0]
        assert (str(record.image), record.image_id) == ("/photos/a.png", "/photos/a.png")

    def test_paths_as_they_are_when_only_those_exist(self, tmp_path, monkeypatch):
        (tmp_path / "lists").mkdir()
        (tmp_path / "a.png").write_bytes(RED)
        file = write_json(tmp_path / "lists" / "list.json", [{"image": "a.png", "caption": "x"}])
        monkeypatch.chdir(tmp_path)
        assert open_image(open_sources([str(file)])[0].image).size == (12, 8)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"images": []}, r"list\.json: expected a list of records, got an object; for example \[\{"),
            ([], r"expected a list of records, got an empty list"),
            ([{"image": "a", "caption": "b"}, "c"], r'record 1: expected an object, got a string: "c"; a right record'),
            ([{"caption": "b"}], r'record 0: expected "image" to be a path, got nothing: null'),
            ([{"image": "a", "text": "b"}], r'record 0: expected "caption" to be a string or a list of strings, got n'),
            ([{"image": "a", "caption": []}], r'"caption" to be a string or a list of strings, got a list: \[\]'),
            ([{"image": "a", "caption": ["b", 3]}], r'got a list: \["b", 3\]; a right record: \{"image": "train'),
            ([{"image": "a", "caption": "b", "image_id": [1]}], r'"image_id" to be a string or a number, got a list'),
            ([{"image": "a", "caption": "b", "category": 3}], r'"category" to be a string, got a number: 3'),
        ],
    )
    def test_wrong_shape(self, tmp_path, content, message):
        file = write_json(tmp_path / "list.json", content)
        with pytest.raises(ValueError, match=message):
            open_sources([str(file)])

    @pytest.mark.parametrize(
        "text", ['[{"image": "a"', "[", "", "[%s", "[%s, ]", "[%s %s]", "[%s] []", "[%s],", "{", "[, %s]"]
    )
    def test_no_json(self, tmp_path, text):
        (tmp_path / "list.json").write_text(text.replace("%s", '{"image": "a", "caption": "b"}'), encoding="utf-8")
        with pytest.raises(ValueError, match=r"list\.json: not valid JSON \(.*line 1.*\); one list of records"):
            open_sources([str(tmp_path / "list.json")])

    @pytest.mark.parametrize("text", ["[%s,%s]", "\ufeff[%s,%s]", " \n[ %s\t,\r\n%s ]\n", "[%s , %s\n]"])
    def test_spaces(self, tmp_path, text):
        record = json.dumps({"image": "a", "caption": ']}, "['}, indent=1)
        (tmp_path / "list.json").write_text(text.replace("%s", record))
        assert texts(open_sources([str(tmp_path / "list.json")]), tmp_path) == [("a", [']}, "['])] * 2


class TestTar:
    def test_layouts_of_a_sample(self, tmp_path):
        members = {
            "a/0.png": RED, "a/0.txt": "ein Café\n".encode(),
            "a/1.JPG": image((0, 255, 0), kind="JPEG"), "a/1.json": b'{"caption": "green", "category": "colour"}',
            "2.webp": image((0, 0, 255), kind="WEBP"), "2.json": b'{"caption": ["blue", "", null]}', "2.txt": b"no",
            "3.txt": b"text first", "3.json": b'{"caption": null}', "3.png": RED,
            "5.png": RED, "5.json": b"[]",
        }  # fmt: skip
        source = open_sources([str(write_tar(tmp_path / "x.tar", members))])
        assert texts(source, tmp_path) == [
            ("a/0", ["ein Café"]), ("a/1", ["green"]), ("2", ["blue"]), ("3", ["text first"]), ("5", [])]  # fmt: skip
        assert source[0].name == f"{tmp_path}/x.tar:a/0"
        assert [record.category for record in source] == [None, "colour", None, None, None]
        colours = [open_image(record.image).getpixel((5, 5)) for record in source]
        assert [max(range(3), key=colour.__getitem__) for colour in colours] == [0, 1, 2, 0, 0]

    def test_incomplete_samples_are_left_out_with_a_warning(self, tmp_path):
        members = {"0.png": RED, "1.txt": b"x", "2.png": RED, "2.txt": b"y", "3.json": b"{}", "notes": b""}
        with pytest.warns(UserWarning, match=r"x\.tar: left out 3 samples without an image and 1 without a caption"):
            source = open_sources([str(write_tar(tmp_path / "x.tar", members))])
        assert texts(source, tmp_path) == [("2", ["y"])]

    def test_patterns_in_order_and_equal_keys(self, tmp_path):
        for number in range(12):
            write_tar(tmp_path / f"{number:05d}.tar", {"k.png": RED, "k.txt": str(number).encode()})
        with pytest.warns(UserWarning, match="3 keys stand in two shards, such as k, but with other captions"):
            source = open_sources([f"{tmp_path}/{{00010..00011}}.tar", f"{tmp_path}/0000[0-1].tar"])
        assert texts(source, tmp_path) == [("k", ["10"]), ("k", ["11"]), ("k", ["0"]), ("k", ["1"])]
        found = expand(f"{tmp_path}/000{{1,0}}{{0..1}}.tar")
        assert [path.stem for path in found] == ["00010", "00011", "00000", "00001"]

    @pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz"])
    def test_compressed_shards(self, tmp_path, name):
        source = open_sources([str(write_tar(tmp_path / name, {"k.png": RED, "k.txt": b"red"}, "w:gz"))])
        assert source[0].image == RED
        assert pickle.loads(pickle.dumps(source))[0] == source[0]

    def test_long_names_and_many_samples_stay_small(self, tmp_path):
        members = {}
        for number in range(2000):
            members[f"{'deep/' * 30}{number:06d}.png"] = b"p%d" % number
            members[f"{'deep/' * 30}{number:06d}.txt"] = b"t%d" % number
        source = open_sources([str(write_tar(tmp_path / "x.tar", members))])
        assert source[1999].captions == ["t1999"]
        assert source[1999].image == b"p1999"
        assert len(pickle.dumps(source)) < 2000 * 250

    def test_damaged_texts_are_errors_that_name_the_sample(self, tmp_path):
        members = {"0.png": RED, "0.json": b'{"caption"', "1.png": RED, "1.txt": b"caf\xe9"}
        source = open_sources([str(write_tar(tmp_path / "x.tar", members))])
        with pytest.raises(ValueError, match=r"x\.tar:0: its JSON is damaged"):
            source[0]
        with pytest.raises(ValueError, match=r"x\.tar:1: its caption is not UTF-8 .*; convert it"):
            source[1]

    @pytest.mark.parametrize(("name", "damage"), [("x.tar", bytes), ("x.tgz", gzip.compress), ("y.tgz", bytes)])
    def test_damaged_shards(self, tmp_path, name, damage):
        whole = write_tar(tmp_path / "whole.tar", {"k.png": RED * 20, "k.txt": b"red"}).read_bytes()
        (tmp_path / name).write_bytes(damage(whole[:1300]))
        with pytest.raises(ValueError, match=rf"{name}: not a whole tar file .*; fetch it again or leave it out"):
            open_sources([str(tmp_path / name)])

    def test_no_samples(self, tmp_path):
        file = write_tar(tmp_path / "x.tar", {"readme": b""})
        with pytest.raises(ValueError, match=r"x\.tar: no sample has image and caption; KEY\.jpg with KEY\.txt"):
            open_sources([str(file)])


class TestFolder:
    def test_images_with_texts_beside_them(self, tmp_path):
        (tmp_path / "sub").mkdir()
        for name, text in (("b", "one\n\n two \n"), ("sub/a.x", "كلب"), ("c", " \n")):
            (tmp_path / f"{name}.PNG").write_bytes(RED)
            (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8-sig")
        (tmp_path / "alone.jpg").write_bytes(RED)
        with pytest.warns(UserWarning, match="left out 0 samples without an image and 1 without a caption"):
            source = open_sources([str(tmp_path)])
        assert texts(source, tmp_path) == [("b.PNG", ["one", "two"]), ("c.PNG", []), ("sub/a.x.PNG", ["كلب"])]
        assert open_image(source[2].image).size == (12, 8)

    def test_no_captions(self, tmp_path):
        (tmp_path / "a.png").write_bytes(RED)
        with pytest.raises(ValueError, match=r"1 images, none with a caption file of the same name; put KEY\.txt"):
            open_sources([str(tmp_path)])

    def test_folder_of_shards(self, tmp_path):
        write_tar(tmp_path / "0.tar", {"k.png": RED, "k.txt": b"red"})
        with pytest.raises(ValueError, match=rf"it has 1 shards: write {tmp_path}/\*\.tar"):
            open_sources([str(tmp_path)])


class TestCaptionsOf:
    def test_equal_those_of_the_records_without_reading_images(self, tmp_path, colours, monkeypatch):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a.png").touch()
        (tmp_path / "folder" / "a.txt").write_text("one\ntwo")
        members = {"0.png": RED, "0.txt": b"red", "1.png": RED, "1.json": b'{"caption": ["blue", "sea"]}'}
        tar = write_tar(tmp_path / "x.tar", members)
        source = open_sources([str(tar), str(colours), str(tmp_path / "folder")])
        for indices in (range(len(source)), [14, 0, 3], []):
            expected = [caption for index in indices for caption in source[index].captions]
            assert list(captions_of(source, indices)) == expected
        read, sizes = shards._Shard.read, []
        monkeypatch.setattr(shards._Shard, "read", lambda self, span: (sizes.append(span[1]), read(self, span))[1])
        assert list(captions_of(source, [0, 1])) == ["red", "blue", "sea"]
        assert len(RED) not in sizes

    def test_unreadable_records_are_passed_over(self, tmp_path):
        for name, text in (("a", b"caf\xe9"), ("b", b"tea"), ("c", b"milk")):
            (tmp_path / f"{name}.png").write_bytes(RED)
            (tmp_path / f"{name}.txt").write_bytes(text)
        members = {"0.png": RED, "0.json": b"{", "1.png": RED, "1.txt": b"caf\xe9", "2.png": RED, "2.txt": b"red"}
        source = open_sources([str(tmp_path), str(write_tar(tmp_path / "x.tar", members))])
        (tmp_path / "c.txt").unlink()
        assert list(captions_of(source, range(len(source)))) == ["tea", "red"]


class TestProgress:
    @pytest.mark.parametrize(
        ("patience", "rank", "shown"), [(0, None, True), (0, "0", True), (0, "1", False), (60, None, False)]
    )
    def test_on_a_terminal_when_it_takes_long_and_once(self, monkeypatch, patience, rank, shown):
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setattr(progress, "PATIENCE", patience)
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        if rank:
            monkeypatch.setenv("RANK", rank)
        assert list(progress.tracked("abc", 3, "reading letters")) == ["a", "b", "c"]
        assert ("reading letters" in screen.getvalue()) == shown
        assert bool(screen.getvalue()) == shown

    def test_not_in_a_file(self, capfd, monkeypatch):
        monkeypatch.setattr(progress, "PATIENCE", 0)
        assert list(progress.tracked("abc", 3, "reading letters")) == ["a", "b", "c"]
        assert capfd.readouterr() == ("", "")


class TestOpening:
    def test_sources_of_different_kinds_follow_each_other(self, tmp_path, colours):
        tar = write_tar(tmp_path / "x.tar", {"k.png": RED, "k.txt": b"red"})
        with pytest.warns(UserWarning, match=r"x\.tar is given 3 times"):
            source = open_sources([str(tar), str(colours), str(tar), str(tar)])
        assert len(source) == 15
        assert [source[i].captions[0] for i in (0, 1, 12, 13, 14)] == ["red", "A dog 0.", "A dog 11.", "red", "red"]
        for index in (15, -1):
            with pytest.raises(IndexError, match=f"record {index} of a source of 15"):
                source[index]

    def test_missing_path_names_the_nearest(self, tmp_path, colours):
        with pytest.raises(FileNotFoundError, match=r"lists\.json: no such file or folder; nearest in .*: list\.json"):
            open_sources([str(tmp_path / "lists.json")])
        with pytest.raises(FileNotFoundError, match=r"nearest in .*: 00\.png, 01\.png, 02\.png"):
            open_sources([str(tmp_path / "folder" / "*.tar")])

    def test_nothing(self):
        with pytest.raises(ValueError, match="no data: the list of paths is empty"):
            open_sources([])

    def test_names_that_look_like_patterns(self, tmp_path):
        for name in ("a{0..1}.tar", "b[0].tar"):
            write_tar(tmp_path / name, {"k.png": RED, "k.txt": b"red"})
            assert len(open_sources([str(tmp_path / name)])) == 1

    def test_wrong_kinds(self, tmp_path):
        (tmp_path / "a.csv").touch()
        with pytest.raises(ValueError, match=r"a\.csv: unknown kind of data; give a \.json list"):
            open_sources([str(tmp_path / "a.csv")])
        with pytest.raises(TypeError, match=r"wants a list of paths, got the string 'a\.json'; write \[path\]"):
            open_sources("a.json")

    def test_json_lists_stay_small(self, tmp_path):
        records = [{"image": f"{n}.jpg", "caption": "a dog runs in the snow"} for n in range(1000)]
        source = open_sources([str(write_json(tmp_path / "list.json", records))])
        assert len(pickle.dumps(source)) < 2 * len(json.dumps(records))


class TestHandingOver:
    """What loader workers are sent of a source."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        """Where temporary files go; every array is large."""
        monkeypatch.setattr(records, "SMALL", 0)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "shared"))
        (tmp_path / "shared").mkdir()
        return tmp_path / "shared"

    @pytest.mark.parametrize("has_proc", [True, False])
    def test_is_a_path_as_long_as_the_source_lives(self, tmp_path, colours, folder, monkeypatch, has_proc):
        if not has_proc:
            monkeypatch.setattr(records, "OPEN_FILES", "/no/such/folder")
        elif not os.path.isdir(records.OPEN_FILES):
            pytest.skip("Linux only")
        files = 0 if has_proc else 5
        members = {f"{n}.{kind}": b"%d" % n for n in range(500) for kind in ("png", "txt")}
        source = open_sources([str(write_tar(tmp_path / "x.tar", members)), str(colours)])
        expected = list(source)
        sent = pickle.dumps(source)
        assert len(sent) < 2000
        assert len(list(folder.iterdir())) == files
        assert list(source) == list(pickle.loads(sent)) == expected
        assert pickle.dumps(pickle.loads(sent)) == pickle.dumps(source)
        assert len(list(folder.iterdir())) == files
        path = source.sources[0].keys.block.file
        assert os.path.exists(path)
        del source
        gc.collect()
        assert not os.path.exists(path)
        assert not list(folder.iterdir())

    def test_full_disk(self, folder, monkeypatch):
        def full(file, values):
            raise OSError("8 requested and 0 written")

        monkeypatch.setattr(np, "save", full)
        with pytest.raises(
            OSError, match=r"albef-.*npy: 8 requested .* needs 0 MiB .*, set TMPDIR to a disk with room"
        ):
            pickle.dumps(records.PackedStrings(["a"]))
        assert not list(folder.iterdir())

    def test_small_ones_leave_no_file(self, colours, folder, monkeypatch):
        monkeypatch.setattr(records, "SMALL", 2**20)
        source = open_sources([str(colours)])
        assert list(pickle.loads(pickle.dumps(source))) == list(source)
        assert not list(folder.iterdir())


def test_equal_keys_in_other_folders_are_other_images(tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", {"000.png": RED, "000.txt": b"red"})
        write_json(tmp_path / folder / "list.json", [{"image": "a.png", "caption": "x", "image_id": 1}])
    for name in ("0.tar", "list.json"):
        source = open_sources([str(tmp_path / folder / name) for folder in ("first", "second")])
        assert source[0].image_id != source[1].image_id
