"""A distribution to begin a plugin with: a component or a listener that works, its tests, method card and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunekit.plugins.scaffold.files import files_of, write
from prunekit.plugins.scaffold.names import Names, check_names


@dataclass(frozen=True)
class NewPlugin:
    """A distribution that was written: its folder, and the paths of its files within that."""

    names: Names
    folder: Path
    files: tuple[str, ...]


def create_plugin(name: str, kind: str, into: Path) -> NewPlugin:
    """Write the distribution `prunekit-<words of the name>` into a directory: all of its files, or none.

    Args:
        name: `MyPruner`, `my-pruner`, `my_pruner` or `prunekit-my-pruner`.
        kind: of the component, or `listener`.
        into: an existing directory.

    Raises:
        PluginError: the name can't be used or is taken, or the folder can't be written.
    """
    names = Names.of(name)
    files = files_of(names, kind)
    check_names(names, kind, [text for path, text in files.items() if path.endswith(".py")])
    folder = into / names.distribution
    write(folder, files)
    return NewPlugin(names, folder, tuple(files))
