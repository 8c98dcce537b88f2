"""
Text games in the paper's form: states and differences are JSON, and an answer may think before its
final phrase (rewards.final_answer). The official metrics score it raw, as the published code does;
the strict ones want a difference that can be applied. Made by data/textgame/prepare.py --form=json.
"""

from dataclasses import replace

import rewards
from data.textgame.task import TASK as LINES
from data.textgame.task import Prediction


def read(answer, truth):
    """The Prediction of an answer; its difference or its next state is None if there is none."""
    difference = rewards.final_difference(answer)
    try:
        next_state = rewards.apply_difference(truth.state, difference)
        rewards.strict_text_game(next_state, truth.state, next_state, "binary")  # can be compared
    except (KeyError, TypeError, ValueError, AttributeError):
        next_state = None
    return Prediction(difference, next_state)


def as_truth(answer, truth):
    """The Truth if an answer were right. Raises ValueError if it leads nowhere."""
    next_state = read(answer, truth).next_state
    if next_state is None:
        raise ValueError("not a difference of this state")
    return truth._replace(next_state=next_state)


def strict(metric):
    """A strict metric of the lines, 0 where there is no next state."""
    score = metric.function
    worst = metric.worst
    return replace(metric, function=lambda p, t: worst if p.next_state is None else score(p, t))


TASK = replace(
    LINES,
    metrics={n: strict(m) if "strict" in n else m for n, m in LINES.metrics.items()},
    nothing_changes='{"modified": [], "removed": [], "score": {}}',
    read=read,
    as_truth=as_truth,
    permute=None,
    count_ids=None,
)
