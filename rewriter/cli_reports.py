"""The files that `--report` writes: checked before the work, written atomically after it, whatever the verdict.

Where a model is written too, either both appear or neither.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from rewriter.errors import BadInput
from rewriter.report.formats import check_suffix, render

if TYPE_CHECKING:
    from rewriter.equivalence.records import Audit, CrossAudit
    from rewriter.model import Model
    from rewriter.report.content import Content, Section
    from rewriter.report.record import Report
    from rewriter.session import Runtime
    from rewriter.timing import Latency, Timing


def check_reports(reports: Sequence[Path], others: Sequence[Path]) -> None:
    """Raise BadInput when a report cannot be written, or would go over one of the command's other files (`others`)."""
    for path in reports:
        check_suffix(path.suffix, f"the suffix of the report '{path}'")
        check_place(path, "report", others)


def check_place(path: Path, kind: str, others: Sequence[Path]) -> None:
    """Raise BadInput when a file of a kind (`report`) cannot be written, or would go over one of `others`."""
    if path.is_dir():
        raise BadInput(f"the {kind} '{path}' is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise BadInput(f"the {kind}'s folder '{path.parent}' does not exist: create it first.")
    # A file is replaced in its folder; a device or pipe is written itself.
    target = path if path.exists() and not path.is_file() else path.resolve().parent
    if not os.access(target, os.W_OK):
        raise BadInput(f"the {kind} '{path}' cannot be written: '{target}' is not writable.")
    if any(path.resolve() == other.resolve() for other in others):
        raise BadInput(f"the {kind} '{path}' is also a model of this command: choose another name.")


def write_reports(reports: Sequence[Path], content: Content, more: Mapping[Path, bytes] | None = None) -> None:
    """Write the same to every file in its format, and `more` files, each atomically; raises as `reports_ready`."""
    with reports_ready(reports, content, more):
        pass


@contextlib.contextmanager
def reports_ready(
    reports: Sequence[Path], content: Content, more: Mapping[Path, bytes] | None = None
) -> Iterator[None]:
    """Write the reports, and `more` files, under other names, run the block, and name them if it raises nothing.

    So a model written in the block is there only if its reports could be written, and they only if it could.
    What is no file (a pipe, a device) is written before the block.  Raises BadInput when one cannot be written.
    """
    from rewriter.saving import write_atomically

    rendered = {suffix: render(suffix, content) for suffix in {path.suffix for path in reports}}
    staged: list[tuple[Path, Path]] = []
    try:
        for path, data in {**{path: rendered[path.suffix] for path in reports}, **(more or {})}.items():
            if path.exists() and not path.is_file():
                write_atomically(path, data)
                continue
            staged.append((_staged(path.resolve(), data), path.resolve()))
        yield
        for temporary, path in staged:
            temporary.replace(path)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def _staged(path: Path, data: bytes) -> Path:
    """The data in a file beside `path`, synced: all that is left to do is to rename it."""
    temporary = path.with_name(f".rewriter-{token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BadInput(f"the report '{path}' cannot be written: {error.strerror or error}.") from error
        raise
    return temporary


def audit_report(audit: Audit, before: Model, after: Model, runtime: Runtime, verbose: bool = False) -> Content:
    """What `rewriter audit` found; `verbose` is about text alone."""
    from rewriter.report.content import Content
    from rewriter.report.text_audit import audit_blocks, audit_conclusion

    data = {**_frame("audit", before, after, runtime), "attempts": [], "timing": None, **audit.to_dict()}
    section = _section("", audit, audit.verdict == "equivalent")
    return Content("audit", data, tuple(audit_blocks(audit, verbose)), audit_conclusion(audit), (section,))


def cross_report(
    audit: CrossAudit, models: Sequence[Model], runtimes: Sequence[Runtime], verbose: bool = False
) -> Content:
    """What `rewriter audit` found where several providers are given."""
    from rewriter.report.content import Content
    from rewriter.report.text_audit import cross_blocks, cross_conclusion, named_audits

    frame = _frame("audit", models[0], models[1] if len(models) > 1 else None, *runtimes)
    providers = [runtime.provider for runtime in runtimes]
    data = {**frame, "providers": providers, "attempts": [], "timing": None, "grade": None, **audit.to_dict()}
    sections = tuple(_section(name, found, found.verdict == "equivalent") for name, found in named_audits(audit))
    return Content("audit", data, tuple(cross_blocks(audit, verbose)), cross_conclusion(audit), sections)


def replay_report(content: Content, same: bool, said: str, notes: Sequence[str]) -> Content:
    """The report on an audit that was made again: whether it came out as its certificate has it is one check more.

    `said` is "Reproduced: …" or "Not reproduced: …"; `notes` are sentences on what else is not as it was.
    """
    from dataclasses import replace

    from rewriter.report.content import Case, Section
    from rewriter.report.text import clause
    from rewriter.visible import visible

    word, _, why = said.partition(": ")
    shown = tuple(visible(f"Note: {note}") for note in notes)
    case = Case("verdict", "replay", "passed" if same else "error", said, "\n".join(shown), word.lower())
    return replace(
        content,
        data={**content.data, "replay": {"same": same, "said": said, "notes": list(notes)}},
        blocks=(*content.blocks, *shown),
        last=f"{word.upper()} | {clause(why)}",
        sections=(*content.sections, Section("Replay", (visible(said), *shown))),
        cases=(*content.cases, case),
    )


def rewrite_report(report: Report, fate: str, verbose: bool = False) -> Content:
    """What `optimize` and `rewrite` did; `fate` is what became of the file, as in their last line."""
    from rewriter.report.content import Case, Content, Section, fate_of
    from rewriter.report.text import conclusion, report_blocks

    last = conclusion(report, fate)
    sections = [Section("", tuple(report_blocks(report.model_copy(update={"audit": None}), False)))]
    cases = [
        Case("rewrites", f"{attempt.pass_name} at {attempt.site}", "skipped", f"Not kept: {attempt.reason}")
        for attempt in report.attempts
        if attempt.outcome in ("different", "failed", "not_verified")
    ]
    if report.audit is None:
        fate_here = fate_of(report.verdict, report.accepted)
        cases.insert(0, Case("verdict", "verdict", fate_here, report.reason, last, report.verdict))
    else:
        sections.append(_section("Audit", report.audit, report.accepted))
    blocks = tuple(report_blocks(report, verbose))
    return Content(report.command, report.to_dict(), blocks, last, tuple(sections), tuple(cases))


def bench_report(result: Latency | Sequence[Timing], models: Sequence[Model], runtime: Runtime) -> Content:
    """What `rewriter bench` measured: `timing` is the second model against the first, `timings` all of them."""
    from dataclasses import asdict

    from rewriter.report.content import Case, Content, Section
    from rewriter.report.record import timing_record
    from rewriter.report.text_audit import bench_blocks, bench_conclusion, latency_blocks, latency_conclusion
    from rewriter.timing import Latency

    frame = _frame("bench", models[0], models[1] if len(models) > 1 else None, runtime)
    # Whether the models compute the same is not judged here, not even where the timed outputs are the same bits.
    unjudged = "Only timed: `rewriter audit` judges equivalence."
    plain: dict[str, Any] = {**frame, "verdict": "not_verified", "grade": None, "reason": unjudged, "attempts": []}
    plain |= {"latency": None, "timing": None, "timings": []}
    if isinstance(result, Latency):
        data = {**plain, "latency": {**asdict(result), "options": dict(result.options)}}
        blocks, last = latency_blocks(result), latency_conclusion(result)
        cases = [Case("timing", result.name, "passed", body=last)]
    else:
        pairs = [
            {
                "before": entry.before,
                "after": entry.after,
                **timing_record(entry).model_dump(mode="json"),
                "before_outputs_sha256": dict(entry.before_sha256),
                "after_outputs_sha256": dict(entry.after_sha256),
            }
            for entry in result
        ]
        data = {**plain, "timing": pairs[0], "timings": pairs}
        blocks, last = bench_blocks(result), bench_conclusion(result)
        cases = [
            *(Case("timing", f"{entry.after} against {entry.before}", "passed", body=entry.reason) for entry in result),
            Case("verdict", "equivalence", "skipped", unjudged),
        ]
    return Content("bench", data, tuple(blocks), last, (Section("", tuple(blocks)),), tuple(cases))


def failure_report(command: str, reason: str, model: Path, runtimes: Sequence[Runtime]) -> Content:
    """What reports say when a check could not be made at all."""
    from rewriter.model import Model
    from rewriter.report.content import Case, Content, Section
    from rewriter.report.text import clause

    data = {
        **_frame(command, Model.load(model), None, *runtimes),
        "verdict": "not_verified",
        "grade": None,
        "reason": reason,
        "changed": False,
        "attempts": [],
        "timing": None,
        "audit": None,
    }
    said = f"The check could not be made: {reason}"
    case = Case("verdict", "verdict", "error", reason, said, "not_verified")
    last = f"NOT VERIFIED | {clause(reason)}"
    return Content(command, data, (), last, (Section("", ("The check could not be made.",)),), (case,))


def _section(title: str, audit: Audit, accepted: bool) -> Section:
    """An audit as a part of a report; what the command prints with -v is in it, but for what is told by region."""
    from rewriter.report.content import Section
    from rewriter.report.text_audit import audit_blocks, float64_lines

    return Section(title, (*audit_blocks(audit, False), *float64_lines(audit.outputs)), audit, accepted)


def _frame(command: str, before: Model, after: Model | None, *runtimes: Runtime) -> dict[str, Any]:
    """What every report has: its schema, the files with their hashes, the environment."""
    from rewriter.report.record import SCHEMA, environment, file_record

    return {
        "schema": SCHEMA,
        "command": command,
        "before": file_record(before, before.path).model_dump(mode="json"),
        "after": None if after is None else file_record(after, after.path).model_dump(mode="json"),
        "environment": environment(*runtimes),
    }
