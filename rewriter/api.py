"""The Python API: what the commands do, as functions that take a model and give a result.

Every function takes a path, serialized bytes or a ModelProto, and never changes it.  Errors are `RewriterError`s whose
message is one sentence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from rewriter import engine, equivalence, saving, timing
from rewriter.channel_picture import channel_picture
from rewriter.channel_survey import ChannelSurvey, survey_channels
from rewriter.engine import Outcome, Progress, quiet
from rewriter.equivalence import Audit, AuditOptions, CrossAudit
from rewriter.errors import BadInput, Different, NotVerified
from rewriter.feeds import check_samples, representative
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.options import RunOptions, check_several
from rewriter.propose import Step
from rewriter.registry import all_passes, pass_named
from rewriter.report.record import Report, attempt_record, environment, file_record, timing_record
from rewriter.rule import Settings
from rewriter.session import Runtime, require_provider
from rewriter.survey import Site, survey
from rewriter.timing import Contender, Latency, Timing

Source = str | Path | bytes | onnx.ModelProto


@dataclass(frozen=True)
class Result:
    """A rewritten model and the report on it."""

    rewritten: Model
    report: Report

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The result as a ModelProto of its own; external tensors stay references to their files."""
        return self.rewritten.to_proto()

    @property
    def changed(self) -> bool:
        """Whether anything was rewritten."""
        return self.report.changed

    def save(self, out: str | Path) -> None:
        """Write the model atomically, its external data beside it.

        Raises Different or NotVerified when the report's verdict is not one that may be written, BadInput when the
        place cannot be written.
        """
        if self.report.verdict == "different":
            raise Different(f"nothing was written: {self.report.reason}")
        if not self.report.accepted:
            raise NotVerified(f"nothing was written: {self.report.reason}")
        saving.save(self.rewritten, Path(out))


def optimize(
    model: Source,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    budget: float = 60.0,
    progress: Progress = quiet,
) -> Result:
    """Rewrite what is measured faster on this machine, and prove it equivalent.

    `budget` is in seconds, audits included.  The result is the original, byte for byte, when nothing helps.
    Raises BadInput for a bad model or option, NotVerified when the model cannot be run here.
    """
    begin = time.perf_counter()
    check_several(only, "only")
    check_several(skip, "skip")
    rules = engine.check_pass_choice(all_passes(), only, skip, options.allow)
    require_provider(options.runtime)
    source = Model.load(model)
    check_samples(source, options.samples)
    outcome = engine.optimize(source, rules, {}, options, budget, progress)
    return Result(outcome.model, _report("optimize", source, outcome, options, begin))


def rewrite(
    model: Source,
    passes: Sequence[str],
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    settings: Mapping[str, Settings] | None = None,
    progress: Progress = quiet,
) -> Result:
    """Apply exactly these passes, in order, wherever they match, and prove the result equivalent; nothing is timed.

    `settings` are by pass name, as in `{"regroup": {"factor": 2}}`.  Raises as `optimize`.
    """
    begin = time.perf_counter()
    check_several(passes, "passes")
    if not passes:
        raise BadInput("no pass is named: say which to apply.")
    chosen = settings or {}
    steps = [Step(pass_named(name), chosen.get(name, {})) for name in passes]
    for step in steps:
        step.rule.check({**step.rule.defaults, **step.settings})
    require_provider(options.runtime)
    source = Model.load(model)
    check_samples(source, options.samples)
    outcome = engine.rewrite(source, steps, options, progress)
    return Result(outcome.model, _report("rewrite", source, outcome, options, begin))


def inspect(model: Source, options: RunOptions = RunOptions()) -> list[Site]:  # noqa: B008 - frozen
    """Every convolution of the model, and what each pass would do to it or why not.  Runs nothing."""
    graph = Graph(Model.load(model), options.input_shapes, options.runtime.provider)
    return survey(graph, all_passes(), options.allow)[0]


def inspect_channels(model: Source, options: RunOptions = RunOptions()) -> ChannelSurvey:  # noqa: B008 - frozen
    """Which tensors' channels can only be padded or permuted together, what stops that, and who would gain.

    Runs nothing but a probe of this machine's fast path, once.
    """
    return survey_channels(Graph(Model.load(model), options.input_shapes, options.runtime.provider))


