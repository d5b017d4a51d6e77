"""What one name makes: those of a distribution, a module, a class and a listener, and who has them already."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass

import importlib_metadata as metadata

from prunekit.errors import PluginError
from prunekit.plugins.entry_points import listener_offers, named_offers

_NAME = re.compile(r"[a-z][a-z0-9]*([-_.]+[a-z0-9]+)*", re.IGNORECASE)
# Also between a small letter and a capital (myPruner), and before the last of several capitals (LRPolicy).
_BETWEEN_WORDS = re.compile(r"[-_.]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Names:
    """The words of a name, spelled as its author does."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, name: str) -> Names:
        """The names that `MyPruner`, `my-pruner`, `my_pruner` or `prunekit-my-pruner` makes.

        >>> names = Names.of("prunekit-my-pruner")
        >>> names.distribution, names.module, names.class_name, names.listener
        ('prunekit-my-pruner', 'prunekit_my_pruner', 'MyPruner', 'my-pruner')

        Raises:
            PluginError: it makes no names.
        """
        if not _NAME.fullmatch(name):
            what = "a plugin's name is letters and digits in words joined by '-', '_' or '.', and begins with a letter"
            raise PluginError(f"{what}, got {name!r}")
        first, *others = _BETWEEN_WORDS.split(name)
        names = cls(tuple(others) if first.lower() == "prunekit" else (first, *others))
        if not names.class_name.isidentifier():
            raise PluginError(f"{name!r} makes no name of a class: {names.class_name!r} is no identifier")
        if keyword.iskeyword(name) or keyword.iskeyword(names.class_name):
            raise PluginError(f"{name!r} is a word of Python's own")
        return names

    @property
    def listener(self) -> str:
        """The distribution without its prefix."""
        return "-".join(self.words).lower()

    @property
    def distribution(self) -> str:
        """What pip installs."""
        return f"prunekit-{self.listener}"

    @property
    def module(self) -> str:
        """What Python imports."""
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        """What the schedule names."""
        return "".join(word[0].upper() + word[1:] for word in self.words)


def check_names(names: Names, kind: str, sources: Iterable[str]) -> None:
    """Whether nothing that is installed has the names, nor anything that the modules themselves use.

    Raises:
        PluginError: something has, and what that is.
    """
    if any(names.class_name in imported_by(source, names.module) for source in sources):
        raise PluginError(f"a {kind} can't be called {names.class_name!r}: its modules import something of that name")
    listens = kind == "listener"
    entry, offers = (names.listener, listener_offers()) if listens else (names.class_name, named_offers())
    for offer in offers:
        if offer.name == entry:
            raise PluginError(f"{offer} already offers {offer.kind} {entry!r}; choose another name")
    try:
        version = metadata.version(names.distribution)
    except metadata.PackageNotFoundError:
        return
    raise PluginError(f"{names.distribution} {version} is already installed; choose another name")


def imported_by(source: str, apart_from: str) -> set[str]:
    """The names that a module imports, other than from one module."""
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    foreign = [node for node in statements if getattr(node, "module", None) != apart_from]
    return {alias.asname or alias.name.partition(".")[0] for node in foreign for alias in node.names}
