"""Regions with nonlinear operators or products of run-time tensors inside: shown to be the same part by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.equivalence import Audit
from rewriter.equivalence.matching import orders
from test_equivalence.models import info, model
from test_equivalence.nets import Array, audited, by_name_only, chain

node = helper.make_node


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def l1(found: Audit) -> str:
    return " ".join(level.outcome for region in found.regions for level in region.levels if level.level == "L1")


VALUES = {"w": weights(6, 4, 3), "b": weights(6), "v": weights(6, 1, 5), "u": weights(5, 6, 1)}


def run_of_convs(activation: str = "Relu", **attributes: Any) -> onnx.ModelProto:
    """1-D: Conv → activation → depthwise Conv → Sigmoid → Conv."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["t"], pads=[1, 1]),
        node(activation, ["t"], ["r"], **attributes),
        node("Conv", ["r", "v"], ["s"], group=6, pads=[2, 2]),
        node("Sigmoid", ["s"], ["q"]),
        node("Conv", ["q", "u"], ["y"]),
    ]
    return chain(nodes, VALUES, ["n", 4, 13])


def in_two_dimensions(activations: Sequence[str] = ("Relu", "Sigmoid"), **changed: Array) -> onnx.ModelProto:
    """The same over [N, C, 1, L], all tensors between under new names."""
    values = {**VALUES, **changed}
    wide = {name: value if value.ndim == 1 else value[:, :, None] for name, value in values.items()}
    nodes = [
        node("Unsqueeze", ["x", "axes"], ["x2"]),
        node("Conv", ["x2", "w", "b"], ["t2"], pads=[0, 1, 0, 1]),
        node(activations[0], ["t2"], ["r2"]),
        node("Conv", ["r2", "v"], ["s2"], group=6, pads=[0, 2, 0, 2]),
        node(activations[1], ["s2"], ["q2"]),
        node("Conv", ["q2", "u"], ["y2"]),
        node("Squeeze", ["y2", "axes"], ["y"]),
    ]
    return chain(nodes, {**wide, "axes": ints(2)}, ["n", 4, 13])


def test_a_run_in_another_rank_is_shown_with_its_activations() -> None:
    found = audited(run_of_convs(), in_two_dimensions())
    assert (found.verdict, found.grade, l1(found)) == ("equivalent", "exact", "pass"), found.reason
    (region,) = found.regions
    assert region.before["Conv"] == 3


@pytest.mark.parametrize("name", ["w", "b", "v", "u"])
def test_a_weight_off_by_one_ulp_anywhere_is_not_shown(name: str) -> None:
    value = VALUES[name].copy()
    value.reshape(-1)[3] = np.nextafter(value.reshape(-1)[3], np.float32(9))
    changed: Any = {name: value}
    found = audited(run_of_convs(), in_two_dimensions(**changed))
    assert l1(found) != "pass"
    assert found.verdict != "equivalent", found.reason


@pytest.mark.parametrize("activations", [("Sigmoid", "Relu"), ("Relu", "Tanh"), ("Relu", "Relu"), ("Abs", "Sigmoid")])
def test_other_activations_are_different(activations: tuple[str, str]) -> None:
    assert audited(run_of_convs(), in_two_dimensions(activations)).verdict == "different"


def test_parameters_of_activations_count() -> None:
    found = audited(run_of_convs("LeakyRelu", alpha=0.2), in_two_dimensions(("LeakyRelu", "Sigmoid")))
    assert (found.verdict, l1(found)) == ("different", "not applicable")


@by_name_only()
def test_branches_in_another_order_find_their_partners() -> None:
    """Two activations of the same kind on two branches; after the rewrite the second comes first."""
    values = {"w": weights(4, 4, 3, 3, seed=1), "v": weights(4, 4, 3, 3, seed=2), "u": weights(3, 8, 1, 1)}

    def made(names: Sequence[str], order: Sequence[int]) -> onnx.ModelProto:
        a, b, c, d = names
        branches = [
            [node("Conv", ["x", "w"], [a], pads=[1] * 4), node("Relu", [a], [b])],
            [node("Conv", ["x", "v"], [c], pads=[1] * 4), node("Relu", [c], [d])],
        ]
        nodes = [entry for index in order for entry in branches[index]]
        nodes += [node("Concat", [b, d], [f"{a}both"], axis=1), node("Conv", [f"{a}both", "u"], ["y"])]
        return chain(nodes, values, [2, 4, 6, 7])

    found = audited(made("abcd", (0, 1)), made("efgh", (1, 0)))
    assert (found.verdict, l1(found)) == ("equivalent", "pass"), found.reason


