#!/usr/bin/env bash
# ByteSized32, the official test set of 2,954 transitions; a 3.5M model from random weights. About
# an hour on one CPU core. The files are those of cognitiveailab/GPT-simulator, in one folder:
#   BYTESIZED32=DIR bash runs/bytesized32.sh
set -euo pipefail
cd "$(dirname "$0")/.."
files=${BYTESIZED32:?set BYTESIZED32 to the folder with train.jsonl and test.jsonl}
shape="--n_layer=4 --n_head=4 --n_kv_head=4 --n_embd=256"
data="--world=bytesized32 --changed_fraction=0.5 --kind_power=0.3 --permute_ids=0.7"

# The paper's split, over actions; --split=state and --split=game hold out whole states or games.
python data/textgame/prepare.py --source=bytesized32 --path="$files"

# Stage 1, maximum likelihood. Forty minutes; 82.6 % of test transitions are right.
python train_mle.py $data $shape --batch_size=128 --branches=16 --micro_batch_size=4 --lr=0.005 \
    --decay=0.9 --warmup=50 --steps=4300 --eval_every=800 --eval_records=899

# Stage 2: nine groups in ten have equal rewards by now, so there is little to compare.
python train_rlvr.py $data --lr=3e-5 --steps=60 --micro_batch_size=8 \
    --eval_every=20 --eval_records=899

# RLVR's rival: likelihood goes on for at least RLVR's work.
python train_mle.py $data --name=bytesized32-mle-more-1 --init_from=bytesized32-mle \
    --batch_size=128 --branches=16 --micro_batch_size=4 --lr=0.0005 --decay=0.9 --warmup=50 \
    --steps=400 --eval_every=200 --eval_records=899

# The table, and a line per game. The paper's best model, 7B and RLVR, has 65.5 (official_binary).
python evaluate.py --world=bytesized32 --kinds --best_of=0
