"""The next item is made while the last one is worked with."""

import threading
import time

import pytest

from albef.data.ahead import ahead


def test_items_come_in_order_and_each_is_made_before_it_is_asked_for():
    made = []

    def items():
        for number in range(4):
            made.append((number, threading.current_thread()))
            yield number

    seen = []
    for number in ahead(items()):
        deadline = time.monotonic() + 5
        while len(made) < min(number + 2, 4) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(made) == min(number + 2, 4), "the next one is made now, and no further one"
        seen.append(number)
    assert seen == [0, 1, 2, 3] and threading.current_thread() not in {thread for _, thread in made}
    assert list(ahead(iter([]))) == []


def test_what_making_an_item_raises_is_raised_in_its_turn():
    def items():
        yield 1
        raise OSError("disk")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="disk"):
        next(found)
