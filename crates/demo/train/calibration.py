"""Makes text/calibration.jsonl: varied text to calibrate quantizers with.

    python calibration.py OWN GUTENBERG SHAKESPEARE REPOSITORY

OWN has short texts of many kinds and languages written for this project, each under a line
`=== kind`. GUTENBERG is a folder with books of Project Gutenberg that are in the public domain, of
which excerpts are taken; SHAKESPEARE is the text known as tiny Shakespeare (public domain);
REPOSITORY is a checkout of this project, whose code and documents stand for such. None of it is in
the texts that quality is measured on.
"""

import json
import sys
from pathlib import Path

EXCERPT = 6000
BOOKS = {
    "alice-s-adventures-in-wonderland-11.txt": 3,
    "the-burgess-animal-book-for-children-2441.txt": 4,
    "the-wonderful-wizard-of-oz-55.txt": 2,
    "mcguffey-s-third-eclectic-reader-14766.txt": 3,
    "here-and-now-story-booktwo-to-seven-year-olds-27075.txt": 2,
    "the-blue-fairy-book-503.txt": 2,
    "six-little-bunkers-at-grandma-bell-s-14623.txt": 2,
}
SOURCES = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.toml",
    "goldens/make_quants.py",
    "goldens/make_architectures.py",
    "crates/demo/train/train_demo.py",
    "crates/engine/src/sampler.rs",
    "crates/kernels/src/pool.rs",
    "crates/stats/src/bootstrap.rs",
    "crates/files/src/gguf/read.rs",
    "crates/report/src/chart/svg.rs",
    "crates/tokens/src/spm.rs",
    "goldens/archs/qwen3/config.json",
]


def excerpts(text, count):
    """`count` runs of whole lines, evenly spread."""
    step = len(text) // (count + 1)
    for i in range(count):
        start = text.index("\n", step * (i + 1)) + 1
        end = text.rfind("\n", start, start + EXCERPT)
        yield text[start:end].strip()


def documents(own, gutenberg, shakespeare, repository):
    for part in Path(own).read_text().split("=== ")[1:]:
        kind, text = part.split("\n", 1)
        yield f"own-{kind}", text.strip()
    for book, count in BOOKS.items():
        for i, text in enumerate(excerpts(Path(gutenberg, book).read_text(), count)):
            yield f"{book.removesuffix('.txt')}-{i + 1}", text
    for i, text in enumerate(excerpts(Path(shakespeare).read_text(), 3)):
        yield f"shakespeare-{i + 1}", text
    for name in SOURCES:
        yield name, Path(repository, name).read_text()[: 2 * EXCERPT].strip()


if __name__ == "__main__":
    out = Path(__file__).parent.parent / "text" / "calibration.jsonl"
    with out.open("w") as file:
        for name, text in documents(*sys.argv[1:]):
            line = json.dumps({"id": name, "text": text}, ensure_ascii=False)
            file.write(line + "\n")