def draw_channels(model: Source, options: RunOptions = RunOptions()) -> str:  # noqa: B008 - frozen
    """The same as a picture: the text of an SVG file."""
    loaded = Model.load(model)
    graph = Graph(loaded, options.input_shapes, options.runtime.provider)
    return channel_picture(graph, survey_channels(graph), loaded.path.name if loaded.path else "model")


def audit(
    before: Source,
    after: Source,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    progress: Progress = quiet,
) -> Audit:
    """Whether two models with the same interface compute the same, and how that is known."""
    require_provider(options.runtime)
    models = Model.load(before), Model.load(after)
    check_samples(models[0], options.samples)
    asked = AuditOptions(
        runtime=options.runtime, seed=options.seed, input_shapes=options.input_shapes, samples=options.samples
    )
    return equivalence.audit(*models, asked, progress=progress)


def cross_audit(
    models: Sequence[Source],
    runtimes: Sequence[Runtime],
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    progress: Progress = quiet,
) -> CrossAudit:
    """One or two models on several providers: the second against the first on each, and each across the providers.

    `runtimes` take the place of `options.runtime`; the first is the reference.  Raises BadInput unless there are one or
    two models and at least two runtimes, NotVerified when a provider is missing.
    """
    check_several(models, "models")
    check_several(runtimes, "runtimes")
    if not 1 <= len(models) <= 2 or len(runtimes) < 2:
        raise BadInput("an audit across providers takes one or two models, and two providers or more.")
    for runtime in runtimes:
        check_runtime(runtime)
    for runtime in runtimes:
        require_provider(runtime)
    loaded = [Model.load(model) for model in models]
    check_samples(loaded[0], options.samples)
    asked = AuditOptions(seed=options.seed, input_shapes=options.input_shapes, samples=options.samples)
    return equivalence.cross_audit(loaded, runtimes, asked, progress=progress)


def bench(
    models: Sequence[Source],
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    budget: float = 20.0,
    progress: Progress = quiet,
) -> Latency | list[Timing]:
    """Time one model, or the second and further ones against the first, paired and interleaved on the same inputs."""
    check_several(models, "models")
    if not models:
        raise BadInput("no model is given to time.")
    require_provider(options.runtime)
    loaded = [Model.load(model) for model in models]
    check_samples(loaded[0], options.samples)
    inputs = representative(loaded[0], options)

    def shown(fraction: float) -> None:
        progress("timing", round(100 * fraction), 100)

    contenders = [_contender(model, number) for number, model in enumerate(loaded)]
    if len(contenders) == 1:
        return timing.latency(contenders[0], inputs.feeds, options.runtime, budget_seconds=budget, progress=shown)
    return timing.compare(
        contenders[0],
        contenders[1:],
        inputs.feeds,
        options.runtime,
        budget_seconds=budget,
        seed=options.seed,
        progress=shown,
    )


def check_runtime(runtime: object) -> None:
    """Raise BadInput for something else, such as the name of a provider."""
    if not isinstance(runtime, Runtime):
        raise BadInput(f"{runtime!r} is no Runtime: give rewriter.Runtime('cuda'), or 'cpu'.")


def _contender(model: Model, number: int) -> Contender:
    name = model.path.name if model.path else f"model {number + 1}"
    return Contender(name, model.path or model.to_bytes(), model.folder)


def _report(command: str, source: Model, outcome: Outcome, options: RunOptions, begin: float) -> Report:
    inputs = outcome.inputs
    return Report(
        command=command,
        verdict=outcome.verdict,
        grade=outcome.grade,
        reason=outcome.reason,
        changed=outcome.changed,
        attempts=tuple(attempt_record(attempt) for attempt in outcome.attempts),
        timing=None if outcome.timing is None else timing_record(outcome.timing),
        audit=outcome.audit,
        before=file_record(source, source.path),
        after=file_record(outcome.model, None),
        inputs={} if inputs is None else inputs.shapes,
        chosen_shapes={} if inputs is None else dict(inputs.chosen),
        environment=environment(options.runtime),
        notes=outcome.notes,
        seconds=round(time.perf_counter() - begin, 3),
    )
