"""Your own text: answers are compared with the truth as a whole, or line by line."""

from data.world import Metric, TextTask
from rewards import exact_match, line_f1

TASK = TextTask(
    metrics={
        "exact_match": Metric(exact_match, by_change=True),
        "line_f1": Metric(line_f1, by_change=True),
    },
    reward="exact_match",
)
