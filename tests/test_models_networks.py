"""The networks of models/ are the published ones, alive in every channel, and the same in every opset and spelling."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx
import pytest

from model_runs import error, normal_input, run, serialised
from models.alexnet import AlexNet
from models.catalogue import NETWORKS, Options, build, catalogue
from models.emit import NEWEST_OPSET
from models.errors import ModelError
from models.half import half_model
from models.mixnet import MixNetS
from models.mobilenet import MobileNetV1, MobileNetV2
from models.regnet import RegNetX, RegNetY
from models.shufflenet import ShuffleNetV1, ShuffleNetV2
from models.signal import FUNCTIONS, Signal, activated, convolved, filters, largest
from models.spec import Spec
from models.xception import Xception
from models.zoo.refill import FOLDER
from small_networks import SMALL

# Where the exports of the zoo have the same network: convolutions of the same shapes, groups and strides.
EXPORTS = {
    MobileNetV1: "keras_mobilenet",
    MobileNetV2: "mobilenet_v2",
    ShuffleNetV2: "shufflenet_v2_x1_0",
    RegNetX: "regnet_x_400mf",
    RegNetY: "regnet_y_400mf",
    MixNetS: "timm_mixnet_s",
}
# Learned values: weights and biases, and of each batch normalisation the scale and the shift.
PUBLISHED = [
    (AlexNet(), 60_965_224),  # Caffe's model, which has the two groups; the paper says 60 million
    (MixNetS(norm="kept"), 4_134_606),  # table of the imgclsmob collection; the paper says 4.1 M
    (MobileNetV1(norm="kept"), 4_231_976),  # Keras, trainable, and TF-slim's table; the paper says 4.2 M
    (MobileNetV2(norm="kept"), 3_504_872),  # torchvision's num_params
    (RegNetX(norm="kept"), 5_495_976),  # torchvision's num_params
    (RegNetY(norm="kept"), 4_344_144),  # torchvision's num_params
    (ShuffleNetV1(norm="kept"), 1_865_728),  # table of the imgclsmob collection; the paper gives none
    (ShuffleNetV1(norm="kept", groups=1), 1_531_936),  # the same table
    (ShuffleNetV1(norm="kept", groups=8), 2_434_768),  # the same table
    (ShuffleNetV2(norm="kept"), 2_278_604),  # torchvision's num_params
    (Xception(norm="kept"), 22_855_952),  # the paper's table 3, and Keras, trainable
]
LAST = {
    "AlexNet": ("pool5", [1, 256, 6, 6]),
    "MixNetS": ("last.relu", [1, 1536, 7, 7]),
    "MobileNetV1": ("stage5.block2.relu2", [1, 1024, 7, 7]),
    "MobileNetV2": ("last.relu", [1, 1280, 7, 7]),
    "RegNetX": ("stage4.block12.relu3", [1, 400, 7, 7]),
    "RegNetY": ("stage4.block6.relu3", [1, 440, 7, 7]),
    "ShuffleNetV1": ("stage3.unit4.relu2", [1, 960, 7, 7]),
    "ShuffleNetV2": ("last.relu", [1, 1024, 7, 7]),
    "Xception": ("exit.relu2", [1, 2048, 10, 10]),
}


def name_of(spec: Spec) -> str:
    return type(spec).__name__ + (" kept" if spec.norm == "kept" else "")


def conv_signatures(graph: onnx.GraphProto) -> Counter[tuple[Any, ...]]:
    """Weight shape, groups and strides of every convolution, order aside."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found: Counter[tuple[Any, ...]] = Counter()
    for node in graph.node:
        if node.op_type == "Conv":
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            found[shapes[node.input[1]], attributes.get("group", 1), tuple(attributes["strides"])] += 1
    return found


def learned(model: onnx.ModelProto) -> int:
    """Values that training would learn: no statistics, no limits of Clip."""
    fixed = (".norm.mean", ".norm.variance", ".min", ".max")
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    return sum(prod(tensor.dims) for tensor in tensors if not tensor.name.endswith(fixed))


@pytest.mark.parametrize(("spec", "count"), PUBLISHED, ids=[f"{name_of(spec)} {count}" for spec, count in PUBLISHED])
def test_the_published_size(spec: Spec, count: int) -> None:
    """Learned values as published, shapes, and the convolutions of the exported network; one build for all of it."""
    model = spec.model()
    assert learned(model) == count
    if type(spec) in EXPORTS:
        same_convolutions_as_exported(type(spec), model.graph)
    for tensor in model.graph.initializer:  # shapes need none of the weights, and are found much faster without
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.ClearField("raw_data")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info}
    name, shape = LAST[type(spec).__name__]
    if getattr(spec, "groups", 3) == 3:
        assert shapes[name] == shape
    assert [d.dim_value for d in inferred.output[0].type.tensor_type.shape.dim] == [1, 1000]


