"""Where a model's activations are, modules and functions; what can't be traced, and what is put in their place."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import relu as rectified

from prunekit.quantization.catalog import INPUT, catalog
from prunekit.quantization.forward_passes import forward_passes


def found(model: nn.Module) -> dict[str, str]:
    """The activations of a model: name -> kind."""
    return {name: what.kind for name, what in catalog(model).quantizable.items() if what.activations}


class Of(nn.Module):
    """A model whose forward pass is one function of a linear layer's output."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(2, 2), function


def rectify(x: Tensor) -> Tensor:
    return torch.relu(x)


class ByFunction(Of):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.fc(x))


class ByImportedName(Of):
    def forward(self, x: Tensor) -> Tensor:
        return rectified(self.fc(x))


class ByMethodOfATensor(Of):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).relu()


class ByHelper(Of):
    def forward(self, x: Tensor) -> Tensor:
        return rectify(self.fc(x))


class ByOwnMethod(Of):
    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.fc(x))

    def activate(self, x: Tensor) -> Tensor:
        return functional.relu6(x)


class InAList(Of):
    def forward(self, x: Tensor) -> Tensor:
        return sum([functional.relu(self.fc(y)) for y in (x, x + 1)])


class InPlace(Of):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.fc(x))


class Inherited(ByFunction):
    pass


# What is found


@pytest.mark.parametrize(
    ("cls", "kinds"),
    [
        (ByFunction, {"relu": "relu"}),
        (ByImportedName, {"relu": "relu"}),
        (ByMethodOfATensor, {"relu": "relu"}),
        (ByHelper, {"relu": "relu"}),
        (ByOwnMethod, {"relu6": "relu6"}),
        (InAList, {"relu": "relu", "relu_1": "relu"}),
        (InPlace, {"relu_": "relu_"}),
        (Inherited, {"relu": "relu"}),
    ],
)
def test_functions_are_found_however_they_are_called(cls: type[Of], kinds: dict[str, str]) -> None:
    assert found(cls(None)) == kinds
    assert found(nn.Sequential(cls(None))) == {f"0.{name}": kind for name, kind in kinds.items()}
    assert catalog(cls(None)).untraceable == {}


def test_modules_are_found_with_what_of_them_can_be_quantized() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.ReLU6(), nn.Linear(2, 2), nn.Embedding(3, 2), nn.BatchNorm2d(2)
    )
    quantizable = catalog(model).quantizable
    told = {name: (what.kind, what.weights, what.activations, what.bias) for name, what in quantizable.items()}
    assert told == {
        INPUT: ("input", False, False, False),
        "0": ("Conv2d", True, False, False),
        "1": ("ReLU", False, True, False),
        "2": ("ReLU6", False, True, False),
        "3": ("Linear", True, False, True),
        "4": ("Embedding", True, False, False),
    }


