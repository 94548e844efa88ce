"""Wrong folds of normalizations and scales into the weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from test_equivalence import rewrites as rw
from test_equivalence.nets import Array, chain
from test_equivalence.wrong_cases import Case, wrong


def normalized(seed: int = 0) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Conv → BatchNormalization, with a variance small enough for epsilon to matter."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.standard_normal((6, 4, 3, 3)).astype(np.float32),
        "gain": rng.uniform(0.5, 2, 6).astype(np.float32),
        "beta": rng.standard_normal(6).astype(np.float32),
        "mean": rng.standard_normal(6).astype(np.float32),
        "variance": rng.uniform(0.01, 1, 6).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["t"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["t", "gain", "beta", "mean", "variance"], ["y"], epsilon=1e-3),
    ]
    return chain(nodes, weights, (2, 4, 6, 6)), weights


def folded(weights: dict[str, Array], epsilon: float, *, mean_sign: float = 1.0, roll: int = 0) -> onnx.ModelProto:
    scale = np.roll(weights["gain"] / np.sqrt(weights["variance"] + np.float32(epsilon)), roll)
    fused = {
        "wf": weights["w"] * scale[:, None, None, None],
        "bf": weights["beta"] - np.float32(mean_sign) * weights["mean"] * scale,
    }
    return chain([helper.make_node("Conv", ["x", "wf", "bf"], ["y"], pads=[1, 1, 1, 1])], fused, (2, 4, 6, 6))


@wrong("L1", combines=True)
def epsilon_ignored() -> Case:
    """BatchNormalization is folded without its epsilon."""
    before, weights = normalized()
    return before, folded(weights, 0.0)


@wrong("L1", combines=True)
def epsilon_of_another_size() -> Case:
    """BatchNormalization is folded with another epsilon."""
    before, weights = normalized()
    return before, folded(weights, 1e-5)


@wrong("L1", combines=True)
def mean_with_the_wrong_sign() -> Case:
    """BatchNormalization is folded with the mean added instead of subtracted."""
    before, weights = normalized()
    return before, folded(weights, 1e-3, mean_sign=-1)


@wrong("L1", combines=True)
def scale_of_the_neighbouring_channel() -> Case:
    """BatchNormalization is folded with every channel's scale on its neighbour."""
    before, weights = normalized()
    return before, folded(weights, 1e-3, roll=1)


@wrong("L1", combines=True)
def scale_folded_without_the_bias() -> Case:
    """A scale behind the convolution is folded into its weight, and not into its bias."""
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((6, 4, 1, 1)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    s = rng.uniform(0.5, 2, (1, 6, 1, 1)).astype(np.float32)
    before = chain(
        [helper.make_node("Conv", ["x", "w", "b"], ["t"]), helper.make_node("Mul", ["t", "s"], ["y"])],
        {"w": w, "b": b, "s": s},
        (2, 4, 5, 5),
    )
    after = chain(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])], {"w": w * s.reshape(-1, 1, 1, 1), "b": b}, (2, 4, 5, 5)
    )
    return before, after


@wrong("L1", combines=True)
def scale_folded_a_little_off() -> Case:
    """BatchNormalization is folded rightly, then one tap is multiplied by 1.00001."""
    before, weights = normalized()
    after = folded(weights, 1e-3)
    spoilt = rw.weight_of(after, "wf").copy()
    spoilt[3, 2, 1, 1] *= np.float32(1.00001)
    rw.set_weight(after, "wf", spoilt)
    return before, after
