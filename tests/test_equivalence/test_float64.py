"""The float64 reference of L4: its operators against onnx's and ONNX Runtime's, and whole small networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rewriter.equivalence import float64_conv
from rewriter.equivalence.float64 import OPERATORS, Float64, Float64Failed
from rewriter.model import Model
from rewriter.session import Runtime, open_session, run
from test_equivalence.nets import net

Array = np.ndarray[Any, Any]
FEW = settings(max_examples=60)


def one_node(
    op_type: str, inputs: Mapping[str, Array], opset: int = 22, domain: str = "", outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """A model of one node, its operands in the order given as inputs; float32."""
    node = helper.make_node(op_type, list(inputs), [f"y{i}" for i in range(outputs)], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        op_type,
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
            if name
        ],
        [helper.make_empty_tensor_value_info(f"y{i}") for i in range(outputs)],
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def in_float64(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    return np.asarray(Float64(Model.load(model), ["y0"])(feeds)["y0"])


def by_onnx(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    """onnx's plain reference, on float64 operands."""
    wide = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in feeds.items()}
    found = ReferenceEvaluator(model).run(None, wide)
    assert isinstance(found, list)
    return np.asarray(found[0])


def by_runtime(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    return run(open_session(model, Runtime().at("disable")), feeds)["y0"]


def whole(rng: np.random.Generator, *shape: int) -> Array:
    """Small whole numbers, on which sums and products are exact in any order."""
    return rng.integers(-4, 5, shape).astype(np.float32)


@st.composite
def windows(draw: st.DrawFn, *, ceil: bool = False) -> tuple[list[int], list[int], dict[str, Any]]:
    """Spatial sizes of an input, the window, and attributes: strides, dilations, pads or auto_pad, ceil_mode."""
    axes = draw(st.integers(1, 3))

    def several(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))

    kernel, sizes = several(1, 4), several(3, 7)
    attributes: dict[str, Any] = {"strides": several(1, 3)}
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":  # ONNX Runtime's AveragePool forgets dilations beside auto_pad
        attributes["dilations"] = several(1, 2)
    if auto != "NOTSET":
        attributes["auto_pad"] = auto
    else:
        most = min(kernel) - 1
        attributes["pads"] = draw(st.lists(st.integers(0, most), min_size=2 * axes, max_size=2 * axes))
    if ceil and auto == "NOTSET":
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    if auto.startswith("SAME"):
        assume(all(stride <= k for stride, k in zip(attributes["strides"], kernel, strict=True)))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, attributes.get("dilations", [1] * axes), strict=True)]
    pads = attributes.get("pads", [0] * 2 * axes)
    room = [size + pads[i] + pads[axes + i] for i, size in enumerate(sizes)]
    assume(all(span <= size for span, size in zip(spans, room, strict=True)))
    return sizes, kernel, attributes


@FEW
@given(windows(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 99))
@example(([7, 5], [3, 2], {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 0, 1]}), 3, 2, 2, True, 0)
@example(([7, 5], [3, 2], {"strides": [2, 1], "dilations": [2, 1], "pads": [1, 0, 0, 1]}), 3, 1, 1, True, 0)
def test_conv(
    window: tuple[list[int], list[int], dict[str, Any]], group: int, inputs: int, outputs: int, bias: bool, seed: int
) -> None:
    sizes, kernel, attributes = window
    rng = np.random.default_rng(seed)
    feeds = {"x": whole(rng, 2, group * inputs, *sizes), "w": whole(rng, group * outputs, inputs, *kernel)}
    if bias:
        feeds["b"] = whole(rng, group * outputs)
    model = one_node("Conv", feeds, group=group, kernel_shape=kernel, **attributes)
    found = in_float64(model, feeds)
    assert found.dtype == np.float64
    with pytest.MonkeyPatch.context() as patch:  # a few columns, and channels, at a time
        patch.setattr(float64_conv, "_COLUMNS", 30)
        patch.setattr(float64_conv, "_DEPTHWISE", 30)
        assert np.array_equal(found, in_float64(model, feeds))
    assert np.array_equal(found, by_runtime(model, feeds))
    assert np.array_equal(found, by_onnx(model, feeds))


