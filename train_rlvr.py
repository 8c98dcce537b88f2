"""
Stage 2: reinforcement learning with verifiable rewards. The world model samples a group of answers to each prompt, every answer is DECODED
into a predicted next state and scored with the metric it will be judged by, and GRPO makes the better-than-average answers more likely.

one process      python train_rlvr.py --world=textgame                 (after: python train_mle.py --world=textgame)
several GPUs     torchrun --nproc_per_node=8 train_rlvr.py --world=bytesized32
a laptop test    python train_rlvr.py --preset=smoke                   (after: python train_mle.py --preset=smoke)
go on            python train_rlvr.py --world=textgame --resume

GRPO is "DeepSeekMath", arXiv 2402.03300; the recipe is "RLVR-World", arXiv 2505.13934. What to watch: reward up, KL small, and validation
up; the loss itself says nothing (at the first update the ratio is 1 and the advantages of a group sum to 0, so the loss is 0).
"""
import copy
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common import (BadInput, Guard, MetricsLog, all_reduce, autocast, is_main_process, load_checkpoint, newest_checkpoint, one_of, parse_config,
                    random_states, resume_command, run_main, save_checkpoint, set_random_states, start_processes, watch_signals)
from data import evaluate, load_world, refuse_foreign_options, reward_terms, weighted_sum
from model import Model, ModelConfig


@dataclass
class Config:
    world: str = "textgame"     # a folder, or its name under data/
    name: str = ""              # results go to out/<name>; empty: <world>-rlvr
    init_from: str = ""         # the checkpoint to post-train; empty: out/<world>-mle/best.pt
    resume: bool = False        # go on with out/<name>/last.pt
    # the reward and the rollouts
    reward: str = ""            # a weighted sum of the world's metrics such as strict_task or official_f1+0.5*exact_match; empty: the world's own
    prompts: int = 32           # prompts per step and process
    group: int = 16             # G, responses to each prompt
    temperature: float = 1.0    # of the rollouts; policy and reference are scored at the same temperature
    choose: str = ""            # weighted sum of metrics by which best.pt is chosen on validation; empty: the world's own
    lpips_weights: str = ""     # folder of the public VGG16 and LPIPS weights, for the metric lpips of video worlds
    changed: float = -1.0       # share of prompts whose transition changes something; -1: as in the data
    power: float = 1.0          # a kind of game is drawn with probability ~ (its records)^power
    renumber: float = 0.0       # share of prompts whose uuids are permuted (text games)
    redraw: int = 0             # up to this many further draws to replace prompts whose rewards are all equal (they teach nothing)
    # GRPO
    advantage: str = "grpo"     # grpo: (r - mean) / std of the group; mean: no division (Dr. GRPO); loo: leave-one-out (RLOO)
    supervision: str = "outcome"  # outcome: one advantage for a whole answer; process: each frame's tokens answer for the frames from it on
    ratio: str = "token"        # importance ratio of each token, or of the whole sequence (GSPO)
    aggregation: str = "token"  # mean over all tokens; sequence: mean over sequences of their token mean; fixed: sum / (sequences * R) (Dr. GRPO)
    clip_low: float = 0.2       # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.2
    dual_clip: float = 3.0      # bound c of the loss for negative advantages; 0: none
    kl: float = 1e-3            # weight of the KL penalty towards the starting model; 0: no reference model
    kl_kind: str = "k3"         # estimator of the KL: k1, k2 or k3
    entropy: float = 0.0        # weight of an entropy bonus
    updates: int = 2            # optimizer steps per rollout batch: it is cut into so many mini-batches
    epochs: int = 1             # passes over each rollout batch
    recompute_old: str = "auto" # old log-probabilities from a forward pass: true, false (the sampler's), auto (true in bf16)
    # the optimizer
    lr: float = 3e-4            # constant after warm-up
    warmup: int = 5             # steps of linear warm-up
    decay: float = 0.0          # the rate falls to 0 over this last part of the run
    weight_decay: float = 0.0
    max_norm: float = 1.0       # gradient norm
    # how long
    steps: int = 200            # rollout batches
    seconds: float = 0.0        # stop after this much training time, validation not counted (0: no limit)
    eval_every: int = 10        # steps between validations
    eval_records: int = 256     # validation records
    eval_temperature: float = 0.0  # of the answers to them (0: greedy); best.pt is best at this temperature
    # the machine
    micro_batch: int = 16       # prompts per forward and backward pass
    rollout_batch: int = 0      # prompts sampled at a time, which needs less memory for each than the update (0: micro_batch)
    dtype: str = "auto"         # float32, bfloat16 (autocast) or auto
    compile: bool = False       # torch.compile the model's blocks (needs a compiler)
    device: str = "auto"        # cpu, cuda, mps or auto
    seed: int = 0
    wandb: str = ""             # wandb project to log to as well


