"""The dictionary of specimen nets: small, named, and with answers known by hand."""

from . import (
    attention,
    control,
    conv,
    decoders,
    encoders,
    experts,
    frameworks,
    fusion,
    known_failures,
    links,
    made,
    norm,
    plain,
    sequence,
    several,
    vision,
)
from .base import NETS, Kept, Net, path_of

__all__ = [
    "NETS",
    "Kept",
    "Net",
    "attention",
    "control",
    "conv",
    "decoders",
    "encoders",
    "experts",
    "frameworks",
    "fusion",
    "known_failures",
    "links",
    "made",
    "norm",
    "path_of",
    "plain",
    "sequence",
    "several",
    "vision",
]
