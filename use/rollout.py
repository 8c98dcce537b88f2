"""
Roll a video world out: a model goes through many actions in closed loop and sees only its own
frames. How far is it from the truth after each?

    python use/rollout.py                              after runs/robot_multi.sh
    python use/rollout.py --world=robot --actions=10   single steps, after runs/robot.sh

Rows: copy (the first frame again), the tokenizer's floor, MLE, MLE continued and RLVR. Every
`horizon` frames a model starts again from the tokens of its last frame; a context frame that is
older than those of training is made anew, of a frame of its own.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# common first: it says how torch's threads wait, before torch is imported
from common import OUT, BadInput, option, parse_config, run_main
from common import start_processes, work_behind

import numpy as np
import torch

from data import load_world
from data.video import OLDEST, REPEATS
from data.world import SPLITS, Batch
from evaluate import Row, checkpoints, interval, load_model, markdown, open_checkpoint, provenance
from generate import generate
from tokenizer_vq import to_frames


@dataclass
class Config:
    world: str = "robot-multi"  # a folder, or its name under data/: a video world
    name: str = ""  # results go to out/<name>; empty: <world>-rollout
    # runs, by name, or checkpoint files; of several the best on validation
    mle: str = ""  # stage 1; empty: <world>-mle
    more: str = ""  # MLE continued, separated by commas; empty: every <world>-mle-more-*
    rlvr: str = ""  # stage 2, separated by commas; empty: <world>-rlvr
    each: bool = False  # a row for each of the runs in --rlvr
    split: str = option("test", *SPLITS)
    actions: int = option(25, 2, 10**4)  # how many, from the first frames of an episode on
    temperature: float = option(0.0, 0.0, 100.0)  # 0: greedy
    # the machine
    device: str = "auto"  # cpu, cuda, mps or auto
    threads: int = option(2, 1, 1024)  # of a CPU
    seed: int = option(0, 0, 2**31)
    out: str = OUT  # the folder of all results


SMOKE = dict(actions=5)
AT_ONCE = 32  # episodes


class Start:
    """What is known of B episodes: the frames that a prompt needs, and all actions."""

    def __init__(self, world, episodes, config):
        first = 0 if world.multi else world.K - 1  # the last frame that is given
        after = first + 1 + config.actions
        images = np.stack([e.image[:after] for e in episodes])  # [B, T, H, W, 3]
        frames = to_frames(images, world.device)
        self.given = frames[:, : first + 1]  # [B, K, 3, H, W]
        self.true = frames[:, first + 1 :]  # [B, n, 3, H, W]
        self.actions = world.action_ids(np.stack([e.action[:after] for e in episodes]))
        self.actions = self.actions.to(world.device)  # [B, T, A]
        states = [e.state for e in episodes]
        self.state = None
        if all(state is not None for state in states):
            rows = np.stack([state[first + 1 : after] for state in states])
            self.state = torch.from_numpy(rows).to(world.device)  # [B, n, S]


def question(world, prompt, forced=None):
    """Prompts [B, P] as a Batch without records."""
    none = prompt[:, :0]
    length = torch.full((len(prompt),), prompt.size(1), device=world.device)
    more = dict(allowed_ids=world.allowed_ids, forced=forced)
    return Batch(prompt, length, none, none.bool(), world.response_len, world.eos_id, **more)


@torch.no_grad()
def one_by_one(model, world, start, config, generator):
    """Frames [B, n, 3, H, W] of a single-step world."""
    K = world.K
    tokenizer = world.tokenizer
    given = [tokenizer.encode(frame) for frame in start.given.unbind(1)]  # K times [B, N]
    frames = []
    for t in range(config.actions):
        pairs = zip(given[-K:], start.actions[:, t : t + K].unbind(1))
        batch = question(world, torch.cat([torch.cat(pair, 1) for pair in pairs], 1))
        tokens = generate(model, batch, 1, config.temperature, generator).tokens
        given.append(tokens[:, 0])
        frames.append(world.decode(batch, tokens)[:, 0, 0])
    return torch.stack(frames, 1)


@torch.no_grad()
def by_horizon(model, world, start, config, generator):
    """Frames [B, n, 3, H, W] of a multi-step world, `horizon` of them at a time."""
    T, m, A = world.horizon, world.m, world.A
    tokenizer = world.tokenizer
    B = len(start.actions)
    after = start.actions.new_full(
        (B, T, A), world.action_base
    )  # they lead to no frame that counts
    actions = torch.cat([start.actions, after], 1)
    last = start.given[:, -1]
    frames = []
    age = OLDEST + 1  # of the context, at the last frame
    for t in range(0, config.actions, T):
        if age > OLDEST:
            context = tokenizer.encode(last)  # [B, N]
            dynamics = tokenizer.encode_dynamics(last[:, None], context)[:, 0]  # [B, m]
            age = 0
        forced = actions.new_full((B, T, m + A), -1)
        forced[..., m:] = actions[:, t + 1 : t + 1 + T]
        prompt = torch.cat([context + world.context_base, dynamics, actions[:, t]], 1)
        batch = question(world, prompt, forced.flatten(1))
        tokens = generate(model, batch, 1, config.temperature, generator).tokens
        frames.append(world.decode(batch, tokens)[:, 0])
        last = frames[-1][:, -1]
        dynamics = world.frame_ids(tokens)[:, 0, -1]
        age += T
    return torch.cat(frames, 1)[:, : config.actions]


@torch.no_grad()
def floor(world, start):
    """The true frames [B, n, 3, H, W] through the tokenizer."""
    tokenizer = world.tokenizer
    if not world.multi:
        flat = start.true.flatten(0, 1)
        return tokenizer.decode(tokenizer.encode(flat)).view(start.true.shape)
    pieces = []
    for t in range(0, start.true.size(1), world.horizon):
        context = start.given[:, -1] if t == 0 else start.true[:, t - 1]
        ids = tokenizer.encode(context)
        part = start.true[:, t : t + world.horizon]
        pieces.append(tokenizer.decode_dynamics(tokenizer.encode_dynamics(part, ids), ids))
    return torch.cat(pieces, 1)


def judge(world, config):
    """Rolls every row out over all episodes that are long enough; prints and writes the table."""
    frames = config.actions + (1 if world.multi else world.K)
    episodes = [e for e in world.episodes[config.split] if len(e.image) >= frames]
    if not episodes:
        raise BadInput(f"no {config.split} episode has {frames} frames: fewer --actions")
    starts = [
        Start(world, episodes[i : i + AT_ONCE], config) for i in range(0, len(episodes), AT_ONCE)
    ]
    ways = {
        "copy (the first frame again)": lambda s: s.given[:, -1:].expand_as(s.true),
        "tokenizer floor": lambda s: floor(world, s),
    }
    go = by_horizon if world.multi else one_by_one
    trained = []
    for label, paths in checkpoints(world, config).items():
        best = max(paths, key=lambda path: open_checkpoint(path, world, "cpu")["progress"]["best"])
        model, checkpoint = load_model(best, world, world.device)
        how = "{dtype}, {threads} threads".format(**checkpoint["config"])
        trained.append(Row(label, {}, *work_behind(checkpoint).values(), how))
        generator = torch.Generator(world.device).manual_seed(config.seed)
        ways[label] = lambda s, model=model, g=generator: go(model, world, s, config, g)

    names = [name for name in world.metrics if name not in REPEATS]
    scores = {}  # {row: {metric: [episodes, n]}}
    for label, way in ways.items():
        parts = []
        for s in starts:
            truth = s.given[:, -1], s.true, s.state
            parts.append(world.frame_scores(way(s)[:, None], truth, names))
        scores[label] = {n: torch.cat([part[n][:, 0].cpu() for part in parts]) for n in names}
        print(f"{label}: {names[0]} {scores[label][names[0]].mean():.4f}", flush=True)
    report(world, config, names, scores, trained)


def report(world, config, names, scores, trained):
    """Prints and writes each row after some of the actions, its mean, and what RLVR gains."""
    shown = sorted({1, *range(5, config.actions + 1, 5), config.actions})
    episodes = len(next(iter(scores.values()))[names[0]])
    text = f"{world.name}, {config.actions} actions in closed loop, {episodes} episodes\n"
    gains = {}
    for name in names:
        scale = world.metrics[name].scale
        table = []
        for label, row in scores.items():
            values = scale * row[name].mean(0)  # [n]
            cells = [f"{values[t - 1]:.3f}" for t in shown]
            table.append([label, *cells, f"{values.mean():.3f}"])
        header = [name, *(f"after {t}" for t in shown), "mean"]
        text += f"\n{markdown(header, table)}\n"
        for label in scores:
            if "MLE continued" not in scores or not (label == "RLVR" or config.each):
                continue
            if label in ("MLE", "MLE continued") or label in list(scores)[:2]:
                continue
            gap = (scores[label][name] - scores["MLE continued"][name]).mean(1)  # [episodes]
            mean, *ends = (scale * x for x in interval(gap, np.ones(episodes), range(episodes)))
            gains.setdefault(label, {})[name] = [mean, *ends]
            text += f"\n{label} − MLE continued: {mean:+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})\n"
    folder = Path(config.out) / (config.name or f"{world.name}-rollout")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("results.*"):
        old.replace(old.with_stem("results-before"))
    (folder / "results.md").write_text(text, encoding="utf-8")
    rows = {
        label: {name: (world.metrics[name].scale * row[name]).mean(0).tolist() for name in names}
        for label, row in scores.items()
    }
    results = {"config": asdict(config), **provenance(world, trained), "rows": rows}
    (folder / "results.json").write_text(json.dumps({**results, "gains": gains}, indent=1))
    print(f"\n{text}\nwritten to {folder / 'results.md'} and results.json")


def main(argv):
    config = parse_config(Config, argv, SMOKE)
    device, *_ = start_processes(config)
    world = load_world(config.world, device)
    if not hasattr(world, "episodes"):
        raise BadInput(f"--world={config.world} has no frames: use/plan.py acts in text worlds")
    judge(world, config)


if __name__ == "__main__":
    run_main(main)
