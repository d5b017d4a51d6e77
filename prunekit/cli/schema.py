"""`prunekit schema`: the JSON Schema of a schedule, for editors."""

from __future__ import annotations

import json

import rich_click as click

from prunekit.cli.console import print_error


@click.command()
def schema() -> None:
    """Print the JSON Schema of a schedule made from what is installed.

    Editors that speak to the YAML language server take it from a first line of the schedule:
    "# yaml-language-server: $schema=schedule.schema.json". Plugins are imported; broken ones are left out.
    """
    from prunekit.plugins.loading import load_plugins
    from prunekit.schedule.json_schema import schema_document

    plugins = load_plugins()
    left_out = [listener.reason for listener in plugins.broken]
    document = schema_document(plugins.registry, left_out.append)
    print_error(*(f"left out: {reason}" for reason in left_out))
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
