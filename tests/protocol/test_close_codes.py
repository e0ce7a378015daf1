"""Close codes: the contract with every client, so they are spelled out here once more."""

from __future__ import annotations

import pytest

from solowire.protocol.close_codes import TERMINAL, CloseCode, is_terminal

CONTRACT = {
    1001: False, 1002: False, 1007: False, 1009: False, 1012: False, 1013: False,
    4400: True, 4401: True, 4403: True, 4409: True, 4410: True,
    4408: False, 4413: False, 4421: False,
}  # fmt: skip


def test_the_codes_are_those_of_the_contract() -> None:
    """Every close code that clients know is there, and no other is ever sent."""
    assert {int(code) for code in CloseCode} == set(CONTRACT)


@pytest.mark.parametrize(("code", "terminal"), CONTRACT.items())
def test_says_whether_to_come_back(code: int, terminal: bool) -> None:
    """A client that is closed with a terminal code stays away, and with any other comes back."""
    assert CloseCode(code).is_terminal is terminal
    assert is_terminal(code) is terminal


@pytest.mark.parametrize("code", [1000, 1006, 1011, 3000, 4999, 0, -1])
def test_foreign_codes_are_not_terminal(code: int) -> None:
    """A client that is cut off, or closed by a proxy with a code of its own, comes back."""
    assert not is_terminal(code)


@pytest.mark.parametrize("code", CloseCode)
def test_has_a_reason_that_fits_a_close_frame(code: CloseCode) -> None:
    """Every close tells why, in at most the 123 bytes that RFC 6455 leaves for it."""
    assert 0 < len(code.reason.encode()) <= 123


def test_terminal_codes_are_applications_codes() -> None:
    """No code that the network itself can produce keeps a client away for good."""
    assert all(code >= 4000 for code in TERMINAL)
