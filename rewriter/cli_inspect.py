"""What `inspect` and `passes` say: lines and tables without any styling, and the JSON of `inspect`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import onnx

from rewriter.base import Pass
from rewriter.model import Model
from rewriter.options import PERMITS
from rewriter.report.record import file_record
from rewriter.report.text import Block, Table, alike, counted, sites_text, unnamed
from rewriter.rule import Attempt
from rewriter.survey import Opinion, Site, explanation

SCHEMA = "https://onnx-conv-rewriter/inspect/1"
"""Identifier of the layout of `inspect --json`; the number rises when a reader would have to change."""
_MANY: Final = 4
"""So many passes that say the same are counted, not named."""


def inspection(model: Model, sites: Sequence[Site], unreachable: Sequence[Attempt]) -> dict[str, Any]:
    """The JSON of `inspect`: plain types."""
    return {
        "schema": SCHEMA,
        "model": file_record(model, model.path).model_dump(mode="json"),
        "inputs": {value.name: _declared(value) for value in model.inputs},
        "sites": [site.to_dict() for site in sites],
        "unreachable": [{"site": entry.site, "reason": entry.reason} for entry in unreachable],
    }


def _declared(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Element type and dimensions as the model declares them: a number, a name, or null."""
    kind = value.type.tensor_type
    dims = [dim.dim_value or dim.dim_param or None for dim in kind.shape.dim] if kind.HasField("shape") else None
    return {"type": onnx.TensorProto.DataType.Name(kind.elem_type).lower(), "shape": dims}


def survey_blocks(sites: Sequence[Site], unreachable: Sequence[Attempt], verbose: bool) -> list[Block]:
    """Every convolution, then what the passes would do and why not, equal answers counted together."""
    blocks: list[Block] = []
    if sites:
        blocks.append(site_table(sites))
    blocks += opinion_blocks(sites, verbose)
    blocks += nothing_blocks(sites)
    if unreachable:
        rows = tuple((entry.site, entry.reason) for entry in unreachable)
        blocks.append(Table(("out of reach", "why"), rows))
    return blocks


def site_table(sites: Sequence[Site]) -> Table:
    """One row per convolution; sizes that are not known before the model runs are `?`."""
    rows = tuple(
        (
            site.site,
            site.form,
            str(site.group),
            _over(site.channels_in, site.group),
            _text(site.channels_in),
            _text(site.channels_out),
            _kernel(site),
            "?" if site.output_shape is None else "x".join(map(str, site.output_shape)),
            "?" if site.macs is None else f"{site.macs / 1e6:.1f}",
            ", ".join(entry.pass_name for entry in site.passes if entry.applies) or "-",
        )
        for site in sites
    )
    numbers = ("group", "per group", "in", "out", "kernel", "output", "MACs [M]")
    return Table(("site", "form", *numbers, "passes that apply"), rows, frozenset(numbers))


def opinion_blocks(sites: Sequence[Site], verbose: bool) -> list[Block]:
    """What each pass would do, then its nearest reasons not to.

    Unless verbose, without the trivial ones, and without those for a convolution that nothing applies to: these are
    explained apart.
    """
    groups: dict[tuple[bool, str, str], list[tuple[str, Opinion]]] = {}
    left_out = 0
    for site in sites:
        explained = explanation(site)
        for entry in site.passes:
            if not verbose and entry in explained:
                continue
            if not verbose and not entry.applies and (entry.matched == 0 or explained):
                left_out += 1
                continue
            reason = entry.reason
            if not verbose:
                reason = unnamed(reason) if entry.applies else alike(reason)
            groups.setdefault((entry.applies, entry.pass_name, reason), []).append((site.site, entry))
    ranked = sorted(
        groups.items(), key=lambda item: (not item[0][0], -max(entry.matched for _, entry in item[1]), item[0][1])
    )
    rows = tuple(
        (str(len(found)), name, "yes" if applies else "no", sites_text([site for site, _ in found]), found[0][1].reason)
        for (applies, name, _), found in ranked
    )
    blocks: list[Block] = (
        [Table(("#", "pass", "applies", "site", "what or why"), rows, frozenset({"#"}))] if rows else []
    )
    if left_out:
        blocks.append(f"{counted(left_out, 'answer')} of a pass that has nothing to do with a site: -v shows them.")
    return blocks


