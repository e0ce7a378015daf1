"""The commands `solowire backup` and `solowire restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from solowire.cli.command_options import PathOption, common, load_settings


@click.command()
@click.argument("target", metavar="DIR", type=PathOption())
@common
def backup(config: Path | None, target: Path, **options: Any) -> None:
    """Copies the log and the secret into DIR, which is made.

    The system may run meanwhile: the copy is of one moment, and whole. Run it where the router's data directory is.
    """
    from solowire.router.backup import make_backup

    manifest = make_backup(load_settings(config, None, **options), target)
    click.echo(f"{target}: events {manifest.start_offset + 1} to {manifest.last_offset} of epoch {manifest.epoch}")
    if not manifest.has_secret:
        click.echo("No secret is in it, as the data directory has none that is in force: keep it elsewhere.")


@click.command()
@click.argument("source", metavar="DIR", type=PathOption(exists=True, file_okay=False))
@common
def restore(config: Path | None, source: Path, **options: Any) -> None:
    """Makes a data directory of the backup in DIR.

    It must have no journal yet. Clients that had nothing newer than the backup go on where they were; all others are
    told that they have missed something.
    """
    from solowire.router.backup import restore_backup
    from solowire.runtime import process

    settings = load_settings(config, None, **options)
    restored = restore_backup(settings, source, process.new_id())
    manifest = restored.manifest
    click.echo(
        f"{settings.data_dir}: events {manifest.start_offset + 1} to {manifest.last_offset}, as of {manifest.made_at}"
    )
    click.echo(f"The log's epoch is {restored.epoch} now; it goes on from {manifest.epoch}:{manifest.last_offset}.")
    if manifest.has_secret and not restored.has_secret:
        click.echo("The directory has a secret already, which stays.")
    elif not manifest.has_secret:
        click.echo("There is no secret in the backup: set it as it was, or tokens are refused.")
