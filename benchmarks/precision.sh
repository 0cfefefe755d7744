#!/usr/bin/env bash
# Does bfloat16 cost accuracy? CIFAR-10 5-Fold, Floco assigned in round 13, 25 rounds, three seeds, float32 and bf16.
# Twenty minutes on two cores; writes results/precision.csv. Needs data/cifar10.npz, as configs/cifar10-folds.toml.
set -euo pipefail
out=${1:-runs/precision}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
for seed in 0 1 2; do
  for precision in float32 bf16; do
    [ -e "$out/$precision-$seed" ] || floco run "$here/../configs/cifar10-folds.toml" -s seed=$seed -s training.precision=$precision \
      -s training.rounds=25 -s algorithm.assign_at=13 -s run.evaluate_every=25 --out "$out/$precision-$seed"
  done
done
python - "$out" > "$here/results/precision.csv" <<'PY'
import sys
from pathlib import Path
import pandas as pd

tables = {p.name: pd.read_csv(p / "history.csv").iloc[-1] for p in sorted(Path(sys.argv[1]).iterdir())}
print("precision,seed,accuracy_global,accuracy_personal")
for name, row in tables.items():
    precision, _, seed = name.partition("-")
    print(f"{precision},{seed},{row['accuracy_global']:.4f},{row['accuracy_personal']:.4f}")
PY
cat "$here/results/precision.csv"