def test_a_layer_of_ones_own_with_an_activation_in_it_is_both() -> None:
    class ConvRelu(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(super().forward(x))

    model = nn.Sequential(ConvRelu(1, 2, 3))
    assert found(model) == {"0.relu": "relu"}
    assert catalog(model).quantizable["0"].weights


def test_a_module_that_is_called_relu_is_no_function() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(x) if x.sum() > 0 else x  # torch.fx could not trace this

    model = catalog(Branches())
    assert (list(model.functions), model.untraceable) == ([], {})
    assert found(Branches()) == {"relu": "ReLU"}


def test_names_are_the_same_wrapped_and_compiled() -> None:
    plain = nn.Sequential(ByFunction(None), nn.ReLU())
    for wrapped in (nn.DataParallel(plain), torch.compile(plain, backend="eager")):
        everything = catalog(wrapped)
        names = [everything.unwrapped_names[name] for name, what in everything.quantizable.items() if what.activations]
        assert sorted(names) == ["0.relu", "1"]
        assert everything.modules[INPUT] is plain


# Sums


def sums(model: nn.Module) -> dict[str, str]:
    """What adds two tensors: name -> kind."""
    return {name: what.kind for name, what in catalog(model).quantizable.items() if what.adds}


class Residual(nn.Module):
    """What a residual block needs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.relu, self.bias = nn.ReLU(), nn.Parameter(torch.ones(2, 1, 1))


class Plus(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x) + x


class PlusInPlace(Residual):
    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        out += x
        return out


class ByTorchAdd(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.conv1(x), other=x)


class ByMethod(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x).add(x)


class ByMethodInPlace(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x).add_(x)


class ByHelperAdd(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.added(self.conv1(x), x)

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class WithAParameter(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class NoSums(Residual):
    """Constants, parameters alone, what is not used."""

    def forward(self, x: Tensor) -> Tensor:
        x = 1 + (x + 1)
        x.add_(self.conv1(x))
        return x * (self.bias + self.bias)


@pytest.mark.parametrize(
    ("cls", "kinds"),
    [
        (Plus, {"add": "add"}),
        (PlusInPlace, {"iadd": "iadd"}),
        (ByTorchAdd, {"add": "add"}),
        (ByMethod, {"add": "add"}),
        (ByMethodInPlace, {"add_": "add_"}),
        (ByHelperAdd, {"add": "add"}),
        (WithAParameter, {"add": "add"}),
        (NoSums, {}),
    ],
)
def test_sums_of_two_values_of_which_one_comes_from_the_data_are_found(cls: Any, kinds: dict[str, str]) -> None:
    assert sums(cls()) == kinds
    assert sums(nn.Sequential(cls())) == {f"0.{name}": kind for name, kind in kinds.items()}
    assert set(found(cls())) == {"relu"}, "a sum is no activation"
    assert (catalog(cls()).untraceable, catalog(cls()).untraceable_sums) == ({}, {})


def test_a_sum_is_replaced_for_all_that_follows_it_however_it_is_made() -> None:
    x = torch.randn(1, 2, 4, 4)
    for cls, name in ((Plus, "add"), (PlusInPlace, "iadd"), (ByMethodInPlace, "add_"), (ByTorchAdd, "add")):
        model = cls()
        expected = model(x) * 2
        assert torch.equal(changed(model, {name: lambda y: y * 2})(x), expected)


def test_what_a_layer_of_ones_own_gives_and_what_it_adds_inside_are_both_replaced() -> None:
    class WithAShortcut(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x) + x) * 10

    model = nn.Sequential(WithAShortcut(1, 1, bias=False))
    model[0].weight.data.fill_(1.0)
    assert changed(model, {"0.add": lambda y: y + 1, "0": lambda y: y + 0.5})(torch.tensor([[1.0]])).tolist() == [
        [30.5]
    ]


def test_wrappers_of_torch_are_not_run_to_look_for_sums() -> None:
    class Alone(nn.DataParallel):
        def forward(self, *inputs: Any, **kwargs: Any) -> Any:
            raise AssertionError("it was run")

    Alone.__module__ = "torch.nn.parallel.data_parallel"
    assert sums(Alone(Plus())) == {"module.add": "add"}
    assert catalog(Alone(Plus())).untraceable == {}


def test_what_is_not_a_floating_tensor_goes_on_as_it_is() -> None:
    class Counts(Residual):
        def forward(self, x: Tensor) -> Any:
            return x.size(0) + x.size(1), x.long() + x.long(), x + x

    names = dict.fromkeys(sums(Counts()), lambda y: y * 0)
    assert list(names) == ["add", "add_1", "add_2"]
    number, whole, floats = changed(Counts(), names)(torch.ones(3, 2))
    assert (number, int(whole.sum()), float(floats.sum())) == (5, 12, 0)


def test_in_place_operators_change_what_other_names_stand_for_in_a_traced_forward_pass_too() -> None:
    class Aliases(nn.Module):
        def forward(self, x: Tensor) -> Any:
            y, number = x * 1, x.size(0)
            z, before = y, number
            z += x
            z *= 2
            number += 1
            return torch.relu(y), before, number

    forward = changed(Aliases(), {"relu": lambda y: y})
    assert forward(torch.tensor([3.0]))[0].tolist() == [12]
    assert forward(torch.tensor([3.0]))[1:] == (1, 2)


def test_tracing_changes_nothing_in_the_model() -> None:
    class Remembers(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.before = 0, None
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen += 1
            self.before = x
            return x + self.seen

    model = Remembers()
    assert sums(model) == {"add": "add"}
    assert (model.calls, model.before, float(model.seen)) == (0, None, 0)


def test_a_sum_that_training_or_evaluation_alone_makes_is_none_and_activations_stay() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + x.detach() if self.training else x)

    assert (sums(Noisy()), found(Noisy())) == ({}, {"relu": "relu"})


def test_a_forward_pass_that_adds_and_can_not_be_traced_is_said_apart() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x if x.sum() > 0 else x

    everything = catalog(nn.Sequential(Asks()))
    assert everything.untraceable == {}
    assert list(everything.untraceable_sums) == ["0"]
    assert everything.untraceable_sums["0"].startswith("TraceError: symbolically traced variables")


# What a ReLU follows


def followed(model: nn.Module) -> set[str]:
    return {name for name, what in catalog(model).quantizable.items() if what.before_relu}


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(2, 2) for _ in range(5))
        self.relu, self.norm = nn.ReLU6(), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a(x))  # yes
        x = self.relu(self.norm(self.b(x)))  # something lies between
        y = self.c(x)
        x = self.relu(y) + y  # something else takes it too
        x = self.relu(self.d(x)) + self.d(x)  # the second time not
        return self.relu(x + self.relu(self.e(x)))  # yes, and the sum


def test_layers_and_sums_whose_output_a_relu_alone_takes_are_known() -> None:
    assert followed(Several()) == {"a", "e", "add_2"}
    sequence = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Dropout(), nn.ReLU(), nn.Linear(2, 2))
    assert followed(sequence) == {"0"}
    assert followed(nn.Sequential(sequence, nn.ReLU())) == {"0.0"}
    assert followed(nn.DataParallel(Several())) == {"module.a", "module.e", "module.add_2"}


# What can't be


class AsksForValues(Of):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if x.sum() > 0 else x


class ThrowsDice(Of):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x)) if random.random() < 2 else x


class MakesATensor(Of):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x)) * torch.tensor(2.0)


class DropsTheResult(Of):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        torch.relu_(x)
        return x


class OnlyInTraining(Of):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if self.training else x


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (AsksForValues, "TraceError: symbolically traced variables cannot be used as inputs to control flow"),
        (ThrowsDice, "RuntimeError: it draws random numbers that torch.fx would take for constants"),
        (MakesATensor, "RuntimeError: it makes a tensor that torch.fx would take for a constant"),
        (DropsTheResult, "RuntimeError: relu_ changes its input in place, and what it returns is not used"),
        (OnlyInTraining, "RuntimeError: it calls other activations in training than in evaluation"),
    ],
)
def test_what_can_not_be_traced_is_left_alone_and_said(cls: type[Of], reason: str) -> None:
    model, before = nn.Sequential(cls(None)), random.getstate()
    state, attributes = torch.get_rng_state(), set(vars(model[0]))
    everything = catalog(model)
    assert everything.untraceable == {"0": reason}
    assert found(model) == {}
    assert random.getstate() == before and torch.equal(torch.get_rng_state(), state)
    assert (set(vars(model[0])), model[0].training) == (attributes, True)


def test_a_layer_of_torch_that_hides_its_activation_is_said() -> None:
    layer = nn.TransformerEncoderLayer(4, 1, 8)
    assert catalog(nn.Sequential(layer)).untraceable == {"0": "TransformerEncoderLayer calls its activation inside"}


# What is put in their place


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(3, 3), nn.ReLU()

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        x = functional.relu(self.act(self.fc(x)) - 0.5)
        x = functional.dropout(x, 0.5, self.training)
        return torch.relu(x - 0.5)


def changed(model: nn.Module, replace: dict[str, Any]) -> Any:
    forwards = forward_passes(catalog(model), replace)
    outer = forwards.get(model, type(model).forward)
    for module, forward in forwards.items():
        if module is not model:
            module.__class__ = type("Changed", (type(module),), {"forward": forward})
    return lambda *args, **kwargs: outer(model, *args, **kwargs)


def test_each_activation_is_replaced_for_all_that_follows_it() -> None:
    model, x = Both().eval(), torch.tensor([[1.0, 2.0, 3.0]])
    with torch.no_grad():
        model.fc.weight.copy_(torch.eye(3)), model.fc.bias.zero_()
        assert model(x).tolist() == [[0, 1, 2]]
        assert changed(like(model), {"act": lambda y: y * 2})(x).tolist() == [[1, 3, 5]]
        assert changed(like(model), {"relu": lambda y: y * 2})(x).tolist() == [[0.5, 2.5, 4.5]]
        assert changed(like(model), {"relu_1": lambda y: y * 2})(x).tolist() == [[0, 2, 4]]
        assert changed(like(model), {INPUT: lambda y: y * 2})(x).tolist() == [[1, 3, 5]]
        everything = dict.fromkeys(["act", "relu", "relu_1", INPUT], lambda y: y * 2)
        assert changed(like(model), everything)(x).tolist() == [[13, 29, 45]]


def like(model: nn.Module) -> nn.Module:
    other = Both().eval()
    other.load_state_dict(model.state_dict())
    return other


def test_a_traced_forward_pass_still_knows_training_from_evaluation() -> None:
    model, x = Both(), torch.rand(40, 3) + 2
    forward = changed(model, {"relu": lambda y: y + 3})
    torch.manual_seed(0)
    assert (forward(x) == 0).any(), "dropped out"
    model.eval()
    assert torch.equal(forward(x), forward(x, twice=True))
    assert not (forward(x) == 0).any()


def test_inputs_of_whole_numbers_are_no_activations() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 2)

        def forward(self, words: Tensor, scale: Tensor) -> Tensor:
            return self.table(words) * scale

    model = Looks()
    got = changed(model, {INPUT: lambda y: y * 0 + 1})(torch.tensor([1]), scale=torch.tensor(7.0))
    assert torch.equal(got, model.table.weight[1:2])
