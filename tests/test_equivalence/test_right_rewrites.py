"""Right rewrites: none may be rejected, and each gets the grade it deserves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from models.errors import ModelError
from models.grouped import GroupedConv, grouped_conv_model
from rewriter.session import Runtime
from test_equivalence import rewrites as rw
from test_equivalence.nets import Array, audited, chain, net


def _specs() -> Iterator[GroupedConv]:
    """Every spelling of the two forms with every other, once; sizes vary along."""
    kernels = [((3, 3), (6, 7)), ((3,), (9,)), ((2, 1, 3), (4, 3, 5)), ((1, 1), (4, 4)), ((5, 5), (5, 8))]
    spellings = product(("nchw", "nhwc"), ("contiguous", "interleaved"), ("static", "dynamic_batch", "dynamic"))
    for number, (layout, order, shapes) in enumerate(spellings):
        for turn, bias in enumerate(("none", "conv", "before", "after")):
            kernel, spatial = kernels[(number + turn) % len(kernels)]
            if shapes == "dynamic" and len(kernel) == 3:  # three free axes would be bound to 67 × 71 × 73
                kernel, spatial = kernels[0]
            yield GroupedConv(
                "depthwise_sum",
                groups=(2, 3, 4)[(number + turn) % 3],
                in_per_group=1 + (number + 2 * turn) % 4,
                out_per_group=1 + (2 * number + turn) % 3,
                kernel=kernel,
                spatial=spatial,
                layout=layout,  # type: ignore[arg-type]
                order=order,  # type: ignore[arg-type]
                shapes=shapes,  # type: ignore[arg-type]
                bias=bias,  # type: ignore[arg-type]
                reduce=("ReduceSum", "ReduceMean")[(number + turn) % 2],
                keepdims=bool(turn % 2),
                seed=number,
                opset=(17, 11, 13)[turn % 3],
            )


@pytest.mark.parametrize(
    "spec", list(_specs()), ids=lambda spec: f"{spec.layout}-{spec.order}-{spec.shapes}-{spec.bias}"
)
def test_grouped_and_depthwise_sum_are_the_same(spec: GroupedConv) -> None:
    wide, grouped = grouped_conv_model(spec), grouped_conv_model(replace(spec, form="grouped"))
    for before, after in ((wide, grouped), (grouped, wide)):
        result = audited(before, after)
        assert result.verdict == "equivalent", result.reason
        assert len(result.regions) == 1
        combined = spec.reduce == "ReduceMean" or (spec.bias in ("conv", "before") and spec.in_per_group > 1)
        assert result.grade in ("exact", "rounding")
        assert combined or result.grade == "exact"
        assert result.regions[0].level("L1").outcome == "pass"  # type: ignore[union-attr]


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_convolutions_in_two_spellings(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    small = st.integers(1, 3)
    axes = st.tuples(*[small] * rank)
    auto = data.draw(st.sampled_from(("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")))
    pads = data.draw(st.tuples(*[st.integers(0, 2)] * (2 * rank))) if auto == "NOTSET" else ()
    try:
        spec = GroupedConv(
            "grouped",
            groups=data.draw(small),
            in_per_group=data.draw(small),
            out_per_group=data.draw(small),
            kernel=data.draw(axes),
            spatial=tuple(size + 4 for size in data.draw(axes)),
            strides=data.draw(axes),
            dilations=data.draw(axes) if not auto.startswith("SAME") else (),
            pads=pads,
            auto_pad=auto,  # type: ignore[arg-type]
            bias=data.draw(st.sampled_from(("none", "conv", "after"))),
            weights=data.draw(st.sampled_from(("initializer", "constant", "identity", "cast", "shared"))),
            dtype=data.draw(st.sampled_from(("float32", "float16"))),
            seed=data.draw(st.integers(0, 99)),
        )
    except ModelError:
        return
    before, after = grouped_conv_model(spec), grouped_conv_model(replace(spec, form="depthwise_sum"))
    result = audited(before, after)
    assert result.verdict == "equivalent", (spec, result.reason)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_regrouped_split_and_summed(seed: int, groups: int) -> None:
    """A third of them start where another ends: depthwise-sum ↔ regrouped ↔ dense ↔ split."""
    before = net(groups=8, inputs=2, outputs=1 + seed % 3, seed=seed, bias=seed % 2 == 0, strides=[1 + seed % 2] * 2)
    spatial = (6, 7) if seed % 2 == 0 else (3, 4)
    regrouped = rw.regrouped(before, "t", groups)
    others = [before, rw.split_concat(before, "t"), rw.depthwise_summed(before, "t", (2, 8 * (1 + seed % 3), *spatial))]
    other = others[seed % 3]
    for old, new in ((other, regrouped), (regrouped, other)):
        result = audited(old, new)
        assert (result.verdict, result.grade) == ("equivalent", "finite"), result.reason
        assert {level.outcome for level in result.regions[0].levels} == {"pass"}


def _two(
    before: list[onnx.NodeProto], after: list[onnx.NodeProto], weights: dict[str, Array], x: tuple[int | str, ...]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Two models of the given nodes, each with those of the weights that it reads and does not make."""

    def model(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        read = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
        return chain(nodes, {name: value for name, value in weights.items() if name in read}, x)

    return model(before), model(after)


def _random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def test_nhwc_between_transposes() -> None:
    weights = {"w": _random(6, 2, 3, 3), "b": _random(6), "bn": _random(6, seed=1)[:6]}
    weights["bn"] = weights["b"]
    before = [
        helper.make_node("Transpose", ["x"], ["c"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["c", "w"], ["d"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["d"], ["e"], perm=[0, 2, 3, 1]),
        helper.make_node("Add", ["e", "bn"], ["y"]),
    ]
    after = [
        helper.make_node("Transpose", ["x"], ["c2"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["c2", "w", "b"], ["d2"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["d2"], ["y"], perm=[0, 2, 3, 1]),
    ]
    result = audited(*_two(before, after, weights, ("N", 5, 6, 4)))
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_padding_taken_into_the_convolution() -> None:
    weights = {"w": _random(4, 3, 3, 3)}
    pads = onnx.numpy_helper.from_array(np.asarray([0, 0, 1, 2, 0, 0, 1, 0], np.int64), "pads")
    before = [
        helper.make_node("Constant", [], ["pads"], value=pads),
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["y"]),
    ]
    after = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 2, 1, 0])]
    result = audited(*_two(before, after, weights, (2, 3, 5, 6)))
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_pointwise_kernel_with_a_border_of_zeros() -> None:
    small = _random(4, 3, 1, 1)
    weights = {"w": small, "wide": np.pad(small, [(0, 0), (0, 0), (1, 1), (1, 1)])}
    before = [helper.make_node("Conv", ["x", "w"], ["y"])]
    after = [helper.make_node("Conv", ["x", "wide"], ["y"], pads=[1, 1, 1, 1])]
    result = audited(*_two(before, after, weights, (2, 3, 5, 6)))
    assert (result.verdict, result.grade) == ("equivalent", "finite"), result.reason


def test_stride_as_a_slice() -> None:
    weights: dict[str, Array] = {"w": _random(4, 3, 3, 3)}
    constants = {"lo": [0, 0], "hi": [99, 99], "axes": [2, 3], "steps": [2, 2]}
    before = [
        *(
            helper.make_node("Constant", [], [n], value=onnx.numpy_helper.from_array(np.asarray(v, np.int64), n))
            for n, v in constants.items()
        ),
        helper.make_node("Conv", ["x", "w"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Slice", ["d", "lo", "hi", "axes", "steps"], ["y"]),
    ]
    after = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2])]
    result = audited(*_two(before, after, weights, (2, 3, 7, 6)))
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_a_convolution_turned_in_space_is_the_same() -> None:
    """Axes are known by what they read, not by their place."""
    weights = {"w": _random(4, 3, 3, 2), "wt": _random(4, 3, 3, 2).swapaxes(2, 3).copy()}
    before = [helper.make_node("Conv", ["x", "w"], ["y"])]
    after = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 1, 3, 2]),
        helper.make_node("Conv", ["a", "wt"], ["b"]),
        helper.make_node("Transpose", ["b"], ["y"], perm=[0, 1, 3, 2]),
    ]
    result = audited(*_two(before, after, weights, (2, 3, 5, 6)))
    assert [level.outcome for level in result.regions[0].levels] == ["pass", "pass", "pass"]
    assert (result.verdict, result.grade) == ("equivalent", "exact")


