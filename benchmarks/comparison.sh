#!/usr/bin/env bash
# Methods compared, one folder of docs/comparison/ each; then the tables of docs/comparison.md. Stops and goes on: what is finished is not done again.
#   benchmarks/comparison.sh                 fashion-mnist watch vowel mix-all: about two hours on two cores
#   benchmarks/comparison.sh cifar10         150 rounds, the methods that matter most: about 2.5 hours a seed; `floco report runs/cifar10` shows what is finished
# Needs data/fashion-mnist.npz, watch.npz, vowel.npz, cifar10.npz, and Chromium for the pictures.
set -euo pipefail
cd "$(dirname "$0")/.."
all=floco,floco+,fedavg,fedavg+ft,local,fedprox,scaffold,ditto,pfedme,apfl,fedper,fedrep,fedrod,superfed
compare() { # name, methods, seeds, configuration, settings
  if [ -e "runs/$1/comparison.json" ]; then floco resume "runs/$1"; else floco compare "$4" -a "$2" --seeds "$3" --out "runs/$1" "${@:5}"; fi
  floco report "runs/$1"
  mkdir -p "docs/comparison/$1"
  cp "runs/$1/"{methods,runs,pairs,history,clients,report-landscape}.csv "docs/comparison/$1/"
  python benchmarks/pictures.py "runs/$1/report.html" "docs/comparison/$1"
}
every() { echo -s "run.evaluate_every=$1" -s "run.checkpoint_every=$1"; }
[ $# -gt 0 ] || set -- fashion-mnist watch vowel mix-all
for one in "$@"; do
  case $one in
    fashion-mnist) compare "$one" $all 3 benchmarks/fashion-mnist.toml ;;
    watch) compare "$one" $all 3 configs/watch.toml -s training.rounds=40 $(every 10) ;;
    vowel) compare "$one" $all 3 configs/vowel.toml -s training.rounds=60 $(every 10) ;;
    mix-all) compare "$one" floco,fedavg 2 benchmarks/fashion-mnist.toml -s algorithm.mix=all -s training.rounds=60 -s algorithm.assign_at=30 ;;
    cifar10) compare "$one" floco,fedavg,fedavg+ft,floco+,ditto 3 configs/cifar10-folds.toml -s training.rounds=150 -s algorithm.assign_at=75 $(every 5) ;;
    *) echo "there is no $one" >&2 && exit 2 ;;
  esac
done
python benchmarks/tables.py
