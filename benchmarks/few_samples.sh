#!/usr/bin/env bash
# Few samples, and clients that differ in more than their labels (few_samples.py says how); every method tuned, under three seeds. Stops and goes on: what is finished is not done again.
#   benchmarks/few_samples.sh                                      rotated confused each unequal iid, with 40 training samples a client
#   benchmarks/few_samples.sh rotated-10 rotated-20 rotated-100    with other numbers of them
#   METHODS=floco,fedavg SEEDS=1 SETTINGS='-s training.rounds=2' benchmarks/few_samples.sh rotated    a part of it, or other settings
# Needs data/fashion-mnist.npz. Seven trainings for each method and seed, six of them to tune (benchmarks/README.md says how long they take).
set -euo pipefail
cd "$(dirname "$0")/.."
methods=${METHODS:-floco,floco+,fedavg,fedavg+ft,lp-ft,local,ditto,apfl,fedrod,fedrep}
[ $# -gt 0 ] || set -- rotated confused each unequal iid
for one in "$@"; do
  variant=${one%-*} train=40 out=runs/few-$one
  [ "$variant" = "$one" ] || train=${one##*-}
  [ -e "data/few-$variant.npz" ] || python benchmarks/few_samples.py "$variant"
  if [ -e "$out/comparison.json" ]; then
    floco resume "$out"
  else # 40 test samples, whatever the training part
    floco compare configs/rotated.toml -a "$methods" --seeds "${SEEDS:-3}" --tune --out "$out" -s "data.source=npz:data/few-$variant.npz" \
      -s "data.samples=$((train + 40))" -s "data.test_share=$(python -c "print(40 / ($train + 40))")" ${SETTINGS:-}
  fi
  floco report "$out"
  mkdir -p "docs/comparison/few-$one"
  cp "$out/"{methods,runs,pairs,history,clients,tuning}.csv "docs/comparison/few-$one/"
done
python benchmarks/tables.py
