"""rewriter: rewrites the convolutions of ONNX models and proves that nothing else changed.

The names below are the public ones: the API (`optimize`, `rewrite`, `inspect`, `audit`, `cross_audit`, `bench`), the
errors, and the kit that passes are written with.  They are loaded when first used, so that `rewriter --help` does not
wait for ONNX Runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.api import Result as Result
    from rewriter.api import audit as audit
    from rewriter.api import bench as bench
    from rewriter.api import cross_audit as cross_audit
    from rewriter.api import inspect as inspect
    from rewriter.api import optimize as optimize
    from rewriter.api import rewrite as rewrite
    from rewriter.base import Pass as Pass
    from rewriter.build import Builder as Builder
    from rewriter.census import nchwc_block as nchwc_block
    from rewriter.conv import ChannelMix as ChannelMix
    from rewriter.delimit import closure as closure
    from rewriter.delimit import shape_readers as shape_readers
    from rewriter.emit import interleave as interleave
    from rewriter.emit import needs_layout as needs_layout
    from rewriter.emit import reissue_shape as reissue_shape
    from rewriter.emit import restore_layout as restore_layout
    from rewriter.emit import shuffle as shuffle
    from rewriter.errors import BadInput as BadInput
    from rewriter.errors import Different as Different
    from rewriter.errors import NotVerified as NotVerified
    from rewriter.errors import RewriterError as RewriterError
    from rewriter.fold import fold_into_producer as fold_into_producer
    from rewriter.following import element_type as element_type
    from rewriter.following import only_reader as only_reader
    from rewriter.following import why_other_shape as why_other_shape
    from rewriter.graph import Graph as Graph
    from rewriter.lifting import ConvSite as ConvSite
    from rewriter.lifting import convs as convs
    from rewriter.lifting import lift as lift
    from rewriter.match import Match as Match
    from rewriter.options import RunOptions as RunOptions
    from rewriter.pattern import NodePattern as NodePattern
    from rewriter.pattern import Op as Op
    from rewriter.pattern import Var as Var
    from rewriter.pattern import maybe as maybe
    from rewriter.proof import Layout as Layout
    from rewriter.proof import prove as prove
    from rewriter.rule import Declined as Declined
    from rewriter.rule import Rewrite as Rewrite
    from rewriter.rule import Safety as Safety
    from rewriter.rule import Settings as Settings
    from rewriter.rule import require as require
    from rewriter.session import Runtime as Runtime
    from rewriter.track import Step as Step
    from rewriter.track import bending as bending
    from rewriter.track import follow as follow
    from rewriter.track import may_reduce as may_reduce

_HOME = {
    "api": "Result audit bench cross_audit inspect optimize rewrite",
    "base": "Pass",
    "build": "Builder",
    "census": "nchwc_block",
    "conv": "ChannelMix",
    "delimit": "closure shape_readers",
    "emit": "interleave needs_layout reissue_shape restore_layout shuffle",
    "errors": "BadInput Different NotVerified RewriterError",
    "fold": "fold_into_producer",
    "following": "element_type only_reader why_other_shape",
    "graph": "Graph",
    "match": "Match",
    "pattern": "NodePattern Op Var maybe",
    "lifting": "ConvSite convs lift",
    "options": "RunOptions",
    "proof": "Layout prove",
    "rule": "Declined Rewrite Safety Settings require",
    "session": "Runtime",
    "track": "Step bending follow may_reduce",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module 'rewriter' has no attribute '{name}'")
    return getattr(import_module(f"rewriter.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULE)
