"""What `import prunekit` offers."""

from __future__ import annotations

import subprocess
import sys

import prunekit
from prunekit import api


def test_the_names_at_the_door_are_those_of_its_list() -> None:
    assert prunekit.__all__ == sorted(name for name in vars(api) if name.isidentifier() and name[0] != "_")
    assert all(getattr(prunekit, name) is getattr(api, name) for name in prunekit.__all__)
    assert {*prunekit.__all__} <= {*dir(prunekit)}


def test_a_name_that_is_not_offered_is_an_attribute_error() -> None:
    assert not hasattr(prunekit, "Schedul")


def test_importing_prunekit_does_not_import_torch() -> None:
    code = "import sys, prunekit; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
