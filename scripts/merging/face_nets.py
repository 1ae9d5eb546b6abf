"""Both published networks, and the faces: see scripts/faces."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import cutjax as cj
from cutjax.merge import Network
from cutjax.models import eval_apply, train_apply
from cutjax.models.keras import from_keras, read_hdf5
from cutjax.models.mini_xception import MiniXception

WEIGHTS = Path(__file__).parents[3] / "shared/data/weights/face_classification"
NETWORKS = {
    "emotion": (7, "fer2013_mini_XCEPTION.102-0.66.hdf5"),
    "gender": (2, "gender_mini_XCEPTION.21-0.95.hdf5"),
}
WHEEL = "scikit-image==0.26.0"
INSIDE = "skimage/data/lfw_subset.npy"
FACES, CHUNK = 100, 10
"""The first 100 of its images are faces; a batch is ten of them, each mirrored too."""


class Faces(NamedTuple):
    """Both networks, their functions in train mode, and images."""

    networks: dict[str, Network]
    trains: dict[str, Network]
    calibration: list[np.ndarray]
    held: np.ndarray


def images(folder: Path) -> np.ndarray:
    """The faces, `[n, 64, 64, 1]` from -1 to 1; the wheel is fetched the first time."""
    if not (wheels := list(folder.glob("scikit_image-*.whl"))):
        call = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        call += ["--only-binary", ":all:", "--dest", str(folder), WHEEL]
        _ = subprocess.run(call, check=True)
        wheels = list(folder.glob("scikit_image-*.whl"))
    with zipfile.ZipFile(wheels[0]) as wheel:
        small = np.load(io.BytesIO(wheel.read(INSIDE)), allow_pickle=False)[:FACES]
    large = jax.image.resize(small.astype(np.float32), (FACES, 64, 64), "bilinear")
    return np.asarray(2 * (large - 0.5))[..., None]


def pair(faces: np.ndarray, fold: int) -> Faces:
    """Both networks; every second face calibrates, the others are held out."""
    nets, trains = {}, {}
    for name, (classes, file) in NETWORKS.items():
        model = MiniXception(name, classes)
        params = from_keras(model, read_hdf5(WEIGHTS / file), faces[:1])
        graph = cj.trace(eval_apply(model), params, faces[:1])
        nets[name] = Network(eval_apply(model), params, graph)
        trains[name] = Network(train_apply(model), params, graph)
    chosen = faces[fold::2]
    chunks = [chosen[i : i + CHUNK] for i in range(0, len(chosen), CHUNK)]
    calibration = [np.concatenate([chunk, chunk[:, :, ::-1]]) for chunk in chunks]
    return Faces(nets, trains, calibration, faces[1 - fold :: 2])
