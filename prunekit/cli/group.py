"""The group of all commands. Neither it nor a command's module imports torch before the command runs."""

from __future__ import annotations

import rich_click as click

from prunekit.cli.export import export
from prunekit.cli.new_plugin import new_plugin
from prunekit.cli.plugins import plugins
from prunekit.cli.quantize import quantize
from prunekit.cli.schema import schema
from prunekit.cli.trace import trace
from prunekit.cli.train import train
from prunekit.cli.validate import validate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="prunekit", message="%(prog)s %(version)s")
def prunekit() -> None:
    """Compress a PyTorch network while it trains, under a schedule that says what to do and when."""


for _command in (train, validate, quantize, export, plugins, new_plugin, trace, schema):
    prunekit.add_command(_command)
