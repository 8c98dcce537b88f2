#!/usr/bin/env bash
# The paper's multi-step video: seven frames from one; 1,280 tokens for the context frame, 80 for a
# later one, 13 action numbers, 12 layers of 768 (127M). For a GPU. Synthetic episodes; for yours:
#   --source=episodes --path=DIR in the first command.
# LPIPS=DIR names the folder of the public VGG16 and LPIPS weights; without it SSIM stands in.
set -euo pipefail
cd "$(dirname "$0")/.."
lpips=${LPIPS:+--lpips_weights=$LPIPS}
reward=$([ -n "${LPIPS:-}" ] && echo mae+lpips || echo mae+0.5*ssim)

python data/robot/prepare.py --out=paper --episodes=16 --frames=12 --height=256 --width=320 \
    --action_size=13 --context=4 --horizon=7

# The tokenizer: L1 + L2 + LPIPS, 200,000 steps of 16 frames.
python tokenizer_vq.py --world=paper-multi --dynamics=32 --levels=7,5,5,5,5 --channels=64 \
    --depth=2 --lr=5e-4 --batch_size=16 --steps=200000 --eval_every=5000 \
    ${lpips:+$lpips --perceptual=1}

# Stage 1: 150,000 steps of 16 segments.
python train_mle.py --world=paper-multi --n_layer=12 --n_head=12 --n_kv_head=12 --n_embd=768 \
    --n_inner=3072 --tie=false --look_back=false --batch_size=16 --micro_batch_size=4 \
    --steps=150000 --warmup=1000 --eval_every=5000 --eval_records=16

# Stage 2: 150 steps of 128 prompts x 16 answers in four mini-batches; 36 s a step on an H200.
python train_rlvr.py --world=paper-multi --reward="$reward" $lpips --group_size=16 --lr=5e-5 \
    --warmup=1 --prompts_per_step=128 --num_minibatches=4 --micro_batch_size=4 \
    --rollout_batch_size=64 --steps=150 --eval_records=64

python evaluate.py --world=paper-multi $lpips
