"""The whole models that were considered, in words: what each costs, which was chosen, and which are worth having."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.report.record import Report, VariantRecord
from rewriter.report.table import Block, Table, size_text
from rewriter.visible import visible

_MANY = 3
"""Models from which on the table is shown unasked."""
_EFFICIENT = "*"


def variant_blocks(report: Report, verbose: bool) -> list[Block]:
    """The table with what its marks mean; nothing where one rewritten model was all there was, unless asked for."""
    variants = report.variants
    if not variants or not (verbose or report.objective != "latency" or len(variants) >= _MANY):
        return []
    told = [f"Objective: {visible(report.objective)}."] if report.objective != "latency" else []
    batch = report.items_per_run
    if report.objective == "throughput" and batch > 1:
        told = [f"{told[0]} One run takes a batch of {batch}; counted are its items."]
    table = variant_table(variants, report.items_per_run if report.objective == "throughput" else None)
    return [*told, table, _explained(variants)]


def variant_table(variants: Sequence[VariantRecord], items_per_run: int | None = None) -> Table:
    """One row for each; with `items_per_run`, also how many items it takes in a second."""
    rows = tuple(
        (
            one.name,
            str(one.rewrites),
            _latency(one),
            "" if items_per_run is None or one.ms <= 0 else f"{items_per_run * 1000 / one.ms:.1f}",
            _speedup(one),
            size_text(one.bytes),
            _peak(one),
            _marks(one),
        )
        for one in variants
    )
    columns = ("model", "rewrites", "latency", "per second", "speed-up", "size", "peak memory", "")
    table = Table(columns, rows, frozenset(columns[1:-1]) - {"speed-up"})
    return table.without_empty("per second").without_empty("peak memory")


def variant_line(one: VariantRecord) -> str:
    """`10.00 ms, 2.41x (2.38 to 2.44), 2.5 MB, 216.3 MiB, chosen, efficient`, for where there are no tables."""
    marks = [word for word, held in (("chosen", one.chosen), ("efficient", one.efficient)) if held]
    return ", ".join(filter(None, (_latency(one), _speedup(one), size_text(one.bytes), _peak(one), *marks)))


def _explained(variants: Sequence[VariantRecord]) -> str:
    measured = [one.peak_mib is not None for one in variants]
    respects = "latency, size or peak memory" if any(measured) else "latency or size"
    some = " Memory that was not measured is left out." if any(measured) and not all(measured) else ""
    return (
        f"{_EFFICIENT} no other model here is better in {respects} and as good in the rest, as far as the noise lets "
        f"it be seen.{some}"
    )


def _latency(one: VariantRecord) -> str:
    return f"{one.ms:.2f} ms"


def _speedup(one: VariantRecord) -> str:
    if one.speedup is None:
        return ""
    if one.interval is None:
        return f"{one.speedup:.2f}x (too few pairs)"
    return f"{one.speedup:.2f}x ({one.interval[0]:.2f} to {one.interval[1]:.2f})"


def _peak(one: VariantRecord) -> str:
    return "" if one.peak_mib is None else f"{one.peak_mib:.1f} MiB"


def _marks(one: VariantRecord) -> str:
    return " ".join([_EFFICIENT] * one.efficient + ["chosen"] * one.chosen)
