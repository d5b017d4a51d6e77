"""How many bits each module gets: defaults, overrides in both dialects, which key reaches what, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import Recorder
from oracle_models import QNet
from torch import nn

from prunekit import ArgumentError, CompressionScheduler, ScheduleError, Trace
from prunekit.quantization import BitsQuantizer, ModuleBits, Quantizable

MODULES = {
    "conv1": Quantizable("Conv2d", weights=True, bias=True),
    "relu1": Quantizable("ReLU", activations=True),
    "block1.conv1": Quantizable("Conv2d", weights=True),
    "block1.relu": Quantizable("ReLU", activations=True),
    "fc": Quantizable("Linear", weights=True, bias=True),
}


def bits(modules: dict[str, Quantizable] = MODULES, **keys: Any) -> dict[str, tuple[int | None, ...]]:
    """Module -> bits of weights, activations and bias."""
    plan = BitsQuantizer(**keys).bits(modules)
    return {name: (given.weights, given.activations, given.bias) for name, given in plan.items()}


def problems(modules: dict[str, Quantizable] = MODULES, **keys: Any) -> list[str]:
    return [str(error) for error in BitsQuantizer(**keys).check_bits(modules)]


def refused(schedule: str, model: nn.Module | None = None) -> str:
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler.from_yaml(write(schedule), model or QNet(), trace=Trace(level="error"))
    return str(error.value)


def write(schedule: str) -> Path:
    path = Path("schedule.yaml")
    path.write_text(schedule)
    return path


def quantizer(keys: str) -> str:
    policy = "\npolicies:\n  - quantizer: {instance_name: q}\n    epochs: [0]\n"
    return f"version: 1\nquantizers:\n  q:\n    class: DorefaQuantizer\n{keys}{policy}"


# Defaults


def test_each_part_gets_the_bits_of_its_kind_where_it_has_that_part() -> None:
    assert bits(bits_weights=4, bits_activations=8, bits_bias=6) == {
        "conv1": (4, None, 6),
        "relu1": (None, 8, None),
        "block1.conv1": (4, None, None),
        "block1.relu": (None, 8, None),
        "fc": (4, None, 6),
    }


@pytest.mark.parametrize("none", [None, 32])
def test_none_and_32_leave_alone(none: int | None) -> None:
    assert bits(bits_weights=none, bits_activations=8, bits_bias=none) == {
        "relu1": (None, 8, None),
        "block1.relu": (None, 8, None),
    }
    assert bits() == {}


# Overrides


def test_both_dialects_say_the_same() -> None:
    own = {"conv1": {"wts": 2, "acts": None, "bias": 5}}
    later = {"conv1": {"bits_weights": 2, "bits_activations": None, "bits_bias": 5}}
    results = [
        bits(bits_weights=4, **{key: given}) for key in ("bits_overrides", "overrides") for given in (own, later)
    ]
    assert results == [{"conv1": (2, None, 5), "block1.conv1": (4, None, None), "fc": (4, None, None)}] * 4


def test_null_leaves_alone_and_a_key_left_out_is_as_above() -> None:
    got = bits(bits_weights=4, bits_bias=6, bits_overrides={"conv1": {"wts": None}, "fc": {"bias": None}})
    assert got == {"conv1": (None, None, 6), "block1.conv1": (4, None, None), "fc": (4, None, None)}


@pytest.mark.parametrize(
    ("pattern", "reached"),
    [
        ("conv1", ["conv1"]),
        ("block1.conv*", ["block1.conv1"]),
        ("block1.*", ["block1.conv1", "block1.relu"]),
        ("*conv1", ["conv1", "block1.conv1"]),
        (r".*conv\d", ["conv1", "block1.conv1"]),
        (r"relu1|block1\.relu", ["relu1", "block1.relu"]),
        ("module.conv1", ["conv1"]),
        ("conv[1]", ["conv1"]),
        ("*", list(MODULES)),
    ],
)
def test_a_key_is_a_name_a_glob_or_a_regular_expression(pattern: str, reached: list[str]) -> None:
    override = {pattern: {"wts": 2, "acts": 2}}
    changed = bits(bits_weights=4, bits_activations=4, bits_overrides=override)
    assert [name for name, given in changed.items() if 2 in given] == reached


def test_an_equal_name_comes_first_wherever_it_stands_then_the_first_pattern_in_the_file() -> None:
    overrides = {"*conv1": {"wts": 2}, "block1.*": {"wts": 3}, "conv1": {"wts": 5}}
    got = bits(bits_weights=4, bits_overrides=overrides)
    assert got == {"conv1": (5, None, None), "block1.conv1": (2, None, None), "fc": (4, None, None)}


def test_a_name_fits_a_wrapped_model_and_a_wrapped_name_a_bare_one() -> None:
    wrapped = {f"module.{name}": what for name, what in MODULES.items()}
    assert bits(wrapped, bits_overrides={"block1.conv*": {"wts": 2}}) == {"module.block1.conv1": (2, None, None)}
    assert bits(bits_overrides={"module.block1.conv1": {"wts": 2}}) == {"block1.conv1": (2, None, None)}


def test_the_key_that_gave_the_bits_is_told() -> None:
    plan = BitsQuantizer(bits_weights=4, overrides={"block1.*": {"bits_weights": 2}}).bits(MODULES)
    assert plan["fc"] == ModuleBits(weights=4)
    assert plan["block1.conv1"] == ModuleBits(weights=2, given_by=("overrides", "block1.*"))


# What is refused


def test_an_override_that_reaches_nothing_is_refused_with_the_nearest_name() -> None:
    assert problems(bits_overrides={"block1.conv2": {"wts": 2}}) == [
        "bits_overrides.block1.conv2: 'block1.conv2' matches no module that can be quantized; "
        "did you mean 'block1.conv1'?"
    ]
    assert problems(bits_overrides={"block1": {"wts": 2}}) == [
        "bits_overrides.block1: 'block1' matches no module that can be quantized; "
        "it holds 'block1.conv1': say 'block1.*'"
    ]
    assert problems(overrides={"(": {"bits_weights": 2}})[0].startswith("overrides.(: '(' matches no module")


def test_bits_for_a_part_that_none_of_the_modules_has_are_refused() -> None:
    assert problems(bits_overrides={"relu1": {"wts": 2}}) == [
        "bits_overrides.relu1.wts: 'relu1' is a ReLU: it has no weights that can be quantized"
    ]
    assert problems(bits_overrides={"block1.conv1": {"bias": 2}}) == [
        "bits_overrides.block1.conv1.bias: 'block1.conv1' is a Conv2d: it has no bias that can be quantized"
    ]
    assert problems(bits_overrides={"relu1": {"wts": None}, "block1.*": {"wts": 2, "acts": 2}}) == []


def test_the_two_dialects_are_not_mixed() -> None:
    with pytest.raises(ArgumentError, match="means the same as bits_overrides: give one of the two"):
        BitsQuantizer(bits_overrides={"fc": {"wts": 2}}, overrides={"fc": {"bits_weights": 2}})
    with pytest.raises(ArgumentError, match="means the same as 'wts': give one of the two"):
        BitsQuantizer(bits_overrides={"fc": {"wts": 2, "bits_weights": 2}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("    bits_weights: 0\n", "quantizers.q.bits_weights: must be greater than or equal to 1, got 0"),
        ("    bits_weights: 33\n", "quantizers.q.bits_weights: must be less than or equal to 32, got 33"),
        ("    bits_weights: 4.5\n", "quantizers.q.bits_weights: must be a valid integer"),
        ("    bits_overrides: {fc: {weights: 4}}\n", "quantizers.q.bits_overrides.fc.weights"),
        ("    bits_wights: 4\n", "DorefaQuantizer has no argument 'bits_wights'; did you mean 'bits_weights'?"),
        ("", "DorefaQuantizer quantizes nothing: it is given no bits for what there is"),
        (
            "    bits_weights: 4\n    bits_overrides: {fc2: {wts: 4}}\n",
            "quantizers.q.bits_overrides.fc2: 'fc2' matches",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(
    keys: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(quantizer(keys))


def test_one_parameter_of_two_modules_gets_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(6, 6), nn.Linear(6, 6)
            self.decoder.weight = self.encoder.weight

    monkeypatch.chdir(tmp_path)
    assert refused(quantizer("    bits_weights: 4\n    bits_overrides: {decoder: {wts: 8}}\n"), Tied()) == (
        "schedule.yaml:6:22: quantizers.q.bits_overrides.decoder: 'decoder.weight' gets 8 bits, "
        "and 'encoder.weight', which is the same parameter, gets 4 bits"
    )
    message = "'decoder.weight' gets no bits, and 'encoder.weight', which is the same parameter, gets 4 bits"
    assert message in refused(quantizer("    bits_weights: 4\n    bits_overrides: {decoder: {wts: null}}\n"), Tied())
    CompressionScheduler.from_yaml(write(quantizer("    bits_weights: 4\n")), Tied(), trace=Trace(level="error"))


# The trace


def test_the_trace_shows_the_bits_of_each_module_and_the_line_that_gave_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recorder = Recorder()
    keys = "    bits_weights: 4\n    bits_activations: 8\n    bits_overrides:\n      block1.conv*: {wts: 2}\n"
    keys += "      fc: {wts: null}\n"
    scheduler = CompressionScheduler.from_yaml(write(quantizer(keys)), QNet(), trace=Trace(logger=recorder))
    scheduler.on_epoch_begin(0)
    (line,) = recorder.events("modules quantized")
    assert line["bits"] == {
        "conv1": {"weights": 4, "activations": None, "bias": None, "by": "schedule.yaml:5:5"},
        "relu1": {"weights": None, "activations": 8, "bias": None, "by": "schedule.yaml:6:5"},
        "block1.conv1": {"weights": 2, "activations": None, "bias": None, "by": "schedule.yaml:8:7, block1.conv*"},
        "block1.relu": {"weights": None, "activations": 8, "bias": None, "by": "schedule.yaml:6:5"},
        "final_relu": {"weights": None, "activations": 8, "bias": None, "by": "schedule.yaml:6:5"},
    }
    assert (line["component"], line["plugin"], line["epoch"]) == ("DorefaQuantizer 'q'", "prunekit-dorefa-quantizer", 0)
