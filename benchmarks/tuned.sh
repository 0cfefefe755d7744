#!/usr/bin/env bash
# Every method tuned by itself, with six trials on a quarter that is cut from each client's training part, for each seed; then the tables of docs/comparison. Two comparisons for each suite, as
# settings of the task are the same for all methods of a comparison: Floco as published and the others, and with the label prior Floco in the recommended setting, FedAvg and FedAvg+FT.
# Stops and goes on: what is finished is not done again.
#   benchmarks/tuned.sh                                  all suites: rotated confused iid vowel watch fashion-mnist
#   benchmarks/tuned.sh rotated-10 each unequal          others that few_samples.py makes; -10: with 10 training samples a client instead of 40
#   SEEDS=1 SETTINGS='-s training.rounds=2' benchmarks/tuned.sh rotated    other numbers of seeds, or settings
# Needs data/fashion-mnist.npz, vowel.npz and watch.npz. Seven trainings for each method and seed (benchmarks/README.md says how long they take).
set -euo pipefail
cd "$(dirname "$0")/.."
source benchmarks/suite.sh
compare() { # folder, configuration and settings
  if [ -e "$1/comparison.json" ]; then
    floco resume "$1"
  else
    floco compare "${@:2}" --seeds "${SEEDS:-3}" --tune --out "$1" ${SETTINGS:-}
  fi
}
[ $# -gt 0 ] || set -- rotated confused iid vowel watch fashion-mnist
for one in "$@"; do
  suite "$one"
  out=runs/tuned-$one docs=docs/comparison/tuned-$one own=(-s own-prior.centers=own -s own-prior.step=middle)
  [ "$one" != fashion-mnist ] || own+=(-s own-prior.assign_at=1) # its assign_at is Floco's as published
  compare "$out-prior" "${given[@]}" -a own-prior=floco,fedavg-prior=fedavg,ft-prior=fedavg+ft -s task.prior=client "${own[@]}"
  compare "$out" "${given[@]}" -a floco,fedavg,fedavg+ft,lp-ft,ditto,fedrod,ifca,fedmerge,local
  python benchmarks/join.py --rows "$docs" "$out-prior" "$out"
  python -c "import pandas as pd, sys; pd.concat(map(pd.read_csv, sys.argv[2:])).to_csv(sys.argv[1], index=False)" "$docs/tuning.csv" "$out-prior/tuning.csv" "$out/tuning.csv"
done
python benchmarks/tables.py
