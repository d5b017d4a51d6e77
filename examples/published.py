"""Runs schedules that were published with Distiller, shortened, on small networks with the names that they use.

`python -m examples.published FOLDER` writes docs/published-schedules.md from a folder of such schedules.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import click
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, TensorDataset

from examples.digits import loaders
from examples.models.alexnet import AlexNet
from examples.models.detector import WholeImageDetector
from examples.models.mobilenet import MobileNet
from examples.models.preact_resnet import IMAGENET18, PreactResNet
from examples.models.resnet_cifar import ResNetCifar
from examples.models.resnet_imagenet import RESNET18, ResNetImagenet
from examples.models.resnext import ResNeXt
from examples.models.simplenet import SimpleNet
from examples.models.vgg_cifar import VGG16Cifar
from examples.models.word_language_model import WordLanguageModel
from prunekit import Application, Schedule, ScheduleError, train
from prunekit.training.train import default_epochs

ROOT = Path(__file__).parents[1]
EPOCHS, BATCH, BATCHES = 8, 16, 3
WORDS, LENGTH = 200, 12

MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "*alexnet*": lambda: AlexNet(wrapped=True),
    "*mobilenet*": MobileNet,
    "*resnext101*": ResNeXt,
    "*maskrcnn*": lambda: WholeImageDetector(width=2),
    "*resnet18.*": lambda: ResNetImagenet(RESNET18, basic=True, width=4),
    "*resnet50*": lambda: ResNetImagenet(width=4),
    "*word_lang_model*": lambda: WordLanguageModel(WORDS),
    "*vgg16*": VGG16Cifar,
    "*plain20*": lambda: ResNetCifar(width=8, shortcuts=False),
    "*resnet56*": lambda: ResNetCifar(56, width=8),
    "*simplenet*": SimpleNet,
    "*preact_resnet18*": lambda: PreactResNet(IMAGENET18, stem=True),
    "*preact_resnet*": PreactResNet,
    "*": lambda: ResNetCifar(width=8),
}
"""The network for a schedule: the first pattern that its file's name matches."""


def application(file: str, seed: int = 0) -> Application:
    """The network that a schedule's parameter names belong to, with a few batches of digits or of words."""
    torch.manual_seed(seed)
    model = next(make for pattern, make in MODELS.items() if fnmatchcase(file, pattern))()
    data = _words() if isinstance(model, WordLanguageModel) else _digits()
    loader = DataLoader(data, batch_size=BATCH)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Application(model, optimizer, loader, loader, cross_entropy)


@dataclass(frozen=True)
class Outcome:
    """What became of one schedule.

    Attributes:
        file: its name.
        classes: of its components.
        waits_for: classes that are not to be had yet; what they do was left out.
        asked: component -> the sparsity that it asks for in the end, where it says so.
        reached: component -> parameter -> the sparsity at its last active epoch, counted from the tensors.
        refused: why it was refused, empty where it ran.
    """

    file: str
    classes: tuple[str, ...]
    waits_for: tuple[str, ...]
    asked: Mapping[str, float]
    reached: Mapping[str, Mapping[str, float]]
    refused: str = ""


def run(path: Path, run_dir: Path) -> Outcome:
    """Train under a schedule, shortened to a few epochs; extensions are left out."""
    try:
        schedule = Schedule.from_yaml(path)
    except ScheduleError as error:
        return Outcome(path.name, (), (), {}, {}, _reasons(error, path))
    classes = tuple(dict.fromkeys(spec.class_name for spec in schedule.components))
    waits = [spec for spec in schedule.components if spec.kind == "extension"]
    asked = {spec.name: value for spec in schedule.components if (value := _asked(spec.args)) is not None}
    kept = [spec for spec in schedule.components if spec not in waits]
    policies = [policy for policy in schedule.policies if policy.kind != "extension"]
    short = replace(schedule, components=kept, policies=policies)
    epochs = default_epochs(short) or 1
    if epochs > EPOCHS:
        short = short.scaled(EPOCHS / epochs)
    waits_for = tuple(dict.fromkeys(spec.class_name for spec in waits))
    try:
        train(application(path.name), short, default_epochs(short) or 1, run_dir=run_dir, seed=0)
    except ScheduleError as error:
        return Outcome(path.name, classes, waits_for, asked, {}, _reasons(error, path))
    return Outcome(path.name, classes, waits_for, asked, _reached(run_dir))


