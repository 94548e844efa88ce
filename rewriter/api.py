"""The Python API: what the commands do, as functions that take a model and give a result.

Every function takes a path, serialized bytes or a ModelProto, and never changes it.  Errors are `RewriterError`s whose
message is one sentence.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from rewriter import certificate, engine, equivalence, timing
from rewriter.certificate import Certificate, Replay
from rewriter.channel_picture import channel_picture
from rewriter.channel_survey import ChannelSurvey, survey_channels
from rewriter.data_loader import samples_of_script
from rewriter.engine import Progress, quiet
from rewriter.equivalence import Audit, CrossAudit
from rewriter.equivalence.records import audit_options
from rewriter.errors import BadInput
from rewriter.feeds import check_names, check_samples, representative
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.objective import OBJECTIVES, Objective
from rewriter.options import Feeds, RunOptions, check_several
from rewriter.patience import Stop, never
from rewriter.propose import Step
from rewriter.registry import all_passes, pass_named
from rewriter.repro import Repro, write_repro
from rewriter.result import Result, result_of
from rewriter.rule import Settings
from rewriter.samples import Samples, samples_in_file, samples_in_folder
from rewriter.session import Runtime, require_provider
from rewriter.survey import Site, survey
from rewriter.timing import Contender, Latency, Timing
from rewriter.tuning import Memory, Store, default_path, environment_of

Source = str | Path | bytes | onnx.ModelProto


def optimize(
    model: Source,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    budget: float = 60.0,
    objective: Objective = "latency",
    stamped: bool = True,
    records: bool | str | Path = True,
    progress: Progress = quiet,
    stop: Stop = never,
) -> Result:
    """Rewrite what is measured faster on this machine, and prove it equivalent.

    `objective` is what gets better: latency, throughput (with unknown batch sizes as 8, or as `options.batch` says;
    take `Runtime(threads=0)` for all cores), size or memory, the last two at no loss of speed.
    `budget` is in seconds, audits included.  When `stop()` gives True, nothing more is looked for: the best so far is
    timed, audited and given back.  What was measured on this machine before is not measured again: `records`
    names the file it is kept in, True the one in the user's cache folder, and False keeps none.  The result is the
    original, byte for byte, when nothing helps; else its metadata say what made it (`rewriter.version` and others),
    unless `stamped` is False.
    Raises BadInput for a bad model or option, NotVerified when the model cannot be run here.
    """
    begin = time.perf_counter()
    check_several(only, "only")
    check_several(skip, "skip")
    rules = engine.check_pass_choice(all_passes(), only, skip, options.allow)
    _check_objective(objective, options)
    require_provider(options.runtime)
    source = Model.load(model)
    _check_data(source, options)
    memory = None if records is False else _memory(records, options.runtime)
    outcome = engine.optimize(source, rules, {}, options, budget, progress, memory, objective=objective, stop=stop)
    return result_of("optimize", source, outcome, options, begin, stamped, objective)


def _check_objective(objective: Objective, options: RunOptions) -> None:
    """Raise BadInput for an objective that there is not, or not on this provider."""
    if objective not in OBJECTIVES:
        raise BadInput(f"there is no objective '{objective}'; there are: {', '.join(OBJECTIVES)}.")
    if objective == "memory" and options.runtime.provider != "cpu":
        raise BadInput(f"peak memory is measured on the cpu provider only, not on {options.runtime.provider}.")


def _memory(records: bool | str | Path, runtime: Runtime) -> Memory | None:
    """What was measured on this machine; where the cache folder cannot be used, nothing is kept there."""
    if not isinstance(records, bool):
        return Memory(Store(Path(records)), environment_of(runtime))
    with contextlib.suppress(BadInput):
        return Memory(Store(default_path()), environment_of(runtime))
    return None


def rewrite(
    model: Source,
    passes: Sequence[str],
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    settings: Mapping[str, Settings] | None = None,
    stamped: bool = True,
    progress: Progress = quiet,
) -> Result:
    """Apply exactly these passes, in order, wherever they match, and prove the result equivalent; nothing is timed.

    `settings` are by pass name, as in `{"regroup": {"factor": 2}}`, `stamped` and what is raised as for `optimize`.
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
    _check_data(source, options)
    outcome = engine.rewrite(source, steps, options, progress)
    return result_of("rewrite", source, outcome, options, begin, stamped)


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
    _check_data(models[0], options)
    return equivalence.audit(*models, audit_options(options), progress=progress)


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
    _check_data(loaded[0], options)
    return equivalence.cross_audit(loaded, runtimes, audit_options(options, runtime=runtimes[0]), progress=progress)


