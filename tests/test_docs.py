"""The pages for people: what they name is there, and what is made from the sources is as the sources are."""

from __future__ import annotations

import ast
import html
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from docs.make_settings import PAGE, render_page
from solowire.errors import InvalidMessage
from solowire.protocol.messages import Codec, Error
from solowire.runtime.settings.limits_settings import ConnectSettings
from solowire.runtime.settings.renamed_settings import RENAMED
from solowire.runtime.settings.setting_paths import list_paths, to_variable

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]
PICTURE = DOCS / "pictures/rooms.dot"

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SOURCE = re.compile(r"(?<![\w./…-])((?:[\w-]+/)+[\w-]+\.py)\b(?:::(\w+))?")
_SETTING = re.compile(r"SOLOWIRE_[A-Z0-9_]+")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+")
_QUOTED_NAME = re.compile(r"`(?!solowire_)([a-z][a-z0-9]*(?:_[a-z0-9]+)+)`")
_STATUS_AND_CODES = re.compile(r"\b[45]\d\d ((?:`[a-z_]+`(?:, | and | or )?)+)")
OF_THE_BENCH = ("performance", "performance-notes", "overload")
"""Pages that name cases of the benchmark."""
FOREIGN_NAMES = {
    "legacy_off",
    "token_use",
    "host_run",
    "host_use_zero_pages",
    "take_slot",
    "nr_throttled",
    "nf_conntrack_max",
}
"""Names in pages that are others', made up, or put together of parts."""
NO_SETTINGS = {"SOLOWIRE_GATEWAY_SERVICE_HOST"}
"""Variables that pages speak of although nothing reads them."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links that lead to nothing."""
    links = (link.partition("#")[0] for link in _LINK.findall(_FENCED.sub("", text)) if ":" not in link)
    return [link for link in links if link and not (page.parent / link).exists()]


def broken_anchors(page: Path, text: str) -> list[str]:
    """Links to a part of a page that has no such heading."""
    links = [link for link in _LINK.findall(_FENCED.sub("", text)) if "#" in link and ":" not in link]
    targets = [
        (link, page.parent / name if name else page, anchor)
        for link in links
        for name, _, anchor in [link.partition("#")]
    ]
    return [link for link, target, anchor in targets if target.is_file() and anchor not in anchors_of(target)]


@cache
def anchors_of(page: Path) -> set[str]:
    """What a page's headings are called in links to them, by MkDocs and by others."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def missing_sources(text: str) -> list[str]:
    """Paths of Python files, and tests in them, that are not there. They are told from the repository's top."""
    missing = []
    for path, test in _SOURCE.findall(text):
        if not (ROOT / path).is_file():
            missing.append(path)
        elif test and not re.search(rf"\b(def |class |){test}\b( =|[(:])", (ROOT / path).read_text(encoding="utf-8")):
            missing.append(f"{path}::{test}")
    return missing


@cache
def source_names() -> set[str]:
    """Every snake_case name, and every such word in a text, of the product."""
    packages = ("solowire", "gateway", "router", "workers", "sources")
    texts = [path.read_text(encoding="utf-8") for package in packages for path in (ROOT / package).rglob("*.py")]
    return {word for text in texts for word in _NAME.findall(text)}


def unknown_names(text: str, known: set[str]) -> list[str]:
    """Error codes, log events, notices, fields and functions that pages name and the sources don't."""
    return [name for name in _QUOTED_NAME.findall(_FENCED.sub("", text)) if name not in known | FOREIGN_NAMES]


def unknown_codes(text: str, known: set[str]) -> list[str]:
    """Error codes, with an HTTP status before them, that no rejection has: "503 `overloaded`, `not_ready`"."""
    return [
        code for codes in _STATUS_AND_CODES.findall(text) for code in re.findall(r"`(\w+)`", codes) if code not in known
    ]


@cache
def error_codes() -> set[str]:
    """Every text of the sources that could be one: a code is a constant as it stands, but for a dialect's."""
    packages = ("solowire", "gateway", "router", "workers", "sources")
    trees = [ast.parse(path.read_text("utf-8")) for package in packages for path in (ROOT / package).rglob("*.py")]
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {"legacy_off"} | {v for v in constants if isinstance(v, str) and re.fullmatch(r"[a-z_]+", v)}


def unknown_settings(text: str) -> list[str]:
    """Names of settings that are none. One that ends in an underscore stands for all that begin so."""
    known = set(re.findall(r"`(SOLOWIRE_\w+)`", render_page())) | NO_SETTINGS
    return [
        name
        for name in _SETTING.findall(text)
        if name not in known and not (name.endswith("_") and any(k.startswith(name) for k in known))
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Whoever follows a link of a page finds a file."""
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_into_a_page_find_the_part(page: Path) -> None:
    """Whoever follows a link to a part of a page finds its heading."""
    assert broken_anchors(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sources_that_are_named_exist(page: Path) -> None:
    """A page says where something lives, and it lives there."""
    assert missing_sources(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_that_are_named_exist(page: Path) -> None:
    """A page doesn't send anybody to a setting that has another name now."""
    assert unknown_settings(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in OF_THE_BENCH], ids=name_of)
def test_names_that_are_named_exist(page: Path) -> None:
    """Whoever looks for an error code, a log event or a field of a page in the sources finds it."""
    text = page.read_text(encoding="utf-8")
    assert unknown_names(text, source_names()) == []
    assert unknown_codes(text, error_codes()) == []


