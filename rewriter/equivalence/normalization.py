"""BatchNormalization as what it is at run time: a scale and an offset of each channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from rewriter.constants import Array, attributes
from rewriter.equivalence import forms
from rewriter.equivalence.forms import Form, Unsupported

if TYPE_CHECKING:
    from rewriter.equivalence.linear import Evaluation


def batch_normalization(run: Evaluation, node: onnx.NodeProto, operands: Sequence[Form | Array | None]) -> Form:
    """(x − mean) / √(variance + ε) · gain + beta, the parameters being constants; raises Unsupported."""
    data, *parameters = operands
    found = attributes(node)
    if not isinstance(data, Form) or any(not isinstance(value, np.ndarray) for value in parameters):
        raise Unsupported(f"BatchNormalization '{node.output[0]}' has parameters known only at run time")
    if found.get("training_mode", 0) or sum(map(bool, node.output)) > 1:
        raise Unsupported(f"BatchNormalization '{node.output[0]}' is in training mode")
    column = (-1, *[1] * (len(data.shape) - 2))
    gain, beta, mean, variance = (np.asarray(value, np.float64).reshape(column) for value in parameters)
    epsilon = found.get("epsilon", 1e-5)
    assert isinstance(epsilon, float)
    centred = forms.add(data, forms.constant_form(-mean, run.dtype))
    scaled = forms.scale(centred, gain / np.sqrt(variance + np.float32(epsilon).astype(np.float64)))
    return forms.add(scaled, forms.constant_form(beta, run.dtype))
