"""Hashes of the outputs that were timed, so that they can be compared with the outputs that were audited."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def tensor_sha256(tensor: np.ndarray) -> str:
    """SHA-256 (hex) of a tensor's element type, shape and bits: equal exactly where the tensors are bitwise equal."""
    array = np.asarray(tensor)
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape} ".encode())
    # Strings have no bits of their own; repr keeps "a", b"a" and the borders between elements apart.
    digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.hexdigest()


def output_sha256(outputs: Mapping[str, np.ndarray]) -> dict[str, str]:
    """`tensor_sha256` of every output."""
    return {name: tensor_sha256(tensor) for name, tensor in outputs.items()}


def differing(first: Mapping[str, str], last: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the outputs whose hashes differ, or that only one of the two has."""
    return tuple(name for name in sorted({*first, *last}) if first.get(name) != last.get(name))
