#!/usr/bin/env bash
# Other frequencies of the same labels: Fashion-MNIST, 5-Fold, the workload of fashion-mnist.toml, whose assign_at is
# Floco's as published. Floco in the recommended setting and as published, FedAvg and FedAvg+FT; with the label prior;
# and FedAvg whose head has the step of a random mixture, 2 / (M + 1): the control of the claim that a simplex trains
# faster. Nothing is tuned. Stops and goes on; one comparison each for a seed, as settings of the task and of the
# training are the same for all methods of a comparison.
#   benchmarks/label_shift.sh 0 1 2         seeds; half an hour each on one core
# Needs data/fashion-mnist.npz.
set -euo pipefail
cd "$(dirname "$0")/.."
recommended() { echo -s "$1.centers=own" -s "$1.step=middle" -s "$1.assign_at=1"; }
compare() { # part, methods, settings
  out=runs/label-shift-$1-seed$seed
  if [ -e "$out/comparison.json" ]; then
    floco resume "$out"
  else
    floco compare benchmarks/fashion-mnist.toml -a "$2" --seeds 1 -s "seed=$seed" --out "$out" "${@:3}"
  fi
  made+=("$out")
}
made=()
[ $# -gt 0 ] || set -- 0 1 2
for seed in "$@"; do
  compare own own=floco $(recommended own) ${SETTINGS:-}
  compare plain floco,fedavg,fedavg+ft ${SETTINGS:-}
  compare own-prior own-prior=floco -s task.prior=client $(recommended own-prior) ${SETTINGS:-}
  compare prior fedavg-prior=fedavg,ft-prior=fedavg+ft -s task.prior=client ${SETTINGS:-}
  compare control control=fedavg -s training.head_lr=0.00909 ${SETTINGS:-}
done
python benchmarks/join.py --rows docs/comparison/label-shift "${made[@]}"
python benchmarks/tables.py
