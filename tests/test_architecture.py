"""The rooms of prunekit: what docs/architecture.md says of them is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from docs.generate.rooms import LAYERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MODULES = sorted((ROOT / "prunekit").rglob("*.py"))
LONGEST = 350
"""Lines; a longer module says in its docstring why."""


def test_every_path_on_the_page_is_there() -> None:
    paths = set(
        re.findall(
            r"`((?:prunekit|docs|tests|plugins|schedule|plugins|engine|components|model|pruning)/[\w/.]*)`", PAGE
        )
    )
    assert len(paths) > 40
    assert [path for path in sorted(paths) if not ((ROOT / path).exists() or (ROOT / "prunekit" / path).exists())] == []


def test_every_path_that_contributors_are_told_of_is_there() -> None:
    paths = re.findall(r"`pytest ([\w/.-]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []


def test_two_dozen_changes_have_a_place() -> None:
    rows = re.findall(r"^\| .+? \| (`prunekit/.+?) \|$", PAGE.partition("## Where do I change …?")[2], re.MULTILINE)
    assert len(rows) >= 20


def test_every_room_has_a_layer() -> None:
    door = (ROOT / "prunekit").iterdir()
    rooms = {path.stem for path in door if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} == {room for layer in LAYERS for room in layer}


def test_few_modules_stand_at_the_door() -> None:
    assert len(list((ROOT / "prunekit").glob("*.py"))) <= 12


def test_each_package_says_in_one_sentence_what_lives_there() -> None:
    packages = [path for path in MODULES if path.name == "__init__.py"]
    said = {path.parent.name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in packages}
    assert [
        name for name, sentence in said.items() if not sentence or not sentence.partition("\n\n")[0].endswith(".")
    ] == []


def test_a_long_module_says_why() -> None:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in MODULES}
    long = {
        path: ast.get_docstring(ast.parse(text)) or "" for path, text in texts.items() if text.count("\n") > LONGEST
    }
    assert [path for path, docstring in long.items() if "long" not in docstring.lower()] == []
