"""How other servers are come by: built once, by whatever is there to build them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.machine import LeftOut
from bench.peers import go, nats

BUILDS = """#!/bin/sh
echo "$@" >>"$GOBIN/asked"
printf '#!/bin/sh\necho nats-server: v9.9.9\n' >"$GOBIN/nats-server"
chmod +x "$GOBIN/nats-server"
"""
FAILS = "#!/bin/sh\necho 'requires a newer Go' >&2\nexit 1\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a Go that is still to be written."""
    monkeypatch.setattr(go, "_CACHE", tmp_path)
    monkeypatch.setattr("bench.peers.go.shutil.which", lambda *_, **__: str(tmp_path / "go"))
    return tmp_path


def write_go(cache: Path, script: str) -> None:
    (cache / "go").write_text(script)
    (cache / "go").chmod(0o755)


def test_a_program_is_built_once_at_its_version(cache: Path) -> None:
    """The page says which version was built, and a second run builds nothing."""
    write_go(cache, BUILDS)
    for _ in range(2):
        nats.Nats.prepare()
    assert (cache / "asked").read_text() == f"install github.com/nats-io/nats-server/v2@{nats.VERSION}\n"
    assert nats.Nats.versions() == {"nats-server": "9.9.9 (built by Go)"}


def test_a_program_that_cannot_be_built_is_debians_or_left_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's package takes its place; without that, too, the reason is the builder's own."""
    write_go(cache, FAILS)
    debians = cache / "debians"
    debians.write_text("#!/bin/sh\necho nats-server: v2.9.10\n")
    debians.chmod(0o755)
    monkeypatch.setattr(nats, "installed", lambda *_: str(debians))
    nats.Nats.prepare()
    assert nats.Nats.versions() == {"nats-server": "2.9.10 (Debian's package)"}
    monkeypatch.setattr(nats, "installed", lambda *_: "")
    with pytest.raises(LeftOut, match="go install: requires a newer Go, and Debian's"):
        nats.Nats.prepare()
