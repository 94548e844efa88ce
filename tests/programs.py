"""Small models written in ONNX's text syntax, with constants given beside: for tables of before and after."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, parser, shape_inference

Constant = tuple[int, ...] | list[int] | npt.NDArray[np.generic] | np.generic


def program(
    body: str,
    *,
    x: str = "float[N,8,5,5]",
    y: str = "y",
    opset: int = 18,
    ir: int | None = None,
    dtype: npt.DTypeLike = np.float32,
    **constants: Constant,
) -> onnx.ModelProto:
    """The model `(x) => (y)` of these nodes; `y` may name several outputs.

    A constant is a tuple: seeded weights of that shape; a list: int64 numbers; or an array.
    """
    kind = x.partition("[")[0]
    outputs = ", ".join(f"{kind} {name}" for name in y.split())
    text = f'<ir_version: {ir or 8}, opset_import: ["": {opset}]> program ({x} x) => ({outputs}) {{ {body} }}'
    model = parser.parse_model(text)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")  # the syntax knows no tensor of unknown rank
    if ir is None:
        model.ir_version = max(4, helper.find_min_ir_version_for(list(model.opset_import)))
    rng = np.random.default_rng(0)
    for name, given in constants.items():
        if isinstance(given, tuple):
            array = rng.standard_normal(given).astype(dtype)
        else:
            array = np.asarray(given, np.int64) if isinstance(given, list) else np.asarray(given)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        if model.ir_version < 4:
            model.graph.input.append(
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            )
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        value.type.CopyFrom(found.type)
    return model
