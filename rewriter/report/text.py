"""Reports in words: what a command says on standard output, as lines and tables of text without any styling."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rewriter.report.record import AttemptRecord, FileRecord, KernelRecord, Report, TimingRecord
from rewriter.report.table import Block as Block  # noqa: PLC0414 - others look for it here
from rewriter.report.table import Table as Table  # noqa: PLC0414 - others look for it here
from rewriter.report.table import size_text as size_text  # noqa: PLC0414 - others look for it here
from rewriter.report.text_device import device_paragraphs
from rewriter.report.text_variants import variant_blocks
from rewriter.visible import visible

_SHOWN_REASONS = 12
_SMALL_KERNEL = 0.005  # of all time: kernels below are shown together
"""Groups of reasons printed without -v: the nearest misses."""
_ORDER = ("different", "failed", "not_verified", "withheld", "unmeasured", "slower", "not_worth_it", "declined")
_ALWAYS_SHOWN = frozenset({"different", "failed", "not_verified"})


def report_blocks(report: Report, verbose: bool) -> list[Block]:
    """The summary of `optimize` and `rewrite`, all but its last line."""
    kept = [attempt for attempt in report.attempts if attempt.outcome == "accepted"]
    others = [attempt for attempt in report.attempts if attempt.outcome != "accepted"]
    blocks: list[Block] = []
    if kept:
        blocks += [kept_table(kept, verbose)]
        blocks += deviation_table(kept)
    if not report.changed or verbose:
        blocks += reason_blocks(others, verbose)
    else:
        blocks += reason_blocks([attempt for attempt in others if attempt.outcome in _ALWAYS_SHOWN], verbose)
        blocks += tally(others)
    if report.changed:
        blocks += [operator_table(report.before, report.after)]
        blocks += [kernel_table(report.kernels, verbose)] if report.kernels else []
    if report.timing is not None:
        blocks += [visible(timing_line(report.timing))]
        blocks += device_paragraphs(report.timing, (report.timing.before_cuda_graph, report.timing.cuda_graph))
    blocks += variant_blocks(report, verbose)
    if report.chosen_shapes:
        blocks += [visible(f"Input shapes nobody gave, chosen for the timing: {shapes_text(report.chosen_shapes)}.")]
    if report.audit is not None:
        blocks += [visible(f"Audit: {graded(report.audit.verdict, report.audit.grade)}. {report.audit.reason}")]
        blocks += [visible(f"Note: {note}") for note in report.audit.notes]
    return blocks + [visible(f"Note: {note}") for note in report.notes]


def kept_table(kept: Sequence[AttemptRecord], verbose: bool) -> Table:
    """What was rewritten, one row for each group of equal rewrites (one for each rewrite when verbose)."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for number, attempt in enumerate(kept):
        measured = str(attempt.details.get("measured", "")).partition(" in context")[0]
        key = (attempt.pass_name, attempt.summary, measured, *([str(number)] if verbose else []))
        groups.setdefault(key, []).append(attempt.site)
    table = Table(
        ("#", "pass", "site", "measured in context", "rewrite"),
        tuple((str(len(sites)), key[0], sites_text(sites), key[2], key[1]) for key, sites in groups.items()),
        frozenset({"#"}),
    )
    return table.without_empty("measured in context")


def deviation_table(kept: Sequence[AttemptRecord]) -> list[Block]:
    """What each approximation costs and saves, if there is one; errors are relative, by root mean square."""
    rows = tuple(
        (
            attempt.site,
            f"{off['rank']} of {off['full_rank']}",
            f"{off['before']} -> {off['after']}",
            f"{off['weight_error']:.2g}",
            f"{off['error']:.2g}",
            f"{off['held_error']:.2g}",
            "-" if off.get("audited_error") is None else f"{off['audited_error']:.2g}",
            f"{off['allowed']:g}",
        )
        for attempt in kept
        if (off := attempt.details.get("deviation"))
    )
    columns = (
        "approximation",
        "rank",
        "multiplications",
        "error of weights",
        "of output",
        "not fitted to",
        "audited",
        "allowed",
    )
    return [Table(columns, rows, frozenset(columns[1:]))] if rows else []