def nothing_blocks(sites: Sequence[Site]) -> list[Block]:
    """The convolutions that nothing applies to, those for the same reasons together, with a line for each reason."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[Site, list[tuple[str, str]]]]] = {}
    for site in sites:
        if site.applies:
            continue
        told = _told(explanation(site))
        key = _kind(site), tuple((name, alike(reason)) for name, reason in told)
        groups.setdefault(key, []).append((site, told))
    rows: list[tuple[str, ...]] = []
    for (kind, _), found in sorted(groups.items(), key=lambda item: -len(item[1])):
        about = str(len(found)), kind, sites_text([site.site for site, _ in found])
        told = found[0][1] or [("-", "No pass looks at it.")]
        rows += [(*(about if at == 0 else ("", "", "")), name, reason) for at, (name, reason) in enumerate(told)]
    columns = ("#", "nothing applies to", "site", "pass", "why not")
    return [Table(columns, tuple(rows), frozenset({"#"}))] if rows else []


def _told(entries: Sequence[Opinion]) -> list[tuple[str, str]]:
    """Passes and reason, once for each reason: what is wrong with the convolution itself, every pass says."""
    by_reason: dict[str, list[str]] = {}
    for entry in entries:
        by_reason.setdefault(entry.reason, []).append(entry.pass_name)
    return [
        (", ".join(names) if len(names) < _MANY else f"{len(names)} passes", reason)
        for reason, names in by_reason.items()
    ]


def _kind(site: Site) -> str:
    """`dense 3x3`, `grouped 3x3, group 32`."""
    return f"{site.form} {_kernel(site)}" + (f", group {site.group}" if site.group > 1 else "")


def _kernel(site: Site) -> str:
    return "?" if site.kernel is None else "x".join(map(str, site.kernel))


def survey_conclusion(sites: Sequence[Site], unreachable: Sequence[Attempt]) -> str:
    """The last line of `rewriter inspect`."""
    able = sum(any(entry.applies for entry in site.passes) for site in sites)
    known = [site.macs for site in sites if site.macs is not None]
    parts = [counted(len(sites), "convolution"), f"{sum(known) / 1e6:.1f} M multiply-accumulates"]
    if len(known) < len(sites):
        parts[-1] += f" where the size is known ({len(known)} of {len(sites)})"
    parts.append(f"a pass applies to {able}")
    return " | ".join([*parts, *([f"{len(unreachable)} out of reach"] if unreachable else [])])


def pass_table(rules: Mapping[str, Pass]) -> Table:
    """Name, summary and safety of every pass."""
    rows = tuple(
        (name, first_line(rule), rule.safety.name, rule.safety.value, needed(rule) or "-")
        for name, rule in rules.items()
    )
    return Table(("pass", "what it does", "safety", "what that means", "needs"), rows)


def needed(rule: Pass) -> str:
    """`--allow contrib-ops`; empty for a pass that needs no permission."""
    return " ".join(f"--allow {name}" for name in sorted(rule.needs))


def first_line(rule: Pass) -> str:
    """The first line of the pass's class docstring."""
    return (inspect.getdoc(type(rule)) or "").partition("\n")[0].rstrip(".")


def pass_blocks(rule: Pass) -> list[Block]:
    """A pass's documentation (its module's docstring), its safety and its settings."""
    module = sys.modules[type(rule).__module__]
    blocks: list[Block] = [inspect.cleandoc(module.__doc__ or type(rule).__doc__ or rule.name)]
    blocks.append(f"Safety: {rule.safety.name}: {rule.safety.value}.")
    blocks += [f"It needs {needed(rule)}: {PERMITS[name]}." for name in sorted(rule.needs)]
    if rule.defaults:
        rows = tuple((f"{rule.name}.{key}", type(value).__name__, str(value)) for key, value in rule.defaults.items())
        blocks.append(Table(("setting", "type", "default"), rows))
    else:
        blocks.append("It has no settings.")
    return blocks


def _over(channels: int | None, group: int) -> str:
    return "?" if channels is None or not group else str(channels // group)


def _text(number: int | None) -> str:
    return "?" if number is None else str(number)