PAPER = dict(group=5, prompts=128, lr=1e-6, warmup=1, kl=1e-3, entropy=1e-3, dual_clip=0.0, steps=300)  # PAPER.md, "Recipes"
PAPER_VIDEO = dict(group=16, prompts=128, updates=4, lr=5e-5, warmup=1, kl=1e-3, steps=150, reward="mae+lpips", choose="mae", micro_batch=4, rollout_batch=64,
                   eval_records=64)
PRESETS = {
    "textgame": dict(world="textgame", group=8, changed=0.6, steps=1000, seconds=90, micro_batch=8, eval_records=512),
    "webnav": dict(world="webnav", group=8, steps=1000, seconds=90),
    "bytesized32": dict(world="bytesized32", group=8, changed=0.5, power=0.3, renumber=0.7, lr=3e-5, steps=1000, seconds=330, micro_batch=8,
                        eval_every=20, eval_records=899),
    "robot": dict(world="robot", prompts=16, steps=1000, seconds=100, eval_records=128),
    "robot-large": dict(world="robot-large", steps=100000, seconds=900, eval_every=20),
    "robot-large-multi": dict(world="robot-large-multi", prompts=16, supervision="process", decay=0.7, steps=100000, seconds=1500, eval_temperature=1.0,
                              reward="mae+0.5*ssim+0.1*repetition"),
    "paper-single": dict(PAPER_VIDEO, world="paper"),
    "paper-multi": dict(PAPER_VIDEO, world="paper-multi"),
    "smoke": dict(prompts=4, group=4, steps=3, eval_every=2, eval_records=8, micro_batch=2),
    "paper-textgame": dict(PAPER, world="bytesized32", updates=2),
    "paper-webnav": dict(PAPER, world="webarena", prompts=64, updates=4, steps=1500, reward="official_f1"),
}

# ---------------------------------------------------------------------------------------------------------------------
# GRPO, as pure functions


def group_advantages(rewards, kind="grpo", eps=1e-6):
    """
    How much better each answer is than its group. rewards [B, G] -> advantages [B, G] fp32.

    grpo: (r - mean) / (std + eps), std unbiased. mean: r - mean (Dr. GRPO, arXiv 2503.20783). loo: r - mean of the others (RLOO, arXiv
    2402.14740). Exactly 0 where all rewards of a group are equal up to rounding (max - min <= 1e-6 max(1, |mean|)), and for G = 1.
    """
    one_of("advantage", kind, ("grpo", "mean", "loo"))
    rewards = rewards.float()
    B, G = rewards.shape
    if G == 1:
        return torch.zeros_like(rewards)
    mean = rewards.mean(1, keepdim=True)
    advantages = rewards - mean
    if kind == "grpo":
        advantages = advantages / (rewards.std(1, keepdim=True) + eps)
    if kind == "loo":
        advantages = advantages * (G / (G - 1))
    return advantages.masked_fill(equal_rewards(rewards)[:, None], 0.0)


def process_advantages(rewards, frame_of_token, kind="grpo"):
    """
    Advantages of tokens where every frame has a reward of its own (process supervision, "DeepSeekMath" 4.1.3): a token cannot change the frames
    before its own, so it is compared within the group by the sum of the rewards from its own frame on.

    rewards [B, G, F], frame_of_token [R] -> [B, G, R]. With F = 1 all tokens have the advantage of group_advantages.
    """
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)  # [B, G, F]
    return torch.stack([group_advantages(column, kind) for column in to_go.unbind(-1)], dim=-1)[..., frame_of_token]


