"""`prunekit plugins show`: all about one plugin."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import rich_click as click

from prunekit.cli.console import errors_shown, new_console, new_table, print_error, print_table

if TYPE_CHECKING:
    from prunekit.plugins.cards import Card


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="The same as a list of objects.")
def show(name: str, as_json: bool) -> None:
    """Show the plugin NAME: parameters, hooks, where it comes from, and its method card.

    DISTRIBUTION:NAME where several distributions offer the name. It is imported for that.
    """
    from prunekit.plugins.cards import cards
    from prunekit.plugins.loading import load_plugins

    with errors_shown():
        found = cards(load_plugins(), name)
    if as_json:
        click.echo(json.dumps([asdict(card) for card in found], indent=2))
    else:
        for card in found:
            _print(card)


def _print(card: Card) -> None:
    from prunekit.plugins.registry import CORE
    from prunekit.pruning.named_kinds import NAMED_KINDS

    click.echo(f"{card.kind} {card.name}: {card.summary or 'its docstring is empty'}")
    click.echo(f"distribution: {card.distribution} {card.version}".rstrip())
    click.echo(f"location: {card.location or 'unknown'}")
    if card.hooks or card.kind not in NAMED_KINDS:
        click.echo(f"hooks: {', '.join(card.hooks) or 'none of its own'}")
    if card.parameters:
        table = new_table("parameter", "type", "default", "meaning")
        for parameter in card.parameters:
            table.add_row(parameter.name, parameter.type, parameter.default, parameter.meaning)
        click.echo()
        print_table(table)
    if not card.text and card.distribution == CORE:
        return
    if not card.text:
        print_error(f"{card.distribution} has no method card")
        return
    click.echo()
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        new_console().print(Markdown(card.text))
    else:
        click.echo(card.text)