@FEW
@given(windows(ceil=True), st.integers(0, 99))
def test_max_pool(window: tuple[list[int], list[int], dict[str, Any]], seed: int) -> None:
    sizes, kernel, attributes = window
    feeds = {"x": whole(np.random.default_rng(seed), 2, 3, *sizes)}
    model = one_node("MaxPool", feeds, kernel_shape=kernel, **attributes)
    found = in_float64(model, feeds)
    assert np.array_equal(found, by_runtime(model, feeds))
    if not any(attributes.get("pads", [1])):  # onnx's MaxPool pads in other ways
        assert np.array_equal(found, by_onnx(model, feeds))


@FEW
@given(windows(ceil=True), st.integers(0, 1), st.integers(0, 99))
def test_average_pool(window: tuple[list[int], list[int], dict[str, Any]], count_include_pad: int, seed: int) -> None:
    sizes, kernel, attributes = window
    feeds = {"x": whole(np.random.default_rng(seed), 2, 3, *sizes)}
    model = one_node("AveragePool", feeds, kernel_shape=kernel, count_include_pad=count_include_pad, **attributes)
    found = in_float64(model, feeds)
    assert np.allclose(found, by_runtime(model, feeds), rtol=1e-6, atol=1e-6)
    if "auto_pad" not in attributes and not attributes["ceil_mode"]:  # there, onnx's divides by too much
        assert np.allclose(found, by_onnx(model, feeds), rtol=1e-12, atol=1e-12)


@FEW
@given(
    st.sampled_from(["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]),
    st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]),
    st.lists(st.integers(1, 6), min_size=2, max_size=2),
    st.one_of(
        st.lists(st.integers(1, 12), min_size=2, max_size=2),
        st.lists(st.sampled_from([0.3, 1 / 3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0]), min_size=2, max_size=2),
    ),
)
@example("asymmetric", "floor", [6, 6], [1 / 3, 1 / 3])
@example("half_pixel_symmetric", "floor", [1, 3], [1.0, 0.5])
@example("half_pixel_symmetric", "floor", [1, 3], [1.0, 0.7])
def test_resize_to_the_nearest(transformation: str, nearest: str, sizes: list[int], to: list[float]) -> None:
    scaled = isinstance(to[0], float)
    assume(not scaled or all(np.float32(scale) * np.float32(size) >= 1 for scale, size in zip(to, sizes, strict=True)))
    x = np.arange(6.0 * sizes[0] * sizes[1], dtype=np.float32).reshape(2, 3, *sizes)
    last = {"scales": np.array([1, 1, *to], np.float32)} if scaled else {"": x, "sizes": np.array([2, 3, *to])}
    feeds = {"x": x, "roi": np.zeros(0, np.float32), **last}
    how: dict[str, Any] = {"coordinate_transformation_mode": transformation, "nearest_mode": nearest}
    model = one_node("Resize", feeds, 19, mode="nearest", **how)
    feeds.pop("", None)
    assert np.array_equal(in_float64(model, feeds), by_runtime(model, feeds))


@pytest.mark.parametrize("scale", [0.5, 0.7, 1 / 3, 1.5, 2.0, 3.0])
def test_resize_of_opset_10_and_upsample(scale: float) -> None:
    x = np.arange(120, dtype=np.float32).reshape(1, 2, 6, 10)
    feeds = {"x": x, "scales": np.array([1, 1, scale, scale], np.float32)}
    for model in (one_node("Resize", feeds, 10, mode="nearest"), one_node("Upsample", feeds, 9, mode="nearest")):
        if scale >= 1 or model.graph.name == "Resize":  # Upsample does not shrink
            assert np.array_equal(in_float64(model, feeds), by_runtime(model, feeds))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_between_elements(mode: str) -> None:
    feeds = {"x": whole(np.random.default_rng(0), 1, 2, 5, 6), "roi": np.zeros(0, np.float32)}
    feeds["scales"] = np.array([1, 1, 2, 1.5], np.float32)
    model = one_node("Resize", feeds, 19, mode=mode)
    assert np.allclose(in_float64(model, feeds), by_runtime(model, feeds), atol=1e-5)


