"""A certificate's audit made again: the same, and each reason why it is not, with the sentence and the exit code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from certificates import PAIRS, certificate, changed, one_weight_off, regrouped, rewritten, written
from fake_cuda import CUDA, fake_cuda
from graphs import grouped_conv, save_with_data
from models.resnext import ResNeXt, resnext_model
from rewriter import equivalence
from rewriter.certificate import (
    Certificate,
    certificate_of,
    certify,
    load_certificate,
    of_the_stamped,
    replay,
    replayable,
)
from rewriter.certificate import replaying as module
from rewriter.certificate.making import environment
from rewriter.equivalence import Audit, AuditOptions, audit, cross_audit
from rewriter.errors import NotVerified
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.provenance import provenance, stamp
from rewriter.session import Runtime
from separable_models import separable_models
from test_passes.test_split_separable_approximate import ALLOWED, network, sample

X = np.random.default_rng(3).standard_normal((2, 8, 6, 6)).astype(np.float32)
ELSEWHERE = "Another Processor (0123456789abcdef)"


def elsewhere(found: Certificate) -> Certificate:
    """As if it had been made on another processor."""
    return found.model_copy(update={"environment": found.environment.model_copy(update={"processor": ELSEWHERE})})


def edited(found: Certificate, folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Certificate:
    plain = found.to_dict()
    edit(plain)
    return load_certificate(written(plain, folder))


# The same again.


def test_the_same_files_give_the_same_verdict_and_record() -> None:
    found = replay(certificate(), *regrouped())
    assert (found.same, found.exit_code, found.problems, found.claims, found.notes) == (True, 0, (), (), ())
    assert found.again is not None
    assert found.again.to_bytes() == certificate().to_bytes()
    assert found.conclusion.startswith("Reproduced: equivalent (finite), on the same files with the same inputs. ")


def test_other_options_are_those_of_the_certificate() -> None:
    options = RunOptions(runtime=Runtime(threads=2, level="basic"), seed=5, input_shapes={"x": (2, 8, 6, 6)})
    made = certify(*regrouped(), options)
    found = replay(made, *regrouped())
    assert found.same
    assert found.again is not None
    assert found.again.audits[0].threads == 2
    assert found.again.audits[0].seed == 5


def test_what_is_different_is_reproduced_and_exits_with_one() -> None:
    found = replay(certificate("different"), *one_weight_off())
    assert (found.same, found.exit_code) == (True, 1)
    assert found.conclusion.startswith("Reproduced: different, ")


def test_what_was_not_verified_is_not_verified_again() -> None:
    found = replay(certificate("not_verified"), *PAIRS["not_verified"]())
    assert (found.same, found.exit_code) == (True, 3)
    assert found.conclusion.startswith("Reproduced: not_verified, ")


def test_progress_is_told() -> None:
    told: list[str] = []
    replay(certificate(), *regrouped(), progress=lambda stage, _done, _total: told.append(stage))
    assert {"regions", "whole model"} <= set(told)


# Other files.


def test_other_files_are_named() -> None:
    before, after = regrouped()
    assert certificate().after is not None
    found = replay(certificate(), before, one_weight_off()[1])
    assert (found.again, found.same, found.exit_code) == (None, False, 3)
    assert found.problems == (
        f"B is not the certificate's rewritten model: its SHA-256 is {one_weight_off()[1].sha256}, and the certificate "
        f"is of {after.sha256}.",
    )
    assert found.conclusion == f"Not reproduced: {found.problems[0]}"
    found = replay(certificate(), one_weight_off()[1], after)
    assert found.conclusion.startswith("Not reproduced: A is not the certificate's original: its SHA-256 is ")
    assert len(replay(certificate(), one_weight_off()[1], before).problems) == 2
    found = replay(certificate(), after, before)
    assert found.problems == ("A and B are exchanged: the certificate's original is B, and its rewritten model A.",)
    assert replay(certificate(), before, None).problems == (
        "the certificate is of two models: give the rewritten one, B, too.",
    )


def test_an_unstamped_copy_is_another_file() -> None:
    before, _ = regrouped()
    found = replay(certificate(), before, regrouped()[1].original)
    assert found.exit_code == 3


def test_other_external_data_is_named(tmp_path: Path) -> None:
    made = save_with_data(grouped_conv(), tmp_path, size_threshold=0)
    before = Model.load(made)
    after = regrouped()[1]
    found = certify(before, after, RunOptions())
    assert replay(found, before, after).same
    data = tmp_path / "m.data"
    data.write_bytes(bytes(reversed(data.read_bytes())))
    assert replay(found, Model.load(made), after).problems == (
        "A is not the certificate's original: its external data 'm.data' has other bytes.",
    )


# Inputs of the user's own.


def test_inputs_must_be_given_again() -> None:
    found = certify(*regrouped(), RunOptions(samples=({"x": X}, {"x": 2 * X})))
    assert replay(found, *regrouped(), ({"x": X}, {"x": 2 * X})).same

    def said(*values: np.ndarray) -> str:
        done = replay(found, *regrouped(), [{"x": value} for value in values])
        assert (done.again, done.exit_code) == (None, 3)
        return done.conclusion

    start = "Not reproduced: "
    assert said() == f"{start}the audit was made with 2 sets of inputs of the user's own: give them with --inputs."
    assert said(X) == f"{start}the audit was made with 2 sets of inputs, and 1 are given."
    other = "are not those of the certificate: other values, type or shape of 'x'."
    assert said(X, X) == f"{start}set 2 of the inputs given {other}"
    assert said(X.astype(np.float64), 2 * X) == f"{start}set 1 of the inputs given {other}"
    assert said(X[:1], 2 * X) == f"{start}set 1 of the inputs given {other}"


def test_inputs_that_were_none_are_refused() -> None:
    found = replay(certificate(), *regrouped(), [{"x": X}])
    assert (
        found.conclusion == "Not reproduced: the audit was made without inputs of the user's own: leave --inputs out."
    )


# Another machine.


def test_other_versions_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    here = environment()
    monkeypatch.setattr(module, "environment", lambda: here.model_copy(update={"numpy": "9.9", "rewriter": "8"}))
    found = replay(certificate(), *regrouped())
    assert (found.same, found.exit_code) == (True, 0)
    assert found.notes == (
        f"The certificate was made with rewriter {here.rewriter}; this is 8.",
        f"The certificate was made with NumPy {here.numpy}; this is 9.9.",
    )


def test_another_processor_may_round_otherwise(tmp_path: Path) -> None:
    def other_figures(plain: dict[str, Any]) -> None:
        plain["environment"]["processor"] = ELSEWHERE
        plain["audit"]["outputs"][0]["max_abs"] = 0.25
        plain["audit"]["outputs"][0]["bitwise"] = False
        plain["audit"]["regions"][0]["levels"][1]["figures"]["draws"] = 3
        plain["audit"]["reason"] = "Because."
        plain["audit"]["regions"][0]["levels"][1]["outcome"] = "not exact here"

    found = replay(edited(certificate(), tmp_path, other_figures), *regrouped())
    assert (found.same, found.exit_code) == (True, 0)
    assert [str(figure) for figure in found.figures] == [
        "audit.outputs[0].bitwise is False in the certificate, and True here",
        "audit.outputs[0].max_abs is 0.25 in the certificate, and 0.0 here",
        "audit.regions[0].levels[1].figures.draws is 3 in the certificate, and 12 here",
        "audit.regions[0].levels[1].outcome is 'not exact here' in the certificate, and 'pass' here",
    ]
    assert found.notes == (
        f"The certificate was made on another processor, {ELSEWHERE}.",
        f"4 figures are others than in the certificate: {'; '.join(map(str, found.figures[:3]))}.",
        "1 sentences of the certificate read otherwise here.",
    )


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a grade": (
        lambda c: (c.update(grade="rounding"), c["audit"].update(grade="rounding")),
        "the certificate says equivalent (rounding), this run equivalent (finite): ",
    ),
    "a verdict": (
        lambda c: (
            c.update(verdict="approximate", grade=None),
            c["audit"].update(verdict="approximate", grade=None),
        ),
        "the certificate says approximate, this run equivalent (finite): ",
    ),
    "a level passed": (
        lambda c: c["audit"]["regions"][0]["levels"].append(
            {"level": "L5", "outcome": "pass", "detail": "", "figures": {}}
        ),
        "the verdict is again equivalent (finite), but audit.regions[0].levels is ",
    ),
    "a region": (
        lambda c: c["audit"]["regions"][0].update(outputs=["y"]),
        "the verdict is again equivalent (finite), but audit.regions[0].outputs[0] is 'y' in the certificate, and 'c' ",
    ),
    "a flag": (
        lambda c: c["audit"]["regions"][0]["flags"].update(nonfinite="the very same"),
        "the verdict is again equivalent (finite), but audit.regions[0].flags.nonfinite is 'the very same' in the ",
    ),
    "a witness": (
        lambda c: c["audit"]["witnesses"][0].update(recipe="large"),
        "the verdict is again equivalent (finite), but audit.witnesses[0].recipe is 'large' in the certificate, and ",
    ),
    "an error allowed": (
        lambda c: c["audit"]["regions"][0].update(allowed_error=0.5),
        "the verdict is again equivalent (finite), but audit.regions[0].allowed_error is 0.5 in the certificate, and ",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_what_is_claimed_must_hold_on_any_machine(name: str, tmp_path: Path) -> None:
    edit, says = LIES[name]
    found = replay(edited(elsewhere(certificate()), tmp_path, edit), *regrouped())
    assert (found.same, found.exit_code) == (False, 3)
    assert found.conclusion.startswith(f"Not reproduced: {says}"), found.conclusion


@pytest.mark.parametrize(("said", "now"), [("pass", "not exact here"), ("not exact here", "not applicable")])
def test_a_level_that_says_something_else_is_noticed(
    said: str, now: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where it passes and did not, more is shown than was claimed, and that is a note: see above."""
    real = equivalence.audit

    def weaker(before: Model, after: Model, options: AuditOptions, **more: Any) -> Audit:
        found = real(before, after, options, **more)
        region = found.regions[0]
        levels = [
            level.model_copy(update={"outcome": now}) if level.level == "L2" else level for level in region.levels
        ]
        return found.model_copy(update={"regions": (region.model_copy(update={"levels": tuple(levels)}),)})

    monkeypatch.setattr(equivalence, "audit", weaker)
    lie = changed(elsewhere(certificate()).to_dict(), ("audit", "regions", 0, "levels", 1, "outcome"), said)
    found = replay(load_certificate(written(lie, tmp_path)), *regrouped())
    assert (found.same, found.exit_code) == (False, 3)
    assert f"levels[1].outcome is '{said}' in the certificate, and '{now}' here" in found.conclusion


