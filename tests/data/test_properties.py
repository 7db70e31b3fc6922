"""What holds for any text and any size; hypothesis looks for the exceptions."""

import itertools
import pickle
from unittest import mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from albef.data import records
from albef.data.loader import StepBatches
from albef.data.processor import Processor
from albef.data.records import PackedStrings
from albef.data.text import clean_caption, load_tokenizer

quick = settings(max_examples=50, deadline=None)

ODD = [
    *" \t\n.,-/<>",
    "<person>",
    "É",
    "İ",
    "Σ",
    "\ud83d",
    "🐕",
    "👩‍🚀",
    "כלב",
    "كلب",
    "\u202e",
    "犬",
    "\0",
    "[CLS]",
    "a" * 120,
]
any_text = (
    st.text()
    | st.text(st.characters(categories=["Cs", "Zs", "Po", "Lu", "So"]))
    | (st.lists(st.sampled_from(ODD) | st.text(max_size=3)).map("".join))
)


@pytest.fixture(scope="module")
def processor():
    return Processor(load_tokenizer("bert"), (8, 8))


@quick
@given(any_text, st.integers(0, 40))
def test_cleaning_twice_changes_nothing_and_keeps_few_words(text, max_words):
    once = clean_caption(text, max_words)
    assert len(once.split(" ")) <= max(max_words, 1)
    assume("<person>" not in once)  # `<<person>>` to `<person>`: the original unwraps one pair of brackets
    assert clean_caption(once, max_words) == once.strip(" ").rstrip("\n")


@quick
@given(st.lists(any_text, max_size=4), st.integers(1, 40), st.booleans())
def test_tokens_begin_with_cls_and_are_few(processor, texts, max_tokens, clean):
    found = processor.texts(texts, max_tokens, clean=clean)
    assert found["input_ids"].shape == found["attention_mask"].shape
    assert found["input_ids"].shape[0] == len(texts)
    assert found["input_ids"].shape[1] <= max_tokens
    assert (found["input_ids"][:, :1] == processor.cls_id).all()
    assert (found["input_ids"] < processor.vocab_size).all()


@quick
@given(st.data())
def test_ranks_share_a_step_whatever_their_number(data):
    size = data.draw(st.integers(1, 200))
    batch = data.draw(st.integers(1, size))
    world = data.draw(st.sampled_from([n for n in range(1, batch + 1) if batch % n == 0]))
    step, seed = data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 2**32))
    slices = [StepBatches(size, batch, step + 1, seed, step, rank, world).batch(step) for rank in range(world)]
    together = list(itertools.chain(*slices))
    assert {len(own) for own in slices} == {batch // world}
    assert len(set(together)) == batch
    assert together == StepBatches(size, batch, step + 1, seed).batch(step)


@quick
@given(st.lists(any_text), st.sampled_from([0, 2**20]))
def test_packed_texts_come_back(texts, small):
    packed = PackedStrings(texts)
    with mock.patch.object(records, "SMALL", small):
        sent = pickle.loads(pickle.dumps(packed))
    for found in (packed, sent):
        assert [found[index] for index in range(len(found))] == texts
