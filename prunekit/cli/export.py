"""`prunekit export`: a run's model in a file that others can read, and what that gains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from prunekit.cli.console import errors_shown, usage_error
from prunekit.cli.runs import application_of, settings_of, trust_in
from prunekit.cli.trust import trust_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prunekit.export import Agreement, Compressed

FILES = {"safetensors": "model.safetensors", "onnx": "model.onnx", "torchao": "model.torchao.pt"}
_FASTER = 1.05
"""What is less than that is noise."""


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.option("--to", "form", type=click.Choice(list(FILES)), required=True, help="The file's format.")
@click.option("--out", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Default: in RUN.")
@click.option("--app", metavar="MODULE:FUNCTION", help="Default: the one that RUN has trained.")
@click.option("--integers", is_flag=True, help="safetensors: quantized weights as whole numbers in place of floats.")
@trust_options
def export(
    run: Path,
    form: str,
    out: Path | None,
    app: str | None,
    integers: bool,
    allow_plugins: str | None,
    locked: Path | None,
) -> None:
    """Write the model of RUN as its forward pass is: masked and quantized.

    safetensors holds its state, onnx a graph for onnxruntime and the like, torchao its state with torchao's quantized
    tensors. A model that nothing quantizes can be exported too. RUN is a run's folder, or a checkpoint in it:
    RUN/best.pt.
    """
    if integers and form != "safetensors":
        raise usage_error("--integers is for safetensors; the other formats hold whole numbers anyway")
    path = out or (run if run.is_dir() else run.parent) / FILES[form]
    with errors_shown():
        from prunekit.export import compressed_run

        settings = settings_of(run, app=app, allow_plugins=allow_plugins, locked=locked)
        trust = trust_in(settings)
        with compressed_run(run, application_of(settings), trust=trust) as model:
            click.echo("\n".join(_contents(model)))
            lines = list(_write(form, model, path, integers))
    click.echo("\n".join([f"written: {path}", *lines]))


def _contents(model: Compressed) -> Iterator[str]:
    from prunekit.model.parameter_mask import count_nonzero

    parameters = list(model.names)
    numbers, kept = sum(p.numel() for p in parameters), sum(count_nonzero(p) for p in parameters)
    sparsity = (numbers - kept) / max(numbers, 1)
    yield f"the model: {numbers:,} parameters, sparsity {sparsity:.4f} as the forward pass sees them"
    types = sorted({str(whole.values.dtype).removeprefix("torch.") for whole in model.integers.values()})
    if model.integers:
        names = ", ".join(name for p, (name, *_) in model.names.items() if p in model.integers)
        yield f"whole numbers ({' and '.join(types)}): {names}"
    if model.levels:
        yield f"quantized activations: {', '.join(model.levels)}"


def _write(form: str, model: Compressed, path: Path, integers: bool) -> Iterator[str]:
    """Write the file, and say what it gains."""
    from prunekit.export import to_onnx, to_safetensors

    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "safetensors":
        to_safetensors(model, path, integers=integers)
        yield _size(model, path)
        yield "speed: as the float model's, since whoever loads the file computes with floats"
    elif form == "onnx":
        agreement = to_onnx(model, path)
        yield _size(model, path)
        yield _agreement(agreement)
        yield _speed(agreement.of, agreement.seconds)
    else:
        yield from _torchao(model, path)


def _torchao(model: Compressed, path: Path) -> Iterator[str]:
    from prunekit.export import seconds, to_torchao
    from prunekit.export.to_torchao import quantized_copy

    types = to_torchao(model, path)
    yield _size(model, path)
    left = sorted(set(model.by_name) - set(types))
    yield "torchao tensors: " + ", ".join(f"{name} {kind}" for name, kind in types.items())
    if left:
        yield f"floats, because torchao has no tensor for them: {', '.join(left)}"
    copy = quantized_copy(model)
    forwards = {"this file": lambda: copy(model.inputs), "torch": lambda: model.model(model.inputs)}
    yield _speed(_number(model), seconds(forwards))


def _size(model: Compressed, path: Path) -> str:
    from prunekit.export import size_of

    now = size_of(path)
    line = f"size: {now.raw:,} bytes, gzip {now.gzip:,}"
    if model.dense is None:
        return line
    then = size_of(model.dense)
    ratios = f"{then.raw / now.raw:.1f} and {then.gzip / now.gzip:.1f} times as large"
    return f"{line}; the weights before training: {then.raw:,} bytes, gzip {then.gzip:,} ({ratios})"


def _agreement(agreement: Agreement) -> str:
    same = f"the same class for {agreement.same} of {agreement.of} inputs, " if agreement.same is not None else ""
    apart = f"outputs at most {agreement.largest:.2g} apart, on average {agreement.mean:.2g} standard deviations"
    return f"onnxruntime and the model: {same}{apart}"


def _speed(inputs: int, times: Mapping[str, float]) -> str:
    """How long a forward pass takes; whoever computes the same model in floats is what to compare with."""
    other = "its float model" if "its float model" in times else "torch"
    ratio = times[other] / times["this file"]
    verdict = f"{ratio:.1f} times as fast as {other}" if ratio > _FASTER else f"not faster than {other}"
    shown = ", ".join(f"{who} {1000 * taken:.3f} ms" for who, taken in times.items())
    return f"speed, {inputs} inputs on one thread: {shown}: {verdict}"


def _number(model: Compressed) -> int:
    import torch

    outputs = model.outputs
    return len(outputs) if isinstance(outputs, torch.Tensor) and outputs.dim() else 1
