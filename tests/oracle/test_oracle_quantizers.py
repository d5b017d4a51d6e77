"""Reference numbers of quantizers: functions, networks that train four steps, scales, overrides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle_models import QNet
from oracle_replay import CASES, SILENT, arrays, assert_same, model_of, named, parts, schedule_of
from prunekit_dorefa_quantizer import DorefaQuantizer
from prunekit_pact_quantizer import PACTQuantizer
from prunekit_range_linear_quantizer import QuantAwareTrainRangeLinearQuantizer, linear
from prunekit_wrpn_quantizer import WRPNQuantizer
from torch import Tensor, nn

from prunekit import CompressionScheduler, Progress, ScheduleError, Window
from prunekit.components import Context
from prunekit.quantization import BitsQuantizer

NETS = [name for name in named("quantizer") if CASES[name]["yaml"]]
WRPN = ["net_wrpn_w4a8", "net_wrpn_w2a4_overrides"]
FUNCTIONS = arrays("quant_param_functions")
BITS = (1, 2, 3, 4, 8)


def context(bits: int) -> Context:
    """What a quantizer may know of a weight and an activation that are both called a."""
    return Context(nn.Module(), {}, Progress(0), Window(0, 1), {"a": bits}, {}, activations={"a": bits})


def weights_of(quantizer: BitsQuantizer, bits: int, weight: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Quantized values, and the gradient that reaches the float weight."""
    weight = weight.clone().requires_grad_()
    values = quantizer.quantize("a", weight, context(bits))
    values.backward(upstream)
    assert weight.grad is not None
    return values.detach(), weight.grad


# Functions


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("quantizer", [DorefaQuantizer(), PACTQuantizer()], ids=lambda q: type(q).__name__)
def test_weights_and_their_gradients_are_those_of_the_reference(quantizer: BitsQuantizer, bits: int) -> None:
    values, gradient = weights_of(quantizer, bits, FUNCTIONS["w"], FUNCTIONS["upstream"])
    assert_same(values, FUNCTIONS[f"dorefa_w/{bits}"], "values")
    assert_same(gradient, FUNCTIONS[f"dorefa_g/{bits}"], "gradient")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("quantizer", [DorefaQuantizer(), WRPNQuantizer()], ids=lambda q: type(q).__name__)
def test_clipped_activations_and_their_gradients_are_those_of_the_reference(
    quantizer: BitsQuantizer, bits: int
) -> None:
    given = FUNCTIONS["x"].clone().requires_grad_()
    values = quantizer.quantize_activation("a", given.relu(), context(bits))
    values.backward(FUNCTIONS["upstream_x"])
    assert_same(values.detach(), FUNCTIONS[f"clipped_act/{bits}"], "values")
    assert_same(given.grad, FUNCTIONS[f"clipped_act_g/{bits}"], "gradient")


@pytest.mark.parametrize("bits", BITS)
def test_activations_clipped_at_alpha_and_its_gradient_are_those_of_the_reference(bits: int) -> None:
    given, quantizer = FUNCTIONS["x"].clone().requires_grad_(), PACTQuantizer(act_clip_init_val=0.9)
    (clip,) = quantizer.parameter_group(["a"], torch.device("cpu"))["params"]
    values = quantizer.quantize_activation("a", given.relu(), context(bits))
    values.backward(FUNCTIONS["upstream_x"])
    assert_same(values.detach(), FUNCTIONS[f"pact_act/{bits}"], "values")
    assert_same(given.grad, FUNCTIONS[f"pact_act_g/{bits}"], "gradient")
    assert_same(clip.grad, FUNCTIONS[f"pact_alpha_g/{bits}"], "gradient of alpha")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_wrpn_has_the_levels_of_the_paper_and_the_gradient_of_the_reference(bits: int) -> None:
    values, gradient = weights_of(WRPNQuantizer(), bits, FUNCTIONS["w"], FUNCTIONS["upstream"])
    steps = 2 ** (bits - 1) - 1
    assert_same(values, (FUNCTIONS["w"].clamp(-1, 1) * steps).round() / steps, "values")
    assert values.abs().max() <= 1
    assert len(values.unique()) <= 2**bits - 1
    assert FUNCTIONS[f"wrpn_w/{bits}"].abs().max() > 1, "the reference goes beyond the range it clips to"
    assert_same(gradient, FUNCTIONS[f"wrpn_g/{bits}"], "gradient")


