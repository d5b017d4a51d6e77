"""`prunekit export` and `prunekit quantize`: what the files hold is what the forward pass uses."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from helpers import SILENT, through_a_file
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from prunekit import Application, CompressionScheduler, PluginError, PrunekitError, train
from prunekit.cli.group import prunekit
from prunekit.components import Context, Selectors
from prunekit.export import (
    Compressed,
    compressed,
    compressed_run,
    from_safetensors,
    size_of,
    to_onnx,
    to_safetensors,
    to_torchao,
)
from prunekit.export.numbers import fitted, in_half_a_byte, level_type, restored, signed
from prunekit.quantization import Integers, Levels
from prunekit.testing import TinyNet, application
from prunekit.training.checkpoint import load_checkpoint
from prunekit.training.post_training import quantize

APP = "prunekit.testing:application"
PRUNED = {"class": "SparsityLevelParameterPruner", "levels": {"conv2.weight": 0.5, "fc1.weight": 0.8}}
WEIGHTS = ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight")


def needs(*libraries: str) -> Any:
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


safetensors, onnx = needs("safetensors"), needs("onnx", "onnxscript", "onnxruntime")
torchao = needs("torchao")


def run_of(folder: Path, quantizer: dict[str, Any] | None = None, epochs: range = range(1, 3)) -> Path:
    """A run of the tiny network, pruned from epoch 0, quantized in some epochs of 3."""
    schedule: dict[str, Any] = {"version": 1, "pruners": {"p": PRUNED}}
    schedule["policies"] = [{"pruner": {"instance_name": "p"}, "epochs": [0]}]
    if quantizer is not None:
        schedule["quantizers"] = {"q": quantizer}
        schedule["policies"].append({"quantizer": {"instance_name": "q"}, "epochs": list(epochs)})
    train(application(), schedule, 3, run_dir=folder, seed=0, settings={"app": APP}, on_warning=lambda text: None)
    return folder


QUANTIZERS: dict[str, dict[str, Any]] = {
    "dorefa": {"class": "DorefaQuantizer", "bits_weights": 4, "bits_activations": 8},
    "dorefa 1 bit": {"class": "DorefaQuantizer", "bits_weights": 1, "bits_activations": 2},
    "wrpn": {"class": "WRPNQuantizer", "bits_weights": 5, "bits_activations": 4, "bits_bias": 8},
    "pact": {"class": "PACTQuantizer", "bits_weights": 8, "bits_activations": 8},
    "symmetric": {"class": "QuantAwareTrainRangeLinearQuantizer", "bits_weights": 8, "bits_activations": 8},
    "per channel": {
        "class": "QuantAwareTrainRangeLinearQuantizer",
        "bits_weights": 8,
        "bits_activations": 8,
        "mode": "ASYMMETRIC_UNSIGNED",
        "per_channel_wts": True,
    },
    "post-training": {"class": "PostTrainLinearQuantizer", "mode": "ASYMMETRIC_SIGNED", "bits_weights": 4},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = {name: run_of(folder / name.replace(" ", "-"), keys) for name, keys in QUANTIZERS.items()}
    weights_only = {"class": "WRPNQuantizer", "bits_weights": 4, "overrides": {"fc2": {"bits_weights": None}}}
    made["weights"] = run_of(folder / "weights", weights_only)
    made["plain"] = run_of(folder / "plain")
    return made


def forward(run: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """The model of a run as prunekit itself computes it, its inputs, and what it gives."""
    app, checkpoint = application(), load_checkpoint(run)
    from prunekit import Schedule

    schedule = Schedule.from_text(checkpoint["scheduler"]["schedule"])
    scheduler = CompressionScheduler(schedule, app.model, app.optimizer, trace=SILENT)
    app.model.load_state_dict(checkpoint["model"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    (inputs, _), *_ = list(app.test_loader)
    app.model.eval()
    with torch.no_grad():
        return app.model, inputs, app.model(inputs)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(prunekit, [str(argument) for argument in arguments], catch_exceptions=False)


# safetensors


@safetensors
@pytest.mark.parametrize("name", [*QUANTIZERS, "weights", "plain"])
def test_the_floats_are_what_the_forward_pass_uses_under_the_models_own_names(
    name: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    with compressed_run(runs[name], application()) as model:
        to_safetensors(model, tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    used, inputs, outputs = forward(runs[name])
    for parameter in WEIGHTS:
        path, _, own = parameter.rpartition(".")
        assert torch.equal(state[parameter], getattr(used.get_submodule(path), own)), parameter
    net = TinyNet(seed=1).eval()
    net.load_state_dict(state, strict=True)
    if name in ("weights", "plain"):  # nothing else than weights is quantized
        assert torch.equal(net(inputs), outputs)


@safetensors
@pytest.mark.parametrize("name", [*QUANTIZERS, "weights"])
def test_the_whole_numbers_give_the_weights_exactly(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    file = tmp_path / "model.safetensors"
    with compressed_run(runs[name], application()) as model:
        floats = {key: value.clone() for key, value in model.model.state_dict().items()}
        to_safetensors(model, file, integers=True)
    stored, state = load_file(file), from_safetensors(file)
    assert sorted(state) == sorted(floats)
    names = [key.removesuffix(".int") for key in stored if key.endswith(".int")]
    assert sorted(n for n in names if n.endswith("weight")) == sorted(WEIGHTS[: 3 if name == "weights" else 4])
    for key in names:
        int_, scale, zero_point = (stored[f"{key}.{part}"] for part in ("int", "scale", "zero_point"))
        assert not int_.is_floating_point() and int_.dtype == zero_point.dtype
        assert torch.equal(state[key], (int_.float() - zero_point.float()) * scale)
        torch.testing.assert_close(state[key], floats[key], rtol=0, atol=2e-7)
    assert all(torch.equal(state[key], floats[key]) for key in floats if key not in names)


@safetensors
@pytest.mark.parametrize("name", QUANTIZERS)
def test_what_is_pruned_is_zero_in_the_file_too(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    masks = load_checkpoint(runs[name])["scheduler"]["masks"]
    with compressed_run(runs[name], application()) as model:
        to_safetensors(model, tmp_path / "model.safetensors", integers=True)
    state = from_safetensors(tmp_path / "model.safetensors")
    assert sorted(masks) == ["conv2.weight", "fc1.weight"]
    for key, mask in masks.items():
        assert bool((state[key][~mask["pruned"]] == 0).all())


@safetensors
def test_tied_weights_are_stored_under_both_names(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    with compressed(quantized(net)) as model:
        to_safetensors(model, tmp_path / "tied.safetensors", integers=True)
    state = from_safetensors(tmp_path / "tied.safetensors")
    assert torch.equal(state["0.weight"], state["1.weight"])
    assert sorted(state) == ["0.bias", "0.weight", "1.bias", "1.weight"]


# ONNX


@onnx
@pytest.mark.parametrize("name", [*QUANTIZERS, "weights", "plain"])
def test_onnxruntime_computes_what_the_model_computes(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    import onnxruntime

    with compressed_run(runs[name], application()) as model:
        agreement = to_onnx(model, tmp_path / "model.onnx", timed=False)
    assert (agreement.same, agreement.of) == (64, 64)
    assert agreement.mean < 1e-3  # an activation in the middle between two levels may become either
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    _, inputs, outputs = forward(runs[name])
    for number in (64, 5, 1):  # a batch of any size
        (got,) = session.run(None, {session.get_inputs()[0].name: inputs[:number].numpy()})
        apart = (torch.from_numpy(got) - outputs[:number]).abs()
        assert float(apart.median()) < 1e-4 and float(apart.max()) < (0.2 if name in QUANTIZERS else 1e-4)


@onnx
def test_weights_and_activations_go_through_the_nodes_that_quantize(runs: dict[str, Path], tmp_path: Path) -> None:
    import onnx as library

    with compressed_run(runs["symmetric"], application()) as model:
        to_onnx(model, tmp_path / "model.onnx", timed=False)
    proto = library.load(tmp_path / "model.onnx")
    library.checker.check_model(proto)
    kinds = [node.op_type for node in proto.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (4, 8)  # 3 ReLUs, the input; 4 weights
    types = {i.name: library.TensorProto.DataType.Name(i.data_type) for i in proto.graph.initializer}
    assert {types[f"{name}.int"] for name in WEIGHTS} == {"INT8"}
    assert not set(WEIGHTS) & set(types)  # no float copy is left
    assert b"/work" not in proto.SerializeToString() and str(Path.home()).encode() not in proto.SerializeToString()


@onnx
def test_weights_of_4_bits_take_half_a_byte_each(runs: dict[str, Path], tmp_path: Path) -> None:
    import onnx as library

    with compressed_run(runs["post-training"], application()) as model:
        to_onnx(model, tmp_path / "model.onnx", timed=False)
    proto = library.load(tmp_path / "model.onnx")
    sizes = {i.name: len(i.raw_data) for i in proto.graph.initializer}
    assert sizes["fc1.weight.int"] == 32 * 16 // 2


@onnx
def test_what_onnxruntime_gives_must_be_what_the_model_gives(runs: dict[str, Path], tmp_path: Path) -> None:
    with compressed_run(runs["plain"], application()) as model:
        wrong = Compressed(**{**vars(model), "outputs": model.outputs + 0.1})  # type: ignore[operator]
        with pytest.raises(PrunekitError, match=r"onnxruntime's outputs are up to 0\.1 from the model's"):
            to_onnx(wrong, tmp_path / "model.onnx", timed=False)
    assert not (tmp_path / "model.onnx").exists()


@onnx
def test_an_activation_of_unknown_levels_is_refused_for_onnx_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    with compressed_run(runs["dorefa"], application()) as model:
        unknown = Compressed(**{**vars(model), "levels": {**model.levels, "relu": None}})
        with pytest.raises(PrunekitError, match="what the activation 'relu' gives is not known"):
            to_onnx(unknown, tmp_path / "model.onnx", timed=False)


class OfDict(nn.Module):
    """A model whose inputs come in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.a(inputs["x"]) + self.b(inputs["y"])