def same_convolutions_as_exported(network: type[Spec], graph: onnx.GraphProto) -> None:
    exported = onnx.load(FOLDER / f"{EXPORTS[network]}.onnx").graph
    ours = conv_signatures(graph)
    if network is MobileNetV1:  # Keras has its classifier as a convolution.
        ours[(1000, 1024, 1, 1), 1, (1, 1)] += 1
    assert ours == conv_signatures(exported)
    if network is MixNetS:
        assert norms_behind_concat(graph) == norms_behind_concat(exported) > 0


def norms_behind_concat(graph: onnx.GraphProto) -> int:
    made = {name: node.op_type for node in graph.node for name in node.output}
    return sum(n.op_type == "BatchNormalization" and made[n.input[0]] == "Concat" for n in graph.node)


def test_every_network_is_tested_and_in_the_catalogue() -> None:
    assert [type(spec) for spec in SMALL] == list(NETWORKS.values())
    assert set(NETWORKS) < set(catalogue())
    assert serialised(build("shufflenet_v2", Options(seed=3, batch="N", opset=13))) == serialised(
        ShuffleNetV2(seed=3, batch=None, opset=13).model()
    )


# Alive: what comes out of every layer has about unit scale, in every channel, and depends on the image.

WATCHED = ("Conv", "BatchNormalization", "Relu", "Clip", "Mul", "Add", "MaxPool", "AveragePool", "Sigmoid", "Gemm")


@pytest.mark.parametrize("spec", [*SMALL, *(replace(spec, norm="kept") for spec in SMALL[1:])], ids=name_of)
def test_every_channel_is_alive(spec: Spec) -> None:
    model = replace(spec, batch=64).model()
    watched = [node for node in model.graph.node if node.op_type in WATCHED]
    model.graph.output.extend(onnx.ValueInfoProto(name=n.output[0]) for n in watched if n.output[0] != "logits")
    values = run(model, normal_input(model, seed=1))
    normed = {node.input[0] for node in model.graph.node if node.op_type in ("BatchNormalization", "Concat")}
    for node in watched:
        name, value = node.output[0], values[node.output[0]]
        rest = (0, *range(2, value.ndim))
        assert np.isfinite(value).all(), name
        channels = value.std(axis=rest)
        assert channels.min() >= 0.01, f"channel {channels.argmin()} of {name} is dead: {channels.min()}"
        assert channels.max() <= 8, f"channel {channels.argmax()} of {name} explodes: {channels.max()}"
        if name not in normed and node.op_type in ("Conv", "Gemm", "BatchNormalization"):
            assert 0.25 <= value.std() <= 4, name
        # The images are told apart everywhere on the way: the mean spread between images, over the spread of all.
        assert value.std(axis=0).mean() >= 0.2 * value.std(), name


# AlexNet is left out: 240 MB of weights say little that the small one does not.
@pytest.mark.slow
@pytest.mark.parametrize("network", list(NETWORKS.values())[1:], ids=lambda network: network.__name__)
def test_the_full_size_answers_to_the_image(network: type[Spec]) -> None:
    logits = run(model := network(batch=2).model(), normal_input(model, seed=1))["logits"]
    assert 0.3 <= logits.std() <= 3
    assert error(logits[1], logits[0]) >= 0.3


# The same network, however it is written.


@pytest.mark.parametrize("spec", SMALL, ids=name_of)
@pytest.mark.parametrize("opset", [7, 12, NEWEST_OPSET])
def test_opsets_and_an_open_batch_change_nothing(spec: Spec, opset: int) -> None:
    model = replace(spec, opset=opset, batch=None).model()
    onnx.checker.check_model(model, full_check=True)
    x = normal_input(model, seed=1, batch=3)
    logits = run(model, x)["logits"]
    assert logits.shape == (3, 10)
    assert error(logits, run(replace(spec, batch=3).model(), x)["logits"]) <= 1e-4