def equal_rewards(rewards):
    """rewards [B, G] -> [B] bool: the groups without any difference to learn from."""
    return rewards.amax(1) - rewards.amin(1) <= 1e-6 * rewards.mean(1).abs().clamp(min=1)


def aggregate(values, mask, kind="token", tokens=None, sequences=None, longest=None):
    """
    One number out of per-token values [..., R] under mask [..., R].

    token: sum / tokens. sequence: mean over sequences of the token mean. fixed: sum / (sequences * longest). tokens and sequences are those of
    the WHOLE mini-batch (all ranks and micro-batches), longest is the longest response there can be; by default all three are this tensor's.
    So splitting a mini-batch, or trimming its padding, never changes the gradient.
    """
    one_of("aggregation", kind, ("token", "sequence", "fixed"))
    values = values.masked_fill(~mask, 0.0)
    tokens = mask.sum() if tokens is None else tokens
    sequences = mask[..., 0].numel() if sequences is None else sequences
    if kind == "token":
        return values.sum() / tokens
    if kind == "sequence":
        return (values.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / sequences
    return values.sum() / (sequences * (longest or values.size(-1)))


def policy_loss(logprob, old_logprob, advantages, mask, clip_low=0.2, clip_high=0.2, dual_clip=3.0, ratio="token"):
    """
    The clipped surrogate loss per token. logprob, old_logprob, mask [..., R]; advantages [...], one per response, or [..., R].

    PPO (arXiv 1707.06347): max(-rho A, -clip(rho, 1 - low, 1 + high) A); for A < 0 at most -c A (dual clip, arXiv 1912.09729; c = 0: off).
    rho is the ratio of each token, or for ratio="sequence" the geometric mean over the response (GSPO, arXiv 2507.18071).
    Returns (loss, rho, clipped), each [..., R]; clipped marks tokens whose gradient the clip (not the dual clip) has cut.
    """
    one_of("ratio", ratio, ("token", "sequence"))
    difference = (logprob - old_logprob).masked_fill(~mask, 0.0)  # before exp: a wild value under the mask must not become NaN
    if ratio == "sequence":
        difference = (difference.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)).expand_as(difference)
    rho = difference.clamp(-20, 20).exp()
    A = advantages if advantages.dim() == logprob.dim() else advantages[..., None]
    plain, clipped = -rho * A, -rho.clamp(1 - clip_low, 1 + clip_high) * A
    loss = torch.maximum(plain, clipped)
    if dual_clip:
        loss = torch.where(A < 0, torch.minimum(loss, -dual_clip * A), loss)
    return loss, rho, (clipped > plain) & mask


def kl_estimate(logprob, ref_logprob, kind="k3"):
    """
    Estimate of KL(policy || reference) per token from samples of the policy (Schulman, "Approximating KL divergence"), any shape.

    With d = ref_logprob - logprob, clamped to [-20, 20]: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d, at most 10.
    """
    d = (ref_logprob - logprob).clamp(-20, 20)
    one_of("kl_kind", kind, ("k1", "k2", "k3"))
    if kind == "k1":
        return -d
    if kind == "k2":
        return d.square() / 2
    return (torch.expm1(d) - d).clamp(max=10)  # expm1: exp(d) - 1 loses all digits near 0


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts


@dataclass
class Experience:
    """Answers to a few prompts and all that the update needs of them. B prompts, G responses, R tokens."""
    prompt: torch.Tensor        # [B, P]
    prompt_len: torch.Tensor    # [B]
    tokens: torch.Tensor        # [B, G, R]
    mask: torch.Tensor          # [B, G, R] sampled tokens up to and including the end token; not the forced ones
    ended: torch.Tensor         # [B, G] whether the end token was sampled
    rewards: torch.Tensor       # [B, G]
    advantages: torch.Tensor    # [B, G], or of each token [B, G, R]
    old_logprob: torch.Tensor   # [B, G, R]
    ref_logprob: torch.Tensor = None  # [B, G, R]


