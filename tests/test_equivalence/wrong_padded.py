"""Wrong paddings and permutations of channels, and wrong joins of activations, as kinds: those of padded_pairs.py."""

from __future__ import annotations

from test_equivalence.padded_pairs import WRONG
from test_equivalence.wrong_cases import register

WHAT = {
    "a padded channel is read": "A channel that was added has weights of its own, and the next convolution reads it.",
    "a padded channel is read, a little": "The same with a weight of 1e-30, below all rounding.",
    "the last Conv reads other channels": "Channels are permuted; the next convolution reads them in the old order.",
    "biases stay where channels move": "Channels are permuted, and their biases are not.",
    "twins with other biases are swapped": "Two channels of equal weights are swapped, whose biases differ.",
    "twins off by a bit are swapped": "Two channels are swapped that differ in one bias by one unit in the last place.",
    "a channel is lost": "One channel between two convolutions is left out.",
    "a channel is lost that is seldom live": "The same of a channel that a Relu makes zero for all but huge inputs.",
    "slopes of PRelu stay": "Channels are permuted, and the slopes of the PRelu behind are not.",
    "constants of BatchNormalization stay": "Channels are permuted, and the constants of a normalization are not.",
    "gates of other channels": "Channels are permuted, and the gates of squeeze-and-excitation are not.",
    "two gates swapped beside padding": "Two gates are swapped in a network whose channels are padded.",
    "two channels swapped in the squeeze": "Two channels are swapped in what the gates are computed from.",
    "Softmax over padding": "A Softmax over the channels takes the added ones in.",
    "Softmax over padding far below": "The same with the added channels so low that they are lost in rounding.",
    "LRN over padding": "A normalization over neighbouring channels takes the added ones in.",
    "padding divided by zero": "An added channel is 0 / 0, and the convolution behind multiplies it by zero.",
    "padding divided by what is zero somewhere": "The same with a divisor that is zero for inputs far away.",
    "1 / 0 in padding": "An added channel is 1 / 0, and the convolution behind multiplies it by zero.",
    "1 / 0 in padding somewhere": "The same with a divisor that is zero for inputs far away, in front of constants.",
    "a root of less than 0 in padding": "An added channel is the root of -1, and is multiplied by zero.",
    "a root of less than 0 in padding somewhere": "The same of a number that is negative for inputs far away.",
    "infinity in padding": "An added channel is infinite, and is multiplied by zero.",
    "NaN in padding": "An added channel is NaN, and is multiplied by zero.",
    "one piece without its Relu": "A convolution and its Relu are split into two, and one of them loses its Relu.",
    "one piece without its Relu, rarely seen": "The same where no input that is tried makes the Relu bite.",
    "pieces end elsewhere": "Two joined branches, one with a Relu, meet at another channel; no input tried shows it.",
    "pieces in another order": "A convolution is split into two, and they are joined in the wrong order.",
    "activations of pieces swapped": "Two joined branches exchange their activations.",
}
UNSEEN = {
    "a padded channel is read, a little",
    "twins off by a bit are swapped",
    "a channel is lost that is seldom live",
    "Softmax over padding far below",
    "padding divided by what is zero somewhere",
    "1 / 0 in padding somewhere",
    "a root of less than 0 in padding somewhere",
    "one piece without its Relu, rarely seen",
    "pieces end elsewhere",
}
"""Wrong by less than rounding, or for inputs that no run meets: no run shows it, so nothing may prove the opposite."""
_AT_ONCE = {"pieces in another order"}

for name, make in WRONG.items():
    register(name, "" if name in UNSEEN else "L1" if name in _AT_ONCE else "L3", WHAT[name], make)
