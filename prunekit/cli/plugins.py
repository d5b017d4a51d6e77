"""`prunekit plugins`: what is installed, from metadata alone, and with `--check`, what of it works."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import rich_click as click

from prunekit.cli.card import show as show_card
from prunekit.cli.console import FAILED, fits_terminal, new_table, print_error, print_table
from prunekit.cli.trust import warn_of_unknown_disabled_names

if TYPE_CHECKING:
    from prunekit.plugins.entry_points import Offer


@dataclass(frozen=True)
class Row:
    """One thing that a distribution offers.

    `state` is ok, broken (it can't be imported, or is not what it says), incompatible (made for another prunekit),
    shadowed (another distribution offers the same: a schedule must say `distribution:name`) or disabled (a listener
    that PRUNEKIT_DISABLE names).
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str
    state: str = "ok"
    reason: str = ""
    traceback: str = ""


@click.group(invoke_without_command=True)
@click.option("--check", is_flag=True, help="Import each of them, show why it fails, and list names known at run time.")
@click.option("--json", "as_json", is_flag=True, help="The same as a list of objects.")
@click.pass_context
def plugins(context: click.Context, check: bool, as_json: bool) -> None:
    """List the installed plugins.

    Without --check nothing of them is imported. With it the exit code is 1 if any is broken.
    """
    if context.invoked_subcommand is not None:
        return
    from prunekit.plugins.entry_points import stray_offers

    offers = _offers()
    rows = [_row(offer, offers) for offer in offers]
    if check:
        rows = [_checked(row, offer) for row, offer in zip(rows, offers, strict=True)]
        rows += _at_run_time([offer for row, offer in zip(rows, offers, strict=True) if row.state == "ok"])
    rows += [_stray(offer) for offer in stray_offers()]
    warn_of_unknown_disabled_names()
    if as_json:
        click.echo(json.dumps([_plain(row) for row in rows], indent=2))
    else:
        _print(rows)
    if check and any(row.state in ("broken", "incompatible") for row in rows):
        raise SystemExit(FAILED)


plugins.add_command(show_card)


def _offers() -> list[Offer]:
    from prunekit.plugins.entry_points import ALL_KINDS, listener_offers, named_offers

    kinds = list(ALL_KINDS)
    return [*sorted(named_offers(), key=lambda offer: kinds.index(offer.kind)), *listener_offers()]


def _row(offer: Offer, offers: Sequence[Offer]) -> Row:
    """What metadata tells of an offer."""
    from prunekit.components.kinds import KINDS
    from prunekit.plugins.loading import is_disabled
    from prunekit.plugins.registry import built_in

    row = _plain_row(offer)
    module = offer.module.partition(".")[0]
    others = [str(other) for other in offers if other != offer and (other.kind, other.name) == (offer.kind, offer.name)]
    others += map(str, built_in(offer.kind, offer.name))
    if offer.kind == "listener" and is_disabled(offer):
        return replace(row, state="disabled", reason="by PRUNEKIT_DISABLE")
    if not _exists(module):
        return replace(row, state="broken", reason=f"there is no module {module!r}{offer.nearest_module}")
    if offer.incompatibility:
        return replace(row, state="incompatible", reason=offer.incompatibility)
    if others and offer.kind != "listener":
        key = "class: " if offer.kind in KINDS else ""
        hint = f"so does {' and '.join(others)}; say {key}{offer.distribution}:{offer.name}"
        return replace(row, state="shadowed", reason=hint)
    return row


def _plain_row(offer: Offer) -> Row:
    return Row(offer.kind, offer.name, offer.distribution, offer.version, offer.entry_point.value)


def _stray(offer: Offer) -> Row:
    """An entry point that nobody looks for."""
    from prunekit.errors import did_you_mean
    from prunekit.plugins.entry_points import ALL_KINDS, LISTENERS

    listens = any(word in offer.group for word in ("listener", "hook", "plugin"))
    hint = (
        f"; listeners belong in {LISTENERS!r}"
        if listens
        else did_you_mean(offer.group, [kind.group for kind in ALL_KINDS.values()])
    )
    reason = f"prunekit has no group {offer.group!r}{hint}"
    return replace(_plain_row(offer), state="broken", reason=reason)


def _exists(module: str) -> bool:
    """Whether a top-level module can be found; finding it imports nothing."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _checked(row: Row, offer: Offer) -> Row:
    """The same after an import, where that is wanted."""
    from prunekit.errors import PluginError
    from prunekit.plugins.contract import must_be_component
    from prunekit.plugins.loading import load_plugins
    from prunekit.plugins.registry import Registry
    from prunekit.pruning.named_kinds import NAMED_KINDS

    if row.state in ("disabled", "incompatible"):
        return row
    if offer.kind == "listener":
        broken = load_plugins(offers=[offer]).broken
        return replace(row, state="broken", reason=broken[0].reason, traceback=broken[0].traceback) if broken else row
    try:
        if offer.kind in NAMED_KINDS:
            Registry([offer]).find_named(NAMED_KINDS[offer.kind], f"{offer.distribution}:{offer.name}")
        else:
            must_be_component(Registry([offer]).find(offer.kind, offer.name), offer.kind, offer.name)
    except PluginError as error:
        return replace(row, state="broken", reason=str(error), traceback=traceback.format_exc())
    return row


def _at_run_time(offers: Sequence[Offer]) -> Iterator[Row]:
    """What the listeners among them offer where no entry point has the name."""
    from prunekit.components.kinds import KINDS
    from prunekit.errors import PluginError
    from prunekit.plugins.loading import load_plugins
    from prunekit.plugins.registry import Registry
    from prunekit.plugins.run_time import RunTimeComponents

    registered = Registry()
    for listener in load_plugins(offers=[offer for offer in offers if offer.kind == "listener"]).listeners:
        row = Row("", "", listener.distribution, listener.version, f"find_component of {listener.name}")
        for kind in KINDS:
            try:
                offered = RunTimeComponents([listener])
                offered.must_list(kind)
                names = set(offered.names(kind)) - set(registered.names(kind))
            except PluginError as error:
                reason = str(error)
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
    print_table(wide if fits_terminal(wide) else narrow)
    print_error(
        *(f"\n{row.kind} {row.name!r} of {row.distribution}:\n{row.traceback}" for row in rows if row.traceback)
    )
