"""The published models that `albef pull` fetches: names, addresses, terms. The original's README gives the addresses.

This table was written where these addresses could not be reached. Sizes come from users' reports or from the number of
weights, BERT's checksum from public records of that file, DeiT's from its name. Without one here, the checksum that the
server names is compared, and the one that was computed is written beside the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from albef.errors import AlbefValueError

ALBEF = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/"
DEIT = "https://dl.fbaipublicfiles.com/deit/"
# one commit of it, so that the checksum stays true
BERT = "https://huggingface.co/google-bert/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594/"

BSD = (
    "the code is under the BSD 3-Clause License, Copyright (c) 2021, Salesforce.com, Inc.; its README names no other "
    "terms for the weights"
)
APACHE = "Apache License 2.0, code and weights"
ALBEF_PAPER = (
    "Junnan Li, Ramprasaath R. Selvaraju, Akhilesh Deepak Gotmare, Shafiq Joty, Caiming Xiong, Steven Hoi. Align "
    "before Fuse: Vision and Language Representation Learning with Momentum Distillation. NeurIPS 2021"
)
DEIT_PAPER = (
    "Hugo Touvron, Matthieu Cord, Matthijs Douze, Francisco Massa, Alexandre Sablayrolles, Hervé Jégou. Training "
    "data-efficient image transformers & distillation through attention. ICML 2021"
)
BERT_PAPER = (
    "Jacob Devlin, Ming-Wei Chang, Kenton Lee, Kristina Toutanova. BERT: Pre-training of Deep Bidirectional "
    "Transformers for Language Understanding. NAACL 2019"
)


@dataclass(frozen=True)
class File:
    """A file to fetch. `sha256` is the whole checksum, or as much of its beginning as is known."""

    address: str
    sha256: str = ""

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]


@dataclass(frozen=True)
class Published:
    """A model that others have published.

    files       what to fetch, by the argument of `albef.conversion.convert` that takes it
    task        what it can do, in a word
    what        what it is, in a sentence
    megabytes   to fetch, about; None if it is not known
    licence     what is known of the terms
    papers      to cite
    """

    files: dict[str, File]
    task: str
    what: str
    megabytes: int | None = None
    licence: str = BSD
    papers: tuple[str, ...] = (ALBEF_PAPER,)


def _albef(name: str, task: str, what: str, megabytes: int | None = None) -> Published:
    return Published({"checkpoint": File(ALBEF + name)}, task, what, megabytes)


_DEIT = File(DEIT + "deit_base_patch16_224-b5f2ef4d.pth", sha256="b5f2ef4d")
_BERT = File(BERT + "pytorch_model.bin", sha256="097417381d6c7230bd9e3557456d726de6e83245ec8b24f529f60198a67b203a")

PUBLISHED = {
    "albef-14m": _albef("ALBEF.pth", "pre-training", "pre-trained on 14 million images", 3300),
    "albef-4m": _albef("ALBEF_4M.pth", "pre-training", "pre-trained on 4 million images", 3300),
    "coco": _albef("mscoco.pth", "retrieval", "fine-tuned on COCO"),
    "flickr30k": _albef("flickr30k.pth", "retrieval", "fine-tuned on Flickr30k"),
    "vqa": _albef("vqa.pth", "vqa", "fine-tuned on VQA v2 (its file has no list of answers)"),
    "refcoco": _albef("refcoco.pth", "grounding", "fine-tuned on RefCOCO+", 800),
    "nlvr2": _albef("pretrain_model_nlvr.pth", "text-assignment", "what fine-tuning on NLVR2 starts from"),
    "deit": Published(
        {"deit": _DEIT}, "start", "image encoder of DeiT-B/16, the rest random", 346, APACHE, (DEIT_PAPER,)
    ),
    "bert": Published({"bert": _BERT}, "start", "layers of BERT-base, the rest random", 440, APACHE, (BERT_PAPER,)),
    "start": Published(
        {"deit": _DEIT, "bert": _BERT},
        "start",
        "what the paper's pre-training starts from: both of these",
        787,
        APACHE,
        (DEIT_PAPER, BERT_PAPER),
    ),
}


def published(name: str) -> Published:
    """The published model of that name; ValueError if there is none."""
    if name not in PUBLISHED:
        raise AlbefValueError(f"{name!r} is no published model; there are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
