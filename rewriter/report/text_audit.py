"""An audit or a timing of any two models in words, as lines and tables without any styling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rewriter.equivalence.records import Audit, CrossAudit, LevelResult, OutputAudit, RegionAudit
from rewriter.report.table import Block, Table
from rewriter.report.text import clause, counted, graded, sites_text, threads_text, verdict_word
from rewriter.report.text_device import device_paragraphs
from rewriter.timing import Latency, Timing
from rewriter.visible import visible

_MARKS = {"pass": "passed", "fail": "FAILED", "not applicable": "n/a", "not exact here": "not exact here"}


def audit_blocks(audit: Audit, verbose: bool) -> list[Block]:
    """The whole audit but its last line: the levels, the regions, the outputs, the notes."""
    blocks: list[Block] = [visible(f"Audit: {graded(audit.verdict, audit.grade)}. {audit.reason}")]
    blocks += [level_table(audit.levels)] if audit.levels else []
    blocks += [visible(edge_text(audit))] if audit.flags else []
    blocks += [region_table(audit.regions, verbose)] if audit.regions else []
    if verbose:
        blocks += [region_details(number, region) for number, region in enumerate(audit.regions, 1)]
    blocks += (
        [output_table(audit.outputs, "first provider's" if audit.reference else "original's")] if audit.outputs else []
    )
    blocks += float64_lines(audit.outputs) if verbose else []
    blocks += [
        visible(f"Run {witness.recipe} was not possible: {witness.problem}")
        for witness in audit.witnesses
        if witness.problem
    ]
    blocks += [visible(f"Note: {note}") for note in audit.notes]
    if audit.deployed is None:
        return blocks
    return [*blocks, "The same in TF32, as deployed:", *audit_blocks(audit.deployed, verbose)]


def cross_blocks(crossed: CrossAudit, verbose: bool) -> list[Block]:
    """An audit on several providers: each part of it under a heading of its own."""
    blocks: list[Block] = []
    for name, found in named_audits(crossed):
        blocks += [f"== {name} ==", *audit_blocks(found, verbose)]
    return blocks


def cross_conclusion(crossed: CrossAudit) -> str:
    """The last line of `rewriter audit` with several providers."""
    named = named_audits(crossed)
    last = [verdict_word(crossed.verdict), *(f"{name}: {graded(found.verdict, found.grade)}" for name, found in named)]
    # The last word is with the first of the weakest.
    weak = [f"{name}: {clause(found.reason)}" for name, found in named if found.verdict == crossed.verdict]
    return " | ".join(last if crossed.verdict == "equivalent" else [*last, *weak[:1]])


def named_audits(crossed: CrossAudit) -> list[tuple[str, Audit]]:
    """Each audit with what it judged: `B against A on cuda`, `A on cuda against A on cpu`."""
    pairs = [(f"B against A on {found.provider}", found) for found in crossed.pairs]
    half = len(crossed.crossings) // (2 if crossed.pairs else 1)  # all of A, then all of B
    models = ["A" if number < half else "B" for number in range(len(crossed.crossings))]
    across = [
        (f"{name} on {found.provider} against {name} on {found.reference}", found)
        for name, found in zip(models, crossed.crossings, strict=True)
    ]
    return pairs + across


def level_table(levels: Sequence[LevelResult]) -> Table:
    """The levels that concern the whole model."""
    return Table(("level", "whole model", "what was found"), tuple(_level_row(entry) for entry in levels))


def edge_text(audit: Audit) -> str:
    """One line on the edges of the number range, and on other sizes: what the equivalence does not cover."""
    found = [region.flags for region in audit.regions if region.flags]

    def where(name: str, value: str) -> str:
        return f" in {sum(flags.get(name) == value for flags in found)} of {counted(len(audit.regions), 'region')}"

    nonfinite = {
        "same": "NaN and infinity come out the same",
        "differs": f"holds for finite inputs only (NaN or infinity come out elsewhere{where('nonfinite', 'differs')})",
    }.get(audit.flags.get("nonfinite", ""), "NaN and infinity not compared everywhere")
    parts = [nonfinite] if "nonfinite" in audit.flags else []
    if audit.flags.get("signed_zero") == "differs":
        parts.append(f"zeros of another sign{where('signed_zero', 'differs')}")
    if audit.flags.get("denormals") == "differs":
        parts.append(f"denormal numbers give something else{where('denormals', 'differs')}")
    if audit.flags.get("sizes"):
        parts.append(f"other sizes tried: {audit.flags['sizes']}")
    return f"Edges (L5): {'; '.join(parts)}."


def _level_row(entry: LevelResult) -> tuple[str, ...]:
    return entry.level, _MARKS[entry.outcome], entry.detail


def region_table(regions: Sequence[RegionAudit], verbose: bool) -> Table:
    """The regions in which the models differ; those that look the same to every level are one row unless verbose."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for number, region in enumerate(regions, 1):
        levels = ", ".join(f"{entry.level} {_MARKS[entry.outcome]}" for entry in region.levels)
        change = f"{_ops(region.before)} -> {_ops(region.after)}"
        verdict = graded(region.verdict, region.grade)
        why = "" if region.verdict == "equivalent" else region.reason
        key = (change, verdict, levels, why, *([str(number)] if verbose else []))
        groups.setdefault(key, []).append(", ".join(region.outputs))
    table = Table(
        ("#", "region", "operators", "verdict", "levels", "why"),
        tuple((str(len(names)), sites_text(names), *key[:4]) for key, names in groups.items()),
        frozenset({"#"}),
    )
    return table.without_empty("why")


