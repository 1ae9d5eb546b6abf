"""Keeping what the model knew: compensation, statistics, distillation, adapters."""

from cutjax.recover import balance as balance, report as report
from cutjax.recover.adapters import adapters as adapters, fold as fold, opened as opened
from cutjax.recover.compensate import compensate as compensate
from cutjax.recover.features import features as features
from cutjax.recover.finetune import (
    distillation as distillation,
    finetune as finetune,
    frozen as frozen,
    teach as teach,
)
from cutjax.recover.gradual import gradually as gradually
from cutjax.recover.recalibrate import recalibrate as recalibrate
from cutjax.recover.repair import repair as repair
from cutjax.recover.rotate import leading as leading, rotate as rotate
from cutjax.recover.settle import settle as settle
