"""rewriter: rewrites the convolutions of ONNX models and proves that nothing else changed.

The names below are the public ones: the API (`optimize`, `rewrite`, `inspect`, `inspect_channels`, `draw_channels`,
`audit`, `cross_audit`, `certify`, `replay`, `reproduce`, `bench`, `load_samples`), the errors, and the kit that passes
are written with.  They are loaded when first used, so that `rewriter --help` does not wait for ONNX Runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.absorb import Consumer as Consumer
    from rewriter.absorb import emit_consumer as emit_consumer
    from rewriter.absorb import find_consumer as find_consumer
    from rewriter.affine import AFFINE as AFFINE
    from rewriter.affine import data_operand as data_operand
    from rewriter.affine import read_affine as read_affine
    from rewriter.affine import read_pad as read_pad
    from rewriter.aligning import Alignment as Alignment
    from rewriter.aligning import aligned_concats as aligned_concats
    from rewriter.api import audit as audit
    from rewriter.api import bench as bench
    from rewriter.api import certify as certify
    from rewriter.api import cross_audit as cross_audit
    from rewriter.api import draw_channels as draw_channels
    from rewriter.api import inspect as inspect
    from rewriter.api import inspect_channels as inspect_channels
    from rewriter.api import load_samples as load_samples
    from rewriter.api import optimize as optimize
    from rewriter.api import replay as replay
    from rewriter.api import reproduce as reproduce
    from rewriter.api import rewrite as rewrite
    from rewriter.base import Pass as Pass
    from rewriter.between import dependents as dependents
    from rewriter.build import Builder as Builder
    from rewriter.census import nchwc_block as nchwc_block
    from rewriter.channelflow import channel_components as channel_components
    from rewriter.channels import Band as Band
    from rewriter.channels import Channels as Channels
    from rewriter.channels import Component as Component
    from rewriter.channels import Link as Link
    from rewriter.checks import check_one_of as check_one_of
    from rewriter.constants import is_constant as is_constant
    from rewriter.conv import ChannelMix as ChannelMix
    from rewriter.convmaps import conv_map as conv_map
    from rewriter.convmaps import full_window as full_window
    from rewriter.convmaps import on_axes as on_axes
    from rewriter.convmaps import spatial_sizes as spatial_sizes
    from rewriter.convmaps import with_geometry as with_geometry
    from rewriter.delimit import closure as closure
    from rewriter.delimit import closure_of_reads as closure_of_reads
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
    from rewriter.grouping import asked_factor as asked_factor
    from rewriter.grouping import grouped as grouped
    from rewriter.grouping import in_parts as in_parts
    from rewriter.grouping import in_place as in_place
    from rewriter.grouping import parts_to_measure as parts_to_measure
    from rewriter.grouping import require_few_zeros as require_few_zeros
    from rewriter.joined import common_source as common_source
    from rewriter.joined import joined_with as joined_with
    from rewriter.layout_nodes import LayoutWalk as LayoutWalk
    from rewriter.layout_nodes import is_simple as is_simple
    from rewriter.layout_nodes import walk_layouts as walk_layouts
    from rewriter.layout_pairs import LayoutPairs as LayoutPairs
    from rewriter.layout_pairs import pairs_near as pairs_near
    from rewriter.layout_pairs import transpose_order as transpose_order
    from rewriter.lifting import ConvSite as ConvSite
    from rewriter.lifting import convs as convs
    from rewriter.lifting import lift as lift
    from rewriter.match import Match as Match
    from rewriter.neighbours import Neighbours as Neighbours
    from rewriter.neighbours import neighbours_from as neighbours_from
    from rewriter.options import RunOptions as RunOptions
    from rewriter.options import Tolerance as Tolerance
    from rewriter.ordering import ORDERS as ORDERS
    from rewriter.ordering import absorbing as absorbing
    from rewriter.pattern import NodePattern as NodePattern
    from rewriter.pattern import Op as Op
    from rewriter.pattern import Var as Var
    from rewriter.pattern import maybe as maybe
    from rewriter.per_channel import nearest_conv as nearest_conv
    from rewriter.per_channel import reach as reach
    from rewriter.picking import picks_near as picks_near
    from rewriter.pieces import Taken as Taken
    from rewriter.pieces import read_everything as read_everything
    from rewriter.pieces import take_pieces as take_pieces
    from rewriter.proof import Layout as Layout
    from rewriter.proof import prove as prove
    from rewriter.relabelling import Emit as Emit
    from rewriter.relabelling import Names as Names
    from rewriter.relabelling import Relabelled as Relabelled
    from rewriter.relabelling import relabel as relabel
    from rewriter.repeating import repeat_channels as repeat_channels
    from rewriter.result import Result as Result
    from rewriter.rewired import emit_wiring as emit_wiring
    from rewriter.rewiring import Wiring as Wiring
    from rewriter.rewiring import wiring_of as wiring_of
    from rewriter.rewiring import wirings as wirings
    from rewriter.rewiring_plan import Plan as Plan
    from rewriter.rewiring_plan import plan_wiring as plan_wiring
    from rewriter.rule import Declined as Declined
    from rewriter.rule import Deviation as Deviation
    from rewriter.rule import Rewrite as Rewrite
    from rewriter.rule import Safety as Safety
    from rewriter.rule import Settings as Settings
    from rewriter.rule import require as require
    from rewriter.runs import Run as Run
    from rewriter.runs import run_from as run_from
    from rewriter.selection import Selection as Selection
    from rewriter.selection import selections as selections
    from rewriter.session import Runtime as Runtime
    from rewriter.shuffling import check_way as check_way
    from rewriter.shuffling import shuffled_input as shuffled_input
    from rewriter.stacks import Stack as Stack
    from rewriter.stacks import axes_of as axes_of
    from rewriter.stacks import shapes_of as shapes_of
    from rewriter.stacks import stack_at as stack_at
    from rewriter.stacks import stack_before as stack_before
    from rewriter.track import Step as Step
    from rewriter.track import bending as bending
    from rewriter.track import follow as follow
    from rewriter.track import may_reduce as may_reduce
    from rewriter.transposing import TransposedSite as TransposedSite
    from rewriter.transposing import lift_transposed as lift_transposed
    from rewriter.views import View as View
    from rewriter.views import rewrite_run as rewrite_run
    from rewriter.views import sampled as sampled
    from rewriter.views import unsqueeze as unsqueeze
    from rewriter.windows import same_attributes as same_attributes
    from rewriter.windows import strides_of as strides_of
    from rewriter.windows import window_of as window_of
    from rewriter.windows import with_window as with_window

_HOME = {
    "aligning": "Alignment aligned_concats",
    "affine": "AFFINE data_operand read_affine read_pad",
    "api": "audit bench certify cross_audit draw_channels inspect inspect_channels load_samples optimize replay "
    "reproduce rewrite",
    "absorb": "Consumer emit_consumer find_consumer",
    "base": "Pass",
    "between": "dependents",
    "build": "Builder",
    "census": "nchwc_block",
    "channelflow": "channel_components",
    "channels": "Band Channels Component Link",
    "checks": "check_one_of",
    "constants": "is_constant",
    "conv": "ChannelMix",
    "convmaps": "conv_map full_window on_axes spatial_sizes with_geometry",
    "delimit": "closure closure_of_reads shape_readers",
    "emit": "interleave needs_layout reissue_shape restore_layout shuffle",
    "errors": "BadInput Different NotVerified RewriterError",
    "fold": "fold_into_producer",
    "following": "element_type only_reader why_other_shape",
    "graph": "Graph",
    "grouping": "asked_factor grouped in_parts in_place parts_to_measure require_few_zeros",
    "match": "Match",
    "pattern": "NodePattern Op Var maybe",
    "joined": "common_source joined_with",
    "layout_nodes": "LayoutWalk is_simple walk_layouts",
    "layout_pairs": "LayoutPairs pairs_near transpose_order",
    "lifting": "ConvSite convs lift",
    "neighbours": "Neighbours neighbours_from",
    "options": "RunOptions Tolerance",
    "ordering": "ORDERS absorbing",
    "per_channel": "nearest_conv reach",
    "picking": "picks_near",
    "pieces": "Taken read_everything take_pieces",
    "proof": "Layout prove",
    "relabelling": "Emit Names Relabelled relabel",
    "result": "Result",
    "rewiring": "Wiring wiring_of wirings",
    "rewired": "emit_wiring",
    "rewiring_plan": "Plan plan_wiring",
    "repeating": "repeat_channels",
    "rule": "Declined Deviation Rewrite Safety Settings require",
    "session": "Runtime",
    "stacks": "Stack axes_of shapes_of stack_at stack_before",
    "track": "Step bending follow may_reduce",
    "runs": "Run run_from",
    "transposing": "TransposedSite lift_transposed",
    "views": "View rewrite_run sampled unsqueeze",
    "selection": "Selection selections",
    "shuffling": "check_way shuffled_input",
    "windows": "same_attributes strides_of window_of with_window",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module 'rewriter' has no attribute '{name}'")
    return getattr(import_module(f"rewriter.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULE)
