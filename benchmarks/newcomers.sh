#!/usr/bin/env bash
# Newcomers on Fashion-MNIST, 5-Fold, 100 clients, two of each fold held out, paired with a run in which they take part; three seeds.
# Then the points of the simplex at which a client's own model could lie, on all data sets (points.py). An hour and a half on two cores. Needs data/*.npz (README.md, "Your own data").
set -euo pipefail
cd "$(dirname "$0")/.."
train() { [ -e "$1/run.json" ] && floco resume "$1" || floco run "${@:2}" --out "$1"; }
every() { echo -s "run.evaluate_every=$1" -s "run.checkpoint_every=$1"; }
for seed in 0 1 2; do
  for held in 10 0; do
    train "runs/newcomers/seed$seed/$([ $held = 0 ] && echo with || echo without)" benchmarks/fashion-mnist.toml -s data.clients=100 -s data.held_out=$held -s training.fraction=0.2 -s seed=$seed
  done
  train "runs/points/digits-floco-s$seed" -s seed=$seed $(every 50)
  train "runs/points/digits-floco+-s$seed" -s algorithm.name=floco+ -s seed=$seed $(every 50)
  train "runs/points/watch-s$seed" configs/watch.toml -s training.rounds=40 -s seed=$seed $(every 20)
  train "runs/points/vowel-s$seed" configs/vowel.toml -s training.rounds=60 -s seed=$seed $(every 30)
  train "runs/points/fashion-mnist+-s$seed" benchmarks/fashion-mnist.toml -s algorithm.name=floco+ -s algorithm.assign_at=60 -s seed=$seed $(every 60)
  train "runs/points/cifar10-s$seed" configs/cifar10-folds.toml -s training.rounds=50 -s algorithm.assign_at=25 -s seed=$seed $(every 25)
  [ -e "runs/points/fashion-mnist-s$seed" ] || ln -s "../newcomers/seed$seed/with" "runs/points/fashion-mnist-s$seed"
done
python benchmarks/newcomers.py runs/newcomers/seed* -o benchmarks/results/newcomers.csv
python benchmarks/points.py runs/points/* -o benchmarks/results/points.csv
train runs/drift/fashion-mnist benchmarks/fashion-mnist.toml -s training.rounds=40 -s algorithm.assign_at=15 -s data.clients=50 $(every 20)
python benchmarks/drift.py runs/drift/fashion-mnist -o benchmarks/results/drift.csv