def test_a_size_that_depends_on_rounding_is_not_covered() -> None:
    feeds = {"x": np.ones((1, 1, 10, 10), np.float32), "roi": np.zeros(0, np.float32)}
    feeds["scales"] = np.array([1, 1, 0.7, 0.7], np.float32)  # 6.99999988 in float64, 7 in float32
    model = one_node("Resize", feeds, 19, mode="linear")
    assert by_runtime(model, feeds).shape == (1, 1, 7, 7)
    with pytest.raises(Float64Failed, match=r"Resize 'y0' is not covered .*depends on rounding"):
        in_float64(model, feeds)


NORMAL = np.random.default_rng(5).standard_normal((2, 6, 5, 7)).astype(np.float32)
PER_CHANNEL = {name: np.linspace(0.5, 2, 6, dtype=np.float32) for name in ("s", "b", "m", "v")}
ELEMENTWISE: tuple[tuple[str, int, dict[str, Array], dict[str, Any]], ...] = (
    ("Erf", 13, {}, {}),
    ("Gelu", 20, {}, {}),
    ("Gelu", 20, {}, {"approximate": "tanh"}),
    ("HardSwish", 22, {}, {}),
    ("Sigmoid", 13, {}, {}),
    ("GlobalAveragePool", 22, {}, {}),
    ("GlobalMaxPool", 22, {}, {}),
    ("BatchNormalization", 15, PER_CHANNEL, {"epsilon": 1e-2}),
    ("BatchNormalization", 9, PER_CHANNEL, {}),
    ("InstanceNormalization", 6, {name: PER_CHANNEL[name] for name in "sb"}, {}),
    ("GroupNormalization", 21, {name: PER_CHANNEL[name] for name in "sb"}, {"num_groups": 3}),
    ("GroupNormalization", 18, {name: PER_CHANNEL[name][:3] for name in "sb"}, {"num_groups": 3}),
    ("LayerNormalization", 17, {"s": np.linspace(1, 2, 7, dtype=np.float32)}, {}),
    ("LRN", 13, {}, {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 2.0}),
    ("LRN", 13, {}, {"size": 5}),
    ("Softmax", 13, {}, {"axis": 1}),
    ("Clip", 6, {}, {"min": -0.3, "max": 0.4}),
    ("HardSigmoid", 22, {}, {}),
    ("PRelu", 16, {"s": PER_CHANNEL["s"].reshape(6, 1, 1)}, {}),
    ("ReduceMean", 13, {}, {"axes": [2, 3]}),
    ("ConvTranspose", 11, {"w": NORMAL[0, :, :2, :3].reshape(6, 1, 2, 3)}, {"group": 3, "strides": [2, 1]}),
)


@pytest.mark.parametrize(("op_type", "opset", "more", "attributes"), ELEMENTWISE)
def test_operators_in_float64(op_type: str, opset: int, more: dict[str, Array], attributes: dict[str, Any]) -> None:
    feeds = {"x": NORMAL, **more}
    model = one_node(op_type, feeds, opset, **attributes)
    found, expected = in_float64(model, feeds), by_runtime(model, feeds)
    assert found.dtype == np.float64
    assert np.abs(found - expected).max() <= 4e-6 * max(1, np.abs(expected).max())
    picks = op_type in ("Clip", "GlobalMaxPool")
    assert picks or (found != found.astype(np.float32)).mean() > 0.2, "computed in float32"


