"""Which tensors of two models belong together, whatever they are called: both models with one set of names.

Tools rename tensors, leave copies out, and compute repeated nodes once.  Tensors that are the same value by
construction (see `numbering`) get one name.  What is left keeps a name that both models have, or is named after the
node of the original that does the same to the same: such names are no claim, they say where regions may meet, and
whether what meets there is the same is for the other levels to show.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import onnx

from rewriter.constants import constant, is_constant
from rewriter.equivalence.fused import functions
from rewriter.equivalence.numbering import Numbers, copied
from rewriter.equivalence.operators import operator_attributes
from rewriter.model import VALUE_INFO, Edit, Model

Trust = Literal["names", "values", "wiring", "nothing"]
"""What decides where a name and a value of the original are two tensors of the second model: the name, or the value.

With "wiring" the value does, and tensors of which neither is known are named after what nodes alike make; with
"nothing" all names stay as they are.
"""
Fits = Callable[[str, str], bool]
_MOST_CANDIDATES: Final = 64


@dataclass(frozen=True, eq=False)
class Named:
    """One of the models under the common names: nodes at their own positions, copies of outputs behind them."""

    model: Model
    names: dict[str, str]
    """The common name of every run-time tensor, by its own."""
    spare: frozenset[int]
    """Nodes that make what another one makes: nothing reads them."""

    @property
    def renamed(self) -> int:
        """How many tensors have another name."""
        return sum(own != name for own, name in self.names.items())


def named_alike(
    before: Model,
    after: Model,
    keep: Collection[str] = (),
    trusts: Sequence[Trust] = ("names",),
    fits: Fits = lambda _, __: True,
) -> list[tuple[Named, Named]]:
    """Both models under common names, once for each kind of trust that leads to others than those before it.

    Tensors of the second that `keep` lists keep their names; `fits` says whether two tensors, by their own names, are
    of one shape as far as that is known: others are not the same, whatever their names.  Where subgraphs read tensors
    from outside, the models stay as they are.
    """
    plain = Named(before, {}, frozenset()), Named(after, {}, frozenset())
    if before is after or any(model.wiring.captured for model in (before, after)):
        return [plain]
    numbers = Numbers.of(before, after)
    first = _settled(before, numbers.before)
    old = _rewritten(before, first)
    found: list[tuple[Named, Named]] = []
    known: list[_Names] = []
    for trust in trusts:
        if trust == "nothing":
            changed = not found or (old.model, found[0][1].model) != (before, after)
            found += [plain] if changed else []
            continue
        names = _Naming(old, after, numbers, frozenset(keep), trust, fits).run()
        if names not in known:
            known.append(names)
            found.append((old, _rewritten(after, names)))
    return found


@dataclass(frozen=True)
class _Names:
    """New names: `reads` of what nodes read, `makes` of what they make, tensors that become copies of another."""

    reads: dict[str, str]
    makes: dict[str, str]
    copies: dict[str, str]
    """Graph outputs by name, and the tensor that each is a copy of."""
    spare: frozenset[int]


def _runtime(model: Model) -> list[int]:
    return [
        index
        for index, node in enumerate(model.nodes)
        if not all(is_constant(model, name) for name in node.output if name)
    ]


def _inputs(model: Model) -> list[str]:
    return [value.name for value in model.skeleton.graph.input if not is_constant(model, value.name)]


def _settled(model: Model, numbers: dict[str, int]) -> _Names:
    """Each value under the name of the first tensor that holds it."""
    first = {numbers[name]: name for name in reversed(_inputs(model))}
    outputs = {value.name for value in model.outputs}
    reads: dict[str, str] = {}
    makes: dict[str, str] = {}
    copies: dict[str, str] = {}
    spare: set[int] = set()
    for index in _runtime(model):
        made = [name for name in model.nodes[index].output if name]
        for name in made:
            if is_constant(model, name):
                continue
            reads[name] = first.setdefault(numbers[name], name)
            makes[name] = name
            if name in outputs and reads[name] != name and len(made) == 1:
                copies[name] = reads[name]
        if all(name in reads and reads[name] != name and name not in outputs for name in made):
            spare.add(index)
    return _Names(reads, makes, copies, frozenset(spare))


class _Naming:
    """Finds the names of the second model's tensors."""

    def __init__(
        self, old: Named, after: Model, numbers: Numbers, keep: frozenset[str], trust: Trust, fits: Fits
    ) -> None:
        self.old, self.after, self.numbers, self.keep, self.fits = old, after, numbers, keep, fits
        self.trust = trust
        before = old.model
        self.made = {
            name for index in _runtime(before) if index not in old.spare for name in before.nodes[index].output if name
        }
        self.by_number: dict[int, str] = {}
        for name, common in old.names.items():
            self.by_number.setdefault(numbers.before[name], common)
        for name in _inputs(before):
            self.by_number[numbers.before[name]] = name
        self.outputs = {value.name for value in after.outputs}
        own = [name for index in _runtime(after) for name in after.nodes[index].output if name]
        self.theirs = set(own)
        if trust == "names":
            for number, name in list(self.by_number.items()):
                if name in self.theirs and numbers.after[name] != number:
                    del self.by_number[number]  # there it is the name of another value, which it is compared with
        self.claimed = {self.by_number[n] for name in own if (n := numbers.after.get(name)) in self.by_number}
        # What constants and inputs are called is not free, and outputs keep their names.
        self.taken = {*after.headers, *_inputs(after), *self.outputs}
        self.taken |= {name for node in after.nodes for name in node.output if is_constant(after, name)}
        self.used: set[str] = set()
        self.waiting = self._waiting() if trust == "wiring" else {}

    def _waiting(self) -> dict[Hashable, list[int]]:
        """Nodes of the original whose outputs no tensor of the second model is named after yet."""
        before, found = self.old.model, dict[Hashable, list[int]]()
        for index in _runtime(before):
            made = [name for name in before.nodes[index].output if name]
            if index in self.old.spare or any(name in self.claimed | self.theirs for name in made):
                continue
            found.setdefault(_resembling(before, before.nodes[index], {}), []).append(index)
        return found

    def run(self) -> _Names:
        """The names; every node is looked at once, in graph order."""
        after = self.after
        holder = {self.numbers.after[name]: name for name in _inputs(after)}
        reads: dict[str, str] = {}
        makes: dict[str, str] = {}
        copies: dict[str, str] = {}
        spare: set[int] = set()
        for index in _runtime(after):
            node = after.nodes[index]
            made = [name for name in node.output if name]
            again = all(self.numbers.after[name] in holder for name in made if not is_constant(after, name))
            chosen = {} if again else self._chosen(node, made, reads)
            for name in made:
                if is_constant(after, name):
                    continue
                number = self.numbers.after[name]
                if number in holder:
                    reads[name] = holder[number]
                    makes[name] = self._spare_name(name)
                    if name in self.outputs and holder[number] != name:
                        copies[name] = holder[number]
                    continue
                reads[name] = makes[name] = holder[number] = chosen[name]
                if name in self.outputs and chosen[name] != name:
                    copies[name] = chosen[name]
            if again and not self.outputs.intersection(made):
                spare.add(index)
        return _Names(reads, makes, copies, frozenset(spare))

    def _chosen(self, node: onnx.NodeProto, made: list[str], reads: dict[str, str]) -> dict[str, str]:
        """The names of what one node makes."""
        named: dict[str, str] = {}
        alike = self._alike(node, reads) if all(self._is_new(name) for name in made) else None
        for place, name in enumerate(node.output):
            if not name:
                continue
            number = self.numbers.after.get(name, -1)
            wanted = self.by_number.get(number)
            if name in self.keep:
                wanted = name
            elif wanted is None and alike is not None:
                wanted = alike[place]
            elif wanted is None and (name in self.outputs or self._is_kept(name)):
                wanted = name
            named[name] = self._use(name, wanted, number)
        return named

    def _is_kept(self, name: str) -> bool:
        """Whether a tensor of no known value may be what has its name in the original."""
        trusted = self.trust == "names" or self.fits(name, name)
        return trusted and name in self.made and name not in self.claimed

    def _is_new(self, name: str) -> bool:
        """Whether nothing is known of a tensor, neither its value nor its name."""
        known = self.numbers.after.get(name, -1) in self.by_number or name in self.outputs or name in self.keep
        return not known and name not in self.made

    def _alike(self, node: onnx.NodeProto, reads: dict[str, str]) -> list[str] | None:
        """The outputs of the node of the original that does the same to the same, its constants aside."""
        before = self.old.model
        if not self.waiting:
            return None
        found = self.waiting.get(_resembling(self.after, node, reads), [])[:_MOST_CANDIDATES]
        for index in found:
            outputs = list(before.nodes[index].output)
            pairs = zip(outputs, node.output, strict=False)
            if set(outputs) & self.used or len(outputs) != len(node.output):
                continue
            if all(self.fits(one, other) for one, other in pairs if one and other):
                return outputs
        return None

    def _use(self, own: str, wanted: str | None, number: int) -> str:
        """The name wanted, if it is free; else the tensor's own or one like it."""
        name = own if wanted is None else wanted
        # An output's name is that of its value only.
        mine = name == own or name not in self.taken
        mine = mine or (name in self.outputs and self.numbers.after.get(name) == number)
        if wanted is None:
            mine = own not in self.claimed | self.made | self.old.names.keys()
        if not mine or name in self.used:
            return self._spare_name(own)
        self.used.add(name)
        return name

    def _spare_name(self, own: str) -> str:
        """A name that no tensor of either model has."""
        number = 0
        known = self.used | self.taken | self.made | self.claimed | self.theirs | self.old.names.keys()
        while (name := f"{own} ({number})") in known:
            number += 1
        self.used.add(name)
        return name


