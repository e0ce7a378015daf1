"""Texts of configurations: references, secrets, differences; and what is told of their history."""

from __future__ import annotations

import difflib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.sources.bind9.server.config_history import EDITED_S, QUICK_S, ConfigHistory, ConfigNews, ConfigSnapshot
from solowire.sources.bind9.server.config_payload import digest_text, make_config_payload, make_invalid_snapshot
from solowire.sources.bind9.server.config_text import (
    DIFF_BYTES,
    DIFF_LINES,
    DIFF_STATEMENTS,
    compare_texts,
    find_references,
)
from solowire.sources.bind9.server.secret_mask import SecretMask

SECRET = "c29sb3dpcmUgdGVzdCBrZXk="


def test_references_of_a_file() -> None:
    """Includes and secrets in all spellings, and none of those in comments or texts."""
    found = find_references(
        """
        // include "/no/1"; secret "no";
        # include "/no/2";
        /* include "/no/3";
           secret no; */
        include "/etc/bind/named.conf.options"; include named.conf.local;
        options { directory "/var/cache/bind"; version "include /no/4; secret no"; };
        key "rndc-key" { algorithm hmac-sha256; secret "abc//def=="; };
        key other { secret c29sb3/dpcmU=; // secret no
        };
        """
    )
    assert found.includes == ["/etc/bind/named.conf.options", "named.conf.local"]
    assert found.secrets == ["abc//def==", "c29sb3/dpcmU="]
    assert found.directory == "/var/cache/bind"


@given(st.text(alphabet='include secr"/*{};#\\\nab', max_size=200))
def test_any_text_has_references(text: str) -> None:
    """A file that is being written says what it can."""
    find_references(text)


PLAIN = f"""key "k" {{
\talgorithm "hmac-sha256";
\tsecret "{SECRET}";
}};
dyndb "d" "/x.so" {{ uri "ldap://x"; password "hunter22"; auth simple; api_key=abcdefg; }};
dlz "l" {{
\tdatabase "ldap 2 v3 simple {{cn=x}} {{sekret}} {{127.0.0.1}}";
}};"""


def test_a_configuration_is_masked() -> None:
    """What BIND knows to be secret, and what it does not; another secret has another tag, the same one the same."""
    mask = SecretMask(b"key")

    def masked(plain: str, secret: str = SECRET) -> str:
        text = mask.mask_configuration(plain, plain.replace(secret, "?" * len(secret)))
        assert text is not None
        return text

    first = masked(PLAIN)
    for secret in (SECRET, "hunter22", "sekret", "abcdefg", "????"):
        assert secret not in first
    assert "auth simple" in first
    assert masked(PLAIN) == first
    other = masked(PLAIN.replace(SECRET, "b3RoZXIgc2VjcmV0"), "b3RoZXIgc2VjcmV0")
    changed = [line for line in difflib.ndiff(first.split("\n"), other.split("\n")) if line[0] in "+-"]
    assert len(changed) == 2
    assert masked(PLAIN.replace("hunter22", "hunter23")) != first
    assert SecretMask(b"other").mask_configuration(PLAIN, PLAIN.replace(SECRET, "????")) != first


def test_two_texts_of_two_configurations_are_none() -> None:
    """A file that was written between the two runs gives no masked text with half a secret."""
    mask = SecretMask(b"key")
    assert mask.mask_configuration('a {\n\tsecret "x";\n};', 'a {\n\tsecret "?";') is None
    assert mask.mask_configuration("b;", '\tsecret "????";') is None


@pytest.mark.parametrize(
    "text",
    [
        f"/etc/bind/named.conf:3: unknown option '{SECRET}'",
        f"/etc/bind/named.conf:3: missing ';' before '{SECRET}'",
        "/etc/bind/named.conf:3: unexpected token near 'known-secret'",
        "x:3: 'secret \"zu kurz\" extra'",
        "x:3: near 'aB3dE5fG7hI9'",
        "x:3: near 'c29sb3dpcmU='",
        "x:3: near '0123456789abcdef0123456789abcdef'",
    ],
)
def test_an_error_line_has_no_secret(text: str) -> None:
    """Whether it is known, or only looks like one."""
    mask = SecretMask(b"key")
    mask.learn_secrets(["known-secret"])
    masked = mask.mask_text(text)
    assert "(hidden)" in masked
    for secret in (SECRET, "known-secret", "zu kurz", "aB3dE5fG7hI9", "c29sb3", "0123456789abcdef"):
        assert secret not in masked


@pytest.mark.parametrize(
    "text",
    [
        "/etc/bind/named.conf:3: unknown option 'allow-recursion-onn'",
        "/etc/bind/Zones2026/Named.Conf:18: 'options' redefined near 'options'",
        "zone 2.0.192.in-addr.arpa/IN: loading from master file /var/lib/bind/Db.Example9 failed: file not found",
        "/etc/bind/named.conf:9: '192.0.2.1' unexpected",
    ],
)
def test_an_error_line_without_a_secret_stays(text: str) -> None:
    """So that it is of use."""
    assert SecretMask(b"key").mask_text(text) == text


TEXTS = st.lists(
    st.sampled_from(["a {", "\td;", "\t};", "};", "view x {", "\tb {", "+", "-x", "@@ -1,2"]), max_size=30
).map("\n".join)


