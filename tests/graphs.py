"""Models by hand for tests: small convolutions, and one model with every unusual thing the format allows at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from rewriter.wire import header
from untouched import raw_fields

FLOAT = TensorProto.FLOAT
DATA_FILE = "weights/exotic.data"
"""Where the exotic model keeps two tensors, in its folder."""


def value(name: str, shape: Sequence[int | str | None] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def tensor(name: str, array: npt.ArrayLike) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def weights(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    """Seeded normal float32 weights."""
    return tensor(name, np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), list(outputs), **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])


def grouped_conv(ir_version: int = 8) -> onnx.ModelProto:
    """x [2, 8, 6, 6] -> Conv in 4 groups -> Relu; up to IR version 3 the weights are graph inputs too."""
    made = model(
        [node("Conv", ["x", "w", "b"], ["c"], name="conv", group=4), node("Relu", ["c"], ["y"], name="relu")],
        [value("x", [2, 8, 6, 6])],
        [value("y", [2, 8, 4, 4])],
        [weights("w", 8, 2, 3, 3), weights("b", 8)],
        ir_version=ir_version,
    )
    if ir_version < 4:
        made.graph.input.extend([value("w", [8, 2, 3, 3]), value("b", [8])])
        made.opset_import[0].version = 8
    return made


def several_convs_ir3() -> onnx.ModelProto:
    """IR version 3: one grouped Conv with weights from an input-and-initializer, one with them from ConstantOfShape."""
    made = grouped_conv(ir_version=3)
    made.opset_import[0].version = 9
    fill = tensor("", np.array([0.5], np.float32))
    made.graph.node.extend(
        [
            node("ConstantOfShape", ["shape"], ["filled"], value=fill),
            node("Conv", ["y", "filled"], ["z"], name="second", group=4),
        ]
    )
    made.graph.initializer.append(tensor("shape", np.array([8, 2, 3, 3], np.int64)))
    made.graph.input.append(value("shape", [4], TensorProto.INT64))
    made.graph.output[0].CopyFrom(value("z", [2, 8, 2, 2]))
    return made


def save_with_data(made: onnx.ModelProto, folder: Path, size_threshold: int = 1024) -> Path:
    """Save as `m.onnx` with its larger tensors in `m.data`; gives the path."""
    path = folder / "m.onnx"
    onnx.save(made, path, save_as_external_data=True, location="m.data", size_threshold=size_threshold)
    return path


# The model with everything.


def exotic_model() -> onnx.ModelProto:
    """Grouped convolutions among everything a tool could lose; `write_exotic_data` makes its data file."""
    graph = helper.make_graph(
        _exotic_nodes(),
        "exotic graph",
        [
            _described(value("x", [2, 8, 12, 12])),
            helper.make_tensor_sequence_value_info("sequence", FLOAT, ["n"]),
            onnx.ValueInfoProto(name="maybe", type=helper.make_optional_type_proto(value("t", ["k"]).type)),
            value("flag", [], TensorProto.BOOL),
            value("overridable", [8, 2, 3, 3]),
        ],
        [_described(value("y", [2, 8, 4, 4])), value("wide", [2, 8, 10, 10]), value("picked", [2, 8, "h", "w"])],
        _exotic_initializers(),
        doc_string="about the graph",
        value_info=[
            _described(value("a", [2, 8, 10, 10])),
            value("a_relu", [2, 8, 10, 10]),
            _described(value("a_weight", [8, 2, 3, 3])),
            value("shared_one", [2, 8, 6, 6]),
            value("x", ["other", 8, 12, 12]),
        ],
    )
    graph.sparse_initializer.append(
        helper.make_sparse_tensor(weights("sparse", 2), tensor("sparse_indices", np.array([1, 5])), [4, 4])
    )
    for name in ("a", "a_weight", "b", "x"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
        _unknown(annotation)
    _metadata(graph)
    made = helper.make_model(
        graph,
        ir_version=13,
        opset_imports=[helper.make_opsetid(*entry) for entry in (("", 21), ("com.example", 3), ("local", 1))],
        producer_name="tests",
        producer_version="1.2",
        domain="org.example",
        model_version=7,
        doc_string="about the model",
        functions=[_function()],
    )
    _metadata(made)
    made.training_info.add().initialization_binding.add(key="a_bias", value="somewhere")
    _unknown(made)
    _unknown(made.graph)
    return made


def write_exotic_data(folder: Path) -> None:
    """Two float32 weights of shape [8, 2, 3, 3], one after the other."""
    path = folder / DATA_FILE
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(weights("", 2, 8, 2, 3, 3).raw_data)


def _exotic_nodes() -> list[onnx.NodeProto]:
    nodes = [
        _mystery(),
        node("Conv", ["x", "a_weight", "a_bias"], ["a"], name="conv a", group=4, doc_string="about conv a"),
        node("Relu", ["a"], ["a_relu"], name="relu", doc_string="about relu"),
        node("Conv", ["a_relu", "overridable"], ["b"], name="conv b", group=4),
        node("Conv", ["b", "c_weight"], ["c"], name="conv c", group=4),
        node("Dropout", ["c"], ["dropped", ""], name="dropout"),
        node("Conv", ["dropped", "shared"], ["shared_one"], name="shared 1", group=4, pads=[1] * 4),
        node("Conv", ["shared_one", "shared"], ["shared_two"], name="shared 2", group=4),
        node("If", ["flag"], ["picked"], name="choice", then_branch=_then_branch(), else_branch=_else_branch()),
        node("Twice", ["shared_two"], ["doubled"], name="call", domain="local", amount=2),
        node("Conv", ["doubled", "from_file"], ["y"], name="conv from file", group=4, pads=[1] * 4),
        node("Clip", ["a", "", "limit"], ["wide"], name="clip"),
    ]
    for entry in nodes:
        _metadata(entry)
    _unknown(nodes[1])
    _unknown(nodes[2])
    return nodes


def _mystery() -> onnx.NodeProto:
    """A node of an unknown domain with attributes of every kind."""
    inner = helper.make_graph([node("Relu", ["a_bias"], ["r"])], "in a list", [], [value("r", [8])])
    inputs = ["x", "sequence", "maybe", "sparse", "half", "eighth", "quarter", "words", "also_from_file"]
    mystery = node("Mystery", inputs, ["m", ""], domain="com.example", name="mystery", overload="second")
    sparse = helper.make_sparse_tensor(weights("", 1), tensor("", np.array([1])), [3])
    attributes: dict[str, Any] = {
        "tensors": [_described(weights("t1", 3)), weights("t2", 400)],
        "graphs": [inner, inner],
        "type": helper.make_tensor_type_proto(FLOAT, ["batch", 3]),
        "types": [helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))],
        "strings": [b"\xff\xfe", b"plain", b""],
        "string": b"\x00\xff",
        "floats": [0.1, -0.0],
        "ints": [1, -(2**40)],
        "sparse": sparse,
        "tensor": tensor("t3", np.arange(5, dtype=np.uint8)),
    }
    for name, content in attributes.items():
        mystery.attribute.append(helper.make_attribute(name, content, doc_string=f"about {name}"))
    _unknown(mystery.attribute[0])
    return mystery


def _then_branch() -> onnx.GraphProto:
    """Captures `a`, and makes a tensor of the very name that a rewrite of `conv a` would take."""
    branch = helper.make_graph(
        [node("Add", ["a", "inner"], ["a/regroup/weight"]), node("Relu", ["a/regroup/weight"], ["then"], name="in")],
        "then",
        [],
        [value("then", [2, 8, 10, 10])],
        [_described(tensor("inner", np.float32(1)))],
        doc_string="about the branch",
        value_info=[value("a/regroup/weight", None)],
    )
    _metadata(branch)
    return branch


def _else_branch() -> onnx.GraphProto:
    """Reads an outer tensor that no node of the main graph but its producer knows."""
    again = node("Identity", ["shared_two"], ["else"])
    return helper.make_graph([again], "else", [], [value("else", [2, 8, 4, 4])])


def _exotic_initializers() -> list[onnx.TensorProto]:
    return [
        _described(weights("a_weight", 8, 2, 3, 3)),
        weights("a_bias", 8),
        weights("overridable", 8, 2, 3, 3),
        weights("c_weight", 8, 2, 3, 3, seed=1),
        weights("shared", 8, 2, 3, 3, seed=2),
        tensor("scale", np.float32(0.5)),
        tensor("limit", np.float32(6)),
        tensor("half", np.arange(700).astype(ml_dtypes.bfloat16)),
        tensor("eighth", np.arange(4).astype(ml_dtypes.float8_e4m3fn)),
        tensor("quarter", np.arange(5).astype(ml_dtypes.int4)),
        TensorProto(name="words", data_type=TensorProto.STRING, dims=[2], string_data=[b"one", b"\xff"]),
        _external("from_file", 0),
        _external("also_from_file", 576),
        weights("nobody_reads", 3),
    ]


def _external(name: str, offset: int) -> onnx.TensorProto:
    made = onnx.TensorProto(name=name, data_type=FLOAT, dims=[8, 2, 3, 3], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", DATA_FILE), ("offset", str(offset)), ("length", "576"), ("checksum", "00ff")):
        made.external_data.add(key=key, value=text)
    return made


def _function() -> onnx.FunctionProto:
    made = helper.make_function(
        "local",
        "Twice",
        ["p"],
        ["q"],
        [node("Add", ["p", "p"], ["q"], name="add", doc_string="inside")],
        [helper.make_opsetid("", 20)],
        ["amount"],
        [helper.make_attribute("other", 3)],
    )
    made.doc_string = "about the function"
    _metadata(made)
    return made


def _described(message: Any) -> Any:
    """With a doc_string, metadata and an unknown field."""
    message.doc_string = f"about {message.name}"
    _metadata(message)
    _unknown(message)
    return message


def _metadata(message: Any) -> None:
    message.metadata_props.add(key="origin", value="hand")
    message.metadata_props.add(key="naïve", value="")


def _unknown(message: Message) -> None:
    """A field from a newer version of the format: number 1000, with 3 bytes."""
    message.MergeFromString(b"\xc2\x3e\x03abc")


# Legal encodings that no writer of ours would choose.


def unusual(name: str) -> bytes:
    """The exotic model in the encoding of that name."""
    plain = exotic_model().SerializeToString(deterministic=True)
    top = raw_fields(plain)
    (graph,) = [field for field in top if field.number == 7]
    rest = b"".join(field.raw for field in top if field.number != 7)
    inner = raw_fields(graph.body)
    match name:
        case "graph first":
            return graph.raw + rest
        case "graph last":
            return rest + graph.raw
        case "long lengths":
            body = b"".join(
                _padded(field.number, field.body) if field.raw[0] & 7 == 2 else field.raw for field in inner
            )
            return rest + _padded(7, body)
        case "long tags":
            return b"".join(
                bytes([field.raw[0] | 128, 0]) + field.raw[1:] if field.raw[0] < 128 else field.raw for field in top
            )
        case "repeated singular fields":
            twice = graph.body + b"\x12\x05other\x12\x0cexotic graph"
            return b"\x08\x03" + header(7, len(twice)) + twice + rest + b"\x08\x0d"
        case "split graph":
            half = len(inner) // 2
            one, two = (b"".join(field.raw for field in part) for part in (inner[:half], inner[half:]))
            return header(7, len(one)) + one + rest + header(7, len(two)) + two + header(7, 0)
        case "reversed fields":
            body = b"".join(
                field.raw
                for kind in (14, 13, 12, 11, 15, 5, 1, 10, 2, 16, 1000)
                for field in inner
                if field.number == kind
            )
            return rest + header(7, len(body)) + body
        case "interleaved":
            nodes = [field.raw for field in inner if field.number == 1]
            others = [field.raw for field in inner if field.number != 1]
            body = b"".join(a + b for a, b in zip(nodes, others, strict=False)) + b"".join(others[len(nodes) :])
            return header(7, len(body)) + body + rest
        case "wrong wire types":  # a number where a message should be: unknown fields to protobuf
            body = b"\x08\x07" + graph.body + b"\x28\x07\x68\x07"
            return b"\x38\x07" + rest + header(7, len(body)) + body
    raise KeyError(name)


UNUSUAL = [
    "graph first",
    "graph last",
    "long lengths",
    "long tags",
    "repeated singular fields",
    "split graph",
    "reversed fields",
    "interleaved",
    "wrong wire types",
]


def _padded(number: int, body: bytes) -> bytes:
    """A length-delimited field whose length takes one byte more than it needs."""
    plain = header(number, len(body))
    return plain[:-1] + bytes([plain[-1] | 128, 0]) + body
