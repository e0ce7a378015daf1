"""Shell completion of `solowire`: click's own scripts, which ask the command itself as one types."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_SOLOWIRE_COMPLETE"
"""By which a shell's script asks; it begins with an underscore, so that it is no setting."""
SHELLS = ("bash", "zsh", "fish")


def completion_script(command: click.Command, shell: str) -> str:
    """The script for one of SHELLS."""
    kind = get_completion_class(shell)
    if kind is None:
        raise ValueError(f"no such shell: {shell}")
    made = kind(command, {}, "solowire", VARIABLE)
    # Not `source()`, which looks for the shell here: the script may be for another machine.
    return made.source_template % made.source_vars()
