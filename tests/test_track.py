"""Tracking against ONNX's own evaluator: what a state says a tensor is, the tensor is."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from chains import Chain, assert_followed
from rewriter.model import Model
from rewriter.rule import Declined
from rewriter.shapes import bind
from rewriter.track import Step, follow, may_reduce, start

WIDE = (2, 12, 3, 4)
Build = Callable[[Chain], object]


@pytest.mark.parametrize(
    ("build", "opset"),
    [
        (lambda c: c.add("Transpose", perm=[3, 1, 0, 2]), 18),
        (lambda c: c.add("Transpose"), 18),
        (lambda c: c.add("Reshape", [2, 3, 4, 3, 4]), 18),
        (lambda c: c.add("Reshape", [0, 3, -1, 0, 1]), 7),
        (lambda c: c.add("Reshape", [2, 3, 4, 3, 4], allowzero=1), 14),
        (lambda c: c.add("Flatten"), 18),
        (lambda c: c.add("Flatten", axis=0), 18),
        (lambda c: c.add("Flatten", axis=-1), 13),
        (lambda c: c.add("Flatten", axis=3), 7),
        (lambda c: c.add("Unsqueeze", [0, -2]), 18),
        (lambda c: c.add("Unsqueeze", axes=[1, 3]), 11),
        (lambda c: c.add("Unsqueeze", [2]).add("Squeeze", [2]), 18),
        (lambda c: c.add("Unsqueeze", axes=[2]).add("Squeeze", axes=[2]), 7),
        (lambda c: c.add("Unsqueeze", [2, 5]).add("Squeeze"), 18),
        (lambda c: c.add("Identity"), 18),
        (lambda c: c.add("Slice", [1, 0], [9, 2], [1, 3]), 18),
        (lambda c: c.add("Slice", [-1], [-13], [1], [-2]), 18),
        (lambda c: c.add("Slice", [0, 2], [2, 99]), 13),
        (lambda c: c.add("Slice", [3], [1 << 40], [-3], [2]), 18),
        (lambda c: c.add("Slice", starts=[1, 1], ends=[9, -1], axes=[1, 2]), 9),
        (lambda c: c.add("Slice", starts=[0, 4], ends=[1, 8]), 9),
        (lambda c: c.add("Gather", [3, 0, 0, -1], axis=1), 18),
        (lambda c: c.add("Gather", [3, 0], axis=-1), 18),
        (lambda c: c.add("Gather", [[1, 0], [2, 2]], axis=-2), 18),
        (lambda c: c.add("Gather", 1), 18),
        (lambda c: c.add("ReduceSum", [1], keepdims=0), 18),
        (lambda c: c.add("ReduceSum", [-1, 0]), 13),
        (lambda c: c.add("ReduceSum", [3, 1], keepdims=0), 13),
        (lambda c: c.add("ReduceSum", axes=[1, -2], keepdims=1), 12),
        (lambda c: c.add("ReduceSum"), 18),
        (lambda c: c.add("ReduceSum", np.zeros(0, np.int64), noop_with_empty_axes=1), 18),
        (lambda c: c.add("ReduceSum", np.zeros(0, np.int64)), 18),
        (lambda c: c.add("ReduceMean", [1], keepdims=0), 18),
        (lambda c: c.add("ReduceMean", axes=[1]), 13),
        (lambda c: c.add("ReduceMean", [1]).add("ReduceSum", [2]), 18),
        (lambda c: c.add("Add", np.arange(12.0).reshape(12, 1, 1)), 18),
        (lambda c: c.add("Add", before=np.arange(12.0).reshape(1, 12, 1, 1)), 18),
        (lambda c: c.add("Sub", np.arange(4.0)), 18),
        (lambda c: c.add("Sub", before=np.arange(4.0)), 18),
        (lambda c: c.add("Mul", np.float64(3)), 18),
        (lambda c: c.add("Mul", before=np.arange(12.0).reshape(12, 1, 1)), 18),
        (lambda c: c.add("Div", np.arange(1.0, 5)), 18),
        (lambda c: c.add("Add", np.arange(4.0)).add("Mul", np.arange(4.0)).add("Sub", np.float64(1)), 18),
        (lambda c: c.add("Add", np.arange(4.0)).add("ReduceMean", [3]).add("Sub", before=np.float64(1)), 18),
        (lambda c: c.add("Mul", np.arange(4.0)).add("Reshape", [24, 12]).add("ReduceSum", [1]), 18),
        (lambda c: c.add("Add", np.arange(4.0)).add("Transpose").add("ReduceSum", [0]), 18),
        (lambda c: c.add("BatchNormalization", *np.random.default_rng(1).uniform(1, 2, (4, 12)), epsilon=0.5), 18),
        (lambda c: c.add("Add", np.float64(2)).add("BatchNormalization", *np.ones((4, 12))), 14),
    ],
)
def test_each_operator_is_followed(build: Build, opset: int) -> None:
    chain = Chain(WIDE, opset)
    build(chain)
    assert_followed(chain)


@pytest.mark.parametrize(
    ("build", "opset", "reason"),
    [
        (lambda c: c.add("Relu"), 18, "Relu at 't0' is no linear per-channel bookkeeping"),
        (lambda c: c.add("Reshape", [5, -1]), 18, "cannot turn [2, 12, 3, 4] into [5, -1]"),
        (lambda c: c.add("Squeeze", [1]), 18, "Squeeze 't0' cannot drop axes [1] of [2, 12, 3, 4]"),
        (lambda c: c.add("Gather", [0, 12], axis=1), 18, "do not fit its axis of size 12"),
        (lambda c: c.add("Slice", [5], [5], [1]), 18, "keeps nothing"),
        (lambda c: c.add("Add", np.ones((5, 2, 12, 3, 4))), 18, "widens its input"),
        (lambda c: c.add("Add", np.ones(7)), 18, "a constant of shape [7] does not fit [2, 12, 3, 4]"),
        (lambda c: c.add("ReduceSum", [3]).add("Mul", np.ones(7)), 18, "widens its input"),
        (lambda c: c.add("Div", before=np.ones(4)), 18, "Div 't0' divides by 'x'"),
        (lambda c: c.add("Div", np.zeros(4)), 18, "divides by zero"),
        (lambda c: c.add("BatchNormalization", *np.ones((4, 12)), training_mode=1), 18, "training mode"),
        (lambda c: c.add("BatchNormalization", *np.ones((4, 12)), spatial=0), 8, "each position by itself"),
    ],
)
def test_what_cannot_be_followed_ends_the_chain_with_its_reason(build: Build, opset: int, reason: str) -> None:
    chain = Chain(WIDE, opset)
    build(chain)
    steps, ended = chain.follow()
    assert len(steps) == len(chain.nodes) - 1
    assert reason in ended


def test_a_squeeze_without_axes_is_followed_only_where_no_size_is_free() -> None:
    chain = Chain((2, 12, 1, 4), batch_is_free=True).add("Squeeze")
    assert "depends on the input's size" in chain.follow()[1]
    assert_followed(Chain((2, 12, 1, 4)).add("Squeeze"))


def test_run_time_operands_end_the_chain() -> None:
    two = [helper.make_tensor_value_info(name, TensorProto.FLOAT, WIDE) for name in ("x", "r")]
    other = helper.make_tensor_value_info("i", TensorProto.INT64, [1])
    end = helper.make_tensor_value_info("end", TensorProto.FLOAT, None)
    for op_type, inputs, reason in [
        ("Add", ["x", "r"], "'r' is a graph input"),
        ("Mul", ["r", "x"], "'r' is a graph input"),
        ("Add", ["x", "x"], "uses 'x' twice"),
        ("Gather", ["x", "i"], "are computed at run time"),
        ("ReduceSum", ["x", "i"], "are computed at run time"),
        ("Squeeze", ["x", "i"], "are computed at run time"),
        ("Unsqueeze", ["x", "i"], "are computed at run time"),
        ("Slice", ["x", "i", "i"], "are computed at run time"),
        ("Reshape", ["x", "i"], "not known before the model runs"),
        ("BatchNormalization", ["x", "i", "i", "i", "i"], "'i' is a graph input"),
    ]:
        nodes = [helper.make_node(op_type, inputs, ["t0"]), helper.make_node("Relu", ["t0"], ["end"])]
        graph = helper.make_graph(nodes, "run time", [*two, other], [end])
        model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
        steps, ended = follow(model, bind(model, {}), "x", WIDE)
        assert steps == []
        assert reason in ended, op_type


def test_readers_and_escapes_end_the_chain() -> None:
    chain = Chain(WIDE).add("ReduceSum", [1]).add("Identity")
    proto = chain.proto()
    proto.graph.node.append(helper.make_node("Neg", ["t0"], ["second"]))
    assert follow_proto(proto)[1] == "'t0' is read by 2 nodes"
    proto.graph.node[-1].op_type = "Shape"
    assert len(follow_proto(proto)[0]) == 2, "a Shape reads no data"
    proto.graph.output.append(helper.make_tensor_value_info("t0", TensorProto.DOUBLE, None))
    assert follow_proto(proto)[1] == "'t0' is a graph output"


def follow_proto(proto: onnx.ModelProto) -> tuple[list[Step], str]:
    model = Model.load(proto)
    return follow(model, bind(model, {"x": WIDE}), "x", WIDE)


def test_a_look_ahead_sees_a_reduction_or_says_what_is_in_the_way() -> None:
    reducing = Model.load(Chain(WIDE).add("Transpose").add("ReduceMean", [1]).proto())
    assert may_reduce(reducing, "x") == ""
    assert may_reduce(Model.load(Chain(WIDE).add("Transpose").proto()), "x").startswith("Relu at 'end' is no linear")


@pytest.mark.parametrize("shape", [(2, 0, 3), (1 << 13, 1 << 14)])
def test_tensors_that_are_empty_or_too_large_are_not_followed(shape: tuple[int, ...]) -> None:
    with pytest.raises(Declined, match=r"is empty|is too large to follow"):
        start(shape)


# --- random chains ---


def grow(rng: random.Random, chain: Chain, shape: tuple[int, ...]) -> None:
    """Append one random operator."""
    rank = len(shape)
    axes = rng.sample(range(rank), rng.randint(1, rank)) if rank else []
    operand = [size if rng.random() < 0.5 else 1 for size in shape[rng.randint(0, rank) :]]
    numbers = np.random.default_rng(rng.randrange(1 << 30)).integers(1, 5, operand).astype(float)
    kind = rng.choice(["Transpose", "Reshape", "ReduceSum", "ReduceMean", "Add", "Mul", "Slice", "Gather", "Unsqueeze"])
    if kind == "Transpose" and rank:
        chain.add(kind, perm=rng.sample(range(rank), rank))
    elif kind == "Reshape":
        chain.add(kind, np.array(factors(rng, int(np.prod(shape))), np.int64))
    elif kind.startswith("Reduce") and rank:
        chain.add(kind, np.array(axes[:2]), keepdims=rng.randint(0, 1))
    elif kind in ("Add", "Mul"):
        chain.add(kind, numbers) if rng.random() < 0.5 else chain.add(kind, before=numbers)
    elif kind == "Slice" and rank:
        chain.add(kind, [rng.randrange(shape[axes[0]])], [1 << 40], [axes[0] - rank], [rng.randint(1, 2)])
    elif kind == "Gather" and rank:
        chain.add(kind, [rng.randrange(shape[axes[0]]) for _ in range(rng.randint(1, 4))], axis=axes[0] - rank)
    else:
        chain.add("Unsqueeze", [rng.randint(0, rank)])


def factors(rng: random.Random, total: int) -> list[int]:
    """A random shape of that many elements."""
    sizes: list[int] = []
    while total > 1 and len(sizes) < 5:
        size = rng.choice([number for number in range(2, total + 1) if total % number == 0])
        sizes.append(size)
        total //= size
    return [*sizes, total]


@given(st.integers(0, 10**9))
@settings(max_examples=60)
def test_random_chains_are_what_their_states_say(seed: int) -> None:
    rng = random.Random(seed)
    chain = Chain((2, 6, 2, 3))
    for _ in range(rng.randint(1, 6)):
        grow(rng, chain, chain.run(chain.data()).shape if chain.nodes else chain.shape)
    assert_followed(chain)
