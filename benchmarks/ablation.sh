#!/usr/bin/env bash
# What each part of Floco's recommended setting does, one after the other, on each suite; then the tables of docs/comparison/ablation.md. Nothing is tuned. Stops and goes on.
#   benchmarks/ablation.sh                                       all suites: vowel watch rotated confused iid fashion-mnist
#   SEEDS=1 benchmarks/ablation.sh rotated
#   paper      Floco as published
#   step       and step = "middle"
#   own        and centers = "own", endpoints averaged by samples
#   weighted   and average = "mixtures"
#   checked    and check_at as it is if nothing is said: the recommended setting without the label prior, which prior.sh adds
#   finetuned  and deliver.model = "finetuned"
# Needs data/vowel.npz, watch.npz and fashion-mnist.npz.
set -euo pipefail
cd "$(dirname "$0")/.."
variants=paper=floco,step=floco,own=floco,weighted=floco,checked=floco,finetuned=floco,fedavg,fedavg+ft
settings=()
for name in step own weighted checked finetuned; do settings+=(-s "$name.step=middle"); done
for name in own weighted checked finetuned; do settings+=(-s "$name.centers=own"); done
for name in own weighted; do settings+=(-s "$name.check_at=never"); done
settings+=(-s own.average=samples -s finetuned.deliver.model=finetuned)
compare() { # suite, configuration, settings
  out=runs/ablation-$1
  if [ -e "$out/comparison.json" ]; then floco resume "$out"; else floco compare "$2" -a "$variants" --seeds "${SEEDS:-3}" --out "$out" "${settings[@]}" "${@:3}"; fi
  mkdir -p "docs/comparison/ablation-$1"
  cp "$out/"{methods,runs,pairs,history,clients}.csv "docs/comparison/ablation-$1/"
}
[ $# -gt 0 ] || set -- vowel watch rotated confused iid fashion-mnist
for one in "$@"; do
  case $one in
    vowel) compare vowel configs/vowel.toml -s training.rounds=60 -s run.evaluate_every=10 -s run.checkpoint_every=10 ;;
    watch) compare watch configs/watch.toml -s training.rounds=40 -s run.evaluate_every=10 -s run.checkpoint_every=10 ;;
    fashion-mnist) # its assign_at is Floco's as published
      compare fashion-mnist benchmarks/fashion-mnist.toml -s own.assign_at=1 -s weighted.assign_at=1 -s checked.assign_at=1 -s finetuned.assign_at=1
      ;;
    rotated | confused | iid)
      [ -e "data/few-$one.npz" ] || python benchmarks/few_samples.py "$one"
      compare "$one" configs/rotated.toml -s "data.source=npz:data/few-$one.npz"
      ;;
    *) echo "there is no $one" >&2 && exit 2 ;;
  esac
done
python benchmarks/tables.py