def reason_blocks(attempts: Iterable[AttemptRecord], verbose: bool) -> list[Block]:
    """Why something was not done: equal reasons counted, the nearest misses first, trivial ones only if verbose."""
    considered = list(attempts)
    nearer = [attempt for attempt in considered if not is_trivial(attempt)]
    # Where nothing came near, the trivial reasons are all there is to say.
    told = considered if verbose or not nearer else nearer
    groups: dict[tuple[str, str, str], list[AttemptRecord]] = {}
    for attempt in told:
        reason = why(attempt)
        if not verbose:
            reason = alike(reason) if attempt.outcome == "declined" else unnamed(reason)
        groups.setdefault((attempt.outcome, attempt.pass_name, reason), []).append(attempt)
    ranked = sorted(groups.items(), key=lambda item: (_ORDER.index(item[0][0]), -_nearness(item[1]), -len(item[1])))
    shown = ranked if verbose else ranked[:_SHOWN_REASONS]
    rows = tuple(
        (
            str(len(found)),
            outcome.replace("_", " "),
            name or "-",
            sites_text([entry.site for entry in found]),
            why(found[0]),
        )
        for (outcome, name, _), found in shown
    )
    blocks: list[Block] = [Table(("#", "outcome", "pass", "site", "why"), rows, frozenset({"#"}))] if rows else []
    if len(ranked) > len(shown):
        blocks.append(f"{len(ranked) - len(shown)} more reasons are shown with -v.")
    if hidden := len(considered) - len(told):
        blocks.append(f"{counted(hidden, 'site')} that a pass has nothing to do with: -v shows them.")
    return blocks


def why(attempt: AttemptRecord) -> str:
    """The reason, after what would have become what."""
    return f"{attempt.summary}: {attempt.reason}" if attempt.summary else attempt.reason


def is_trivial(attempt: AttemptRecord) -> bool:
    """Whether a pass declined without a node that fitted; places out of reach (no pass named) are never trivial."""
    return attempt.outcome == "declined" and attempt.matched == 0 and bool(attempt.pass_name)


def _nearness(attempts: Sequence[AttemptRecord]) -> int:
    return max(attempt.matched for attempt in attempts)


def tally(attempts: Sequence[AttemptRecord]) -> list[Block]:
    """One line that says how many other attempts there were, by outcome."""
    rest = [attempt for attempt in attempts if attempt.outcome not in _ALWAYS_SHOWN]
    counts = {outcome: sum(attempt.outcome == outcome for attempt in rest) for outcome in _ORDER}
    parts = [f"{count} {outcome.replace('_', ' ')}" for outcome, count in counts.items() if count]
    return [f"Also considered: {', '.join(parts)}; -v shows each with its reason."] if parts else []


def kernel_table(kernels: Sequence[KernelRecord], verbose: bool) -> Table:
    """Why it became faster: ONNX Runtime's own kernels, those that matter or all of them, and the sum."""
    total = max(sum(one.before_ms for one in kernels), sum(one.after_ms for one in kernels))
    shown = [one for one in kernels if verbose or max(one.before_ms, one.after_ms) >= _SMALL_KERNEL * total]
    rows = [
        (one.kind, str(one.before), str(one.after), f"{one.before_ms:.2f}", f"{one.after_ms:.2f}")
        for one in [*shown, _together("others", [one for one in kernels if one not in shown])]
        if one.before or one.after
    ]
    every = _together("all kernels", kernels)
    rows.append((every.kind, str(every.before), str(every.after), f"{every.before_ms:.2f}", f"{every.after_ms:.2f}"))
    columns = ("ONNX Runtime's kernel", "before", "after", "ms before", "ms after")
    return Table(columns, tuple(rows), frozenset(columns[1:]))


def _together(kind: str, kernels: Sequence[KernelRecord]) -> KernelRecord:
    return KernelRecord(
        kind=kind,
        before=sum(one.before for one in kernels),
        after=sum(one.after for one in kernels),
        before_ms=sum(one.before_ms for one in kernels),
        after_ms=sum(one.after_ms for one in kernels),
    )


