"""The packages of prunekit and their layers: the contracts of import-linter, and the table of the architecture page."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from docs.generate.plugins import Plugin
from docs.generate.text import ROOT, table

LAYERS = (
    ("cli",),
    ("testing",),
    ("api",),
    ("export",),
    ("training",),
    ("scheduler",),
    ("engine",),
    ("schedule",),
    ("plugins",),
    ("hookspecs", "pruning", "quantization"),
    ("components",),
    ("model",),
    ("progress", "trace", "errors"),
)
"""What may import what stands below it; what stands side by side does not import each other."""


def import_contracts(plugins: Iterable[Plugin]) -> str:
    """What import-linter checks: the layers, and that the core imports no plugin and draws on no terminal."""
    layers = [" | ".join(f"prunekit.{room}" for room in layer) for layer in LAYERS]
    modules = sorted(file.stem for plugin in plugins for file in plugin.folder.glob("src/*.py"))
    return "\n".join(
        [
            "# Made by `python -m docs.generate` from docs/generate/rooms.py.",
            "[importlinter]",
            "root_packages =\n    prunekit",
            "include_external_packages = True",
            "",
            *_contract("layers", "imports point down only", "layers", layers=layers),
            *_contract(
                "plugins",
                "the core imports no plugin",
                "forbidden",
                source_modules=["prunekit"],
                forbidden_modules=modules,
            ),
            *_contract(
                "terminal",
                "only the command line draws on terminals",
                "forbidden",
                source_modules=["prunekit.training", "prunekit.scheduler", "prunekit.schedule"],
                forbidden_modules=["click", "rich", "rich_click"],
            ),
        ]
    )


def table_of_packages() -> str:
    """Each package with its layer and the sentence that its `__init__` begins with."""
    rows = []
    for number, layer in enumerate(LAYERS, 1):
        for room in layer:
            module = ROOT / "prunekit" / room
            file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
            sentence = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
            what = sentence.replace("\n", " ").removesuffix(".")
            rows.append([str(number), f"`prunekit/{room}{'/' if module.is_dir() else '.py'}`", what])
    return table(("layer", "room", "what lives there"), rows)


def _contract(key: str, name: str, kind: str, **lists: list[str]) -> list[str]:
    lines = [f"[importlinter:contract:{key}]", f"name = {name}", f"type = {kind}"]
    for option, values in lists.items():
        lines += [f"{option} =", *(f"    {value}" for value in values)]
    return [*lines, ""]
