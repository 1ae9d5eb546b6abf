"""The dictionary of specimen nets: small, named, and with answers known by hand."""

from . import attention, control, conv, links, norm, plain
from .base import NETS, Kept, Net, path_of

__all__ = [
    "NETS",
    "Kept",
    "Net",
    "attention",
    "control",
    "conv",
    "links",
    "norm",
    "path_of",
    "plain",
]
