"""Let the convolution behind a tensor take another order of its channels, through nodes that keep channels apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from rewriter.build import Builder
from rewriter.constants import attribute, constant, is_constant, why_not_constant
from rewriter.conv import Ints, permute_inputs
from rewriter.lifting import ConvSite, lift
from rewriter.model import Model
from rewriter.per_channel import ELEMENTWISE, POOLS, is_plain
from rewriter.rule import require

_WITH_CONSTANT = frozenset({"Add", "Sub", "Mul", "Div", "PRelu", "Max", "Min"})


@dataclass(frozen=True)
class Consumer:
    """The Conv that takes an order of channels in, and the nodes on the way to it from `tensor`, in order."""

    tensor: str
    between: tuple[int, ...]
    site: ConvSite
    order: Ints

    @property
    def nodes(self) -> tuple[int, ...]:
        return (*self.between, self.site.index)


def find_consumer(model: Model, tensor: str, order: Ints, rank: int) -> Consumer:
    """The Conv that can read `tensor[:, order]` in place of the tensor, of that rank; declines where there is none.

    On the way are elementwise operators, pools, BatchNormalization, operators with a constant, and depthwise Convs of
    multiplier 1, each with one reader.
    """
    between: list[int] = []
    start = tensor
    while True:
        escape = model.wiring.escapes(tensor)
        require(not escape, f"the channel order cannot go into the convolution behind: {escape}", tensor)
        readers = model.wiring.readers(tensor)
        one = len(readers) == 1
        require(
            one,
            f"the channel order cannot go into the convolution behind: '{tensor}' has {len(readers)} readers",
            tensor,
        )
        node = model.nodes[readers[0]]
        data = list(node.input).index(tensor)
        where = f"the channel order cannot go through {node.op_type} at '{node.output[0]}'"
        require(list(node.input).count(tensor) == 1, f"{where}: it reads '{tensor}' twice", tensor)
        if node.op_type == "Conv" and is_plain(node):
            require(data == 0, f"{where}: it is the weight or bias there", tensor)
            site = lift(model, readers[0])
            require(site.c == len(order), f"{where}: it reads {site.c} channels, not {len(order)}", tensor)
            if not (site.i_per == 1 and site.o_per == 1 and site.group > 1):
                fits = site.group == 1 or _keeps_groups(site, order)
                require(fits, f"{where}: a channel would come to another of its {site.group} groups", tensor)
                return Consumer(start, tuple(between), site, order)
        else:
            _require_per_channel(model, node, data, len(order), rank, where)
        between.append(readers[0])
        tensor = node.output[0]


def emit_consumer(build: Builder, model: Model, found: Consumer, x: str) -> str:
    """The nodes of `found` again, reading x in the new order; the Conv's output keeps its name, which is returned."""
    rank, old = len(found.site.weight_shape), found.tensor
    for index in found.between:
        node = model.nodes[index]
        if node.op_type == "Conv":
            x = _depthwise(build, lift(model, index), found.order, x)
        else:
            x = _copy(build, model, node, list(node.input).index(old), found.order, x, rank)
        old = node.output[0]
    site = found.site
    weight = build.constant(permute_inputs(site.weight, site.group, found.order), "permuted_weight")
    return build.conv(site.node, x, weight, site.bias_name, site.group, site.y)


def _keeps_groups(site: ConvSite, order: Ints) -> bool:
    return bool((order // site.i_per == np.arange(len(order)) // site.i_per).all())


def _require_per_channel(model: Model, node: onnx.NodeProto, data: int, channels: int, rank: int, where: str) -> None:
    require(is_plain(node), f"{where}: it is no operator that is known to keep channels apart", node.output[0])
    kind = node.op_type
    if kind in ELEMENTWISE | POOLS:
        require(data == 0, f"{where}: it is a parameter there", node.output[0])
        return
    batch_norm = kind == "BatchNormalization" and data == 0
    if batch_norm:
        training, spatial = attribute(node, "training_mode"), attribute(node, "spatial")
        plain = not (training and training.i) and (spatial is None or spatial.i)
        require(plain, f"{where}: it is in training mode or not spatial", node.output[0])
    known = batch_norm or (kind in _WITH_CONSTANT and len(node.input) == 2 and (kind != "PRelu" or data == 0))
    require(known, f"{where}: it is no operator that is known to keep channels apart", node.output[0])
    for name in [name for position, name in enumerate(node.input) if position != data]:
        require(is_constant(model, name), f"{where}: {why_not_constant(model, name)}", node.output[0])
        value = constant(model, name)
        assert value is not None
        shape = value.shape if not batch_norm else (len(value), *[1] * (rank - 2))
        fits = len(shape) <= rank and (len(shape) < rank - 1 or shape[1 - rank] in (1, channels))
        require(fits, f"{where}: its constant '{name}' of shape {list(value.shape)} does not fit", node.output[0])


def _copy(build: Builder, model: Model, node: onnx.NodeProto, data: int, order: Ints, x: str, rank: int) -> str:
    """The node again, its operand at `data` x, with constants of one value per channel in the new order."""
    inputs = list(node.input)
    axis = {"BatchNormalization": 0, **dict.fromkeys(_WITH_CONSTANT, 1 - rank)}.get(node.op_type)
    if axis is not None:
        inputs = [_permuted(build, model, name, order, axis) for name in inputs]
    inputs[data] = x
    y = build.copy(node, x)
    build.nodes[-1].input[:] = inputs
    return y


def _permuted(build: Builder, model: Model, name: str, order: Ints, axis: int) -> str:
    """The constant with one value per channel in the new order; itself where it is no such constant."""
    value = constant(model, name)
    if value is None or value.ndim < max(1, -axis) or value.shape[axis] == 1:
        return name
    return build.constant(np.ascontiguousarray(np.take(value, order, axis=axis)), "permuted")


def _depthwise(build: Builder, site: ConvSite, order: Ints, x: str) -> str:
    weight = build.constant(np.ascontiguousarray(site.weight[order]), "permuted_weight")
    bias = None if site.bias is None else build.constant(np.ascontiguousarray(site.bias[order]), "permuted_bias")
    return build.conv(site.node, x, weight, bias, site.group, None)
