"""Reports in words: what is counted together, what comes first, what is hidden, and the last line."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from rewriter.choose import Place, _decide
from rewriter.equivalence.records import Audit, CrossAudit, OutputAudit, RegionAudit, Verdict, failed, passed
from rewriter.report import text, text_audit
from rewriter.report.record import AttemptRecord, FileRecord, Report
from rewriter.report.text import Table
from rewriter.timing import Timing
from timings import RECORD


def attempt(outcome: Any, reason: str, site: str = "y", name: str = "regroup", **more: Any) -> AttemptRecord:
    return AttemptRecord(pass_name=name, site=site, outcome=outcome, reason=reason, **more)


def report(**changed: Any) -> Report:
    plain: dict[str, Any] = {
        "command": "optimize",
        "verdict": "equivalent",
        "grade": "exact",
        "reason": "All is well.",
        "changed": True,
        "attempts": (attempt("accepted", "a", "y1", summary="s"), attempt("accepted", "a", "y2", summary="s")),
        "timing": RECORD,
        "audit": None,
        "before": FileRecord(path="a.onnx", sha256="0", bytes=1999, nodes=5, ops={"Conv": 2, "Relu": 1, "Add": 2}),
        "after": FileRecord(path=None, sha256="1", bytes=2_500_000, nodes=3, ops={"Conv": 2, "Relu": 1}),
        "inputs": {},
        "chosen_shapes": {},
        "environment": {},
        "seconds": 1.0,
    }
    return Report(**(plain | changed))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "EQUIVALENT | 2 rewrites | 2.41x faster (2.38 to 2.44) at 1 thread | FATE"),
        ({"timing": None}, "EQUIVALENT | 2 rewrites | FATE"),
        (
            {"timing": RECORD.model_copy(update={"threads": 0, "interval": None})},
            "EQUIVALENT | 2 rewrites | 2.41x faster at ONNX Runtime's default threads | FATE",
        ),
        ({"changed": False, "attempts": ()}, "UNCHANGED | All is well | FATE"),
        ({"verdict": "different", "changed": False, "reason": "It\n is not."}, "DIFFERENT | It is not | FATE"),
        ({"verdict": "not_verified", "changed": False}, "NOT VERIFIED | All is well | FATE"),
        ({"verdict": "approximate", "changed": False}, "APPROXIMATE | All is well | FATE"),
    ],
)
def test_the_last_line(changed: dict[str, Any], line: str) -> None:
    assert text.conclusion(report(**changed), "FATE") == line


def test_equal_rewrites_are_one_row() -> None:
    measured = {"measured": "1.44x (1.41 to 1.47) in context, measured at 'y1'"}
    kept = [attempt("accepted", "a", f"y{k}", summary="s", details=measured) for k in range(3)]
    kept.append(attempt("accepted", "a", "z", summary="other"))
    table = text.kept_table(kept, verbose=False)
    assert table.rows == (
        ("3", "regroup", "y0 and 2 more", "1.44x (1.41 to 1.47)", "s"),
        ("1", "regroup", "z", "", "other"),
    )
    assert [row[2] for row in text.kept_table(kept, verbose=True).rows] == ["y0", "y1", "y2", "z"]
    assert "measured in context" not in text.kept_table(kept[3:], verbose=False).columns


def table_of(blocks: list[text.Block]) -> Table:
    (found,) = [block for block in blocks if isinstance(block, Table)]
    return found


REASONS = (
    attempt("declined", "It is dense.", "a"),
    attempt("declined", "'x' is in the way.", "b", matched=1),
    attempt("declined", "'z' is in the way.", "c", matched=1),
    attempt("declined", "All fits but 'w'.", "d", matched=5),
    attempt("slower", "0.5x.", "e", summary="G 4 -> G 2"),
    attempt("different", "It computes something else.", "f"),
    attempt("declined", "It is inside a subgraph.", "g", name=""),
)


def test_reasons_nearest_first_equal_ones_counted() -> None:
    blocks = text.reason_blocks(REASONS, verbose=False)
    assert table_of(blocks).rows == (
        ("1", "different", "regroup", "f", "It computes something else."),
        ("1", "slower", "regroup", "e", "G 4 -> G 2: 0.5x."),
        ("1", "declined", "regroup", "d", "All fits but 'w'."),
        ("2", "declined", "regroup", "b and 1 more", "'x' is in the way."),
        ("1", "declined", "-", "g", "It is inside a subgraph."),
    )
    assert blocks[-1] == "1 site that a pass has nothing to do with: -v shows them."


def test_verbose_hides_and_merges_nothing() -> None:
    assert len(table_of(text.reason_blocks(REASONS, verbose=True)).rows) == len(REASONS)


def test_trivial_reasons_are_told_where_there_are_no_others() -> None:
    (block,) = text.reason_blocks(REASONS[:1], verbose=False)
    assert isinstance(block, Table)
    assert block.rows == (("1", "declined", "regroup", "a", "It is dense."),)


def test_many_reasons_are_cut_with_a_word_about_it() -> None:
    many = [attempt("declined", f"Reason {chr(97 + k)}.", matched=1) for k in range(15)]
    blocks = text.reason_blocks(many, verbose=False)
    assert len(table_of(blocks).rows) == 12
    assert blocks[-1] == "3 more reasons are shown with -v."


def test_operators_that_changed_and_the_totals() -> None:
    made = report()
    assert text.operator_table(made.before, made.after).rows == (
        ("Add", "2", "0"),
        ("all operators", "5", "3"),
        ("file size", "2.0 kB", "2.5 MB"),
    )


def test_a_summary_holds_rejected_rewrites_and_the_chosen_shapes() -> None:
    made = report(attempts=(*report().attempts, *REASONS), chosen_shapes={"x": (1, 3, 67, 71)}, notes=("Beware.",))
    told = [block for block in text.report_blocks(made, verbose=False) if isinstance(block, str)]
    assert "Also considered: 1 slower, 5 declined; -v shows each with its reason." in told
    assert "Input shapes nobody gave, chosen for the timing: x:1,3,67,71." in told
    assert told[-1] == "Note: Beware."
    tables = [block for block in text.report_blocks(made, verbose=False) if isinstance(block, Table)]
    assert [row[1] for row in tables[1].rows] == ["different"]


def audited(verdict: Verdict, *regions: RegionAudit) -> Audit:
    output = OutputAudit(
        name="y",
        shape=(1, 3),
        dtype="float32",
        max_abs=1e-6,
        max_rel=2e-6,
        tolerance=3e-6,
        spread=1e-7,
        ratio=0.25,
        bitwise=False,
        compared=True,
    )
    return Audit(
        verdict=verdict,
        grade="exact" if verdict == "equivalent" else None,
        reason="So it is.",
        regions=regions,
        levels=(passed("L0", "Same interface."),),
        outputs=(output,),
        witnesses=(),
        notes=("A note.",),
        before_sha256="0",
        after_sha256="1",
        provider="cpu",
        threads=1,
        level="all",
        seed=0,
    )


def region(output: str, verdict: Verdict) -> RegionAudit:
    level = passed("L1", "Equal kernels.") if verdict == "equivalent" else failed("L1", "Other kernels.")
    return RegionAudit(
        inputs=("x",),
        outputs=(output,),
        before={"Conv": 1, "Reshape": 2},
        after={"Conv": 1},
        verdict=verdict,
        grade="exact" if verdict == "equivalent" else None,
        levels=(level,),
        blind=False,
        reason="Kernels differ." if verdict == "different" else "Kernels agree.",
    )


def test_an_audit_tells_regions_outputs_and_notes() -> None:
    good = audited("equivalent", region("a", "equivalent"), region("b", "equivalent"))
    blocks = text_audit.audit_blocks(good, verbose=False)
    tables = [block for block in blocks if isinstance(block, Table)]
    assert tables[1].rows == (("2", "a and 1 more", "Conv 2 Reshape -> Conv", "equivalent (exact)", "L1 passed"),)
    assert tables[2].rows[0][2:] == ("1.00e-06", "2.00e-06", "3.00e-06", "1.00e-07", "0.25", "compared")
    assert blocks[-1] == "Note: A note."
    assert text_audit.audit_conclusion(good) == "EQUIVALENT | grade exact | 2 regions | passed L0 L1"
    both = good.model_copy(update={"deployed": good})
    assert text_audit.audit_conclusion(both).endswith(" | passed L0 L1 | also in TF32, as deployed")


def test_the_last_line_of_a_cross_audit_says_which_model_is_meant() -> None:
    pairs = [audited("equivalent").model_copy(update={"provider": name}) for name in ("cpu", "cuda")]
    fine, bad = (
        audited(verdict).model_copy(update={"provider": "cuda", "reference": "cpu"})
        for verdict in ("equivalent", "different")
    )
    crossed = CrossAudit(verdict="different", reason="Not shown.", pairs=tuple(pairs), crossings=(fine, bad))
    assert text_audit.cross_conclusion(crossed) == (
        "DIFFERENT | B against A on cpu: equivalent (exact) | B against A on cuda: equivalent (exact) | "
        "A on cuda against A on cpu: equivalent (exact) | B on cuda against B on cpu: different | "
        "B on cuda against B on cpu: So it is"
    )
    headings = [block for block in text_audit.cross_blocks(crossed, verbose=False) if str(block).startswith("== ")]
    assert headings[-1] == "== B on cuda against B on cpu =="
    (alone, table) = (
        text_audit.cross_conclusion(CrossAudit(verdict="equivalent", reason="", pairs=(), crossings=(fine,))),
        text_audit.audit_blocks(fine, verbose=False),
    )
    assert alone == "EQUIVALENT | A on cuda against A on cpu: equivalent (exact)"
    assert "first provider's own" in [block for block in table if isinstance(block, Table)][-1].columns


def test_optimize_says_how_a_device_was_timed() -> None:
    plain = RECORD.model_copy(update={"provider": "cuda", "bound": True, "device": "NVIDIA H200"})
    told = text.report_blocks(report(timing=plain), verbose=False)
    assert any("Timed on NVIDIA H200, without a CUDA graph" in str(block) for block in told)
    assert "Clocks: the device does not tell them." in told
    graphs = plain.model_copy(update={"cuda_graph": True, "before_cuda_graph": True})
    told = text.report_blocks(report(timing=graphs), verbose=False)
    assert any("Timed on NVIDIA H200, as a captured CUDA graph" in str(block) for block in told)
    assert not any("Timed on" in str(block) for block in text.report_blocks(report(), verbose=False))


def test_what_was_not_measured_is_not_called_not_worth_it() -> None:
    made = report(attempts=(*report().attempts, attempt("unmeasured", "No time."), attempt("not_worth_it", "Noise.")))
    told = text.report_blocks(made, verbose=False)
    assert "Also considered: 1 unmeasured, 1 not worth it; -v shows each with its reason." in told


def test_a_different_region_says_why() -> None:
    bad = audited("different", region("a", "equivalent"), region("b", "different"))
    tables = [block for block in text_audit.audit_blocks(bad, verbose=False) if isinstance(block, Table)]
    assert tables[1].columns[-1] == "why"
    assert tables[1].rows[1][-3:] == ("different", "L1 FAILED", "Kernels differ.")
    assert text_audit.audit_conclusion(bad) == "DIFFERENT | So it is"


def timing(name: str, speedup: float, verdict: Any) -> Timing:
    return Timing(
        before="a",
        after=name,
        verdict=verdict,
        reason="Because.",
        before_ms=10.0,
        after_ms=10.0 / speedup,
        speedup=speedup,
        interval=(speedup - 0.1, speedup + 0.1),
        control_interval=(0.99, 1.01),
        smallest_effect=0.013,
        pairs=9,
        runs_per_block=(1, 1),
        threads=2,
        provider="cpu",
        seconds=1.0,
        before_sha256={"y": "0"},
        after_sha256={"y": "0" if name == "b" else "1"},
    )


def test_bench_names_the_best() -> None:
    found = [timing("b", 0.5, "SLOWER"), timing("c", 2.0, "FASTER")]
    (table, *_) = text_audit.bench_blocks(found)
    assert isinstance(table, Table)
    assert table.rows[0] == ("b", "10.00", "20.00", "0.50x", "0.40 to 0.60", "1.3%", "9", "SLOWER", "bitwise equal")
    assert table.rows[1][-1].startswith("differ in bits")
    line = "FASTER | c against a: 2.00x (1.90 to 2.10) | 2 threads | 1 slower, 1 faster | cpu"
    assert text_audit.bench_conclusion(found) == line


@pytest.mark.parametrize(
    ("effect", "said"), [(0.0812, "within the noise of 8.1 % seen in the control"), (None, "too few pairs")]
)
def test_a_candidate_in_the_noise_says_how_much_noise(effect: float | None, said: str) -> None:
    measured = replace(timing("b.onnx", 1.01, "NOISE"), smallest_effect=effect)
    candidate: Any = SimpleNamespace(
        step=SimpleNamespace(rule=SimpleNamespace(name="regroup"), settings={}),
        rewrite=SimpleNamespace(site="y", summary="s"),
    )
    place = Place("y", (candidate,), frozenset(), (), (), onnx.ModelProto(), "key", 1)
    winner, (attempt,) = _decide(place, [measured], "y")
    assert (winner, attempt.outcome) == (None, "not_worth_it")
    assert said in attempt.reason


def test_declines_that_differ_in_figures_only_are_counted_together() -> None:
    one = "No split of 'a' saves: rank 3 (288 multiplications), singular values 1.5, 0.2, 3e-05."
    other = "No split of 'b/c' saves: rank 12 (99 multiplications), singular values 7."
    assert text.alike(one) == text.alike(other)
    assert text.alike(one) != text.alike(other.replace("saves", "helps"))
    assert text.unnamed(one) != text.unnamed(other)