@pytest.mark.parametrize("spec", SMALL[1:], ids=name_of)
def test_folded_and_kept_norms_are_the_same_network(spec: Spec) -> None:
    folded, kept = spec.model(), replace(spec, norm="kept").model()
    assert not [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
    assert [node for node in kept.graph.node if node.op_type == "BatchNormalization"]
    x = normal_input(folded, seed=1)
    assert error(run(kept, x)["logits"], run(folded, x)["logits"]) <= 1e-3


@pytest.mark.parametrize("spec", SMALL, ids=name_of)
def test_the_seed_decides_the_weights(spec: Spec) -> None:
    def weights(made: Spec) -> dict[str, bytes]:
        return {t.name: t.raw_data for t in made.model().graph.initializer if t.name.endswith(".weight")}

    assert serialised(spec.model()) == serialised(replace(spec).model())
    first = weights(spec)
    assert first == weights(replace(spec, batch=None))
    other = weights(replace(spec, seed=1))
    assert all(other[name] != data for name, data in first.items())


@pytest.mark.parametrize("spec", SMALL, ids=name_of)
def test_networks_can_be_float16(spec: Spec) -> None:
    model = half_model(spec.model())
    x = normal_input(spec.model(), seed=1)
    logits = run(model, {"input": x["input"].astype(np.float16)})["logits"]
    assert logits.dtype == np.float16
    assert error(logits, run(spec.model(), x)["logits"]) <= 0.2


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (MobileNetV2, {"batch": 0}, "at least 1"),
        (MobileNetV2, {"classes": 0}, "at least 1"),
        (MobileNetV2, {"width": 0.0}, "more than 0"),
        (MobileNetV2, {"image": 31}, "at least 32 wide"),
        (MobileNetV2, {"blocks": (1, 1)}, "blocks has 2 entries, and the network 7 stages"),
        (MobileNetV2, {"blocks": (1, 1, 0, 1, 1, 1, 1)}, "at least 1"),
        (MobileNetV2, {"seed": -1}, "seed"),
        (MobileNetV2, {"opset": 6}, "opset 6"),
        (MobileNetV2, {"norm": "layer"}, "neither folded nor kept"),
        (AlexNet, {"blocks": (1,)}, "blocks has 1 entries"),
        (AlexNet, {"image": 66}, "at least 67 wide"),
        (AlexNet, {"norm": "kept"}, "no batch normalisation"),
        (ShuffleNetV1, {"groups": 5}, "1, 2, 3, 4, 8, not 5"),
    ],
)
def test_impossible_networks_are_refused(network: type[Spec], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        network(**options)


# What the builders expect is what comes.


def test_expectations_of_activations_pools_and_convolutions() -> None:
    rng = np.random.default_rng(0)
    z = 0.3 + 0.8 * rng.standard_normal(1_000_000)
    x = Signal("x", 1, np.array([0.3]), np.array([0.64]))
    for kind, function in FUNCTIONS.items():
        expected = activated(x, "y", kind)
        assert expected.mean[0] == pytest.approx(function(z).mean(), abs=5e-3)
        assert expected.variance[0] == pytest.approx(function(z).var(), rel=1e-2)
    mean, variance = largest(9)
    largest_of_nine = rng.standard_normal((9, 200_000)).max(axis=0)
    assert mean == pytest.approx(largest_of_nine.mean(), abs=1e-2)
    assert variance == pytest.approx(largest_of_nine.var(), rel=2e-2)
    assert largest(1) == pytest.approx((0, 1), abs=1e-2)


@pytest.mark.parametrize(("groups", "stride", "channels"), [(1, 1, 6), (2, 2, 6), (6, 1, 6)])
def test_expectation_of_a_convolution_counts_the_padding(groups: int, stride: int, channels: int) -> None:
    side = 4
    weight = filters(np.random.default_rng(1), (6, channels // groups, 3, 3))
    x = Signal("x", side, np.linspace(-1, 1, channels), np.linspace(0.5, 2, channels))
    out = -(-side // stride)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=groups, strides=[stride] * 2, pads=[1] * 4)],
        "conv",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [20000, channels, side, side])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [20000, 6, out, out])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    values = normal_input(model, seed=2)["x"] * np.sqrt(x.variance)[:, None, None] + x.mean[:, None, None]
    y = run(model, {"x": values.astype(np.float32)})["y"]
    expected = convolved(x, "y", weight, groups, stride, 1, out)
    assert np.allclose(expected.mean, y.mean(axis=(0, 2, 3)), atol=0.03)
    assert np.allclose(expected.variance, y.var(axis=(0, 2, 3)), rtol=0.05)
