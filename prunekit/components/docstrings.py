"""What the docstring of a class says: what it is, and what each argument of its constructor means."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

_SECTION = re.compile(r"^(?:Args|Arguments|Parameters):\n(.*?)(?=\n\S|\Z)", re.DOTALL | re.MULTILINE)


def summary(owner: Any) -> str:
    """The first paragraph, on one line."""
    return (inspect.getdoc(owner) or "").partition("\n\n")[0].replace("\n", " ")


def documented_arguments(cls: type) -> Mapping[str, str]:
    """What the docstrings of a class, its constructor and its bases say of each argument, under `Args:`."""
    found: dict[str, str] = {}
    for text in [inspect.getdoc(part) for owner in cls.__mro__[:-1] for part in (owner, vars(owner).get("__init__"))]:
        section = _SECTION.search(text or "")
        body = inspect.cleandoc("\n" + section[1]) if section else ""
        for entry in re.split(r"\n(?=\S)", body):
            names, colon, meaning = entry.partition(":")
            for name in re.findall(r"\w+", names.partition("(")[0]) if colon else ():
                # The class itself comes first, and what it says goes before what its bases say.
                found.setdefault(name, " ".join(meaning.split()))
    return found
