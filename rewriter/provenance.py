"""What a rewritten model says of itself: which version of this tool made it, by which passes, from which file.

Three entries of the model's metadata_props, appended behind everything else in the file:

    rewriter.version         the version of this tool
    rewriter.passes          the passes that were applied, each once, in the order of their first use, with commas
    rewriter.source.sha256   SHA-256 of the .onnx file that they were applied to, as `sha256sum` prints it

They are the only bytes added besides the rewrites, and the same for the same source, version and passes.  A source that
has such entries from an earlier run loses them: the entries describe the run that wrote the file, which is all that the
tool knows at first hand, and ONNX wants every key once.  The certificates of the runs tell the longer story.  A model
that was not changed gets no entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import onnx

from rewriter.model import Model
from rewriter.wire import LENGTH, fields, header

VERSION: Final = "rewriter.version"
PASSES: Final = "rewriter.passes"
SOURCE: Final = "rewriter.source.sha256"
KEYS: Final = frozenset({VERSION, PASSES, SOURCE})
"""What `stamp` writes, and takes away where an earlier run wrote it."""

_METADATA: Final = 14  # number of ModelProto.metadata_props


def stamp(model: Model, passes: Sequence[str], source: Model) -> Model:
    """`model` with the entries that say it was made from `source` by `passes`; the model itself where nothing changed.

    All other bytes are those of `model`.  Raises ValueError when something changed and no pass is named.
    """
    if model is source or model.sha256 == source.sha256:
        return model
    if not passes:
        raise ValueError("the model was changed, but no pass is named that changed it")
    told = {VERSION: tool_version(), PASSES: ",".join(dict.fromkeys(passes)), SOURCE: source.sha256}
    bare = without_stamp(model)
    tail = memoryview(b"".join([bare.tail, *(_entry(key, told[key]) for key in told)]))
    return replace(bare, tail=tail, path=None, source=None, origin=model.original)


def without_stamp(model: Model) -> Model:
    """The model without such entries, all other bytes as they are; the model itself where it has none."""
    head, tail = _without_entries(model.head), _without_entries(model.tail)
    if head is model.head and tail is model.tail:
        return model
    return replace(model, head=head, tail=tail, path=None, source=None, origin=model.original)


def provenance(model: Model) -> Mapping[str, str]:
    """The entries that a model has, by key; empty where this tool did not write it."""
    return {entry.key: entry.value for entry in model.skeleton.metadata_props if entry.key in KEYS}


def unstamped(entries: Iterable[onnx.StringStringEntryProto]) -> list[tuple[str, str]]:
    """Key and value of all other entries of metadata_props, in order: what two models are to have in common."""
    return [(entry.key, entry.value) for entry in entries if entry.key not in KEYS]


def tool_version() -> str:
    """The installed version of this tool; `unknown` where it runs from a source tree that is not installed."""
    try:
        return version("onnx-conv-rewriter")
    except PackageNotFoundError:
        return "unknown"


def _entry(key: str, value: str) -> bytes:
    body = onnx.StringStringEntryProto(key=key, value=value).SerializeToString(deterministic=True)
    return header(_METADATA, len(body)) + body


def _without_entries(part: memoryview) -> memoryview:
    """The bytes before or behind the graph without entries of ours; the very same where there are none."""
    ours = [entry for entry in fields(part) if entry.number == _METADATA and entry.kind == LENGTH]
    ours = [entry for entry in ours if _key(part[entry.body : entry.stop]) in KEYS]
    if not ours:
        return part
    starts, stops = [0, *(entry.stop for entry in ours)], [*(entry.start for entry in ours), len(part)]
    return memoryview(b"".join(part[start:stop] for start, stop in zip(starts, stops, strict=True)))


def _key(body: memoryview) -> str:
    return onnx.StringStringEntryProto.FromString(bytes(body)).key
