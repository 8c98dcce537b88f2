"""
Kills, resumes and corrupts runs at random for as long as asked, and counts what was lost (it should
be 0).

    make soak                             ten minutes
    python tests/soak.py --seed=1234      again, the same (each round prints its seed)

A round takes one of the three training scripts in a tiny world, kills it with SIGKILL or SIGTERM at
a random moment, damages its newest checkpoint now and then (cut short, or one bit flipped), resumes
it, and so on until it ends. What came out must equal the run that nobody disturbed: every weight,
every number of the optimizer, the work that was counted, and the lines of metrics.jsonl, times left
out.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import option, parse_config, run_main

import torch

import tokenizer_vq
import train_mle
import train_rlvr
from data.robot import prepare as robot_prepare
from data.textgame import prepare as textgame_prepare


@dataclass
class Config:
    minutes: float = option(10.0, 0.0, 1e6)  # how long to go on
    seed: int = option(-1, -1, 2**31)  # of the first round; -1: by the clock
    faults: int = option(0, 0, 10**9)  # stop after so many faults (0: no limit)


def small(module, **changes):
    """Options that make a script tiny: its SMOKE, on one thread, some of them changed."""
    options = dict(module.SMOKE)
    if "threads" in module.Config.__dataclass_fields__:
        options["threads"] = 1
    return [f"--{name}={value}" for name, value in (options | changes).items()]


# long enough to be hit anywhere: in the first steps, in validation, in the last save
GAME = {"world": "./textgame"}
VIDEO = {"world": "./robot"}
RUNS = {
    "tokenizer": (tokenizer_vq, small(tokenizer_vq, **VIDEO, steps=24, eval_every=4)),
    "mle": (train_mle, small(train_mle, **GAME, steps=30, eval_every=5)),
    "rlvr": (train_rlvr, small(train_rlvr, **GAME, steps=10, eval_every=2, init_from="start")),
}
PHASES = "sampling_s", "scoring_s", "reference_s", "update_s"
TIMES = ("seconds", "train_seconds", "tokens_per_second", *PHASES)


def start(module, arguments):
    """
    Runs module.main(arguments) in a child that is forked, so that it need not load torch again.
    Returns its process id.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stdout = sys.stderr = open("log.txt", "a", buffering=1)
        torch.set_num_threads(1)
        run_main(module.main, arguments)
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(child):
    """The exit code of a child; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def must_run(module, arguments):
    """Runs a script in a child to its end, which must be a good one."""
    assert wait(start(module, arguments)) == 0, Path("log.txt").read_text()[-2000:]


def tensors_in(value):
    """All tensors in dictionaries, lists and tuples within each other."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    inner = value if isinstance(value, (list, tuple)) else []
    return [tensor for item in inner for tensor in tensors_in(item)]


def outcome(name):
    """(all tensors of the last checkpoint, its progress and metrics lines without times)."""
    checkpoint = torch.load(f"out/{name}/last.pt", weights_only=True)
    tensors = tensors_in({key: value for key, value in checkpoint.items() if key != "random"})
    lines = Path(f"out/{name}/metrics.jsonl").read_text().splitlines()
    rows = [checkpoint["progress"], *map(json.loads, lines)]
    return tensors, [{key: row[key] for key in row if key not in TIMES} for row in rows]


def same(a, b):
    """Whether two outcomes are equal, bit for bit."""
    tensors_are = len(a[0]) == len(b[0]) and all(map(torch.equal, a[0], b[0]))
    return tensors_are and a[1] == b[1]


def damage(path, rng):
    """Cuts a file short or flips one of its bits."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        if rng.random() < 0.5:
            file.truncate(rng.randrange(size))
        else:
            file.seek(rng.randrange(size))
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def prepare(folder):
    """
    Two tiny worlds in `folder`, and for each script the run that nobody disturbs: {kind: (outcome,
    seconds)}.
    """
    os.chdir(folder)
    must_run(textgame_prepare, small(textgame_prepare, out="./textgame"))
    must_run(robot_prepare, small(robot_prepare, out="./robot"))
    must_run(train_mle, small(train_mle, **GAME, steps=60, eval_every=60, lr=0.05, name="start"))
    whole = {}
    for kind, (module, arguments) in RUNS.items():
        began = time.time()
        must_run(module, [*arguments, f"--name=whole-{kind}"])
        whole[kind] = outcome(f"whole-{kind}"), time.time() - began
    return whole


def one_round(whole, seed):
    """
    One disturbed run from start to end. Returns (script, [faults], whether its outcome is that of
    the undisturbed run).
    """
    rng = random.Random(seed)
    kind = rng.choice(list(RUNS))
    module, arguments = RUNS[kind]
    faults = []
    folder = Path("out", f"cut-{kind}")
    shutil.rmtree(folder, ignore_errors=True)
    newest = folder / "last.pt"
    before = folder / "last-before.pt"
    while True:
        resume = ["--resume"] if newest.is_file() or before.is_file() else []
        child = start(module, [*arguments, f"--name={folder.name}", *resume])
        if len(faults) < 12 and rng.random() < 0.9:
            time.sleep(rng.uniform(0, whole[kind][1]))
            sent = rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
            os.kill(child, sent)
            faults.append(sent.name)
        code = wait(child)
        log = Path("log.txt").read_text()
        if code == 0 and "stopped" not in log.rsplit("config:", 1)[1]:
            break
        expected = code in (0, -signal.SIGKILL, -signal.SIGTERM)
        assert expected, f"{kind}, seed {seed}: exit code {code}\n{log[-2000:]}"
        if newest.is_file() and before.is_file() and rng.random() < 0.3:
            damage(newest, rng)
            faults.append("damage")
    return kind, faults, same(outcome(folder.name), whole[kind][0])


def soak(minutes, seed, most=0):
    """
    Rounds until the time is up or `most` faults were tried, in a folder of its own. Prints each;
    returns (number of faults, rounds, rounds lost).
    """
    faults = Counter()
    rounds = 0
    lost = 0
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        whole = prepare(folder)
        end = time.time() + 60 * minutes
        while time.time() < end and not (most and faults.total() >= most):
            kind, tried, good = one_round(whole, seed + rounds)
            faults.update(tried)
            ended = "the same outcome" if good else "ANOTHER OUTCOME"
            print(f"seed {seed + rounds}: {kind}, {len(tried)} faults, {ended}", flush=True)
            rounds += 1
            lost += not good
        os.chdir(here)
    told = ", ".join(f"{number} {name}" for name, number in sorted(faults.items()))
    survived = f"{rounds - lost} survived, {lost} lost"
    print(f"{faults.total()} faults ({told}) tried in {rounds} runs, {survived}")
    return faults.total(), rounds, lost


def main(argv):
    config = parse_config(Config, argv)
    seed = config.seed if config.seed >= 0 else int(time.time())
    if soak(config.minutes, seed, config.faults)[2]:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
