#!/usr/bin/env bash
# Text games, the default demo: eight kinds of procedural household games, a 0.9M model. In half of
# the games chance has a part. A quarter of an hour on two quiet CPU cores.
#   SMOKE=1 bash runs/textgame.sh          shows in seconds that it all works
#   bash runs/textgame.sh 1                another training seed; `make seeds` averages three
#   CHANCE=0 bash runs/textgame.sh         nothing is uncertain: what is left for RLVR to give?
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${1:-0}
world=textgame${CHANCE:+-$CHANCE}
run=$world$([ "$seed" = 0 ] || echo "-seed$seed")

# 25,000 transitions of 500 games, 40 other games each for validation and test. Half a minute.
python data/textgame/prepare.py --chance="${CHANCE:-0.5}" --out="$world"

# Stage 1, maximum likelihood: no transition is seen more than five times. Four minutes.
python train_mle.py --world="$world" --seed="$seed" --name="$run-mle"

# Stage 2, GRPO on the strict reward of decoded answers. One minute; the reward rises.
python train_rlvr.py --world="$world" --seed="$seed" --name="$run-rlvr" --init_from="$run-mle"

# RLVR's rival: likelihood goes on for at least RLVR's work, at two rates. One minute each.
for more in "1 0.01" "2 0.002"; do
    set -- $more
    python train_mle.py --world="$world" --seed="$seed" --name="$run-mle-more-$1" \
        --init_from="$run-mle" --steps=300 --lr="$2"
done

# A few predictions to read, and the table.
python sample.py --world="$world" --mle="$run-mle" --rlvr="$run-rlvr"
python evaluate.py --world="$world" --name="$run-results" --mle="$run-mle" --rlvr="$run-rlvr" \
    --more="$run-mle-more-1,$run-mle-more-2"
