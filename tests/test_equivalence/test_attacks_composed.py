"""Attacks on the static proof: wrong rewrites that it took for right ones, and right ones that it refuted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.equivalence import Audit
from test_equivalence.models import info, model
from test_equivalence.nets import Array, audited, by_name_only, chain

node = helper.make_node


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def l1(found: Audit) -> str:
    return " ".join(level.outcome for region in found.regions for level in region.levels if level.level == "L1")


SIZE: Sequence[int | str] = ("n", 4, 6, 7)


def selecting(by_batch: bool, tail: str, shape: Sequence[int | str]) -> onnx.ModelProto:
    """Channels 0 … 3, or such that begin at 2·(n − 1), before a convolution; `tail` "between": of another one's output.

    At a batch of 1 both are the same.
    """
    values = {"w": weights(8, 4, 3, 3), "p": weights(5, 4, 1, 1), "four": ints(4), "zero": ints(0)}
    values |= {"one": ints(1), "two": ints(2), "axis": ints(1)}
    name = "a" if by_batch else "b"
    nodes = [node("Conv", ["x", "w"], [f"{name}t"], pads=[1] * 4)] if tail == "between" else []
    source = f"{name}t" if nodes else "x"
    if by_batch:
        nodes += [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "zero"], ["n"], axis=0),
            node("Sub", ["n", "one"], ["m"]),
            node("Mul", ["m", "two"], ["start"]),
            node("Add", ["start", "four"], ["end"]),
            node("Slice", [source, "start", "end", "axis"], ["chosen"]),
            node("Conv", ["chosen", "p"], ["y"]),
        ]
    else:
        nodes += [node("Slice", [source, "zero", "four", "axis"], ["first"]), node("Conv", ["first", "p"], ["y"])]
    return chain(nodes, values, shape)


@pytest.mark.parametrize(("tail", "shape"), [("", ["n", 8, 6, 7]), ("between", SIZE)])
def test_channels_that_depend_on_the_batch_are_looked_at_for_every_batch(tail: str, shape: Sequence[int | str]) -> None:
    found = audited(selecting(False, tail, shape), selecting(True, tail, shape))
    assert (found.verdict, l1(found)) == ("different", "fail"), found.reason


@pytest.mark.parametrize(("order", "outcome"), [((0, 1, 2), "pass"), ((0, 2, 1), "fail")])
def test_the_batch_of_one_of_two_tensors_in_another_order(order: tuple[int, ...], outcome: str) -> None:
    w = weights(5, 8, 3, 3)
    inputs, outputs = [info("x", [3, 4, 6, 7]), info("z", [3, 4, 6, 7])], [info("y", [3, 5, 6, 7])]
    joined = [node("Concat", ["x", "z"], ["c"], axis=1), node("Conv", ["c", "w"], ["y"], pads=[1] * 4)]
    parts = [
        node("Gather", ["x", "order"], ["g"], axis=0),
        node("Conv", ["g", "u"], ["a"], pads=[1] * 4),
        node("Conv", ["z", "v"], ["b"], pads=[1] * 4),
        node("Add", ["a", "b"], ["y"]),
    ]
    after = model(parts, inputs, outputs, {"u": w[:, :4], "v": w[:, 4:], "order": ints(*order)})
    found = audited(model(joined, inputs, outputs, {"w": w}), after)
    assert l1(found) == outcome
    assert found.verdict == ("equivalent" if outcome == "pass" else "different")


def fused(prefix: str, scale: float) -> onnx.ModelProto:
    """A FusedConv whose residual comes from a Relu that is paired last, if `prefix` is "b"."""
    p = prefix
    residual = [node("Conv", ["x", "u"], [f"{p}t"]), node("Relu", [f"{p}t"], [f"{p}r"])]
    other = [node("Conv", ["x", "v"], [f"{p}u"]), node("Relu", [f"{p}u"], [f"{p}s"])]
    whole = [node("FusedConv", ["x", "w", "", f"{p}r"], [f"{p}f"], domain="com.microsoft")]
    nodes = [*residual, *whole, *other] if p == "b" else [*other, *residual, *whole]
    values = {"w": weights(4, 4, 1, 1), "u": weights(4, 4, 1, 1, seed=1), "v": weights(4, 4, 1, 1, seed=2)}
    values["w"] = values["w"] * np.float32(scale)
    made = chain([*nodes, node("Sub", [f"{p}f", f"{p}s"], ["y"])], values, ["n", 4, 5, 5])
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return made


@pytest.mark.parametrize(("scale", "outcome"), [(1.0, "pass"), (0.5, "fail")])
@by_name_only()
def test_a_convolution_evaluated_twice_counts_once(scale: float, outcome: str) -> None:
    found = audited(fused("a", 1), fused("b", scale))
    assert l1(found) == outcome
    assert found.verdict == ("equivalent" if outcome == "pass" else "different")


def test_infinity_times_zero_between_convolutions_is_no_zero() -> None:
    w, p = weights(2, 1, 3, 3), np.asarray([1, 0], np.float32).reshape(1, 2, 1, 1)
    kept = np.concatenate([w[:1], np.zeros((1, 1, 3, 3), np.float32)], axis=1)
    w[1] = np.inf
    pair = [node("Conv", ["x", "w"], ["t"], group=2), node("Conv", ["t", "p"], ["y"])]
    before = chain(pair, {"w": w, "p": p}, ["n", 2, 6, 7])
    found = audited(before, chain([node("Conv", ["x", "w"], ["y"])], {"w": kept}, ["n", 2, 6, 7]))
    assert l1(found) == "not applicable"
    assert found.verdict != "equivalent"


@by_name_only()
def test_averages_of_operator_sets_that_divide_differently_are_not_taken_for_each_other() -> None:
    def made(prefix: str, opset: int) -> onnx.ModelProto:
        pooled = node(
            "AveragePool",
            [f"{prefix}t"],
            [f"{prefix}r"],
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[1] * 4,
            ceil_mode=1,
        )
        nodes = [node("Conv", ["x", "w"], [f"{prefix}t"]), pooled, node("Conv", [f"{prefix}r", "u"], ["y"])]
        return chain(nodes, {"w": weights(4, 4, 1, 1), "u": weights(3, 4, 1, 1)}, ["n", 4, 7, 7], opset)

    assert l1(audited(made("a", 18), made("b", 18))) == "pass"
    assert l1(audited(made("a", 18), made("b", 19))) == "not applicable"


# Right rewrites


def cropped(first: bool) -> onnx.ModelProto:
    values = {"w": weights(5, 4, 1, 1), "start": ints(1, 1), "end": ints(5, 6), "axes": ints(2, 3)}
    if first:
        nodes = [node("Slice", ["x", "start", "end", "axes"], ["c"]), node("Conv", ["c", "w"], ["y"])]
    else:
        nodes = [node("Conv", ["x", "w"], ["d"]), node("Slice", ["d", "start", "end", "axes"], ["y"])]
    return chain(nodes, values, SIZE)


@pytest.mark.parametrize("first", [True, False])
def test_a_pointwise_convolution_may_change_places_with_a_crop(first: bool) -> None:
    found = audited(cropped(first), cropped(not first))
    assert (found.verdict, found.grade, l1(found)) == ("equivalent", "exact", "pass"), found.reason


def test_a_power_of_two_before_a_convolution_may_go_into_its_weights() -> None:
    w = weights(5, 4, 3, 3)
    scaled = [node("Mul", ["x", "two"], ["m"]), node("Conv", ["m", "w"], ["y"])]
    before = chain(scaled, {"w": w, "two": np.asarray([2], np.float32)}, SIZE)
    found = audited(before, chain([node("Conv", ["x", "w"], ["y"])], {"w": w * 2}, SIZE))
    assert (found.verdict, l1(found)) == ("equivalent", "pass"), found.reason


def test_a_kernel_taken_apart_into_shifted_ones_is_not_refuted() -> None:
    w = weights(5, 4, 3)
    nodes: list[onnx.NodeProto] = []
    values = {f"w{i}": np.ascontiguousarray(w[:, :, i : i + 1]) for i in range(3)}
    values |= {"axis": ints(2), **{f"s{i}": ints(i) for i in range(3)}, **{f"e{i}": ints(7 + i) for i in range(3)}}
    for i in range(3):
        nodes += [
            node("Conv", ["x", f"w{i}"], [f"c{i}"]),
            node("Slice", [f"c{i}", f"s{i}", f"e{i}", "axis"], [f"d{i}"]),
        ]
    after = chain([*nodes, node("Sum", ["d0", "d1", "d2"], ["y"])], values, ["n", 4, 9])
    found = audited(chain([node("Conv", ["x", "w"], ["y"])], {"w": w}, ["n", 4, 9]), after)
    assert (found.verdict, l1(found)) == ("equivalent", "not applicable"), found.reason


@pytest.mark.parametrize("wrong", [False, True])
def test_a_shortcut_may_go_into_the_weights(wrong: bool) -> None:
    w = weights(4, 4, 3, 3)
    whole = w.copy()
    whole[range(4), range(4), 1, 1] += 1
    whole[1, 2, 0, 0] *= 1.01 if wrong else 1
    around = [node("Conv", ["x", "w"], ["c"], pads=[1] * 4), node("Add", ["x", "c"], ["y"])]
    before = chain(around, {"w": w}, SIZE)
    found = audited(before, chain([node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], {"w": whole}, SIZE))
    assert l1(found) == "not applicable"
    assert (found.verdict == "different") == wrong, found.reason


def test_a_mean_without_a_partner_is_a_sum() -> None:
    before = chain([node("ReduceMean", ["x"], ["y"], axes=[2, 3])], {"k": weights(1)}, SIZE)
    nodes = [node("ReduceSum", ["x", "axes"], ["s"]), node("Mul", ["s", "k"], ["y"])]
    after = chain(nodes, {"k": np.asarray([1 / 42], np.float32), "axes": ints(2, 3)}, SIZE)
    assert l1(audited(before, after)) == "pass"


@pytest.mark.parametrize(("kind", "outcome"), [("Relu", "pass"), ("Softmax", "pass")])
@by_name_only()
def test_long_chains_behind_an_operator(kind: str, outcome: str) -> None:
    def made(prefix: str) -> onnx.ModelProto:
        p, length = prefix, 1200
        nodes = [node("Conv", ["x", "w"], [f"{p}t"]), node(kind, [f"{p}t"], [f"{p}0"])]
        nodes += [node("Identity", [f"{p}{i}"], [f"{p}{i + 1}"]) for i in range(length)]
        nodes += [node("Conv", [f"{p}{length}", "u"], ["y"])]
        return chain(nodes, {"w": weights(4, 4, 1, 1), "u": weights(3, 4, 1, 1)}, ["n", 4, 3, 3])

    assert l1(audited(made("a"), made("b"))) == outcome


def test_sums_of_products_are_never_called_exact() -> None:
    rng = np.random.default_rng(0)
    w, p = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((6, 4, 3, 3), (5, 6, 1, 1)))
    pair = [node("Conv", ["x", "w"], ["t"]), node("Conv", ["t", "p"], ["y"])]
    whole = np.einsum("mc,cuij->muij", p[..., 0, 0], w)
    found = audited(chain(pair, {"w": w, "p": p}, SIZE), chain([node("Conv", ["x", "w"], ["y"])], {"w": whole}, SIZE))
    assert (found.verdict, found.grade, l1(found)) == ("equivalent", "rounding", "pass"), found.reason


def padded(how: str) -> onnx.ModelProto:
    values = {"w": weights(5, 4, 1, 1), "p": ints(0, 0, 1, 1, 0, 0, 1, 1)}
    nodes = {
        "before": [node("Pad", ["x", "p"], ["q"]), node("Conv", ["q", "w"], ["y"])],
        "within": [node("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
        "behind": [node("Conv", ["x", "w"], ["t"]), node("Pad", ["t", "p"], ["y"])],
    }[how]
    return chain(nodes, values, SIZE)


@pytest.mark.parametrize(
    ("first", "second"), [("before", "behind"), ("behind", "before"), ("within", "behind"), ("before", "within")]
)
def test_zeros_around_a_pointwise_convolution_may_be_put_before_or_behind_it(first: str, second: str) -> None:
    found = audited(padded(first), padded(second))
    assert found.verdict == "equivalent", found.reason
    assert l1(found) != "fail"


def test_a_shortcut_may_go_partly_into_the_weights() -> None:
    w = weights(4, 4, 3, 3)
    less = w.copy()
    less[range(4), range(4), 1, 1] -= 1
    around = [node("Conv", ["x", "w"], ["c"], pads=[1] * 4), node("Add", ["x", "c"], ["y"])]
    twice = [
        node("Conv", ["x", "w"], ["d"], pads=[1] * 4),
        node("Mul", ["x", "two"], ["m"]),
        node("Add", ["m", "d"], ["y"]),
    ]
    after = chain(twice, {"w": less, "two": np.asarray(2, np.float32)}, SIZE)
    found = audited(chain(around, {"w": w}, SIZE), after)
    assert l1(found) == "not applicable"
    assert found.verdict != "different", found.reason


def test_a_tap_of_zero_may_go_where_the_input_is_cropped_instead() -> None:
    one = weights(3, 4, 1)
    two = np.concatenate([np.zeros((3, 4, 1), np.float32), one], axis=2)
    values = {"w": two, "zero": ints(0), "one": ints(1), "seven": ints(7), "eight": ints(8), "nine": ints(9)}
    values |= {"axis": ints(2)}
    first = [node("Slice", ["x", "zero", "eight", "axis"], ["c"]), node("Conv", ["c", "w"], ["y"])]
    second = [
        node("Slice", ["x", "one", "nine", "axis"], ["d"]),
        node("Conv", ["d", "w"], ["f"]),
        node("Slice", ["f", "zero", "seven", "axis"], ["y"]),
    ]
    found = audited(chain(first, values, ["n", 4, 9]), chain(second, {**values, "w": one}, ["n", 4, 9]))
    assert l1(found) == "not applicable"
    assert found.verdict == "equivalent", found.reason
