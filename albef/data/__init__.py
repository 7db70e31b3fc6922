"""Pixels and words in: reading, cleaning, augmenting, batching. Knows no models."""

from albef.data.augment import RandAugment, TrainTransform
from albef.data.broken import BrokenCounter, BrokenImage
from albef.data.examples import Example, ExampleSource, open_examples
from albef.data.images import open_image
from albef.data.loader import StepBatches, make_loader, read_examples
from albef.data.processor import Processor
from albef.data.records import Record, Source
from albef.data.sources import open_sources
from albef.data.text import build_tokenizer, clean_caption, clean_question, train_tokenizer
from albef.data.training_set import CachedSet, Collate, TrainingSet, stable_id

__all__ = [
    "BrokenCounter",
    "BrokenImage",
    "CachedSet",
    "Collate",
    "Example",
    "ExampleSource",
    "Processor",
    "RandAugment",
    "Record",
    "Source",
    "StepBatches",
    "TrainTransform",
    "TrainingSet",
    "build_tokenizer",
    "clean_caption",
    "clean_question",
    "make_loader",
    "open_examples",
    "open_image",
    "open_sources",
    "read_examples",
    "stable_id",
    "train_tokenizer",
]
