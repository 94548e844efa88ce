"""One model on two providers, and audits on CUDA: what is accepted, what is not, and which options the runs had."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fake_cuda import CUDA, Fault, fake_cuda, faulty_cuda, to_tf32
from rewriter import BadInput, NotVerified, RunOptions, cross_audit
from rewriter.equivalence import Audit, AuditOptions, audit, cross
from rewriter.model import Model
from rewriter.session import Runtime
from test_equivalence.nets import audited, half, net
from test_equivalence.rewrites import regrouped

CPU = Runtime()
Array = np.ndarray[Any, Any]


def crossed(model: onnx.ModelProto, second: Runtime = CUDA) -> Audit:
    return cross(Model.load(model), CPU, second, AuditOptions())


def levels(found: Audit) -> list[str]:
    return [f"{entry.level} {entry.outcome}" for region in found.regions for entry in region.levels]


def test_equal_kernels_are_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    found = crossed(net())
    assert (found.verdict, found.grade) == ("equivalent", "rounding")
    assert (found.reference, found.provider, found.precision) == ("cpu", "cuda", "full")
    assert found.provider_options == {"device_id": "0", "enable_cuda_graph": "0", "use_tf32": "0"}
    assert levels(found) == ["L1 pass", "L2 pass", "L3 pass"] * 3
    assert found.levels[0].outcome == "pass"
    assert found.deployed is not None
    assert found.deployed.precision == "tf32"
    assert found.deployed.provider_options == {"device_id": "0"}


def test_without_tf32_there_is_nothing_more_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    assert crossed(net(), CUDA.with_options(use_tf32="0")).deployed is None


def rounds(value: Array) -> Array:
    """The last bit of each element lost: what another order of summation does."""
    return np.asarray(value * (1 + np.finfo(value.dtype).eps), value.dtype)


def test_rounding_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty_cuda(monkeypatch, outputs=rounds)
    found = crossed(net())
    assert (found.verdict, found.grade) == ("equivalent", "rounding")
    assert "L2 not exact here" in levels(found)  # integers came out one bit off, and the oracle says that kernels round


def test_operands_cut_to_tf32_are_within_its_bound_and_beyond_that_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    options = faulty_cuda(monkeypatch, operands=to_tf32, tf32_only=True)
    found = crossed(net())
    assert max(output.max_abs for output in found.outputs) < 1e-4  # in full precision there was no fault
    assert found.deployed is not None
    assert found.deployed.verdict == "equivalent"
    assert min(output.max_abs for output in found.deployed.outputs) > 1e-4
    assert options
    assert all("use_tf32" not in entry for entry in options)


def test_a_provider_that_ignores_use_tf32_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty_cuda(monkeypatch, operands=to_tf32)
    found = crossed(net())
    assert found.verdict == "different"
    assert "L3 fail" in levels(found)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("fault", "level"),
    [
        pytest.param(lambda value: value + (np.abs(value) > 0), "L3 fail", id="one too many"),
        pytest.param(lambda value: value * 1.02, "L3 fail", id="2 per cent"),
        pytest.param(lambda value: np.roll(value, 1, axis=1), "L3 fail", id="channels moved"),
        pytest.param(lambda value: np.where(value < 0, 0, value), "L3 fail", id="negatives lost"),
    ],
)
def test_kernels_that_compute_something_else_are_different(
    fault: Fault, level: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_cuda(monkeypatch, outputs=lambda value: np.asarray(fault(value), value.dtype))
    model = net(groups=1, inputs=64, outputs=64, size=(8, 8))
    found = crossed(model if dtype == "float32" else half(model))
    assert found.verdict == "different"
    assert level in levels(found)
    assert "cuda" in found.reason


def test_long_float16_sums_are_held_to_float32_accumulators(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,304 products: bounded as sums in 16 bits, any error up to the size of the terms would pass."""
    model = half(net(groups=1, inputs=256, outputs=8, size=(4, 4), bias=False))
    faulty_cuda(monkeypatch, outputs=lambda value: np.asarray(value * 1.05, value.dtype))
    assert crossed(model).verdict == "different"


def test_a_fault_in_tf32_only_decides_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty_cuda(monkeypatch, outputs=lambda value: np.asarray(value * 1.05, value.dtype), tf32_only=True)
    found = crossed(net())
    assert found.verdict == "different"
    assert found.reason.startswith("In TF32, as deployed: ")
    assert found.grade is None