PER_TOKEN = ("tokens", "mask", "advantages", "old_logprob", "ref_logprob")  # fields whose last dimension is R (advantages: or there is none)


def rollout(model, world, numbers, terms, config, context, generator, rng):
    """Samples and scores G answers to each of the training prompts `numbers`. Returns (Experience, seconds sampling, seconds scoring)."""
    start = time.perf_counter()
    batch = world.batch("train", numbers, config.renumber, rng)
    with context:
        sampled = model.sample(batch.prompt, batch.prompt_len, config.group, world.response_len, world.eos_id, world.legal(), batch.forced,
                               config.temperature, generator=generator)
    mask = sampled.mask()
    if batch.forced is not None:
        mask = mask & (batch.forced < 0)[:, None]
    longest = int(sampled.length.max())
    middle = time.perf_counter()
    names = [name for _, name in terms]
    if config.supervision == "process":
        frames = weighted_sum(world, terms, world.score(batch, sampled.tokens, names, per_frame=True))  # [B, G, F]
        rewards, advantages = frames.mean(-1), process_advantages(frames, world.frame_of_token(), config.advantage)[..., :longest]
    else:
        rewards = weighted_sum(world, terms, world.score(batch, sampled.tokens, names))  # [B, G]
        advantages = group_advantages(rewards, config.advantage)
    experience = Experience(batch.prompt, batch.prompt_len, sampled.tokens[..., :longest], mask[..., :longest], sampled.ended, rewards, advantages,
                            sampled.logprob[..., :longest])
    return experience, middle - start, time.perf_counter() - middle


def select(experience, rows):
    """The prompts `rows` [n] of an Experience."""
    return Experience(*(None if field is None else field[rows] for field in vars(experience).values()))


def pieces(experience, size):
    """Cuts an Experience into pieces of `size` prompts, prompts with short answers first, each trimmed to its own longest prompt and answer."""
    order = experience.mask.sum(-1).amax(1).argsort()
    for rows in order.split(size):
        e = select(experience, rows)
        P, R = int(e.prompt_len.max()), int(e.mask.any(0).any(0).nonzero().max()) + 1
        yield rows, replace(e, prompt=e.prompt[:, :P], **{name: field[..., :R] for name, field in vars(e).items() if name in PER_TOKEN
                                                         and field is not None and field.dim() == 3})


def join(experiences, eos_id):
    """Puts Experiences together again, padding prompts and responses to the longest."""
    def cat(name):
        tensors = [getattr(e, name) for e in experiences]
        if tensors[0] is None:
            return None
        if name == "prompt" or name in PER_TOKEN and tensors[0].dim() == 3:  # the last dimension is P or R
            longest = max(t.size(-1) for t in tensors)
            filler = eos_id or 0 if name in ("prompt", "tokens") else 0
            tensors = [torch.nn.functional.pad(t, (0, longest - t.size(-1)), value=filler) for t in tensors]
        return torch.cat(tensors)
    return Experience(*(cat(name) for name in Experience.__dataclass_fields__))


def legal_positions(world, R):
    """The world's legal mask [R, V] for responses cut to R tokens, or None."""
    legal = world.legal()
    return None if legal is None else legal[:R]


@torch.no_grad()
def score_tokens(model, world, experience, config, context):
    """Log-probabilities [B, G, R] of the sampled tokens under a model, at the temperature and legal mask of the rollouts."""
    logprob = torch.zeros(experience.tokens.shape, device=experience.tokens.device)
    for rows, e in pieces(experience, config.micro_batch):
        with context:
            logprob[rows, :, :e.tokens.size(-1)] = model(e.prompt, e.prompt_len, e.tokens, e.mask, legal_positions(world, e.tokens.size(-1)),
                                                         config.temperature, entropy=False)[0]
    return logprob


# ---------------------------------------------------------------------------------------------------------------------
# The update