def test_convolutions_of_tensors_of_different_widths_are_told_apart() -> None:
    """Their batch entries are differently far apart, which is no difference between the models."""
    inputs = [info("x", ["n", 4, 6, 7]), info("z", ["n", 6, 6, 7])]
    w, v = weights(4, 2, 3, 3), weights(4, 6, 3, 3)
    dense = np.zeros((4, 4, 3, 3), np.float32)
    dense[:2, :2], dense[2:, 2:] = w[:2], w[2:]

    def made(first: onnx.NodeProto, names: str, values: dict[str, Array]) -> onnx.ModelProto:
        second = node("Conv", ["z", "v"], [names[1]], pads=[1] * 4)
        nodes = [first, second, node("Add", list(names[:2]), ["y"])]
        return model(nodes, inputs, [info("y", ["n", 4, 6, 7])], {"v": v, **values})

    before = made(node("Conv", ["x", "w"], ["a"], group=2, pads=[1] * 4), "ab", {"w": w})
    after = made(node("Conv", ["x", "d"], ["e"], pads=[1] * 4), "ef", {"d": dense})
    found = audited(before, after)
    assert (found.verdict, found.grade, l1(found)) == ("equivalent", "finite", "pass"), found.reason
    dense[3, 3, 1, 1] *= 2
    wrong = audited(before, made(node("Conv", ["x", "d"], ["e"], pads=[1] * 4), "ef", {"d": dense}))
    assert (wrong.verdict, l1(wrong)) == ("different", "fail")


ORDER = np.random.default_rng(5).permutation(8)


def permuted(kinds: Sequence[str], order: Array, names: str, **changed: Array) -> onnx.ModelProto:
    """Depthwise conv with multiplier 2 → operators → pointwise conv; the channels between in another order."""
    values = {"d": weights(8, 1, 3, 3), "b": weights(8), "p": weights(5, 8, 1, 1), **changed}
    one = names[0]
    values = {"d": values["d"][order], "b": values["b"][order], "p": np.ascontiguousarray(values["p"][:, order])}
    read = np.arange(8) // 2  # the depthwise conv reads in any order only as a grouped conv that is dense
    dense = np.zeros((8, 4, 3, 3), np.float32)
    dense[np.arange(8), read[order]] = values["d"][:, 0]
    nodes = [node("Conv", ["x", "w", "b"], [f"{one}0"], pads=[1] * 4)]
    for number, kind in enumerate(kinds):
        attributes: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]} if kind.endswith("Pool") else {}
        nodes.append(node(kind, [f"{one}{number}"], [f"{one}{number + 1}"], **attributes))
    nodes.append(node("Conv", [f"{one}{len(kinds)}", "p"], ["y"]))
    return chain(nodes, {"w": dense, "b": values["b"], "p": values["p"]}, ["n", 4, 8, 10])


@pytest.mark.parametrize(
    "kinds", [["Relu"], ["HardSwish"], ["Sigmoid"], ["Relu", "MaxPool"], ["AveragePool", "Relu"], ["MaxPool"]]
)
def test_channels_in_another_order_behind_nonlinear_operators(kinds: Sequence[str]) -> None:
    found = audited(permuted(kinds, np.arange(8), "a"), permuted(kinds, ORDER, "b"))
    assert (found.verdict, l1(found)) == ("equivalent", "pass"), found.reason


@pytest.mark.parametrize("kinds", [["Relu"], ["MaxPool"]])
@pytest.mark.parametrize("name", ["d", "b", "p"])
def test_a_weight_changed_with_the_order_is_not_shown(kinds: Sequence[str], name: str) -> None:
    value = weights(*{"d": (8, 1, 3, 3), "b": (8,), "p": (5, 8, 1, 1)}[name])
    value.reshape(-1)[5] *= np.float32(1.0000002)
    changed: Any = {name: value}
    found = audited(permuted(kinds, np.arange(8), "a"), permuted(kinds, ORDER, "b", **changed))
    assert l1(found) != "pass"
    assert found.verdict != "equivalent"


def test_an_average_over_space_is_a_global_pool() -> None:
    before = chain(
        [node("Conv", ["x", "w"], ["t"]), node("ReduceMean", ["t"], ["y"], axes=[2, 3])],
        {"w": weights(5, 4, 1, 1)},
        ["n", 4, 6, 7],
    )
    after = chain(
        [node("Conv", ["x", "w"], ["u"]), node("GlobalAveragePool", ["u"], ["y"])],
        {"w": weights(5, 4, 1, 1)},
        ["n", 4, 6, 7],
    )
    found = audited(before, after)
    assert (found.verdict, l1(found)) == ("equivalent", "pass"), found.reason


def gelu(prefix: str, x: str, y: str) -> list[onnx.NodeProto]:
    """x · (1 + erf(x / √2)) / 2, as exporters write it."""
    return [
        node("Div", [x, "root"], [f"{prefix}d"]),
        node("Erf", [f"{prefix}d"], [f"{prefix}e"]),
        node("Add", [f"{prefix}e", "unit"], [f"{prefix}a"]),
        node("Mul", [x, f"{prefix}a"], [f"{prefix}m"]),
        node("Mul", [f"{prefix}m", "half"], [y]),
    ]


