"""Reference multi-task models; nothing in them knows about pruning."""

from cutjax.models.resnet import MultiTaskResNet, eval_apply, init, train_apply

__all__ = ["MultiTaskResNet", "eval_apply", "init", "train_apply"]
