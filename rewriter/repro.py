"""A failed audit as a folder that shows it again: two small models, inputs, and the command, tried before it is kept.

The differing region is cut out of both models with its weights.  Where it does not fail alone it is widened, and at
last the whole models are taken.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from secrets import token_hex

import numpy as np
import onnx

from rewriter import equivalence, saving
from rewriter.activations import capture
from rewriter.cutting import Cutter, Pair
from rewriter.equivalence import Audit
from rewriter.equivalence.inputs import trials
from rewriter.equivalence.precision import relative_error
from rewriter.equivalence.records import RegionAudit, audit_options
from rewriter.equivalence.regions import Region
from rewriter.errors import BadInput, Different, NotVerified, RewriterError
from rewriter.external import locations
from rewriter.feeds import check_samples
from rewriter.model import Model
from rewriter.options import Feeds, RunOptions
from rewriter.remake import Progress
from rewriter.repro_files import FILES, INPUTS, command, readme, write_samples
from rewriter.samples import samples_in_file
from rewriter.session import open_session, run

_RINGS = (1, 2, 4)
"""How far a region is widened, in nodes to either side."""
_MOST_REGIONS, _MOST_WIDENED = 16, 3
"""Regions tried as they are, and widened, before the whole models are taken."""


@dataclass(frozen=True)
class Repro:
    """What came of it; `folder` is None where there was nothing to write."""

    folder: Path | None
    what: str
    """What the two models are: `the region of 'y'`, `the whole models`; empty where there are none."""
    sentence: str
    """For the user."""


@dataclass(frozen=True, eq=False)
class _Part:
    """Candidates for the two models."""

    what: str
    before: Model
    after: Model
    inputs: tuple[str, ...]
    """Tensors of the whole original that its inputs are."""
    whole: bool = False


def check_folder(folder: Path) -> None:
    """Raise BadInput unless the folder is new or empty, and can be made: asked before the work, not after it."""
    try:
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"'{folder}' is a file: give the name of a folder for the reproduction.")
        if folder.is_dir() and any(folder.iterdir()):
            raise BadInput(f"the folder '{folder}' is not empty: name a new one, nothing in it is overwritten.")
        if not folder.absolute().parent.is_dir():
            raise BadInput(f"the folder '{folder.absolute().parent}' does not exist: create it first.")
        if not os.access(folder.absolute().parent, os.W_OK):
            raise BadInput(f"the folder '{folder.absolute().parent}' is not writable.")
    except OSError as error:
        raise BadInput(f"the folder '{folder}' cannot be looked at: {error.strerror or error}.") from error


def write_repro(
    folder: Path,
    before: Model,
    after: Model,
    audit: Audit,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> Repro:
    """Write `before.onnx`, `after.onnx`, `inputs.npz` and `README.md`, which show the verdict of `audit` again.

    `options` are those of the audit.  What is written was audited from those very files, with the command that the
    README gives, and the verdict was the same; the folder appears as a whole or not at all.  Raises BadInput when the
    folder is not empty or cannot be written.
    """
    if audit.accepted:
        return Repro(None, "", f"There is nothing to reproduce: the audit found the models {audit.verdict}.")
    check_folder(folder)
    search = _Search(before, after, audit, options)
    staging = folder.absolute().with_name(f".rewriter-{token_hex(8)}")
    tell = progress or (lambda *_: None)
    try:
        staging.mkdir()
        for number, part in enumerate(search.parts()):
            tell("looking for a small reproduction", number, number + 1)
            found = search.shown(part, staging)
            if found is None:
                continue
            (staging / "README.md").write_text(readme(part.what, audit, *found), encoding="utf-8")
            with suppress(FileNotFoundError):
                folder.rmdir()  # empty, as was checked
            staging.rename(folder)
            return Repro(folder, part.what, f"{part.what[0].upper()}{part.what[1:]}, to see it again: {folder}.")
    except OSError as error:
        raise BadInput(f"the reproduction '{folder}' cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Repro(
        None, "", "Nothing was written: audited again from files, not even the whole models gave this verdict."
    )


class _Search:
    """Parts of two models, from the smallest on, until one has the verdict of the whole."""

    def __init__(self, before: Model, after: Model, audit: Audit, options: RunOptions) -> None:
        self._before = before
        self._after = after
        self._audit = audit
        self._options = options

    def parts(self) -> Iterator[_Part]:
        """Of each region one output alone, and all of it; more and more around them; at last the whole models."""
        regions = [(f"the region of '{record.outputs[0]}'", self._cutter.region(record)) for record in self._records()]
        known = [(name, region) for name, region in regions if region is not None]
        for name, region in known:
            for one in self._cutter.narrowed(region):
                yield from self._part(f"the part of {name} that '{one.outputs[0]}' is made by", one)
            yield from self._part(name, region)
        for rings in _RINGS:
            for name, region in known[:_MOST_WIDENED]:
                around = f"{rings} node{'s' if rings > 1 else ''}"
                yield from self._part(
                    f"{name} with what is up to {around} around it", self._cutter.grown(region, rings)
                )
        inputs = tuple(value.name for value in self._before.inputs)
        yield _Part("the whole models", _inline(self._before), _inline(self._after), inputs, whole=True)

    def _records(self) -> Sequence[RegionAudit]:
        """The regions that could explain it, the likeliest and smallest first."""

        def order(record: RegionAudit) -> tuple[bool, int]:
            return record.verdict != self._audit.verdict, sum(record.before.values()) + sum(record.after.values())

        judged = self._audit.regions
        bad = [record for record in judged if not record.accepted]
        return sorted(bad or judged, key=order)[:_MOST_REGIONS]

    def _part(self, what: str, region: Region) -> Iterator[_Part]:
        pair: Pair | None = self._cutter.pair(region)
        if pair is not None:
            yield _Part(what, pair.before, pair.after, pair.inputs)

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self._before, self._after, self._options.input_shapes)

    def shown(self, part: _Part, folder: Path) -> tuple[Audit, str] | None:
        """The audit of the part, written into the folder, and the command for it; None if its verdict is another."""
        for name, model in zip(FILES, (part.before, part.after), strict=True):
            (folder / name).unlink(missing_ok=True)
            saving.save(model, folder / name)
        if part.whole or self._refuted:
            first = self._entering(part, self._first)
            # Without, where what was captured is of a type that no .npz file holds.
            return self._tried(part, folder, first) or (self._tried(part, folder, []) if first else None)
        every = self._entering(part, self._all)
        if self._tried(part, folder, every) is None:
            return None
        alone = (self._tried(part, folder, [feeds]) for feeds in self._furthest_first(part, every))
        return next(filter(None, alone), None) or self._tried(part, folder, every)

    def _furthest_first(self, part: _Part, samples: Sequence[Feeds]) -> Sequence[Feeds]:
        """Samples by how far apart the two models of the part are on them."""
        runtime = self._options.runtime.for_audit()
        try:
            old, new = (open_session(model.to_bytes(), runtime) for model in (part.before, part.after))
            return sorted(samples, key=lambda feeds: -_apart(run(old, feeds), run(new, feeds)))
        except RewriterError:
            return samples

    def _tried(self, part: _Part, folder: Path, samples: Sequence[Feeds]) -> tuple[Audit, str] | None:
        options = self._options_for(part)
        write_samples(folder / INPUTS, samples)
        audit = self._audited(folder, options)
        if audit is None or audit.verdict != self._audit.verdict:
            return None
        return audit, command(options, fast=not options.full, inputs=bool(samples))

    def _options_for(self, part: _Part) -> RunOptions:
        """A part is small: it is audited in full, which is what the command does by default."""
        if part.whole:
            return replace(self._options, samples=(), tolerances={})
        return replace(self._options, samples=(), tolerances={}, ranges={}, input_shapes={}, full=True)

    def _entering(self, part: _Part, runs: Sequence[Feeds]) -> list[Feeds]:
        """What enters the part in runs of the original."""
        if not part.inputs:
            return []
        try:
            captured = capture(self._before, part.inputs, runs, self._options.runtime)
        except RewriterError:
            return []
        complete = [found for found in captured if all(name in found for name in part.inputs)]
        return [{name: found[name] for name in part.inputs} for found in complete]

    @property
    def _refuted(self) -> bool:
        """Whether a level refutes a region that does not depend on what it is run on."""
        levels = (record.level(name) for record in self._audit.regions for name in ("L1", "L2"))
        return any(level is not None and level.outcome == "fail" for level in levels)

    @cached_property
    def _first(self) -> list[Feeds]:
        return list(islice(self._runs(), 1))

    @cached_property
    def _all(self) -> list[Feeds]:
        return list(self._runs())

    def _runs(self) -> Iterator[Feeds]:
        """Inputs on which the original runs, the user's first: what the audit ran on."""
        asked = audit_options(self._options)
        source = self._before.path or self._before.to_bytes()
        try:
            session = open_session(source, asked.runtime.plain(), external_folder=self._before.folder)
        except RewriterError:
            return
        for trial in trials(self._before, self._cutter.bindings, asked):
            for feeds in trial.attempts:
                with suppress(RewriterError):
                    run(session, feeds)
                    yield feeds
                    break

    def _audited(self, folder: Path, options: RunOptions) -> Audit | None:
        """What the command finds; None where the inputs cannot be given in a file."""
        before, after = (Model.load(folder / name) for name in FILES)
        try:
            if (folder / INPUTS).exists():
                samples = samples_in_file(folder / INPUTS, [value.name for value in before.inputs])
                check_samples(before, samples)
                options = replace(options, samples=samples)
            return equivalence.audit(before, after, audit_options(options))
        except (BadInput, NotVerified, Different):
            return None


def _apart(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> float:
    """The relative error of all outputs that are numbers; infinity where shapes differ."""
    pairs = [(value, new[name]) for name, value in old.items() if value.dtype.kind not in "OSU"]
    if any(x.shape != y.shape for x, y in pairs):
        return float("inf")
    error = relative_error(pairs)
    return 0.0 if np.isnan(error) else error


def _inline(model: Model) -> Model:
    """The model with its external data in it, if a file may be so large."""
    if not locations(model.skeleton) or model.folder is None:
        return model
    proto = model.to_proto()
    try:
        onnx.load_external_data_for_model(proto, str(model.folder))
        return Model.load(proto)
    except (BadInput, OSError, ValueError, onnx.checker.ValidationError):
        return model
