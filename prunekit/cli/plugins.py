"""`prunekit plugins`: what is installed, from metadata alone; with `--check`, what of it works."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import rich_click as click

from prunekit.cli.console import FAILED, complain, fits, new_table, show

if TYPE_CHECKING:
    from prunekit.registry import Offer


@dataclass(frozen=True)
class Row:
    """One thing that a distribution offers.

    `state` is ok, broken (it can't be imported), shadowed (another distribution offers the same: a schedule must say
    `distribution:name`) or disabled (a listener that PRUNEKIT_DISABLE names).
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str
    state: str = "ok"
    reason: str = ""
    traceback: str = ""


@click.command()
@click.option("--check", is_flag=True, help="Import each of them, show why it fails, and list names known at run time.")
@click.option("--json", "as_json", is_flag=True, help="The same as a list of objects.")
def plugins(check: bool, as_json: bool) -> None:
    """List the installed plugins.

    Without --check nothing of them is imported. With it the exit code is 1 if any is broken.
    """
    offers = _offers()
    rows = [_row(offer, offers) for offer in offers]
    if check:
        rows = [_checked(row, offer) for row, offer in zip(rows, offers, strict=True)]
        rows += _at_run_time([offer for row, offer in zip(rows, offers, strict=True) if row.state == "ok"])
    if as_json:
        click.echo(json.dumps([_plain(row) for row in rows], indent=2))
    else:
        _print(rows)
    if check and any(row.state == "broken" for row in rows):
        raise SystemExit(FAILED)


def _offers() -> list[Offer]:
    from prunekit.registry import GROUPS, LISTENERS, installed

    groups = [*((group, kind) for kind, group in GROUPS.items()), (LISTENERS, "listener")]
    return [offer for group, kind in groups for offer in installed(group, kind)]


def _row(offer: Offer, offers: Sequence[Offer]) -> Row:
    """What metadata tells of an offer."""
    row = Row(offer.kind, offer.name, offer.distribution, offer.version, offer.entry_point.value)
    module = offer.entry_point.module.partition(".")[0]
    others = [str(other) for other in offers if other != offer and (other.kind, other.name) == (offer.kind, offer.name)]
    if not _exists(module):
        return replace(row, state="broken", reason=f"there is no module {module!r}")
    if offer.kind == "listener":
        disabled = {offer.name, offer.distribution} & _disabled()
        return replace(row, state="disabled", reason="by PRUNEKIT_DISABLE") if disabled else row
    if others:
        hint = f"so does {' and '.join(others)}; say class: {offer.distribution}:{offer.name}"
        return replace(row, state="shadowed", reason=hint)
    return row


def _disabled() -> set[str]:
    from prunekit.plugins import DISABLE

    return {name.strip() for name in os.environ.get(DISABLE, "").split(",")}


def _exists(module: str) -> bool:
    """Whether a top-level module can be found; finding it imports nothing."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _checked(row: Row, offer: Offer) -> Row:
    """The same after an import, where it is not disabled."""
    from prunekit.errors import PluginError
    from prunekit.plugins import hook_names
    from prunekit.registry import Registry

    if row.state == "disabled":
        return row
    try:
        if offer.kind == "listener":
            hook_names(offer.load(), str(offer))
        else:
            hook_names(Registry([offer]).find(offer.kind, offer.name).cls, str(offer))  # type: ignore[arg-type]
    except PluginError as error:
        return replace(row, state="broken", reason=str(error), traceback=traceback.format_exc())
    return row


def _at_run_time(offers: Sequence[Offer]) -> Iterator[Row]:
    """What the listeners among them offer where no entry point has the name."""
    from prunekit.plugins import create_registry, load_listeners
    from prunekit.registry import GROUPS

    registered = create_registry([])
    for listener in load_listeners([offer for offer in offers if offer.kind == "listener"])[0]:
        row = Row("", "", listener.distribution, listener.version, f"find_component of {listener.name}")
        for kind in GROUPS:
            try:
                names = set(create_registry([listener]).names(kind)) - set(registered.names(kind))
            except Exception as error:
                reason = f"list_components failed: {type(error).__name__}: {error}"
                yield replace(row, kind=kind, name="?", state="broken", reason=reason, traceback=traceback.format_exc())
            else:
                yield from (replace(row, kind=kind, name=name) for name in sorted(names))


def _plain(row: Row) -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if value or key == "version"}


def _print(rows: Sequence[Row]) -> None:
    if not rows:
        click.echo("no plugin is installed")
        return
    wide = new_table("kind", "name", "distribution", "version", "state")
    narrow = new_table("kind", "name, distribution", "state")
    for row in rows:
        state = f"{row.state}: {row.reason}" if row.reason else row.state
        wide.add_row(row.kind, row.name, row.distribution, row.version, state)
        narrow.add_row(row.kind, f"{row.name}\n{row.distribution} {row.version}", state)
    show(wide if fits(wide) else narrow)
    complain(*(f"\n{row.kind} {row.name!r} of {row.distribution}:\n{row.traceback}" for row in rows if row.traceback))
