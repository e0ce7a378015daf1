"""The `solowire` command, also as `python -m solowire`.

It loads next to nothing by itself, so that signals mean what they should while the rest is loaded, which takes 0.3 s:
Ctrl-C ends the process without a traceback, and SIGHUP does not end a service, which reads its settings later anyway.
"""

import signal
import sys

from solowire.terminal import has_terminal

_SERVICES = frozenset(["up", "router", "shard", "gateway", "source"])


def main() -> None:
    """The console script."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not _SERVICES.isdisjoint(sys.argv[1:2]) and not has_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until `process` has it reload
    from solowire.cli import main as run

    signal.signal(signal.SIGINT, interrupt)
    run()


if __name__ == "__main__":
    main()
