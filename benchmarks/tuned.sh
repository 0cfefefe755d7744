#!/usr/bin/env bash
# Every method tuned by itself, with six trials on a quarter that is cut from each client's training part, for each seed: Floco in the recommended setting without the label
# prior (`own`) and as published against the others; then the tables of docs/comparison. Stops and goes on: what is finished is not done again.
#   benchmarks/tuned.sh                                  all suites: rotated confused iid vowel watch fashion-mnist
#   benchmarks/tuned.sh rotated-10 each unequal          others that few_samples.py makes; -10: with 10 training samples a client instead of 40
#   METHODS=own=floco,fedavg SEEDS=1 SETTINGS='-s training.rounds=2' benchmarks/tuned.sh rotated    a part of it, or other settings
# Needs data/fashion-mnist.npz, vowel.npz and watch.npz. Seven trainings for each method and seed (benchmarks/README.md says how long they take).
set -euo pipefail
cd "$(dirname "$0")/.."
source benchmarks/suite.sh
methods=${METHODS:-own=floco,floco,fedavg,fedavg+ft,lp-ft,ditto,fedrod,ifca,fedmerge,local}
own=()
[[ ,$methods != *,own=* ]] || own=(-s own.centers=own -s own.step=middle)
compare() { # suite, configuration, settings
  out=runs/tuned-$1
  if [ -e "$out/comparison.json" ]; then
    floco resume "$out"
  else
    floco compare "$2" -a "$methods" --seeds "${SEEDS:-3}" --tune --out "$out" "${own[@]}" "${@:3}" ${SETTINGS:-}
  fi
  floco report "$out"
  mkdir -p "docs/comparison/tuned-$1"
  cp "$out/"{methods,runs,pairs,history,clients,tuning}.csv "docs/comparison/tuned-$1/"
}
[ $# -gt 0 ] || set -- rotated confused iid vowel watch fashion-mnist
for one in "$@"; do
  suite "$one"
  more=()
  [[ $one != fashion-mnist || ${#own[@]} -eq 0 ]] || more=(-s own.assign_at=1) # its assign_at is Floco's as published
  compare "$one" "${given[@]}" "${more[@]}"
done
python benchmarks/tables.py