def test_models_that_turn_out_different_exit_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = audit(*one_weight_off(), AuditOptions())
    hashes = {"before_sha256": certificate().before.sha256, "after_sha256": regrouped()[1].sha256}
    monkeypatch.setattr(equivalence, "audit", lambda *_models, **_more: wrong.model_copy(update=hashes))
    found = replay(certificate(), *regrouped())
    assert (found.same, found.exit_code) == (False, 1)
    said = "Not reproduced: the certificate says equivalent (finite), this run different: "
    assert found.conclusion == f"{said}{wrong.reason}"


@pytest.mark.parametrize("change", [{"threads": 0}, {"provider": "cuda"}])
def test_cores_and_gpus_are_no_reason_to_insist_on_figures(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With threads as many as there are cores, and on a GPU, figures need not be the same the next time."""
    fake_cuda(monkeypatch)
    made = certify(*regrouped(), RunOptions(runtime=replace(Runtime(), **change)))
    lie = changed(made.to_dict(), ("audit", "outputs", 0, "max_abs"), 0.25)
    found = replay(load_certificate(written(lie, tmp_path)), *regrouped())
    assert found.same
    assert len(found.figures) == 1


def test_fewer_runs_against_float64_are_no_reason_to_insist_either(tmp_path: Path) -> None:
    def fewer(plain: dict[str, Any]) -> None:
        plain["audit"]["levels"][1]["figures"]["float64_runs"] -= 1
        plain["audit"]["outputs"][0]["own_error"] = None

    found = replay(edited(certificate(full=True), tmp_path, fewer), *regrouped())
    assert found.same
    assert [figure.where.rpartition(".")[2] for figure in found.figures] == ["float64_runs", "own_error"]


def test_a_provider_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fake_cuda(patch)
        made = certify(*regrouped(), RunOptions(runtime=CUDA))
        assert replay(made, *regrouped()).same

    def missing(runtime: Runtime) -> None:
        raise NotVerified(f"There is no {runtime.provider} here.")

    monkeypatch.setattr(module, "require_provider", missing)
    found = replay(made, *regrouped())
    assert (found.again, found.exit_code) == (None, 3)
    assert found.conclusion == (
        "Not reproduced: the audit ran on cuda, which cannot be done here: There is no cuda here."
    )


def test_the_documentation_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "certificate.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    onnx.save(
        resnext_model(ResNeXt(image=32, blocks=(1, 1), width=32, groups=16, classes=10)), tmp_path / "original.onnx"
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("Reproduced: equivalent (finite), ")
    assert provenance(Model.load("rewritten.onnx"))["rewriter.passes"] == "regroup"


# Audits that need more than two files and one provider.


def test_several_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    runtimes = [Runtime(), CUDA]
    before, after = regrouped()
    both = certificate_of(cross_audit([before, after], runtimes, AuditOptions()), before, after, RunOptions(), runtimes)
    found = replay(both, before, after)
    assert (found.same, found.exit_code) == (True, 0), found.conclusion
    one = certificate_of(cross_audit([before], runtimes, AuditOptions()), before, None, RunOptions(), runtimes)
    assert one.after is None
    assert replay(one, before, None).same
    assert replay(one, before, after).problems == (
        "the certificate is of one model on several providers: leave B out.",
    )


def test_a_rewrite_is_certified_without_making_it_again() -> None:
    """Where weights are combined the engine's audit has L2 apply the pass to other weights: no replay could."""
    before, after, found = rewritten(separable_models()["low rank"], "split-separable", {})
    assert found.verdict == "equivalent"
    assert not replayable(found, before, after)
    with pytest.raises(ValueError, match="call `certify`"):
        certificate_of(found, before, after, RunOptions())
    made = certify(before, after, RunOptions(), found)
    assert made.audits[0] != found
    assert replayable(made.audits[0], before, after)
    assert replay(made, before, after).same


def test_an_audit_that_can_be_made_again_is_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, found = rewritten(grouped_conv(), "regroup", {"factor": 2})
    assert replayable(found, before, after)
    stamped = stamp(after, ["regroup"], before)
    with monkeypatch.context() as patch:
        patch.setattr(equivalence, "audit", None)
        assert certify(before, after, RunOptions(), found).audit == found
        made = certify(before, stamped, RunOptions(), of_the_stamped(found, stamped))
    assert made.after is not None
    assert made.after.sha256 == stamped.sha256 == made.audits[0].after_sha256
    assert replay(made, before, stamped).same


@pytest.mark.parametrize("given", [True, False])
def test_an_approximation_is_as_it_was_asked_for(given: bool, tmp_path: Path) -> None:
    """What only had to approximate stands in the certificate; inputs that were made up are made up again."""
    options = RunOptions(allow=ALLOWED, samples=(sample(),) if given else ())
    before, after, found = rewritten(network("float[2,16,20,20]"), "split-separable", {"max-error": 0.2}, options)
    assert found.verdict == "approximate"
    made = certify(before, after, options, found)
    assert made.verdict == "approximate"
    assert made.request.approximated
    done = replay(made, before, after, options.samples)
    assert (done.same, done.exit_code) == (True, 3), done.conclusion
    if not given:
        return
    assert "of the user's own: give them" in replay(made, before, after).conclusion
    lie = changed(elsewhere(made).to_dict(), ("audit", "regions", 0, "allowed_error"), 0.1)
    again = replay(load_certificate(written(lie, tmp_path)), before, after, options.samples)
    assert [str(claim) for claim in again.claims] == [
        "audit.regions[0].allowed_error is 0.1 in the certificate, and 0.2 here"
    ]
