"""`--allow-plugins`, `--locked` and PRUNEKIT_DISABLE: which plugins a command may load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from prunekit.cli.console import print_error

if TYPE_CHECKING:
    from prunekit.plugins.trust import Trust


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add both options to a command."""
    allow = click.option(
        "--allow-plugins",
        metavar="NAME,…",
        help="The distributions that may be loaded, by name or glob; no other is imported.",
    )
    locked = click.option(
        "--locked",
        type=click.Path(exists=True, path_type=Path),
        metavar="FILE",
        help="Refuse plugins that differ from this lock (or from that of this run): version, files, or not in it.",
    )
    return allow(locked(command))


def trust_of(allow_plugins: str | None, locked: str | Path | None) -> Trust:
    """What the two options ask for.

    Raises:
        PluginError: the file holds no lock.
    """
    from prunekit.plugins.lock import Lock
    from prunekit.plugins.trust import Trust

    allow = None if allow_plugins is None else [name.strip() for name in allow_plugins.split(",") if name.strip()]
    return Trust(allow, None if locked is None else Lock.read(locked))


def warn_of_unknown_disabled_names() -> None:
    """Warn of names in PRUNEKIT_DISABLE that no listener has."""
    from packaging.utils import canonicalize_name

    from prunekit.errors import did_you_mean
    from prunekit.plugins.entry_points import listener_offers
    from prunekit.plugins.loading import DISABLE, disabled_listeners

    offers = listener_offers()
    known = [*(offer.name for offer in offers), *(offer.distribution for offer in offers)]
    for name in sorted(disabled_listeners()):
        if canonicalize_name(name) not in map(canonicalize_name, known):
            print_error(f"warning: {DISABLE} names {name!r}, and no listener is called that{did_you_mean(name, known)}")
