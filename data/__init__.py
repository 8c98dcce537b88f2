"""load_world(name): the one way from a name on the command line to a world."""
import json
from pathlib import Path

import torch

from common import BadInput
from rewards import parse_reward


def load_world(name, device="cpu", lpips_weights=""):
    """
    The world in the folder `name`, or in data/<name> beside this file. Raises BadInput if there is none, naming the command that makes it.

    A world is all that the training scripts know of a domain: tokens, batches, what may stand where, and the metrics of what is decoded.
    lpips_weights: a folder with the public VGG16 and LPIPS weights, for the metric lpips of video worlds.
    """
    folder = Path(name) if (Path(name) / "meta.json").is_file() else Path(__file__).parent / name
    try:
        video = json.loads((folder / "meta.json").read_text())["domain"] == "video"
    except (OSError, ValueError, KeyError, TypeError):
        video = False  # TextWorld says what is wrong
    if video:
        from data.video import VideoWorld
        return VideoWorld(folder, device, lpips_weights)
    if lpips_weights:
        raise BadInput(f"--lpips_weights is for video worlds, and {name} is a text world: leave it out")
    from data.text import TextWorld
    return TextWorld(folder, device)


def refuse_foreign_options(world, config):
    """Raises BadInput for a training option that was set but says nothing of such a world; before anything of a run is written."""
    foreign = {"textgame": (), "video": ("changed", "power", "renumber", "prompt_loss", "branches")}.get(world.domain, ("renumber",))
    for name in foreign:
        if getattr(config, name, None) != getattr(type(config), name, None):
            raise BadInput(f"--{name} says nothing of worlds of the kind {world.domain!r}, such as {config.world}: leave it out")


def reward_terms(world, text):
    """'mae+0.5*ssim' -> [(1.0, 'mae'), (0.5, 'ssim')] of the metrics that the world has. Raises BadInput for anything else."""
    try:
        return parse_reward(text, (*world.metrics, *world.variants))
    except ValueError as error:
        hint = "; lpips needs weights: --lpips_weights=FOLDER" if "lpips" in text and "lpips" not in world.metrics and "mae" in world.metrics else ""
        raise BadInput(f"the reward {text!r}: {error}{hint}") from None


def weighted_sum(world, terms, scores):
    """scores {name: [N, G]} -> their sum [N, G] by terms [(weight, name)], each metric with the sign that makes more better."""
    return sum(weight * world.signs[name] * scores[name].float() for weight, name in terms)


@torch.no_grad()
def evaluate(model, world, split, indices, names, G=1, temperature=0.0, top_k=0, top_p=1.0, batch_size=64, generator=None):
    """
    Samples G responses to each of the records `indices` of a split and scores what they decode to.

    Returns ({name: [N, G] fp32 on the CPU}, {"length": mean tokens, "limit": share without an end token}), rows in the order of indices.
    """
    model.eval()
    order = sorted(range(len(indices)), key=lambda n: world.prompt_length(split, indices[n]))  # neighbours of like length: little padding
    scores = {name: torch.zeros(len(indices), G) for name in names}
    lengths, limits = [], []
    for i in range(0, len(order), batch_size):
        rows = order[i:i + batch_size]
        batch = world.batch(split, [indices[n] for n in rows])
        rollout = model.sample(batch.prompt, batch.prompt_len, G, world.response_len, world.eos_id, world.legal(), batch.forced,
                               temperature, top_k, top_p, generator)
        for name, values in world.score(batch, rollout.tokens, names).items():
            scores[name][rows] = values.cpu()
        lengths.append(rollout.length.float().mean().item())
        limits.append(1 - rollout.ended.float().mean().item() if world.eos_id is not None else 0.0)
    return scores, {"length": sum(lengths) / len(lengths), "limit": sum(limits) / len(limits)}