ACTIVATIONS: tuple[tuple[str, list[float]], ...] = (
    ("", []),
    ("Relu", []),
    ("Sigmoid", []),
    ("Tanh", []),
    ("LeakyRelu", [0.2]),
    ("Clip", [-1.0, 2.0]),
    ("HardSigmoid", [0.3, 0.4]),
)


@pytest.mark.parametrize(("activation", "given"), ACTIVATIONS)
def test_fused_conv(activation: str, given: list[float]) -> None:
    rng = np.random.default_rng(3)
    feeds = {"x": NORMAL, "w": rng.standard_normal((4, 3, 3, 2)).astype(np.float32)}
    feeds |= {"b": np.ones(4, np.float32), "z": rng.standard_normal((2, 4, 5, 6)).astype(np.float32)}
    attributes: dict[str, Any] = {"group": 2, "pads": [1, 0, 1, 0]}
    if activation:
        attributes |= {"activation": activation, **({"activation_params": given} if given else {})}
    model = one_node("FusedConv", feeds, domain="com.microsoft", **attributes)
    assert np.allclose(in_float64(model, feeds), by_runtime(model, feeds), atol=1e-5)


def test_dequantize_linear_keeps_large_whole_numbers() -> None:
    feeds = {"x": np.array([[2**25 + 1, 7]], np.int32), "s": np.array(0.5, np.float32)}
    assert in_float64(one_node("DequantizeLinear", feeds, 13), feeds).tolist() == [[2**24 + 0.5, 3.5]]
    feeds = {"x": np.array([[5, 7]], np.uint8), "s": np.array([0.5, 2], np.float32), "z": np.array([1, 3], np.uint8)}
    assert in_float64(one_node("DequantizeLinear", feeds, 13, axis=1), feeds).tolist() == [[2, 8]]


def test_own_operators_are_the_ones_that_are_tested() -> None:
    tested = {row[0] for row in ELEMENTWISE} | {"Conv", "FusedConv", "MaxPool", "AveragePool", "Resize", "Upsample"}
    assert {entry.__name__ for entry in OPERATORS} <= tested | {"DequantizeLinear"}


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array] | None = None,
    *,
    x: Sequence[int | str] = (2, 6, 8, 8),
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
) -> Model:
    """A model of these nodes from the input `x` to the output `y`."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", kind, list(x))],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return Model.load(helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions)))


def agrees(model: Model, *, seed: int = 0, scale: float = 4e-6) -> Array:
    """The output in float64, which ONNX Runtime's is near."""
    value = model.inputs[0].type.tensor_type
    shape = [dim.dim_value or 2 for dim in value.shape.dim]
    kind = helper.tensor_dtype_to_np_dtype(value.elem_type)
    feeds = {"x": np.random.default_rng(seed).standard_normal(shape).astype(kind)}
    found = Float64(model, ["y"])(feeds)["y"]
    expected = run(open_session(model.to_bytes(), Runtime()), feeds)["y"]
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= scale * max(1.0, float(np.abs(expected).max()))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_whole_small_networks(seed: int) -> None:
    for options in ({}, {"kernel": (3,), "size": (9,)}, {"kernel": (3, 1, 3), "size": (4, 5, 6)}, {"strides": [2, 1]}):
        agrees(Model.load(net(seed=seed, **options)))


def test_types_named_inside_become_float64() -> None:
    third = np.full((1, 6, 1, 1), 1 / 3, np.float32)
    nodes = [
        helper.make_node("Constant", [], ["c"], value_float=0.1),
        helper.make_node("Mul", ["x", "c"], ["a"]),
        helper.make_node("Cast", ["a"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Add", ["h", "zeros"], ["s"]),
        helper.make_node("Mul", ["s", "third"], ["y"]),
    ]
    model = graph_model(nodes, {"third": third})
    found = agrees(model)
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 8)).astype(np.float32).astype(np.float64)
    assert np.allclose(found, x * np.float64(np.float32(0.1)) * np.float64(np.float32(1 / 3)), rtol=1e-15)


