"""A reference model in float16: weights, inputs and outputs, by the converter that comes with ONNX Runtime.

Weights are rounded to the nearest float16, those below its smallest number set to it.  Operators that compute worse or
not at all in float16 (by the converter's own list, such as Resize) stay in float32 between two Casts.
"""

from __future__ import annotations

import onnx

from models.errors import ModelError


def half_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in float16; it is left as it is.

    The converter needs the types of all tensors and leaves them in the model; only those that `model` declared itself
    remain, so that both models tell a rewriter equally much.  Raises `ModelError` where there is nothing to convert or
    the result is no valid model.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16  # here, because few models are asked for it

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if not _floats(copy):
        raise ModelError("the model has no float32 input and no float32 weight: it cannot be made a float16 model")
    converted: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=False)
    declared = {value.name for value in model.graph.value_info}
    kept = [value for value in converted.graph.value_info if value.name in declared]
    del converted.graph.value_info[:]
    converted.graph.value_info.extend(kept)
    try:
        onnx.checker.check_model(converted)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the model does not become a valid float16 model: {str(error).splitlines()[0]}") from error
    return converted


def _floats(model: onnx.ModelProto) -> bool:
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in model.graph.input}
    return onnx.TensorProto.FLOAT in kinds