def update(network, model, optimizer, world, experience, config, context, world_size):
    """
    One optimizer step on a mini-batch, cut into micro-batches. Returns sums over the mini-batch for the log, as a dictionary.

    Every denominator is that of the global mini-batch: neither micro-batches nor ranks change the gradient.
    """
    tokens, sequences = all_reduce([experience.mask.sum().item(), experience.rewards.numel()])
    totals = dict.fromkeys(("loss", "kl", "entropy", "clipped", "ratio", "ratio_error"), 0.0)
    parts = list(pieces(experience, config.micro_batch))
    for i, (_, e) in enumerate(parts):
        with nullcontext() if world_size == 1 or i == len(parts) - 1 else network.no_sync():  # exchange gradients once, at the end
            with context:
                logprob, entropy = network(e.prompt, e.prompt_len, e.tokens, e.mask, legal_positions(world, e.tokens.size(-1)), config.temperature)
            loss, rho, clipped = policy_loss(logprob, e.old_logprob, e.advantages, e.mask, config.clip_low, config.clip_high,
                                             config.dual_clip, config.ratio)
            if config.kl:
                penalty = kl_estimate(logprob, e.ref_logprob, config.kl_kind)
                totals["kl"] += penalty.detach().masked_fill(~e.mask, 0).sum()
                loss = loss + config.kl * penalty
            if config.entropy:
                loss = loss - config.entropy * entropy
            loss = aggregate(loss, e.mask, config.aggregation, tokens, sequences, world.response_len)
            (loss * world_size).backward()  # DDP averages over ranks, we want the sum
        totals["loss"] += loss.detach()
        totals["entropy"] += entropy.detach().sum()
        totals["clipped"] += clipped.sum()
        totals["ratio"] += rho.detach().masked_fill(~e.mask, 0).sum()
        totals["ratio_error"] += (rho.detach() - 1).abs().masked_fill(~e.mask, 0).sum()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_norm).item()
    if math.isfinite(norm):  # the loop's guard counts those that are not
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    names = list(totals)
    values = all_reduce([float(totals[name]) for name in names])
    return dict(zip(names, [values[0]] + [v / tokens for v in values[1:]]), norm=norm)


def troubles(rows):
    """Sentences about what the last rows of the log look like, {kind: sentence}: what is wrong and what to try."""
    found = {}
    if len(rows) >= 20 and all(row["equal_groups"] == 1 for row in rows[-20:]):
        found["equal"] = "all groups of the last 20 steps had equal rewards, so nothing is learned; try a higher --temperature, "\
                         "a larger --group or another --reward"
    if rows[-1]["limit"] > 0.5:
        found["limit"] = "more than half of the answers never end; try a lower --lr or a higher --kl, or go back to an earlier checkpoint"
    if rows[-1]["kl"] > 1:
        found["kl"] = "the policy is more than 1 nat per token away from the starting model; try a lower --lr or a higher --kl"
    return found


