#!/usr/bin/env bash
# From a pretrained language model: does RLVR give what likelihood for the same work does not?
# ByteSized32 by SmolLM2-135M, or any model that docs/pretrained.md names, from an early checkpoint
# of fine-tuning or a late one. A cell is a checkpoint and a training seed. By arithmetic, early is
# an hour and a half of one CPU core with AMX, late three hours; on a GPU minutes.
#   BYTESIZED32=DIR PRETRAINED=DIR bash runs/bytesized32_smollm2.sh early 0
set -euo pipefail
cd "$(dirname "$0")/.."
files=${BYTESIZED32:?set BYTESIZED32 to the folder with train.jsonl and test.jsonl}
model=${PRETRAINED:?set PRETRAINED to the folder with config.json and model.safetensors}
from=${1:-early}
seed=${2:-0}
world=bytesized32-pretrained
run=$world-$from-$seed
steps=80
[ "$from" = late ] && steps=500
data="--world=$world --seed=$seed --changed_fraction=0.5 --kind_power=0.3 --permute_ids=0.7"
data="$data --gradient_checkpointing --micro_batch_size=4 --eval_records=64"
likelihood="--optimizer=adamw --warmup=10 --eval_every=40"

# The paper's split, in the compact lines and the model's own vocabulary. Two minutes.
python data/textgame/prepare.py --source=bytesized32 --path="$files" --out=$world --longest=64 \
    --tokenizer="$model"

# Stage 1, fine-tuning: nine seconds a step.
python train_mle.py $data $likelihood --name="$run-mle" --init_from="$model" --lr=1e-4 \
    --steps=$steps

# Stage 2, on the metric that is judged: a minute a step.
python train_rlvr.py $data --name="$run-rlvr" --init_from="$run-mle" --reward=strict_binary \
    --lr=1e-5 --steps=20 --eval_every=5 --rollout_batch_size=32

# RLVR's rival: fine-tuning goes on for at least RLVR's work.
for more in "1 1e-4" "2 2e-5"; do
    set -- $more
    python train_mle.py $data $likelihood --name="$run-more-$1" --init_from="$run-mle" \
        --steps=120 --lr="$2"
done

# The model as it was, on 600 test records that are the same everywhere; --records=0 takes all.
python evaluate.py --world=$world --name="$world-base-results" --records=600 --val_records=128 \
    --seeds=1 --best_of=0 --mle="$model" --rlvr="$run-rlvr"

# The table of the same records.
python evaluate.py --world=$world --name="$run-results" --records=600 --val_records=128 --seeds=1 \
    --select_by=strict_binary --mle="$run-mle" --more="$run-more-1,$run-more-2" --rlvr="$run-rlvr"
