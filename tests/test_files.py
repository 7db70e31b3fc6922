"""Files are whole: the old one or the new one, whenever writing ends."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from albef.files import write_atomically


def test_bytes_texts_and_functions_are_written(tmp_path):
    write_atomically(tmp_path / "a", b"\x00\xff")
    write_atomically(tmp_path / "b", "größer\n")
    write_atomically(tmp_path / "c", lambda file: file.write(b"by hand"))
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes().decode() == "größer\n"
    assert (tmp_path / "c").read_bytes() == b"by hand"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "a", "old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "a", fail)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_writers_of_one_file_do_not_meet(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(8)]
    writers = [threading.Thread(target=write_atomically, args=(tmp_path / "a", content)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "a").read_bytes() in contents and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="modes and links as POSIX has them")
def test_others_may_read_links_stay_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    mask = os.umask(0o022)
    os.umask(mask)
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o666 & ~mask
    code = "from albef.files import write_atomically; write_atomically('/dev/stdout', 'said')"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "said"
