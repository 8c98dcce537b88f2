"""
Stage 2: reinforcement learning with verifiable rewards. The world model samples a group of answers
to each prompt, every answer is DECODED into a predicted next state and scored with the metric it
will be judged by, and GRPO makes the better-than-average answers more likely.

    python train_rlvr.py                           the default world, after train_mle.py
    torchrun --nproc_per_node=8 train_rlvr.py --world=bytesized32 --resume

Whole experiments are the pages in runs/. GRPO: "DeepSeekMath", arXiv 2402.03300; the recipe:
"RLVR-World", arXiv 2505.13934. Watch reward, KL and validation; the loss starts at 0, and is noise.
"""

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

# common first: it says how torch's threads wait, before torch is imported
from common import OUT, Run, all_reduce, one_of, option, parse_config
from common import ranks, run_main, share_of, start_processes

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from data import load_world
from evaluate import checkpoint_path, open_checkpoint, validate, validation_indices
from generate import generate
from model import Model, ModelConfig

# ------------------------------------------------------------------------------------------------
# GRPO, as pure functions


def group_advantages(rewards, kind="grpo", eps=1e-6):
    """
    How much better each answer is than its group. rewards [B, G] -> advantages [B, G] fp32.

    grpo: (r - mean) / (std + eps), std unbiased. mean: r - mean (Dr. GRPO, arXiv 2503.20783). loo:
    r - mean of the others (RLOO, arXiv 2402.14740). best: G shared among the best answers (RAFT,
    arXiv 2304.06767). Exactly 0 where all rewards of a group are equal up to rounding (max - min <=
    1e-6 max(1, |mean|)), and for G = 1.
    """
    one_of("advantage", kind, ("grpo", "mean", "loo", "best"))
    rewards = rewards.float()
    G = rewards.size(1)
    if G == 1:
        return torch.zeros_like(rewards)
    advantages = rewards - rewards.mean(1, keepdim=True)
    if kind == "grpo":
        advantages = advantages / (rewards.std(1, keepdim=True) + eps)
    if kind == "loo":
        advantages = advantages * (G / (G - 1))
    if kind == "best":
        best = (rewards == rewards.amax(1, keepdim=True)).float()
        advantages = best * G / best.sum(1, keepdim=True)
    return advantages.masked_fill(equal_rewards(rewards)[:, None], 0.0)


def process_advantages(rewards, frame_of_token, kind="grpo"):
    """
    Advantages of tokens where every frame has a reward (process supervision, "DeepSeekMath" 4.1.3):
    a token cannot change the frames before its own, so its group compares the sum of the rewards
    from there on. rewards [B, G, F], frame_of_token [R] -> [B, G, R]; F = 1: group_advantages.
    """
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)  # [B, G, F]
    by_frame = [group_advantages(column, kind) for column in to_go.unbind(-1)]
    return torch.stack(by_frame, dim=-1)[..., frame_of_token]


def equal_rewards(rewards):
    """rewards [B, G] -> [B] bool: the groups without any difference to learn from."""
    return rewards.amax(1) - rewards.amin(1) <= 1e-6 * rewards.mean(1).abs().clamp(min=1)