@pytest.mark.parametrize("key", parts("qat_range_linear_weights", "direct_w/"))
def test_range_linear_weights_honour_the_mode(key: str) -> None:
    mode, range_of, bits = key.split("/")
    quantizer = QuantAwareTrainRangeLinearQuantizer(mode=mode, per_channel_wts=range_of == "perch")  # type: ignore[arg-type]
    data = arrays("qat_range_linear_weights")
    values = quantizer.quantize("a", data["w"], context(int(bits)))
    assert torch.equal(values, data[f"direct_w/{key}"])
    unsigned = data[f"direct_w/ASYMMETRIC_UNSIGNED/{range_of}/{bits}"]
    assert torch.equal(data[f"qat_w/{key}"], unsigned), "what the reference makes of every mode"
    assert torch.equal(values, unsigned) == (mode in ("ASYMMETRIC_UNSIGNED", "ASYMMETRIC_SIGNED"))


def test_scale_and_zero_point_of_an_asymmetric_range() -> None:
    for bits, low, high, signed, scale, zero_point in arrays("linear_quant_params")["asymmetric"].tolist():
        mode = "ASYMMETRIC_SIGNED" if signed else "ASYMMETRIC_UNSIGNED"
        numbers = linear(mode, int(bits), torch.tensor(low), torch.tensor(high))
        torch.testing.assert_close((numbers.scale.item(), numbers.zero_point.item()), (scale, zero_point))


def test_scale_of_a_symmetric_range() -> None:
    for bits, saturation, restricted, scale, zero_point in arrays("linear_quant_params")["symmetric"].tolist():
        mode = "SYMMETRIC_RESTRICTED" if restricted else "SYMMETRIC"
        numbers = linear(mode, int(bits), torch.tensor(-saturation), torch.tensor(saturation / 2))
        torch.testing.assert_close((numbers.scale.item(), numbers.zero_point.item()), (scale, zero_point))


# Networks


class Net:
    """The recorded steps: SGD on one batch, with all that the reference wrote down."""

    def __init__(self, name: str) -> None:
        self.data, self.model = arrays(name), model_of(name)
        settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
        self.floats = dict(self.model.named_parameters())
        self.optimizer = torch.optim.SGD(self.floats.values(), **settings)
        self.scheduler = CompressionScheduler(schedule_of(name), self.model, self.optimizer, trace=SILENT)
        (self.policy,) = self.scheduler.policies
        self.names = [key.removeprefix("param/") for key in self.data if key.startswith("param/")]

    def parameter(self, recorded: str) -> Tensor:
        """A parameter by the reference's name of it; a clipping value is the quantizer's own."""
        name = recorded.replace(".float_", ".")
        if name.endswith(".clip_val"):
            clip: Tensor = self.policy.component._clips[name.removesuffix(".clip_val")]
            return clip
        return self.floats[name]

    def steps(self, number: int) -> Any:
        """Step for step: what came out, and the loss, before the optimizer steps."""
        self.model.train()
        self.scheduler.on_epoch_begin(0)
        for step in range(number):
            self.scheduler.on_minibatch_begin(0, step, number)
            out = self.model(self.data["x"])
            loss = nn.functional.cross_entropy(out, self.data["y"])
            self.optimizer.zero_grad()
            loss.backward()
            yield step, out.detach(), loss.item()
            self.optimizer.step()
            self.scheduler.on_minibatch_end(0, step, number)
        self.scheduler.on_epoch_end(0)

    def read(self, name: str) -> Tensor:
        """A weight as the forward pass sees it."""
        owner, _, attribute = name.rpartition(".")
        value: Tensor = getattr(self.model.get_submodule(owner), attribute)
        return value.detach()


