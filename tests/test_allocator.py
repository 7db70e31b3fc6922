"""A training process keeps what it frees."""

import platform
import subprocess
import sys

import pytest

from albef.engine import allocator

COUNT = """
import resource, sys, torch
from albef.engine.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    torch.ones(3_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    before, after = faults(), faults()
print(after - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's setting")
def test_what_is_freed_is_not_fetched_again(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # given back at once, whatever was freed before
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", COUNT, way], capture_output=True, text=True, check=True).stdout)
        for way in ("given back", "kept")
    )
    assert kept < 20 < given_back  # pages are of 4 kB, or of 2 MB


@pytest.mark.parametrize(
    ("limit", "calls"),
    [
        (2**40, [(-3, 2**30), (-1, 2**30)]),
        (2**25, [(-3, 2**30), (-3, 2**25), (-1, 2**30)]),
        (0, [(-3, 2**30), (-3, 2**25)]),
    ],
)
def test_trimming_alone_is_never_set(monkeypatch, limit, calls):
    """It would end the adapting of the other threshold; an older glibc refuses that one above 32 MiB."""
    made = []

    class Library:
        def mallopt(self, which, value):
            made.append((which, value))
            return int(which == -1 or value <= limit)

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Library())
    assert allocator.keep_freed_memory() == (limit > 0)
    assert made == calls


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