def _resembling(model: Model, node: onnx.NodeProto, reads: dict[str, str]) -> Hashable:
    """Equal for nodes that apply one operator to the same tensors, and constants of one shape."""
    operands: list[Hashable] = []
    for name in node.input:
        value = constant(model, name) if name and is_constant(model, name) else None
        operands.append(reads.get(name, name) if value is None else (str(value.dtype), value.shape))
    attributes = tuple(operator_attributes(node, model))
    return node.domain, node.op_type, attributes, tuple(operands), len(node.output)


def _rewritten(model: Model, names: _Names) -> Named:
    """The model with these names; what its nodes compute is the same."""
    own = functions(model)
    changed: dict[int, tuple[onnx.NodeProto, ...]] = {}
    behind: list[onnx.NodeProto] = []
    for index, node in enumerate(model.nodes):
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for place, name in enumerate(node.input):
            new.input[place] = names.reads.get(name, name)
        for place, name in enumerate(node.output):
            new.output[place] = names.makes.get(name, name)
        mine = [name for name in node.output if name in names.copies]
        if mine and len(node.output) == 1 and names.makes[mine[0]] != names.copies[mine[0]]:
            is_copy = copied(model, node, own) and new.input[0] == names.copies[mine[0]]
            new = onnx.NodeProto() if not is_copy else new
            new = onnx.helper.make_node("Identity", [names.copies[mine[0]]], mine) if not is_copy else new
            new.output[0] = mine[0]
        else:
            behind += [onnx.helper.make_node("Identity", [names.copies[name]], [name]) for name in mine]
        if new != node:
            changed[index] = (new,)
    if not changed and not behind:
        return Named(model, {**names.reads}, names.spare)
    edit = Edit(frozenset(changed), {**changed, len(model.nodes): tuple(behind)})
    return Named(_without_types(model.splice(edit), names), {**names.reads}, names.spare)


def _without_types(model: Model, names: _Names) -> Model:
    """Without what is declared of tensors that have another tensor's name now."""
    new: Iterable[str] = {name for own, name in names.makes.items() if name != own}
    kept = [
        piece
        for piece in model.pieces
        if piece.number != VALUE_INFO or onnx.ValueInfoProto.FromString(bytes(piece.body)).name not in new
    ]
    return model if len(kept) == len(model.pieces) else replace(model, pieces=tuple(kept))
