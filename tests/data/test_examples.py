import os
import pickle
from pathlib import Path

import pytest

from albef.data.examples import Example, open_examples
from albef.data.refcoco import refcoco_examples
from tests.data.conftest import write_json

BOX = (1.0, 2.5, 30.0, 40.0)
RIGHT = {
    "vqa": {"image": "a.jpg", "question": "what?"},
    "classification": {"image": "a", "sentence": "a dog", "label": "neutral"},
    "pairs": {"images": ["a.png", "b.png"], "sentence": "two dogs", "label": "True"},
    "phrases": {"image": "a.jpg", "text": "the dog"},
}


def opened(tmp_path, kind, records, **roots):
    source = open_examples(kind, [str(write_json(tmp_path / "list.json", records))], **roots)
    return [source[index] for index in range(len(source))]


class TestQuestions:
    def test_records(self, tmp_path):
        records = [
            {
                "image": "a.jpg",
                "question": "What? 🐕",
                "answer": ["Dog", "cat", "Dog"],
                "question_id": 70,
                "dataset": "vqa",
            },
            {"image": "b.jpg", "question": "who?", "answer": "me", "question_id": "x", "dataset": "vg"},
            {"image": "c.jpg", "question": "where?"},
        ]
        path = tmp_path / "a.jpg"
        assert opened(tmp_path, "vqa", records) == [
            Example(str(path), (path,), "What? 🐕", 70, answers=("Dog", "cat", "Dog")),
            Example(str(tmp_path / "b.jpg"), (tmp_path / "b.jpg",), "who?", "x", answers=("me",), weight=0.5),
            Example(str(tmp_path / "c.jpg"), (tmp_path / "c.jpg",), "where?", 2),
        ]

    def test_roots(self, tmp_path):
        records = [RIGHT["vqa"], {**RIGHT["vqa"], "dataset": "vg"}]

        def places(**roots):
            return [str(example.images[0]) for example in opened(tmp_path, "vqa", records, **roots)]

        assert places(image_root="/coco", vg_root="/vg") == ["/coco/a.jpg", "/vg/a.jpg"]
        assert places(image_root="/coco") == ["/coco/a.jpg", "/coco/a.jpg"]
        assert places(vg_root="/vg") == [str(tmp_path / "a.jpg"), "/vg/a.jpg"]

    def test_several_lists_count_on(self, tmp_path):
        for name in ("0", "1"):
            write_json(tmp_path / f"{name}.json", [RIGHT["vqa"]] * 2)
        source = open_examples("vqa", [f"{tmp_path}/{{0,1}}.json", f"{tmp_path}/0.json", "world:test/1"])
        assert [source[index].key for index in range(6)] == [0, 1, 2, 3, 4, 5]
        assert (len(source), source[6].name) == (9, "world:test/0")
        with pytest.raises(IndexError):
            source[9]


class TestStatements:
    def test_records(self, tmp_path):
        records = [
            RIGHT["classification"],
            {"image": "b.png", "text": "a cat", "label": "yes"},
            {"image": "sub/c", "caption": "a bird", "label": "no"},
        ]
        found = opened(tmp_path, "classification", records)
        assert [example.images[0].relative_to(tmp_path).as_posix() for example in found] == [
            "a.jpg",
            "b.png",
            "sub/c.jpg",
        ]
        assert [example.text for example in found] == ["a dog", "a cat", "a bird"]
        assert [example.label for example in found] == ["neutral", "yes", "no"]
        assert [example.key for example in found] == [0, 1, 2]

    @pytest.mark.parametrize("kind", ["classification", "pairs"])
    def test_labels_may_be_missing(self, tmp_path, kind):
        unknown = {name: value for name, value in RIGHT[kind].items() if name != "label"}
        first, second = opened(tmp_path, kind, [unknown, RIGHT[kind]])
        assert (first.label, second.label) == (None, RIGHT[kind]["label"])

    def test_paths_from_the_working_folder(self, tmp_path, monkeypatch):
        (tmp_path / "lists").mkdir()
        (tmp_path / "a.jpg").touch()
        monkeypatch.chdir(tmp_path)
        assert opened(tmp_path / "lists", "classification", [RIGHT["classification"]])[0].images == (Path("a.jpg"),)


