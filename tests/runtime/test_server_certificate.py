"""The certificate in force: what is taken up, when, and what is said of what can't be."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from solowire.errors import ConfigError
from solowire.runtime.server_certificate import DAY_SECONDS, ServerCertificate, load_certificate
from tests.support.certificates import make_certificate, read_fingerprint, renew_certificate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_certificate(tmp_path, "127.0.0.1", 30).rename(tmp_path / "in-force.pem")


def test_a_change_is_taken_up_when_the_files_have_settled(path: Path) -> None:
    now = time.time()
    certificate = ServerCertificate(path, path, now)
    before = certificate.context
    assert not certificate.check(now)
    fresh = renew_certificate(path, 40)
    assert not certificate.check(now), "it may be only one of two files"
    assert certificate.check(now)
    assert not certificate.check(now)
    assert certificate.fingerprint == fresh
    assert certificate.context is not before
    assert certificate.expires_at > now + 39 * DAY_SECONDS


def test_the_links_of_kubernetes_are_followed(tmp_path: Path, path: Path) -> None:
    """A secret's files are links through one link to a folder, which is replaced as a whole."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        made = make_certificate(tmp_path, "127.0.0.1", 20 + int(version))
        shutil.copy(made, tmp_path / version / "tls.crt")
        shutil.copy(made, tmp_path / version / "tls.key")
    (tmp_path / "..data").symlink_to("1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(Path("..data", name))
    certificate = ServerCertificate(tmp_path / "tls.crt", tmp_path / "tls.key", time.time())
    (tmp_path / "..fresh").symlink_to("2")
    (tmp_path / "..fresh").rename(tmp_path / "..data")
    assert [certificate.check(time.time()) for _ in range(2)] == [False, True]
    assert certificate.fingerprint == read_fingerprint(tmp_path / "2" / "tls.crt")


@pytest.mark.parametrize("fault", ["gone", "empty", "mismatch", "expired"])
def test_what_is_no_good_leaves_the_one_before_in_force(tmp_path: Path, path: Path, fault: str) -> None:
    """It is said once for each change, and the next good one is taken up."""
    key = tmp_path / "key.pem"
    shutil.copy(path, key)
    certificate = ServerCertificate(path, key, time.time())
    before = certificate.fingerprint
    if fault == "gone":
        path.unlink()
    elif fault == "empty":
        path.write_text("")
    elif fault == "mismatch":
        make_certificate(tmp_path, "127.0.0.2").rename(path)
    else:
        make_certificate(tmp_path, "127.0.0.1", -1).rename(path)
    with capture_logs() as lines:
        assert [certificate.check(time.time()) for _ in range(5)] == [False] * 5
    [said] = [line for line in lines if line["event"] == "certificate_rejected"]
    assert "stays in force" in said["hint"]
    assert certificate.fingerprint == before
    shutil.copy(make_certificate(tmp_path, "127.0.0.1"), path)
    shutil.copy(path, key)
    assert certificate.reload_if_changed(time.time())
    assert not certificate.reload_if_changed(time.time())


def test_the_end_is_said_once_a_day_from_two_weeks_before(path: Path) -> None:
    now = time.time() // DAY_SECONDS * DAY_SECONDS
    certificate = ServerCertificate(path, path, time.time())
    with capture_logs() as lines:
        for hour in range(24 * 40):
            certificate.check(now + hour * 3600)
    said = [(line["event"], line.get("days")) for line in lines]
    assert [event for event, _ in said].count("certificate_expires_soon") in (14, 15)
    assert said[0] == ("certificate_expires_soon", 13)
    assert said[-1][0] == "certificate_expired"


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: path.write_text("junk"), "there is no certificate in it"),
        (lambda path: path.unlink(), "the certificate can't be read: No such file or directory"),
        (lambda path: _drop_key(path), "there is no private key in it"),
        (lambda path: _encrypt_key(path), "the key is encrypted"),
        (lambda path: _cut_key(path), "refused by OpenSSL: bad end line"),
    ],
)
def test_each_fault_is_one_line_with_a_way_out(path: Path, make: Callable[[Path], object], fault: str) -> None:
    make(path)
    with pytest.raises(ConfigError) as caught:
        load_certificate(path, path, time.time())
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_that_is_not_valid_yet_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="is this machine's clock right"):
        load_certificate(path, path, time.time() - 20 * DAY_SECONDS)


def _split(path: Path) -> tuple[str, str]:
    certificate, begin, key = path.read_text().partition("-----BEGIN PRIVATE")
    return certificate, begin + key


def _drop_key(path: Path) -> None:
    path.write_text(_split(path)[0])


def _cut_key(path: Path) -> None:
    certificate, key = _split(path)
    path.write_text(certificate + key[: len(key) // 2])


def _encrypt_key(path: Path) -> None:
    certificate, key = _split(path)
    command = ["openssl", "pkcs8", "-topk8", "-passout", "pass:secret"]
    encrypted = subprocess.run(command, input=key, capture_output=True, text=True, check=True).stdout
    path.write_text(certificate + encrypted)
