"""What is proved of a tracked tensor: its layout and channel mix, or which of batch and space does not stay put."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chains import Chain, assert_followed
from models.emit import Array
from rewriter.proof import Layout, prove, read_layout
from rewriter.rule import Declined
from rewriter.track import State

WIDE = (2, 12, 3, 4)
Build = Callable[[Chain], object]


@given(st.integers(0, 10**9))
@settings(max_examples=150)
def test_what_is_proved_of_random_channel_bookkeeping_holds(seed: int) -> None:
    """Chains that split, reorder and sum channels, with a step now and then that breaks something."""
    rng = random.Random(seed)
    shape = (rng.choice([1, 2, 3]), 12, rng.choice([1, 2, 3]), rng.choice([1, 3, 12]))
    chain = Chain(shape)
    here = shape
    for _ in range(rng.randint(1, 5)):
        channel_step(rng, chain, here)
        here = chain.run(chain.data()).shape
    state = assert_followed(chain)
    try:
        layout, mixing = prove(state, shape)
    except Declined:
        return
    x = chain.data()
    picked = x[:, mixing.index]  # [N, M', T, *S]
    coef = np.ones(mixing.index.shape) if mixing.coef is None else mixing.coef
    offset = np.zeros(len(mixing.index)) if mixing.offset is None else mixing.offset
    y = (picked * coef[:, :, None, None]).sum(axis=2) + offset[:, None, None]
    np.testing.assert_allclose(arranged(y, layout), chain.run(x), rtol=1e-12, atol=1e-12)


def arranged(y: Array, layout: Layout) -> Array:
    """[N, M', *S] in the given layout."""
    parts = y.reshape(y.shape[0], *layout.channels, *y.shape[2:])
    count = len(layout.channels)
    channels = iter(range(1, count + 1))
    places = [0 if role == "n" else next(channels) if role == "c" else count + 1 + int(role) for role in layout.axes]
    return parts.transpose(places)


def channel_step(rng: random.Random, chain: Chain, shape: tuple[int, ...]) -> None:
    rank = len(shape)
    if rank < 2:
        chain.add("Identity")
        return
    axis = rng.randrange(rank)
    kind = rng.choice(["Transpose", "split", "merge", "ReduceSum", "ReduceSum", "Mul", "Gather"])
    if kind == "Transpose":
        perm = [0, *range(2, rank), 1] if rng.random() < 0.5 else rng.sample(range(rank), rank)
        chain.add(kind, perm=perm)
    elif kind == "split":
        size = rng.choice([number for number in range(1, shape[axis] + 1) if shape[axis] % number == 0])
        chain.add("Reshape", np.array([*shape[:axis], size, shape[axis] // size, *shape[axis + 1 :]]))
    elif kind == "merge" and axis + 1 < rank:
        chain.add("Reshape", np.array([*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]))
    elif kind == "ReduceSum":
        chain.add(kind, np.array([axis]), keepdims=rng.randint(0, 1))
    elif kind == "Gather":
        chain.add(kind, rng.sample(range(shape[axis]), shape[axis]), axis=axis)
    else:
        sizes = [size if place == axis else 1 for place, size in enumerate(shape)]
        chain.add("Mul", np.arange(1.0, shape[axis] + 1).reshape(sizes))


def proved(chain: Chain) -> tuple[Layout, Array]:
    layout, mixing = prove(assert_followed(chain), chain.shape)
    return layout, mixing.index


def test_contiguous_and_interleaved_sums_by_hand() -> None:
    contiguous = Chain((2, 8, 3)).add("Reshape", [2, 2, 2, 2, 3]).add("ReduceSum", [2], keepdims=0)
    layout, index = proved(contiguous)
    assert layout == Layout(("n", "c", "c", 0), (2, 2))
    assert index.tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    interleaved = Chain((2, 8, 3)).add("Reshape", [2, 2, 4, 3]).add("ReduceSum", [1], keepdims=0)
    layout, index = proved(interleaved)
    assert layout == Layout(("n", "c", 0), (4,))
    assert index.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    ("shape", "build", "axes", "channels"),
    [
        ((2, 4, 3, 3), lambda c: c.add("Transpose", perm=[0, 2, 3, 1]), ("n", 0, 1, "c"), (4,)),
        ((2, 4, 3, 3), lambda c: c.add("ReduceSum", [1], keepdims=0), ("n", 0, 1), ()),
        ((2, 4, 3, 3), lambda c: c.add("ReduceSum", [1]), ("n", "c", 0, 1), (1,)),
        ((1, 4, 1, 1), lambda c: c.add("Reshape", [1, 2, 2, 1, 1]), ("n", "c", "c", 0, 1), (2, 2)),
        ((1, 4, 3, 3), lambda c: c.add("Transpose", perm=[0, 3, 2, 1]), ("n", 1, 0, "c"), (4,)),
        ((2, 4, 3, 3), lambda c: c.add("Unsqueeze", [2]), ("n", "c", "c", 0, 1), (4, 1)),
        ((1, 1, 3, 3), lambda c: c.add("Identity"), ("n", "c", 0, 1), (1,)),
    ],
)
def test_layouts(shape: tuple[int, ...], build: Build, axes: tuple[str | int, ...], channels: tuple[int, ...]) -> None:
    chain = Chain(shape)
    build(chain)
    layout, _ = proved(chain)
    assert (layout.axes, layout.channels) == (axes, channels)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda c: c.add("ReduceSum", [2]), "batch or space change their size"),
        (lambda c: c.add("ReduceSum", [0], keepdims=0), "batch or space do not keep one axis each"),
        (lambda c: c.add("Reshape", [2, 12, 12]), "batch or space do not keep one axis each"),
        (lambda c: c.add("Reshape", [4, 6, 3, 4]), "batch or space do not keep one axis each"),
        (lambda c: c.add("Reshape", [2, 9, 4, 4]), "batch or space change their size"),
        (lambda c: c.add("Transpose", perm=[0, 2, 3, 1]).add("Reshape", [2, 12, 3, 4]), "batch or space do not keep"),
        (lambda c: c.add("Slice", [1], [4], [3]), "batch or space change their size"),
        (lambda c: c.add("Reshape", [2, 12, 12, 1]), "batch or space change their size"),
        (lambda c: c.add("Reshape", [2, 12, 1, 12]), "batch or space change their size"),
        (lambda c: c.add("Transpose", perm=[1, 0, 2, 3]).add("Reshape", [12, 1, 6, 4]), "batch or space change"),
        (lambda c: c.add("Gather", [0, 2, 1], axis=2), "it mixes spatial positions into channels"),
        (lambda c: c.add("Gather", [1, 0], axis=0), "it mixes the batch into channels"),
        (lambda c: c.add("Mul", np.arange(4.0)), "per position, not per channel"),
        (lambda c: c.add("Add", np.arange(2.0).reshape(2, 1, 1, 1)), "per position, not per channel"),
        (lambda c: c.add("Reshape", [2, 12, 4, 3]), "batch or space do not keep one axis each"),
    ],
)
def test_what_moves_batch_or_space_is_declined(build: Build, reason: str) -> None:
    chain = Chain(WIDE)
    build(chain)
    with pytest.raises(Declined, match=reason):
        prove(assert_followed(chain), WIDE)