def test_a_scale_before_the_convolution_is_part_of_its_weights() -> None:
    w, s = _random(4, 3, 3, 3), _random(3)
    weights = {"w": w, "s": s.reshape(1, 3, 1, 1), "ws": w * s.reshape(1, 3, 1, 1)}
    before = [helper.make_node("Mul", ["x", "s"], ["a"]), helper.make_node("Conv", ["a", "w"], ["y"])]
    after = [helper.make_node("Conv", ["x", "ws"], ["y"])]
    result = audited(*_two(before, after, weights, (2, 3, 5, 6)))
    assert result.regions[0].level("L1").outcome == "pass"  # type: ignore[union-attr]
    assert (result.verdict, result.grade) == ("equivalent", "rounding")


def test_an_ill_conditioned_network_is_judged_by_its_own_sensitivity() -> None:
    """t + 10000 − 10000 turns one unit in the last place of t into a thousandth."""
    big = {"big": np.asarray(1e4, np.float32), "w": _random(8, 16, 3, 3)}
    tail = [helper.make_node("Add", ["t", "big"], ["u"]), helper.make_node("Sub", ["u", "big"], ["y"])]
    before = chain([helper.make_node("Conv", ["x", "w"], ["t"]), *tail], big, (2, 16, 12, 12))
    unoptimized = Runtime(level="disable")  # no levels between which the original could differ from itself
    result = audited(before, rw.split_input(before, "t"), runtime=unoptimized)
    assert result.outputs[0].spread == 0
    assert result.outputs[0].max_abs > 1e-4
    assert result.verdict == "equivalent", result.reason


