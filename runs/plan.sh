#!/usr/bin/env bash
# What a world model is for: an agent asks a world which of k actions leads nearer to its goal.
# Needs the models of runs/webnav.sh and runs/textgame.sh; without them their rows are missing.
# An hour of one CPU core. bash runs/plan.sh 1 takes the models of training seed 1, and other
# starts.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${1:-0}
suffix=$([ "$seed" = 0 ] || echo "-seed$seed")

# {world}: the names of its models of this seed (of seed 0: what use/plan.py looks for by itself).
models() {
    [ "$seed" = 0 ] && return
    run=$1$suffix
    echo "--mle=$run-mle --rlvr=$run-rlvr --more=$run-mle-more-1,$run-mle-more-2"
}

# The same worlds as those pages make. Ten seconds.
python data/webnav/prepare.py
python data/textgame/prepare.py

# A product shall get into the cart. 3 candidates, 5 steps: no model reaches about 6 % and so does
# the world that says that nothing changes, the simulator 40 %. Five minutes a model.
python use/plan.py --name="plan-webnav-3$suffix" --k=3 --steps=5 --starts=2000 \
    --seed="$seed" $(models webnav)

# 5 candidates, 10 steps: no model 12 %, the simulator 94 %. Ten minutes a model.
python use/plan.py --name="plan-webnav-5$suffix" --k=5 --steps=10 --starts=2000 \
    --seed="$seed" $(models webnav)

# Games shall be won, by what the predicted score says; half of the starts are in games with chance.
# No model 10 %, the simulator 27 %. Ten minutes.
python use/plan.py --world=textgame --name="plan-textgame$suffix" --k=10 --steps=10 --draws=40 \
    --starts=800 --seed="$seed" $(models textgame)
