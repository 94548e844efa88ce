"""Small pairs as other tools make them: what onnxsim, onnxslim, onnxoptimizer and ONNX Runtime do to a graph.

Each is written out here, so that no test needs the tools; what they do was seen in files they made of the zoo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Pair = Callable[[], tuple[onnx.ModelProto, onnx.ModelProto]]
node = helper.make_node
MICROSOFT = "com.microsoft"


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


W, V, B = weights(4, 3, 3, 3), weights(5, 4, 1, 1, seed=1), weights(4, seed=2)
M, N, C = weights(6, 8, seed=3), weights(8, 6, seed=4), weights(8, seed=5)
IMAGE, TOKENS = ("n", 3, 6, 6), (2, 5, 6)


def model(
    nodes: Sequence[onnx.NodeProto],
    values: dict[str, Array] | None = None,
    shape: Sequence[int | str] = IMAGE,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    """Input `x`; imports ONNX Runtime's domains, as its own files do, where a node is of one."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (values or {}).items()]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))]
    imports = [helper.make_opsetid("", opset)]
    if any(entry.domain for entry in nodes):
        imports += [helper.make_opsetid(name, 1) for name in ("ai.onnx.ml", MICROSOFT, "com.microsoft.nchwc")]
    return helper.make_model(
        helper.make_graph(list(nodes), "g", given, made, tensors), opset_imports=imports, ir_version=10
    )


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def network(names: str = "abcdef", *, w: Array = W, axis: int = 1, order: bool = False) -> onnx.ModelProto:
    """Conv → Relu → Conv → Softmax beside the Conv: `y` = Softmax − Conv."""
    a, b, c, d, e, f = list(names)
    last = [d, c] if order else [c, d]
    nodes = [
        node("Conv", ["x", e], [a]),
        node("Relu", [a], [b]),
        node("Conv", [b, f], [c]),
        node("Softmax", [c], [d], axis=axis),
        node("Sub", last, ["y"]),
    ]
    return model(nodes, {e: w, f: V})


def ulp(value: Array) -> Array:
    """The same but for one element, off by one unit in the last place."""
    changed = value.copy()
    flat = changed.reshape(-1)
    flat[7] = np.nextafter(flat[7], np.float32(np.inf))
    return changed


def gelu(x: str, out: str) -> list[onnx.NodeProto]:
    """As PyTorch exports it; reads the constants `root`, `one` and `half`."""
    return [
        node("Div", [x, "root"], [f"{out}1"]),
        node("Erf", [f"{out}1"], [f"{out}2"]),
        node("Add", [f"{out}2", "one"], [f"{out}3"]),
        node("Mul", [x, f"{out}3"], [f"{out}4"]),
        node("Mul", [f"{out}4", "half"], [out]),
    ]


GELU = {
    "root": np.asarray(1.4142135, np.float32),
    "one": np.asarray(1, np.float32),
    "half": np.asarray(0.5, np.float32),
}


def activated(nodes: Sequence[onnx.NodeProto], values: dict[str, Array] | None = None) -> onnx.ModelProto:
    """A convolution `t`, the nodes from `t` to `u`, and a convolution of `u`."""
    values = {"w": W, "v": V, **(values or {})}
    return model([node("Conv", ["x", "w"], ["t"]), *nodes, node("Conv", ["u", "v"], ["y"])], values)


def swish(alpha: float = 1.702) -> list[onnx.NodeProto]:
    return [node("Mul", ["t", "k"], ["s"]), node("Sigmoid", ["s"], ["g"]), node("Mul", ["t", "g"], ["u"])]


def fused_gelu(kind: str = "Gelu", **attributes: Any) -> onnx.ModelProto:
    return activated([node(kind, ["t"], ["u"], domain=MICROSOFT, **attributes)])


def hard(alpha: float = 1 / 6) -> onnx.ModelProto:
    """What ONNX Runtime makes of HardSwish."""
    parts = [node("HardSigmoid", ["t"], ["_inlfunc"], alpha=alpha, beta=0.5), node("Mul", ["t", "_inlfunc"], ["u"])]
    return activated(parts)


def dense(matrix: Array = M) -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "m"], ["p"]),
        node("Add", ["c", "p"], ["q"]),
        node("Relu", ["q"], ["r"]),
        node("MatMul", ["r", "n"], ["y"]),
    ]
    return model(nodes, {"m": matrix, "n": N, "c": C}, TOKENS)


def gemm(matrix: Array = M, bias: Array = C, *, reused: bool = False) -> onnx.ModelProto:
    """Flattened, with Gemm; with `reused`, the tensors in between have the names of those of the original."""
    q, r = ("q", "r") if reused else ("q2", "r2")
    nodes = [
        node("Reshape", ["x", "flat"], ["x2"]),
        node("Gemm", ["x2", "m", "c"], [q]),
        node("Relu", [q], [r]),
        node("Gemm", [r, "n2"], ["y2"], transB=1),
        node("Reshape", ["y2", "back"], ["y"]),
    ]
    values = {"m": matrix, "c": bias, "n2": np.ascontiguousarray(N.T), "flat": ints(-1, 6), "back": ints(2, 5, 6)}
    return model(nodes, values, TOKENS)