def main(argv):
    config = parse_config(Config, argv, PRESETS)
    device, rank, world_size = start_processes(config.device, config.seed)
    for name, choices in (("advantage", ("grpo", "mean", "loo")), ("ratio", ("token", "sequence")), ("kl_kind", ("k1", "k2", "k3")),
                          ("supervision", ("outcome", "process")), ("aggregation", ("token", "sequence", "fixed")), ("recompute_old", ("auto", "true", "false"))):
        one_of(name, getattr(config, name), choices)
    if config.group < 2 or config.temperature <= 0 or config.eval_temperature < 0 or config.prompts % config.updates or not 0 <= config.decay <= 1 \
            or config.micro_batch < 1 or config.rollout_batch < 0:
        raise BadInput("--group must be at least 2, --temperature above 0, --eval_temperature at least 0, --decay from 0 to 1, --micro_batch at least 1, "
                       "--rollout_batch at least 0, and --prompts a multiple of --updates")
    world = load_world(config.world, device, config.lpips_weights)
    refuse_foreign_options(world, config)
    terms, chosen_by = reward_terms(world, config.reward or world.reward), config.choose or world.headline
    headline = reward_terms(world, chosen_by)
    if config.supervision == "process" and (getattr(world, "horizon", 1) == 1 or not all(name in world.metrics and name != "last_repeats" for _, name in terms)):
        raise BadInput("--supervision=process needs a world that predicts several frames, and a reward of metrics that each frame has: none of the last "
                       "frame only, none discounted")
    folder = Path("out") / (config.name or f"{Path(config.world).name}-rlvr")
    context = autocast(device, config.dtype)
    recompute = config.recompute_old == "true" or (config.recompute_old == "auto" and not isinstance(context, nullcontext))

    # -----------------------------------------------------------------------------------------------------------------
    # policy, reference, optimizer
    name = Path(config.world).name
    path = folder / "last.pt" if config.resume else config.init_from or f"out/{name}-mle/best.pt"
    checkpoint = (newest_checkpoint if config.resume else load_checkpoint)(path, device, make=f"python train_mle.py --world={config.world}")
    if checkpoint["world"] != world.fingerprint:
        raise BadInput(f"{path} was trained on another world ({checkpoint['world']}, not {world.fingerprint}); name the right one with --world or --init_from")
    model = Model(ModelConfig(**checkpoint["model_config"])).to(device)
    if model.config.block_size < world.block_size:
        raise BadInput(f"{path} was trained with block_size {model.config.block_size}, but {config.world} has sequences of {world.block_size} "
                       f"tokens; train it on this world: python train_mle.py --world={config.world}")
    model.load_state_dict(checkpoint["reference"] if config.resume else checkpoint["model"])
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    model.load_state_dict(checkpoint["model"])
    model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=device.type == "cuda")
    step, trained, best, evaluated = 0, 0.0, -math.inf, -1
    before = checkpoint["seconds_before"] + (0 if config.resume else checkpoint["seconds"])  # of the stages this one builds on
    if config.resume:
        optimizer.load_state_dict(checkpoint["optimizer"])
        step, trained, best, evaluated = checkpoint["progress"]
        set_random_states(checkpoint["random"])
    if config.compile:
        model.compile_blocks()
    network = DistributedDataParallel(model) if world_size > 1 else model
    log = MetricsLog(folder, asdict(config), config.wandb, checkpoint["log_position"] if config.resume else 0)
    guard, asked = Guard(folder / "last.pt"), watch_signals()
    val = np.random.default_rng(0).permutation(len(world.records["val"]))[:config.eval_records].tolist()

    def save(filename):
        if is_main_process():
            save_checkpoint(folder / filename, {
                "model": model.state_dict(), "reference": reference.state_dict(), "optimizer": optimizer.state_dict(), "stage": "rlvr",
                "config": asdict(config), "model_config": asdict(model.config), "world": world.fingerprint, "random": random_states(),
                "seconds": trained, "seconds_before": before, "progress": (step, trained, best, evaluated), "log_position": log.position()},
                keep=filename == "last.pt")

    # -----------------------------------------------------------------------------------------------------------------
    # the loop: sample, decode and score, compare within the group, update
    bar = tqdm(disable=not is_main_process(), unit="step", initial=step, total=config.steps)
    recent, told = [], set()
    while True:
        finished = step >= config.steps or (config.seconds and trained >= config.seconds)
        if evaluated != step and (step % config.eval_every == 0 or finished):
            scores, answers = evaluate(model, world, "val", val, list(world.metrics), temperature=config.eval_temperature,
                                       generator=torch.Generator(device).manual_seed(0))
            means = {f"val_{n}": v.mean().item() for n, v in scores.items()}
            value = weighted_sum(world, headline, scores).mean().item()
            if value > best:
                best = value
                save("best.pt")
            log.write(step, train_seconds=trained, **means)
            if is_main_process():
                how = f"T={config.eval_temperature:g}" if config.eval_temperature else "greedy"
                tqdm.write(f"step {step}: validation, {how}: {', '.join(f'{n[4:]} {v:.4f}' for n, v in means.items())} "
                           f"(best {chosen_by} {best:.4f}), {answers['length']:.1f} tokens, {trained:.0f} s")
            evaluated = step
            save("last.pt")
        if finished:
            break
        if asked():
            save("last.pt")
            break

        # sample and score; the random numbers of a step depend on seed, step and rank only, so resuming is exact and ranks differ
        start = time.perf_counter()
        rng = np.random.default_rng([config.seed, step, rank])
        generator = torch.Generator(device).manual_seed(int(rng.integers(2 ** 62)))
        kept, sampling, scoring, drawn_records, wasted = [], 0.0, 0.0, [], 0
        for attempt in range(config.redraw + 1):
            missing = config.prompts - sum(len(e.prompt) for e in kept)
            if not missing:
                break
            numbers = sorted(world.draw("train", missing, rng, config.changed, config.power), key=lambda i: world.prompt_length("train", i))
            drawn_records += numbers
            size = config.rollout_batch or config.micro_batch
            for i in range(0, missing, size):
                e, seconds_sampling, seconds_scoring = rollout(model, world, numbers[i:i + size], terms, config, context, generator, rng)
                flat = equal_rewards(e.rewards)
                sampling, scoring, wasted = sampling + seconds_sampling, scoring + seconds_scoring, wasted + flat.sum().item()
                kept.append(select(e, ~flat) if config.redraw and attempt < config.redraw else e)
        experience = join(kept, world.eos_id)
        sampler_error = None
        if recompute:
            sampled, experience.old_logprob = experience.old_logprob, score_tokens(model, world, experience, config, context)
            gap = (experience.old_logprob - sampled).expm1().abs().masked_fill(~experience.mask, 0).sum() / experience.mask.sum()
            sampler_error = all_reduce([gap.item()], "mean")[0]
        if config.kl:
            experience.ref_logprob = score_tokens(reference, world, experience, config, context)

        # update: every epoch cuts the prompts into `updates` mini-batches; a mini-batch is one optimizer step
        updating = time.perf_counter()
        left = 1 - max(step / config.steps, trained / config.seconds if config.seconds else 0.0)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / config.warmup, left / config.decay if config.decay else 1.0)
        rows = []
        for _ in range(config.epochs):
            order = torch.from_numpy(rng.permutation(config.prompts)).to(device)
            for chosen in order.chunk(config.updates):
                rows.append(update(network, model, optimizer, world, select(experience, chosen), config, context, world_size))
        end = time.perf_counter()
        step += 1
        trained = all_reduce([trained + end - start], "max")[0]
        lengths = experience.mask.sum(-1).float()
        mean = all_reduce([experience.rewards.mean().item(), experience.rewards.std(1).mean().item(), wasted / len(drawn_records), lengths.mean().item(),
                           1 - experience.ended.float().mean().item(), sampling, scoring, updating - start - sampling - scoring,
                           end - updating, lengths.sum().item() / (end - start)], "mean")
        row = dict(zip(("reward", "reward_std", "equal_groups", "length", "limit", "sampling_s", "scoring_s", "reference_s", "update_s",
                        "tokens_per_second"), mean))
        row["limit"] = row["limit"] if world.eos_id is not None else 0.0
        row.update({n: sum(r[n] for r in rows) / len(rows) for n in rows[0] if n != "ratio_error"})
        guard.finite(step, {n: sum(r[n] for r in rows) for n in ("loss", "ratio", "norm")} | {"reward": row["reward"]}, lambda: drawn_records)
        row["skipped"] = guard.skipped
        log.write(step, train_seconds=trained, **row, ratio_error_first=rows[0]["ratio_error"] if sampler_error is None else sampler_error, lr=optimizer.param_groups[0]["lr"])
        recent = [*recent[-19:], row]
        for kind, sentence in troubles(recent).items():
            if kind not in told and is_main_process():
                tqdm.write(f"step {step}: {sentence}")
            told.add(kind)
        bar.update()
        bar.set_postfix({n: f"{row[n]:.3g}" for n in ("reward", "equal_groups", "kl", "entropy", "length")}, refresh=False)
    bar.close()
    if is_main_process() and not finished:
        print(f"stopped after step {step}, all is saved; go on with: {resume_command(argv)}")
    elif is_main_process():
        print(f"done: {step} steps in {trained:.0f} s of training; best validation {chosen_by} {best:.4f} in {folder / 'best.pt'}")


if __name__ == "__main__":
    run_main(main)
