"""Data larger than what a run may hold in memory: a federation on 10 GB of images in an npz file.

    python benchmarks/large.py [--gigabytes 10] [--folder DIR]

Writes the file (random images, once), trains two rounds of 20 clients, and prints the largest private memory of the run
with all its workers, beside that of the same run on a hundredth of the samples a client: what mapped data cost.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RUN = """
import sys, floco
federation = floco.load("npz:" + sys.argv[1]).split(floco.Natural(), samples=int(sys.argv[2]) or None, seed=0)
model = floco.model("cnn", federation)
run = floco.fit(model, federation, floco.Floco(endpoints=3), rounds=2, fraction=0.2, lr=0.05, batch_size=64,
                evaluate_every=2, out=sys.argv[3])
print(run.history["accuracy_personal"].iloc[-1])
"""
CLIENTS, SHAPE = 20, (64, 64, 3)


def write(path: Path, gigabytes: float) -> None:
    """Write images, labels and clients in blocks; a label sets the brightness."""
    n = int(gigabytes * 1e9 / (4 * np.prod(SHAPE)))
    n -= n % CLIENTS
    labels = np.random.default_rng(0).integers(0, 5, n)
    mapped = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.float32, (n, *SHAPE))
    for start in range(0, n, 2048):
        part = labels[start : start + 2048]
        noise = np.random.default_rng(start).standard_normal((len(part), *SHAPE), np.float32)
        mapped[start : start + 2048] = noise + part[:, None, None, None]
    mapped.flush()
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(path.with_suffix(".npy"), "x.npy")
        for name, column in (("y", labels), ("client", np.repeat(np.arange(CLIENTS), n // CLIENTS))):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, column)
    path.with_suffix(".npy").unlink()


def private(pid: int) -> int:
    """Return the private memory of a process and its children, in bytes: pages of mapped files do not count."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(private(int(child)) for child in (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        pass
    return total


def measure(path: Path, samples: int, out: str) -> dict[str, float]:
    """Return the seconds and the largest private memory of a run."""
    begun, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, "-c", RUN, str(path), str(samples), out]) as process:
        while process.poll() is None:
            peak = max(peak, private(process.pid))
            time.sleep(0.05)
    assert process.returncode == 0
    return {"seconds": round(time.perf_counter() - begun, 1), "peak_gb": round(peak / 1e9, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "large.npz"
        write(path, given.gigabytes)
        size = path.stat().st_size / 1e9
        few = measure(path, 50, f"{folder}/few")
        whole = measure(path, 0, f"{folder}/whole")
    print(json.dumps({"file_gb": round(size, 2), "50 samples a client": few, "all samples": whole}, indent=1))


if __name__ == "__main__":
    main()
