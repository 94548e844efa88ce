"""The algebra of transposed convolutions, and the auditor's evaluation of them, against a direct one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from models.emit import Array
from rewriter.conv import (
    Branch,
    NotGrouped,
    as_conv,
    as_transposed,
    merge_transposed,
    regroup_transposed,
    split_transposed,
)
from rewriter.equivalence.oracle import convolve
from rewriter.equivalence.transposed import convolve_transposed, mirrored, transposed_geometry
from transposed_models import direct, transposed


def numbers(rng: np.random.Generator, shape: Sequence[int], integers: bool) -> Array:
    drawn: Array = rng.integers(-4, 5, shape).astype(float) if integers else rng.standard_normal(shape)
    return drawn


def same(found: Array, expected: Array, integers: bool) -> bool:
    if integers:
        return np.array_equal(found, expected)
    return found.shape == expected.shape and np.allclose(found, expected, rtol=1e-12, atol=1e-12)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array, Array | None, dict[str, Any], bool]:
    """x, weight, bias, attributes that fit them, and whether all are integers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    integers, rank = draw(st.booleans()), draw(st.integers(1, 3))
    group, i_per, o_per = (draw(st.integers(1, 3)) for _ in range(3))

    def each(most: int, least: int = 1) -> list[int]:
        return [draw(st.integers(least, most)) for _ in range(rank)]

    size, kernel, strides, dilations = each(4 if rank < 3 else 2), each(3), each(3), each(2)
    options: dict[str, Any] = {"group": group, "strides": strides, "dilations": dilations}
    options["output_padding"] = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True)]
    whole = [
        s * (n - 1) + (k - 1) * d + 1 + more
        for n, k, s, d, more in zip(size, kernel, strides, dilations, options["output_padding"], strict=True)
    ]
    how = draw(st.sampled_from(["pads", "shape", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if how == "pads":
        options["pads"] = [draw(st.integers(0, min(2, (total - 1) // 2))) for total in whole * 2]
    elif how == "shape":
        options["output_shape"] = [draw(st.integers(max(1, total - 3), total)) for total in whole]
        options["auto_pad"] = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]))
    elif how == "VALID" or all(total >= n * s for total, n, s in zip(whole, size, strides, strict=True)):
        options["auto_pad"] = how
    bias = numbers(rng, (group * o_per,), integers) if draw(st.booleans()) else None
    x = numbers(rng, (2, group * i_per, *size), integers)
    return x, numbers(rng, (group * i_per, o_per, *kernel), integers), bias, options, integers


@given(cases())
@settings(max_examples=100, deadline=None)
def test_the_auditors_evaluation_is_the_direct_one(case: Any) -> None:
    x, weight, bias, options, integers = case
    geometry = transposed_geometry(options, x.shape[2:], weight.shape[2:])
    expected = direct(x, weight, bias, **options)
    assert same(convolve_transposed(x, weight, bias, geometry), expected, integers)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_it_is_a_convolution_of_the_input_with_zeros_between(case: Any) -> None:
    """What L1 relies on when it compares two of them as such convolutions."""
    x, weight, _, options, integers = case
    found = transposed_geometry(options, x.shape[2:], weight.shape[2:])
    wide = np.zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], found.strides, strict=True))))
    wide[:, :, *(slice(None, None, s) for s in found.strides)] = x
    reach = [(k - 1) * d for k, d in zip(weight.shape[2:], found.dilations, strict=True)]
    begin = [r - b for r, b in zip(reach, found.begin, strict=True)]
    end = [n - 1 - b + r - (w - 1) for n, b, r, w in zip(found.sizes, begin, reach, wide.shape[2:], strict=True)]
    most = max((*begin, *end, 0))  # pads may be negative: cut off, then
    padded = np.pad(wide, [(0, 0), (0, 0), *[(most, most)] * len(reach)])
    cut = [slice(most - b, most + n + e) for b, e, n in zip(begin, end, wide.shape[2:], strict=True)]
    turned = mirrored(weight, found.group).astype(float)
    y = convolve(padded[:, :, *cut], turned, None, {"dilations": found.dilations}, found.group)
    assert same(y, direct(x, weight, **options), integers)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2, "output_padding": 1},
        {"strides": 3, "pads": 1, "dilations": 2},
        {"strides": 2, "auto_pad": "SAME_UPPER"},
        {"strides": 2, "auto_pad": "SAME_LOWER", "output_padding": 1},
        {"strides": 2, "output_shape": 6},
        {"strides": 2, "output_shape": 6, "auto_pad": "SAME_UPPER"},
        {"auto_pad": "VALID", "dilations": 2},
    ],
)
def test_onnx_runtime_computes_the_same(rank: int, options: dict[str, Any]) -> None:
    """So that what the tests and the auditor take for the definition is what runs."""
    given: dict[str, Any] = {
        name: value if isinstance(value, str) else [value] * rank * (2 if name == "pads" else 1)
        for name, value in options.items()
    }
    model = transposed(kernel=(3,) * rank, group=2)
    model.graph.node[0].attribute.extend(helper.make_attribute(name, value) for name, value in given.items())
    weight, bias = (np.frombuffer(t.raw_data, np.float32).reshape(t.dims) for t in model.graph.initializer)
    x = np.random.default_rng(0).standard_normal((2, 4, *range(4, 4 + rank)), np.float32)
    if "output_shape" in given:
        x = x[(slice(None), slice(None), *[slice(0, 3)] * rank)]
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    expected = direct(x.astype(float), weight.astype(float), bias.astype(float), group=2, **given)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@given(cases(), st.data())
@settings(max_examples=60, deadline=None)
def test_regrouped_it_is_the_same_map(case: Any, data: st.DataObject) -> None:
    x, weight, bias, options, integers = case
    group = options["group"]
    fewer = data.draw(st.sampled_from([n for n in range(1, group + 1) if group % n == 0]))
    wide = regroup_transposed(weight, group, fewer)
    assert wide.shape[1] == weight.shape[1] * group // fewer
    assert np.count_nonzero(wide) == np.count_nonzero(weight)
    found = direct(x, wide, bias, **{**options, "group": fewer})
    assert same(found, direct(x, weight, bias, **options), integers)


