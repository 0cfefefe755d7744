#!/usr/bin/env bash
# CIFAR-10, 5-Fold, 150 rounds, M = 10, one seed: Floco in the recommended setting, the same and FedAvg with the label
# prior, beside the methods of docs/comparison/cifar10 (comparison.sh cifar10). About 40 minutes a run on one core. Stops and goes on.
# Needs data/cifar10.npz.
set -euo pipefail
cd "$(dirname "$0")/.."
compare() { # part, methods, settings
  out=runs/cifar10-$1
  if [ -e "$out/comparison.json" ]; then
    floco resume "$out"
  else
    floco compare configs/cifar10-folds.toml -a "$2" --seeds 1 --out "$out" -s algorithm.assign_at=75 -s training.rounds=150 \
      -s run.evaluate_every=5 -s run.checkpoint_every=5 "${@:3}"
  fi
  made+=("$out")
}
recommended() { echo -s "$1.centers=own" -s "$1.step=middle" -s "$1.assign_at=1"; }
made=()
compare own own=floco $(recommended own)
compare prior own-prior=floco,fedavg-prior=fedavg -s task.prior=client $(recommended own-prior)
python benchmarks/join.py --rows docs/comparison/cifar10-own "${made[@]}" docs/comparison/cifar10
python benchmarks/tables.py
