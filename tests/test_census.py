"""The census counts what ONNX Runtime really runs, and the block found is the one this machine really has."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from rewriter import census as census_module
from rewriter.census import Census, census, nchwc_block
from rewriter.session import Runtime, SessionFailed

NCHWC_CONV = "com.microsoft.nchwc:Conv"


def conv_relu(channels: int, group: int) -> onnx.ModelProto:
    weight = np.ones((channels, channels // group, 3, 3), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], group=group, pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_levels_are_seen_in_the_graph() -> None:
    model = conv_relu(6, 2)  # 3 channels per group: on no machine's fast path
    plain = census(model, Runtime(level="disable"))
    assert plain.counts == {"Conv": 1, "Relu": 1}
    assert plain.total == 2
    fused = census(model, Runtime(level="all"))
    assert fused.counts == {"com.microsoft:FusedConv": 1}
    assert fused["com.microsoft:FusedConv"] == 1
    assert fused["Relu"] == 0


def test_nodes_in_subgraphs_count() -> None:
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["": 18]>
        g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = a () => (float[2] p) { q = Neg(x)  p = Abs(q) },
                else_branch = b () => (float[2] r) { r = Neg(x) }
            >
        }
    """)
    counted = census(model, Runtime(level="disable"))
    assert counted == Census({"Abs": 1, "If": 1, "Neg": 2})
    assert counted.total == 4


def test_bytes_paths_and_external_data_are_counted_alike(tmp_path: Path) -> None:
    model = conv_relu(6, 2)
    path = tmp_path / "conv.onnx"
    runtime = Runtime(level="basic")
    expected = census(model, runtime)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)  # changes `model`
    assert expected.total == 2
    assert census(path, runtime) == expected
    lean = onnx.load(path, load_external_data=False).SerializeToString()
    assert census(lean, runtime, external_folder=tmp_path) == expected
    with pytest.raises(SessionFailed):
        census(lean, runtime)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    census(conv_relu(64, 2), Runtime())
    with pytest.raises(SessionFailed):
        census(b"\xff", Runtime())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fast", "block"), [({8, 16}, 8), ({16}, 16), (set(), 0)])
def test_the_block_is_the_narrowest_group_on_the_fast_path(
    fast: set[int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census_module, "_takes_fast_path", lambda channels_per_group: channels_per_group in fast)
    nchwc_block.cache_clear()
    try:
        assert nchwc_block() == block
    finally:
        nchwc_block.cache_clear()


def test_the_block_of_this_machine_predicts_which_convolutions_are_fast() -> None:
    block = nchwc_block()
    assert block in (0, 8, 16)
    for width in (4, 8, 12, 16, 24, 32, 48):
        counts = census(conv_relu(2 * width, 2), Runtime())
        assert counts[NCHWC_CONV] == (1 if block and width % block == 0 else 0), width
        assert counts["com.microsoft:FusedConv"] == 1 - counts[NCHWC_CONV]
    assert census(conv_relu(32, 2), Runtime(level="extended"))[NCHWC_CONV] == 0
