#!/usr/bin/env bash
# Robot video, one frame from two: a simulated table top in 64x64 pixels, 64 tokens a frame, a 1.0M
# model. Twenty minutes on two quiet CPU cores. bash runs/robot.sh 1: another training seed.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${1:-0}
run=robot$([ "$seed" = 0 ] || echo "-seed$seed")

# 500 training episodes of 16 frames. Ten seconds.
python data/robot/prepare.py

# The tokenizer, from scratch: what it loses is the floor of all that follows. PSNR reaches 30 dB.
python tokenizer_vq.py --world=robot --steps=6500

# Stage 1, maximum likelihood.
python train_mle.py --world=robot --seed="$seed" --name="$run-mle" --batch_size=32 --steps=450 \
    --eval_records=128

# Stage 2, GRPO on MAE and SSIM of decoded frames; validation does not rise further.
python train_rlvr.py --world=robot --seed="$seed" --name="$run-rlvr" --init_from="$run-mle" \
    --prompts_per_step=16 --group_size=16 --steps=40 --eval_records=128

# RLVR's rival: likelihood goes on for at least RLVR's work, at two rates.
for more in "1 0.01" "2 0.002"; do
    set -- $more
    python train_mle.py --world=robot --seed="$seed" --name="$run-mle-more-$1" \
        --init_from="$run-mle" --batch_size=32 --steps=420 --eval_records=128 --lr="$2"
done

# Strips and films of predictions, and the table.
python sample.py --world=robot --mle="$run-mle" --rlvr="$run-rlvr"
python evaluate.py --world=robot --name="$run-results" --mle="$run-mle" --rlvr="$run-rlvr" \
    --more="$run-mle-more-1,$run-mle-more-2"
