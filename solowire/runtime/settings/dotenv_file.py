"""The file `.env` of the working directory: its variables, and a fault for each line that is none."""

from __future__ import annotations

import logging
import os
import stat
from io import StringIO
from pathlib import Path

import structlog
from dotenv import dotenv_values
from dotenv.parser import parse_stream

from solowire.runtime.settings.system_settings import PREFIX

DOTENV = ".env"

logger = structlog.get_logger("solowire.settings")


def read_dotenv(path: Path = Path(DOTENV)) -> tuple[dict[str, str | None], list[str]]:
    """The variables, and what is wrong with the file: a setting that isn't read would be missing in silence.

    A line of another application's may name a variable without a value; one of ours may not.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            # Not refused: a virtual environment may be called that.
            logger.warning(
                "dotenv_ignored", path=str(path.absolute()), reason="it is no file", hint="settings may be in it"
            )
            return {}, []
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        if not path.is_symlink():
            return {}, []
        return {}, [f"{path}: it is a symbolic link to {os.readlink(path)}, which doesn't exist; mend or remove it"]
    except UnicodeDecodeError as error:
        return {}, [f"{path}: not valid UTF-8: {error.reason} at byte {error.start}"]
    except OSError as error:
        return {}, [f"{path}: {error.strerror}; make it readable, or start elsewhere"]
    faults = []
    for binding in parse_stream(StringIO(text)):
        text_of_it = binding.original.string
        blank = text_of_it[: len(text_of_it) - len(text_of_it.lstrip())]  # lines before it, which count as its own
        place = f"{path} line {binding.original.line + blank.count(chr(10))}"
        if binding.error:
            faults.append(f"{place}: {_explain(text_of_it)}")
        elif binding.key is not None and binding.value is None and binding.key.upper().startswith(PREFIX):
            faults.append(f"{place}: {binding.key} has no value; write {binding.key}=…")
    logging.getLogger("dotenv").setLevel(logging.ERROR)  # what it would warn of are the faults above
    return dict(dotenv_values(stream=StringIO(text))), faults


def _explain(line: str) -> str:
    """What is wrong with a line. It shows nothing of a value, which may be a secret."""
    name, sign, value = line.strip().partition("=")
    value = value.strip()
    if not sign:
        return "it can't be read; write NAME=value, or # before a remark"
    quote = value[:1]
    if quote in ("'", '"') and value.count(quote) == 1:
        return f"the quote of {name.strip()[:64]} is never closed"
    return "it can't be read; write NAME=value, in quotes if the value has blanks or quotes in it"
