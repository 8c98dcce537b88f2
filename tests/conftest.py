"""
Tests run from the repository root; those that need the development data in ../shared are skipped
where it is absent.
"""

import signal
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SHARED = ROOT.parent / "shared"

# What takes longest, first: of two processes that take file after file, neither shall wait long for
# the other's last.
LONGEST = "test_scripts", "test_faults", "test_play", "test_games"


def pytest_configure(config):
    """Keeps xdist from starting with the files of most tests, which are others."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def the_same_start():
    """
    The same random numbers for every test, one thread (the models are tiny, and threads that wait
    for each other on a busy machine take ten times as long), and a Ctrl-C that ends the tests,
    although training scripts that ran in this process took it for their own.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def shared():
    if not SHARED.is_dir():
        pytest.skip("needs the development data in ../shared, which is not published with it")
    return SHARED
