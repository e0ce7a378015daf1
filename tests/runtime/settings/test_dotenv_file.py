"""The file `.env`: no line of it is passed over in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from solowire.runtime.settings import load
from tests.runtime.settings.loading import fault


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('SOLOWIRE_PORT=8001\nSOLOWIRE_SECRET="half a secret\nSOLOWIRE_SHARDS=2\n', 2, "the quote of SOLOWIRE_SECRET"),
        ("# x\n\nSOLOWIRE_PORT: 8001\n", 3, "write NAME=value"),
        ("A=1\n\n\nSOLOWIRE_PORT\n", 4, "has no value"),
        ("SOLOWIRE_PORT 8001\n", 1, "write NAME=value"),
        ('SOLOWIRE_PORT="8001" 8002\n', 1, "in quotes"),
        ("SOLOWIRE_PORT\n", 1, "SOLOWIRE_PORT has no value"),
        ("export solowire_port\n", 1, "solowire_port has no value"),
        ("= 8001\n", 1, "write NAME=value"),
        ("A='x", 1, "the quote of A"),
    ],
)
def test_a_line_that_cannot_be_read(
    place: Path, text: str, line: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused with its number, and without what may be a secret; the library beneath says nothing beside it."""
    (place / ".env").write_text(text)
    found = fault()
    assert found.startswith(f".env line {line}: ")
    assert said in found
    assert "half a secret" not in found
    assert caplog.records == []


def test_lines_of_other_programs_are_left_alone(place: Path) -> None:
    """One without a value is what Docker hands on; and editors on Windows begin files with a mark."""
    (place / ".env").write_bytes("\ufeffSOLOWIRE_PORT=8123\nDISPLAY\nexport OTHER\n".encode())
    assert load().port == 8123


def test_a_link_that_leads_nowhere(place: Path) -> None:
    """Settings that were meant are missing."""
    (place / ".env").symlink_to("nowhere")
    assert "nowhere, which doesn't exist" in fault()


def test_a_directory(place: Path) -> None:
    """A virtual environment may be called that: it is said, and nothing else."""
    (place / ".env").mkdir()
    with capture_logs() as logs:
        load()
    assert [entry["event"] for entry in logs] == ["dotenv_ignored"]
