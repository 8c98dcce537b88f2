"""
Stage 1: maximum likelihood. A world model is a language model over transitions: it learns p(next state | state, action) token by token.

one process      python train_mle.py --world=textgame
several GPUs     torchrun --nproc_per_node=8 train_mle.py --world=bytesized32
a laptop test    python train_mle.py --preset=smoke
go on            python train_mle.py --world=textgame --resume
train further    python train_mle.py --world=textgame --init_from=out/textgame-mle/best.pt --name=textgame-mle-more --seconds=120
"""
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common import (BadInput, Guard, MetricsLog, all_reduce, autocast, is_main_process, load_checkpoint, newest_checkpoint, parse_config,
                    random_states, refuse_other_options, resume_command, run_main, save_checkpoint, set_random_states,
                    start_processes, watch_signals)
from data import evaluate, load_world, refuse_foreign_options, reward_terms, weighted_sum
from model import Model, ModelConfig


@dataclass
class Config:
    world: str = "textgame"     # a folder, or its name under data/
    name: str = ""              # results go to out/<name>; empty: <world>-mle
    init_from: str = ""         # a checkpoint to start from, with its optimizers' states; empty: from random weights
    resume: bool = False        # go on with out/<name>/last.pt
    # the model
    n_layer: int = 4            # transformer blocks
    n_head: int = 2             # attention heads; of 64 numbers each they cost half of what twice as many of 32 do
    n_kv_head: int = 2          # key-value heads
    n_embd: int = 128           # width
    n_inner: int = 0            # width of the SwiGLU; 0: 8/3 of n_embd
    tie: bool = True            # one matrix for embeddings and output
    look_back: bool = True      # every token sees the one before it from the first layer on: copying is learned sooner (not in LLaMA)
    # a step
    batch_size: int = 128       # transitions per step and process
    branches: int = 5           # records of one state that go behind one copy of it (text worlds with contexts)
    micro_batch: int = 16       # states per forward pass (0: all at once); smaller needs less memory and pads less
    changed: float = -1.0       # share of transitions that change something; -1: as in the data
    power: float = 1.0          # a kind of game is drawn with probability ~ (its records)^power
    prompt_loss: float = 0.0    # weight of the prompts' own tokens in the loss (those behind a shared state): learning to copy comes sooner
    renumber: float = 0.0       # share of states whose uuids are permuted (text games)
    # the optimizer
    lr: float = 0.02            # of Muon, for the matrices in the blocks; AdamW, for embeddings and norms, runs at a fifth of it
    decay: float = 0.4          # the rate is constant after warm-up and falls to 0 over this last part of the run
    warmup: int = 30            # steps of linear warm-up
    weight_decay: float = 0.0   # decoupled, on the matrices in the blocks
    clip: float = 1.0           # gradient norm
    # how long: until validation stops improving, or one of these
    steps: int = 0              # stop after this many steps (0: no limit)
    seconds: float = 0.0        # stop after this much training time, validation not counted (0: no limit)
    match: str = ""             # a checkpoint of RLVR: stop after as many seconds of training as it took
    patience: int = 4           # evaluations without a better one before the decay begins
    eval_every: int = 100       # steps between validations
    eval_records: int = 256     # validation records for the task metrics
    # the machine
    dtype: str = "auto"         # float32, bfloat16 (autocast) or auto
    compile: bool = False       # torch.compile the model's blocks (needs a compiler)
    device: str = "auto"        # cpu, cuda, mps or auto
    seed: int = 0               # of weights and data
    wandb: str = ""             # wandb project to log to as well


# the paper's video model: 120M to 127M parameters, depending on the vocabulary ("138M" in the text; PAPER.md)
PAPER = dict(world="paper", n_layer=12, n_head=12, n_kv_head=12, n_embd=768, n_inner=3072, tie=False, look_back=False, batch_size=16, micro_batch=4,
             eval_records=16, eval_every=5000, steps=150000, warmup=1000)
PRESETS = {
    "textgame": dict(world="textgame", batch_size=64, seconds=110),
    "webnav": dict(world="webnav", batch_size=64, branches=4, seconds=130),
    "robot": dict(world="robot", batch_size=32, seconds=120, eval_records=128),
    "robot-large": dict(world="robot-large", batch_size=32, seconds=1200, eval_every=200),
    "robot-large-multi": dict(world="robot-large-multi", batch_size=32, seconds=250, eval_every=50),
    "paper-single": dict(PAPER),
    "paper-multi": dict(PAPER, world="paper-multi"),
    "smoke": dict(n_layer=1, n_head=2, n_kv_head=2, n_embd=32, batch_size=16, steps=6, eval_every=3, eval_records=8, warmup=2),
    "bytesized32": dict(world="bytesized32", n_layer=4, n_head=4, n_kv_head=4, n_embd=256, batch_size=128, branches=16, micro_batch=4, changed=0.5,
                        power=0.3, renumber=0.7, lr=0.005, decay=0.9, warmup=50, seconds=2400, eval_every=800, eval_records=899),
}


