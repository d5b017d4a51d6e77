"""What the installed distributions offer, from their metadata alone: nothing of them is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Not the standard library's: this one is the same on every version of Python.
import importlib_metadata as metadata
from packaging.utils import canonicalize_name

from prunekit.components.kinds import KINDS, Kind
from prunekit.components.named_kind import NamedKind
from prunekit.errors import PluginError, did_you_mean
from prunekit.plugins.lock import Entry, hash_of
from prunekit.pruning.named_kinds import NAMED_KINDS

_Distribution = Any  # what importlib-metadata calls it differs from version to version
LISTENERS = "prunekit"
"""The entry-point group of what listens to every event."""
ALL_KINDS: Mapping[str, Kind | NamedKind[Any]] = {**KINDS, **NAMED_KINDS}
"""Every kind of what schedules name: components first."""


@dataclass(frozen=True)
class Offer:
    """One entry point: a distribution offers `value` (module:attribute) under `name`. Nothing is imported yet."""

    kind: str
    name: str
    distribution: str
    version: str
    entry_point: metadata.EntryPoint

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def module(self) -> str:
        """The module that it points into."""
        return self.entry_point.module

    @property
    def group(self) -> str:
        """The entry-point group that it stands in."""
        return self.entry_point.group

    @property
    def entry(self) -> Entry:
        """What a lock says of it; its files are read for that."""
        return Entry(self.kind, self.name, self.distribution, self.version, hash_of(self.module))

    @property
    def incompatibility(self) -> str | None:
        """Why it was not made for this prunekit, by its distribution's own requirement; None if it was."""
        required = _unmet(self.entry_point.dist)
        if required is None:
            return None
        right = f"install prunekit{required} or another version of {self.distribution}"
        return f"{self} was made for prunekit{required}, and this is prunekit {this_version()}; {right}"

    @property
    def nearest_module(self) -> str:
        """The end of a message about an entry point to a module that is not there: those that are."""
        return did_you_mean(self.module, _modules(self.entry_point.dist))

    def load(self) -> Any:
        """Import it.

        Raises:
            PluginError: whatever the import raised, with the distribution's name; the cause is chained.
        """
        try:
            return self.entry_point.load()
        # A module may call sys.exit() when it is imported.
        except (Exception, SystemExit) as error:
            what = f"{self.kind} {self.name!r} of {self} can't be imported from {self.entry_point.value!r}"
            raise PluginError(f"{what}: {type(error).__name__}: {error}{_nearest(self, error)}") from error


def named_offers() -> list[Offer]:
    """What is installed for schedules to name: components, and curves, granularities and rankings."""
    return _offers({name: kind.group for name, kind in ALL_KINDS.items()})


def listener_offers() -> list[Offer]:
    """The listeners that are installed."""
    return _offers({"listener": LISTENERS})


def stray_offers() -> list[Offer]:
    """Entry points in groups that look like prunekit's and are not: nobody else would ever find them.

    Their kind is `?`.
    """
    known = {*(kind.group for kind in ALL_KINDS.values()), LISTENERS}
    strays = {group for group in _entry_points().groups if group.partition(".")[0] == LISTENERS} - known
    return [offer for group in sorted(strays) for offer in _offers({"?": group})]


def this_version() -> str:
    """The version of prunekit that is installed."""
    return metadata.version("prunekit")


def _offers(groups: Mapping[str, str]) -> list[Offer]:
    entries = _entry_points()
    offers = [
        Offer(kind, entry.name, *_distribution(entry.dist), entry)
        for kind, group in groups.items()
        for entry in entries.select(group=group)
        if entry.dist is not None
    ]
    return sorted(offers, key=lambda offer: (offer.name, offer.distribution))


def _entry_points() -> Any:
    try:
        return metadata.entry_points()
    except Exception:  # one distribution's metadata can't be read: do without that one
        found: dict[tuple[str, str, str], metadata.EntryPoint] = {}
        for distribution in metadata.distributions():
            for entry in _readable(distribution):
                # Of a distribution that stands twice on the path the first counts.
                found.setdefault((canonicalize_name(_distribution(distribution)[0]), entry.group, entry.name), entry)
        return metadata.EntryPoints(found.values())


def _readable(distribution: _Distribution) -> Iterable[metadata.EntryPoint]:
    try:
        found: Iterable[metadata.EntryPoint] = distribution.entry_points
        return found
    except Exception:
        return ()


def _distribution(distribution: _Distribution) -> tuple[str, str]:
    try:
        return str(distribution.metadata["Name"] or "(unnamed)"), str(distribution.version or "")
    except Exception:
        return "(unnamed)", ""


def _unmet(distribution: _Distribution | None) -> str | None:
    """The versions of prunekit that a distribution asks for, if this is none of them."""
    from packaging.requirements import InvalidRequirement, Requirement

    for line in _requirements(distribution):
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        # "" is no extra: what only an extra requires does not count.
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        is_ours = canonicalize_name(requirement.name) == "prunekit" and applies
        # `prereleases`, else no range at all would hold a prerelease of prunekit.
        if is_ours and not requirement.specifier.contains(this_version(), prereleases=True):
            return str(requirement.specifier)
    return None


def _requirements(distribution: _Distribution) -> Iterable[str]:
    try:
        lines: Iterable[str] = distribution.requires or ()
        return lines
    except Exception:  # there is none, or its metadata can't be read
        return ()


def _nearest(offer: Offer, error: BaseException) -> str:
    """For an entry point to a module, or an attribute of it, that is not there: what is."""
    import sys

    module, attribute = sys.modules.get(offer.module), offer.entry_point.attr
    # The module itself, or a package that it lies in, and not something that it imports.
    if isinstance(error, ModuleNotFoundError) and f"{offer.module}.".startswith(f"{error.name}."):
        return offer.nearest_module
    if not isinstance(error, AttributeError) or module is None or hasattr(module, attribute.partition(".")[0]):
        return ""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == offer.module]
    return did_you_mean(attribute, own)


def _modules(distribution: _Distribution | None) -> list[str]:
    """The modules that a distribution has installed; none where it is installed to be edited."""
    files = (distribution.files if distribution is not None else None) or ()
    return [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files if file.suffix == ".py"]