class TestPairs:
    def test_records(self, tmp_path):
        named = {**RIGHT["pairs"], "identifier": "dev-0-1-0", "label": "False"}
        first, second = opened(tmp_path, "pairs", [named, RIGHT["pairs"]])
        paths = (tmp_path / "a.png", tmp_path / "b.png")
        assert first == Example(f"{paths[0]} and {paths[1]}", paths, "two dogs", "dev-0-1-0", label="False")
        assert (second.key, second.label) == (1, "True")


class TestPhrases:
    def test_records(self, tmp_path):
        records = [
            {
                "image": "a.jpg",
                "text": "dog",
                "ref_id": 7,
                "box": [1, 2.5, 30, 40],
                "detections": [[0, 0, 9, 9, 0.99, 3]],
            },
            {"image": "a.jpg", "text": "dogs", "type": "animals", "boxes": [[1, 2.5, 30, 40], [0, 0, 9, 0]]},
            {"image": "a.jpg", "text": "cat", "height": 48, "width": 64, "split": "testA", "candidates": []},
        ]
        first, second, third = opened(tmp_path, "phrases", records)
        assert (first.key, first.boxes, first.candidates, first.size) == (7, (BOX,), ((0.0, 0.0, 9.0, 9.0),), None)
        assert (second.key, second.boxes, second.split) == (1, (BOX, (0.0, 0.0, 9.0, 0.0)), "")
        assert (third.boxes, third.candidates, third.size, third.split) == ((), (), (48, 64), "testA")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("vqa", {"image": 3}, r'list\.json, record 1: expected "image" to be a path, got a number: 3; a right rec'),
        ("vqa", {"question": None}, r'expected "question" to be a string, got nothing: null; .*"what is it\?"'),
        ("vqa", {"answer": 2}, r'"answer" to be a string or a list of strings, got a number: 2'),
        ("vqa", {"answer": ["2", 3]}, r'"answer" to be a string or a list of strings, got a list: \["2", 3\]'),
        ("vqa", {"question_id": 1.5}, r'"question_id" to be a string or a whole number, got a number: 1\.5'),
        ("classification", {"sentence": ["a"]}, r'"sentence" to be a string, got a list'),
        ("classification", {"label": None}, r'"label" to be a string, or missing, got nothing'),
        ("pairs", {"images": ["a.png"]}, r'"images" to be a pair, the paths of two images, got a list: \["a\.png"\]'),
        ("pairs", {"images": "ab"}, r'"images" to be a pair, the paths of two images, got a string: "ab"'),
        ("pairs", {"images": ["a", ""]}, r'"images" to be a pair'),
        ("pairs", {"label": True}, r'"label" to be a string, or missing, got a truth value: true'),
        ("phrases", {"text": 1}, r'"text" to be a string, got a number'),
        ("phrases", {"box": [1, 2, 3]}, r'"box" to be \[x, y, width, height\] in pixels, finite .*, got a list: \[1,'),
        ("phrases", {"boxes": [[1, 2, 3, 4], [1, 2, -3, 4]]}, r'each of "boxes" to be \[x, .*got a list: \[1, 2, -3'),
        ("phrases", {"boxes": [[1, 2, 3, 4, 5]]}, r'each of "boxes" to be'),
        ("phrases", {"boxes": [1, 2, 3, 4]}, r'each of "boxes" to be .*got a number: 1;'),
        ("phrases", {"boxes": {}}, r'"boxes" to be a list of boxes, each \[x, .*got an object'),
        ("phrases", {"candidates": [[float("nan"), 2, 3, 4]]}, r'each of "candidates" to be .*got a list: \[NaN'),
        ("phrases", {"detections": [[0, 2, 3, float("inf")]]}, r'each of "detections" to be .*got a list: \[0, 2'),
        ("phrases", {"detections": [[0, 2, 3, "4"]]}, r'each of "detections" to be'),
        ("phrases", {"box": [10**400, 2, 3, 4]}, r'"box" to be'),
        ("phrases", {"box": [True, 2, 3, 4]}, r'"box" to be'),
        ("phrases", {"height": 3}, r'"height" and "width" to be pixels, both or neither, got an object: \{"height"'),
        ("phrases", {"height": 3, "width": 0}, r'"height" and "width" to be pixels'),
        ("phrases", {"split": 3}, r'"split" to be a string, got a number: 3'),
        ("phrases", {"ref_id": None}, r'"ref_id" to be a string or a whole number, got nothing'),
    ],
)  # fmt: skip
def test_wrong_records(tmp_path, kind, changes, message):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, kind, [RIGHT[kind], {**RIGHT[kind], **changes}])