class Words(nn.Module):
    """Words in, words out, with one tied weight, and a layer that is not quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.out = nn.Embedding(20, 8), nn.LSTM(8, 8), nn.Linear(8, 20)
        self.out.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(words))[0])


def quantized(net: nn.Module) -> CompressionScheduler:
    """A model whose weights have 4 bits from now on."""
    schedule: dict[str, Any] = {"version": 1, "quantizers": {"q": {"class": "WRPNQuantizer", "bits_weights": 4}}}
    schedule["policies"] = [{"quantizer": {"instance_name": "q"}, "epochs": [0]}]
    scheduler = CompressionScheduler.from_dict(schedule, net, trace=SILENT)
    scheduler.on_epoch_begin(0)
    return scheduler


@onnx
@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (OfDict(), {"x": torch.randn(5, 4), "y": torch.randn(5, 4)}),
        (Words(), torch.randint(20, (7, 4))),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(24, 3)), torch.randn(1, 2, 8)),
    ],
    ids=["dict", "tied and recurrent", "batch of one"],
)
def test_models_of_several_kinds_can_be_exported(net: nn.Module, inputs: Any, tmp_path: Path) -> None:
    with compressed(quantized(net), inputs) as model:
        assert to_onnx(model, tmp_path / "model.onnx", timed=False).largest < 1e-5


@onnx
def test_what_is_not_float32_is_refused_for_onnx(tmp_path: Path) -> None:
    scheduler, inputs = quantized(nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16)), torch.randn(2, 4).bfloat16()
    with (
        compressed(scheduler, inputs) as model,
        pytest.raises(PrunekitError, match=r"'0.weight' is torch.bfloat16; ONNX files are made of float32"),
    ):
        to_onnx(model, tmp_path / "model.onnx")


class Block(nn.Module):
    """A residual block, with a ReLU behind the sum or without."""

    def __init__(self, then: nn.Module) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        out += x
        return self.then(out)


def residual(seed: int = 0) -> Application:
    """A small residual network on the tiny task."""
    torch.manual_seed(seed)
    first = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    net = nn.Sequential(*first, Block(nn.Identity()), Block(nn.ReLU()), nn.Flatten(), nn.Linear(256, 4))
    tiny = application()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    return Application(net, optimizer, tiny.train_loader, tiny.test_loader, tiny.loss)


@onnx
@pytest.mark.parametrize("mode", ["ASYMMETRIC_UNSIGNED", "SYMMETRIC"])
def test_the_sums_of_a_residual_network_go_through_the_nodes_that_quantize(mode: str, tmp_path: Path) -> None:
    import onnx as library

    app = residual()
    train(app, {"version": 1, "policies": []}, 2, seed=0, on_warning=lambda text: None)
    schedule = {"version": 1, "quantizers": {"q": {"class": "PostTrainLinearQuantizer", "mode": mode}}}
    quantize(app, schedule, run_dir=tmp_path / "run", batches=4)
    with compressed_run(tmp_path / "run", residual(seed=1)) as model:
        agreement = to_onnx(model, tmp_path / "model.onnx", timed=False)
        convolutions = {f"{block}.conv{number}" for block in (2, 3) for number in (1, 2)}
        assert set(model.levels) == {"<input>", "1", "2.relu", "2.iadd", "3.relu", "3.then", "5", *convolutions}
    assert agreement.mean < 1e-2 and agreement.same is not None and agreement.same >= agreement.of - 1
    graph = library.load(tmp_path / "model.onnx").graph
    of = {name: node for node in graph.node for name in node.output}
    takers = {name: [node.op_type for node in graph.node if name in node.input] for name in of}
    (behind, *_), (relu, *_) = (takers[node.output[0]] for node in graph.node if node.op_type == "Add")
    assert (behind.removeprefix("Clip") or "QuantizeLinear", relu) == ("QuantizeLinear", "Relu")


# torchao


@torchao
def test_torchao_computes_with_the_runs_own_numbers(runs: dict[str, Path], tmp_path: Path) -> None:
    with compressed_run(runs["weights"], application()) as model:
        types = to_torchao(model, tmp_path / "model.pt")
    assert types == {
        "conv1.weight": "IntxUnpackedToInt8Tensor",
        "conv2.weight": "IntxUnpackedToInt8Tensor",
        "fc1.weight": "Int8Tensor",
    }
    _, inputs, outputs = forward(runs["weights"])
    net = TinyNet(seed=1).eval()
    net.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), assign=True)
    assert type(net.fc1.weight.data).__name__ == "Int8Tensor"
    with torch.no_grad():
        torch.testing.assert_close(net(inputs), outputs, rtol=1e-5, atol=1e-5)


@torchao
@pytest.mark.parametrize("mode", ["SYMMETRIC", "ASYMMETRIC_UNSIGNED"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_torchao_takes_zero_points_and_channels(mode: str, per_channel: bool, tmp_path: Path) -> None:
    keys = {"class": "PostTrainLinearQuantizer", "bits_activations": None, "mode": mode, "per_channel_wts": per_channel}
    run = run_of(tmp_path / "run", keys)
    with compressed_run(run, application()) as model:
        assert sorted(to_torchao(model, tmp_path / "model.pt")) == sorted(WEIGHTS)
    _, inputs, outputs = forward(run)
    net = TinyNet(seed=1).eval()
    net.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(net(inputs), outputs, rtol=1e-5, atol=1e-5)


@torchao
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dorefa", "activations are quantized .* torchao's tensors hold weights alone"),
        ("plain", "no weight is quantized"),
    ],
)
def test_what_torchao_can_not_hold_is_refused(name: str, reason: str, runs: dict[str, Path], tmp_path: Path) -> None:
    with compressed_run(runs[name], application()) as model, pytest.raises(PrunekitError, match=reason):
        to_torchao(model, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


@torchao
def test_numbers_wider_than_a_byte_are_refused_for_torchao(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"class": "DorefaQuantizer", "bits_weights": 8})  # odd numbers from -255 to 255
    with compressed_run(run, application()) as model, pytest.raises(PrunekitError, match="int16 is wider than a byte"):
        to_torchao(model, tmp_path / "model.pt")


# What is exported


def test_a_window_that_has_closed_leaves_floats(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", QUANTIZERS["dorefa"], range(2))
    with compressed_run(run, application()) as model:
        assert (model.by_name, dict(model.levels)) == ({}, {})
        assert torch.equal(model.model.state_dict()["fc2.weight"], load_checkpoint(run)["model"]["fc2.weight"])


def test_a_restored_run_evaluates_as_the_run_did(runs: dict[str, Path]) -> None:
    model, inputs, _ = forward(runs["dorefa"])
    assert len(model.conv1.weight.unique()) <= 16
    assert inputs.shape == (64, 1, 8, 8)


def test_in_the_middle_of_a_loop_the_model_is_afterwards_as_it_was() -> None:
    app = application()
    keys = {"class": "DorefaQuantizer", "bits_weights": 2, "bits_activations": 2}
    pruner = {"pruner": {"instance_name": "p", "args": {"mask_on_forward_only": True}}, "epochs": [0]}
    schedule = {"version": 1, "quantizers": {"q": keys}, "pruners": {"p": PRUNED}}
    schedule["policies"] = [pruner, {"quantizer": {"instance_name": "q"}, "epochs": [0]}]  # type: ignore[assignment]
    scheduler = CompressionScheduler.from_dict(schedule, app.model, app.optimizer, trace=SILENT)
    scheduler.on_epoch_begin(0)
    before = through_a_file(app.model.state_dict())
    (inputs, _), *_ = list(app.test_loader)
    quantized = app.model.train().fc1.weight.clone()
    with compressed(scheduler, inputs) as model:
        assert not model.model.training
        assert int((model.model.state_dict()["fc1.weight"] == 0).sum()) == int(0.8 * 32 * 16)
        assert model.model.fc1.weight is dict(model.model.named_parameters())["fc1.weight"]  # nothing stands before it
    assert app.model.training
    assert torch.equal(app.model.fc1.weight, quantized)
    assert all(torch.equal(value, before[name]) for name, value in app.model.state_dict().items())


@dataclass
class Thirds:
    """A quantizer that is wrong about its own numbers."""

    weights: Selectors = "fc1.weight"
    wrong: float = 0.0

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        return (weight * 3).round() / 3 + (weight - weight.detach())

    def integers(self, name: str, weight: Tensor, context: Context) -> Integers:
        return Integers((weight * 3).round() + self.wrong, torch.tensor(1 / 3), torch.tensor(0))

    def levels(self, name: str, context: Context) -> Levels | None:
        return None


@contextmanager
def thirds(wrong: float) -> Iterator[Compressed]:
    from prunekit import ComponentSpec, PolicySpec, Schedule, Window

    spec = ComponentSpec("quantizer", "q", Thirds, {"wrong": wrong})
    schedule = Schedule([spec], [PolicySpec("quantizer", "q", Window(0, 1))])
    scheduler = CompressionScheduler(schedule, TinyNet(), trace=SILENT)
    scheduler.on_epoch_begin(0)
    with compressed(scheduler) as model:
        yield model


def test_a_quantizer_of_parameters_can_tell_its_numbers_too() -> None:
    with thirds(0.0) as model:
        assert list(model.by_name) == ["fc1.weight"]


def test_numbers_that_are_not_those_of_the_values_are_refused() -> None:
    message = "Thirds, 'fc1.weight': its integers are not those of its values: 1 steps apart"
    with pytest.raises(PluginError, match=message), thirds(1.0):
        pass


# Numbers in files


@settings(deadline=None)
@given(st.lists(st.integers(-400, 400), min_size=6, max_size=6), st.integers(-300, 300), st.booleans(), st.booleans())
def test_the_smallest_type_holds_the_same_weights(numbers: list[int], zero: int, channels: bool, masked: bool) -> None:
    values = torch.tensor(numbers).reshape(2, 3)
    scale = torch.tensor([[0.5], [0.25]]) if channels else torch.tensor(0.5)
    integers = Integers(values, scale, torch.full_like(scale, zero))
    mask = torch.tensor([[True, False, True], [True, True, False]]) if masked else None
    small = fitted(integers, mask)
    expected = restored(integers) if mask is None else restored(integers) * mask
    assert torch.equal(restored(small), expected)
    parts = values if mask is None else torch.where(mask, values, zero)
    rows = [torch.cat([row, torch.tensor([zero])]) for row in (parts if channels else parts.reshape(1, -1))]
    if max(int(row.max() - row.min()) for row in rows) <= 255:
        assert small.values.dtype in (torch.int8, torch.uint8)
        byte = signed(small)
        assert byte is not None and byte.values.dtype == torch.int8
        assert torch.equal(restored(byte), expected)
    half = in_half_a_byte(small)
    assert half is None or torch.equal(restored(half), expected)


def test_numbers_that_a_byte_just_does_not_hold_are_shifted() -> None:
    whole = fitted(Integers(torch.tensor([-127.0, 128.0]), torch.tensor(0.5), torch.tensor(0.0)))
    assert (whole.values.tolist(), whole.values.dtype, int(whole.zero_point)) == ([0, 255], torch.uint8, 127)
    whole = fitted(Integers(torch.tensor([-128.0, 128.0]), torch.tensor(0.5), torch.tensor(0.0)))
    assert (whole.values.tolist(), whole.values.dtype) == ([-128, 128], torch.int16)


def test_a_channel_of_zeros_gets_the_least_scale_of_the_others() -> None:
    whole = fitted(Integers(torch.tensor([[1], [0], [2]]), torch.tensor([[0.5], [1.0], [0.25]]), torch.zeros(3, 1)))
    assert whole.scale.flatten().tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("levels", "shifted", "dtype"),
    [
        (Levels(0.5, 0, 0, 15), Levels(0.5, 0, 0, 15), torch.uint8),
        (Levels(0.5, 0, -128, 127), Levels(0.5, 128, 0, 255), torch.uint8),
        (Levels(0.5, 0, -8, 8), Levels(0.5, 128, 120, 136), torch.uint8),
        (Levels(0.5, 0, -128, 128), Levels(0.5, 128, 0, 256), torch.uint16),
        (Levels(0.5, 300, 310, 400), Levels(0.5, 0, 10, 100), torch.uint8),
    ],
)
def test_levels_begin_at_0_or_above(levels: Levels, shifted: Levels, dtype: torch.dtype) -> None:
    assert level_type(levels) == (shifted, dtype)
    assert level_type(Levels(0.5, 0, 0, 2**16)) is None


# The commands


@safetensors
def test_the_command_writes_into_the_runs_folder_and_says_what_it_gains(runs: dict[str, Path]) -> None:
    result = invoke("export", runs["weights"], "--to", "safetensors", "--integers")
    file = runs["weights"] / "model.safetensors"
    size = size_of(file)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:3] == [
        "whole numbers (int8): conv1.weight, conv2.weight, fc1.weight",
        f"written: {file}",
    ]
    assert f"size: {size.raw:,} bytes, gzip {size.gzip:,}; the weights before training: 3,752 bytes" in result.stdout
    assert "speed: as the float model's" in result.stdout
    assert size.raw < 3752 and size.gzip < 0.5 * size_of(load_bytes(runs["plain"])).gzip


def load_bytes(run: Path) -> bytes:
    with compressed_run(run, application()) as model:
        assert model.dense is not None
        return model.dense


@onnx
def test_the_onnx_command_compares_and_measures(runs: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("export", runs["per channel"], "--to", "onnx", "--out", tmp_path / "deep" / "m.onnx")
    assert result.exit_code == 0, result.output
    assert "quantized activations: relu, relu_1, relu_2, <input>\n" in result.stdout
    assert "onnxruntime and the model: the same class for 64 of 64 inputs" in result.stdout
    ms, verdict = r"[\d.]+ ms", r"(not faster than|[\d.]+ times as fast as) its float model"
    pattern = f"speed, 64 inputs on one thread: this file {ms}, torch {ms}, its float model {ms}: {verdict}"
    assert re.search(pattern, result.stdout)
    assert (tmp_path / "deep" / "m.onnx").exists()


@torchao
def test_the_torchao_command_says_which_tensors_it_made(runs: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("export", runs["weights"], "--to", "torchao", "--out", tmp_path / "m.pt")
    assert result.exit_code == 0, result.output
    assert "torchao tensors: conv1.weight IntxUnpackedToInt8Tensor, " in result.stdout


def test_wrong_orders_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("export", runs["plain"], "--to", "onnx", "--integers")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --integers is for safetensors; the other formats hold whole numbers anyway\n",
    )
    result = invoke("export", tmp_path, "--to", "onnx")
    assert result.exit_code == 1 and "there is no checkpoint.pt" in result.stderr
    result = invoke("export", runs["plain"], "--to", "safetensors", "--app", "helpers:MLP")
    assert result.exit_code == 2 and "--app: 'helpers:MLP' must return prunekit.Application" in result.stderr


def test_a_missing_library_is_named_with_what_to_install(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find(name, *rest))
    result = invoke("export", runs["plain"], "--to", "onnx")
    assert result.exit_code == 1
    assert result.stderr == "error: onnx files need onnx; install it with: pip install 'prunekit[export]'\n"


def test_a_run_quantized_without_training_can_be_exported(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "version: 1\nquantizers:\n  q: {class: PostTrainLinearQuantizer, mode: ASYMMETRIC_UNSIGNED}\n"
    Path("ptq.yaml").write_text(text)
    result = invoke("quantize", runs["plain"], "ptq.yaml", "--run-dir", "quantized", "--batches", 4)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["module", "weights", "activations", "bias"],
        ["<input>", "-", "8", "-"],
        ["relu", "-", "8", "-"],
    ]
    assert lines[-1] == "export it: prunekit export quantized --to onnx"
    assert re.fullmatch(r"accuracy quantized: \d+\.\d\d% \(ranges from 4 training batches\)", lines[-3])
    with compressed_run("quantized", application()) as model:
        assert sorted(model.by_name) == sorted(WEIGHTS)
        assert None not in model.levels.values()
        state = model.model.state_dict()
    masks = load_checkpoint(runs["plain"])["scheduler"]["masks"]
    assert all(bool((state[name][~mask["pruned"]] == 0).all()) for name, mask in masks.items())
    again = invoke("quantize", runs["plain"], "ptq.yaml", "--run-dir", "quantized")
    assert (again.exit_code, again.stderr) == (1, "error: 'quantized' already holds a run; choose another folder\n")
    twice = invoke("quantize", runs["dorefa"], "ptq.yaml", "--run-dir", "other")
    assert twice.exit_code == 1 and "the model is quantized already" in twice.stderr
    Path("none.yaml").write_text("version: 1\n")
    nothing = invoke("quantize", runs["plain"], "none.yaml", "--run-dir", "other")
    assert (nothing.exit_code, nothing.stderr) == (
        1,
        "error: the schedule has no quantizers: there is nothing to quantize with\n",
    )


def test_a_model_that_prunekit_has_not_trained_can_be_quantized_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.yaml").write_text("version: 1\nquantizers:\n  q: {class: WRPNQuantizer, bits_weights: 4}\n")
    result = invoke("quantize", "w.yaml", "--app", APP)
    assert result.exit_code == 0, result.output
    assert "run: runs/w" in result.stdout
    assert invoke("quantize", "w.yaml").exit_code == 2
    with compressed_run("runs/w", application()) as model:
        assert sorted(model.by_name) == sorted(WEIGHTS)
