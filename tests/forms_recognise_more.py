"""Whether a model is in one of the forms that are not about groups, as in forms_recognise.py."""

from __future__ import annotations

from itertools import pairwise

from forms_recognise import Conv, Form, direction, every, first_of, ranks_save, side_by_side, together

# Of low rank.


def _pair(form: Form, *, near: str, far: str) -> list[tuple[bool, str]]:
    """Two convolutions or more, each reading the one before."""
    chained = all(b.node.input[0] == a.node.output[0] for a, b in pairwise(form.convs))
    return [
        direction(form),
        (form.kinds <= {"Conv", "Constant"}, "it has other operators"),
        (len(form.convs) == 2 and chained, "it is not two convolutions in a row"),
        (_plays(form.convs[0], near), f"the first is not {near}"),
        (_plays(form.convs[-1], far), f"the last is not {far}"),
    ]


def _plays(conv: Conv, role: str) -> bool:
    if role == "depthwise":
        return conv.group == conv.c > 1 and max(conv.kernel) > 1
    return conv.group == 1 and 1 in conv.kernel and (max(conv.kernel) > 1) == (role == "flat")


def is_depthwise_pointwise(form: Form) -> str:
    return first_of(*_pair(form, near="depthwise", far="pointwise"))


def is_pointwise_depthwise(form: Form) -> str:
    return first_of(*_pair(form, near="pointwise", far="depthwise"))


def is_spatial_separable(form: Form) -> str:
    first, last = form.convs[0].kernel, form.convs[-1].kernel
    apart = [max(sizes) > 1 for sizes in (first, last)] == [True, True] and all(
        min(pair) == 1 for pair in zip(first, last, strict=True)
    )
    return first_of(*_pair(form, near="flat", far="flat"), (apart, "their kernels lie along one axis"))


def is_low_rank_inputs(form: Form) -> str:
    return _low_rank(form, 0)


def is_low_rank_outputs(form: Form) -> str:
    return _low_rank(form, 1)


def is_low_rank_space(form: Form) -> str:
    return _low_rank(form, 2)


def _low_rank(form: Form, which: int) -> str:
    (conv, *others) = form.convs
    return first_of(
        direction(form),
        (not others and form.kinds <= {"Conv", "Constant"}, "it is not one convolution alone"),
        (conv.group == 1, "it has groups"),
        (conv.group > 1 or ranks_save(conv)[which], "its rank is too high to save anything"),
    )


# Of another rank, with neighbours.


def is_conv1d(form: Form) -> str:
    return first_of(direction(form), every(form, lambda c: len(c.kernel) == 1, "a convolution is not 1-D"))


def is_conv1d_as_2d(form: Form) -> str:
    return first_of(
        direction(form),
        every(form, lambda c: len(c.kernel) == 2 and 1 in c.kernel, "a convolution is not 2-D and flat"),
        ({"Unsqueeze", "Squeeze"} <= form.kinds, "nothing gives it the second axis"),
    )


def is_conv3d(form: Form) -> str:
    return first_of(
        direction(form),
        every(form, lambda c: len(c.kernel) == 3, "a convolution is not 3-D"),
        every(form, lambda c: c.kernel[0] == 1 or set(c.kernel[1:]) == {1}, "it is flat in neither time nor space"),
    )


def is_conv3d_as_2d(form: Form) -> str:
    return first_of(
        direction(form),
        every(form, lambda c: len(c.kernel) == 2, "a convolution is not 2-D"),
        ("Reshape" in form.kinds, "nothing folds the third axis"),
    )


_AFFINE = frozenset({"Mul", "Add", "Sub", "Div", "BatchNormalization"})


def is_affine(form: Form) -> str:
    return first_of(direction(form), (bool(form.kinds & _AFFINE), "it has nothing affine"), _one_conv(form))


def is_padded(form: Form) -> str:
    return first_of(direction(form), ("Pad" in form.kinds, "it has no Pad"), _one_conv(form))


def is_plain(form: Form) -> str:
    return first_of(direction(form), (form.kinds <= {"Conv", "Constant"}, "something is beside it"), _one_conv(form))


def _one_conv(form: Form) -> tuple[bool, str]:
    return len(form.convs) == 1, "it has several convolutions"


def is_conv_activation(form: Form) -> str:
    relu = form.makers.get("y")
    good = relu is not None and relu.op_type == "Relu" and "FusedConv" not in form.kinds
    sources = {"Conv", "Add"}
    behind = form.makers.get(relu.input[0]) if relu is not None and good else None
    return first_of((good and behind is not None and behind.op_type in sources, "no Relu behind a Conv ends it"))


def is_fused(form: Form) -> str:
    last = form.makers.get("y")
    return first_of(
        (last is not None and last.op_type == "FusedConv", "no FusedConv ends it"),
        ("Relu" not in form.kinds, "a Relu is left"),
    )


# Transposed.


def is_transposed_grouped(form: Form) -> str:
    return first_of(
        direction(form, transposed=True),
        together(form),
        every(form, lambda c: 1 < c.group < c.c, "G is 1 or C"),
        every(form, lambda c: not c.has_zero_blocks, "there are zero blocks in its groups"),
    )


def is_transposed_split(form: Form) -> str:
    return side_by_side(form, transposed=True)


def is_transposed_blocks(form: Form) -> str:
    return first_of(
        direction(form, transposed=True),
        together(form),
        every(form, lambda c: c.group == 1, "it has groups"),
        every(form, lambda c: c.has_zero_blocks, "it has no zero blocks"),
    )


# Sums of branches, means over positions.


def is_stacked_sum(form: Form) -> str:
    last = form.makers.get(form.through("y"))
    good = last is not None and last.op_type == "ReduceSum"
    stack = form.makers.get(last.input[0]) if good and last is not None else None
    return first_of((stack is not None and stack.op_type == "Concat", "no sum over a stack ends it"))


def is_add_chain(form: Form) -> str:
    last = form.makers.get(form.through("y", frozenset({"Unsqueeze"})))
    return first_of(
        (last is not None and last.op_type == "Add", "no Add ends it"),
        (not form.kinds & {"Concat", "ReduceSum"}, "a stack is left"),
        (len(form.convs) > 1, "it has one convolution"),
        (last is not None and not set(last.input) & form.constants.keys(), "it adds a constant"),
    )


def is_mean(form: Form) -> str:
    return first_of(("ReduceMean" in form.kinds and len(form.convs) == 1, "it takes no mean of one convolution"))


def is_pooled(form: Form) -> str:
    return first_of(("GlobalAveragePool" in form.kinds and "ReduceMean" not in form.kinds, "nothing pools it all"))