def attention() -> onnx.ModelProto:
    nodes = [
        node("Mul", ["x", "s"], ["q"]),
        node("Transpose", ["x"], ["k"], perm=[0, 2, 1]),
        node("Mul", ["k", "s"], ["l"]),
        node("MatMul", ["q", "l"], ["a"]),
        node("Softmax", ["a"], ["p"], axis=-1),
        node("MatMul", ["p", "x"], ["y"]),
    ]
    return model(nodes, {"s": np.asarray(0.6, np.float32)}, TOKENS)


def fused_attention(alpha: float = 0.36, *, turned: bool = True) -> onnx.ModelProto:
    k = [] if turned else [node("Transpose", ["x"], ["k"], perm=[0, 2, 1])]
    nodes = [
        *k,
        node("FusedMatMul", ["x", "x" if turned else "k"], ["a"], domain=MICROSOFT, alpha=alpha, transB=int(turned)),
        node("Softmax", ["a"], ["p"], axis=-1),
        node("MatMul", ["p", "x"], ["y"]),
    ]
    return model(nodes, None, TOKENS)


def normalized(epsilon: float | None = 1e-5, *, fused: bool = False) -> onnx.ModelProto:
    values = {"m": weights(6, 6), "g": weights(6), "h": weights(6, seed=1)}
    given: dict[str, Any] = {} if epsilon is None else {"epsilon": epsilon}
    if fused:
        outputs = ["u", "", "", "s"]
        tail = [node("SkipLayerNormalization", ["x", "t", "g", "h"], outputs, domain=MICROSOFT, **given)]
    else:
        tail = [node("Add", ["t", "x"], ["s"]), node("LayerNormalization", ["s", "g", "h"], ["u"], **given)]
    nodes = [node("MatMul", ["x", "m"], ["t"]), *tail, node("Add", ["u", "s"], ["y"])]
    return model(nodes, values, TOKENS)


def scaled(fold: float | None = None) -> onnx.ModelProto:
    """Conv and a scale per channel; with `fold`, the scale times it is in the weights."""
    gain = weights(4, 1, 1, seed=6)
    if fold is None:
        return model([node("Conv", ["x", "w"], ["t"]), node("Mul", ["t", "k"], ["y"])], {"w": W, "k": gain})
    folded = W * gain.reshape(4, 1, 1, 1) * np.float32(fold)
    return model([node("Conv", ["x", "_v_7"], ["y"])], {"_v_7": folded})


def clipped(*, constants: bool, swapped: bool = False) -> onnx.ModelProto:
    """Two Clips, each with Constant nodes of its own; or with shared initializers."""
    low, high = np.asarray(0, np.float32), np.asarray(6, np.float32)
    clips = [node("Conv", ["x", "w"], ["t"])]
    if constants:
        for name, value in {"l1": low, "h1": high, "l2": low, "h2": high}.items():
            clips.append(node("Constant", [], [name], value=numpy_helper.from_array(value)))
        clips += [node("Clip", ["t", "l1", "h1"], ["u"]), node("Conv", ["u", "v"], ["s"])]
        clips.append(node("Clip", ["s", "l2", "h2"], ["y"]))
        return model(clips, {"w": W, "v": V})
    last = ["c0", "c1"] if not swapped else ["c0", "c0"]
    clips += [
        node("Clip", ["t", "c0", "c1"], ["u"]),
        node("Conv", ["u", "v"], ["s"]),
        node("Clip", ["s", *last], ["y"]),
    ]
    return model(clips, {"w": W, "v": V, "c0": low, "c1": high})


def reshaped(*, folded: bool, rows: int = 4) -> onnx.ModelProto:
    """A Reshape to sizes computed at run time, or to constant ones with −1 for the batch."""
    if folded:
        return model(
            [node("Reshape", ["x", "_v_3"], ["r"]), node("Softmax", ["r"], ["y"])], {"_v_3": ints(-1, rows, 27)}
        )
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["b"]),
        node("Concat", ["b", "rest"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["r"]),
        node("Softmax", ["r"], ["y"]),
    ]
    return model(nodes, {"zero": ints(0), "rest": ints(4, 27)})


def twice(*, once: bool) -> onnx.ModelProto:
    """One Softmax computed twice, or once and read twice; a Dropout and an Identity on the way, or not."""
    if once:
        nodes = [node("Softmax", ["x"], ["p"]), node("MatMul", ["p", "p"], ["y"])]
        return model(nodes, None, (2, 5, 5))
    nodes = [
        node("Softmax", ["x"], ["p"]),
        node("Softmax", ["x"], ["q"]),
        node("Dropout", ["p"], ["r"]),
        node("Identity", ["q"], ["s"]),
        node("MatMul", ["r", "s"], ["t"]),
        node("Identity", ["t"], ["y"]),
    ]
    return model(nodes, None, (2, 5, 5))


