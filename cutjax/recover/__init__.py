"""Keeping what the model knew: compensation, statistics, distillation."""

from cutjax.recover.compensate import compensate as compensate
from cutjax.recover.finetune import (
    distillation as distillation,
    finetune as finetune,
    teach as teach,
)
from cutjax.recover.gradual import gradually as gradually
from cutjax.recover.recalibrate import recalibrate as recalibrate
from cutjax.recover.repair import repair as repair
