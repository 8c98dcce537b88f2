"""
Makes robot video: episodes of a simulated table top, or your own.

python data/robot/prepare.py                                            # procedural: 64x64 frames, worlds data/robot and data/robot-multi
python data/robot/prepare.py --source=episodes --path=DIR               # a folder of .npz episodes: worlds data/<DIR> and data/<DIR>-multi

An episode is image uint8 [T, H, W, 3] and action float32 [T, A], action[t] leading from image[t] to image[t + 1] (the layout of the official
converter). The first world predicts one frame from `context` frames, the second `horizon` frames from one; both use the same episodes.
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
from common import BadInput, one_of, parse_config, run_main  # noqa: E402
from data.episodes import read_episodes, write_episode  # noqa: E402
from data.robot.sim import episode  # noqa: E402


@dataclass
class Config:
    source: str = "procedural"  # procedural, or episodes (your own)
    path: str = ""              # the folder of .npz episodes
    out: str = ""               # the world's folder; empty: data/robot, or data/<name of path>; the multi-step world stands beside it
    episodes: int = 500         # procedural: training episodes
    frames: int = 16            # procedural: frames of each
    val: float = 0.06           # share of episodes for validation; procedural: in addition to the training episodes
    test: float = 0.12          # and for the test set
    context: int = 2            # context frames of the single-step world
    horizon: int = 7            # predicted frames of the multi-step world
    height: int = 0             # resize frames to this height and width (0: as they are)
    width: int = 0              # give both, or neither
    action_size: int = 0        # procedural: numbers an action has, the further ones being zero (0: 4)
    seed: int = 0


PRESETS = {
    "robot-large": dict(out="data/robot-large", episodes=1000, val=0.04, test=0.06),
    "smoke": dict(episodes=6, frames=9, horizon=3, val=0.3, test=0.3),
    "paper": dict(out="data/paper", episodes=16, frames=12, height=256, width=320, action_size=13, context=4, horizon=7),  # the paper's shapes
}


def resized(image, config):
    """image [T, H, W, 3] at the resolution that was asked for."""
    if not config.height and not config.width:
        return image
    if not (config.height > 0 and config.width > 0):
        raise BadInput("give both --height and --width")
    return np.stack([np.asarray(Image.fromarray(frame).resize((config.width, config.height), Image.BILINEAR)) for frame in image])


def procedural(config):
    """Yields (split, name, episode arrays); no two episodes have the same seed."""
    counts = {"train": config.episodes, "val": max(1, round(config.val * config.episodes)), "test": max(1, round(config.test * config.episodes))}
    number = 0
    for split, count in counts.items():
        for _ in range(count):
            image, action, state, task, success = episode([config.seed, number], config.frames)
            action = np.pad(action, [(0, 0), (0, max(0, config.action_size - 4))])
            yield split, f"{number:06d}", dict(image=resized(image, config), action=action, state=state, task=np.array(task), success=np.array(success))
            number += 1


def from_folder(config):
    """Yields (split, name, episode arrays) of a user's own episodes, split at random."""
    found = read_episodes(config.path, 2, make="your converter, and name their folder with --path")
    if len(found) < 3:
        raise BadInput(f"{config.path} has {len(found)} episodes; at least three are needed, one for each split")
    n_val, n_test = max(1, round(config.val * len(found))), max(1, round(config.test * len(found)))
    order = np.random.default_rng(config.seed).permutation(len(found))
    for n, e in enumerate(order):
        split = "test" if n < n_test else "val" if n < n_test + n_val else "train"
        yield split, f"{e:06d}", dict(image=resized(found[e][0], config), action=found[e][1])


def main(argv):
    config = parse_config(Config, argv, PRESETS)
    one_of("source", config.source, ("procedural", "episodes"))
    if (config.source == "episodes") != bool(config.path):
        raise BadInput("--path=DIR and --source=episodes belong together")
    if config.context < 1 or config.horizon < 2 or config.frames < max(config.context, config.horizon) + 1 or config.episodes < 1:
        raise BadInput("--context must be at least 1, --horizon 2, --episodes 1, and --frames more than either of the first two")
    name = "robot" if config.source == "procedural" else Path(config.path).resolve().name
    folder = Path(config.out) if config.out else Path(__file__).resolve().parents[1] / name
    temporary = folder.with_name(f"{folder.name}.tmp{os.getpid()}")
    start, frames, errors, ranges = time.perf_counter(), {}, {}, []
    try:
        for split in ("train", "val", "test"):
            (temporary / split).mkdir(parents=True)
        for split, number, arrays in (procedural if config.source == "procedural" else from_folder)(config):
            write_episode(temporary / split / f"{number}.npz", **arrays)
            image = arrays["image"].astype(np.float32) / 255
            frames.setdefault(split, []).append(len(image))
            errors.setdefault(split, []).append(((image[1:] - image[:-1]) ** 2).mean())
            if split == "train":
                ranges.append((arrays["action"].min(0), arrays["action"].max(0)))
        meta = {"domain": "video", "reward": "mae+0.5*ssim", "context_frames": config.context, "horizon": 1,
                "action_low": np.min([low for low, _ in ranges], axis=0).tolist(), "action_high": np.max([high for _, high in ranges], axis=0).tolist()}
        (temporary / "meta.json").write_text(json.dumps(meta))
        folder.mkdir(parents=True, exist_ok=True)
        for part in (*frames, "meta.json"):  # what the world consisted of before goes, code that may stand in the folder stays
            shutil.rmtree(folder / part, ignore_errors=True)
            os.replace(temporary / part, folder / part)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    multi = folder.with_name(f"{folder.name}-multi")
    multi.mkdir(exist_ok=True)
    (multi / "meta.json").write_text(json.dumps({**meta, "horizon": config.horizon, "episodes": os.path.relpath(folder, multi)}))
    seconds = time.perf_counter() - start
    for split, counts in frames.items():
        error = float(np.mean(errors[split]))
        print(f"{folder / split}: {len(counts):,} episodes, {sum(counts):,} frames; repeating the last frame: MSE {error:.5f}, "
              f"PSNR {10 * np.log10(1 / max(error, 1e-10)):.1f} dB")
    print(f"worlds: {folder} (one frame from {config.context}), {multi} ({config.horizon} frames from one); "
          f"{sum(map(sum, frames.values())) / seconds:,.0f} frames/s")


if __name__ == "__main__":
    run_main(main)
