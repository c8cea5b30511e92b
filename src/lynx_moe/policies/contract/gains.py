"""How much more or less an expert's loss counts than another's, by calibration (E experts).

A gain g multiplies a row's weight share in `priced`: what an expert's loss does goes with (g * share)^2.
"""

from collections.abc import Mapping
from math import exp, log, log2

import torch
from torch import Tensor

FLOOR = 0.6
SPREAD = 4.0


def of_norms(norm_E: Tensor) -> Tensor:
    """float64 [E]: the root of an expert's mean output norm over the layer's root mean square, FLOOR at the least
    before the root. The root, because norms of single tokens vary about their mean; the floor, because a row whose
    favourite is small needs it all the same."""
    norm_E = norm_E.double()
    return (norm_E / norm_E.square().mean().sqrt().clamp(min=1e-20)).clamp(min=FLOOR).sqrt()


def of_sensitivities(layer: int, artifact: Mapping[int, Mapping[str, Tensor]]) -> tuple[Tensor, float]:
    """(float64 [E]: the fourth root of an expert's sensitivity over its layer's mean, within SPREAD before the root, so
    that what is taken for its loss goes with the root: few tokens tell of one expert; the share of a price that the
    layer asks: the layers' geometric mean over its own, to the nearest power of two, by which prices are multiplied
    without rounding)."""
    means = {number: of_layer(tensors) for number, tensors in artifact.items()}
    middle = exp(sum(map(log, means.values())) / len(means))
    own_E = artifact[layer]["sensitivity"].double() / means[layer]
    return own_E.clamp(1 / SPREAD, SPREAD).sqrt().sqrt(), 2.0 ** round(log2(middle / means[layer]))


def of_layer(tensors: Mapping[str, Tensor]) -> float:
    """A layer's sensitivity: the mean over its experts by their load."""
    load_E = tensors["load"].double()
    mean = (tensors["sensitivity"].double() * load_E).sum() / load_E.sum().clamp(min=1e-20)
    return float(torch.clamp(mean, min=1e-20))
