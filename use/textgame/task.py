"""
Text games with a reward of the agent's own: does an action lead nearer to winning? An agent that
takes the best of k actions (use/plan.py) loses little by a false alarm, and all by a chance it does
not see. It is a task.py of the domain, named with --task:

    python train_rlvr.py --task=use/textgame/task.py --reward=nearer+0.1*strict_task --name=near
"""

from dataclasses import replace

from data.textgame.task import TASK as GAMES
from data.world import Metric

FALSE_ALARM = 0.1  # what it costs, in hits: "nearer" pays where the odds are better than that


def rank(score):
    """(Whether the game is won, its score)."""
    return bool(score["gameWon"]), float(score["score"])


def nearer(prediction, truth):
    """1 for a hit, 0 for a false alarm; in between, FALSE_ALARM, where none is raised."""
    now = rank(truth.state[-1])
    if not rank(prediction.next_state[-1]) > now:
        return FALSE_ALARM
    return float(rank(truth.next_state[-1]) > now)


TASK = replace(GAMES, metrics={**GAMES.metrics, "nearer": Metric(nearer, by_change=True)})