def aggregate(values, mask, kind="token", tokens=None, sequences=None, longest=None):
    """
    One number out of per-token values [..., R] under mask [..., R].

    token: sum / tokens. sequence: mean over sequences of the token mean. fixed: sum / (sequences *
    longest), the longest response there can be. tokens and sequences are those of the WHOLE
    mini-batch (default: this one's), so that splitting or trimming never changes the gradient.
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


def importance(logprob, old_logprob, mask, ratio="token"):
    """
    rho [..., R]: how much more likely each token has become since it was sampled, or for
    ratio="sequence" the geometric mean over the response (GSPO, arXiv 2507.18071).
    """
    one_of("ratio", ratio, ("token", "sequence"))
    # before exp: a wild value under the mask must not become NaN
    difference = (logprob - old_logprob).masked_fill(~mask, 0.0)
    if ratio == "sequence":
        mean = difference.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        difference = mean.expand_as(difference)
    return difference.clamp(-20, 20).exp()


def policy_loss(logprob, old_logprob, advantages, mask,
                clip_low=0.2, clip_high=0.2, dual_clip=3.0, ratio="token"):  # fmt: skip
    """
    The clipped surrogate loss per token. logprob, old_logprob, mask [..., R]; advantages [...], one
    per response, or [..., R].
    PPO (arXiv 1707.06347): max(-rho A, -clip(rho, 1 - low, 1 + high) A); for A < 0 at most -c A
    (dual clip, arXiv 1912.09729; c = 0: off); rho: see importance. Returns (loss, rho, clipped),
    each [..., R]; clipped marks tokens whose gradient the clip (not the dual clip) has cut.
    """
    rho = importance(logprob, old_logprob, mask, ratio)
    A = advantages if advantages.dim() == logprob.dim() else advantages[..., None]
    plain = -rho * A
    bounded = -rho.clamp(1 - clip_low, 1 + clip_high) * A
    loss = torch.maximum(plain, bounded)
    if dual_clip:
        loss = torch.where(A < 0, torch.minimum(loss, -dual_clip * A), loss)
    return loss, rho, (bounded > plain) & mask


def cispo_loss(logprob, old_logprob, advantages, mask, clip_low, clip_high, dual_clip, ratio):
    """
    CISPO (arXiv 2506.13585): REINFORCE with a bounded importance weight, -sg(clip(rho)) A logprob.
    No token loses its gradient. Arguments and results as policy_loss; dual_clip has no meaning.
    """
    rho = importance(logprob, old_logprob, mask, ratio)
    A = advantages if advantages.dim() == logprob.dim() else advantages[..., None]
    weight = rho.detach().clamp(1 - clip_low, 1 + clip_high)
    loss = -weight * A * logprob.masked_fill(~mask, 0.0)
    return loss, rho, (weight != rho.detach()) & mask


def kl_estimate(logprob, ref_logprob, kind="k3"):
    """
    Estimate of KL(policy || reference) per token from samples of the policy (Schulman,
    "Approximating KL divergence"), any shape. With d = ref_logprob - logprob, clamped to [-20, 20]:
    k1 = -d, k2 = d^2 / 2, and k3 = exp(d) - 1 - d, at most 10.
    """
    one_of("kl_estimator", kind, ("k1", "k2", "k3"))
    d = (ref_logprob - logprob).clamp(-20, 20)
    k3 = (torch.expm1(d) - d).clamp(max=10)  # expm1: exp(d) - 1 loses all digits near 0
    return {"k1": -d, "k2": d.square() / 2, "k3": k3}[kind]


class Algorithm(NamedTuple):
    """What makes GRPO and its kin different from each other."""

    advantages: str = "grpo"  # kind of group_advantages
    ratio: str = "token"  # kind of importance
    average: str = "token"  # kind of aggregate
    clip: tuple = (0.2, 0.2, 3.0)  # clip_low, clip_high and dual_clip of the loss
    loss: Callable = policy_loss


ALGORITHMS = {
    "grpo": Algorithm(),
    "grpo_single_clip": Algorithm(clip=(0.2, 0.2, 0.0)),  # the paper's, for text and web
    "dr_grpo": Algorithm(advantages="mean", average="fixed"),
    "rloo": Algorithm(advantages="loo"),
    "gspo": Algorithm(ratio="sequence", average="sequence", clip=(3e-4, 4e-4, 0.0)),
    "cispo": Algorithm(clip=(1.0, 4.0, 0.0), loss=cispo_loss),
    "raft": Algorithm(advantages="best", average="sequence", clip=(0.0, 0.0, 0.0), loss=cispo_loss),
}


@dataclass
class Config:
    world: str = "textgame"  # a folder, or its name under data/
    task: str = ""  # the world's task.py, where it is your own
    name: str = ""  # results go to out/<name>; empty: <world>-rlvr
    init_from: str = ""  # the run or checkpoint to post-train; empty: <world>-mle
    resume: bool = False  # go on with out/<name>/last.pt
    # the rollouts
    prompts_per_step: int = option(32, 1, 2**20)  # of all processes together
    group_size: int = option(8, 2, 4096)  # G, responses to each prompt
    temperature: float = option(1.0, 0.01, 100.0)  # policy and reference are scored at it, too
    changed_fraction: float = option(-1.0, -1.0, 1.0)  # text: prompts that change; -1: the data's
    kind_power: float = option(1.0, 0.0, 10.0)  # text: a game's probability ~ (its records)^this
    permute_ids: float = option(0.0, 0.0, 1.0)  # text games: share of prompts with other uuids
    redraw: int = option(0, 0, 100)  # draws to replace prompts whose rewards are all equal
    reward: str = ""  # a weighted sum of metrics, such as mae+0.5*ssim; empty: the world's own
    select_by: str = ""  # the reward by which best.pt is chosen; empty: the one that is trained
    lpips_weights: str = ""  # folder of the public VGG16 and LPIPS weights, for the metric lpips
    # the algorithm
    algorithm: str = option("grpo", *ALGORITHMS)  # what it is made of stands above
    # of the whole answer, or process: each frame's tokens answer for the frames from it on
    supervision: str = option("outcome", "outcome", "process")
    kl_coef: float = option(1e-3, 0.0, 1e3)  # weight of the KL to the starting model; 0: no KL
    kl_estimator: str = option("k3", "k1", "k2", "k3")
    entropy_coef: float = option(0.0, -1e3, 1e3)  # weight of an entropy bonus
    mle_coef: float = option(0.0, 0.0, 1e3)  # weight of the likelihood of the true answer
    num_minibatches: int = option(2, 1, 2**20)  # optimizer steps per rollout batch
    update_epochs: int = option(1, 1, 1000)  # passes over each rollout batch
    lr: float = option(3e-4, 0.0, 10.0)  # of Adam
    warmup: int = option(5, 1, 10**6)  # steps of linear warm-up
    decay: float = option(0.0, 0.0, 1.0)  # the rate falls to 0 over this last part of the run
    max_grad_norm: float = option(1.0, 1e-6, 1e9)
    # how long
    steps: int = option(40, 1, 10**9)  # rollout batches
    seconds: float = option(0.0, 0.0, 1e9)  # a cap on training time, if you want one (0: none)
    eval_every: int = option(10, 1, 10**9)  # steps between validations
    eval_records: int = option(512, 1, 10**9)  # validation records
    eval_temperature: float = option(0.0, 0.0, 100.0)  # of the answers to them; 0: greedy
    # the machine
    micro_batch_size: int = option(16, 1, 2**20)  # prompts per forward and backward pass
    rollout_batch_size: int = option(0, 0, 2**20)  # prompts sampled at a time; 0: micro_batch_size
    dtype: str = option("auto", "auto", "float32", "bfloat16")  # bfloat16 by autocast
    gradient_checkpointing: bool = False  # keep less for the backward pass, compute it again there
    compile: bool = False  # torch.compile the model's blocks (needs a compiler)
    device: str = "auto"  # cpu, cuda, mps or auto
    threads: int = option(2, 1, 1024)  # of a CPU
    seed: int = option(0, 0, 2**31)
    out: str = OUT  # the folder of all results
    wandb: str = ""  # wandb project to log to as well


SMOKE = dict(prompts_per_step=4, group_size=4, num_minibatches=2, micro_batch_size=2)
SMOKE.update(steps=3, eval_every=2, eval_records=8, rollout_batch_size=4)


@dataclass
class Experience:
    """Answers to B prompts and all that the update needs of them. G responses, R tokens."""

    prompt: torch.Tensor  # [B, P]
    prompt_len: torch.Tensor  # [B]
    tokens: torch.Tensor  # [B, G, R]
    mask: torch.Tensor  # [B, G, R] sampled tokens up to and including the end token
    length: torch.Tensor  # [B, G] of the answers, given tokens and end token included
    ended: torch.Tensor  # [B, G] whether the end token was sampled
    rewards: torch.Tensor  # [B, G]
    advantages: torch.Tensor  # [B, G], or of each token [B, G, R]
    old_logprob: torch.Tensor  # [B, G, R]
    ref_logprob: torch.Tensor = None  # [B, G, R]
    truth: torch.Tensor = None  # [B, 1, R] the true answer
    truth_mask: torch.Tensor = None  # [B, 1, R]

    def rows(self, chosen):  # [n] prompts
        return Experience(*(t if t is None else t[chosen] for t in vars(self).values()))

    def count_tokens(self, of="length"):
        """How many tokens one pass puts through the network (of="truth_mask": the true answers)."""
        return self.prompt_len.sum().item() + getattr(self, of).sum().item()

    def pieces(self, size):
        """Yields (rows, Experience) of `size` prompts at a time, trimmed to their longest."""
        for rows in self.mask.sum(-1).amax(1).argsort().split(size):
            e = self.rows(rows)
            R = int(e.mask.any(0).any(0).nonzero().max()) + 1
            trimmed = {"prompt": e.prompt[:, : int(e.prompt_len.max())]}
            for name in ("tokens", "mask", "advantages", "old_logprob", "ref_logprob"):
                value = getattr(e, name)
                if value is not None and value.dim() == 3:
                    trimmed[name] = value[..., :R]
            yield rows, replace(e, **trimmed)


def judge(world, batch, rollout, terms, config):
    """Decodes and scores the responses of a rollout -> Experience."""
    kind = ALGORITHMS[config.algorithm].advantages
    by_frame = config.supervision == "process"
    rewards = world.compute_reward(batch, rollout.tokens, terms, by_frame)  # [B, G] or [B, G, F]
    if by_frame:
        advantages = process_advantages(rewards, world.frame_of_token(), kind)  # [B, G, R]
        rewards = rewards.mean(-1)
    else:
        advantages = group_advantages(rewards, kind)  # [B, G]
    mask = rollout.mask()
    if batch.forced is not None:  # what the world gave is not the model's doing
        mask = mask & (batch.forced.reshape(len(mask), -1, mask.size(2)) < 0)
    question = F.pad(batch.prompt, (0, world.max_prompt - batch.prompt.size(1))), batch.prompt_len
    answer = rollout.tokens, mask, rollout.length, rollout.ended | (batch.eos_id is None)
    rest = 0, world.response_len - batch.response.size(1)
    truth = (F.pad(ids, rest)[:, None] for ids in (batch.response, batch.response_mask))
    return Experience(*question, *answer, rewards, advantages, rollout.logprob, None, *truth)


def collect(policy, world, terms, config, precision, rng, watch):
    """
    Samples and scores this process's share of a step's prompts; with --redraw prompts whose rewards
    are all equal are replaced. Returns (Experience, share of these, all indices drawn, tokens run).
    """
    n = config.prompts_per_step // ranks()
    generator = torch.Generator(world.device).manual_seed(int(rng.integers(2**62)))
    size = config.rollout_batch_size or config.micro_batch_size
    kept = []
    drawn = []
    wasted = tokens = 0
    for draws_left in range(config.redraw, -1, -1):
        missing = n - sum(len(e.prompt) for e in kept)
        if not missing:
            break
        indices = world.draw("train", missing, rng, config.changed_fraction, config.kind_power)
        indices.sort(key=lambda i: world.prompt_length("train", i))
        drawn += indices
        for i in range(0, missing, size):
            batch = world.batch("train", indices[i : i + size], config.permute_ids, rng)
            with precision:
                rollout = generate(policy, batch, config.group_size, config.temperature, generator)
            watch.lap("sampling")
            experience = judge(world, batch, rollout, terms, config)
            flat = equal_rewards(experience.rewards)
            wasted += flat.sum().item()
            tokens += experience.count_tokens()
            kept.append(experience.rows(~flat) if draws_left else experience)
            watch.lap("scoring")
    columns = zip(*(vars(e).values() for e in kept))
    joined = Experience(*(None if c[0] is None else torch.cat(c) for c in columns))
    return joined, wasted / len(drawn), drawn, tokens


@torch.no_grad()
def score(model, world, experience, config, precision):
    """Log-probabilities [B, G, R] of the sampled tokens, at the temperature of the rollouts."""
    logprob = torch.zeros(experience.tokens.shape, device=experience.tokens.device)
    for rows, e in experience.pieces(config.micro_batch_size):
        answers = e.prompt, e.prompt_len, e.tokens, e.mask
        with precision:
            own, _ = model(*answers, world.allowed_ids, config.temperature, entropy=False)
        logprob[rows, :, : own.size(-1)] = own
    return logprob


def update(network, optimizer, world, experience, config, precision):
    """
    One optimizer step on a mini-batch. Every denominator is that of the global mini-batch, so that
    neither micro-batches nor ranks change the gradient. Returns {name: mean over its tokens}.
    """
    algorithm = ALGORITHMS[config.algorithm]
    tokens, sequences = all_reduce([experience.mask.sum().item(), experience.rewards.numel()])
    true_tokens = all_reduce([experience.truth_mask.sum().item()])[0] if config.mle_coef else 0
    kind = "gradient" if config.entropy_coef else "value"  # of entropy
    sums = dict.fromkeys(("loss", "kl", "entropy", "clipped", "ratio", "ratio_error"), 0.0)
    parts = list(experience.pieces(config.micro_batch_size))
    for i, (_, e) in enumerate(parts):
        # gradients are exchanged once, behind the last micro-batch
        alone = ranks() == 1 or i == len(parts) - 1
        with nullcontext() if alone else network.no_sync():
            answers = e.prompt, e.prompt_len, e.tokens, e.mask
            with precision:
                logprob, entropy = network(*answers, world.allowed_ids, config.temperature, kind)
            sampled = e.old_logprob, e.advantages, e.mask
            loss, rho, clipped = algorithm.loss(logprob, *sampled, *algorithm.clip, algorithm.ratio)
            found = {"entropy": entropy, "clipped": clipped, "ratio": rho}
            if config.kl_coef:
                found["kl"] = kl_estimate(logprob, e.ref_logprob, config.kl_estimator)
                loss = loss + config.kl_coef * found["kl"]
            if config.entropy_coef:
                loss = loss - config.entropy_coef * entropy
            loss = aggregate(loss, e.mask, algorithm.average, tokens, sequences, world.response_len)
            if config.mle_coef:
                answers = e.prompt, e.prompt_len, e.truth, e.truth_mask
                with precision:
                    true_logprob, _ = network(*answers, world.allowed_ids)
                loss = loss - config.mle_coef * true_logprob.sum() / true_tokens
            (loss * ranks()).backward()  # DDP averages over ranks, we want the sum
        sums["loss"] += loss.detach() * tokens  # it is a mean already
        found["ratio_error"] = (rho - 1).abs()
        for name, values in found.items():
            sums[name] += values.detach().masked_fill(~e.mask, 0).sum()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm).item()
    if norm < float("inf"):  # the loop counts those that are not finite
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    means = [value / tokens for value in all_reduce([float(s) for s in sums.values()])]
    return dict(zip(sums, means), norm=norm)


class Watch:
    """Seconds of the phases of a step; the device is awaited at the end of each."""

    def __init__(self, device):
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.seconds = dict.fromkeys(("sampling", "scoring", "reference", "update"), 0.0)
        self.last = time.perf_counter()

    def lap(self, phase):
        self.wait()
        self.seconds[phase] += time.perf_counter() - self.last
        self.last = time.perf_counter()


def troubles(rows):
    """Sentences about the last rows of the log: what looks wrong and what to try."""
    less = "try a lower --lr or a higher --kl_coef"
    more = "try a higher --temperature, a larger --group_size or another --reward"
    if len(rows) == 20 and all(row["equal_groups"] == 1 for row in rows):
        yield f"all groups of the last 20 steps had equal rewards, so nothing is learned; {more}"
    if rows[-1]["limit"] > 0.5:
        yield f"more than half of the answers never end; {less}, or go back to a checkpoint"
    if rows[-1]["kl"] > 1:
        yield f"the policy is more than 1 nat per token away from where it started; {less}"


def log_step(run, experience, updates, watch, equal_groups, sampler_error, tokens):
    """Averages what a step has shown over its updates and all ranks, and writes it down."""
    row = {
        "reward": experience.rewards.mean().item(),
        "reward_std": experience.rewards.std(1).mean().item(),
        "equal_groups": equal_groups,
        "length": experience.length.float().mean().item(),
        "skipped": run.skipped,
        "lr": run.config.lr * run.rate(),
        "limit": 1 - experience.ended.float().mean().item(),
        **{f"{phase}_s": seconds for phase, seconds in watch.seconds.items()},
    }
    row = dict(zip(row, all_reduce(row.values(), "mean")))
    row.update({n: sum(u[n] for u in updates) / len(updates) for n in updates[0]})
    # how far the sampler's own log-probabilities are from those that the update starts from
    row["ratio_error_first"] = updates[0]["ratio_error"] if sampler_error is None else sampler_error
    run.log(("reward", "equal_groups", "kl", "entropy", "length"), tokens, **row)
    return row


def main(argv):
    config = parse_config(Config, argv, SMOKE)
    device, rank, world_size, precision = start_processes(config)
    world = load_world(config.world, device, config.task, config.lpips_weights)
    world.refuse_foreign_options(config)
    terms = world.terms(config.reward or world.reward, config.supervision == "process")
    selection = world.terms(config.select_by or config.reward or world.reward)
    share_of("prompts_per_step", config.prompts_per_step, world_size * config.num_minibatches)
    # the policy, and the model that it starts from as a frozen reference
    run = Run("rlvr", config, f"{world.name}-rlvr", world.fingerprint)
    path = checkpoint_path(config.init_from or f"{world.name}-mle", config.out)
    checkpoint = run.resumed or open_checkpoint(path, world, device)
    run.build_on(checkpoint)
    policy = Model(ModelConfig(**checkpoint["model_config"])).to(device).eval()
    policy.load_state_dict(checkpoint["model"])
    policy.recompute = config.gradient_checkpointing
    checkpoint = None
    reference = copy.deepcopy(policy).requires_grad_(False)
    if config.dtype == "bfloat16":  # autocast would make the same of them in every pass
        reference.blocks.apply(lambda m: m.bfloat16() if isinstance(m, torch.nn.Linear) else m)
    how = dict(lr=config.lr, betas=(0.9, 0.98), fused=device.type == "cuda")
    optimizer = torch.optim.Adam(policy.parameters(), **how)
    run.keep(policy.config, model=policy, reference=reference, optimizer=optimizer)
    if config.compile:
        policy.compile_blocks()
    network = DistributedDataParallel(policy) if world_size > 1 else policy
    val = validation_indices(world, config.eval_records)
    judged = lambda: validate(policy, world, val, selection, precision, config.eval_temperature)

    recent = []
    told = set()
    for step in run.steps(judged):
        run.set_rate(optimizer, config.lr)
        rng = run.rng(rank)
        watch = Watch(device)

        # 1. sample a group of answers to each prompt, decode each into a predicted state, score it
        # against the true one, and compare it with its group
        experience, flat, drawn, ran = collect(policy, world, terms, config, precision, rng, watch)

        # 2. what did the policy and the reference think of the answers before the update? In bf16
        # the sampler's own log-probabilities are off by rounding, so that they are computed anew
        passes = 3 * config.update_epochs
        sampler_error = None
        if config.dtype == "bfloat16":
            of_sampler = experience.old_logprob
            experience.old_logprob = score(policy, world, experience, config, precision)
            gap = (importance(experience.old_logprob, of_sampler, experience.mask) - 1).abs().sum()
            sampler_error = all_reduce([gap.item() / experience.mask.sum().item()], "mean")[0]
            passes += 1
        if config.kl_coef:
            experience.ref_logprob = score(reference, world, experience, config, precision)
            passes += 1
        watch.lap("reference")

        # 3. one optimizer step per mini-batch
        updates = []
        for _ in range(config.update_epochs):
            order = torch.from_numpy(rng.permutation(len(experience.prompt))).to(device)
            for chosen in order.chunk(config.num_minibatches):
                minibatch = experience.rows(chosen)
                updates.append(update(network, optimizer, world, minibatch, config, precision))
        watch.lap("update")

        true = experience.count_tokens(of="truth_mask") if config.mle_coef else 0
        tokens, ran, true = all_reduce([experience.count_tokens(), ran, true])
        run.work += ran + passes * tokens + 3 * config.update_epochs * true
        row = log_step(run, experience, updates, watch, flat, sampler_error, tokens)
        run.finite({n: row[n] for n in ("loss", "ratio", "norm", "reward")}, lambda: drawn)
        recent = [*recent[-19:], row]
        for sentence in set(troubles(recent)) - told:
            run.tell(f"step {step}: {sentence}")
            told.add(sentence)


if __name__ == "__main__":
    run_main(main)
