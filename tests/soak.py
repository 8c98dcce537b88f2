"""
Kills, resumes and corrupts runs at random for as long as asked, and counts what was lost (it should be 0).

ten minutes      make soak                              or: python tests/soak.py
again, the same  python tests/soak.py --seed=1234       (each round prints its seed)

A round takes one of the three training scripts in a smoke-sized world, kills it with SIGKILL or SIGTERM at a random moment, damages its newest
checkpoint now and then (cut short, or one bit flipped), resumes it, and so on until it ends. What came out must equal the run that nobody
disturbed: every weight, every number of the optimizer, and the lines of metrics.jsonl, times left out.
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

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tokenizer_vq  # noqa: E402
import train_mle  # noqa: E402
import train_rlvr  # noqa: E402
from common import parse_config, run_main  # noqa: E402
from data.robot import prepare as robot_prepare  # noqa: E402
from data.textgame import prepare as textgame_prepare  # noqa: E402


@dataclass
class Config:
    minutes: float = 10.0       # how long to go on
    seed: int = -1              # of the first round; -1: by the clock
    faults: int = 0             # stop after so many faults (0: no limit)


RUNS = {  # long enough to be hit anywhere: the first steps, validation, the last save
    "tokenizer": (tokenizer_vq.main, ["--preset=smoke", "--world=robot", "--steps=24", "--eval_every=4"]),
    "mle": (train_mle.main, ["--preset=smoke", "--world=textgame", "--steps=30", "--eval_every=5"]),
    "rlvr": (train_rlvr.main, ["--preset=smoke", "--world=textgame", "--steps=10", "--eval_every=2"]),
}
TIMES = ("seconds", "train_seconds", "tokens_per_second", "sampling_s", "scoring_s", "reference_s", "update_s")


def start(main, arguments):
    """Runs main(arguments) in a child that is forked, so that it need not load torch again. Returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stdout = sys.stderr = open("log.txt", "a", buffering=1)
        torch.set_num_threads(1)
        run_main(main, arguments)
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


def outcome(name):
    """(all tensors of the last checkpoint, metrics lines without times)."""
    checkpoint = torch.load(f"out/{name}/last.pt", weights_only=True)
    tensors = []

    def collect(value):
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []:
            tensors.append(item) if isinstance(item, torch.Tensor) else collect(item)
    collect({key: value for key, value in checkpoint.items() if key != "random"})
    rows = [json.loads(line) for line in Path(f"out/{name}/metrics.jsonl").read_text().splitlines()]
    return tensors, [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def same(a, b):
    return len(a[0]) == len(b[0]) and all(torch.equal(x, y) for x, y in zip(a[0], b[0])) and a[1] == b[1]


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
    """Two small worlds in data/ of `folder`, and for each script the run that nobody disturbs: {kind: (outcome, seconds)}."""
    os.chdir(folder)
    for main, arguments in ((textgame_prepare.main, ["--preset=smoke", "--out=textgame"]), (robot_prepare.main, ["--preset=smoke", "--out=robot"])):
        assert wait(start(main, arguments)) == 0, Path("log.txt").read_text()[-2000:]
    whole = {}
    assert wait(start(train_mle.main, ["--preset=smoke", "--world=textgame", "--steps=250", "--lr=0.05", "--name=start"])) == 0
    for kind, (main, arguments) in RUNS.items():
        began = time.time()
        code = wait(start(main, [*arguments, f"--name=whole-{kind}", *initial(kind)]))
        assert code == 0, Path("log.txt").read_text()[-2000:]
        whole[kind] = outcome(f"whole-{kind}"), time.time() - began
    return whole


def initial(kind):
    return ["--init_from=out/start/best.pt"] if kind == "rlvr" else []


def one_round(whole, seed):
    """One disturbed run from start to end. Returns (script, [faults], whether its outcome is that of the undisturbed run)."""
    rng = random.Random(seed)
    kind = rng.choice(list(RUNS))
    main, arguments = RUNS[kind]
    name, faults = f"cut-{kind}", []
    shutil.rmtree(f"out/{name}", ignore_errors=True)
    newest = Path(f"out/{name}/last.pt")
    while True:
        resume = ["--resume"] if newest.is_file() or Path(f"out/{name}/last-before.pt").is_file() else []
        child = start(main, [*arguments, f"--name={name}", *initial(kind), *resume])
        if len(faults) < 12 and rng.random() < 0.9:
            time.sleep(rng.uniform(0, whole[kind][1]))
            sent = rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
            os.kill(child, sent)
            faults.append(sent.name)
        code = wait(child)
        if code == 0 and "stopped" not in Path("log.txt").read_text().rsplit("config:", 1)[1]:
            break
        assert code in (0, -signal.SIGKILL, -signal.SIGTERM), f"{kind}, seed {seed}: exit code {code}\n" + Path("log.txt").read_text()[-2000:]
        if newest.is_file() and Path(f"out/{name}/last-before.pt").is_file() and rng.random() < 0.3:
            damage(newest, rng)
            faults.append("damage")
    return kind, faults, same(outcome(name), whole[kind][0])


def soak(minutes, seed, most=0):
    """Rounds until the time is up or `most` faults were tried. Prints each; returns (number of faults, rounds, rounds lost)."""
    with tempfile.TemporaryDirectory() as folder:
        whole, end = prepare(folder), time.time() + 60 * minutes
        faults, rounds, lost = Counter(), 0, 0
        while time.time() < end and not (most and faults.total() >= most):
            kind, tried, good = one_round(whole, seed + rounds)
            faults, rounds, lost = faults + Counter(tried), rounds + 1, lost + (not good)
            print(f"seed {seed + rounds - 1}: {kind}, {len(tried)} faults, {'the same outcome' if good else 'ANOTHER OUTCOME'}", flush=True)
        os.chdir("/")
    told = ", ".join(f"{number} {name}" for name, number in sorted(faults.items()))
    print(f"{faults.total()} faults ({told}) tried in {rounds} runs, {rounds - lost} survived, {lost} lost")
    return faults.total(), rounds, lost


def main(argv):
    config = parse_config(Config, argv)
    seed = config.seed if config.seed >= 0 else int(time.time())
    if soak(config.minutes, seed, config.faults)[2]:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
