"""
Look at a world model: read its predictions, or watch them.

    python sample.py --world=textgame                  a few transitions, right and wrong marked
    python sample.py --world=robot                     strips and films of a few episodes
    python sample.py --world=textgame --rlvr=my-run    of another run

Video: truth, the tokenizer's own reconstruction, MLE, RLVR, and the error of the last, one row
each; the arrow is the action.
"""

from dataclasses import dataclass
from pathlib import Path

# common first: it says how torch's threads wait, before torch is imported
from common import OUT, option, parse_config, run_main, start_processes

import numpy as np
import torch
from PIL import Image, ImageDraw

from data import load_world
from data.text import marked
from data.world import SPLITS
from evaluate import checkpoint_path, load_model
from generate import generate


@dataclass
class Config:
    world: str = "textgame"  # a folder, or its name under data/
    task: str = ""  # the world's task.py, where it is your own
    name: str = ""  # video: pictures go to out/<name>; empty: <world>-results
    mle: str = ""  # the run or checkpoint of stage 1; empty: <world>-mle
    rlvr: str = ""  # of stage 2; empty: <world>-rlvr, where there is one
    split: str = option("test", *SPLITS)
    number: int = option(4, 1, 10**6)  # transitions (video: episodes) to show
    temperature: float = option(0.0, 0.0, 100.0)  # 0: greedy
    color: bool = True  # colour the transitions shown
    device: str = "auto"  # cpu, cuda, mps or auto
    threads: int = option(2, 1, 1024)  # of a CPU
    seed: int = option(0, 0, 2**31)
    out: str = OUT  # the folder of all results


SMOKE = dict(number=2)
# colours and signs of lines
MARKS = {"right": (32, "✓"), "wrong": (31, "✗"), "missing": (33, "·")}


def answers(path, world, batch, config):
    """Ids [B, 1, R] of one answer of a checkpoint's model to each prompt of a batch."""
    model, _ = load_model(path, world, world.device)
    generator = torch.Generator(world.device).manual_seed(config.seed)
    return generate(model, batch, 1, config.temperature, generator).tokens


def paths(world, config):
    """{"MLE": path, "RLVR": path}, the second only where there is one or it was asked for."""
    mle = checkpoint_path(config.mle or f"{world.name}-mle", config.out)
    rlvr = checkpoint_path(config.rlvr or f"{world.name}-rlvr", config.out)
    found = {"MLE": mle}
    if config.rlvr or rlvr.is_file():
        found["RLVR"] = rlvr
    return found


# ------------------------------------------------------------------------------------------------
# A few transitions, as a person would read them


def show(world, config):
    """
    Prints state, action and the predicted difference. Where the answer's score is perfect its lines
    are right (✓), however they are put; otherwise each is marked right, wrong (✗) or missing (·).
    """
    path = list(paths(world, config).values())[-1]
    rng = np.random.default_rng(config.seed)
    indices = world.draw(config.split, config.number, rng, changed_fraction=0.75)
    batch = world.batch(config.split, indices)
    tokens = answers(path, world, batch, config)
    first = next(iter(world.metrics))
    names = list(dict.fromkeys([first, *(name for _, name in world.terms(world.reward))]))
    scores = world.score(batch, tokens, names)

    def paint(color, *words):
        text = " ".join(words)
        return f"\033[{color}m{text}\033[0m" if config.color else text

    how = f"T={config.temperature:g}" if config.temperature else "greedy"
    print(f"{path}, {how}: ✓ right, ✗ wrong, · missing\n")
    for n, (index, (answer,)) in enumerate(zip(indices, world.decode(batch, tokens))):
        record = world.records[config.split][index]
        print(paint(2, record.get("state", "").rstrip("\n")))
        print(paint(1, record["prompt"].rstrip("\n")))
        perfect = answer is not None and world.is_perfect(config.split, index, answer)
        for mark, line in marked(answer, record["response"], perfect):
            print("  " + paint(*MARKS[mark], line))
        values = ", ".join(f"{name} {score[n, 0]:.2f}" for name, score in scores.items())
        print(f"{values}\n{'-' * 60}")