def test_subgraphs_and_functions_are_evaluated_in_float64() -> None:
    tenth = numpy_helper.from_array(np.array(0.1, np.float32), "tenth")
    body = [
        helper.make_node("Constant", [], ["tenth"], value=tenth),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Mul", ["x", "tenth"], ["product"]),
        helper.make_node("Add", ["product", "zeros"], ["then"]),
    ]
    then = helper.make_graph(body, "then", [], [helper.make_tensor_value_info("then", TensorProto.FLOAT, None)])
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["else"])], "else", [], [helper.make_tensor_value_info("else", 1, None)]
    )
    inner = [
        helper.make_node("Constant", [], ["third"], value_float=1 / 3),
        helper.make_node("Mul", ["v", "third"], ["w"]),
    ]
    function = helper.make_function("own", "Third", ["v"], ["w"], inner, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("If", ["flag"], ["t"], then_branch=then, else_branch=other),
        helper.make_node("Third", ["t"], ["y"], domain="own"),
    ]
    model = graph_model(nodes, {"flag": np.array(True)}, functions=[function])
    found = agrees(model)
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 8)).astype(np.float32).astype(np.float64)
    assert np.allclose(found, x * np.float64(np.float32(0.1)) * np.float64(np.float32(1 / 3)), rtol=1e-15)


def test_what_shapes_are_computed_from_stays_as_it_is() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sizes", "scales"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["floor"]),
        helper.make_node("Cast", ["floor"], ["target"], to=TensorProto.INT64),
        helper.make_node("Resize", ["x", "", "", "target"], ["y"], mode="nearest", nearest_mode="floor"),
    ]
    scales = np.array([1, 1, 0.7, 0.7], np.float32)  # of 10: 7 in float32, 6.99999988 in float64
    assert agrees(graph_model(nodes, {"scales": scales}, x=(1, 2, 10, 10))).shape == (1, 2, 7, 7)


def test_nodes_in_any_order() -> None:
    nodes = [
        helper.make_node("Mul", ["a", "third"], ["y"]),
        helper.make_node("Exp", ["x"], ["a"]),
    ]
    model = graph_model(nodes, {"third": np.array(1 / 3, np.float32)})
    x = np.ones((2, 6, 8, 8), np.float32)
    assert np.allclose(Float64(model, ["y"])({"x": x})["y"], np.e * np.float64(np.float32(1 / 3)), rtol=1e-15)


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (helper.make_node("Frobnicate", ["x"], ["y"], domain="own"), "own:Frobnicate 'y' is not covered"),
        (helper.make_node("RandomUniformLike", ["x"], ["y"]), "RandomUniformLike 'y' gives random numbers"),
        (helper.make_node("GridSample", ["x", "x"], ["y"]), "GridSample 'y' is computed in float32"),
        (helper.make_node("Relu", ["z"], ["y"]), "the tensor 'z' is neither computed nor a dense constant"),
    ],
)
def test_what_is_not_covered_is_named(node: onnx.NodeProto, why: str) -> None:
    with pytest.raises(Float64Failed, match=why):
        Float64(graph_model([node]), ["y"])({"x": np.ones((2, 6, 8, 8), np.float32)})


def test_it_ends_when_its_time_is_spent_and_says_how_far_it_came() -> None:
    model = graph_model([helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Exp", ["a"], ["y"])])
    told: list[tuple[int, int]] = []
    feeds = {"x": np.ones((2, 6, 8, 8), np.float32)}
    Float64(model, ["y"])(feeds, tell=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]
    with pytest.raises(Float64Failed, match=r"more than -1 s .stopped after 0 of 2 operators"):
        Float64(model, ["y"])(feeds, limit=-1)
