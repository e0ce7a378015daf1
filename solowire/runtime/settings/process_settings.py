"""The settings of every process: how it ends, and what it writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from solowire.runtime.settings.section import Section


class ProcessSettings(Section):
    """How processes are watched, and end."""

    shutdown_timeout_s: float = Field(
        10.0, gt=0, le=3600, description="how long a process may take to end after SIGTERM"
    )
    watchdog_timeout_s: float = Field(
        10.0, ge=0.5, le=3600, description="`up` kills a process whose loop is stuck for so long"
    )


class LoggingSettings(Section):
    """What processes log."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged, and above")
    format: Literal["console", "json"] | None = Field(None, description="default: console on a terminal, else json")


class AuditSettings(Section):
    """The audit log."""

    output: Literal["file", "stderr", "off"] = Field(
        "file", description="where the audit log goes; file: in audit/ of the data directory"
    )
    max_file_bytes: int = Field(
        16 * 2**20, ge=2**16, le=2**40, description="size at which a process begins a new audit file"
    )
    max_files: int = Field(8, ge=1, le=1000, description="audit files of a process that are kept")
