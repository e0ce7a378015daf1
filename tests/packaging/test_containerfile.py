"""The Containerfile, as far as it can be judged without a container engine: `make test-kubernetes` builds it."""

from __future__ import annotations

import re

from tests.support.wheel import ROOT, run


def test_all_of_the_wheel_is_copied() -> None:
    """A link that leads to what is not copied would silently be left out of the wheel."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Containerfile").read_text(), re.M)
    roots = [ROOT / name for line in copied for name in line.split()]
    allowed = {line.removeprefix("!") for line in (ROOT / ".containerignore").read_text().splitlines()}
    assert {str(path.relative_to(ROOT)) for path in roots} <= allowed
    tracked = run("git", "ls-files", *roots, cwd=ROOT).stdout.splitlines()
    links = [ROOT / name for name in tracked if (ROOT / name).is_symlink()]
    assert {"gateway", "guide.md"} <= {link.name for link in links}
    for link in links:
        assert any(link.resolve().is_relative_to(root) for root in roots), link


def test_the_process_of_a_container_is_nobody() -> None:
    """And its first process an init."""
    lines = (ROOT / "Containerfile").read_text().splitlines()
    assert "USER 10001:10001" in lines
    assert 'ENTRYPOINT ["tini", "--", "solowire"]' in lines
