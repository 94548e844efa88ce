"""What each operator does to channels: keeps them, links them with others, bears, ends or stops them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from channel_keeps import C6, C16, FLAT, KEEP
from programs import program
from rewriter.channelflow import channel_components
from rewriter.channels import Band, Channels, Keep, Survey, put_together
from rewriter.graph import Graph
from rewriter.model import Model

W, V = (6, 8, 1, 1), (3, 6, 1, 1)
FREE = "float[N,8,H,W]"


def analysed(model: onnx.ModelProto) -> Channels:
    return channel_components(Graph(Model.load(model), {}))


def between(nodes: str, **options: Any) -> Channels:
    """A convolution that makes the 6 channels of `c`, nodes from there to `t`, and a convolution that reads `t`."""
    given = {"x": FREE, "w": W, "v": V} | options
    return analysed(program(f"c = Conv (x, w) {nodes} y = Conv (t, v)", **given))


def band(channels: Channels, tensor: str) -> Band:
    return channels.band_of[tensor]


def reasons(channels: Channels, tensor: str) -> list[str]:
    found = channels.component(tensor)
    assert found is not None, f"nothing is known of '{tensor}'"
    return [stop.reason for stop in found.stops]


@pytest.mark.parametrize(("nodes", "options"), KEEP, ids=str)
def test_kept(nodes: str, options: dict[str, Any]) -> None:
    channels = between(nodes, **options)
    assert reasons(channels, "c") == []
    whole = band(channels, "c")
    assert band(channels, "t") is whole
    assert (whole.channels, whole.tensors[0]) == (6, "c")
    assert [end.tensor for end in whole.births] == ["c"]
    assert [end.tensor for end in whole.deaths] == ["t"]


STOPS: list[tuple[str, dict[str, Any], str]] = [
    ("t = Softmax <axis = 1> (c)", {}, "Softmax is not known to keep channels apart ('t')"),
    ("t = LRN <size = 3> (c)", {}, "LRN is not known to keep channels apart ('t')"),
    ("t = Exp (c)", {}, "Exp is not known to keep channels apart ('t')"),
    ("t = Sqrt (c)", {}, "Sqrt is not known to keep channels apart ('t')"),
    ("t = Log (c)", {}, "Log is not known to keep channels apart ('t')"),
    ("t = Transpose <perm = [0, 1, 3, 2]> (c)", {}, "Transpose is not known"),
    ("t = CumSum (c, k)", {"k": np.int64(1)}, "CumSum is not known"),
    ("d = Relu (c) t = Div (c, d)", {}, "Div by what may be zero in a channel without content ('t')"),
    ("t = Div (k, c)", {"k": C6}, "Div by what may be zero in a channel without content ('t')"),
    ("m = ReduceMax (c) t = Clip (c, m)", {}, "the parameters of Clip are no constant scalars ('t')"),
    ("t = Dropout (c, r, yes)", {"r": np.float32(0.5), "yes": np.bool_(True)}, "Dropout is not known"),
    ("d, m = Dropout (c) f = Cast <to = 1> (m) t = Mul (d, f)", {}, "Dropout is not known"),
    ("t = BatchNormalization (c, s, s, s, k)", {"s": (6,), "k": (6,), "free": "s"}, "has no constants ('t')"),
    ("t = BatchNormalization <training_mode = 1> (c, s, s, s, s)", {"s": (6,)}, "is in training mode"),
    ("t = BatchNormalization <spatial = 0> (c, s, s, s, s)", {"s": (6,), "opset": 7}, "not spatial"),
    ("t = InstanceNormalization <epsilon = 0.0> (c, s, s)", {"s": (6,)}, "has no constants, or no epsilon ('t')"),
    ("t = ReduceMean <keepdims = 1> (c, k)", {"k": [1]}, "ReduceMean is over channels or the batch"),
    ("t = ReduceMean <keepdims = 1> (c, k)", {"k": [0]}, "ReduceMean is over channels or the batch"),
    ("t = ReduceMean <keepdims = 1> (c)", {}, "or over axes that are not known ('t')"),
    ("t = ReduceMean <keepdims = 1> (c, k)", {"k": [-3, 3]}, "ReduceMean is over channels"),
    ("t = Pad (c, k)", {"k": [0, 1, 1, 1, 0, 0, 1, 1]}, "Pad adds channels, or what it adds is not known ('t')"),
    ("t = Pad (c, k)", {"k": [0, 0, 1, 1, 0, 1, 1, 1]}, "Pad adds channels"),
    ("t = Pad (c, k, , a)", {"k": [1, 1], "a": [1]}, "Pad adds channels"),
    ("t = Resize (c, , k)", {"k": np.array([1, 2, 2, 2], np.float32)}, "Resize by sizes, or by scales that are not"),
    ("t = Resize (c, , , k)", {"k": [1, 6, 9, 9]}, "Resize by sizes, or by scales that are not known ('t')"),
    ("t = Slice (c, o, e)", {"o": [0, 0], "e": [1, 3]}, "Slice picks channels that are not known, or other axes"),
    ("s = Shape (x) e = Slice (s, o, i) t = Slice (c, o, e, i)", {"o": [0], "i": [1]}, "Slice picks channels"),
    ("t = Gather <axis = 0> (c, k)", {"k": [0]}, "Gather picks channels that are not known, or other axes besides"),
    ("g = Gather <axis = 1> (c, k) t = Unsqueeze (g, k)", {"k": np.int64(1)}, "Gather picks channels that are not"),
    ("t = Flatten <axis = 2> (c)", {}, "Flatten moves channels or mixes them with other axes, or its"),
    ("f = Flatten (c) t = Reshape (f, k)", {"k": [0, 6, 5, 5], "x": "float[N,8,5,5]"}, "Flatten moves channels"),
    ("t = Reshape (c, k)", {"k": [0, 3, -1, 5], "x": "float[N,8,5,5]"}, "Reshape moves channels or mixes"),
    ("s = Shape (c) t = Reshape (c, s)", FLAT, "Reshape moves channels or mixes them with other axes, or its"),
    ("t = Concat <axis = 1> (c, k)", {"k": (1, 6, 5, 5), "x": "float[1,8,5,5]"}, "the inputs of a Concat are constant"),
    ("t = Conv (c, k)", {"k": (6, 6, 1, 1), "free": "k"}, "the weights or channels of Conv are not known ('t')"),
    ("k = Neg (l) t = Conv (c, k)", {"l": (6, 6, 1, 1)}, "the weights or channels of Conv are not known ('t')"),
    ("t = Conv (c, k, b)", {"k": (6, 6, 1, 1), "b": (6,), "free": "b"}, "the weights or channels of Conv are not"),
    ("t = ConvTranspose (c, k)", {"k": (6, 6, 1, 1)}, "ConvTranspose is not known to keep channels apart"),
    ("t = MatMul (c, k)", {"k": (5, 5), "x": "float[N,8,5,5]"}, "MatMul is no product of [N, C] with a constant"),
    ("t = Add (c, k)", {"k": C16, "free": "k"}, "'k' is a constant that is computed with, or one that callers may"),
    ("k = Neg (l) t = Add (c, k)", {"l": C16}, "'l' is a constant that is computed with, or one that callers may"),
    ("k = Neg (l) t = Add (c, k)", {"l": C6}, "Add broadcasts tensors whose ranks differ or are not known ('t')"),
    ("s = Shape (c) n = Size (s) f = Cast <to = 1> (n) t = Add (c, f)", {}, "its number of channels is read by Shape"),
    ("s = Shape (c) k = Gather (s, i) f = Cast <to = 1> (k) t = Mul (c, f)", {"i": np.int64(1)}, "read by Shape 's'"),
    ("s = Shape (c) k = Gather (s, i) f = Cast <to = 1> (k) t = Mul (c, f)", {"i": np.int64(-3)}, "is read by Shape"),
    ("s = Shape <start = 1> (c) f = Cast <to = 1> (s) k = ReduceSum <keepdims = 0> (f) t = Mul (c, k)", {}, "is read"),
    ("s = Shape <start = -3> (c) f = Cast <to = 1> (s) k = ReduceSum <keepdims = 0> (f) t = Mul (c, k)", {}, "is read"),
    ("t = Relu (c)", {"y": "y t"}, "'t' is a graph output"),
    ("t = Relu (c)", {"y": "y c"}, "'c' is a graph output"),
    ("t = Add (c, x)", {"x": "float[N,6,5,5]", "w": (6, 6, 1, 1)}, "it is a graph input"),
    ("t = If (z) <then_branch = one () => (float[N,6,5,5] p) { p = Relu (c) }, "
     "else_branch = two () => (float[N,6,5,5] q) { q = Abs (c) }>",
     {"z": np.bool_(True), "x": "float[N,8,5,5]"}, "'c' is read inside a subgraph"),
    ("d = Relu (c) o = If (z) <then_branch = one () => (float o1) { o1 = ReduceMax <keepdims = 0> (c) }, "
     "else_branch = two () => (float o2) { o2 = ReduceMin <keepdims = 0> (c) }> t = Mul (d, o)",
     {"z": np.bool_(True), "x": "float[N,8,5,5]"}, "'c' is read inside a subgraph"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "options", "reason"), STOPS, ids=lambda part: str(part)[:60])
def test_stopped(nodes: str, options: dict[str, Any], reason: str) -> None:
    given = {"x": FREE, "w": W, "v": V} | {key: value for key, value in options.items() if key != "free"}
    model = program(f"c = Conv (x, w) {nodes} y = Conv (t, v)", **given)
    if free := options.get("free"):
        (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == free]
        model.graph.input.append(onnx.helper.make_tensor_value_info(free, tensor.data_type, tensor.dims))
    found = reasons(analysed(model), "c")
    assert any(reason in one for one in found), found


def test_channels_are_born_in_rows_and_die_in_columns() -> None:
    channels = between("t = Relu (c)")
    assert [(one.channels, one.tensors, len(one.births), len(one.deaths)) for one in channels.bands] == [
        (8, ("x",), 0, 1),
        (6, ("c", "t"), 1, 1),
        (3, ("y",), 1, 0),
    ]
    assert [component.free for component in channels.components] == [False, True, False]
    assert reasons(channels, "x") == ["it is a graph input"]
    assert reasons(channels, "y") == ["'y' is a graph output"]
    assert channels.component("w") is None
    assert [keep.tensors for keep in band(channels, "c").keeps] == [("c", "t")]


def test_the_classifier_s_columns_are_an_end() -> None:
    body = "c = Conv (x, w) p = GlobalAveragePool (c) f = Flatten (p) g = Gemm (f, k, b) r = Relu (g) y = MatMul (r, l)"
    channels = analysed(program(body, x=FREE, w=W, k=(6, 5), b=(5,), l=(5, 4)))
    assert band(channels, "f") is band(channels, "c")
    assert [end.node for end in band(channels, "c").deaths] == [3]
    assert [(end.node, end.tensor) for end in band(channels, "g").births] == [(3, "g")]
    assert [(end.node, end.tensor) for end in band(channels, "r").deaths] == [(5, "r")]
    assert reasons(channels, "c") == reasons(channels, "r") == []


@pytest.mark.parametrize(
    ("gemm", "given", "known"),
    [
        ("Gemm <transB = 1>", (5, 6), True),
        ("Gemm <transA = 1>", (6, 5), False),
        ("Gemm <alpha = 2.0>", (6, 5), True),
        ("MatMul", (6, 5), True),
    ],
)
def test_products(gemm: str, given: tuple[int, ...], known: bool) -> None:
    x = "float[6,8,1,1]" if "transA" in gemm else FREE
    body = f"c = Conv (x, w) p = GlobalAveragePool (c) f = Flatten (p) y = {gemm} (f, k)"
    found = reasons(analysed(program(body, x=x, w=W, k=given)), "c")
    assert found == ([] if known else ["Gemm is no product of [N, C] with a constant matrix ('y')"])


def test_a_concat_links() -> None:
    channels = between("d = Relu (c) e = Conv (x, u) t = Concat <axis = 1> (d, e, d)", u=(2, 8, 1, 1), v=(3, 14, 1, 1))
    (component,) = {channels.component(name) for name in "cdet"}
    assert component is not None
    assert [one.channels for one in component.bands] == [6, 2, 14]
    (link,) = component.links
    assert (link.kind, link.entering, link.leaving) == ("concat", ("d", "e", "d"), "t")
    assert component.free


def test_a_grouped_convolution_links_and_a_depthwise_one_keeps() -> None:
    nodes = "g = Conv <group = 2> (c, k) d = Conv <group = 4> (g, l) t = Conv <group = 4> (d, m)"
    channels = between(nodes, k=(4, 3, 1, 1), l=(4, 1, 1, 1), m=(8, 1, 1, 1), v=(3, 8, 1, 1))
    assert band(channels, "g") is band(channels, "d")
    component = channels.component("c")
    assert component is not None
    assert [(link.kind, link.entering, link.leaving, link.group) for link in component.links] == [
        ("groups", ("c",), "g", 2),
        ("groups", ("d",), "t", 4),
    ]
    assert component.free


@pytest.mark.parametrize(
    ("apart", "whole", "order"),
    [
        ([0, 2, 3, 5, 5], [0, 6, 5, 5], [0, 3, 1, 4, 2, 5]),
        ([-1, 3, 2, 5, 5], [-1, 6, 5, 5], [0, 2, 4, 1, 3, 5]),
        ([0, 2, 3, 5, 5], [0, -1, 5, 5], [0, 3, 1, 4, 2, 5]),
    ],
)
def test_a_shuffle_links(apart: list[int], whole: list[int], order: list[int]) -> None:
    nodes = "f = Reshape (c, k) p = Transpose <perm = [0, 2, 1, 3, 4]> (f) t = Reshape (p, l)"
    channels = between(nodes, k=apart, l=whole, x="float[N,8,5,5]")
    component = channels.component("c")
    assert component is not None
    (link,) = component.links
    assert (link.kind, link.entering, link.leaving, link.nodes) == ("shuffle", ("c",), "t", (1, 2, 3))
    assert link.order is not None
    assert link.order.tolist() == order
    assert component.free


def test_a_shuffle_to_sizes_computed_at_run_time_stops() -> None:
    """What its shapes come to is seen at some sizes, and known for none."""
    nodes = (
        "s = Shape (c) n = Gather (s, o) hw = Gather (s, j) sa = Concat <axis = 0> (n, g, hw) "
        "sw = Concat <axis = 0> (n, q, hw) f = Reshape (c, sa) p = Transpose <perm = [0, 2, 1, 3, 4]> (f) "
        "t = Reshape (p, sw)"
    )
    found = between(nodes, o=[0], j=[2, 3], g=[2, 3], q=[6])
    assert any("or its sizes are not known ('f')" in reason for reason in reasons(found, "c"))


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ("p = Transpose <perm = [0, 2, 1, 4, 3]> (f)", {}),
        ("p = Transpose <perm = [0, 2, 1, 3, 4]> (f) z = Relu (f)", {}),
        ("p = Transpose <perm = [0, 2, 1, 3, 4]> (f)", {"y": "y f"}),
        (
            "p = Transpose <perm = [0, 2, 1, 3, 4]> (f)",
            {"k": [3, 2, 3, 5, 5], "x": "float[3,8,5,5]", "l": [5, 6, 3, 5]},
        ),
    ],
)
def test_what_looks_like_a_shuffle_is_none(nodes: str, options: dict[str, Any]) -> None:
    given = {"k": [0, 2, 3, 5, 5], "l": [0, 6, 5, 5], "x": "float[N,8,5,5]"} | options
    channels = between(f"f = Reshape (c, k) {nodes} t = Reshape (p, l)", **given)
    assert any("Reshape moves channels or mixes them" in reason for reason in reasons(channels, "c"))


PICKS: list[tuple[str, dict[str, Any], list[int]]] = [
    ("t, r = Split <axis = 1> (c, k)", {"k": [2, 4]}, [0, 1]),
    ("r, t = Split <axis = -3> (c, k)", {"k": [2, 4]}, [2, 3, 4, 5]),
    ("r, t = Split <axis = 1> (c)", {"opset": 13}, [3, 4, 5]),
    ("r, t = Split <axis = 1, num_outputs = 2> (c)", {}, [3, 4, 5]),
    ("t, r = Split <axis = 1, split = [2, 4]> (c)", {"opset": 11}, [0, 1]),
    ("t = Slice (c, o, e, i)", {"o": [1], "e": [4], "i": [1]}, [1, 2, 3]),
    ("t = Slice (c, o, e, i)", {"o": [-2], "e": [2**62], "i": [-3]}, [4, 5]),
    ("t = Slice (c, o, e, i, s)", {"o": [0], "e": [6], "i": [1], "s": [2]}, [0, 2, 4]),
    ("t = Slice (c, o, e, i, s)", {"o": [5], "e": [-(2**62)], "i": [1], "s": [-1]}, [5, 4, 3, 2, 1, 0]),
    ("t = Slice <starts = [1], ends = [3], axes = [1]> (c)", {"opset": 9}, [1, 2]),
    ("t = Gather <axis = 1> (c, k)", {"k": [5, 0, 0, -1]}, [5, 0, 0, 5]),
]


@pytest.mark.parametrize(("nodes", "options", "order"), PICKS, ids=str)
def test_picked(nodes: str, options: dict[str, Any], order: list[int]) -> None:
    """What is picked changes without what it is picked from."""
    channels = between(nodes, v=(3, len(order), 1, 1), **options)
    (link,) = [link for link in channels.picks if link.leaving == "t"]
    assert (link.kind, link.entering) == ("pick", ("c",))
    assert link.order is not None
    assert link.order.tolist() == order
    assert channels.component("c") is not channels.component("t")
    assert reasons(channels, "c") == reasons(channels, "t") == []


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ("s = Shape (c) k = Gather (s, i) f = Cast <to = 1> (k) t = Mul (c, f)", {"i": np.int64(2)}),
        ("s = Shape (c) k = Gather (s, i) f = Cast <to = 1> (k) g = ReduceSum <keepdims = 0> (f) t = Mul (c, g)",
         {"i": [0, 2, -1]}),
        ("s = Shape <start = 2> (c) f = Cast <to = 1> (s) k = ReduceSum <keepdims = 0> (f) t = Mul (c, k)", {}),
    ],
)  # fmt: skip
def test_other_sizes_may_be_read(nodes: str, options: dict[str, Any]) -> None:
    """The Mul broadcasts a scalar: what stops is that its rank is another one, not the Shape."""
    assert not any("Shape" in reason for reason in reasons(between(nodes, **options), "c"))


def test_positions_weighed_by_one_channel() -> None:
    """The attention's own channel stays alone; the channels it weighs do not mind."""
    channels = between("a = Conv (x, k) s = Sigmoid (a) t = Mul (c, s)", k=(1, 8, 1, 1))
    assert reasons(channels, "c") == []
    assert reasons(channels, "s") == ["its one channel is broadcast by Mul 't'"]
    assert band(channels, "t") is band(channels, "c")


