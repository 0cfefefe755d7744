# Sourced by ablation.sh, tuned.sh and prior.sh. `suite NAME` sets `given`, the configuration and settings of a suite: vowel, watch, fashion-mnist, or a variant that few_samples.py makes,
# such as rotated, or rotated-10 with 10 training samples a client instead of 40.
suite() {
  case $1 in
    vowel) given=(configs/vowel.toml -s training.rounds=60 -s run.evaluate_every=10 -s run.checkpoint_every=10) ;;
    watch) given=(configs/watch.toml -s training.rounds=40 -s run.evaluate_every=5 -s run.checkpoint_every=10) ;;
    fashion-mnist) given=(benchmarks/fashion-mnist.toml) ;;
    rotated* | confused* | each* | unequal* | iid*)
      local variant=${1%-*} train=40
      [ "$variant" = "$1" ] || train=${1##*-}
      [ -e "data/few-$variant.npz" ] || python benchmarks/few_samples.py "$variant"
      # 40 test samples, whatever the training part
      given=(configs/rotated.toml -s "data.source=npz:data/few-$variant.npz" -s "data.samples=$((train + 40))" -s "data.test_share=$(python -c "print(40 / ($train + 40))")")
      ;;
    *) echo "there is no $1" >&2 && exit 2 ;;
  esac
}
