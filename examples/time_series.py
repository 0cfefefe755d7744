"""Recordings of sensors: windows of each machine's recording, whose latest part is the test part."""

import numpy as np

import floco

# --8<-- [start:windows]
# A stand-in for your own recordings: one hour of three sensors at each of six machines, once a second.
rng = np.random.default_rng(0)
WIDTH, STEP = 60, 30  # samples of a window, and from one window to the next: they overlap
windows: dict[str, list[np.ndarray]] = {"x": [], "y": [], "client": [], "start": []}
for machine in range(6):
    state = np.repeat(rng.integers(0, 2, 12), 300)  # idle or busy, for five minutes each
    speed = 1 + 0.2 * machine  # machines differ
    phase = np.cumsum(np.where(state == 1, 0.6, 0.2) * speed)
    sensors = np.stack([np.sin(phase), np.cos(phase), 20 + 0.6 * state], axis=1)  # (times, sensors)
    sensors += 1.0 * rng.normal(size=sensors.shape)
    for start in range(0, len(sensors) - WIDTH + 1, STEP):
        windows["x"].append(sensors[start : start + WIDTH])
        windows["y"].append(np.array("busy" if state[start : start + WIDTH].mean() > 0.5 else "idle"))
        windows["client"].append(np.array(f"machine-{machine}"))
        windows["start"].append(np.array(start))
arrays = {name: np.stack(values) for name, values in windows.items()}
np.savez("recordings.npz", **arrays)
# --8<-- [end:windows]

# --8<-- [start:run]
samples = floco.load("npz:recordings.npz", channels="last")  # x is (windows, times, sensors)
federation = samples.split(floco.Natural(), order="start")  # a machine's latest windows are its test part
model = floco.model("cnn", federation)
run = floco.fit(model, federation, floco.Floco(endpoints=3), rounds=10, lr=0.05, fraction=1.0, seed=0)

print(run.clients[["client", "n_train", "n_test", "accuracy_global_local", "accuracy_personal"]])
# --8<-- [end:run]
