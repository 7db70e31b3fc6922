"""`albef pull` against a server of this machine: whole, cut, changed, damaged and missing files, and two processes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import albef
from albef import cli, conversion, download, pull
from albef.commands.train import parse_train
from albef.data.processor import Processor
from albef.errors import AlbefError, AlbefFileNotFoundError, AlbefRuntimeError, AlbefValueError
from albef.files import cache_folder, pulled
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.models.names import to_official
from albef.models.start import load_model
from albef.published import PUBLISHED, File
from albef.tasks.begin import start_model

SMALL = AlbefConfig(
    image_size=(32, 32),
    patch_size=16,
    vision_width=64,
    vision_layers=1,
    vision_heads=1,
    text_width=64,
    text_layers=1,
    fusion_layers=1,
    text_heads=1,
    text_intermediate=64,
    vocab_size=30_522,  # that of bert-base-uncased, whose words `pull` gives to every model
    max_positions=40,
    embed_dim=16,
)


@dataclass
class Server:
    """What a server has and how it behaves. `asked` are its requests: path, and Range or None."""

    files: dict[str, bytes]
    address: str = ""
    ranges: bool = True
    looks_at_if_range: bool = True
    tag: str = '"first"'
    cuts: list[int] = field(default_factory=list)  # bytes after which each of the next answers breaks off
    status: int = 200
    md5: str | None = None
    open: threading.Event = field(default_factory=threading.Event)  # answers wait for it
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append((request.path, wanted))
        self.open.wait(timeout=900)
        content = self.files.get(request.path)
        if content is None or self.status != 200:
            request.send_error(404 if content is None else self.status)
            return
        same = request.headers.get("If-Range") == self.tag or not self.looks_at_if_range
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges and same else 0
        if start >= len(content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        if self.tag:
            request.send_header("ETag", self.tag)
        if self.md5:
            request.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={self.md5}")
        request.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(content)
        request.wfile.write(content[start:end])


@pytest.fixture
def server(published: dict[str, bytes]) -> Iterator[Server]:
    state = Server(dict(published))
    state.open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.address = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=[0.01], daemon=True).start()
        yield state
        running.shutdown()


@pytest.fixture(scope="module")
def published() -> dict[str, bytes]:
    """Tiny checkpoints of the original, DeiT and BERT in the form of the true ones: BERT's is in the format of 2019,
    with TensorFlow's names and two heads that are not needed."""
    torch.manual_seed(3)
    official = to_official(AlbefModel(SMALL).state_dict(), SMALL)
    text = {n.removeprefix("text_encoder."): t for n, t in official.items() if n.startswith("text_encoder.")}
    image = {n.removeprefix("visual_encoder."): t for n, t in official.items() if n.startswith("visual_encoder.")}
    bert = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in text.items()
        if "crossattention" not in name and not name.endswith(("position_ids", "decoder.bias"))
    }
    bert |= {"bert.pooler.dense.weight": torch.zeros(2, 2), "cls.seq_relationship.bias": torch.zeros(2)}
    contents: dict[str, Any] = {
        "/ALBEF.pth": {"model": official, "optimizer": {"state": {}}, "epoch": 29},
        "/deit.pth": {"model": image | {"head.weight": torch.zeros(3, 2)}},
        "/bert.bin": bert,
    }
    files = {}
    for name, content in contents.items():
        torch.save(content, file := io.BytesIO(), _use_new_zipfile_serialization=name != "/bert.bin")
        files[name] = file.getvalue()
    return files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALBEF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def table(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names lead to the server of the test."""
    digest = hashlib.sha256(server.files["/deit.pth"]).hexdigest()
    deit, bert = File(f"{server.address}/deit.pth", digest[:8]), File(f"{server.address}/bert.bin")
    checkpoint = {"checkpoint": File(f"{server.address}/ALBEF.pth")}
    for name, files in (("albef-14m", checkpoint), ("start", {"deit": deit, "bert": bert})):
        monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], files=files))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


# Whole


def test_a_pulled_model_is_found_by_its_name(
    cache: Path, server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(
        AlbefFileNotFoundError, match=r"albef-14m: not here yet; fetch it once by `albef pull albef-14m`"
    ):
        albef.load("albef-14m")
    cli.main(["pull", "albef-14m"])
    said = capsys.readouterr().out
    for part in (
        "dropped optimizer, epoch",
        "BSD 3-Clause",
        "cite: Junnan Li",
        'albef.load("albef-14m"), --init albef',
    ):
        assert part in said
    assert f"saved in {pulled('albef-14m')}" in said and ".tmp" not in said
    assert names(cache / "files") == [] and names(cache / "models") == ["albef-14m"]
    content = server.files["/ALBEF.pth"]
    source = json.loads((pulled("albef-14m") / "source.json").read_text())
    assert source["name"] == "albef-14m" and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", source["date"])
    digest = hashlib.sha256(content).hexdigest()
    assert source["files"] == [{"address": f"{server.address}/ALBEF.pth", "bytes": len(content), "sha256": digest}]
    model = albef.load("albef-14m", device="cpu")
    official = torch.load(io.BytesIO(content))["model"]
    assert all(tensor.equal(official[name]) for name, tensor in to_official(model.model.state_dict(), SMALL).items())
    # every other place
    Image.new("RGB", (40, 30)).save("grey.png")
    cli.main(["match", "albef-14m", "grey.png", "a grey wall"])
    cli.main(["convert", "albef-14m", "--to-official", "back.pth"])
    cli.main(["convert", "albef-14m", "--image-size", "64", "--out", "large"])
    assert load_model("large").config.image_size == (64, 64)
    recipe = parse_train(["pretrain-tiny", "--init", "albef-14m", "--model.image-size", "32", "32"]).recipe
    started, processor, _ = start_model(AlbefModel, recipe, None, lambda: iter([]))
    assert started.itm_head.weight.equal(official["itm_head.weight"]) and processor.vocab_size == 30_522


def test_a_folder_of_ones_own_comes_first(tmp_path: Path) -> None:
    cli.main(["pull", "albef-14m"])
    AlbefModel(replace(SMALL, image_size=(48, 48))).save_pretrained("albef-14m")
    Processor.from_pretrained(pulled("albef-14m")).save_pretrained("albef-14m")
    assert albef.load("albef-14m").model.config.image_size == (48, 48)


def test_what_is_here_is_not_fetched_again(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["pull", "albef-14m"])
    server.files.clear()
    cli.main(["pull", "albef-14m"])
    assert f"albef-14m is here already: {pulled('albef-14m')}" in capsys.readouterr().out
    cli.main(["pull"])
    assert f"pre-trained on 14 million images; here: {pulled('albef-14m')}" in capsys.readouterr().out


def test_the_start_of_deit_and_bert(cache: Path, server: Server) -> None:
    cli.main(["pull", "start", "--keep"])
    assert names(cache / "files") == ["bert.bin", "deit.pth"]
    state = load_model("start").state_dict()
    bert = torch.load(io.BytesIO(server.files["/bert.bin"]))
    assert state["text_encoder.word_embeddings.weight"].equal(bert["bert.embeddings.word_embeddings.weight"])
    assert len(json.loads((pulled("start") / "source.json").read_text())["files"]) == 2
    shutil.rmtree(pulled("start"))
    server.files.clear()
    cli.main(["pull", "start"])  # from the files that were kept
    assert names(cache / "files") == [] and load_model("start").config.text_layers == 1


def test_an_unknown_name_is_said_before_anything_is_fetched(server: Server) -> None:
    with pytest.raises(
        SystemExit, match=r"albef: 'albef-14' is no published model; there are albef-14m, albef-4m, coco"
    ):
        cli.main(["pull", "albef-14m", "albef-14"])
    assert not server.asked


# Cut


def test_a_cut_connection_goes_on(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.cuts = [1000, 500_000, 20]
    cli.main(["pull", "albef-14m"])
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-", "bytes=501000-", "bytes=501020-"]
    size = len(server.files["/ALBEF.pth"])
    assert f"ALBEF.pth: 1,000 of {size:,} bytes came; another try in 0 s" in capsys.readouterr().err
    assert albef.load("albef-14m").model.config.embed_dim == 16


def test_the_same_command_goes_on_another_day(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cuts = [3000, 0, 0, 0]  # something, and then nothing for as long as it tries
    with pytest.raises(AlbefRuntimeError) as stopped:
        pull.pull("albef-14m")
    said = str(stopped.value)
    assert "after 2 more tries; look at the network and run the same command again. It goes on after the 0.0 MB" in said
    assert "\n" not in said and names(cache / "files") == ["ALBEF.pth.part", "ALBEF.pth.part.json"]
    pull.pull("albef-14m")
    assert server.asked[-1] == ("/ALBEF.pth", "bytes=3000-") and names(cache / "files") == []
    assert albef.load("albef-14m")


def test_a_server_that_is_not_there(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"checkpoint": File("http://127.0.0.1:9/ALBEF.pth")}
    monkeypatch.setitem(PUBLISHED, "albef-14m", replace(PUBLISHED["albef-14m"], files=files))
    with pytest.raises(
        AlbefRuntimeError, match=r"127.0.0.1:9/ALBEF.pth: .*refused.*, after 2 more tries; .*same command"
    ):
        pull.pull("albef-14m")


def test_stopped_between_the_last_byte_and_the_name(
    cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_checked", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pull.pull("albef-14m")
    monkeypatch.undo()
    monkeypatch.setenv("ALBEF_CACHE", str(cache))
    content = server.files["/ALBEF.pth"]
    found = download.download(f"{server.address}/ALBEF.pth", cache / "files" / "ALBEF.pth")
    assert found == (len(content), hashlib.sha256(content).hexdigest()) and len(server.asked) == 1


@pytest.mark.parametrize("way", ["no ranges", "no version", "weak version"])
def test_servers_that_cannot_go_on_begin_anew(server: Server, way: str) -> None:
    server.ranges = way != "no ranges"
    server.tag = {"no ranges": '"first"', "no version": "", "weak version": 'W/"first"'}[way]
    server.cuts = [700_000, 200_000]
    pull.pull("albef-14m")
    assert len(server.asked) == 3 and albef.load("albef-14m")
    assert {wanted for _, wanted in server.asked[1:]} <= (
        {"bytes=700000-", "bytes=200000-"} if server.tag == '"first"' else {None}
    )


@pytest.mark.parametrize("looks", [True, False])
def test_a_file_that_changed_is_fetched_from_its_beginning(
    cache: Path, server: Server, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PAUSES", ())
    server.cuts = [4000]
    with pytest.raises(AlbefRuntimeError, match="4,000 of"):
        pull.pull("albef-14m")
    monkeypatch.setattr(download, "PAUSES", (0.0,))
    server.tag, server.looks_at_if_range = '"second"', looks
    server.files["/ALBEF.pth"] = changed(server.files["/ALBEF.pth"])
    pull.pull("albef-14m")
    assert albef.load("albef-14m").model.itm_head.bias.tolist() == [7.0, 8.0]
    assert [wanted for _, wanted in server.asked] == [None, "bytes=4000-", *([] if looks else [None])]


def test_a_file_that_became_shorter(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cuts, server.looks_at_if_range = [4000], False
    monkeypatch.setattr(download, "PAUSES", ())
    with pytest.raises(AlbefRuntimeError):
        download.download(f"{server.address}/ALBEF.pth", cache / "ALBEF.pth")
    monkeypatch.setattr(download, "PAUSES", (0.0,))
    server.files["/ALBEF.pth"] = b"short"
    assert download.download(f"{server.address}/ALBEF.pth", cache / "ALBEF.pth")[0] == 5


def changed(content: bytes) -> bytes:
    loaded = torch.load(io.BytesIO(content))
    loaded["model"]["itm_head.bias"] = torch.tensor([7.0, 8.0])
    torch.save(loaded, file := io.BytesIO())
    return file.getvalue()


# Wrong


def test_wrong_bytes_are_removed_and_fetched_anew(cache: Path, server: Server) -> None:
    right = server.files["/deit.pth"]
    server.files["/deit.pth"] = right[:-1] + b"x"
    with pytest.raises(
        AlbefValueError, match=r"deit.pth: its SHA-256 is [0-9a-f]{64}, but must be [0-9a-f]{8}; .*anew"
    ):
        pull.pull("start")
    assert names(cache / "files") == []
    server.files["/deit.pth"] = right
    pull.pull("start")
    assert load_model("start")


def test_the_checksum_that_googles_storage_names(cache: Path, server: Server) -> None:
    """Two halves of one length, of which the second came from another file under the same ETag."""
    content = server.files["/ALBEF.pth"]
    server.md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    server.files["/ALBEF.pth"] = content[:-1] + b"x"
    with pytest.raises(AlbefValueError, match=r"ALBEF.pth: its MD5 is .*, but must be .*removed"):
        pull.pull("albef-14m")
    assert names(cache / "files") == []
    server.files["/ALBEF.pth"] = content
    pull.pull("albef-14m")


def test_kept_files_are_checked_too(cache: Path, server: Server) -> None:
    (cache / "files").mkdir(parents=True)
    (cache / "files" / "deit.pth").write_bytes(b"something else")
    with pytest.raises(AlbefValueError, match=r"deit.pth: its SHA-256"):
        pull.pull("start")


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_address_that_is_gone(cache: Path, server: Server, status: int) -> None:
    server.status = status
    with pytest.raises(SystemExit) as stopped:
        cli.main(["pull", "start"])
    said = str(stopped.value.code)
    assert f"/deit.pth: gone, the server says HTTP Error {status}" in said and "\n" not in said
    assert len(server.asked) == 1
    words = said.partition("albef convert ")[2].split()
    assert words == ["--deit", "deit.pth", "--bert", "bert.bin", "--out", str(pulled("start"))]
    for name in ("deit.pth", "bert.bin"):
        Path(name).write_bytes(server.files[f"/{name}"])
    cli.main(["convert", *words])
    assert load_model("start")


def test_a_server_in_trouble_is_asked_again_and_a_refusal_is_not(server: Server) -> None:
    server.status = 503
    with pytest.raises(AlbefRuntimeError, match=r"503.*after 2 more tries"):
        pull.pull("albef-14m")
    server.status = 400
    with pytest.raises(AlbefRuntimeError, match=r"can't be fetched, the server says .*400"):
        pull.pull("albef-14m")
    assert len(server.asked) == 4


def test_no_room(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(server.files["/ALBEF.pth"])

    def room(free: int) -> None:
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free))

    room(2 * size - 1)
    with pytest.raises(
        AlbefRuntimeError, match=r"files: \d+\.\d MB are free, .* need \d+\.\d MB; make room, .*ALBEF_CACHE"
    ):
        pull.pull("albef-14m")
    assert names(cache / "files") == []
    room(2 * size)
    pull.pull("albef-14m")


def test_a_file_of_something_else_stays_for_a_look(cache: Path, server: Server) -> None:
    server.files["/ALBEF.pth"] = b"<html>Please log in</html>"
    with pytest.raises(AlbefValueError, match=r"is not a checkpoint.*The file stays for a look; delete .*ALBEF.pth to"):
        pull.pull("albef-14m")
    assert names(cache / "models") == [] and names(cache / "files") == ["ALBEF.pth"]


# Interrupted, and two at once


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_nothing_half(
    cache: Path, server: Server, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(out: Path, **files: Any) -> str:
        conversion.convert(out=out, **files)
        (out / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(pull, "convert", interrupted)
    with pytest.raises(error):
        pull.pull("albef-14m")
    assert names(cache / "models") == []
    with pytest.raises(AlbefError, match="albef pull albef-14m"):
        albef.load("albef-14m")
    monkeypatch.setattr(pull, "convert", conversion.convert)
    pull.pull("albef-14m")
    assert len(server.asked) == 1 and albef.load("albef-14m")


def test_what_a_killed_process_left_is_cleared(cache: Path, server: Server) -> None:
    for name in (".albef-14m.tmp", "albef-14m"):  # the second by hand
        (cache / "models" / name).mkdir(parents=True)
        (cache / "models" / name / "config.json").write_text("half")
    pull.pull("albef-14m")
    assert names(cache / "models") == ["albef-14m"] and albef.load("albef-14m")


TOGETHER = """
import sys
from dataclasses import replace
from albef import cli, download
from albef.published import PUBLISHED, File
download.TIMEOUT = None  # the machine may be busy with other things
PUBLISHED["albef-14m"] = replace(PUBLISHED["albef-14m"], files={"checkpoint": File(sys.argv[1])})
cli.main(["pull", "albef-14m"])
"""


def test_two_processes_fetch_once(server: Server) -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    call = [sys.executable, "-c", TOGETHER, f"{server.address}/ALBEF.pth"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(call, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    server.open.clear()
    with start() as first:
        while not server.asked and first.poll() is None:
            time.sleep(0.01)
        with start() as second:
            assert second.stderr is not None
            waits = second.stderr.readline()
            server.open.set()
            said = [process.communicate(timeout=900) for process in (first, second)]
    assert waits == f"another process fetches into {cache_folder()}; waiting for it\n"
    assert first.returncode == second.returncode == 0, said
    assert "is here already" in said[1][0] and len(server.asked) == 1 and albef.load("albef-14m")


# The table


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of the names of these tests
    files = {file.address: file for model in PUBLISHED.values() for file in model.files.values()}
    assert all(re.fullmatch(r"https://[\w./-]+", address) for address in files)
    assert len({file.name for file in files.values()}) == len(files), "two of one name would meet in the cache"
    deit = PUBLISHED["start"].files["deit"]
    assert deit.name.endswith(f"-{deit.sha256}.pth"), "it is torch.hub's custom to end with the checksum's beginning"
    migrate = (Path(__file__).parents[1] / "docs" / "migrate.md").read_text()
    for name, model in PUBLISHED.items():
        assert f"| `{name}` |" in migrate and model.licence and model.papers
        assert all(file.name in migrate for file in model.files.values())


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ALBEF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "all"))
    assert cache_folder() == tmp_path / "all" / "albef"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "albef"
