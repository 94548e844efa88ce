"""split-separable with max-error: the error is measured, audited, within what is allowed, never called equivalent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import rewriter
from cli_runs import run
from models.emit import Array
from programs import program
from rewriter import BadInput, RunOptions
from rewriter.model import Model

PASS = "split-separable"
ALLOWED = frozenset({"approximate"})


def fading(m: int, c: int, k: int, decay: float = 0.75, seed: int = 0) -> Array:
    """Weight `[m, c, k, k]` with singular values that fall off, of each unfolding alike."""
    rng = np.random.default_rng(seed)
    u, s, v = np.linalg.svd(rng.standard_normal((m, c * k * k)), full_matrices=False)
    weight: Array = ((u * (s[0] * decay ** np.arange(len(s)))) @ v).reshape(m, c, k, k).astype(np.float32)
    return weight


def network(x: str = "float[N,16,H,W]") -> onnx.ModelProto:
    body = """
        a = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu (a)
        c = Conv (r, p) s = Relu (c)
        y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (s, v)
    """
    constants: dict[str, Any] = {
        "w": fading(32, 16, 3),
        "b": np.linspace(-2, 2, 32, dtype=np.float32),
        "p": fading(48, 32, 1, seed=1),
        "v": fading(48, 48, 3, seed=2),
    }
    return program(body, x=x, **constants)


def sample(size: int = 20) -> dict[str, Array]:
    return {"x": np.random.default_rng(9).standard_normal((2, 16, size, size)).astype(np.float32)}


def split(model: onnx.ModelProto, most: float, options: RunOptions | None = None, **more: Any) -> rewriter.Result:
    asked = options or RunOptions(allow=ALLOWED, samples=(sample(),))
    return rewriter.rewrite(model, [PASS], asked, settings={PASS: {"max-error": most, **more}})


def outputs(model: onnx.ModelProto, names: list[str], feeds: dict[str, Array]) -> dict[str, Array]:
    whole = Model.load(model).with_outputs([onnx.ValueInfoProto(name=name) for name in names])
    return dict(zip(names, ort.InferenceSession(whole.to_bytes()).run(names, feeds), strict=True))


@pytest.mark.parametrize("most", [0.3, 0.1, 0.02])
def test_every_layer_is_within_the_error_on_its_own_inputs(most: float) -> None:
    """Measured here once more, without the tool: the new convolutions on what the old ones read."""
    before = network()
    result = split(before, most)
    assert result.report.verdict == "approximate"
    assert result.report.audit is not None
    assert result.report.audit.grade is None
    kept = [entry for entry in result.report.attempts if entry.outcome == "accepted"]
    assert kept
    truth = outputs(before, ["a", "c", "r", "s"], sample()) | sample()
    truth["y"] = ort.InferenceSession(before.SerializeToString()).run(["y"], sample())[0]
    reads = {"a": "x", "c": "r", "y": "s"}
    for entry in kept:
        off = entry.details["deviation"]
        part = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(result.model)).extract_model(
            [reads[entry.site]], [entry.site]
        )
        (made,) = ort.InferenceSession(part.SerializeToString()).run(
            None, {reads[entry.site]: truth[reads[entry.site]]}
        )
        error = np.linalg.norm(made - truth[entry.site]) / np.linalg.norm(truth[entry.site])
        assert error == pytest.approx(off["error"], rel=1e-3)
        assert error == pytest.approx(off["audited_error"], rel=1e-3)
        assert error <= most
        assert off["after"] < off["before"]


def test_a_smaller_error_costs_more() -> None:
    costs = []
    for most in (0.3, 0.1, 0.03):
        kept = [entry for entry in split(network(), most).report.attempts if entry.outcome == "accepted"]
        costs.append(sum(entry.details["deviation"]["after"] for entry in kept))
    assert costs == sorted(costs)
    assert len(set(costs)) == 3


def test_the_outputs_error_is_reported() -> None:
    before = network()
    result = split(before, 0.2)
    (left,), (right,) = (
        ort.InferenceSession(model.SerializeToString()).run(["y"], sample()) for model in (before, result.model)
    )
    assert result.report.audit is not None
    (output,) = result.report.audit.outputs
    assert output.rms == pytest.approx(np.linalg.norm(left - right) / np.linalg.norm(left), rel=0.05)
    assert f"{output.rms:.3g}" in result.report.reason


@pytest.mark.parametrize("form", ["depthwise", "pointwise", "spatial", "channels"])
def test_a_form_can_be_asked_for(form: str) -> None:
    result = split(network(), 0.6, form=form)
    assert result.report.verdict == "approximate"
    convs = [node for node in result.model.graph.node if node.op_type == "Conv"]
    groups = {next((entry.i for entry in node.attribute if entry.name == "group"), 1) for node in convs}
    assert (groups == {1}) is (form in ("spatial", "channels"))


def test_an_exact_split_comes_first() -> None:
    weight = np.einsum("mc,chw->mchw", *(np.random.default_rng(1).standard_normal(s) for s in ((6, 8), (8, 3, 3))))
    model = program("y = Conv (x, w)", x="float[N,8,7,9]", w=weight.astype(np.float32))
    result = split(model, 0.1, RunOptions(allow=ALLOWED))
    assert result.report.verdict == "equivalent"
    assert not result.report.notes


def test_what_has_no_split_within_the_error_says_how_near_one_comes() -> None:
    weight = np.random.default_rng(2).standard_normal((8, 8, 3, 3)).astype(np.float32)
    result = split(program("y = Conv (x, w)", x="float[1,8,9,9]", w=weight), 0.01, RunOptions(allow=ALLOWED))
    assert not result.changed
    (entry,) = result.report.attempts
    assert entry.reason.startswith("No split saves any of its 576 multiplications within 0.01: ")
    assert "is off by 0." in entry.reason


def test_other_regions_still_have_to_be_equivalent() -> None:
    """An approximation next to an exact rewrite: one region each, and only the one may be off."""
    body = "a = Conv (x, w) r = Relu (a) y = Conv <group=4> (r, g)"
    full = np.random.default_rng(3).standard_normal((16, 4, 1, 1)).astype(np.float32)
    model = program(body, x="float[1,16,9,9]", w=fading(16, 16, 3), g=full)
    options = RunOptions(allow=ALLOWED)
    chosen = {PASS: {"max-error": 0.1}}
    result = rewriter.rewrite(model, ["split-groups", PASS], options, settings=chosen)
    assert result.report.audit is not None
    verdicts = {region.outputs[0]: region.verdict for region in result.report.audit.regions}
    assert verdicts["a"] == "approximate"
    assert result.report.verdict == "approximate"
    assert result.report.accepted


def test_an_audit_that_was_not_told_refutes_it() -> None:
    before = network()
    assert rewriter.audit(before, split(before, 0.1).model).verdict == "different"


def test_an_error_beyond_what_is_allowed_is_refuted() -> None:
    """The auditor measures by itself: told that less is allowed than the rewrite needs, it says different."""
    from rewriter import equivalence

    before = network()
    after = split(before, 0.2).model
    sides = Model.load(before), Model.load(after)
    for allowed, verdict in ((0.25, "approximate"), (0.01, "different")):
        names = {name for node in after.graph.node if node.op_type == "Conv" for name in node.output}
        asked = equivalence.AuditOptions(samples=(sample(),), approximated=dict.fromkeys(names, allowed))
        found = equivalence.audit(*sides, asked)
        assert found.verdict == verdict
        assert found.accepted is (verdict == "approximate")


def test_without_inputs_it_is_measured_on_generated_ones_and_says_so() -> None:
    result = split(network(), 0.2, RunOptions(allow=ALLOWED))
    assert result.report.verdict == "approximate"
    assert any("cannot stand for your data" in note for note in result.report.notes)


def test_the_result_is_the_same_each_time() -> None:
    assert split(network(), 0.2).model == split(network(), 0.2).model


@pytest.mark.parametrize("most", [-0.1, 1.0, float("nan")])
def test_errors_that_are_none_are_refused(most: float) -> None:
    with pytest.raises(BadInput, match="max-error"):
        split(network(), most)


def test_it_is_made_only_where_allowed() -> None:
    with pytest.raises(BadInput, match="--allow approximate"):
        split(network(), 0.1, RunOptions())


def test_the_command_writes_it_and_exits_with_zero(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=sample()["x"])
    command = ["rewrite", "m.onnx", "-o", "out.onnx", "--pass", PASS, "--set", f"{PASS}.max-error=0.1"]
    refused = run(*command, cwd=tmp_path)
    assert refused.returncode == 2
    done = run(*command, "--allow", "approximate", "--inputs", "x.npz", cwd=tmp_path)
    assert done.returncode == 0
    assert "APPROXIMATE | 3 rewrites | saved out.onnx" in done.stdout
    assert "EQUIVALENT" not in done.stdout
    assert (tmp_path / "out.onnx").exists()
