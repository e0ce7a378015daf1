"""The end of a fixed token: read without its key, and told in time, once for each that shows it."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.sdk import token_end
from solowire.sdk.publisher import Publisher
from solowire.sdk.token_end import SOON_S, describe_left, plan_notices, read_token_end
from tests.support.system import sign

DAY_S = 86400.0
SECRET = "a secret that is long enough for this"


def test_the_end_is_what_the_token_says() -> None:
    """A token that says nothing, or is none, has no end that is known."""
    assert read_token_end(sign(SECRET, "ann", exp=1.8e9)) == 1.8e9
    for text in ("", "tok", "a.b.c", "a.!.c", "a.e30.c", "a.eyJleHAiOiJ4In0.c", "a.\u00e9.c", "a." + "W" * 5000 + ".c"):
        assert read_token_end(text) is None


@given(st.text())
def test_no_text_is_too_strange_to_be_read(text: str) -> None:
    """Whatever a token is, reading its end raises nothing."""
    read_token_end(f"a.{text}.c")
    read_token_end(text)


@pytest.mark.parametrize(
    ("life", "left"),
    [
        (365 * DAY_S, [7 * DAY_S, DAY_S, 3600, 60]),
        (30 * DAY_S, [6 * DAY_S, DAY_S, 3600, 60]),
        (3600, [3590, 720, 60]),
        (10, [8, 2]),
        (0, []),
        (-5, []),
    ],
)
def test_it_is_told_in_time_for_another(life: float, left: list[float]) -> None:
    """A week, a day, an hour and a minute before; soon after the start if it ends within a day."""
    assert [1000.0 + life - at for at in plan_notices(1000.0 + life, 1000.0)] == pytest.approx(left)


@given(st.floats(0.001, 4e8))
def test_notices_come_in_order_between_now_and_the_end(life: float) -> None:
    """There is always one, and none at once, as a command may be done in a moment."""
    notices = plan_notices(life, 0.0)
    assert notices
    assert notices == sorted(notices)
    assert 0 < notices[0] <= notices[-1] < life
    assert life > SOON_S or notices[0] <= token_end.FIRST_NOTICE_S


def test_how_long_is_said_in_words() -> None:
    """In a unit of which it is some."""
    assert [describe_left(s) for s in (3599, 86400 * 7, 7200, 90, 5)] == [
        "60 minutes",
        "7 days",
        "2 hours",
        "90 seconds",
        "5 seconds",
    ]


async def test_publishers_of_one_token_tell_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    """An agent has several; who gives a function for its token, or leaves in a moment, hears nothing."""
    token, other = sign(SECRET, "one", exp=time.time() + 2), sign(SECRET, "two", exp=time.time() + 2)
    url = "http://127.0.0.1:1"
    async with (
        asyncio.timeout(30),
        Publisher(url, token),
        Publisher(url, token),
        Publisher(url, lambda: other),
        Publisher(url, other) as left,
    ):
        await left.close()
        while not caplog.messages or time.time() < read_end(token):
            await asyncio.sleep(0.05)
    assert [text.partition(" in ")[0] for text in caplog.messages] == [
        "the token ends"
    ]  # in how long, is the machine's


def read_end(token: str) -> float:
    return read_token_end(token) or 0.0
