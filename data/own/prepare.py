"""
Makes a world out of your own transitions, a .jsonl file of {"prompt": ..., "response": ...} a line.

    python data/own/prepare.py --path=mine.jsonl --out=data/mine [--reward=line_f1]
    python train_mle.py --world=data/mine
    python train_rlvr.py --world=data/mine
    python evaluate.py --world=data/mine

Optional keys of a line: "truth" (what an answer is compared with; default: the response), "state"
(text in front of the prompt that many lines share, so that it is run once for all of them), "kind"
(metrics are also averaged over kinds), "changed" (false: nothing happens), "unit" (the game or
visit a line is from) and "outcomes" ([[probability, response], ...]: all that could have happened).
Metrics of your own are in a task.py of your own: name it with --task here and in later commands.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from common import BadInput, one_of, option, parse_config, run_main
from data.text import read_records, score_answer, write_text_world
from data.world import SPLITS, TextTask, home, load_task


@dataclass
class Config:
    path: str = ""  # the .jsonl file (.jsonl.gz too)
    out: str = ""  # the world: a name under data/, or a path such as data/mine
    task: str = ""  # a task.py of your own; empty: exact_match and line_f1
    reward: str = ""  # the world's own reward, a metric of the task; empty: the task's
    val: float = option(0.1, 1e-6, 0.9)  # share of the prompts that go to validation
    test: float = option(0.1, 1e-6, 0.9)  # and to the test set
    vocab_size: int = option(1024, 258, 2**17)  # tokens, the 256 bytes and the end token included
    tokenizer: str = ""  # folder of a pretrained model: its vocabulary in place of one of our own
    template: str = option("none", "none", "chat")  # chat: prompts in its chat form
    longest: int = option(0, 0, 10**6)  # leave out records with longer answers, in tokens (0: none)
    seed: int = option(0, 0, 2**31)  # of the split


def main(argv):
    config = parse_config(Config, argv)
    if not config.path or not config.out:
        raise BadInput("give the file and the folder: --path=mine.jsonl --out=data/mine")
    if config.val + config.test >= 1:
        raise BadInput(f"--val={config.val} and --test={config.test} leave nothing to train on")
    domain = Path(config.task).resolve().parent.name if config.task else "own"
    task = load_task(domain, config.task, TextTask)
    if config.reward:
        one_of("reward", config.reward, list(task.metrics))
    records = read_records(config.path, "mend what wrote it")
    for number, record in enumerate(records, 1):
        try:
            truth = task.truth(record, {})
        except (TypeError, KeyError, ValueError) as error:
            raise BadInput(f"{config.path}, record {number}: no truth in it: {error}") from None
        if number == 1:  # a metric that fails is better found now
            score_answer(task, record["response"], truth, task.metrics)

    # equal prompts stay together, so that no test prompt is ever trained on
    def key(record):
        return record.get("state", ""), record["prompt"]

    keys = sorted({key(record) for record in records})
    order = np.random.default_rng(config.seed).permutation(len(keys))
    n_test = max(1, round(config.test * len(keys)))
    n_val = max(1, round(config.val * len(keys)))
    place = {}
    for n, i in enumerate(order):
        place[keys[i]] = "test" if n < n_test else ("val" if n < n_test + n_val else "train")
    splits = {split: [r for r in records if place[key(r)] == split] for split in SPLITS}
    how = dict(vocab_size=config.vocab_size, longest=config.longest, reward=config.reward)
    how.update(tokenizer=config.tokenizer, template=config.template)
    write_text_world(home(config.out), domain, task, splits, **how)


if __name__ == "__main__":
    run_main(main)