def test_a_sum_that_depends_on_the_position_is_declined() -> None:
    index = np.arange(8, dtype=np.int32).reshape(1, 4, 2, 1).copy()
    index[0, 2:, 1, 0] = index[0, [3, 2], 1, 0]  # at position 1, channels 2 and 3 are swapped
    with pytest.raises(Declined, match="which channels it sums depends on the position"):
        prove(State(index), (1, 4, 2))


@pytest.mark.parametrize(
    ("wide", "shape", "axes", "dropped"),
    [
        ((2, 8, 1, 5), (2, 8, 5), ("n", "c", 1), (0,)),
        ((2, 8, 1, 5), (2, 2, 4, 5), ("n", "c", "c", 1), (0,)),
        ((2, 8, 1, 5), (2, 8, 1, 5), ("n", "c", 0, 1), ()),
        ((2, 8, 1, 1), (2, 8), ("n", "c"), (0, 1)),
        ((2, 8, 1, 1), (2, 8, 1), ("n", "c", 0), (1,)),
        ((1, 8, 3, 5), (8, 3, 5), ("c", 0, 1), ("n",)),
        ((1, 8, 1, 5), (8, 5), ("c", 1), ("n", 0)),
        ((1, 8, 1, 1), (8, 1), ("c", 0), ("n", 1)),  # of several readings, one that needs no Transpose
        ((1, 8, 1, 1), (1, 8), ("n", "c"), (0, 1)),
        ((1, 8, 1, 1), (8,), ("c",), ("n", 0, 1)),
    ],
)
def test_axes_of_size_one_for_every_input_may_be_absent(
    wide: tuple[int, ...], shape: tuple[int, ...], axes: tuple[str | int, ...], dropped: tuple[str | int, ...]
) -> None:
    state = State(np.arange(np.prod(wide), dtype=np.int32).reshape(*shape, 1))
    layout, mixing = prove(state, wide, [size if size == 1 else None for size in wide])
    assert (layout.axes, layout.dropped) == (axes, dropped)
    assert mixing.index.tolist() == [[channel] for channel in range(8)]
    if dropped:
        with pytest.raises(Declined, match="is dropped, and other inputs may give it another size"):
            prove(state, wide)


def test_of_two_axes_of_size_one_the_one_that_may_grow_is_kept() -> None:
    state = State(np.arange(16, dtype=np.int32).reshape(2, 8, 1, 1))
    assert prove(state, (2, 8, 1, 1), (None, 8, 1, None))[0] == Layout(("n", "c", 1), (8,), (0,))
    assert prove(state, (2, 8, 1, 1), (None, 8, None, 1))[0] == Layout(("n", "c", 0), (8,), (1,))


def test_a_size_of_one_elsewhere_than_where_it_was_looked_at_is_not_believed() -> None:
    state = State(np.arange(240, dtype=np.int32).reshape(2, 8, 15, 1))
    with pytest.raises(Declined, match="axis 2 of its output, a spatial axis of size 3, has none of its own"):
        prove(state, (2, 8, 3, 5), (None, 8, 1, None))


def test_axes_of_size_one_take_the_roles_that_are_left() -> None:
    def layout(shape: Sequence[int], wide: tuple[int, ...]) -> tuple[str | int, ...]:
        return read_layout(State(np.arange(np.prod(shape), dtype=np.int32).reshape(*shape, 1)), wide).axes

    assert layout((1, 6, 1), (1, 6, 1)) == ("n", "c", 0)
    assert layout((1, 3, 2, 1), (1, 6, 1)) == ("n", "c", "c", 0)
    assert layout((1, 1, 6, 1), (1, 6, 1)) == ("n", 0, "c", "c")