def test_scale_and_bias_folded_into_the_weights() -> None:
    w, b, s = _random(6, 4, 3, 3), _random(6), _random(6, seed=3)
    column = (1, 6, 1, 1)
    weights = {"w": w, "b": b, "s": s.reshape(column), "o": b[::-1].reshape(column).copy()}
    weights |= {"wf": w * s[:, None, None, None], "bf": b * s + b[::-1]}
    before = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Mul", ["s", "c"], ["d"]),
        helper.make_node("Add", ["d", "o"], ["y"]),
    ]
    after = [helper.make_node("Conv", ["x", "wf", "bf"], ["y"])]
    result = audited(*_two(before, after, weights, (2, 4, 5, 6)))
    assert (result.verdict, result.grade) == ("equivalent", "rounding"), result.reason
    assert 0 < result.regions[0].levels[0].figures["worst"] <= 1  # type: ignore[operator]


def test_a_tool_that_reuses_the_name_of_the_convolution() -> None:
    """BatchNormalization folded, the result called as the convolution was: regions must not meet at that name."""
    rng = np.random.default_rng(0)
    w, s = _random(6, 4, 3, 3), rng.uniform(0.5, 2, 6).astype(np.float32)
    weights = {"w": w, "s": s.reshape(1, 6, 1, 1), "wf": w * s[:, None, None, None], "v": _random(3, 6, 1, 1)}
    before = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "s"], ["d"]),
        helper.make_node("Transpose", ["d"], ["y"], perm=[0, 2, 3, 1]),
    ]
    after = [
        helper.make_node("Conv", ["x", "wf"], ["c"]),
        helper.make_node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
    ]
    result = audited(*_two(before, after, weights, (2, 4, 5, 6)))
    assert (result.verdict, result.grade) == ("equivalent", "rounding"), result.reason


def test_a_constant_computed_in_one_model_and_stored_in_the_other() -> None:
    weights = {"k": _random(4), "n": -_random(4)}
    weights["m"] = weights["k"] * 2
    store = [helper.make_node("Add", ["x", "n"], ["y"])]
    doubled = [helper.make_node("Add", ["k", "k"], ["m"]), helper.make_node("Add", ["x", "m"], ["y"])]
    pairs = [
        ([helper.make_node("Neg", ["k"], ["n"]), *store], store),
        ([helper.make_node("Sub", ["x", "k"], ["y"])], store),
        (doubled, doubled[1:]),
    ]
    for pair in pairs:
        models = _two(*pair, weights, (2, 3, 4))
        for old, new in (models, models[::-1]):
            result = audited(old, new)
            assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_pure_data_movement() -> None:
    weights = {"one": np.ones(1, np.float32)}
    before = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        helper.make_node("Mul", ["b", "one"], ["y"]),
    ]
    after = [helper.make_node("Mul", ["x", "one"], ["y"])]
    result = audited(*_two(before, after, weights, (2, 3, 4)))
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_a_shape_that_is_read_outside_is_compared() -> None:
    """The shape of the removed tensor is handed out under its old name, computed from the new one."""
    before = net(batch="N")
    before.graph.node.append(helper.make_node("Shape", ["t"], ["n"]))
    before.graph.output.append(helper.make_tensor_value_info("n", TensorProto.INT64, [4]))
    after = rw.regrouped(before, "t", 2)
    assert audited(before, after).verdict == "equivalent"
    wrong = rw.clone(after)
    rw.set_weight(wrong, "n", np.asarray([1, 8, 6, 7], np.int64))
    rw.splice(wrong, ["n"], [])
    assert audited(before, wrong).verdict == "different"


def test_rerun_gives_the_integer_level_where_weights_are_combined() -> None:
    w, s = _random(6, 4, 3, 3), np.full((1, 6, 1, 1), 3, np.float32)
    s[0, 2] = 1.7
    weights = {"w": w, "s": s, "wf": w * s.reshape(6, 1, 1, 1)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "s"], ["y"])]
    before, after = _two(nodes, [helper.make_node("Conv", ["x", "wf"], ["y"])], weights, (2, 4, 5, 6))

    def folding(sign: float) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
        def rerun(model: onnx.ModelProto) -> onnx.ModelProto:
            result = rw.clone(model)
            scale = rw.weight_of(model, "s").reshape(6, 1, 1, 1)
            rw.set_weight(result, "wf", rw.weight_of(model, "w") * scale * np.float32(sign))
            rw.splice(result, ["c", "y"], [helper.make_node("Conv", ["x", "wf"], ["y"])])
            return result

        return rerun

    assert audited(before, after).regions[0].level("L2").outcome == "not applicable"  # type: ignore[union-attr]
    right = audited(before, after, rerun=folding(1))
    assert (right.verdict, right.regions[0].level("L2").outcome) == ("equivalent", "pass")  # type: ignore[union-attr]
    wrong = audited(before, after, rerun=folding(-1))
    assert (wrong.verdict, wrong.regions[0].level("L2").outcome) == ("different", "fail")  # type: ignore[union-attr]
