"""What a reproduction's folder holds besides the two models: the inputs, and a page on how to see it again."""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from rewriter.equivalence import Audit
from rewriter.errors import Different, NotVerified
from rewriter.options import Feeds, RunOptions

FILES = ("before.onnx", "after.onnx")
INPUTS = "inputs.npz"


def write_samples(path: Path, samples: Sequence[Feeds]) -> None:
    """An .npz file with the arrays of one sample under their names, of several as `NAME/0`, …; none for none.

    The names are any: `numpy.savez` would take some for its own parameters.
    """
    path.unlink(missing_ok=True)
    if not samples:
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, feeds in enumerate(samples):
            for name, value in feeds.items():
                plain = value.astype(np.str_) if value.dtype.kind in "OS" else value
                member = f"{name}/{number}.npy" if len(samples) > 1 else f"{name}.npy"
                with archive.open(member, "w", force_zip64=True) as file:
                    array = np.ascontiguousarray(plain).reshape(plain.shape)
                    np.lib.format.write_array(file, array, allow_pickle=False)


def command(options: RunOptions, *, fast: bool, inputs: bool) -> str:
    """`rewriter audit before.onnx after.onnx --inputs inputs.npz`, with those of the options that are no defaults."""
    words = ["rewriter", "audit", *FILES]
    if inputs:
        words += ["--inputs", INPUTS]
    runtime, usual = options.runtime, RunOptions().runtime
    if runtime.provider != usual.provider:
        words += ["--provider", runtime.provider]
    for key, value in runtime.provider_options:
        words += ["--provider-option", f"{key}={value}"]
    if runtime.threads != usual.threads:
        words += ["--threads", str(runtime.threads)]
    if runtime.level != usual.level:
        words += ["--ort-level", runtime.level]
    for name, shape in options.input_shapes.items():
        words += ["--input-shape", f"{name}:{','.join(map(str, shape))}"]
    for name, (low, high) in options.ranges.items():
        words += ["--val-range", f"{name}:{low!r},{high!r}" if name else f"{low!r},{high!r}"]
    if options.seed:
        words += ["--seed", str(options.seed)]
    if fast:
        words += ["--fast"]
    return shlex.join(words)


def readme(what: str, whole: Audit, found: Audit, line: str) -> str:
    """The page: what was seen, in which models, how to see it again, and what to expect."""
    code = {"different": Different.exit_code}.get(found.verdict, NotVerified.exit_code)
    verdict = found.verdict.replace("_", " ").upper()
    source = what if what.startswith("the whole") else f"{what}, cut out of two larger models with its weights"
    return f"""# Two models that were not found equivalent

`{FILES[0]}` and `{FILES[1]}` are {source}. The audit in which this was seen said:
{_line(whole.reason)}

To see it again, run this in the folder:

    {line}

Expected: `{verdict}` (exit code {code}). It said: {_line(found.reason)}

Audited here before it was written, with onnx {onnx.__version__} and onnxruntime {ort.__version__}.
SHA-256 of the models it was found in: {whole.before_sha256} (before), {whole.after_sha256} (after).
"""


def _line(text: str) -> str:
    return " ".join(text.split())
