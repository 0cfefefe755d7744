#!/usr/bin/env bash
# All methods, three seeds, on Fashion-MNIST (the fixed workload), watch and vowel (natural clients); then docs/comparison/ from them.
# About 85 minutes on two cores for Fashion-MNIST, 15 for watch, 3 for vowel. Stops and goes on: what is finished is not done again.
# Needs data/fashion-mnist.npz, data/watch.npz and data/vowel.npz, and Chromium for the pictures.
set -euo pipefail
cd "$(dirname "$0")/.."
all=floco,floco+,fedavg,fedavg+ft,local,fedprox,scaffold,ditto,pfedme,apfl,fedper,fedrep,fedrod,superfed
compare() { # name, configuration, settings
  if [ -e "runs/$1/comparison.json" ]; then floco resume "runs/$1"; else floco compare "$2" -a "$all" --seeds 3 --out "runs/$1" "${@:3}"; fi
  floco report "runs/$1"
  mkdir -p "docs/comparison/$1"
  cp "runs/$1/"{methods,runs,pairs,history,clients,report-landscape}.csv "docs/comparison/$1/"
  python benchmarks/pictures.py "runs/$1/report.html" "docs/comparison/$1"
}
compare fashion-mnist benchmarks/fashion-mnist.toml
compare watch configs/watch.toml -s training.rounds=40 -s run.evaluate_every=10 -s run.checkpoint_every=10
compare vowel configs/vowel.toml -s training.rounds=60 -s run.evaluate_every=10 -s run.checkpoint_every=10
python benchmarks/tables.py
