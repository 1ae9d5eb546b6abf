"""Data-parallel training: the same on one, two and eight (virtual) devices."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import fit_run
from fit_compiles import compiled

def mesh(n, *names):
    shape = (n,) if len(names) < 2 else (n // 2, 2)
    return Mesh(np.array(jax.devices()[:n]).reshape(shape), names)

def run(folder=None, **options):
    params, info = fit_run.run(folder, **{"batch_size": 8, "epochs": 3, **options})
    return params, [r.get("loss", 0.0) for r in info.history], info

one, losses, _ = run()
ways = {
    "two": mesh(2, "data"),
    "eight": mesh(8, "data"),
    "explicit": jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,)),
    "both axes": mesh(8, "a", "b"),
    "one axis": NamedSharding(mesh(8, "a", "b"), P("b")),
    "scan": mesh(4, "data"),
}
for name, sharding in ways.items():
    scan = 3 if name == "scan" else 1
    got, other, _ = run(sharding=sharding, scan=scan, evaluate=None, patience=None)
    want, _, _ = run(evaluate=None, patience=None)
    gap = max(np.abs(got[k] - want[k]).max() for k in ("a", "b", "seen"))
    print(name.replace(" ", "_"), gap, np.abs(np.subtract(other, losses)).max())
    devices = len(getattr(sharding, "mesh", sharding).devices.flat)
    assert len(got["a"].sharding.device_set) == devices
    assert got["a"].sharding.is_fully_replicated
def again(epochs):
    return lambda: run(sharding=ways["two"], epochs=epochs)
again(1)()  # meets small programs that are kept
assert compiled(again(1)) == compiled(again(3)) == 1
# The saboteur: a batch that is not divided the same is another run.
other, _, _ = run(sharding=ways["two"], batch_size=16, evaluate=None, patience=None)
assert np.abs(other["a"] - want["a"]).max() > 1e-4

# Begun on eight, gone on with on one, ended on two.
from pathlib import Path
folder = Path(sys.argv[2])
for epochs, sharding in ((1, ways["eight"]), (2, None), (3, ways["two"])):
    got, other, info = run(folder, epochs=epochs, sharding=sharding)
    assert info.resumed_from == epochs - 1
print("resumed", max(np.abs(got[k] - one[k]).max() for k in ("a", "b", "seen")), 0)

for batch, sharding in ((12, ways["eight"]), (9, ways["one axis"])):
    try:
        run(batch_size=batch, sharding=sharding)
    except ValueError as error:
        assert f"a batch of {batch} does not divide evenly" in str(error), error
    else:
        raise SystemExit("a batch that does not divide was taken")
"""


def test_the_same_on_one_two_and_eight_devices(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == 7
    for name, gap, loss in found:
        assert float(gap) <= 1e-5 and float(loss) <= 1e-5, (name, gap, loss)
