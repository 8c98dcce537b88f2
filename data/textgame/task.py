"""
Text games: the answer is a difference in the compact lines of lines.py. What it is compared with,
the state and the next state, comes with the record; no text is read again to find it.
"""

import re
from typing import NamedTuple

import rewards
from data.textgame import lines
from data.world import Metric, TextTask


class Truth(NamedTuple):
    """What happens: the state before and after it, lists of objects with the score dict last."""

    state: list
    next_state: list
    defaults: dict  # {type: {property: value}} of the game, which the lines leave out


class Prediction(NamedTuple):
    """An answer as a difference {"modified", "removed", "score"}, and the state it leads to."""

    difference: dict
    next_state: list


def truth(record, shared):
    """
    record["truth"] is {"state": number of the state among the shared ones, "difference": {...}}.
    """
    state = shared["states"][record["truth"]["state"]]
    next_state = rewards.apply_difference(state, record["truth"]["difference"])
    return Truth(state, next_state, shared["defaults"].get(record["kind"], {}))


def read(answer, truth):
    """The Prediction of an answer. Raises ValueError or TypeError if it is malformed."""
    difference = lines.read_difference(answer, truth.state, truth.defaults)
    return Prediction(difference, rewards.apply_difference(truth.state, difference))


def as_truth(answer, truth):
    """The Truth if an answer were right. Raises ValueError or TypeError if it is malformed."""
    return truth._replace(next_state=read(answer, truth).next_state)


def strict(kind):
    """rewards.strict_text_game of a kind, as a function of prediction and truth."""

    def score(prediction, truth):
        states = prediction.next_state, truth.state, truth.next_state
        return rewards.strict_text_game(*states, kind)

    return score


def official(kind):
    """rewards.official_text_game_difference of a kind, as a function of prediction and truth."""

    def score(prediction, truth):
        states = truth.state, truth.next_state
        return rewards.official_text_game_difference(prediction.difference, *states, kind)

    return score


def count_ids(state):
    """One more than the largest uuid in the text of a state."""
    return 1 + max(map(int, re.findall(r"#(\d+)", state)), default=0)


TASK = TextTask(
    metrics={
        "strict_binary": Metric(strict("binary"), by_change=True),
        "strict_task": Metric(strict("task"), scale=1),
        "official_binary": Metric(official("binary"), by_change=True),
        "official_task": Metric(official("task_specific"), scale=1),
    },
    reward="strict_task",
    nothing_changes=lines.SAME,
    truth=truth,
    read=read,
    as_truth=as_truth,
    permute=lines.renumber,
    count_ids=count_ids,
)
