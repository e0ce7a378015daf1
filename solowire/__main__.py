"""`python -m solowire` is the `solowire` command."""

from __future__ import annotations

import sys

SERVER_PARTS = "click"
"""What the command needs before anything else, and the SDK doesn't."""


def main() -> None:
    """Runs the command; says what is missing where only the SDK is installed."""
    try:
        from solowire.cli.main import main as run
    except ModuleNotFoundError as error:
        if error.name != SERVER_PARTS:
            raise
        sys.exit("solowire: only the SDK is installed; the command comes with: pip install 'solowire[server]'")
    run()


if __name__ == "__main__":
    main()
