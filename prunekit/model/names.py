"""Names of parameters and modules, whatever wraps, compiles or parametrizes the model."""

from __future__ import annotations

import re

_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original$")


def stable_name(name: str) -> str:
    """A name as the schedule knows it: without what `torch.compile` and parametrizations add.

    >>> stable_name("_orig_mod.conv1.parametrizations.weight.original")
    'conv1.weight'
    """
    name = ".".join(part for part in name.split(".") if part != "_orig_mod")
    return _PARAMETRIZED.sub(r"\1\2", name)


def without_wrappers(name: str) -> str:
    """A stable name without the component `module`, which wrappers such as DataParallel add: to compare names by.

    >>> without_wrappers("features.module.0.weight")
    'features.0.weight'
    """
    return ".".join(part for part in stable_name(name).split(".") if part != "module")
