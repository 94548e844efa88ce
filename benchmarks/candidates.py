"""The candidates of benchmarks/cuda.py, as a table: ways to make a model faster that are worth a measurement.

A candidate rewrites the model (`stages`: passes, one after the other), or sets provider options for it, or both.  It is
data, so that another process can make it too.  To add one, add a line to `table`; the first ones are measured first
where time is short.  Which one wins is nowhere written down: it is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rewriter import registry
from rewriter.errors import BadInput
from rewriter.lifting import ConvSite, convs, lift
from rewriter.model import Model
from rewriter.propose import Applied, Step, sweep
from rewriter.providers import PROVIDERS, Provider
from rewriter.rule import Declined, Setting

Which = Literal["any", "grouped", "depthwise"]
"""Convolutions a stage is for: all, those with several channels in each of several groups, those with one in each."""
WIDTHS = (8, 16, 32, 4)
"""Channels per group to regroup to: tensor cores take 4 at once in TF32, 8 in float16; wider ones are reused more."""

_REASONS = 5  # kept of those that convolutions were left out for


@dataclass(frozen=True)
class Stage:
    """One pass at the convolutions it is for; with `width`, by the smallest factor that makes multiples of it."""

    rule: str
    settings: tuple[tuple[str, Setting], ...] = ()
    which: Which = "any"
    width: int = 0


@dataclass(frozen=True)
class Candidate:
    """One line of the table."""

    name: str
    stages: tuple[Stage, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    """Provider options it is timed with; audits set their own over them."""
    dtypes: tuple[str, ...] = ("float32", "float16")


@dataclass(frozen=True)
class Made:
    """The model of a candidate, and what became of each convolution."""

    model: Model
    applied: tuple[Applied, ...] = ()
    declined: Mapping[str, int] | None = None
    """The commonest reasons of the last stage to leave a convolution out, and how often each was given."""


class NotApplicable(Exception):
    """A candidate is not for this model, provider or type; the message is one sentence."""


ORIGINAL = Candidate("original")


def table() -> tuple[Candidate, ...]:
    """All candidates, by priority.  Passes and their settings are those installed now."""
    wider = {width: Stage("regroup", which="grouped", width=width) for width in WIDTHS}
    dense = Stage("regroup", (("groups", 1),), "grouped")
    grouped = Stage("depthwise-sum-to-grouped")
    return (
        Candidate("depthwise-sum-to-grouped", (grouped,)),
        *(Candidate(f"regroup to {width}", (stage,)) for width, stage in wider.items()),
        Candidate("dense", (dense,)),
        Candidate("prefer_nhwc=1", options=(("prefer_nhwc", "1"),)),
        Candidate("enable_cuda_graph=1", options=(("enable_cuda_graph", "1"),)),
        Candidate("use_tf32=0", options=(("use_tf32", "0"),), dtypes=("float32",)),
        Candidate("fuse-conv-activation", (Stage("fuse-conv-activation"),)),
        *(Candidate(f"grouped, regroup to {width}", (grouped, wider[width])) for width in WIDTHS[:3]),
        Candidate("grouped, dense", (grouped, dense)),
        Candidate("regroup depthwise to 8", (Stage("regroup", which="depthwise", width=8),)),
        Candidate("regroup to 8, prefer_nhwc=1", (wider[8],), (("prefer_nhwc", "1"),)),
        *(Candidate(name, (Stage(name),)) for name in _LATER),
        *_sums(),
    )


_LATER = (
    "sum-of-stack",
    "merge-split-groups",
    "fold-affine",
    "fuse-separable",
    "conv3d-to-conv2d",
    "conv1d-to-conv2d",
    "split-multiplier",
)
"""Passes that are candidates with their defaults, wherever they apply."""


def _sums() -> Iterator[Candidate]:
    """Depthwise with a sum behind it, once for each place of the summed axis that the pass can choose."""
    name = "grouped-to-depthwise-sum"
    rule = registry.all_passes().get(name)
    if rule is None or "reduce" not in rule.defaults:
        yield Candidate(name, (Stage(name),))
        return
    for where in ("first", "middle", "last"):
        yield Candidate(f"{name}, reduce={where}", (Stage(name, (("reduce", where),)),))


def check(candidate: Candidate, provider: Provider, dtype: str) -> None:
    """Raise NotApplicable where the provider, the type or a missing pass rules the candidate out on every model."""
    if candidate.options and not PROVIDERS[provider].takes_options:
        raise NotApplicable(f"The {provider} provider has no options.")
    if dtype not in candidate.dtypes:
        raise NotApplicable(f"It makes a difference in {', '.join(candidate.dtypes)} only.")
    for stage in candidate.stages:
        try:
            registry.pass_named(stage.rule)
        except BadInput:
            raise NotApplicable(f"No pass '{stage.rule}' is installed.") from None


def make(candidate: Candidate, model: Model, provider: Provider) -> Made:
    """The candidate's model; raises NotApplicable where one of its stages changes nothing."""
    applied: list[Applied] = []
    declined: Counter[str] = Counter()
    for stage in candidate.stages:
        done: list[Applied] = []
        steps, declined = _steps(stage, model)
        for step in steps:
            model, made, attempts = sweep(model, step, {}, provider)
            done += made
            declined.update(entry.reason for entry in attempts if step.sites is None or entry.site in step.sites)
        if not done:
            why = "; ".join(f"{reason.rstrip('.')} ({count}x)" for reason, count in declined.most_common(2))
            raise NotApplicable(f"{stage.rule} applies to no convolution: {why or 'there is none for it'}.")
        applied += done
    return Made(model, tuple(applied), dict(declined.most_common(_REASONS)))


def _steps(stage: Stage, model: Model) -> tuple[Sequence[Step], Counter[str]]:
    """The stage as steps of the engine, one for each factor, and why other convolutions have none."""
    rule, settings = registry.pass_named(stage.rule), dict(stage.settings)
    if stage.which == "any" and not stage.width:
        return [Step(rule, settings)], Counter()
    sites = [site for site in _sites(model) if stage.which in ("any", _kind(site))]
    if not stage.width:
        return ([Step(rule, settings, frozenset(site.y for site in sites))] if sites else []), Counter()
    by_factor: dict[int, set[str]] = {}
    why: Counter[str] = Counter()
    for site in sites:
        factor = smallest_factor(site.group, site.i_per, site.o_per, stage.width)
        if factor is None:
            why[f"{site.group} groups of {site.i_per} in, {site.o_per} out do not merge to a multiple of it"] += 1
        elif factor == 1:
            why["it is a multiple of it already"] += 1
        else:
            by_factor.setdefault(factor, set()).add(site.y)
    return [Step(rule, {**settings, "factor": factor}, frozenset(by_factor[factor])) for factor in by_factor], why


def smallest_factor(groups: int, i_per: int, o_per: int, width: int) -> int | None:
    """The smallest divisor f of G that makes f·C/G and f·M/G multiples of `width`; None where there is none."""
    for factor in range(1, groups + 1):
        if groups % factor == 0 and factor * i_per % width == 0 and factor * o_per % width == 0:
            return factor
    return None


def _sites(model: Model) -> Iterator[ConvSite]:
    for index in convs(model):
        try:
            yield lift(model, index)
        except Declined:
            continue


def _kind(site: ConvSite) -> str:
    if site.group == 1:
        return "dense"
    return "depthwise" if site.i_per == 1 else "grouped"
