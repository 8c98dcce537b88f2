"""Web pages: the answer lists the items that are new, deleted and updated, a section each."""

from data.world import Metric, TextTask
from rewards import exact_match, official_web_page_scores, strict_web_page

TASK = TextTask(
    metrics={
        "strict_f1": Metric(strict_web_page, by_change=True),
        "official_f1": Metric(lambda answer, truth: official_web_page_scores(answer, truth)[2]),
        "official_precision": Metric(
            lambda answer, truth: official_web_page_scores(answer, truth)[0]
        ),
        "official_recall": Metric(lambda answer, truth: official_web_page_scores(answer, truth)[1]),
        "exact_match": Metric(exact_match),
    },
    reward="strict_f1",
    # '[12]', the id of a node, is one piece, and so is the text behind it, up to the end of the
    # line: what a shop says often becomes one token, which stands right behind its id
    token_pattern=r"\[\d+\]|[^\[\]\n\t]+|\n+\t*|\t+|.",
    nothing_changes="New items:\nNone\n\nDeleted items:\nNone\n\nUpdated items:\nNone",
)