def test_gemm_and_matmul_are_run_by_themselves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], transB=1, alpha=-1.0),
        helper.make_node("Relu", ["g"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    weights = {"w": (20, 12), "b": (20,), "v": (20, 7)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    fake_cuda(monkeypatch)
    found = crossed(model)
    assert [next(iter(region.before)) for region in found.regions] == ["Gemm", "MatMul"]
    assert levels(found) == ["L1 pass", "L2 pass", "L3 pass"] * 2
    third = [region.level("L3") for region in found.regions]
    assert all(level is not None and level.figures["certified"] for level in third)


def test_a_model_without_products_is_compared_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    fake_cuda(monkeypatch)
    assert crossed(model).verdict == "equivalent"
    faulty_cuda(monkeypatch, outputs=lambda value: np.asarray(value * 1.001, value.dtype))
    assert crossed(model).verdict == "different"


def test_where_the_error_grows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sigmoid's kernel is off; convolutions are not: only the whole model shows it, and the note says where."""
    fake_cuda(monkeypatch)
    model = net()
    for node in model.graph.node:
        if node.output[0] == "r":
            node.op_type = "Sigmoid"
    real = ort.InferenceSession

    def open_bent(source: Any, *rest: Any, **options: Any) -> Any:
        if not options["provider_options"][0]:
            return real(source, *rest, **options)
        bent = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
        for node in bent.graph.node:
            node.op_type = "Tanh" if node.op_type == "Sigmoid" else node.op_type
        return real(bent.SerializeToString(), *rest, **options)

    monkeypatch.setattr(ort, "InferenceSession", open_bent)
    found = crossed(model)
    assert found.verdict == "different"
    assert [record.verdict for record in found.regions] == ["equivalent"] * 3
    (note,) = found.notes
    assert "grows most at Sigmoid 'r'" in note


def test_what_does_not_run_on_the_second_provider_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    real = ort.InferenceSession

    def full(source: Any, *rest: Any, **options: Any) -> Any:
        if options["provider_options"][0]:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=x")
        return real(source, *rest, **options)

    monkeypatch.setattr(ort, "InferenceSession", full)
    found = crossed(net())
    assert (found.verdict, found.regions) == ("not_verified", ())
    assert "does not run on cuda" in found.reason
    assert "out of memory" in found.reason


def test_tf32_is_not_looked_for_in_other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    assert crossed(half(net())).deployed is None
    before = half(net())
    assert audited(before, half(regrouped(net(), "t", 2)), runtime=CUDA).deployed is None


# Two models


def test_pairs_are_audited_on_each_provider_and_both_across(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    before = net()
    found = cross_audit([before, regrouped(before, "t", 2)], [CPU, CUDA])
    assert found.verdict == "equivalent"
    assert [entry.provider for entry in found.pairs] == ["cpu", "cuda"]
    assert [entry.grade for entry in found.pairs] == ["finite", "finite"]
    assert [(entry.reference, entry.provider) for entry in found.crossings] == [("cpu", "cuda")] * 2
    assert found.pairs[0].deployed is None
    assert found.pairs[1].deployed is not None
    assert found.to_dict()["crossings"][1]["deployed"]["precision"] == "tf32"


def test_a_wrong_second_model_is_named_whatever_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    found = cross_audit([net(), net(seed=1)], [CPU, CUDA])
    assert found.verdict == "different"
    assert found.reason.startswith("On cpu: ")


def test_what_is_needed_is_said() -> None:
    with pytest.raises(BadInput, match="two providers or more"):
        cross_audit([net()], [CPU])
    with pytest.raises(BadInput, match="one or two models"):
        cross_audit([net()] * 3, [CPU, CUDA])
    with pytest.raises(NotVerified, match="CUDA"):
        cross_audit([net()], [CPU, CUDA], RunOptions())


# One pair on CUDA


def test_audits_run_in_full_precision_and_once_more_as_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    before = net()
    asked = CUDA.with_options(enable_cuda_graph="1")
    found = audited(before, regrouped(before, "t", 2), runtime=asked)
    assert (found.verdict, found.grade) == ("equivalent", "finite")
    assert found.provider_options == {"device_id": "0", "enable_cuda_graph": "0", "use_tf32": "0"}
    assert found.deployed is not None
    assert found.deployed.provider_options == {"device_id": "0", "enable_cuda_graph": "0"}
    assert [region.level("L1") for region in found.regions] == [r.level("L1") for r in found.deployed.regions]


def test_a_rewrite_whose_kernels_round_is_judged_by_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the original runs exactly and the rewritten form by a transform: no false alarm."""
    before = net()
    after = regrouped(before, "t", 2)
    grouped = next(node for node in after.graph.node if node.output[0] == "t")
    group = next(entry.i for entry in grouped.attribute if entry.name == "group")

    def only_after(value: Array) -> Array:
        return rounds(value)

    from rewriter.equivalence import cut as cutting

    real = cutting.Runner.plain

    def plain(self: Any, feeds: Any, weights: Any) -> Any:
        found = real(self, feeds, weights)
        return {name: only_after(value) for name, value in found.items()} if self.cut.side == "after" else found

    assert group == 2
    monkeypatch.setattr(cutting.Runner, "plain", plain)
    result = audit(Model.load(before), Model.load(after), AuditOptions())
    assert (result.verdict, result.grade) == ("equivalent", "finite")
    (region,) = result.regions
    second = region.level("L2")
    assert second is not None
    assert second.outcome == "not exact here"
    assert "kernels round" in second.detail
