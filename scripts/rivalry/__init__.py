"""cutjax beside Torch-Pruning on published CIFAR-10 networks; run by `scripts/rivals`.

`protocol`, `images` and `theirs` know no JAX: they also run where PyTorch is.
"""
