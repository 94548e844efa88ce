"""The device that is timed on: its name, and its clocks before and after, which say whether milliseconds compare."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rewriter import nvidia
from rewriter.nvidia import Clocks
from rewriter.providers import PROVIDERS
from rewriter.session import Runtime

ReadClocks = Callable[[Runtime], Clocks | None]
"""The clocks of the device that a runtime runs on, now; None where they are not known."""

ClockPair = tuple[Clocks | None, Clocks | None]
"""Clocks right before the first timed block and right after the last."""

_FALL: Final = 0.05  # of the clock, from which on a time changes visibly
_STEADY: Final = frozenset({"idle", "clocks set by the user"})  # reasons for low clocks that disturb no measurement


def read_clocks(runtime: Runtime) -> Clocks | None:
    """The clocks of an NVIDIA device, as its driver tells them; None on any other, or where it is unclear which."""
    index, _ = _device(runtime)
    return None if index is None else nvidia.clocks(index)


def device_name(runtime: Runtime) -> str:
    """The name of an NVIDIA device; empty on any other, or where it is unclear which."""
    return _device(runtime)[1]


def driver_index(number: int, names: Sequence[str], environment: Mapping[str, str]) -> int | None:
    """The index in the driver's order, that of `names`, of CUDA's device `number`; None where that cannot be told.

    CUDA leaves out what CUDA_VISIBLE_DEVICES does not name, and puts the fastest device first unless
    CUDA_DEVICE_ORDER is PCI_BUS_ID; among equal devices both orders are the same.
    """
    if len(names) == 1:
        return 0
    if len(set(names)) > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return None
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    places = [str(index) for index in range(len(names))] if shown is None else shown.split(",")
    place = places[number].strip() if number < len(places) else ""
    return int(place) if place.isdecimal() and int(place) < len(names) else None  # or a UUID


def unsteadiness(clocks: ClockPair) -> str:
    """What was unsteady about the device, as a clause; empty where nothing was, or nothing is known."""
    known = [reading for reading in clocks if reading is not None]
    reasons = dict.fromkeys(why for reading in known for why in reading.slowed if why not in _STEADY)
    clauses = [f"it was throttled ({', '.join(reasons)})"] if reasons else []
    if len(known) == 2:
        before, after = known
        falls = (("SM", before.sm, after.sm), ("memory", before.memory, after.memory))
        clauses += [
            f"its {what} clock fell by {1 - last / first:.0%}"
            for what, first, last in falls
            if first and last is not None and last < (1 - _FALL) * first
        ]
    return " and ".join(clauses)


def _device(runtime: Runtime) -> tuple[int | None, str]:
    """The driver's index and the name of the NVIDIA device that is run on; (None, "") where there is none."""
    if PROVIDERS[runtime.provider].device != "cuda":
        return None, ""
    names = [device.name for device in nvidia.devices()]
    index = driver_index(runtime.device, names, os.environ)
    return index, "" if index is None else names[index]
