"""Pack the emoji sets for shipping: FOLDER/STYLE.tar -> albef/assets/emoji/STYLE.tar.gz, members unchanged.

    python scripts/pack_emoji.py FOLDER

Each tar holds KEY.webp (64 × 64 on white) and KEY.json (names and keywords). The same input gives the same bytes.
"""

import argparse
import gzip
import io
import tarfile
from pathlib import Path

STYLES = ("noto", "twemoji", "openmoji", "fluent")
TARGET = Path(__file__).resolve().parents[1] / "albef" / "assets" / "emoji"


def packed(source: Path) -> bytes:
    """The members of `source` sorted by name, so that the files of a key stand together, as a .tar.gz without dates."""
    buffer = io.BytesIO()
    with (
        tarfile.open(source) as old,
        gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            clean = tarfile.TarInfo(member.name)
            clean.size = member.size
            new.addfile(clean, old.extractfile(member))
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds " + ", ".join(f"{style}.tar" for style in STYLES))
    folder = parser.parse_args().folder
    TARGET.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        content = packed(folder / f"{style}.tar")
        (TARGET / f"{style}.tar.gz").write_bytes(content)
        print(f"{style}.tar.gz: {len(content):,} bytes")


if __name__ == "__main__":
    main()
