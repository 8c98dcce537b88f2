#!/usr/bin/env bash
# Robot video, seven frames from one, the true actions put in: 1,000 episodes, 64 tokens for a
# context frame and 16 for a later one, a 1.4M model. Two and a half hours on two CPU cores; on one
# GPU minutes, with --prompts_per_step=64 --micro_batch_size=64 --num_minibatches=4 in stage 2.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${1:-0}
run=robot_multi$([ "$seed" = 0 ] || echo "-seed$seed")

# 1,000 training episodes of 16 frames. Half a minute.
python data/robot/prepare.py --out=robot-large --episodes=1000 --val=0.04 --test=0.06

# The tokenizer of whole frames and of what changes in later ones. Half an hour; 30.7 dB.
python tokenizer_vq.py --world=robot-large-multi --dynamics=16 --lr=1e-3 --steps=27000

# Stage 1, maximum likelihood; it converges in minutes.
python train_mle.py --world=robot-large-multi --seed="$seed" --name="$run-mle" --batch_size=32 \
    --steps=500 --eval_every=50

# Stage 2: each frame's tokens answer for the frames from it on; the rate falls to 0.
python train_rlvr.py --world=robot-large-multi --seed="$seed" --name="$run-rlvr" \
    --init_from="$run-mle" --prompts_per_step=16 --group_size=16 --steps=216 \
    --supervision=process --decay=0.7 --eval_temperature=1 \
    --reward=mae+0.5*ssim+0.1*repetition

# Then at T = 0.3, where answers do repeat frames and the penalty has something to teach.
python train_rlvr.py --world=robot-large-multi --seed="$seed" --name="$run-rlvr-cool" \
    --init_from="$run-rlvr" --prompts_per_step=16 --group_size=16 --steps=67 \
    --supervision=process --decay=0.7 --lr=1e-4 --temperature=0.3 --eval_every=20 \
    --reward=mae+0.5*ssim+0.1*repetition

# RLVR's rival: likelihood goes on for at least RLVR's work.
for more in "1 0.01" "2 0.002"; do
    set -- $more
    python train_mle.py --world=robot-large-multi --seed="$seed" --name="$run-mle-more-$1" \
        --init_from="$run-mle" --batch_size=32 --steps=2400 --eval_every=200 --lr="$2"
done

# Strips and films of predictions, and the table.
python sample.py --world=robot-large-multi --mle="$run-mle" --rlvr="$run-rlvr-cool"
python evaluate.py --world=robot-large-multi --name="$run-results" --best_of=0 --each \
    --mle="$run-mle" --rlvr="$run-rlvr,$run-rlvr-cool" \
    --more="$run-mle-more-1,$run-mle-more-2"
