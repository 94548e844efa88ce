"""The files that `--report` writes: checked before the work, written atomically after it, whatever the verdict.

Where a model is written too, either both appear or neither.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from rewriter.errors import BadInput

if TYPE_CHECKING:
    from rewriter.equivalence.records import Audit, CrossAudit
    from rewriter.model import Model
    from rewriter.session import Runtime
    from rewriter.timing import Latency, Timing


def check_reports(reports: Sequence[Path], others: Sequence[Path]) -> None:
    """Raise BadInput when a report cannot be written, or would go over one of the command's other files (`others`)."""
    for path in reports:
        if path.suffix.lower() != ".json":
            raise BadInput(f"the report '{path}' does not end in .json, the only format there is.")
        if path.is_dir():
            raise BadInput(f"the report '{path}' is a folder: give the name of a file.")
        if not path.parent.is_dir():
            raise BadInput(f"the report's folder '{path.parent}' does not exist: create it first.")
        # A file is replaced in its folder; a device or pipe is written itself.
        target = path if path.exists() and not path.is_file() else path.resolve().parent
        if not os.access(target, os.W_OK):
            raise BadInput(f"the report '{path}' cannot be written: '{target}' is not writable.")
        if any(path.resolve() == other.resolve() for other in others):
            raise BadInput(f"the report '{path}' is also a model of this command: choose another name.")


def write_reports(reports: Sequence[Path], content: Mapping[str, Any]) -> None:
    """Write the same JSON to every file, each atomically; raises BadInput when one cannot be written."""
    with reports_ready(reports, content):
        pass


@contextlib.contextmanager
def reports_ready(reports: Sequence[Path], content: Mapping[str, Any]) -> Iterator[None]:
    """Write the reports under other names, run the block, and give them their names if it raises nothing.

    So a model written in the block is there only if its reports could be written, and they only if it could.
    What is no file (a pipe, a device) is written before the block.  Raises BadInput when one cannot be written.
    """
    from rewriter.saving import write_atomically

    data = (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
    staged: list[tuple[Path, Path]] = []
    try:
        for path in reports:
            if path.exists() and not path.is_file():
                write_atomically(path, data)
                continue
            staged.append((_staged(path.resolve(), data), path.resolve()))
        yield
        for temporary, path in staged:
            temporary.replace(path)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def _staged(path: Path, data: bytes) -> Path:
    """The data in a file beside `path`, synced: all that is left to do is to rename it."""
    temporary = path.with_name(f".rewriter-{token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BadInput(f"the report '{path}' cannot be written: {error.strerror or error}.") from error
        raise
    return temporary


def audit_report(audit: Audit, before: Model, after: Model, runtime: Runtime) -> dict[str, Any]:
    """What `rewriter audit --report` writes."""
    return {
        **_frame("audit", before, after, runtime),
        "attempts": [],
        "timing": None,
        **audit.to_dict(),
    }


def cross_report(audit: CrossAudit, models: Sequence[Model], runtimes: Sequence[Runtime]) -> dict[str, Any]:
    """What `rewriter audit --report` writes where several providers are given."""
    frame = _frame("audit", models[0], models[1] if len(models) > 1 else None, *runtimes)
    providers = [runtime.provider for runtime in runtimes]
    return {**frame, "providers": providers, "attempts": [], "timing": None, "grade": None, **audit.to_dict()}


def bench_report(result: Latency | Sequence[Timing], models: Sequence[Model], runtime: Runtime) -> dict[str, Any]:
    """What `rewriter bench --report` writes: `timing` is the second model against the first, `timings` all of them."""
    from dataclasses import asdict

    from rewriter.report.record import timing_record
    from rewriter.timing import Latency

    frame = _frame("bench", models[0], models[1] if len(models) > 1 else None, runtime)
    # Whether the models compute the same is not judged here, not even where the timed outputs are the same bits.
    judged = {"verdict": "not_verified", "grade": None, "reason": "Only timed: `rewriter audit` judges equivalence."}
    plain: dict[str, Any] = {**frame, **judged, "attempts": [], "latency": None, "timing": None, "timings": []}
    if isinstance(result, Latency):
        return {**plain, "latency": {**asdict(result), "options": dict(result.options)}}
    pairs = [
        {
            "before": entry.before,
            "after": entry.after,
            **timing_record(entry).model_dump(mode="json"),
            "before_outputs_sha256": dict(entry.before_sha256),
            "after_outputs_sha256": dict(entry.after_sha256),
        }
        for entry in result
    ]
    return {**plain, "timing": pairs[0], "timings": pairs}


def failure_report(command: str, reason: str, model: Path, runtimes: Sequence[Runtime]) -> dict[str, Any]:
    """What `--report` writes when a check could not be made at all."""
    from rewriter.model import Model

    frame = _frame(command, Model.load(model), None, *runtimes)
    return {
        **frame,
        "verdict": "not_verified",
        "grade": None,
        "reason": reason,
        "changed": False,
        "attempts": [],
        "timing": None,
        "audit": None,
    }


def _frame(command: str, before: Model, after: Model | None, *runtimes: Runtime) -> dict[str, Any]:
    """What every report has: its schema, the files with their hashes, the environment."""
    from rewriter.report.record import SCHEMA, environment, file_record

    return {
        "schema": SCHEMA,
        "command": command,
        "before": file_record(before, before.path).model_dump(mode="json"),
        "after": None if after is None else file_record(after, after.path).model_dump(mode="json"),
        "environment": environment(*runtimes),
    }