def test_one_image_is_no_pair(tmp_path):
    with pytest.raises(ValueError, match=r'"images" to be a pair, the paths of two images, got a string: "a\.jpg"'):
        opened(tmp_path, "pairs", [{"image": "a.jpg", "sentence": "x", "label": "True"}])


@pytest.mark.parametrize("kind", RIGHT)
def test_wrong_files(tmp_path, kind):
    with pytest.raises(ValueError, match="expected a list of records, got an empty list; for example"):
        opened(tmp_path, kind, [])
    with pytest.raises(ValueError, match='record 0: expected an object, got a string: "a"'):
        opened(tmp_path, kind, ["a"])
    (tmp_path / "list.json").write_text("[")
    with pytest.raises(ValueError, match=r"list\.json: not valid JSON"):
        open_examples(kind, [str(tmp_path / "list.json")])
    with pytest.raises(FileNotFoundError, match=r"lists\.json: no such file or folder; nearest in .*: list\.json"):
        open_examples(kind, [str(tmp_path / "lists.json")])
    with pytest.raises(ValueError, match=rf"no {kind} examples; give a \.json list such as"):
        open_examples(kind, [str(tmp_path)])


def test_wrong_calls():
    with pytest.raises(TypeError, match=r"wants a list of paths, got the string 'a\.json'"):
        open_examples("vqa", "a.json")
    with pytest.raises(
        ValueError, match="'captions' is no kind of examples; there are vqa, classification, pairs, phr"
    ):
        open_examples("captions", ["world:test"])
    with pytest.raises(ValueError, match="no data: the list of paths is empty"):
        open_examples("vqa", [])


def test_a_list_can_be_sent_to_another_process(tmp_path):
    source = open_examples("vqa", [str(write_json(tmp_path / "l.json", [{**RIGHT["vqa"], "question": "\ud83d?"}] * 3))])
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


REFS = [
    {
        "ref_id": 49, "ann_id": 5, "image_id": 11, "category_id": 1, "split": split, "sent_ids": [0],
        "file_name": "COCO_train2014_11_5.jpg", "sentences": [{"sent": "left dog", "raw": "Left dog", "sent_id": 0}],
    }
    for split in ("train", "testA")
]  # fmt: skip
INSTANCES = {
    "images": [{"id": 11, "file_name": "COCO_train2014_11.jpg", "height": 480, "width": 640}],
    "annotations": [{"id": 5, "image_id": 11, "bbox": [1, 2.5, 30, 40]}],
}


@pytest.fixture
def refer(tmp_path):
    folder = tmp_path / "refcoco+"
    folder.mkdir()
    (folder / "refs(unc).p").write_bytes(pickle.dumps(REFS, protocol=0))
    write_json(folder / "instances.json", INSTANCES)
    return folder