def _ops(ops: dict[str, int]) -> str:
    return " ".join(name if count == 1 else f"{count} {name}" for name, count in ops.items()) or "nothing"


def region_details(number: int, region: RegionAudit) -> str:
    """What every level says about one region."""
    blind = {None: "not measured", True: "no", False: "yes"}[region.blind]
    lines = [f"Region {number}, {', '.join(region.outputs)}: {graded(region.verdict, region.grade)}. {region.reason}"]
    lines += [f"  {entry.level} {_MARKS[entry.outcome]}: {entry.detail}" for entry in region.levels]
    lines += [f"  {', '.join(f'{name} {value}' for name, value in region.flags.items())}"] if region.flags else []
    return "\n".join(map(visible, [*lines, f"  outputs respond to it: {blind}"]))


def output_table(outputs: Sequence[OutputAudit], whose: str = "original's") -> Table:
    """The worst figures of every output over all runs; `whose` own error they are held against."""
    rows = tuple(
        (
            entry.name,
            f"{entry.dtype} {list(entry.shape)}",
            f"{entry.max_abs:.2e}",
            f"{entry.max_rel:.2e}",
            f"{entry.tolerance:.2e}",
            f"{entry.spread:.2e}",
            f"{entry.ratio:.2f}",
            {None: "", True: "within", False: "exceeded"}[entry.within_tolerance],
            "bitwise equal" if entry.bitwise else "compared" if entry.compared else "nothing learned",
        )
        for entry in outputs
    )
    numbers = ("max abs", "max rel", "rtol=atol needed", f"{whose} own", "of allowed")
    table = Table(("output", "type", *numbers, "your tolerance", ""), rows, frozenset(numbers))
    return table.without_empty("your tolerance")


def float64_lines(outputs: Sequence[OutputAudit]) -> list[Block]:
    """How far both models are off a float64 evaluation of the original, where there was one."""
    held = [entry for entry in outputs if entry.own_error is not None and entry.new_error is not None]
    return [
        visible(
            f"Against float64, '{entry.name}' is off by {entry.new_error:.2e}, the original's by {entry.own_error:.2e}."
        )
        for entry in held
    ]


def audit_conclusion(audit: Audit) -> str:
    """The last line of `rewriter audit`."""
    levels = list(dict.fromkeys(entry.level for entry in _all_levels(audit) if entry.outcome == "pass"))
    parts = [verdict_word(audit.verdict)]
    if audit.verdict != "equivalent":
        return " | ".join([*parts, clause(audit.reason)])
    parts += [f"grade {audit.grade}"] if audit.grade else []
    parts += [counted(len(audit.regions), "region")]
    parts += [f"passed {' '.join(sorted(levels))}"] if levels else []
    parts += ["also in TF32, as deployed"] if audit.deployed else []
    return " | ".join(parts)


def _all_levels(audit: Audit) -> list[LevelResult]:
    return [*audit.levels, *(entry for region in audit.regions for entry in region.levels)]


