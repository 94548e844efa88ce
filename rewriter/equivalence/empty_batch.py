"""Both models on a batch of no element, in a process of its own.

Some of ONNX Runtime's kernels (LSTM, GRU) end the whole process there instead of raising an error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rewriter.equivalence.inputs import feeds
from rewriter.model import Model
from rewriter.patience import OWN_GROUP
from rewriter.session import Runtime, SessionFailed, open_session, run
from rewriter.shapes import Shape, bind

_SECONDS: Final = 300.0
_PROGRAM: Final = "from rewriter.equivalence.empty_batch import main; main()"
_CRASHED: Final = "ONNX Runtime ends the process"


@dataclass(frozen=True)
class Empty:
    """What came of it: `refused` if the original does not run, a `problem` as a sentence, or a `note` as a clause."""

    refused: bool = False
    problem: str = ""
    note: str = ""


@dataclass(frozen=True)
class Task:
    """What the process is asked to do."""

    models: tuple[str, str]
    folders: tuple[str | None, str | None]
    shapes: Mapping[str, Shape]
    ranges: Mapping[str, tuple[float, float]]
    seed: int
    runtime: Mapping[str, Any]


def run_empty(
    models: tuple[Model, Model],
    runtime: Runtime,
    shapes: Mapping[str, Shape],
    seed: int,
    ranges: Mapping[str, tuple[float, float]],
) -> Empty:
    """Run both models at these inputs' shapes, one of which has no element.

    Unoptimized, the rewritten model has to run where the original does, with outputs of the same shapes; where only
    ONNX Runtime's optimizer stands in the way (it adds nodes that no empty tensor goes through), that is a note.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = tuple(_stored(model, folder / f"{number}.onnx") for number, model in enumerate(models))
        folders = tuple(str(model.folder) if model.folder is not None else None for model in models)
        task = asdict(Task(paths, folders, dict(shapes), dict(ranges), seed, asdict(runtime)))  # type: ignore[arg-type]
        given, result = folder / "task.json", folder / "result.json"
        given.write_text(json.dumps(task), encoding="utf-8")
        command = [sys.executable, "-c", _PROGRAM, str(given), str(result)]
        paths_of_modules = os.pathsep.join(entry for entry in sys.path if entry)
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": paths_of_modules},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
                process_group=OWN_GROUP,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Empty(note=f"could not be tried: {type(error).__name__}")
        if not result.is_file():
            return Empty(note=f"could not be tried: the process ended with {done.returncode}")
        steps = [json.loads(line) for line in result.read_text(encoding="utf-8").splitlines()]
    bound = bind(models[0], shapes)
    return _judged(steps[1:], {value.name: bound.shape(value.name) for value in models[0].outputs})


def _judged(steps: Sequence[Mapping[str, Any]], expected: Mapping[str, Shape | None]) -> Empty:
    """From what was run, in order: the original and the rewritten model, unoptimized and then as deployed.

    `expected` are the shapes of the outputs by the definitions of the operators, where they follow: not all kernels
    keep to them where nothing enters (ReduceMean), and those of the original are then no reference.
    """
    found = [*steps, *[{"error": _CRASHED}] * (4 - len(steps))]
    old, new, deployed, other = found
    if old["error"]:
        return Empty(refused=True)
    for name, shape in expected.items():
        if shape is not None and not str(old["outputs"].get(name)).endswith(f" {list(shape)}"):
            return Empty(note=f"ONNX Runtime gives the original's '{name}' another shape than {list(shape)}")
    problem = _difference(old, new)
    if problem:
        return Empty(problem=problem)
    if not deployed["error"] and _difference(deployed, other):
        return Empty(note=f"as deployed: {_difference(deployed, other)[:-1]}")
    return Empty()


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if new["error"]:
        return f"The original runs, the rewritten model does not: {new['error'].rstrip('.')}."
    for name, kind in old["outputs"].items():
        if new["outputs"].get(name) != kind:
            return f"The output '{name}' is {new['outputs'].get(name)} instead of {kind}."
    return ""


def _stored(model: Model, path: Path) -> str:
    if model.path is not None:
        return str(model.path.resolve())
    path.write_bytes(model.to_bytes())
    return str(path)


def main() -> None:
    """The process: one line of JSON per run, written before the next one starts."""
    given, result = map(Path, sys.argv[1:3])
    task = json.loads(given.read_text(encoding="utf-8"))
    shapes = {name: tuple(shape) for name, shape in task["shapes"].items()}
    ranges = {name: (low, high) for name, (low, high) in task["ranges"].items()}
    model = Model.load(Path(task["models"][0]))
    fed = feeds(model.inputs, shapes, "normal", task["seed"], ranges=ranges)
    names = [value.name for value in model.outputs]
    options = task["runtime"]
    options["provider_options"] = tuple(tuple(entry) for entry in options["provider_options"])
    runtime = Runtime(**options)
    with result.open("w", encoding="utf-8") as out:
        _write(out, {"started": True})
        for level in (runtime.at("disable"), runtime):
            for path, folder in zip(task["models"], task["folders"], strict=True):
                _write(out, _tried(path, folder, level, fed, names))


def _tried(
    path: str, folder: str | None, runtime: Runtime, fed: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    try:
        source = Path(path)
        beside = folder is None or source.parent == Path(folder).resolve()
        session = (
            open_session(source, runtime)
            if beside
            else open_session(source.read_bytes(), runtime, external_folder=Path(folder or "."))
        )
        found = run(session, fed, names)
    except SessionFailed as error:
        return {"error": str(error)}
    return {"error": "", "outputs": {name: f"{value.dtype} {list(value.shape)}" for name, value in found.items()}}


def _write(out: Any, line: Mapping[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()
