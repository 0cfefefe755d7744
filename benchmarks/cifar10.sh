#!/usr/bin/env bash
# CIFAR-10, 5-Fold, shortened to 60 rounds with the assignment in round 30: does the released setting give the authors' curve, what do the
# personal models gain, and what does the assignment cost the global model? Seed 0. About 9 minutes a run on two cores; needs data/cifar10.npz.
# The history of each run is kept in benchmarks/results/cifar10/.
set -euo pipefail
cd "$(dirname "$0")/.."
out=runs/cifar10
short=(-s training.rounds=60 -s algorithm.assign_at=30 -s run.evaluate_every=1)
never=(-s training.rounds=60 -s algorithm.assign_at=never -s run.evaluate_every=5)
run() { floco run "configs/$1.toml" --out "$out/$2" "${@:3}" && cp "$out/$2/history.csv" "benchmarks/results/cifar10/$2.csv"; }
run cifar10-folds-released fedavg-released -s algorithm.name=fedavg -s training.rounds=25
run cifar10-folds-released floco-released "${short[@]}"
run cifar10-folds-released floco-released-exact-sampler "${short[@]}" -s algorithm.sampler=subregion
run cifar10-folds-released floco-released-never "${never[@]}"
run cifar10-folds floco "${short[@]}"
run cifar10-folds floco-never "${never[@]}"
