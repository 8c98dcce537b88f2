#!/usr/bin/env bash
# Stage 2 of the paper on text: its group size, batch, rate and steps (its models of 1.5B and 7B
# were pretrained; this one is from random weights). For a GPU; the data as in bytesized32.sh, and
# WEBARENA=DIR, the files of huggingface.co/datasets/thuml/webarena-world-model-cot.
set -euo pipefail
cd "$(dirname "$0")/.."
games=${BYTESIZED32:?set BYTESIZED32 to the folder with train.jsonl and test.jsonl}
pages=${WEBARENA:?set WEBARENA to the file or folder of WebArena transitions}
paper="--group_size=5 --lr=1e-6 --warmup=1 --entropy_coef=1e-3 --algorithm=grpo_single_clip"

# text games: 128 prompts a step in two mini-batches, 300 steps
python data/textgame/prepare.py --source=bytesized32 --path="$games"
python train_mle.py --world=bytesized32 --n_embd=256 --n_head=4 --n_kv_head=4 --batch_size=128 \
    --branches=16 --micro_batch_size=4 --lr=0.005 --decay=0.9 --steps=4300 --eval_every=800
python train_rlvr.py --world=bytesized32 $paper --prompts_per_step=128 --num_minibatches=2 \
    --steps=300
python evaluate.py --world=bytesized32 --kinds

# web pages: 64 prompts a step in four mini-batches, 1,500 steps, on the official F1
python data/webnav/prepare.py --source=webarena --path="$pages"
python train_mle.py --world=webarena --n_embd=256 --n_head=4 --n_kv_head=4 --lr=0.005 --decay=0.9 \
    --steps=4300 --eval_every=800
python train_rlvr.py --world=webarena $paper --prompts_per_step=64 --num_minibatches=4 \
    --steps=1500 --reward=official_f1
python evaluate.py --world=webarena
