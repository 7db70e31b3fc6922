"""Cleaning and tokens against the recordings of the official reader and tokenizer: exact."""

import re

import pytest

from albef.data.processor import Processor
from albef.data.text import build_tokenizer, clean_caption, clean_question
from tests.parity import golden


@pytest.fixture(scope="module")
def record():
    return golden.json_of("text")


@pytest.fixture(scope="module")
def processor():
    return Processor(build_tokenizer(golden.vocabulary()), (32, 32))


def ids_of(processor, texts, **arguments):
    batch = processor.texts(texts, clean=False, **arguments)
    assert batch["attention_mask"].equal((batch["input_ids"] != processor.pad_id).long())
    return batch["input_ids"].tolist()


def numbered(case, pattern):
    """Keys of a case that name a limit, with the limit: `caption_max5` gives ("caption_max5", 5)."""
    found = [(key, re.fullmatch(pattern, key)) for key in case]
    return [(key, int(match[1])) for key, match in found if match]


@pytest.mark.parametrize(("kind", "clean"), [("caption", clean_caption), ("question", clean_question)])
def test_cleaning(record, kind, clean):
    for case in record["cases"]:
        for key, max_words in [(kind, 30), *numbered(case, kind + r"_max(\d+)")]:
            assert clean(case["raw"], max_words) == case[key], case["raw"]


def test_untruncated_ids(record, processor):
    for case in record["cases"]:
        for text, ids in ((case["raw"], case["raw_ids"]), (case["caption"], case["caption_ids"])):
            assert ids_of(processor, [text], max_tokens=10_000) == [ids], text


def test_cut_and_padded_ids(record, processor):
    for case in record["cases"]:
        for key, length in numbered(case, r"caption_ids_trunc(\d+)"):
            assert ids_of(processor, [case["caption"]], max_tokens=length) == [case[key]], case["raw"]
        for key, length in numbered(case, r"caption_ids_pad(\d+)"):
            (ids,) = ids_of(processor, [case["caption"]], max_tokens=length)
            assert ids + [processor.pad_id] * (length - len(ids)) == case[key], case["raw"]


def test_answers_keep_the_separator_as_plain_text(record, processor):
    for case in record["answers"]:
        assert ids_of(processor, [case["text"]], max_tokens=10_000) == [case["ids"]]
