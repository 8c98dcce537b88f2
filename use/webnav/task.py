"""
The web shop with a reward of the agent's own: is it right which products an action leads nearer to?
That is all that use/plan.py asks of a world. It is a task.py of the domain, named with --task:

    python train_rlvr.py --task=use/webnav/task.py --world=webnav --reward=nearer --name=webnav-near
"""

import functools
from dataclasses import replace
from typing import NamedTuple

from data.webnav import shop
from data.webnav.task import TASK as PAGES
from data.world import Metric


class Truth(NamedTuple):
    """What happens to a page."""

    page: dict  # {id: text} before it
    response: str
    products: tuple  # the names of all that the shop has


@functools.cache
def products(seed):
    """The names of a shop's products."""
    return tuple(product.name for product in shop.make_shop(seed).products)


def truth(record, shared):
    return Truth(shop.read_page(record["state"]), record["response"], products(shared["shop"]))


def nearer_to(truth, answer):
    """The products to which the page that an answer leads to is nearer than the one before."""
    after = shop.apply_difference(truth.page, answer)
    found = set()
    for product in truth.products:
        if shop.progress(after, product) > shop.progress(truth.page, product):
            found.add(product)
    return found


def nearer(answer, truth):
    """F1 of the set of these products, in [0, 1]; 1 where it is rightly empty."""
    said = nearer_to(truth, answer)
    true = nearer_to(truth, truth.response)
    return 2 * len(said & true) / (len(said) + len(true)) if said or true else 1.0


def of_response(metric):
    """A metric of pages, which compares with the true response alone."""
    return replace(metric, function=lambda answer, truth: metric.function(answer, truth.response))


TASK = replace(
    PAGES,
    metrics={
        **{name: of_response(metric) for name, metric in PAGES.metrics.items()},
        "nearer": Metric(nearer, by_change=True),
    },
    truth=truth,
    as_truth=lambda answer, truth: truth._replace(response=answer),
)