def latency_blocks(latency: Latency) -> list[Block]:
    """One model's time by itself."""
    spread = "too few blocks for an interval"
    if latency.interval_ms is not None:
        spread = f"95 % interval {_ms(latency.interval_ms[0])} to {_ms(latency.interval_ms[1])}"
    blocks: list[Block] = [
        f"{latency.name}: {_ms(latency.ms)} ms per run ({spread}; {latency.blocks} blocks of "
        f"{counted(latency.runs_per_block, 'run')})."
    ]
    blocks += device_paragraphs(latency, (latency.cuda_graph,))
    return blocks + _nondeterministic(latency.nondeterministic)


def latency_conclusion(latency: Latency) -> str:
    """The last line of `rewriter bench A`."""
    where = _where(latency, latency.cuda_graph)
    return f"{_ms(latency.ms)} ms | {latency.name} | {threads_text(latency.threads)} | {where}"


def bench_blocks(timings: Sequence[Timing]) -> list[Block]:
    """Each model against the first."""
    rows = tuple(
        (
            entry.after,
            _ms(entry.before_ms),
            _ms(entry.after_ms),
            f"{entry.speedup:.2f}x",
            "-" if entry.interval is None else f"{entry.interval[0]:.2f} to {entry.interval[1]:.2f}",
            "-" if entry.smallest_effect is None else f"{entry.smallest_effect:.1%}",
            str(entry.pairs),
            entry.verdict,
            agreement(entry),
        )
        for entry in timings
    )
    numbers = (f"{timings[0].before} [ms]", "this [ms]", "speed-up", "95 % interval", "visible from", "pairs")
    blocks: list[Block] = [Table(("model", *numbers, "verdict", "outputs"), rows, frozenset(numbers))]
    blocks += ["\n".join(visible(f"{entry.after}: {entry.reason}") for entry in timings)]
    blocks += _options_blocks(timings)
    blocks += device_paragraphs(timings[0], (timings[0].before_cuda_graph, *(entry.cuda_graph for entry in timings)))
    return blocks + _nondeterministic(
        tuple(dict.fromkeys(name for entry in timings for name in entry.nondeterministic))
    )


def agreement(timing: Timing) -> str:
    """Whether the timed outputs were the same bits; whether differing ones are equivalent is the audit's to say."""
    same = timing.before_sha256 == timing.after_sha256
    return "bitwise equal" if same else "differ in bits (see `rewriter audit`)"


def bench_conclusion(timings: Sequence[Timing]) -> str:
    """The last line of `rewriter bench A B…`: the best of them."""
    best = max(timings, key=lambda entry: entry.speedup)
    verdicts = Counter(entry.verdict for entry in timings)
    spread = "" if best.interval is None else f" ({best.interval[0]:.2f} to {best.interval[1]:.2f})"
    parts = [
        best.verdict,
        f"{best.after} against {best.before}: {best.speedup:.2f}x{spread}",
        threads_text(best.threads),
    ]
    if len(timings) > 1:
        parts.append(", ".join(f"{count} {verdict.lower()}" for verdict, count in verdicts.items()))
    return " | ".join([*parts, _where(best, best.before_cuda_graph and best.cuda_graph)])


def _ms(milliseconds: float) -> str:
    """Two decimals, and more below 1 ms: a run on a GPU often takes some hundredths."""
    return f"{milliseconds:.2f}" if milliseconds >= 1 else f"{milliseconds:.3g}"


def _where(timed: Latency | Timing, graphs: bool) -> str:
    return f"{timed.provider}, CUDA graph" if graphs else timed.provider


def _options_blocks(timings: Sequence[Timing]) -> list[Block]:
    """Who was run with which provider options, where they are not all the same."""
    sides = [(timings[0].before, timings[0].before_options), *((entry.after, entry.after_options) for entry in timings)]
    if all(options == sides[0][1] for _, options in sides):
        return []
    lines = (
        f"{name} was run with {', '.join(f'{key}={value}' for key, value in options) or 'no provider options'}."
        for name, options in sides
    )
    return ["\n".join(map(visible, lines))]


def _nondeterministic(names: Sequence[str]) -> list[Block]:
    return [visible(f"Note: two runs on the same inputs differ in {', '.join(names)}.")] if names else []
