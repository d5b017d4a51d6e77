"""The plugins of a run as they were: by name, distribution, version, and a hash of their files."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunekit.errors import PluginError

LOCK = "plugins.lock.json"
"""The lock's name in a run's folder."""
_FORMAT = 1


@dataclass(frozen=True, order=True)
class Entry:
    """One plugin under the name that a run knows it by: a component, a curve or the like, a listener.

    Or prunekit itself, whose kind is `core`.
    """

    kind: str
    name: str
    distribution: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.distribution} {self.version}".rstrip()

    def difference(self, now: Entry) -> str | None:
        """How the same plugin differs from this entry; None if it does not."""
        if (self.distribution, self.version) != (now.distribution, now.version):
            return f"locked is {self.distribution} {self.version}".rstrip()
        if self.sha256 != now.sha256:
            return f"its files have changed since it was locked: sha256 {self.sha256[:12]}…, now {now.sha256[:12]}…"
        return None


@dataclass(frozen=True)
class Lock:
    """The plugins that a run used. `path` is where it was read from."""

    entries: tuple[Entry, ...]
    path: str = ""

    @classmethod
    def read(cls, path: str | Path) -> Lock:
        """A lock from its file, or from a run's folder.

        Raises:
            PluginError: there is no such file, or it holds no lock.
        """
        file = Path(path) / LOCK if Path(path).is_dir() else Path(path)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data["prunekit-lock"] != _FORMAT:
                raise ValueError(f"format {data['prunekit-lock']!r}, this prunekit reads {_FORMAT}")
            entries = tuple(
                Entry(**{field.name: entry[field.name] for field in fields(Entry)}) for entry in data["plugins"]
            )
        except OSError as error:
            raise PluginError(f"no lock can be read from {str(file)!r}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise PluginError(f"{str(file)!r} holds no lock: {type(error).__name__}: {error}") from error
        return cls(entries, str(file))

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        data = {"prunekit-lock": _FORMAT, "plugins": [asdict(entry) for entry in sorted(self.entries)]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    def objection(self, now: Entry) -> str | None:
        """Why a plugin as it is now is not the one that was locked; None if it is."""
        same_name = [entry for entry in self.entries if (entry.kind, entry.name) == (now.kind, now.name)]
        if not same_name:
            installed = now.kind == "listener" and now.version  # one that is given from Python has no version
            hint = f"; PRUNEKIT_DISABLE={now.name} leaves it out" if installed else ""
            return f"{now} is not in the lock {self.path}{hint}"
        differences = [entry.difference(now) for entry in same_name]
        return None if None in differences else f"{now} is not the one in the lock {self.path}: {differences[0]}"

    def missing(self, kind: str, now: Iterable[Entry]) -> Iterator[str]:
        """What was locked of this kind and is not there any more."""
        names = {entry.name for entry in now}
        for entry in self.entries:
            if entry.kind == kind and entry.name not in names:
                yield f"{entry} is in the lock {self.path}, and is not loaded now"


def hash_of(module: str) -> str:
    """The SHA-256 of a module's file, or of all files of the package that it belongs to; empty where there are none.

    Nothing is imported.
    """
    place = _file_or_folder(module)
    if place is None:
        return ""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if _counts(path))
    digest = hashlib.sha256()
    for file in files:
        # A name with its end, then a digest of fixed length: no two folders with different files give the same bytes.
        digest.update(file.relative_to(place.parent).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def hash_of_source(definition: Any) -> str:
    """The SHA-256 of the file that defines a class or function; empty where there is none (a notebook)."""
    try:
        return hashlib.sha256(Path(inspect.getfile(definition)).read_bytes()).hexdigest()
    except (TypeError, OSError):
        return ""


def _counts(path: Path) -> bool:
    # Python writes there by itself, whenever something is imported.
    return path.is_file() and "__pycache__" not in path.parts


def _file_or_folder(module: str) -> Path | None:
    """The file of a top-level module or the folder of a top-level package; in a namespace, of the first that is one."""
    try:
        first, *rest = module.split(".")
        spec = find_spec(first)
        while spec is not None and spec.origin is None and rest:
            first, rest = f"{first}.{rest[0]}", rest[1:]
            # `find_spec` of a dotted name would import the package before the dot.
            spec = PathFinder.find_spec(first, list(spec.submodule_search_locations or ()))
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
