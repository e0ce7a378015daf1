"""The `solowire` command, also as `python -m solowire`.

It loads next to nothing by itself, so that signals mean what they should while the rest is loaded, which takes 0.3 s:
Ctrl-C ends the process without a traceback, and SIGHUP does not end a service, which reads its settings later anyway.
"""

import signal
import sys

from solowire.runtime.terminal import has_terminal

_SERVICES = frozenset(["up", "router", "shard", "gateway", "source"])
_SERVER_PARTS = "click"  # what the command needs before anything else, and the SDK doesn't


def main() -> None:
    """The console script. It says what is missing where only the SDK is installed."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not _SERVICES.isdisjoint(sys.argv[1:2]) and not has_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until `process` has it reload
    try:
        from solowire.cli.main import main as run
    except ModuleNotFoundError as error:
        if error.name != _SERVER_PARTS:
            raise
        sys.exit("solowire: only the SDK is installed; the command comes with: pip install 'solowire[server]'")
    signal.signal(signal.SIGINT, interrupt)
    run()


if __name__ == "__main__":
    main()