class TestRefcoco:
    def test_examples(self, refer):
        write_json(refer / "dets.json", {"11": [[0, 0, 9, 9, 0.9, 1]], "12": []})
        source = refcoco_examples(refer, "/coco")
        path = Path("/coco/COCO_train2014_11.jpg")
        expected = Example(
            str(path), (path,), "left dog", 49,
            boxes=(BOX,), candidates=((0.0, 0.0, 9.0, 9.0),), size=(480, 640), split="train",
        )  # fmt: skip
        assert (len(source), source[0], source[1].split) == (2, expected, "testA")

    def test_as_a_source(self, refer):
        (refer / "train2014").mkdir()
        source = open_examples("phrases", [str(refer), f"{refer}/testA"])
        assert [source[index].split for index in range(3)] == ["train", "testA", "testA"]
        assert source[0].images == (refer / "train2014" / "COCO_train2014_11.jpg",)
        assert source[0].candidates == ()
        assert open_examples("phrases", [str(refer)], "/coco")[0].images[0].parent == Path("/coco")
        with pytest.raises(ValueError, match=r"refs\(unc\)\.p: no split 'val'; there are testA, train"):
            open_examples("phrases", [f"{refer}/val"])

    def test_texts_of_python_2(self, refer):
        data = b"(lp0\n(dp1\nS'split'\np2\nS'val'\np3\nsS'ann_id'\nI5\nsS'image_id'\nI11\nsS'ref_id'\nI3\n"
        data += b"sS'sentences'\n(lp4\n(dp5\nS'sent'\nS'caf\\xe9'\nsasa."
        (refer / "refs(unc).p").write_bytes(data)
        assert refcoco_examples(refer, "/coco")[0].text == "café"

    def test_unc_is_preferred(self, refer):
        (refer / "refs(google).p").write_bytes(b"damage")
        assert len(refcoco_examples(refer, "/coco")) == 2

    @pytest.mark.parametrize("value", [os.system, Path("a"), {1, 2}, Example("a", (), "b", 1), b"bytes"])
    def test_pickles_cannot_run_programs(self, refer, value):
        (refer / "refs(unc).p").write_bytes(pickle.dumps([{"split": value}], protocol=2))
        with pytest.raises(
            ValueError, match=r"refs\(unc\)\.p: not a pickle of REFER's \(it wants .* may hold only lists"
        ):
            refcoco_examples(refer, "/coco")

    @pytest.mark.parametrize("data", [b"", b"damage", pickle.dumps(REFS)[:-20], b"\x80\x04\x95"])
    def test_damaged_pickle(self, refer, data):
        (refer / "refs(unc).p").write_bytes(data)
        with pytest.raises(ValueError, match=r"refs\(unc\)\.p: not a pickle of REFER's .*; fetch it again"):
            refcoco_examples(refer, "/coco")

    def test_wrong_contents(self, refer):
        (refer / "refs(unc).p").write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(ValueError, match=r"a dict, but REFER's is a list of references"):
            refcoco_examples(refer, "/coco")
        (refer / "refs(unc).p").write_bytes(pickle.dumps([{**REFS[0], "ann_id": 6}]))
        with pytest.raises(ValueError, match=r"not REFER's references to instances\.json \(KeyError\(6\)\)"):
            refcoco_examples(refer, "/coco")

    @pytest.mark.parametrize("content", [[], {}, {"images": [{}], "annotations": []}, {"images": 1}])
    def test_wrong_instances(self, refer, content):
        write_json(refer / "instances.json", content)
        with pytest.raises(ValueError, match=r"instances\.json: not COCO's images and annotations"):
            refcoco_examples(refer, "/coco")

    def test_wrong_boxes(self, refer):
        write_json(refer / "dets.json", {"11": [[0, 0, -9, 9]]})
        with pytest.raises(ValueError, match=r"dets\.json: box \[0, 0, -9, 9\] is not \[x, y, width, height\]"):
            refcoco_examples(refer, "/coco")
        write_json(refer / "dets.json", [[0, 0, 9, 9]])
        with pytest.raises(
            ValueError, match=r'dets\.json: expected \{"image_id": \[\[x, y, width, height\], \.\.\.\]\}'
        ):
            refcoco_examples(refer, "/coco")

    def test_missing_files(self, refer, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no refs\(\*\)\.p there; unpack REFER's archive"):
            refcoco_examples(tmp_path, "/coco")
        with pytest.raises(FileNotFoundError, match=r"mine\.json"):
            refcoco_examples(refer, "/coco", detections=tmp_path / "mine.json")
        (refer / "instances.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"instances\.json"):
            refcoco_examples(refer, "/coco")
