"""Tensors at a fixed address on a device, bound as inputs and outputs of a session.

A captured CUDA graph reads and writes the addresses it was captured with, so nothing here is ever placed anew.
Types that NumPy does not know (bfloat16, float8) lie there as the words of their bits, bound with their ONNX type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from rewriter.session import SessionFailed

_WORDS: Final = {1: TensorProto.UINT8, 2: TensorProto.UINT16}
# Several elements per byte, in an order of ONNX Runtime's own.
_PACKED: Final = frozenset(
    {TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2, TensorProto.FLOAT4E2M1}
)


@dataclass(frozen=True)
class Place:
    """A device as ONNX Runtime's I/O binding names it, and its number."""

    device: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.device}:{self.number}"


@dataclass(frozen=True)
class Signature:
    """ONNX element type and shape of a tensor."""

    code: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy or `ml_dtypes` type of its elements."""
        return helper.tensor_dtype_to_np_dtype(self.code)

    @property
    def words(self) -> bool:
        """Whether NumPy does not know the type, so that its bits are handed over instead."""
        return self.dtype.isbuiltin == 2  # registered with NumPy by a package, as ml_dtypes does


@dataclass(frozen=True)
class BoundTensor:
    """A tensor at `place`, which lives as long as this does. `value` holds its elements, or the words of their bits."""

    place: Place
    signature: Signature
    value: ort.OrtValue

    def bind_input(self, binding: ort.IOBinding, name: str) -> None:
        """Be the input `name`."""
        if self.signature.words:
            binding.bind_input(name, *self._raw())
        else:
            binding.bind_ortvalue_input(name, self.value)

    def bind_output(self, binding: ort.IOBinding, name: str) -> None:
        """Be what the output `name` is written into."""
        if self.signature.words:
            binding.bind_output(name, *self._raw())
        else:
            binding.bind_ortvalue_output(name, self.value)

    def read(self) -> np.ndarray:
        """A copy of it in the memory of the host."""
        array = np.array(self.value.numpy())
        return array.view(self.signature.dtype) if self.signature.words else array

    def write(self, array: np.ndarray) -> None:
        """Overwrite it where it lies; `array` has its type and shape."""
        contiguous = np.asarray(array, order="C")
        self.value.update_inplace(contiguous.view(_word(contiguous)) if self.signature.words else contiguous)

    def _raw(self) -> tuple[str, int, int, list[int], int]:
        shape = list(self.signature.shape)
        return self.place.device, self.place.number, self.signature.code, shape, self.value.data_ptr()


def upload(name: str, array: np.ndarray, place: Place) -> BoundTensor:
    """A copy of the input `array` at `place`. Raises SessionFailed for a type that cannot be bound."""
    contiguous = np.asarray(array, order="C")
    if contiguous.dtype.kind in "OUST":
        raise SessionFailed(_unbindable(f"input {name!r}", "string"))
    signature = Signature(helper.np_dtype_to_tensor_dtype(contiguous.dtype), contiguous.shape)
    _check(f"input {name!r}", signature)
    raw = contiguous.view(_word(contiguous)) if signature.words else contiguous
    return BoundTensor(place, signature, ort.OrtValue.ortvalue_from_numpy(raw, place.device, place.number))


def reserve(name: str, signature: Signature, place: Place) -> BoundTensor:
    """Room for the output `name` at `place`. Raises SessionFailed for a type that cannot be bound."""
    _check(f"output {name!r}", signature)
    code = _WORDS[signature.dtype.itemsize] if signature.words else signature.code
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(signature.shape), code, place.device, place.number)
    return BoundTensor(place, signature, value)


def signature_of(name: str, value: ort.OrtValue) -> Signature:
    """Type and shape of what a run gave as output `name`. Raises SessionFailed where that is no tensor."""
    if not value.is_tensor():
        raise SessionFailed(_unbindable(f"output {name!r}", value.data_type()))
    return Signature(int(value.element_type()), tuple(value.shape()))


def _check(what: str, signature: Signature) -> None:
    if signature.code == TensorProto.STRING:
        raise SessionFailed(_unbindable(what, "string"))
    if signature.code in _PACKED:
        raise SessionFailed(_unbindable(what, signature.dtype.name))


def _unbindable(what: str, kind: str) -> str:
    return f"The {what} has type {kind}, which cannot be bound to a device: time the model on the cpu."


def _word(array: np.ndarray) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if array.dtype.itemsize == 2 else np.uint8