def certify(
    audited: Audit | CrossAudit,
    before: Source,
    after: Source | None,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    runtimes: Sequence[Runtime] = (),
) -> Certificate:
    """The certificate of what `audit` or `cross_audit` found with these models, options and runtimes.

    It names the files by their hashes, and can be replayed.  Raises BadInput when the audit is not of them.
    """
    models = Model.load(before), None if after is None else Model.load(after)
    try:
        return certificate.certificate_of(audited, *models, options, runtimes)
    except ValueError as error:
        raise BadInput(f"{error}.") from error


def replay(
    recorded: Certificate | str | Path,
    before: Source,
    after: Source | None = None,
    samples: Sequence[Feeds] = (),
    *,
    progress: Progress = quiet,
) -> Replay:
    """Make a certificate's audit again: with its options, and with `samples` where it was made with the user's own.

    Raises BadInput for a file that is no certificate; what else keeps the audit from being made is in the result.
    """
    known = certificate.load_certificate(Path(recorded)) if isinstance(recorded, str | Path) else recorded
    models = Model.load(before), None if after is None else Model.load(after)
    return certificate.replay(known, *models, samples, progress)


def reproduce(
    audited: Audit,
    before: Source,
    after: Source,
    folder: str | Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    progress: Progress = quiet,
) -> Repro:
    """Show in a new folder that `audit` did not find two models equivalent: two small models, inputs, the command.

    Nothing is written where it did.  Raises BadInput when the folder is not empty or cannot be written.
    """
    return write_repro(Path(folder), Model.load(before), Model.load(after), audited, options, progress)


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
    _check_data(loaded[0], options)
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


def load_samples(
    model: Source,
    *,
    files: Sequence[str | Path] = (),
    folders: Sequence[str | Path] = (),
    data_loader: str = "",
) -> Samples:
    """Your own inputs for a model, for `RunOptions(samples=...)`, in this order.

    `files` are .npz files with arrays by input name, or `NAME/0`, `NAME/1`, … for several samples; `folders` have such
    files, or `test_data_set_*/input_*.pb`; `data_loader` is `FILE.py[:FUNCTION]`, a script of yours that is run now.
    Raises BadInput when something cannot be read, or does not fit the model.
    """
    check_several(files, "files")
    check_several(folders, "folders")
    loaded = Model.load(model)
    names = [value.name for value in loaded.inputs]
    found = Samples(())
    for file in files:
        found += samples_in_file(Path(file), names)
    for folder in folders:
        found += samples_in_folder(Path(folder), names)
    if data_loader:
        found += samples_of_script(data_loader)
    check_samples(loaded, found)
    return found


def _check_data(model: Model, options: RunOptions) -> None:
    """Raise BadInput unless the user's inputs, ranges and tolerances fit the model."""
    check_names(model, options)
    check_samples(model, options.samples)


def check_runtime(runtime: object) -> None:
    """Raise BadInput for something else, such as the name of a provider."""
    if not isinstance(runtime, Runtime):
        raise BadInput(f"{runtime!r} is no Runtime: give rewriter.Runtime('cuda'), or 'cpu'.")


def _contender(model: Model, number: int) -> Contender:
    name = model.path.name if model.path else f"model {number + 1}"
    return Contender(name, model.path or model.to_bytes(), model.folder)
