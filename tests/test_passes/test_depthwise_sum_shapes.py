"""depthwise-sum-to-grouped: shape arithmetic inside the region, around it, and shared with others."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from depthwise_sums import BATCHES, MERGE, MERGED, PASS, SPLIT, SUM, WIDE, plain
from funnel import Sizes, check


@pytest.mark.parametrize("tensor", ["wide", "split"])
def test_the_shape_of_a_removed_tensor_is_made_again_where_others_read_it(tensor: str) -> None:
    model = plain(f"{SUM} {MERGE} n = Shape ({tensor}) z = Expand (one, n)", y="y z", one=np.full(1, 1.5, np.float32))
    passed = check(model, PASS, sizes=BATCHES, integers=False, compute=False)
    assert passed.text.startswith("Conv/2 ")
    for batch in (1, 4):
        assert shape_of(passed.after, batch) == ([batch, 16, 5, 5] if tensor == "wide" else [batch, 2, 4, 2, 5, 5])


def shape_of(model: onnx.ModelProto, batch: int) -> list[int]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(["z"], {"x": np.ones((batch, 8, 5, 5), np.float32)})[0].shape)


def test_part_of_a_shape_is_made_again() -> None:
    model = plain(f"{SUM} {MERGE} n = Shape <start = 1, end = -1> (wide) z = Expand (one, n)", y="y z",
                  one=np.full(1, 1.5, np.float32))  # fmt: skip
    passed = check(model, PASS, compute=False)
    assert shape_of(passed.after, 2) == [16, 5]


def test_shape_arithmetic_shared_with_others_stays_and_the_rest_goes() -> None:
    body = f"""
        {WIDE} shape = Shape (wide) n = Slice (shape, zero, one, zero) four = Concat <axis = 0> (n, rest)
        split = Reshape (wide, four) sum = ReduceSum <keepdims = 0> (split, two)
        last = Concat <axis = 0> (n, end) y = Reshape (sum, last) z = Expand (c, n)"""
    model = plain(body, y="y z", zero=[0], one=[1], rest=SPLIT[1:], end=MERGED[1:], c=np.full(1, 2, np.float32))
    passed = check(model, PASS, compute=False)
    assert passed.text == "Conv/2 Shape Gather Gather Gather Concat Slice Expand"
    assert shape_of(passed.after, 3) == [3]


@pytest.mark.parametrize("rounding", ["Floor", "Ceil"])
def test_sizes_computed_through_floats(rounding: str) -> None:
    """As older exporters spell `int(c / 8)`: the channels of the wide tensor give those of a block."""
    body = f"""
        {WIDE} shape = Shape (wide) c = Gather (shape, one) f = Cast <to = 1> (c) d = Div (f, eight)
        r = {rounding} (d) o = Cast <to = 7> (r) n = Slice (shape, zero, one, zero) hw = Slice (shape, two, four)
        target = Concat <axis = 0> (n, parts, o, hw) split = Reshape (wide, target)
        sum = ReduceSum <keepdims = 0> (split, two) last = Concat <axis = 0> (n, m, hw) y = Reshape (sum, last)"""
    model = plain(body, x="float[N,8,H,W]", one=[1], zero=[0], four=[4], parts=[2, 4], m=[4],
                  eight=np.full(1, 8, np.float32))  # fmt: skip
    where: list[Sizes] = [{"x": (2, 8, 5, 5)}, {"x": (1, 8, 67, 9)}, {"x": (5, 8, 12, 130)}]
    check(model, PASS, becomes="Conv/2", sizes=where, integers=False)  # integer weights would change the 8


SPACE = "shape = Shape <start = 2> (wide) four = Concat <axis = 0> (front, shape) split = Reshape (wide, four)"


def test_a_layout_of_run_time_sizes_takes_them_from_the_new_conv() -> None:
    """Height and width swapped behind two channel axes: no 0 of a Reshape copies them."""
    body = f"""
        {WIDE} {SPACE} sum = ReduceSum <keepdims = 0> (split, two) y = Transpose <perm = [0,1,2,4,3]> (sum)"""
    model = plain(body, x="float[N,8,H,W]", front=[0, 2, 4, 2])
    where: list[Sizes] = [{"x": (2, 8, 4, 7)}, {"x": (1, 8, 6, 3)}]
    check(model, PASS, becomes="Conv/2 Transpose Shape Gather Shape Gather Concat Reshape", sizes=where)


def test_channels_in_axes_apart_end_the_chain_before() -> None:
    model = plain(f"{SUM} y = Transpose <perm = [0,1,3,4,2]> (sum)")
    check(model, PASS, becomes="Conv/2 Reshape Transpose", sizes=BATCHES)


def test_shape_arithmetic_that_is_a_graph_output_stays() -> None:
    body = f"""
        {WIDE} shape = Shape (wide) n = Slice (shape, zero, one, zero) four = Concat <axis = 0> (n, rest)
        split = Reshape (wide, four) sum = ReduceSum <keepdims = 0> (split, two) {MERGE}"""
    model = plain(body, y="y four", zero=[0], one=[1], rest=SPLIT[1:])
    model.graph.output[1].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.INT64, [6]))
    passed = check(model, PASS, compute=False)
    assert passed.text == "Conv/2 Shape Gather Gather Gather Concat Slice Concat"


def test_a_chain_that_works_at_one_batch_size_only_is_followed_as_far_as_it_works_at_all() -> None:
    bias = np.ones((2, 4, 1, 1), np.float32)
    model = plain(f"{SUM} z = Reshape (sum, m) y = Add (z, b)", b=bias)
    check(model, PASS, becomes="Conv/2 Add", sizes=[{"x": (2, 8, 5, 5)}])


def test_two_rewrites_that_get_in_each_others_way_are_made_one_after_the_other() -> None:
    """The second takes its batch size from the first's wide tensor: both would remove that Shape."""
    model = plain(
        f"""{SUM} y1 = Reshape (sum, m) wide2 = Conv <group = 4, pads = [1,1,1,1]> (y1, w2)
        shape = Shape (wide) n = Slice (shape, zero, one, zero) s2 = Concat <axis = 0> (n, rest)
        split2 = Reshape (wide2, s2) sum2 = ReduceSum <keepdims = 0> (split2, two) y = Reshape (sum2, m)""",
        w2=(8, 1, 3, 3), rest=[2, 2, 2, 5, 5], zero=[0], one=[1],
    )  # fmt: skip
    assert len(check(model, PASS, becomes="Conv/2 Conv/2", sizes=BATCHES).rewrites) == 2
