#!/usr/bin/env bash
# GRPO and its kin side by side, on the lesson's world with chance in half of the games: one factor
# at a time, the same number of samples, each at the better of two rates on validation.
#   bash runs/algorithms.sh                all of seed 0, an hour and a half of one core
#   bash runs/algorithms.sh 1 gspo group4  some of them, with another training seed
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${1:-0}
shift $(($# > 0))
variants=${*:-grpo dr_grpo rloo gspo cispo raft no_kl group4 group16 group32 likelihood}
world=lesson-0.5
run=algorithms-$seed
on="--world=$world --seed=$seed --threads=1"

# The lesson's world, its stage 1, and RLVR's rival. A quarter of an hour.
python data/textgame/prepare.py --chance=0.5 --out=$world --instances=900 --held_out=120
python train_mle.py $on --name="$run-mle" --steps=1600
for more in "1 0.01" "2 0.002"; do
    set -- $more
    python train_mle.py $on --name="$run-more-$1" --init_from="$run-mle" --steps=500 --lr="$2"
done

# Three minutes a rate, then a table of the better one. The prompts of a step are as many as give
# 256 answers.
for variant in $variants; do
    case $variant in
        no_kl) how="--kl_coef=0" ;;
        group*) how="--group_size=${variant#group} --prompts_per_step=$((256 / ${variant#group}))" ;;
        likelihood) how="--mle_coef=0.1" ;;
        *) how="--algorithm=$variant" ;;
    esac
    for lr in 3e-4 1e-4; do
        python train_rlvr.py $on $how --name="$run-$variant-$lr" --init_from="$run-mle" \
            --reward=strict_binary --lr=$lr --steps=80 --eval_every=20
    done
    python evaluate.py $on --name="$run-$variant-results" --records=2000 --best_of=0 \
        --select_by=strict_binary --mle="$run-mle" --more="$run-more-1,$run-more-2" \
        --rlvr="$run-$variant-3e-4,$run-$variant-1e-4"
done
