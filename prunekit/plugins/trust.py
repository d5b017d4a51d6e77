"""Which of the installed plugins a run may load; what is refused is refused before anything of it is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from packaging.utils import canonicalize_name

from prunekit.plugins.entry_points import Offer
from prunekit.plugins.lock import Lock


@dataclass(frozen=True)
class Trust:
    """Every plugin that was made for this prunekit, or fewer.

    Args:
        allow: the distributions that may be loaded, by name or glob (`prunekit-*`); None allows all.
        lock: the plugins of an earlier run; one that is not among them, unchanged, is refused.
    """

    allow: Sequence[str] | None = None
    lock: Lock | None = None

    def allows(self, distribution: str) -> bool:
        """Whether the distribution is among those allowed."""
        name = canonicalize_name(distribution)
        return self.allow is None or any(fnmatchcase(name, canonicalize_name(allowed)) for allowed in self.allow)

    def objection(self, offer: Offer) -> str | None:
        """Why an offer may not be loaded; None if it may."""
        if not self.allows(offer.distribution):
            return self.not_allowed(str(offer))
        return offer.incompatibility or (None if self.lock is None else self.lock.objection(offer.entry))

    def not_allowed(self, who: str) -> str:
        """The objection to a distribution that is not among those allowed."""
        return f"{who} is not among the plugins that are allowed: {', '.join(self.allow or ()) or 'none'}"