SCALARS = {name: np.asarray(value, np.float32) for name, value in (("root", 2**0.5), ("unit", 1.0), ("half", 0.5))}


def gated(rank: int, prefix: str, **changed: Array) -> onnx.ModelProto:
    """Conv → gelu → Conv → gated linear unit → Conv, over [N, C, L] or [N, C, 1, L]."""
    values = {"w": weights(6, 4, 3), "v": weights(8, 6, 1), "u": weights(5, 4, 3), **changed}
    wide = {name: value if rank == 1 else value[:, :, None] for name, value in values.items()}
    p = prefix
    nodes = [
        node("Conv", ["x" if rank == 1 else f"{p}x", "w"], [f"{p}t"]),
        *gelu(f"{p}g", f"{p}t", f"{p}r"),
        node("Conv", [f"{p}r", "v"], [f"{p}s"]),
        node("Split", [f"{p}s"], [f"{p}s0", f"{p}s1"], axis=1),
        node("Sigmoid", [f"{p}s1"], [f"{p}q"]),
        node("Mul", [f"{p}q", f"{p}s0"] if rank == 2 else [f"{p}s0", f"{p}q"], [f"{p}z"]),
        node("Conv", [f"{p}z", "u"], ["y" if rank == 1 else f"{p}y"]),
    ]
    if rank == 2:
        nodes = [node("Unsqueeze", ["x", "axes"], [f"{p}x"]), *nodes, node("Squeeze", [f"{p}y", "axes"], ["y"])]
        wide |= {"axes": ints(2)}
    return chain(nodes, {**wide, **SCALARS}, ["n", 4, 17])


def test_gelu_and_gates_inside_a_run() -> None:
    found = audited(gated(1, "a"), gated(2, "b"))
    assert (found.verdict, found.grade, l1(found)) == ("equivalent", "exact", "pass"), found.reason


@pytest.mark.parametrize("name", ["w", "v", "u"])
def test_a_weight_changed_around_gelu_and_gates_is_not_shown(name: str) -> None:
    value = {"w": weights(6, 4, 3), "v": weights(8, 6, 1), "u": weights(5, 4, 3)}[name]
    value.reshape(-1)[7] *= np.float32(1.0000002)
    changed: Any = {name: value}
    found = audited(gated(1, "a"), gated(2, "b", **changed))
    assert l1(found) != "pass"
    assert found.verdict != "equivalent"


# Products of two tensors: attention over a stack of feature maps


def stacked(wrong: str = "") -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Σ over a stack of two maps times their attention; the same as products that are added."""
    inputs = [info("p", ["n", 6, 5, 7]), info("q", ["n", 6, 5, 7]), info("a", ["n", 2, 6, 1, 1])]
    before = model(
        [
            node("Unsqueeze", ["p", "one"], ["p1"]),
            node("Unsqueeze", ["q", "one"], ["q1"]),
            node("Concat", ["p1", "q1"], ["stack"], axis=1),
            node("Mul", ["stack", "a"], ["weighted"]),
            node("ReduceSum", ["weighted", "one"], ["y"], keepdims=0),
        ],
        inputs,
        [info("y", ["n", 6, 5, 7])],
        {"one": ints(1)},
    )
    first, second = ("p", "q") if wrong != "swapped" else ("q", "p")
    products = [node("Mul", ["a0", first], ["pa"]), node("Mul", [second, "a1"], ["qa"])]
    if wrong == "twice":
        products[1].input[0] = first
    after = model(
        [
            node("Split", ["a"], ["s0", "s1"], axis=1),
            node("Squeeze", ["s0", "one"], ["a0"]),
            node("Squeeze", ["s1", "one"], ["a1"]),
            *products,
            node("Sub" if wrong == "subtracted" else "Add", ["qa", "pa"], ["y"]),
        ],
        inputs,
        [info("y", ["n", 6, 5, 7])],
        {"one": ints(1)},
    )
    return before, after


def test_attention_over_a_stack_as_a_sum_of_products() -> None:
    found = audited(*stacked())
    assert (found.verdict, l1(found)) == ("equivalent", "pass"), found.reason


@pytest.mark.parametrize("wrong", ["swapped", "twice", "subtracted"])
def test_other_products_are_different(wrong: str) -> None:
    found = audited(*stacked(wrong))
    assert (found.verdict, l1(found)) == ("different", "fail"), found.reason


def test_orders_begin_with_row_major_and_follow_moved_axes() -> None:
    x = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    assert next(orders((2, 3, 5, 7), (2, 3, 1, 35))).tolist() == list(range(210))
    folded = x.transpose(0, 2, 1, 3).reshape(10, 3, 7)
    assert any((folded.reshape(-1)[order] == x.reshape(-1)).all() for order in orders((2, 3, 5, 7), (10, 3, 7)))
    assert not list(orders((2, 3), (7,)))
