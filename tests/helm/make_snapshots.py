"""Writes down what the chart makes of its examples, so that a review sees what a change does to them.

Run it with `python -m tests.helm.make_snapshots`; `make chart` does.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.chart import EXAMPLES, read_example, render_texts

SNAPSHOTS = Path(__file__).with_name("snapshots")
_MADE = re.compile(r"^(  (?:secret|curve-seed): ).+$", re.MULTILINE)


def render_snapshot(example: Path) -> str:
    """All objects of an example, with `…` in the place of what is made at random."""
    texts = render_texts(read_example(example))
    whole = "\n".join(f"# {name}\n{text.strip()}\n" for name, text in texts.items())
    return _MADE.sub(r"\1…", re.sub(r"[ \t]+$", "", whole, flags=re.MULTILINE))


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for path in EXAMPLES:
        (SNAPSHOTS / path.name).write_text(render_snapshot(path))
