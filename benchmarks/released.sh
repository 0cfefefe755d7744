#!/usr/bin/env bash
# The authors' 500 rounds on CIFAR-10 in the released setting (its sampler, raw scores in the assignment in round 250, share 0.84), seed 0, in bfloat16 (precision.sh says what that costs).
# Their published curves are in benchmarks/results/released/published.csv; released.py compares. Run again, it goes on where it was stopped.
#   benchmarks/released.sh                                   all six: folds and dirichlet with fedavg, floco and floco+
#   benchmarks/released.sh folds-floco dirichlet-fedavg      some of them
# An hour and a half a run on one core with bf16 units (twice that for floco+). Needs data/cifar10.npz.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- {folds,dirichlet}-{fedavg,floco,floco+}
for one in "$@"; do
  split=${one%%-*} method=${one#*-} out=runs/released/$one
  case $split in
    folds) given=(configs/cifar10-folds-released.toml) ;;
    dirichlet) given=(configs/cifar10-dirichlet.toml) ;;
    *) echo "there is no $one" >&2 && exit 2 ;;
  esac
  given+=(-s algorithm.name="$method" -s training.precision=bf16 -s run.evaluate_every=5 -s run.checkpoint_every=5)
  [ "$method" = fedavg ] || given+=(-s algorithm.sampler=released -s algorithm.normalize=false)
  [ "$one" != folds-floco+ ] || given+=(-s algorithm.radius=0.3)
  if [ -e "$out" ]; then
    floco resume "$out"
  else
    floco run "${given[@]}" --out "$out" ${SETTINGS:-}
  fi
  mkdir -p benchmarks/results/released
  cp "$out/history.csv" "benchmarks/results/released/$one.csv"
done