def test_channels_made_by_broadcasting_stop() -> None:
    channels = between("a = Conv (x, k) t = Mul (a, l) ", k=(1, 8, 1, 1), l=C6)
    assert reasons(channels, "t") == ["Mul makes its channels by broadcasting"]
    assert reasons(channels, "c") == []


def test_one_channel_cannot_be_told_from_other_axes_of_size_1() -> None:
    """A Flatten at axis 2 of [N, 1, 1, 1] puts the channels into the batch: with more of them that shows."""
    for nodes in ("f = Flatten <axis = 2> (p)", "f = Squeeze (p, k)", "f = Reshape (p, l)"):
        body = f"c = Conv (x, w) p = GlobalAveragePool (c) {nodes} y = Gemm (f, u)"
        options: dict[str, Any] = {"k": {"k": [1, 2]}, "l": {"l": [-1, 1]}}.get(nodes[-2], {})
        found = analysed(program(body, x=FREE, w=(1, 8, 1, 1), u=(1, 3), **options))
        assert any("mixes them with other axes" in reason for reason in reasons(found, "c"))


def test_a_constant_that_is_spread_over_one_channel_s_positions_is_no_constant_of_channels() -> None:
    found = between("t = Add (c, k)", w=(1, 8, 1, 1), v=(3, 1, 1, 1), k=(5, 1), x="float[N,8,5,5]")
    (keep,) = [keep for keep in band(found, "c").keeps if keep.node == 1]
    assert keep.constants == ()