def test_the_checks_find_what_is_wrong() -> None:
    """They look at the pages, and not past them."""
    assert unknown_names("`router_away`, `log_end_offset` and `solowire_x`", {"log_end_offset"}) == ["router_away"]
    assert unknown_codes("503 `overloaded` and `ovrloaded`, `x`", {"overloaded"}) == ["ovrloaded", "x"]
    assert broken_links(DOCS / "x.md", "[a](nowhere.md#part) [b](settings.md) [c](https://x.example/) [d](#d)") == [
        "nowhere.md"
    ]
    assert missing_sources("`router/nowhere.py`, (router/router.py), tests/test_docs.py::test_nothing_such") == [
        "router/nowhere.py",
        "tests/test_docs.py::test_nothing_such",
    ]
    assert unknown_settings("SOLOWIRE_PORT SOLOWIRE_PROT SOLOWIRE_LISTEN__") == ["SOLOWIRE_PROT"]


def test_the_rate_of_tickets_in_the_protocol_is_the_settings() -> None:
    """The one setting's default that the protocol's page repeats is the one that there is."""
    said = " ".join((DOCS / "protocol.md").read_text(encoding="utf-8").split())
    connect = ConnectSettings()
    rate, burst = connect.rate_per_user, connect.burst_per_user
    assert f"`SOLOWIRE_LIMITS__CONNECT__RATE_PER_USER` ({rate:g} per second, for each" in said
    assert f"at each gateway; {burst:g} at once)" in said


def test_the_list_of_settings_is_new() -> None:
    """docs/settings.md is what the models say."""
    assert PAGE.read_text(encoding="utf-8") == render_page(), "it is old: run .venv/bin/python docs/make_settings.py"


def test_the_list_has_each_setting() -> None:
    """None is left out, and none stands there twice."""
    names = re.findall(r"^\| `SOLOWIRE_(\w+)`", render_page(), re.MULTILINE)
    assert sorted(f"SOLOWIRE_{name}" for name in names) == sorted(map(to_variable, list_paths()))


def test_sections_are_parts_of_the_list() -> None:
    """A section becomes a part with a title of its own, and names of its settings begin with the section's."""

    class Flush(BaseModel):
        """When a frame is sent."""

        high_ms: float = Field(20.0, ge=0, description="longest wait of high priority")

    class Some(BaseModel):
        """Sends frames."""

        port: int = Field(8000, gt=0, description="where it listens")
        flush: Flush = Flush(high_ms=20.0)

    class All(BaseModel):
        shards: int = Field(1, description="how many")
        some: Some = Some(port=1)

    page = render_page(All)
    assert "## What is set first\n" in page
    assert "## `[some]`: Sends frames\n" in page
    assert "| `SOLOWIRE_SOME__PORT` | whole number | 8000 | > 0 | where it listens |\n" in page
    assert "## `[some.flush]`: When a frame is sent\n" in page
    assert "| `SOLOWIRE_SOME__FLUSH__HIGH_MS` | number | 20 | ≥ 0 | longest wait of high priority |\n" in page


def test_the_changelog_has_each_old_name_with_its_new_one() -> None:
    """Whoever comes from a version before reads all of them in one table."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [old for old, new in RENAMED.items() if f"| `{old}` | `{new}` |" not in text] == []


def test_the_picture_of_the_rooms_is_that_of_the_contracts() -> None:
    """Each line of the picture has the rooms of one layer, from the top, and the SVG has been made from it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    lines = re.findall(r"\[label=<(.*?)>\]", PICTURE.read_text(encoding="utf-8"), re.DOTALL)
    drawn = [re.findall(r"<b>(\w+)</b>", line) for line in lines]
    assert drawn == [re.findall(r"\w+", layer) for layer in layers]
    texts = [
        re.findall(r">([^<>]+)<", text) for text in ("".join(lines), PICTURE.with_suffix(".svg").read_text("utf-8"))
    ]
    said, shown = (set(html.unescape(" ".join(text)).split()) for text in texts)
    assert said - shown == set(), "the SVG is old: touch docs/pictures/rooms.dot && make pictures"


def test_each_page_is_in_the_site() -> None:
    """`make docs` shows every page, but for those that mkdocs.yml leaves out on purpose."""
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w./-]+\.md\b", site))
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} == listed


def test_each_decision_is_in_the_list() -> None:
    """Records have numbers without a hole, and their list, and the architecture, lead to each."""
    records = sorted(path.name for path in (DOCS / "decisions").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in records] == list(range(1, len(records) + 1))
    for page in (DOCS / "decisions/README.md", DOCS / "architecture.md"):
        text = page.read_text(encoding="utf-8")
        assert [name for name in records if f"{name})" not in text] == []


def test_the_session_that_is_shown_is_one() -> None:
    """Each message of it can be said or heard as it stands, and a mistake is answered as it is shown."""
    text = (DOCS / "protocol.md").read_text(encoding="utf-8")
    shown = text.partition("## One session")[2].partition("\n## ")[0]
    error = None
    for who, line in re.findall(r"^    ([<>]) (\{.*)$", shown, re.MULTILINE):
        if who == "<":
            heard = Codec.json.decode_server(line)
            if error is not None:
                assert heard == error
            error = None
            continue
        try:
            Codec.json.decode(line)
        except InvalidMessage as fault:
            error = Error(fault.code, fault.message, fault.hint, fault.id)
    assert error is None
