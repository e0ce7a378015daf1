"""Whose word is believed, and which sites may connect."""

from __future__ import annotations

from pathlib import Path

import pytest

from solowire.runtime.settings import load
from tests.runtime.settings.loading import fault, toml


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8,2001:db8::/32", " 10.0.0.0/8 , 2001:db8::/32 ", '["10.0.0.0/8", "2001:db8::/32"]']
)
def test_proxies_are_written_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Networks in the environment need no brackets and quotes, and may have them."""
    monkeypatch.setenv("SOLOWIRE_LISTEN__TRUSTED_PROXIES", text)
    assert load().listen.trusted_proxies == ["10.0.0.0/8", "2001:db8::/32"]


def test_proxies_in_a_file(place: Path) -> None:
    """In TOML they are a list."""
    assert load(toml(place, '[listen]\ntrusted_proxies = ["10.1.2.3"]\n')).listen.trusted_proxies == ["10.1.2.3"]
    assert load(toml(place, "[listen]\ntrusted_proxies = []\n")).listen.trusted_proxies == []


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy.example", "10.0.0.0/8, everyone", "10.0.0.0/33"])
def test_a_proxy_that_is_no_network(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What is no network stops the start with one line that names the setting and shows how it is written."""
    monkeypatch.setenv("SOLOWIRE_LISTEN__TRUSTED_PROXIES", text)
    line = fault()
    assert line.startswith("SOLOWIRE_LISTEN__TRUSTED_PROXIES: ")
    assert "10.0.0.0/8" in line


@pytest.mark.parametrize(
    "text", ["*", "null", "https://app.example", "http://dev.example:3000,https://[::1]:8443", "app+x://localhost"]
)
def test_origins_are_written_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """One or more, all, or pages that have none."""
    monkeypatch.setenv("SOLOWIRE_LISTEN__ALLOWED_ORIGINS", text)
    assert load().listen.allowed_origins == text.split(",")


@pytest.mark.parametrize(
    "text",
    [
        "https://app.example/",
        "https://App.example",
        "HTTPS://app.example",
        "app.example",
        "https://*.example",
        "https://app.example:443",
        "http://app.example:80",
        "https://user@app.example",
        "https://app.example,other",
        "https://",
    ],
)
def test_an_origin_that_would_never_match(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """It stops the start with one line that names the setting and shows how it is written, and is no riddle later."""
    monkeypatch.setenv("SOLOWIRE_LISTEN__ALLOWED_ORIGINS", text)
    line = fault()
    assert line.startswith("SOLOWIRE_LISTEN__ALLOWED_ORIGINS: ")
    assert "https://app.example.com" in line
