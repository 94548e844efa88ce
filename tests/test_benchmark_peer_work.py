"""What benchmarks/peers.py compares and counts: outputs that have to agree, and the useful work of a model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from benchmarks.peer_check import agreement
from benchmarks.peer_work import work
from models.zoo.refill import zoo_model
from rewriter.feeds import representative
from rewriter.model import Model
from rewriter.options import RunOptions

# Comparing outputs.


def outputs(*numbers: float, name: str = "y", dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {name: np.array(numbers, dtype)}


@pytest.mark.parametrize(
    ("other", "verdict", "reason"),
    [
        ([outputs(1, 2), outputs(3, 4)], "agrees", ""),
        ([outputs(1, 2), outputs(3, 4.0001)], "agrees", ""),
        ([outputs(1, 2), outputs(3, 4.01)], "differs", "off by 2.5e-03 of the largest output"),
        ([outputs(1, 2), outputs(3, np.nan)], "differs", "not finite"),
        ([outputs(1, 2), outputs(3, 4, name="z")], "differs", "no output y"),
        ([outputs(1, 2), outputs(3, 4, 5)], "differs", "y is float32 [3], not float32 [2]"),
        ([outputs(1, 2), outputs(3, 4, dtype=np.float64)], "differs", "y is float64 [2], not float32 [2]"),
    ],
)
def test_outputs_are_compared(other: list[dict[str, np.ndarray]], verdict: str, reason: str) -> None:
    found = agreement([outputs(1, 2), outputs(3, 4)], other)
    assert (found.verdict, found.reason) == (verdict, reason)


def test_outputs_that_do_not_depend_on_the_input_show_little() -> None:
    same = [outputs(1, 2), outputs(1, 2.00001)]
    assert agreement(same, [outputs(1, 2.00001)] * 2).verdict == "blind"
    assert agreement([{}, {}], [{}, {}]).verdict == "differs"
    assert agreement([outputs(np.nan)] * 2, [outputs(np.nan)] * 2).verdict == "differs"


# What is counted.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "multiplications", "kinds"),
    [
        ("resnext50_32x4d", 4.23, (True, False)),
        ("tf_resnext50_depthwise_sum", 4.23, (True, False)),
        ("mobilenet_v2", 0.30, (False, False)),
        ("regnet_y_400mf", 0.40, (True, True)),
        ("shufflenet_v2_x1_0", 0.14, (False, True)),
    ],
)
def test_published_counts(name: str, multiplications: float, kinds: tuple[bool, bool]) -> None:
    """Multiplications and additions at 224 by 224, in 10⁹, as torchvision states them for its weights."""
    model = Model.load(zoo_model(name))
    feeds = representative(model, RunOptions()).feeds
    found = work(model, {key: value.shape for key, value in feeds.items()})
    assert found.multiplications is not None
    assert round(found.multiplications / 1e9, 2) == multiplications
    assert (found.grouped > 0, found.unaligned > 0) == kinds


def counted(text: str, **weights: tuple[int, ...]) -> tuple[int | None, int, int]:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, shape in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in model.graph.input
    }
    found = work(Model.load(model), shapes)
    return found.multiplications, found.grouped, found.unaligned


def test_every_kind_of_product_is_counted() -> None:
    conv = "g (float[1,{c},8,8] x) => (y) {{ y = Conv<group = {g}, pads = [1,1,1,1]>(x, w) }}"
    assert counted(conv.format(c=16, g=1), w=(32, 16, 3, 3)) == (32 * 64 * 16 * 9, 0, 0)
    assert counted(conv.format(c=16, g=4), w=(32, 4, 3, 3)) == (32 * 64 * 4 * 9, 1, 0)
    assert counted(conv.format(c=16, g=16), w=(16, 1, 3, 3)) == (16 * 64 * 9, 0, 0)
    assert counted(conv.format(c=16, g=16), w=(32, 1, 3, 3)) == (32 * 64 * 9, 1, 0)
    assert counted(conv.format(c=18, g=18), w=(18, 1, 3, 3)) == (18 * 64 * 9, 0, 1)
    assert counted(conv.format(c=18, g=1), w=(8, 18, 3, 3)) == (8 * 64 * 18 * 9, 0, 1)
    assert counted(conv.format(c=3, g=1), w=(7, 3, 3, 3)) == (7 * 64 * 3 * 9, 0, 0)
    assert counted("g (float[5,7] x) => (y) { y = Gemm<transB = 1>(x, w) }", w=(11, 7)) == (5 * 7 * 11, 0, 0)
    assert counted("g (float[5,7] x) => (y) { y = Gemm(x, w) }", w=(7, 11)) == (5 * 7 * 11, 0, 0)
    assert counted("g (float[2,5,7] x, float[2,7,3] z) => (y) { y = MatMul(x, z) }") == (2 * 5 * 7 * 3, 0, 0)
