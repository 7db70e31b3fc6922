"""Training data told from others by a few of their samples."""

from __future__ import annotations

import hashlib
import json
import os

from albef.data.records import ExampleSource, Record, Source


def fingerprint(source: Source | ExampleSource, samples: int = 32) -> dict[str, str]:
    """Digests of evenly spaced records or examples: the names of their images, without folders, and what is said."""
    names, words = [], []
    for index in range(0, len(source), max(1, len(source) // samples)):
        try:
            record = source[index]
        except (ValueError, OSError):  # counted and named when it is drawn
            continue
        names.append(os.path.basename(record.name))
        words.append(record.captions if isinstance(record, Record) else [record.text, *record.answers, record.label])
    digests = (hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] for found in (names, words))
    return dict(zip(("names of images", "texts"), digests, strict=True))