@given(cases(), st.data())
@settings(max_examples=60, deadline=None)
def test_its_parts_side_by_side_are_it_and_come_back(case: Any, data: st.DataObject) -> None:
    x, weight, bias, options, integers = case
    group = options["group"]
    parts = data.draw(st.sampled_from([n for n in range(1, group + 1) if group % n == 0]))
    pieces = split_transposed(weight, bias, group, parts)
    inner = {**options, "group": group // parts}
    outputs = [direct(part, w, b, **inner) for part, (w, b) in zip(np.split(x, parts, axis=1), pieces, strict=True)]
    assert same(np.concatenate(outputs, axis=1), direct(x, weight, bias, **options), integers)
    width = x.shape[1] // parts
    reads = [np.arange(at * width, (at + 1) * width) for at in range(parts)]
    back = merge_transposed(
        [Branch(w, b, group // parts, read) for (w, b), read in zip(pieces, reads, strict=True)], x.shape[1]
    )
    assert back.group == group
    assert np.array_equal(back.weight, weight)
    assert (back.bias is None) == (bias is None)
    assert bias is None or np.array_equal(back.bias, bias)  # type: ignore[arg-type]  # not None, as said above


@pytest.mark.parametrize("integers", [True, False])
def test_branches_of_one_input_are_one_wide_map(integers: bool) -> None:
    rng = np.random.default_rng(0)
    x, all_of_it = numbers(rng, (2, 4, 3), integers), np.arange(4)
    weights = [numbers(rng, (4, m, 2), integers) for m in (3, 2)]
    made = merge_transposed([Branch(w, None, 1, all_of_it) for w in weights], 4)
    assert (made.group, made.weight.shape, made.bias) == (1, (4, 5, 2), None)
    expected = np.concatenate([direct(x, w, strides=[2]) for w in weights], axis=1)
    assert same(direct(x, made.weight, strides=[2]), expected, integers)


@pytest.mark.parametrize(
    ("reads", "phrase"),
    [
        ([[2, 3], [0, 1]], "in another order, or not all of them"),
        ([[0, 2], [1, 3]], "in another order, or not all of them"),
        ([[0, 1], [2, 3]], "in another order, or not all of them"),
        ([[0, 1], [1, 2]], "overlapping but different"),
        ([[0, 1], [2, 3, 4, 5]], "groups of different sizes"),
    ],
)
def test_what_cannot_be_merged_without_moving_or_inserting(reads: list[list[int]], phrase: str) -> None:
    channels = 5 if reads == [[0, 1], [2, 3]] else max(map(max, reads)) + 1
    with pytest.raises(NotGrouped, match=phrase):
        merge_transposed([Branch(np.ones((len(r), 2, 1)), None, 1, np.asarray(r)) for r in reads], channels)


def test_the_layouts_are_each_others_inverse_and_refuse_what_does_not_divide() -> None:
    weight = np.arange(6 * 4 * 3).reshape(6, 4, 3)
    assert as_conv(weight, 3).shape == (12, 2, 3)
    assert np.array_equal(as_transposed(as_conv(weight, 3), 3), weight)
    with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
        as_conv(weight, 4)
    with pytest.raises(ValueError, match="2 groups do not divide 3"):
        regroup_transposed(weight, 3, 2)


@pytest.mark.parametrize(
    ("attributes", "phrase"),
    [
        ({"strides": [1, 1]}, "do not fit its 1 spatial axes"),
        ({"pads": [-1, 0]}, "negative padding"),
        ({"strides": [0]}, "a stride or dilation below 1"),
        ({"output_shape": [9]}, "cannot fill 9 elements"),
        ({"auto_pad": b"SAME_UPPER", "strides": [4]}, "cannot fill 12 elements"),
        ({"pads": [3, 2]}, "has no output"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(attributes: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        transposed_geometry(attributes, [3], [3])