# ------------------------------------------------------------------------------------------------
# A film, as a person would watch it


def film(world, config):
    """
    Writes a strip (.png) and an animation (.gif) of a few episodes: truth, tokenizer, MLE, RLVR and
    the error of the last of them.
    """
    folder = Path(config.out) / (config.name or f"{world.name}-results")
    folder.mkdir(parents=True, exist_ok=True)
    records = world.records[config.split]
    for number in range(min(config.number, len(world.episodes[config.split]))):
        segments = [i for i, (episode, *_) in enumerate(records) if episode == number]
        batch = world.batch(config.split, segments[: 1 if world.multi else 12])
        _, true = world.truth(config.split, batch.indices)  # [B, F, 3, H, W]
        floor = world.decode(batch, batch.response[:, None])[:, 0]
        rows = {"truth": true, "tokenizer": floor}
        for row, path in paths(world, config).items():
            rows[row] = world.decode(batch, answers(path, world, batch, config))[:, 0]
        last = list(rows.values())[-1]
        rows["error x4"] = (4 * (last - true).abs()).clamp(0, 1)
        rows = {row: frames.flatten(0, 1) for row, frames in rows.items()}  # [columns, 3, H, W]
        arrows = world.actions_shown(config.split, batch.indices)
        path = folder / f"{config.split}-{number}"
        draw_strip(rows, arrows, path)
        print(f"{path}.png and .gif: {', '.join(rows)}")


def draw_strip(rows, arrows, path):
    """
    rows {label: [n, 3, H, W] in [0, 1]}, arrows [n, 2] in [-1, 1], drawn on the first row -> a
    picture, path.png, and a film over its columns, path.gif.
    """
    height, width = next(iter(rows.values())).shape[-2:]
    scale = max(1, 128 // width)
    height, width = height * scale, width * scale
    margin = 64
    n = len(arrows)
    strip = Image.new("RGB", (margin + n * width, len(rows) * height), "white")
    pen = ImageDraw.Draw(strip)
    for r, (label, frames) in enumerate(rows.items()):
        pen.text((4, r * height + height // 2 - 6), label, fill="black")
        for c, frame in enumerate(frames):
            array = frame.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
            picture = Image.fromarray(array).resize((width, height), Image.NEAREST)
            strip.paste(picture, (margin + c * width, r * height))
    for c, (dx, dy) in enumerate(arrows.tolist()):
        x = margin + c * width + width // 2
        y = height // 2
        tip = x + dx * width / 3, y + dy * width / 3
        pen.line([(x, y), tip], fill="yellow", width=2)
        pen.ellipse([tip[0] - 3, tip[1] - 3, tip[0] + 3, tip[1] + 3], fill="yellow")
    strip.save(path.with_suffix(".png"))
    films = []
    for c in range(n):
        left = margin + c * width
        column = strip.crop((left, 0, left + width, len(rows) * height))
        frame = Image.new("RGB", (len(rows) * (width + 4), height + 14), "white")
        for r, label in enumerate(rows):
            part = column.crop((0, r * height, width, (r + 1) * height))
            frame.paste(part, (r * (width + 4), 14))
            ImageDraw.Draw(frame).text((r * (width + 4) + 2, 1), label, fill="black")
        films.append(frame)
    more = dict(append_images=films[1:], duration=300, loop=0)
    films[0].save(path.with_suffix(".gif"), save_all=True, **more)


def main(argv):
    config = parse_config(Config, argv, SMOKE)
    device, *_ = start_processes(config)
    world = load_world(config.world, device, config.task)
    if hasattr(world, "episodes"):
        film(world, config)
    else:
        show(world, config)


if __name__ == "__main__":
    run_main(main)