def positions(*, folded: bool, off: float = 0.0) -> onnx.ModelProto:
    """A product with a product of constants, or with the constant that it is."""
    table, turn = weights(5, 6), weights(6, 6, seed=1)
    if folded:
        product = table.astype(np.float64) @ turn
        product[0, 0] += off
        return model([node("MatMul", ["x", "p"], ["y"])], {"p": product.astype(np.float32)[None]}, (2, 4, 5))
    nodes = [
        node("MatMul", ["table", "turn"], ["p0"]),
        node("Unsqueeze", ["p0", "zero"], ["p"]),
        node("MatMul", ["x", "p"], ["y"]),
    ]
    return model(nodes, {"table": table, "turn": turn, "zero": ints(0)}, (2, 4, 5))


K = {"k": np.asarray(1.702, np.float32)}
RIGHT: dict[str, tuple[Pair, str]] = {
    "all names are others": (lambda: (network(), network("uvwpqr")), "bitwise"),
    "names belong to other tensors": (lambda: (network(), network("bcdaef")), "exact"),
    "a Dropout, an Identity, a Softmax twice": (lambda: (twice(once=False), twice(once=True)), "bitwise"),
    "Constant nodes to shared initializers": (lambda: (clipped(constants=True), clipped(constants=False)), "bitwise"),
    "shapes folded": (lambda: (reshaped(folded=False), reshaped(folded=True)), "exact"),
    "a scale folded": (lambda: (scaled(), scaled(1)), "rounding"),
    "QuickGelu": (lambda: (activated(swish(), K), fused_gelu("QuickGelu", alpha=1.702)), "exact"),
    "Gelu": (lambda: (activated(gelu("t", "u"), GELU), fused_gelu()), "exact"),
    "HardSwish": (lambda: (activated([node("HardSwish", ["t"], ["u"])]), hard()), "exact"),
    "Gemm": (lambda: (dense(), gemm()), "exact"),
    "Gemm, names reused": (lambda: (dense(), gemm(reused=True)), "exact"),
    "FusedMatMul": (lambda: (attention(), fused_attention()), "rounding"),
    "FusedMatMul, one operand transposed before": (lambda: (attention(), fused_attention(turned=False)), "rounding"),
    "SkipLayerNormalization": (lambda: (normalized(), normalized(fused=True)), "exact"),
    "SkipLayerNormalization, its own epsilon": (lambda: (normalized(1e-12), normalized(None, fused=True)), "exact"),
    "a product of constants folded": (lambda: (positions(folded=False), positions(folded=True)), "rounding"),
}
"""By what the tool did: the pair, and the grade."""
WRONG: dict[str, tuple[Pair, str]] = {
    "1 ulp in a weight, all names others": (lambda: (network(), network("uvwpqr", w=ulp(W))), "q"),
    "1 ulp in a weight": (lambda: (network(), network("abcdrf", w=ulp(W))), "r"),
    "operands swapped, all names others": (lambda: (network(), network("uvwpqr", order=True)), "y"),
    "Softmax over another axis, all names others": (lambda: (network(), network("uvwpqr", axis=2)), "y"),
    "a bound shared wrongly": (lambda: (clipped(constants=True), clipped(constants=False, swapped=True)), "y"),
    "a shape folded wrongly": (lambda: (reshaped(folded=False), reshaped(folded=True, rows=2)), "r"),
    "a scale folded, off": (lambda: (scaled(), scaled(1.0001)), "y"),
    "QuickGelu, another alpha": (lambda: (activated(swish(), K), fused_gelu("QuickGelu", alpha=1.7)), "u"),
    "Gelu by a tanh": (lambda: (activated(gelu("t", "u"), GELU), fused_gelu("FastGelu")), "u"),
    "Gelu, another root": (
        lambda: (activated(gelu("t", "u"), {**GELU, "root": np.asarray(1.42, np.float32)}), fused_gelu()),
        "u",
    ),
    "HardSwish, another alpha": (lambda: (activated([node("HardSwish", ["t"], ["u"])]), hard(0.17)), "u"),
    "Gemm, 1 ulp": (lambda: (dense(), gemm(ulp(M))), "m"),
    "Gemm, another bias": (lambda: (dense(), gemm(bias=ulp(C))), "c"),
    "FusedMatMul, another alpha": (lambda: (attention(), fused_attention(0.361)), "a"),
    "SkipLayerNormalization, another epsilon": (lambda: (normalized(), normalized(1e-3, fused=True)), "u"),
    "SkipLayerNormalization without its epsilon": (lambda: (normalized(), normalized(None, fused=True)), "u"),
    "a product of constants, off": (lambda: (positions(folded=False), positions(folded=True, off=1e-3)), "y"),
}
"""By what is wrong: the pair, and a tensor that the reason has to name."""
