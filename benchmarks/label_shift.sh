#!/usr/bin/env bash
# Other frequencies of the same labels. Nothing is tuned. Stops and goes on; one comparison each for a seed, as settings
# of the task and of the training are the same for all methods of a comparison.
#   benchmarks/label_shift.sh 0 1 2         seeds of Fashion-MNIST, 5-Fold; half an hour each on one core
#   benchmarks/label_shift.sh cifar10       CIFAR-10, 5-Fold, 150 rounds, M = 10, seed 0; 40 minutes a run on one core
#   benchmarks/label_shift.sh dirichlet     CIFAR-10, Dirichlet(0.3), 100 rounds, M = 10, seed 0; 20 minutes a run
# Fashion-MNIST is the workload of fashion-mnist.toml, whose assign_at is Floco's as published: Floco in the recommended
# setting, without the label prior, and as published; FedAvg and FedAvg+FT, without and with the prior; and FedAvg whose
# head has the step of a random mixture, 2 / (M + 1): the control of the claim that a simplex trains faster. On CIFAR-10
# it is Floco in the recommended setting, the same without the prior, and FedAvg with it, beside the methods of
# docs/comparison/cifar10 (comparison.sh cifar10); on its Dirichlet split all but the control.
# Needs data/fashion-mnist.npz or data/cifar10.npz.
set -euo pipefail
cd "$(dirname "$0")/.."
recommended() { echo -s "$1.centers=own" -s "$1.step=middle" -s "$1.assign_at=1"; }
compare() { # folder, methods, settings
  if [ -e "runs/$1/comparison.json" ]; then floco resume "runs/$1"; else floco compare "${suite[@]}" -a "$2" --seeds 1 --out "runs/$1" "${@:3}"; fi
  made+=("runs/$1")
}
made=() prior="-s task.prior=client"
[ $# -gt 0 ] || set -- 0 1 2
if [ "$1" = cifar10 ]; then
  suite=(configs/cifar10-folds.toml -s algorithm.assign_at=75 -s training.rounds=150 -s run.evaluate_every=5 -s run.checkpoint_every=5)
  compare cifar10-prior own-prior=floco,fedavg-prior=fedavg $prior $(recommended own-prior) ${SETTINGS:-}
  compare cifar10-own own=floco $(recommended own) ${SETTINGS:-}
  python benchmarks/join.py --rows docs/comparison/cifar10-own "${made[@]}" docs/comparison/cifar10
elif [ "$1" = dirichlet ]; then
  suite=(configs/cifar10-dirichlet.toml -s data.split.alpha=0.3 -s algorithm.assign_at=50 -s training.rounds=100 -s run.evaluate_every=5 -s run.checkpoint_every=5)
  compare dirichlet-prior own-prior=floco,fedavg-prior=fedavg,ft-prior=fedavg+ft $prior $(recommended own-prior) ${SETTINGS:-}
  compare dirichlet-plain floco,fedavg,fedavg+ft,local ${SETTINGS:-}
  python benchmarks/join.py --rows docs/comparison/dirichlet "${made[@]}"
else
  for seed in "$@"; do
    suite=(benchmarks/fashion-mnist.toml -s "seed=$seed")
    compare "label-shift-own-prior-seed$seed" own-prior=floco $prior $(recommended own-prior) ${SETTINGS:-}
    compare "label-shift-own-seed$seed" own=floco $(recommended own) ${SETTINGS:-}
    compare "label-shift-plain-seed$seed" floco,fedavg,fedavg+ft ${SETTINGS:-}
    compare "label-shift-prior-seed$seed" fedavg-prior=fedavg,ft-prior=fedavg+ft $prior ${SETTINGS:-}
    compare "label-shift-control-seed$seed" control=fedavg -s training.head_lr=0.00909 ${SETTINGS:-}
  done
  python benchmarks/join.py --rows docs/comparison/label-shift "${made[@]}" docs/comparison/label-shift # other seeds
fi
python benchmarks/tables.py