def close(got: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("name", NETS)
def test_a_network_trains_as_the_reference_does(name: str) -> None:
    net, number = Net(name), CASES[name]["steps"]
    for step, out, loss in net.steps(number):
        close(out, net.data["out"][step], f"out of step {step}")
        assert loss == pytest.approx(net.data["loss"][step].item(), rel=1e-4)
        for recorded in net.names:
            close(net.parameter(recorded).grad, net.data[f"grad/{recorded}"][step], f"gradient of {recorded}, {step}")
        for key in parts(name, "q/"):
            close(net.read(key), net.data[f"q/{key}"][step], f"quantized {key}, {step}")
        if step:
            for recorded in net.names:
                close(net.parameter(recorded).detach(), net.data[f"param/{recorded}"][step - 1], f"{recorded}, {step}")
    for recorded in net.names:
        close(net.parameter(recorded).detach(), net.data[f"param/{recorded}"][-1], recorded)
    net.model.eval()
    close(net.model(net.data["x"]).detach(), net.data["eval_out"], "out in evaluation")


@pytest.mark.parametrize("name", NETS)
def test_the_optimizer_has_the_groups_of_the_reference(name: str) -> None:
    net = Net(name)
    groups = [[["weight_decay", g["weight_decay"]], ["n_params", len(g["params"])]] for g in net.optimizer.param_groups]
    assert groups == CASES[name]["param_groups"]


@pytest.mark.parametrize("name", WRPN)
def test_a_network_under_wrpn_has_the_weights_of_the_paper(name: str) -> None:
    net = Net(name)
    bits = dict(net.policy.settings)
    assert set(bits) == set(parts(name, "q/")), "the reference quantizes the same weights"
    for _, out, _ in net.steps(2):
        for key, number in bits.items():
            steps = 2 ** (number - 1) - 1
            assert_same(net.read(key), (net.floats[key].detach().clamp(-1, 1) * steps).round() / steps, key)
        assert out.min() == 0 and out.max() <= 1
        levels = out * (2 ** net.policy.activations["final_relu"] - 1)
        assert_same(levels, levels.round(), "activations")


def test_one_bit_of_wrpn_is_refused() -> None:
    with pytest.raises(ScheduleError, match="must be 2 or more: of one bit the sign leaves none"):
        Net("net_wrpn_w1a2")


# Overrides


@pytest.mark.parametrize("pattern", CASES["overrides_matching"]["matches"])
def test_an_override_reaches_what_it_reaches_in_the_reference_and_more_as_a_glob(pattern: str) -> None:
    recorded = CASES["overrides_matching"]["matches"][pattern]
    expected = {name: bits for name, bits in recorded.items() if name != "block1"}  # a container has no bits
    if pattern == "block1.conv*":
        expected = {"block1.conv1": [None, 2]}
    if pattern == "conv*":
        expected = {"conv1": [None, 2]}
    overrides = {pattern: {"acts": None, "wts": 2}}
    schedule = {
        "quantizers": {"q": {"class": "DorefaQuantizer", "bits_activations": 8, "bits_overrides": overrides}},
        "policies": [{"quantizer": {"instance_name": "q"}, "epochs": [0]}],
    }
    if not any(bits[1] for bits in expected.values()):
        with pytest.raises(ScheduleError, match=r"matches no module|has no weights"):
            CompressionScheduler.from_dict(schedule, QNet(), trace=SILENT)
        return
    (policy,) = CompressionScheduler.from_dict(schedule, QNet(), trace=SILENT).policies
    got = {name: bits["weights"] for name, bits in policy.bits.items() if bits["by"].endswith(pattern)}
    assert got == {name: bits[1] for name, bits in expected.items() if bits[1]}
    left_alone = {"relu1", "block1.relu", "final_relu"} - set(policy.activations)
    assert left_alone == {name for name in expected if "relu" in name}
