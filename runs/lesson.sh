#!/usr/bin/env bash
# The lesson: when does RLVR help? Text games where a share of the transitions is uncertain.
# A cell is a share and a training seed, half an hour of one core:
#   bash runs/lesson.sh 0.5 0
#   bash runs/lesson.sh 0.5 0 short        stage 1 ends early
#   bash runs/lesson.sh 0.5 0 small        stage 1 sees little data often, and memorises it
# A cell leaves its table in out/lesson-<cell>-results. docs/lesson.md has what came out.
set -euo pipefail
cd "$(dirname "$0")/.."
chance=${1:-0.5}
seed=${2:-0}
kind=${3:-long}
world=lesson-$chance
run=lesson-$chance-$kind-$seed
instances=900
steps=1600
[ "$kind" = short ] && steps=300
if [ "$kind" = small ]; then
    instances=40
    world=$world-small
fi
on="--world=$world --seed=$seed --threads=1"
judged="--eval_records=1500"

# 40,000 transitions; every validation and test record tells all that could have happened. 120
# games for each. A minute.
python data/textgame/prepare.py --chance="$chance" --out="$world" --instances=$instances \
    --held_out=120

# Stage 1: no transition is seen more than three times (small: sixty times). Seven minutes.
python train_mle.py $on $judged --name="$run-mle" --steps=$steps --eval_every=$((steps / 2))

# Stage 2, on the metric that is judged, and on the softer one. Five minutes each.
python train_rlvr.py $on $judged --name="$run-rlvr" --init_from="$run-mle" \
    --reward=strict_binary --steps=80 --eval_every=20
python train_rlvr.py $on $judged --name="$run-rlvr-task" --init_from="$run-mle" \
    --reward=strict_task --steps=80 --eval_every=20

# RLVR's rival: likelihood goes on for at least RLVR's work. Four minutes each.
for more in "1 0.01" "2 0.002"; do
    set -- $more
    python train_mle.py $on $judged --name="$run-more-$1" --init_from="$run-mle" \
        --steps=650 --eval_every=325 --lr="$2"
done

# The table: 2,000 transitions of 120 test games. Three minutes.
python evaluate.py $on --name="$run-results" --records=2000 --val_records=1000 \
    --select_by=strict_binary --mle="$run-mle" --more="$run-more-1,$run-more-2" \
    --rlvr="$run-rlvr,$run-rlvr-task" --each
