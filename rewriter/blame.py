"""Which rewrites an audit is against, where it does not accept them all: by region, and by bisection where it must.

A region with one rewrite in it names its culprit.  Where several share a region, subsets of them are made again in the
region cut out of the original; where the whole model fails and no region explains it, in the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rewriter import equivalence
from rewriter.activations import capture
from rewriter.bisect import Fails, Group, find_culprits
from rewriter.cutting import Cutter, Pair
from rewriter.equivalence import Audit
from rewriter.equivalence.probe import WholeProbe
from rewriter.equivalence.records import Verdict
from rewriter.equivalence.regions import Region
from rewriter.errors import RewriterError
from rewriter.feeds import representative
from rewriter.model import Model
from rewriter.options import Feeds, RunOptions
from rewriter.propose import Applied, replay
from rewriter.remake import Progress, asked, audit_rewritten, key, made_by, remade
from rewriter.rule import Attempt

MOST_PROBES = 48
"""Audits of subsets that one search may take: enough for a handful of culprits among a thousand rewrites."""
Accepts = Callable[[Audit], bool]


@dataclass(frozen=True)
class Blamed:
    """A rewrite that has to go, and why."""

    done: Applied
    verdict: Verdict
    reason: str

    @property
    def attempt(self) -> Attempt:
        """As it stands in the report."""
        made = self.done.rewrite
        outcome = self.verdict if self.verdict == "different" else "not_verified"
        return Attempt(self.done.step.rule.name, made.site, outcome, self.reason, summary=made.summary)


def find_blame(
    model: Model,
    after: Model,
    applied: Sequence[Applied],
    audit: Audit,
    options: RunOptions,
    accepts: Accepts,
    progress: Progress,
) -> list[Blamed]:
    """The rewrites to drop so that what is left may pass; never none.

    `after` is the model with all of `applied`, `audit` the one that did not accept it, `accepts` what would have been
    accepted.  What is left has to be audited again: this says where to look, and proves nothing.
    """
    search = _Search(model, after, tuple(applied), _judged(audit), options, accepts, progress)
    return search.in_regions() or search.in_whole()


def _judged(audit: Audit) -> Audit:
    """The audit to explain: that of the runs as deployed, where only these fail."""
    fine = all(region.accepted for region in audit.regions) and not _fails(audit)
    return audit.deployed if fine and audit.deployed is not None else audit


def _fails(audit: Audit) -> bool:
    """Whether a level that concerns the whole model refutes it."""
    return any(level.outcome == "fail" for level in audit.levels)


@dataclass(frozen=True, eq=False)
class _Search:
    model: Model
    after: Model
    applied: tuple[Applied, ...]
    audit: Audit
    options: RunOptions
    accepts: Accepts
    progress: Progress

    def in_regions(self) -> list[Blamed]:
        """Those in regions that were not accepted."""
        bad = [record for record in self.audit.regions if not record.accepted]
        cutter = Cutter(self.model, self.after, self.options.input_shapes) if bad else None
        found: list[Blamed] = []
        for record in bad:
            assert cutter is not None
            region = cutter.region(record)
            inside = frozenset(record.outputs) | (cutter.made_in(region) if region else frozenset())
            members = [done for done in self.applied if made_by(done) & inside]
            members = [done for done in members if not any(done is entry.done for entry in found)]
            if len(members) == 1:
                found.append(Blamed(members[0], record.verdict, record.reason))
            elif members:
                fails = self._in_part(cutter, region, members)
                found += self._bisected(members, fails, record.verdict, record.reason, "region")
        return found

    def in_whole(self) -> list[Blamed]:
        """Those with which the whole model fails; all, without a search, where the original itself did not run."""
        reason = self.audit.reason
        if not _fails(self.audit) and all(witness.problem for witness in self.audit.witnesses):
            return [Blamed(done, self.audit.verdict, reason) for done in self.applied]
        fails = self._by_audits(self.applied)
        if _fails(self.audit):
            runtime = self.options.runtime.for_audit() if self.audit.precision == "full" else None
            wanted = replace(asked(self.options, self.applied), runtime=runtime or self.options.runtime.plain())
            probe = WholeProbe(self.model, self.audit, wanted)
            if probe.fails(self.after):  # otherwise it takes more than L0 and L4 to see
                fails = self._by_runs(probe)
        return self._bisected(self.applied, fails, self.audit.verdict, reason, "whole model")

    def _bisected(
        self, members: Sequence[Applied], fails: Fails, verdict: Verdict, reason: str, where: str
    ) -> list[Blamed]:
        found = find_culprits(len(members), _told(fails, self.progress), MOST_PROBES)
        searched = f"found by bisection in {_counted(found.probes)} of the {where}"
        blamed = []
        for group in found.groups:
            several = [members[index] for index in group.members]
            culprits = self._without_foundations(several, group)
            for done in culprits:
                others = [f"'{other.rewrite.site}'" for other in several if other is not done]
                why = _why(group, others, where, searched, rests=len(culprits) == 1)
                blamed.append(Blamed(done, verdict, f"{why} {reason}"))
        return blamed

    def _without_foundations(self, several: Sequence[Applied], group: Group) -> Sequence[Applied]:
        """Without those that are there only because another one cannot be made before them."""
        if len(several) < 2 or not group.minimal:
            return several
        kept = []
        for done in several:
            others = [other for other in several if other is not done]
            if len(remade(self.model, others, self.options)[1]) == len(others):
                kept.append(done)
        return kept or several

    def _in_part(self, cutter: Cutter, region: Region | None, members: Sequence[Applied]) -> Fails:
        """Audits of the region alone where it fails alone, else of the whole model."""
        pair = cutter.pair(region) if region else None
        if pair is None or any(done.rewrite.deviation for done in members):
            return self._by_audits(members)
        samples = self._captured(pair)
        options = replace(self.options, input_shapes={}, samples=samples, ranges={}, tolerances={}, full=False)

        def fails(subset: frozenset[int]) -> bool:
            chosen = [members[index] for index in sorted(subset)]
            part, _ = remade(pair.before, chosen, options)
            found = equivalence.audit(pair.before, part, asked(options, chosen), rerun=replay(chosen))
            return not self.accepts(found)

        return fails if fails(frozenset(range(len(members)))) else self._by_audits(members)

    def _captured(self, pair: Pair) -> tuple[Feeds, ...]:
        """What enters the region in one run of the original; nothing where it does not run."""
        try:
            feeds = representative(self.model, self.options).feeds
            (found,) = capture(self.model, pair.inputs, [feeds], self.options.runtime)
        except RewriterError:
            return ()
        return ({name: found[name] for name in pair.inputs},) if all(name in found for name in pair.inputs) else ()

    def _by_audits(self, members: Sequence[Applied]) -> Fails:
        """The dearest probe, which always agrees with the audit: one with these of the members, and nothing else."""

        def fails(subset: frozenset[int]) -> bool:
            after, made = remade(self.model, [members[index] for index in sorted(subset)], self.options)
            return bool(made) and not self.accepts(audit_rewritten(self.model, after, made, self.options))

        return fails

    def _by_runs(self, probe: WholeProbe) -> Fails:
        def fails(subset: frozenset[int]) -> bool:
            chosen = [self.applied[index] for index in sorted(subset)]
            return bool(probe.fails(remade(self.model, chosen, self.options)[0]))

        return fails


def fallen(applied: Sequence[Applied], blamed: Sequence[Blamed], made: Sequence[Applied]) -> list[Attempt]:
    """Rewrites that were not blamed, and could not be made again without those that were."""
    gone = {key(done) for done in applied} - {key(done) for done in made} - {key(entry.done) for entry in blamed}
    names = ", ".join(f"'{entry.done.rewrite.site}'" for entry in blamed[:3]) + (" …" if len(blamed) > 3 else "")
    reason = f"It cannot be made without what was dropped: {names}."
    return [
        Attempt(done.step.rule.name, done.rewrite.site, "not_verified", reason, summary=done.rewrite.summary)
        for done in applied
        if key(done) in gone
    ]


def _told(fails: Fails, progress: Progress) -> Fails:
    count = 0

    def told(subset: frozenset[int]) -> bool:
        nonlocal count
        progress("bisecting", count, MOST_PROBES)
        count += 1
        return fails(subset)

    return told


def _why(group: Group, others: Sequence[str], where: str, searched: str, *, rests: bool) -> str:
    """How the search found one of a group, as a sentence; `rests`: on the others, which are right without it."""
    if not group.minimal:
        limit = f"the search among {len(group.members)} stopped after the {MOST_PROBES} audits it may take"
        return f"It is under suspicion, and {limit}: all of them were dropped."
    names = ", ".join(others)
    if others and rests:
        return f"With it the {where} does not pass, and with {names}, which it is made from, it does ({searched})."
    if others:
        return f"With it and {names} together the {where} does not pass, and without one of them it does ({searched})."
    return f"With it alone the {where} does not pass ({searched})."


def _counted(audits: int) -> str:
    return "1 audit" if audits == 1 else f"{audits} audits"
