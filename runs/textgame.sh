#!/usr/bin/env bash
# Text games, the default demo: eight kinds of procedural household games, a 0.9M model.
# Ten minutes on two CPU cores. SMOKE=1 bash runs/textgame.sh shows in seconds that it all works.
# bash runs/textgame.sh 1 does the same with another training seed; `make seeds` averages three.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${1:-0}
run=textgame$([ "$seed" = 0 ] || echo "-seed$seed")

# 4,500 transitions; no test state occurs in training. Five seconds.
python data/textgame/prepare.py

# Stage 1, maximum likelihood. Two minutes; strict_task on validation reaches about 1.0.
python train_mle.py --seed="$seed" --name="$run-mle" --steps=800

# Stage 2, GRPO on the strict reward of decoded answers. Two minutes; the reward rises.
python train_rlvr.py --seed="$seed" --name="$run-rlvr" --init_from="$run-mle" --steps=80 \
    --group_size=8 --changed_fraction=0.6 --micro_batch_size=8 --eval_records=512

# RLVR's rival: likelihood goes on for at least RLVR's work, at two rates. Two minutes each.
for more in "1 0.01" "2 0.002"; do
    set -- $more
    python train_mle.py --seed="$seed" --name="$run-mle-more-$1" --init_from="$run-mle" \
        --steps=650 --lr="$2"
done

# A few predictions to read, and the table.
python sample.py --mle="$run-mle" --rlvr="$run-rlvr"
python evaluate.py --name="$run-results" --mle="$run-mle" --rlvr="$run-rlvr" \
    --more="$run-mle-more-1,$run-mle-more-2"
