#!/usr/bin/env bash
# Each reward judged on each metric, from the world model of runs/robot.sh: a reward should be best
# on its own. Ten minutes on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."

for metric in mae mse psnr ssim; do
    python train_rlvr.py --world=robot --reward="$metric" --name="robot-rlvr-$metric" \
        --prompts_per_step=16 --group_size=16 --steps=60 --eval_records=128
done
python evaluate.py --world=robot --name=robot-matrix --best_of=0 --each \
    --rlvr=robot-rlvr-mae,robot-rlvr-mse,robot-rlvr-psnr,robot-rlvr-ssim