def rebuild(before: str, diff: str) -> str:
    """What `patch` would make of a text."""
    old = before.split("\n")
    rebuilt: list[str] = []
    at = 0
    for line in diff.split("\n")[2:]:
        if head := re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@", line):
            start = int(head[1]) if head[2] == "0" else int(head[1]) - 1
            rebuilt += old[at:start]
            at = start
        elif line.startswith("+"):
            rebuilt.append(line[1:])
        else:
            assert old[at] == line[1:]
            at += 1
            if line.startswith(" "):
                rebuilt.append(line[1:])
    return "\n".join(rebuilt + old[at:])


@given(TEXTS, TEXTS)
def test_a_difference_is_one_of_the_whole_texts(before: str, after: str) -> None:
    """Though only statements are looked at that differ, the lines' numbers are those of the whole."""
    found = compare_texts(before, after)
    assert found.diff is not None
    assert rebuild(before, found.diff) == after


def test_two_edits_far_apart_among_many_zones() -> None:
    """Are two hunks, also within a view."""
    zones = "".join(
        f'\tzone "z{n}.example" {{\n\t\ttype primary;\n\t\tfile "z{n}.zone";\n\t}};\n' for n in range(5_000)
    )
    before = f'options {{\n\trecursion no;\n}};\nview "x" {{\n{zones}}};\n'
    after = before.replace('"z7.zone"', '"other.zone"').replace('"z4000.zone"', '"more.zone"')
    found = compare_texts(before, after)
    assert found.diff is not None
    assert (found.added_count, found.removed_count, found.diff.count("@@ -")) == (2, 2, 2)
    assert rebuild(before, found.diff) == after


def test_a_difference_is_bounded() -> None:
    """Cut with a note; what is too long is only counted."""
    many = compare_texts("a", "zone {\n" + "\n".join(f"\tz{n}.example;" for n in range(2_000)) + "\n};")
    assert many.diff is not None
    assert len(many.diff) < DIFF_BYTES + 100
    assert many.diff.endswith("more lines")
    assert many.added_count == 2_002
    huge = compare_texts("a", "\n".join(str(n) for n in range(DIFF_STATEMENTS + 2)))
    assert (huge.diff, huge.added_count) == (None, DIFF_STATEMENTS + 2)
    long = compare_texts("a", "zone {\n" + "\n".join(f"\tz{n}.example;" for n in range(DIFF_LINES)) + "\n};")
    assert (long.diff, long.added_count) == (None, DIFF_LINES + 2)


def snapshot(text: str) -> ConfigSnapshot:
    return ConfigSnapshot(digest=digest_text(text), text=text)


A, B = snapshot("a"), snapshot("b")
BROKEN = make_invalid_snapshot(["x:1: unknown option 'y'"])


def told(news: list[ConfigNews]) -> list[tuple[str, str]]:
    """What is told; each of it fits the catalogue."""
    for one in news:
        CATALOG.validate_data(CATALOG["config_change"], make_config_payload(one, "/etc/bind/named.conf", "ns1"))
    return [(one.action, one.status) for one in news]


def test_an_edit_that_is_loaded() -> None:
    """Is told once, when it is loaded; a reload without an edit is not told."""
    history = ConfigHistory(A, has_outcomes=True)
    assert told(history.end_reload(True, [])) == []
    assert history.look(B, 0) == []
    [news] = history.end_reload(True, [])
    assert told([news]) == [("loaded", "loaded")]
    assert (news.before, news.after) == (A, B)
    assert history.tick(10 * EDITED_S) == []
    assert history.end_reload(True, []) == []


def test_an_edit_that_nobody_loads() -> None:
    """Is told after a while, once; loaded later it is told again, as loaded."""
    history = ConfigHistory(A, has_outcomes=True)
    history.look(B, 100)
    assert history.tick(100 + EDITED_S - 1) == []
    assert told(history.tick(100 + EDITED_S)) == [("edited", "not loaded")]
    assert history.tick(1000 + EDITED_S) == []
    assert told(history.end_reload(True, [])) == [("loaded", "loaded")]


def test_an_edit_that_is_taken_back() -> None:
    """Is told if the edit was; before, nobody has to know."""
    history = ConfigHistory(A, has_outcomes=True)
    history.look(B, 0)
    assert history.look(A, 1) == []
    assert history.tick(EDITED_S) == []
    history.look(B, 100)
    history.tick(100 + EDITED_S)
    assert told(history.look(A, 200)) == [("reverted", "loaded")]


def test_a_configuration_that_is_refused() -> None:
    """With named's errors; and the next one that is loaded is compared with what was in force."""
    history = ConfigHistory(A, has_outcomes=True)
    history.look(BROKEN, 0)
    [news] = history.end_reload(False, ["x:1: unknown option 'y'"])
    assert told([news]) == [("rejected", "rejected")]
    assert news.errors == ("x:1: unknown option 'y'",)
    assert history.tick(EDITED_S) == []
    history.look(B, 1)
    [loaded] = history.end_reload(True, [])
    assert loaded.before == A


def test_a_broken_file_that_named_has_not_seen() -> None:
    """Is told, since named could not start with it."""
    history = ConfigHistory(A, has_outcomes=True)
    history.look(BROKEN, 0)
    assert told(history.tick(EDITED_S)) == [("edited", "invalid")]


def test_without_a_log_edits_are_told_soon() -> None:
    """Each compared with the one before."""
    history = ConfigHistory(A, has_outcomes=False)
    history.look(B, 0)
    assert told(history.tick(QUICK_S)) == [("edited", "unknown")]
    history.look(A, 10)
    [news] = history.tick(10 + QUICK_S)
    assert (news.before, news.after) == (B, A)
