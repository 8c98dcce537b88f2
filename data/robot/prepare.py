"""
Makes robot video: episodes of a simulated table top, or your own.

    python data/robot/prepare.py                              64x64 frames of a simulated table top
    python data/robot/prepare.py --source=episodes --path=DIR --out=data/mine       .npz episodes

Two worlds come out. The first (data/robot, data/mine) predicts one frame from `context` frames, the
second (data/robot-multi, data/mine-multi) `horizon` frames from one; both use the same episodes. An
episode is image uint8 [T, H, W, 3] and action float32 [T, A], action[t] leading from image[t] to
image[t + 1] (the layout of the official converter), and optionally state float32 [T, S].
"""

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from common import BadInput, option, parse_config, run_main
from data.episodes import read_episodes, write_episode
from data.robot.sim import episode
from data.world import SPLITS, VideoTask, claim, home, load_task


@dataclass
class Config:
    source: str = option("procedural", "procedural", "episodes")  # episodes: your own
    path: str = ""  # the folder of your .npz episodes
    out: str = ""  # a name under data/ or a path; empty: robot (your own episodes: required)
    task: str = ""  # a task.py of your own, with further metrics; empty: the robot's
    episodes: int = option(500, 1, 10**6)  # procedural: training episodes
    frames: int = option(16, 3, 10**4)  # procedural: frames of each
    # share of episodes for validation and test; procedural: in addition to the training episodes
    val: float = option(0.06, 1e-6, 0.9)
    test: float = option(0.12, 1e-6, 0.9)
    context: int = option(2, 1, 64)  # context frames of the single-step world
    horizon: int = option(7, 2, 64)  # predicted frames of the multi-step world
    height: int = option(0, 0, 1024)  # resize frames to this height and width (0: as they are)
    width: int = option(0, 0, 1024)  # give both, or neither
    action_size: int = option(0, 0, 64)  # procedural: pad actions with zeros to so many numbers
    seed: int = option(0, 0, 2**31)


SMOKE = dict(episodes=6, frames=9, horizon=3, val=0.3, test=0.3, height=32, width=32)


def resized(image, config):
    """image [T, H, W, 3] at the resolution that was asked for."""
    if not config.height and not config.width:
        return image
    if not (config.height and config.width):
        raise BadInput("give both --height and --width, or neither")
    size = config.width, config.height
    frames = [Image.fromarray(frame).resize(size, Image.BILINEAR) for frame in image]
    return np.stack([np.asarray(frame) for frame in frames])


def procedural(config):
    """Yields (split, name, episode arrays); no two episodes have the same seed."""
    counts = {
        "train": config.episodes,
        "val": max(1, round(config.val * config.episodes)),
        "test": max(1, round(config.test * config.episodes)),
    }
    number = 0
    for split, count in counts.items():
        for _ in range(count):
            image, action, state, task, success = episode([config.seed, number], config.frames)
            padding = max(0, config.action_size - action.shape[1])
            arrays = dict(
                image=resized(image, config),
                action=np.pad(action, [(0, 0), (0, padding)]),
                state=state,
                task=np.array(task),
                success=np.array(success),
            )
            yield split, f"{number:06d}", arrays
            number += 1


def from_folder(config):
    """Yields (split, name, episode arrays) of a user's own episodes, split at random."""
    least = max(config.context, config.horizon) + 1
    found = read_episodes(config.path, least, "name the folder of your episodes with --path")
    n_val = max(1, round(config.val * len(found)))
    n_test = max(1, round(config.test * len(found)))
    if n_val + n_test >= len(found):
        raise BadInput(
            f"{config.path} has {len(found)} episodes, of which {n_val} go to validation and "
            f"{n_test} to the test set: none is left to train on; add some, or lower --val, --test"
        )
    order = np.random.default_rng(config.seed).permutation(len(found))
    for n, e in enumerate(order):
        split = "test" if n < n_test else ("val" if n < n_test + n_val else "train")
        arrays = dict(image=resized(found[e].image, config), action=found[e].action)
        if found[e].state is not None:
            arrays["state"] = found[e].state
        yield split, f"{e:06d}", arrays


def world_folder(config):
    """Where the first world goes. Raises BadInput where something of the user's stands there."""
    own = config.source == "episodes"
    if own != bool(config.path) or (own and not config.out):
        raise BadInput("your own episodes need --source=episodes --path=DIR --out=data/NAME")
    if config.source == "procedural" and config.frames < max(config.context, config.horizon) + 1:
        raise BadInput("--frames must be more than --context and --horizon")
    folder = home(config.out or "robot")
    if own:
        source = Path(config.path).resolve()
        out = folder.resolve()
        if out == source or out in source.parents or source in out.parents:
            raise BadInput(
                f"--out={config.out} and --path={config.path} lie within each other; name a folder "
                f"elsewhere, and your episodes stay as they are"
            )
    claim(folder.with_name(f"{folder.name}-multi"), "video", ("meta.json",))
    return claim(folder, "video", (*SPLITS, "meta.json"))


def main(argv):
    # your own frames stay as they are
    own = {"height": 0, "width": 0} if "--source=episodes" in argv else {}
    config = parse_config(Config, argv, SMOKE | own)
    folder = world_folder(config)
    domain = Path(config.task).resolve().parent.name if config.task else "robot"
    task = load_task(domain, config.task, VideoTask)
    start = time.perf_counter()
    frames = {split: [] for split in SPLITS}
    errors = {split: [] for split in SPLITS}
    low = []
    high = []
    temporary = folder.with_name(f"{folder.name}.tmp{os.getpid()}")
    try:
        for split in SPLITS:
            (temporary / split).mkdir(parents=True)
        found = procedural(config) if config.source == "procedural" else from_folder(config)
        for split, number, arrays in found:
            write_episode(temporary / split / f"{number}.npz", **arrays)
            image = arrays["image"].astype(np.float32) / 255
            frames[split].append(len(image))
            errors[split].append(((image[1:] - image[:-1]) ** 2).mean())
            if split == "train":
                low.append(arrays["action"].min(0))
                high.append(arrays["action"].max(0))
        meta = {
            "form": "video",
            "domain": domain,
            "reward": task.reward,
            "context_frames": config.context,
            "horizon": 1,
            "action_low": np.min(low, axis=0).tolist(),
            "action_high": np.max(high, axis=0).tolist(),
        }
        (temporary / "meta.json").write_text(json.dumps(meta))
        folder.mkdir(parents=True, exist_ok=True)
        # what our world consisted of before goes; code that may stand in the folder stays
        for part in (*SPLITS, "meta.json"):
            shutil.rmtree(folder / part, ignore_errors=True)
            os.replace(temporary / part, folder / part)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    multi = folder.with_name(f"{folder.name}-multi")
    multi.mkdir(exist_ok=True)
    meta.update(horizon=config.horizon, episodes=os.path.relpath(folder, multi))
    (multi / "meta.json").write_text(json.dumps(meta))

    seconds = time.perf_counter() - start
    for split, counts in frames.items():
        error = float(np.mean(errors[split]))
        print(
            f"{folder / split}: {len(counts):,} episodes, {sum(counts):,} frames; repeating the "
            f"last frame: MSE {error:.5f}, PSNR {10 * np.log10(1 / max(error, 1e-10)):.1f} dB"
        )
    print(
        f"worlds: {folder} (one frame from {config.context}), {multi} ({config.horizon} frames "
        f"from one); {sum(map(sum, frames.values())) / seconds:,.0f} frames/s"
    )


if __name__ == "__main__":
    run_main(main)