@torch.no_grad()
def validation_loss(model, world, indices, context, legal):
    """Mean negative log-likelihood per response token (nats) of validation records."""
    total, count = 0.0, 0
    for i in range(0, len(indices), 64):
        batch = world.batch("val", indices[i:i + 64])
        with context:
            logprob, _ = model(batch.prompt, batch.prompt_len, batch.response[:, None], batch.response_mask[:, None], legal, entropy=False)
        total, count = total - logprob.sum().item(), count + batch.response_mask.sum().item()
    return total / count


def main(argv):
    config = parse_config(Config, argv, PRESETS)
    device, rank, world_size = start_processes(config.device, config.seed)
    world = load_world(config.world, device)
    refuse_foreign_options(world, config)
    if config.match:
        config.seconds = load_checkpoint(config.match, make=f"python train_rlvr.py --world={config.world}")["seconds"]
    if not 0 <= config.decay <= 1 or (config.decay == 1 and not config.steps and not config.seconds):
        raise BadInput("--decay must be between 0 and 1, and below 1 if neither --steps nor --seconds says when training ends")
    folder = Path("out") / (config.name or f"{Path(config.world).name}-mle")
    context = autocast(device, config.dtype)
    legal = world.legal()
    headline = reward_terms(world, world.headline)  # what the best checkpoint is chosen by

    # -----------------------------------------------------------------------------------------------------------------
    # model and optimizer
    checkpoint = None
    if config.resume or config.init_from:
        checkpoint = newest_checkpoint(folder / "last.pt", device) if config.resume else load_checkpoint(config.init_from, device)
        if checkpoint["world"] != world.fingerprint:
            raise BadInput(f"the checkpoint was trained on another world ({checkpoint['world']}, not {world.fingerprint}); "
                           f"name the right one with --world, or train anew")
        if config.resume:
            refuse_other_options(config, checkpoint, ("n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "tie", "look_back", "seed"))
        model_config = ModelConfig(**checkpoint["model_config"])
    else:
        try:
            model_config = ModelConfig(world.vocab_size, world.block_size, config.n_layer, config.n_head, config.n_kv_head, config.n_embd, config.n_inner,
                                       tie_embeddings=config.tie, look_back=config.look_back)
        except ValueError as error:
            raise BadInput(f"no model has this shape: {error}") from None
    torch.manual_seed(config.seed)  # all ranks start from the same weights
    model = Model(model_config).to(device)
    # Muon (github.com/KellerJordan/Muon) learns to copy, of which a world model does a lot, in a third of AdamW's steps at these sizes
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    others = [p for name, p in model.named_parameters() if not (name.startswith("blocks") and p.dim() == 2)]
    optimizers = [torch.optim.Muon(matrices, lr=config.lr, weight_decay=config.weight_decay),
                  torch.optim.AdamW(others, lr=config.lr / 5, betas=(0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda")]
    step, trained, best, stale, decay_from, evaluated, losses = 0, 0.0, -math.inf, 0, 0, -1, []  # `trained`: seconds spent in training steps
    before = 0.0
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        for optimizer, state in zip(optimizers, checkpoint["optimizers"]):
            optimizer.load_state_dict(state)
        before = checkpoint["seconds_before"] + (0 if config.resume else checkpoint["seconds"])  # of the stages this one builds on
    if config.resume:
        step, trained, best, stale, decay_from, evaluated, losses = checkpoint["progress"]
        set_random_states(checkpoint["random"])
    if config.compile:
        model.compile_blocks()
    network = DistributedDataParallel(model) if world_size > 1 else model
    log = MetricsLog(folder, asdict(config), config.wandb, checkpoint["log_position"] if config.resume else 0)
    guard, asked = Guard(folder / "last.pt"), watch_signals()
    val = np.random.default_rng(0).permutation(len(world.records["val"]))[:config.eval_records].tolist()
    if is_main_process():
        print(f"{model.num_parameters():,} parameters, {len(world.records['train']):,} training transitions, {device}, {world_size} process(es)")

    # -----------------------------------------------------------------------------------------------------------------
    # the loop: warm-up, a constant rate until validation stops improving or the last part of the budget begins, decay to zero
    def save(name):
        if is_main_process():
            save_checkpoint(folder / name, {
                "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "config": asdict(config), "stage": "mle",
                "model_config": asdict(model_config), "world": world.fingerprint, "random": random_states(), "seconds": trained,
                "seconds_before": before, "progress": (step, trained, best, stale, decay_from, evaluated, losses),
                "log_position": log.position()}, keep=name == "last.pt")

    def used():
        """The share of the budget that is used up; without a budget it is known only once patience is at its end (decay_from)."""
        if config.steps or config.seconds:
            return max(step / config.steps if config.steps else 0.0, trained / config.seconds if config.seconds else 0.0)
        return step / math.ceil(decay_from / (1 - config.decay)) if decay_from else 0.0

    bar = tqdm(disable=not is_main_process(), unit="step", initial=step, total=config.steps or None)
    tokens, window = 0, time.perf_counter()
    while True:
        if evaluated != step and ((step % config.eval_every == 0 and (step or checkpoint)) or used() >= 1):
            pause = time.perf_counter()
            model.eval()
            scores, _ = evaluate(model, world, "val", val, [name for _, name in headline], batch_size=128)
            loss = validation_loss(model, world, val, context, legal)
            value = weighted_sum(world, headline, scores).mean().item()
            if value > best:
                best, stale = value, 0
                save("best.pt")
            else:
                stale += 1
            train_loss = sum(losses) / max(1, len(losses))
            speed = tokens / max(1e-9, pause - window)
            log.write(step, train_seconds=trained, train_loss=train_loss, val_loss=loss, lr=optimizers[0].param_groups[0]["lr"],
                      tokens_per_second=speed, **{f"val_{world.headline}": value})
            if is_main_process():
                tqdm.write(f"step {step}: train loss {train_loss:.4f}, validation loss {loss:.4f}, {world.headline} {value:.4f} "
                           f"(best {best:.4f}), {speed:,.0f} tokens/s, {trained:.0f} s")
            losses, tokens, evaluated = [], 0, step
            save("last.pt")
            model.train()
            window = time.perf_counter()
        if used() >= 1:
            break
        if asked():
            save("last.pt")
            break

        # the learning rate of this step
        if not decay_from and step and stale > config.patience and not (config.steps or config.seconds):
            decay_from = step
        rate = min(1.0, (step + 1) / config.warmup, (1 - used()) / config.decay if config.decay else 1.0)
        for optimizer, base in zip(optimizers, (config.lr, config.lr / 5)):
            for group in optimizer.param_groups:
                group["lr"] = base * rate

        # one step: the loss is the (weighted) mean over all tokens of the global batch, however it is cut into micro-batches
        start = time.perf_counter()
        rng = np.random.default_rng([config.seed, step, rank])  # the data of a step depend on nothing but its number: resuming is exact
        batches = world.mle_batches(config.batch_size, rng, config.micro_batch, config.branches, config.changed, config.power, config.renumber,
                                    config.prompt_loss)
        count = all_reduce([sum(weight.sum().item() for *_, weight in batches)])[0]
        total = 0.0
        for i, (prompt, prompt_len, response, weight) in enumerate(batches):
            last = i == len(batches) - 1
            with nullcontext() if world_size == 1 or last else network.no_sync(), context:
                logprob, _ = network(prompt, prompt_len, response, weight > 0, legal, entropy=False)
                loss = -(logprob * weight).sum() / count * world_size  # DDP averages over ranks
                loss.backward()
            total += loss.item() / world_size
            tokens += prompt_len.sum().item() + ((weight > 0) * torch.arange(1, weight.size(-1) + 1, device=device)).amax(-1).sum().item()  # without padding
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip).item()
        if guard.finite(step, {"gradient norm": norm, "loss": total}, lambda: world.draw("train", max(1, config.batch_size // config.branches),
                                                                         np.random.default_rng([config.seed, step, rank]), config.changed, config.power)):
            for optimizer in optimizers:
                optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses.append(all_reduce([total])[0])
        step += 1
        trained = all_reduce([trained + time.perf_counter() - start], "max")[0]
        bar.update()
        bar.set_postfix(loss=f"{losses[-1]:.3f}", norm=f"{norm:.2f}", refresh=False)
    bar.close()
    if is_main_process() and used() < 1:
        print(f"stopped after step {step}, all is saved; go on with: {resume_command(argv)}")
    elif is_main_process():
        print(f"done: {step} steps in {trained:.0f} s of training; best validation {world.headline} {best:.4f} in {folder / 'best.pt'}")


if __name__ == "__main__":
    run_main(main)
