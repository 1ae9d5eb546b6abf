"""Channels that nothing but means reads: members of an ensemble, averaged heads.

A mean that normalises leaves its channels to be read by others. Where there are no
others, the mean is all that a channel does.
"""

from collections.abc import Iterable

from cutjax.unify import Var, leaf_vars
from cutjax.walk import Frame, Site


def mark_alone(frames: Iterable[Frame]) -> None:
    """Note at the sites of means which of their channel axes only means read."""
    places = [(f, index, site) for f in frames for index, site in f.sites.items()]
    means = [place for place in places if _is_mean(place[2])]
    if not means:
        return
    others = (site for _, _, site in places if not _is_mean(site))
    heard = {v for site in others for v in _leaves(site)}
    for frame, index, site in means:
        alone = frozenset(_leaves(site) - heard)
        frame.sites[index] = site._replace(alone=alone)


def _is_mean(site: Site) -> bool:
    return site.summed is not None and site.summed.mean


def _leaves(site: Site) -> set[Var]:
    return {v for d in site.inner for v in leaf_vars(d)}
