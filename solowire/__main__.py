"""The `solowire` command, also as `python -m solowire`.

It loads next to nothing by itself, so that signals mean what they should while the rest is loaded, which takes 0.3 s:
Ctrl-C ends the process without a traceback, and SIGHUP does not end a service, which reads its settings later anyway.
Signals that mean nothing to a service (STRAY_SIGNALS) are ignored by it, and by the processes that it starts.
As a container's first process it ends by SIGTERM from its first line on: the kernel keeps from process 1 all signals
that it does not handle, so that one sent to a container that only starts would be lost, and waited for in vain.

Standard streams that were closed are opened on /dev/null before anything else is opened: a file or socket that got one
of their numbers would be written to by whoever logs.
"""

import os
import signal
import sys

from solowire.runtime.terminal import has_terminal

_SERVICES = frozenset(["up", "router", "shard", "gateway", "source"])
STRAY_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
"""Their default is to kill hard, and tools send them: log rotation, container runtimes, a typing error."""
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
_SERVER_PARTS = "click"  # what the command needs before anything else, and the SDK doesn't


def main() -> None:
    """The console script. It says what is missing where only the SDK is installed."""
    open_standard_streams()
    interrupt = signal.getsignal(signal.SIGINT)
    if os.getpid() == 1:
        for number in ENDING_SIGNALS:
            signal.signal(number, _end_at_once)
    elif interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not _SERVICES.isdisjoint(sys.argv[1:2]):
        for number in STRAY_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if not has_terminal():
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until `process` has it reload
    try:
        from solowire.cli.main import main as run
    except ModuleNotFoundError as error:
        if error.name != _SERVER_PARTS:
            raise
        sys.exit("solowire: only the SDK is installed; the command comes with: pip install 'solowire[server]'")
    signal.signal(signal.SIGINT, interrupt)
    run()


def _end_at_once(number: int, _: object) -> None:
    """Ends the process as its shell would show a signal. Nothing was accepted from anybody yet that could be lost."""
    os._exit(128 + number)


def open_standard_streams() -> None:
    """Opens /dev/null in place of standard input, output and error, as far as they are closed."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


if __name__ == "__main__":
    main()
