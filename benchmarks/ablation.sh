#!/usr/bin/env bash
# What each part of Floco's recommended setting does, one after the other, on each suite; then the tables of docs/comparison/ablation.md. Nothing is tuned. Stops and goes on.
#   benchmarks/ablation.sh                                       all suites: vowel watch rotated confused iid fashion-mnist
#   SEEDS=1 benchmarks/ablation.sh rotated
#   paper      Floco as published
#   step       and step = "middle"
#   own        and centers = "own", endpoints averaged by samples
#   weighted   and average = "mixtures"
#   checked    and check_at as it is if nothing is said: the recommended setting without the label prior, whose rows prior.sh adds afterwards
#   finetuned  and deliver.model = "finetuned"
# Needs data/vowel.npz, watch.npz and fashion-mnist.npz.
set -euo pipefail
cd "$(dirname "$0")/.."
source benchmarks/suite.sh
variants=paper=floco,step=floco,own=floco,weighted=floco,checked=floco,finetuned=floco,fedavg,fedavg+ft
settings=()
for name in step own weighted checked finetuned; do settings+=(-s "$name.step=middle"); done
for name in own weighted checked finetuned; do settings+=(-s "$name.centers=own"); done
for name in own weighted; do settings+=(-s "$name.check_at=never"); done
settings+=(-s own.average=samples -s finetuned.deliver.model=finetuned)
compare() { # suite, configuration, settings
  out=runs/ablation-$1
  if [ -e "$out/comparison.json" ]; then floco resume "$out"; else floco compare "$2" -a "$variants" --seeds "${SEEDS:-3}" --out "$out" "${settings[@]}" "${@:3}" ${SETTINGS:-}; fi
  mkdir -p "docs/comparison/ablation-$1"
  cp "$out/"{methods,runs,pairs,history,clients}.csv "docs/comparison/ablation-$1/"
}
[ $# -gt 0 ] || set -- vowel watch rotated confused iid fashion-mnist
for one in "$@"; do
  suite "$one"
  more=()
  # its assign_at is Floco's as published
  [ "$one" != fashion-mnist ] || more=(-s own.assign_at=1 -s weighted.assign_at=1 -s checked.assign_at=1 -s finetuned.assign_at=1)
  compare "$one" "${given[@]}" "${more[@]}"
done
python benchmarks/tables.py
