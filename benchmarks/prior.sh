#!/usr/bin/env bash
# Floco in the recommended setting, FedAvg and FedAvg+FT with the label prior (task.prior = "client"), under three seeds, added to what is in docs/comparison of the same clients; then
# the tables. A comparison of its own for each suite, as settings of the task are the same for all methods of a comparison. Stops and goes on.
#   benchmarks/prior.sh          all of them: rotated confused iid each unequal rotated-10 rotated-20 rotated-100 vowel watch
#   SEEDS=1 SETTINGS='-s run.workers=1' benchmarks/prior.sh rotated    other numbers of seeds, or settings
# Fashion-MNIST's and CIFAR-10's folds are in label_shift.sh. Needs data/fashion-mnist.npz, vowel.npz and watch.npz.
set -euo pipefail
cd "$(dirname "$0")/.."
source benchmarks/suite.sh
compare() { # suite, folder in docs/comparison, configuration, settings
  out=runs/prior-$1
  if [ -e "$out/comparison.json" ]; then
    floco resume "$out"
  else
    floco compare "$3" -a own-prior=floco,fedavg-prior=fedavg,ft-prior=fedavg+ft --seeds "${SEEDS:-3}" --out "$out" -s task.prior=client \
      -s own-prior.centers=own -s own-prior.step=middle "${@:4}" ${SETTINGS:-}
  fi
  if [[ $2 == few-* ]]; then first=("$out" "docs/comparison/$2"); else first=("docs/comparison/$2" "$out"); fi # the first method is the one that others are tested against
  python benchmarks/join.py --rows "docs/comparison/$2" "${first[@]}"
}
[ $# -gt 0 ] || set -- rotated confused iid each unequal rotated-10 rotated-20 rotated-100 vowel watch
for one in "$@"; do
  suite "$one"
  case $one in
    fashion-mnist) echo "label_shift.sh makes its rows" >&2 && exit 2 ;;
    vowel | watch) compare "$one" "ablation-$one" "${given[@]}" ;;
    *) compare "$one" "few-$one" "${given[@]}" ;;
  esac
done
python benchmarks/tables.py
