"""Small models with channel components of every kind, for the tests of `inspect --channels` and of its pictures."""

from __future__ import annotations

import onnx

from graphs import model, node, value, weights
from rewriter.channel_survey import ChannelSurvey, survey_channels
from rewriter.graph import Graph
from rewriter.model import Model


def network() -> onnx.ModelProto:
    """Two alike grouped blocks in a row, a residual around the second, then a Concat, and a Softmax over channels."""
    nodes = [
        node("Conv", ["x", "w0"], ["stem"]),
        *block("stem", "one"),
        *block("one", "two"),
        node("Add", ["one", "two"], ["sum"]),
        node("Conv", ["sum", "w1"], ["left"]),
        node("Conv", ["sum", "w1"], ["right"]),
        node("Concat", ["left", "right"], ["both"], axis=1),
        node("Softmax", ["both"], ["soft"], axis=1),
        node("Conv", ["soft", "w2"], ["y"]),
    ]
    made = [weights("w0", 18, 3, 1, 1), weights("w1", 5, 18, 1, 1), weights("w2", 4, 10, 1, 1)]
    made += [weights("in", 8, 18, 1, 1), weights("groups", 8, 4, 3, 3), weights("out", 18, 8, 1, 1)]
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 4, 8, 8])], made)


def block(x: str, y: str) -> list[onnx.NodeProto]:
    return [
        node("Conv", [x, "in"], [f"{y}.in"]),
        node("Conv", [f"{y}.in", "groups"], [f"{y}.groups"], group=2, pads=[1, 1, 1, 1]),
        node("Relu", [f"{y}.groups"], [f"{y}.relu"]),
        node("Conv", [f"{y}.relu", "out"], [y]),
    ]


def survey_of(proto: onnx.ModelProto, size: int = 16) -> ChannelSurvey:
    return survey_channels(Graph(Model.load(proto)), size)


def twice_stopped() -> onnx.ModelProto:
    """Two branches that differ in names only, each stopped by a Softmax over channels."""
    nodes = []
    for name in ("one", "two"):
        nodes += [
            node("Conv", ["x", "w"], [name]),
            node("Softmax", [name], [f"{name}.soft"], axis=1),
            node("Conv", [f"{name}.soft", "v"], [f"{name}.y"]),
        ]
    made = [weights("w", 4, 3, 1, 1), weights("v", 2, 4, 1, 1)]
    shapes = [value(f"{name}.y", [1, 2, 4, 4]) for name in ("one", "two")]
    return model(nodes, [value("x", [1, 3, 4, 4])], shapes, made)


def attention() -> onnx.ModelProto:
    """Two results weighted position by position: by what is computed from the first, and by what is not.

    `second` is read before it meets its weights, which come from further down.
    """
    nodes = [
        node("Conv", ["x", "w"], ["first"]),
        node("Conv", ["first", "one"], ["its"]),
        node("Mul", ["first", "its"], ["weighted"]),
        node("Conv", ["x", "w"], ["second"]),
        node("Conv", ["second", "v"], ["aside"]),
        node("Conv", ["weighted", "one"], ["other"]),
        node("Mul", ["second", "other"], ["again"]),
        node("Conv", ["again", "v"], ["y"]),
        node("Conv", ["aside", "v"], ["z"]),
    ]
    made = [weights("w", 8, 8, 1, 1), weights("v", 8, 8, 1, 1), weights("one", 1, 8, 1, 1)]
    return model(nodes, [value("x", [1, 8, 4, 4])], [value(name, [1, 8, 4, 4]) for name in "yz"], made)