def operator_table(before: FileRecord, after: FileRecord) -> Table:
    """Operator counts that changed, then the totals."""
    rows = [
        (op, str(before.ops.get(op, 0)), str(after.ops.get(op, 0)))
        for op in sorted({*before.ops, *after.ops})
        if before.ops.get(op, 0) != after.ops.get(op, 0)
    ]
    rows.append(("all operators", str(before.nodes), str(after.nodes)))
    rows.append(("file size", size_text(before.bytes), size_text(after.bytes)))
    return Table(("operator", "before", "after"), tuple(rows), frozenset({"before", "after"}))


def timing_line(timing: TimingRecord) -> str:
    """`Latency: 31.20 ms -> 12.90 ms, 2.42x (2.38 to 2.44), 1 thread, cpu.`"""
    change = f"{timing.before_ms:.2f} ms -> {timing.after_ms:.2f} ms, {speed_text(timing)}"
    line = f"Latency: {change}, {threads_text(timing.threads)}, {timing.provider}, {counted(timing.pairs, 'pair')}."
    if timing.nondeterministic:
        line += f" Two runs on the same inputs differ in: {', '.join(timing.nondeterministic)}."
    return line


def conclusion(report: Report, fate: str) -> str:
    """The last line: the verdict, what was done, how fast it is, and what became of the file (`fate`)."""
    if not report.accepted:
        return f"{verdict_word(report.verdict)} | {clause(report.reason)} | {fate}"
    if not report.changed:
        return f"UNCHANGED | {clause(report.reason)} | {fate}"
    kept = sum(attempt.outcome == "accepted" for attempt in report.attempts)
    parts = [verdict_word(report.verdict), counted(kept, "rewrite")]
    if report.timing is not None:
        parts.append(f"{faster_text(report.timing)} at {threads_text(report.timing.threads)}")
    return " | ".join([*parts, fate])


def verdict_word(verdict: str) -> str:
    """`NOT VERIFIED` for `not_verified`."""
    return verdict.replace("_", " ").upper()


def graded(verdict: str, grade: str | None) -> str:
    """`equivalent (exact)`."""
    return verdict.replace("_", " ") + (f" ({grade})" if grade else "")


def clause(sentence: str) -> str:
    """A sentence without its full stop, on one line."""
    return " ".join(sentence.split()).rstrip(".")


def faster_text(timing: TimingRecord) -> str:
    """`2.41x faster (2.38 to 2.44)`."""
    spread = "" if timing.interval is None else f" ({timing.interval[0]:.2f} to {timing.interval[1]:.2f})"
    return f"{timing.speedup:.2f}x faster{spread}"


def speed_text(timing: TimingRecord) -> str:
    """`2.41x (95 % interval 2.38 to 2.44)`."""
    if timing.interval is None:
        return f"{timing.speedup:.2f}x (too few pairs for an interval)"
    return f"{timing.speedup:.2f}x (95 % interval {timing.interval[0]:.2f} to {timing.interval[1]:.2f})"


def threads_text(threads: int) -> str:
    """`1 thread`; 0 stands for ONNX Runtime's own choice."""
    return counted(threads, "thread") if threads else "ONNX Runtime's default threads"


def counted(number: int, noun: str) -> str:
    """`1 rewrite`, `2 rewrites`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def sites_text(sites: Sequence[str]) -> str:
    """The first name, and how many more."""
    return sites[0] if len(sites) == 1 else f"{sites[0]} and {len(sites) - 1} more"


def unnamed(reason: str) -> str:
    """A reason without the names in it: reasons that differ in nothing else are counted as one, the first one shown."""
    return re.sub(r"'[^']*'", "''", reason)


def alike(reason: str) -> str:
    """A reason without names and figures: those of declined sites that differ in nothing else are counted together."""
    plain = re.sub(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", "0", unnamed(reason))
    return re.sub(r"0(?:, 0)+", "0", plain)  # however many there are


def shapes_text(shapes: Mapping[str, Sequence[int]]) -> str:
    """`x:1,3,224,224`, as `--input-shape` takes it."""
    return " ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items())
