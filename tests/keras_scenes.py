"""Small Keras files of mini-XCEPTION, and an oracle in numpy that reads such files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

STEM, WIDTHS, CLASSES = 3, (4, 6), 5
BLOCKS = range(1, len(WIDTHS) + 1)

Arrays = dict[str, np.ndarray]


def arrays(seed: int = 0) -> Arrays:
    """Weights of the small net, by the names in the published files."""
    draw, out = np.random.default_rng(seed), {}

    def put(name: str, *shape: int) -> None:
        out[name] = draw.normal(size=shape) / np.prod(shape[:3]) ** 0.5

    def norm(number: int, n: int) -> None:
        layer = f"batch_normalization_{number}"
        for kind in ("gamma", "moving_variance"):
            out[f"{layer}/{kind}"] = draw.uniform(0.5, 1.5, n)
        for kind in ("beta", "moving_mean"):
            out[f"{layer}/{kind}"] = draw.normal(size=n) / 5

    for i, n in ((1, 1), (2, STEM)):
        put(f"conv2d_{i}/kernel", 3, 3, n, STEM)
        norm(i, STEM)
    last = STEM
    for i, width in zip(BLOCKS, WIDTHS, strict=True):
        for j, n in ((2 * i - 1, last), (2 * i, width)):
            out[f"separable_conv2d_{j}/depthwise_kernel"] = draw.normal(
                size=(3, 3, n, 1)
            )
            put(f"separable_conv2d_{j}/pointwise_kernel", 1, 1, n, width)
        put(f"conv2d_{i + 2}/kernel", 1, 1, last, width)
        for j in range(3):
            norm(3 * i + j, width)
        last = width
    put(f"conv2d_{len(WIDTHS) + 3}/kernel", 3, 3, last, CLASSES)
    put(f"conv2d_{len(WIDTHS) + 3}/bias", CLASSES)
    return {name: value.astype(np.float32) for name, value in out.items()}


def layers() -> list[dict[str, Any]]:
    """The small net as Keras writes it, after the published `model_config`."""
    found: list[dict[str, Any]] = []

    def add(kind: str, name: str, *given: str, **config: Any) -> str:
        nodes = [[[one, 0, 0, {}] for one in given]] if given else []
        found.append(
            dict(class_name=kind, name=name, config=config, inbound_nodes=nodes)
        )
        return name

    def conv(x: str, number: int, padding: str, stride: int, bias: bool = False) -> str:
        config = dict(padding=padding, strides=[stride, stride], use_bias=bias)
        return add("Conv2D", f"conv2d_{number}", x, **config)

    def norm(x: str, number: int) -> str:
        name = f"batch_normalization_{number}"
        return add("BatchNormalization", name, x, epsilon=1e-3)

    def relu(x: str) -> str:
        return add("Activation", f"relu_{len(found)}", x, activation="relu")

    def separable(x: str, number: int) -> str:
        config = dict(padding="same", strides=[1, 1], use_bias=False)
        return add("SeparableConv2D", f"separable_conv2d_{number}", x, **config)

    x = add("InputLayer", "input_1")
    for i in (1, 2):
        x = relu(norm(conv(x, i, "valid", 1), i))
    for i in BLOCKS:
        y = relu(norm(separable(x, 2 * i - 1), 3 * i + 1))
        y = norm(separable(y, 2 * i), 3 * i + 2)
        config = dict(padding="same", strides=[2, 2], pool_size=[3, 3])
        y = add("MaxPooling2D", f"max_pooling2d_{i}", y, **config)
        x = add("Add", f"add_{i}", y, norm(conv(x, i + 2, "same", 2), 3 * i))
    x = conv(x, len(WIDTHS) + 3, "same", 1, bias=True)
    x = add("GlobalAveragePooling2D", "average", x)
    _ = add("Activation", "predictions", x, activation="softmax")
    return found


def written(path: Path, weights: Arrays, *, only: bool = False) -> Path:
    """A file as Keras 2 writes it, of the model or of its weights only."""
    with h5py.File(path, "w") as file:
        group = file if only else file.create_group("model_weights")
        names = [layer["name"] for layer in layers()]
        names += sorted({key.split("/")[0] for key in weights} - set(names))
        group.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            held = {k: v for k, v in weights.items() if k.startswith(f"{name}/")}
            layer = group.create_group(name)
            # Like the published one, with a name of its own for the graph's scope.
            full = {f"{name}_1/{key.split('/')[-1]}:0": v for key, v in held.items()}
            layer.attrs["weight_names"] = [key.encode() for key in full]
            for key, value in full.items():
                layer[key] = value
        if not only:
            config = {"class_name": "Model", "config": {"layers": layers()}}
            file.attrs["model_config"] = json.dumps(config).encode()
    return path


# The oracle: an interpreter of `model_config` in numpy, float64. ---------------------


def windows(x: np.ndarray, size: Any, config: dict, fill: float) -> np.ndarray:
    """`[n, h, w, c, kh, kw]`, padded as TensorFlow documents "same" and "valid"."""
    pads = []
    for n, k, s in zip(x.shape[1:3], size, config["strides"], strict=True):
        whole = max((-(-n // s) - 1) * s + k - n, 0)
        pads.append((whole // 2, whole - whole // 2))
    if config["padding"] == "same":
        x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, tuple(size), (1, 2))
    return view[:, :: config["strides"][0], :: config["strides"][1]]


def alone(x: np.ndarray, kernel: np.ndarray, config: dict) -> np.ndarray:
    view = windows(x, kernel.shape[:2], config, 0)
    made = np.einsum("nhwcij,ijcm->nhwcm", view, kernel)
    return made.reshape(*made.shape[:3], -1)


def step(layer: dict, given: list[np.ndarray], w: Arrays) -> np.ndarray:
    """One layer."""
    config, x = layer["config"], given[0]
    match layer["class_name"]:
        case "Conv2D":
            view = windows(x, w["kernel"].shape[:2], config, 0)
            made = np.tensordot(view, w["kernel"], ((3, 4, 5), (2, 0, 1)))
            return made + w["bias"] if config["use_bias"] else made
        case "SeparableConv2D":
            return alone(x, w["depthwise_kernel"], config) @ w["pointwise_kernel"][0, 0]
        case "BatchNormalization":
            scale = w["gamma"] / np.sqrt(w["moving_variance"] + config["epsilon"])
            return (x - w["moving_mean"]) * scale + w["beta"]
        case "MaxPooling2D":
            return windows(x, config["pool_size"], config, -np.inf).max((4, 5))
        case "Add":
            return given[0] + given[1]
        case "GlobalAveragePooling2D":
            return x.mean((1, 2))
        case "Activation":
            # The logits are what is asked for.
            return x if config["activation"] == "softmax" else np.maximum(x, 0)
        case other:
            raise AssertionError(other)


def by_hand(path: Path, x: np.ndarray) -> np.ndarray:
    """What the file describes, read without cutjax."""
    values: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        for layer in json.loads(file.attrs["model_config"])["config"]["layers"]:
            name, held = layer["name"], {}
            group = file[f"model_weights/{name}"]
            for key in np.asarray(group.attrs["weight_names"], "S").tolist():
                short = key.decode().rpartition("/")[2].removesuffix(":0")
                held[short] = np.asarray(group[key.decode()], np.float64)
            given = [values[n[0]] for node in layer["inbound_nodes"] for n in node]
            values[name] = step(layer, given, held) if given else x.astype(np.float64)
    return values[name]
