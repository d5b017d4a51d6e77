"""What all commands share: printing tables, and errors as the user should see them."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich_click as click

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod
    from rich.table import Table

TRACEBACK = "PRUNEKIT_TRACEBACK"
"""The environment variable with which errors of an application are shown with their traceback."""

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130
"""Exit codes: something is wrong with what was asked for; it was asked for wrongly; Ctrl-C."""


def new_console() -> Console:
    """Standard output, where text is text: nothing in it is taken for markup."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def new_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table: with rules on a terminal, plain columns in a pipe."""
    from rich import box
    from rich.table import Table

    lines = box.SIMPLE_HEAD if sys.stdout.isatty() else None
    table = Table(box=lines, pad_edge=False, padding=(0, 1 if lines else 2, 0, 0), header_style="bold")
    for column in columns:
        justify: JustifyMethod = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Print a table, folded into a terminal's width; in a pipe each row stays one line."""
    console = new_console()
    if not sys.stdout.isatty():
        console.width = width_of(table)
    console.print(table)


def fits_terminal(table: Table) -> bool:
    """Whether a table needs no folding."""
    return not sys.stdout.isatty() or width_of(table) <= new_console().width


def width_of(table: Table) -> int:
    """The columns of text that a table wants."""
    console = new_console()
    return max(1, console.measure(table, options=console.options.update(width=100_000)).maximum)


def print_error(*lines: str) -> None:
    """Say something on standard error."""
    for line in lines:
        click.echo(line, err=True)


def print_traceback() -> None:
    """Say all of the exception at hand, where the environment variable asks for it."""
    if os.environ.get(TRACEBACK):
        print_error(traceback.format_exc())


def usage_error(message: str) -> SystemExit:
    """What to raise where the command itself is wrong: said on standard error, exit code 2."""
    print_error(f"error: {message}")
    return SystemExit(USAGE_ERROR)


@contextmanager
def errors_shown() -> Iterator[None]:
    """Errors that prunekit raises on purpose become their text and exit code 1: a schedule's problems one a line."""
    from prunekit.errors import PrunekitError, ScheduleError

    try:
        yield
    except ScheduleError as error:
        print_error(*map(str, error.problems))
        raise SystemExit(FAILED) from None
    except PrunekitError as error:
        print_error(f"error: {error}", *getattr(error, "__notes__", ()))
        raise SystemExit(FAILED) from None
