#!/usr/bin/env bash
# What a world model is for: an agent asks a world which of k actions leads nearer to its goal.
# Needs the models of runs/webnav.sh and runs/textgame.sh. An hour of one CPU core.
# bash runs/plan.sh 1 takes the models of training seed 1, and other starts.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${1:-0}
suffix=$([ "$seed" = 0 ] || echo "-seed$seed")

shop=webnav$suffix
game=textgame$suffix
in_shop="--mle=$shop-mle --more=$shop-mle-more-1,$shop-mle-more-2 --rlvr=$shop-rlvr,$shop-near"
in_game="--mle=$game-mle --more=$game-mle-more-1,$game-mle-more-2 --rlvr=$game-rlvr,$game-near"

# The same worlds as those pages make. Ten seconds.
python data/webnav/prepare.py
python data/textgame/prepare.py

# A reward of the agent's own: is it right where an action leads nearer to? Three minutes each.
python train_rlvr.py --world=webnav --seed="$seed" --name="$shop-near" --init_from="$shop-mle" \
    --task=use/webnav/task.py --reward=nearer --steps=45
python train_rlvr.py --world=textgame --seed="$seed" --name="$game-near" --init_from="$game-mle" \
    --task=use/textgame/task.py --reward=nearer+0.1*strict_task

# A product shall get into the cart. 3 candidates, 5 steps: no model reaches about 6 % and so does
# the world that says that nothing changes, the simulator 40 %. Five minutes a model.
python use/plan.py --name="plan-webnav-3$suffix" --k=3 --steps=5 --starts=2000 \
    --seed="$seed" $in_shop --each

# 5 candidates, 10 steps: no model 12 %, the simulator 94 %. Ten minutes a model.
python use/plan.py --name="plan-webnav-5$suffix" --k=5 --steps=10 --starts=2000 \
    --seed="$seed" $in_shop --each

# Games shall be won, by what the predicted score says; half of the starts are in games with chance.
# No model 10 %, the simulator 27 %. Ten minutes.
python use/plan.py --world=textgame --name="plan-textgame$suffix" --k=10 --steps=10 --draws=40 \
    --starts=800 --seed="$seed" $in_game --each