def _asked(args: Mapping[str, Any]) -> float | None:
    return next((args[key] for key in ("desired_sparsity", "final_sparsity") if key in args), None)


def _reached(run_dir: Path) -> dict[str, dict[str, float]]:
    """Component -> parameter -> sparsity, from the last change by each in the run's trace."""
    from prunekit.trace import read

    found: dict[str, dict[str, float]] = {}
    for line in read(run_dir):
        if line["event"] in ("masks changed", "masks kept", "weights zeroed"):
            name = line["component"].partition("'")[2].rstrip("'")
            found.setdefault(name, {}).update({key: after for key, (_, after) in line["sparsity"].items()})
    return found


def _reasons(error: ScheduleError, path: Path) -> str:
    return "; ".join(str(problem).replace(str(path), path.name) for problem in error.problems)


def _digits() -> Dataset[Any]:
    images, labels = next(iter(loaders(0)[1]))
    return TensorDataset(images[: BATCH * BATCHES], labels[: BATCH * BATCHES])


def _words() -> Dataset[Any]:
    """Rows of words [N, LENGTH] from Python's own documentation, and the words that follow each."""
    words = re.findall(r"\w+", topics["comparisons"].lower())
    common = sorted(set(words), key=lambda word: (-words.count(word), word))[: WORDS - 1]
    numbers = torch.tensor([common.index(word) if word in common else WORDS - 1 for word in words])
    rows = numbers[: BATCH * BATCHES * LENGTH + 1]
    return TensorDataset(rows[:-1].reshape(-1, LENGTH), rows[1:].reshape(-1, LENGTH))


def page(outcomes: list[Outcome]) -> str:
    """The page as Markdown."""
    rows = [line for outcome in outcomes for line in _rows(outcome)]
    return HEAD + "\n".join(rows) + "\n"


def _rows(outcome: Outcome) -> list[str]:
    """A line for each component that has a sparsity to show; one line where none has."""
    name = outcome.file.removesuffix(".yaml").replace("__", "/")
    classes = ", ".join(f"{c} (left out)" if c in outcome.waits_for else c for c in outcome.classes)
    if outcome.refused:
        return [f"| {name} | {classes} | | | refused: {outcome.refused.replace('|', ' ')} |"]
    lines = []
    for component, tensors in outcome.reached.items():
        asked = f"{outcome.asked[component]:.0%}" if component in outcome.asked else "by threshold or at random"
        least, most = min(tensors.values()), max(tensors.values())
        reached = f"{least:.1%}" if f"{least:.1%}" == f"{most:.1%}" else f"{least:.1%} to {most:.1%}"
        lines.append(f"| {component}, {len(tensors)} tensors | {asked} | {reached} |")
    lines = lines or ["| nothing prunes | | |"]
    return [f"| {name if n == 0 else ''} | {classes if n == 0 else ''} {line}" for n, line in enumerate(lines)]


HEAD = f"""# Published schedules

Schedules that were published with Distiller (IntelLabs, commit d859fc85), each shortened to {EPOCHS} epochs of
{BATCHES} mini-batches (`--scale-epochs`) and run on a small network whose parameters have the names that it uses
(`examples/models`). Whole units are counted: half of nine filters is four, 44.4 %. Extensions that
remove structures are left out so far. Where masks are discarded after each mini-batch (DropFilter), what is shown is
the last mask. Regenerate this page with `python -m examples.published FOLDER`.

| schedule | components | component | asked | reached |
| --- | --- | --- | --- | --- |
"""


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "published-schedules.md", show_default=True
)
def main(folder: Path, out: Path) -> None:
    """Run every schedule of FOLDER and write the page."""
    with tempfile.TemporaryDirectory() as runs:
        outcomes = [run(path, Path(runs) / path.stem) for path in sorted(folder.glob("*.yaml"))]
    out.write_text(page(outcomes))
    click.echo(out.read_text())


if __name__ == "__main__":
    main()
