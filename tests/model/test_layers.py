"""The vocabulary of layers and activations: each in all its spellings, and each spelling in one place."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit.model import BATCH_NORM, CONVOLUTION, EMBEDDING, LINEAR, TRANSPOSED_CONVOLUTION, operation_of
from prunekit.model.layers import ACTIVATIONS, DROPOUT, MAX_POOL, OPERATIONS, QUANTIZABLE_ACTIVATIONS, SUM
from prunekit.model.tracing import Tracer, every_child, is_in_place, layers_of_torch, operation_at

RELU = ACTIVATIONS[0]


@pytest.mark.parametrize(
    ("what", "operation"),
    [
        (nn.Conv2d(1, 1, 1), CONVOLUTION),
        (nn.ConvTranspose1d(1, 1, 1), TRANSPOSED_CONVOLUTION),
        (nn.Linear(1, 1), LINEAR),
        (nn.Embedding(1, 1), EMBEDDING),
        (nn.BatchNorm3d(1), BATCH_NORM),
        (nn.SyncBatchNorm(1), BATCH_NORM),
        (nn.InstanceNorm1d(1), operation_of(nn.InstanceNorm3d(1))),
        (nn.MultiheadAttention(2, 1).out_proj, LINEAR),
        (nn.ReLU(), RELU),
        (torch.relu_, RELU),
        (functional.relu, RELU),
        ("relu_", RELU),
        (functional.dropout2d, DROPOUT),
        (functional.max_pool2d, MAX_POOL),
        ("add_", SUM),
        (nn.Softmax(), None),
        (functional.softmax, None),
        ("softmax", None),
        ([], None),
        (None, None),
    ],
)
def test_what_does_it_is_known_as_module_function_and_method(what: Any, operation: Any) -> None:
    assert operation_of(what) is operation


def test_a_class_of_ones_own_is_what_it_is_made_of() -> None:
    class Own(nn.ReLU6):
        pass

    assert operation_of(Own()) is operation_of(functional.relu6)
    assert operation_of(Own()) is not operation_of(nn.Hardtanh()), "although ReLU6 is a subclass of it"


def test_no_spelling_means_two_things() -> None:
    spellings = [(*one.modules, *one.functions, *one.methods) for one in OPERATIONS]
    every = list(chain(*spellings))
    assert len(every) == len(set(every))
    assert all(set(one.in_place) <= {*one.functions, *one.methods} for one in OPERATIONS)


def test_every_activation_of_torch_that_works_on_each_element_is_one() -> None:
    takes_more = {"Softmax", "Softmax2d", "Softmin", "LogSoftmax", "GLU", "MultiheadAttention"}
    known = {cls.__name__ for activation in ACTIVATIONS for cls in activation.modules}
    assert {*nn.modules.activation.__all__} - takes_more == known


@pytest.mark.parametrize("name", sorted({f.__name__ for one in ACTIVATIONS for f in one.functions}))
def test_every_activation_function_is_recognized_where_it_is_called(name: str) -> None:
    (operation,) = [one for one in ACTIVATIONS if name in one.function_names]
    more = {"threshold": (0.0, 1.0), "threshold_": (0.0, 1.0), "_threshold": (0.0, 1.0), "prelu": (torch.ones(1),)}
    for function in operation.functions:
        if function.__name__ == name:
            node = last_node(lambda x, function=function: function(x, *more.get(name, ())))
            assert operation_at(node, nn.Module()) is operation
            assert is_in_place(node, nn.Module()) == name.endswith("_")


def last_node(function: Any) -> Any:
    """What a forward pass that does one thing ends with."""

    class Does(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    *_, node, _ = Tracer(every_child).data_flow(Does()).nodes
    return node


def added_in_place(x: Any) -> Any:
    x += x
    return x


@pytest.mark.parametrize(
    ("function", "in_place"),
    [
        (lambda x: x + x, False),
        (lambda x: torch.add(x, x), False),
        (lambda x: x.add(x), False),
        (lambda x: x.add_(x), True),
        (added_in_place, True),
    ],
)
def test_every_sum_is_recognized_and_whether_it_is_in_place(function: Any, in_place: bool) -> None:
    node = last_node(function)
    assert (operation_at(node, nn.Module()) is SUM, is_in_place(node, nn.Module())) == (True, in_place)


def test_outputs_lie_along_dimension_1_of_a_transposed_convolution_and_of_an_embedding() -> None:
    layers = [nn.Conv1d(2, 3, 1), nn.ConvTranspose1d(2, 3, 1), nn.Linear(2, 3), nn.Embedding(2, 3)]
    assert [layer.weight.shape[operation_of(layer).output_axis] for layer in layers] == [3, 3, 3, 3]


def test_what_quantizers_round_are_relu_and_relu6_which_give_nothing_negative() -> None:
    assert [one.modules for one in QUANTIZABLE_ACTIVATIONS] == [(nn.ReLU,), (nn.ReLU6,)]
    x = torch.linspace(-9, 9, 37)
    for activation in ACTIVATIONS:
        if activation.not_negative:
            assert bool((activation.modules[0]()(x) >= 0).all())


def test_leaves_are_what_is_run_as_it_is() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(1, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    def modules_run(is_leaf: Any) -> list[str]:
        return [str(node.target) for node in Tracer(is_leaf).data_flow(Block()).nodes if node.op == "call_module"]

    assert modules_run(every_child) == ["inner"]
    assert modules_run(layers_of_torch) == ["inner.0", "inner.1"]
