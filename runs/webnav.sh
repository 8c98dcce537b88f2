#!/usr/bin/env bash
# A web shop: pages as accessibility trees, some of their links unpredictable; a 0.9M model.
# Ten minutes on two CPU cores. bash runs/webnav.sh 1 does the same with another training seed.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${1:-0}
run=webnav$([ "$seed" = 0 ] || echo "-seed$seed")

# 240 visits to one shop, about 5,700 training transitions. Five seconds.
python data/webnav/prepare.py

# Stage 1, maximum likelihood. Two minutes; strict F1 on validation is still rising at the end.
python train_mle.py --world=webnav --seed="$seed" --name="$run-mle" --branches=4 --steps=500

# Stage 2, GRPO on strict F1: it learns to leave out what cannot be known. Two minutes.
python train_rlvr.py --world=webnav --seed="$seed" --name="$run-rlvr" --init_from="$run-mle" \
    --steps=45

# RLVR's rival: likelihood goes on for at least RLVR's work, at two rates.
for more in "1 0.01" "2 0.002"; do
    set -- $more
    python train_mle.py --world=webnav --seed="$seed" --name="$run-mle-more-$1" \
        --init_from="$run-mle" --branches=4 --steps=420 --lr="$2"
done

# A few predictions to read, and the table.
python sample.py --world=webnav --mle="$run-mle" --rlvr="$run-rlvr"
python evaluate.py --world=webnav --name="$run-results" --mle="$run-mle" --rlvr="$run-rlvr" \
    --more="$run-mle-more-1,$run-mle-more-2"
