"""`prunekit new-plugin`: a distribution to begin a plugin with."""

from __future__ import annotations

import shlex
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from prunekit.cli.console import usage_error

if TYPE_CHECKING:
    from prunekit.plugins.scaffold import NewPlugin

_TEMPLATES = resources("prunekit.plugins").joinpath("scaffold", "templates")
# Read from the folders: the module that knows the kinds needs torch, and `--help` must not wait for that.
KINDS = tuple(sorted(folder.name for folder in _TEMPLATES.iterdir() if folder.name != "common"))
"""What there are templates for: every kind of component, and a listener."""


@click.command("new-plugin")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What the plugin offers.")
@click.option(
    "--into", metavar="DIR", type=click.Path(path_type=Path), default=Path(), help="Default: the current directory."
)
def new_plugin(name: str, kind: str, into: Path) -> None:
    """Write a distribution that offers NAME: MyPruner, my-pruner and prunekit-my-pruner say the same.

    It works as it is: a component of about ten lines, tests, a method card, a schedule to train under.
    """
    from prunekit.errors import PluginError
    from prunekit.plugins.scaffold import create_plugin

    try:
        created = create_plugin(name, kind, into)
    except PluginError as error:
        raise usage_error(str(error)) from None
    for file in created.files:
        click.echo(created.folder / file)
    click.echo("\n".join(["", "next:", *(f"  {command}" for command in commands_to_a_run(created, kind))]))
    click.echo("\n".join(["", "test it:", *(f"  {command}" for command in commands_to_test(created))]))


def commands_to_a_run(created: NewPlugin, kind: str) -> list[str]:
    """From the files to a run."""
    schedule = shlex.quote(str(created.folder / "schedule.yaml"))
    epochs = " --epochs 2" if kind == "listener" else ""  # no policy says how long to train
    return [
        f"pip install {shlex.quote(_as_path(created.folder))}",
        f"prunekit train {schedule} --app prunekit.testing:application{epochs}",
    ]


def commands_to_test(created: NewPlugin) -> list[str]:
    """To work on it: what is installed is what is in the folder."""
    return [
        f"pip install -e {shlex.quote(_as_path(created.folder) + '[test]')}",
        f"python -m pytest {shlex.quote(str(created.folder))}",
    ]


def _as_path(folder: Path) -> str:
    """A folder that pip does not take for a distribution's name."""
    return str(folder) if folder.is_absolute() else f"./{folder}"