def test_tensors_of_unknown_rank_are_not_free() -> None:
    """Nor of an unknown number of channels."""
    for shape in ("float", "float[N,C,H,W]"):
        found = analysed(program("r = Relu (x) q = Abs (r) y = Neg (q)", x=shape))
        assert all(not component.free for component in found.components)
    survey = Survey(Graph(Model.load(program("q = Abs (x) y = Neg (q)", x="float")), {}), [Keep(1, ("q", "y"))])
    (alone,) = put_together(survey).bands
    assert [stop.reason for stop in alone.stops] == ["its number of channels is not known"]


def test_operators_of_other_domains_are_not_known() -> None:
    for kind in ("Relu", "Split", "Dropout"):
        model = program(f"c = Conv (x, w) t = {kind} (c) y = Conv (t, v)", x=FREE, w=W, v=V)
        model.graph.node[1].domain = "elsewhere"
        model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
        assert any("is not known" in reason for reason in reasons(analysed(model), "c"))


def test_shared_tensors_tie_what_reads_them() -> None:
    """Two branches read `c`, one adds what the other made: all of it is one component."""
    nodes = "p = Conv <group = 6> (c, k) q = Conv (c, l) s = Add (p, q) t = Relu (s) z = Conv (c, v)"
    channels = between(nodes, k=(6, 1, 1, 1), l=(6, 6, 1, 1), y="y z")
    assert len({band(channels, name).number for name in "cpqst"}) == 1
    assert len(band(channels, "c").births) == 2
    assert len(band(channels, "c").deaths) == 3


@pytest.mark.parametrize(
    "kind",
    """Relu LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Elu Selu Softplus Softsign Mish Gelu Clip Identity Dropout
    ThresholdedRelu Celu Erf Abs Neg Round Floor Ceil Sign""".split(),  # noqa: SIM905 - readable
)
def test_what_keeps_channels_is_finite_where_they_are(kind: str) -> None:
    """A channel without content may carry what another one does, and meets zeros: 0 times infinity would be NaN."""
    model = program(f"y = {kind} (x)", x="float[N]", opset=22)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([0, 1e-38, 1, 89, 1e4, 1e19, 1e38], np.float32)
    for sign in (1, -1):
        (y,) = session.run(None, {"x": sign * x})
        assert np.isfinite(y).all(), f"{kind}: {y}"
