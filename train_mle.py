"""
Stage 1: maximum likelihood. A world model is a language model over transitions: it learns
p(next state | state, action) token by token.

    python train_mle.py                            the default world, after data/textgame/prepare.py
    torchrun --nproc_per_node=8 train_mle.py --world=bytesized32
    python train_mle.py --resume                   go on after a stop
    python train_mle.py --init_from=textgame-mle --name=textgame-mle-more-1     train further

Whole experiments, with their options and what to expect, are the pages in runs/.
"""

from contextlib import nullcontext
from dataclasses import dataclass

# common first: it says how torch's threads wait, before torch is imported
from common import OUT, BadInput, Run, all_reduce, option, parse_config
from common import ranks, run_main, share_of, start_processes

import torch
from torch.nn.parallel import DistributedDataParallel

from data import load_world
from evaluate import checkpoint_path, open_checkpoint, validate, validation_indices
from model import Model, ModelConfig


@dataclass
class Config:
    world: str = "textgame"  # a folder, or its name under data/
    task: str = ""  # the world's task.py, where it is your own
    name: str = ""  # results go to out/<name>; empty: <world>-mle
    init_from: str = ""  # a run or checkpoint to go on from; empty: from random weights
    resume: bool = False  # go on with out/<name>/last.pt
    # the model
    n_layer: int = option(4, 1, 256)  # transformer blocks
    n_head: int = option(2, 1, 256)  # attention heads; few wide ones cost less than many narrow
    n_kv_head: int = option(2, 1, 256)  # key-value heads
    n_embd: int = option(128, 2, 2**16)  # width
    n_inner: int = option(0, 0, 2**18)  # width of the SwiGLU; 0: 8/3 of n_embd
    tie: bool = True  # one matrix for embeddings and output
    # every token sees the one before it from the first layer on: copying is learned sooner (not in
    # LLaMA)
    look_back: bool = True
    # a step
    batch_size: int = option(64, 1, 2**20)  # transitions per step, of all processes together
    branches: int = option(5, 1, 4096)  # text: records that go behind one copy of their state
    micro_batch_size: int = option(16, 0, 2**20)  # states per forward pass (0: all at once)
    changed_fraction: float = option(-1.0, -1.0, 1.0)  # text: share that changes; -1: the data's
    kind_power: float = option(1.0, 0.0, 10.0)  # text: a game's probability ~ (its records)^this
    prompt_loss: float = option(0.0, 0.0, 100.0)  # text: weight of the prompts' tokens in the loss
    permute_ids: float = option(0.0, 0.0, 1.0)  # text games: share of states with other uuids
    # muon: Muon for the matrices in the blocks, and AdamW at a fifth of its rate for embeddings and
    # norms; adamw: AdamW for all
    optimizer: str = option("muon", "muon", "adamw")
    lr: float = option(0.02, 0.0, 10.0)  # of a pretrained model by AdamW: some 2e-5
    warmup: int = option(30, 1, 10**6)  # steps of linear warm-up
    decay: float = option(0.4, 0.0, 1.0)  # the rate falls to 0 over this last part of the run
    weight_decay: float = option(0.0, 0.0, 10.0)  # decoupled, on the matrices in the blocks
    max_grad_norm: float = option(1.0, 1e-6, 1e9)
    # how long
    steps: int = option(1600, 1, 10**9)
    seconds: float = option(0.0, 0.0, 1e9)  # a cap on training time, if you want one (0: none)
    eval_every: int = option(100, 1, 10**9)  # steps between validations
    eval_records: int = option(512, 1, 10**9)  # validation records
    # the machine
    dtype: str = option("auto", "auto", "float32", "bfloat16")  # bfloat16 by autocast
    gradient_checkpointing: bool = False  # keep less for the backward pass, compute it again there
    compile: bool = False  # torch.compile the model's blocks (needs a compiler)
    device: str = "auto"  # cpu, cuda, mps or auto
    threads: int = option(2, 1, 1024)  # of a CPU
    seed: int = option(0, 0, 2**31)  # of weights and data
    out: str = OUT  # the folder of all results
    wandb: str = ""  # wandb project to log to as well


SMOKE = dict(n_layer=1, n_head=2, n_kv_head=2, n_embd=32, n_inner=0, batch_size=16, warmup=2)
SMOKE.update(steps=6, eval_every=3, eval_records=8)


def make_optimizers(model, config, device):
    """
    {name: (optimizer, its learning rate)}. Muon (github.com/KellerJordan/Muon) learns to copy, of
    which a world model does a lot, in a third of AdamW's steps at these sizes.
    """
    matrices = []
    others = []
    for name, parameter in model.named_parameters():
        in_block = name.startswith("blocks") and parameter.dim() == 2
        (matrices if in_block else others).append(parameter)
    decay = config.weight_decay
    how = dict(betas=(0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda")
    if config.optimizer == "adamw":
        groups = [{"params": matrices, "weight_decay": decay}, {"params": others}]
        return {"adamw": (torch.optim.AdamW(groups, config.lr, **how), config.lr)}
    muon = torch.optim.Muon(matrices, config.lr, weight_decay=decay)
    adamw = torch.optim.AdamW(others, config.lr / 5, **how)
    return {"muon": (muon, config.lr), "adamw": (adamw, config.lr / 5)}


def tokens_in(prompt_len, weight):
    """Tokens of a micro-batch that go through the network, padding left out."""
    place = torch.arange(1, weight.size(-1) + 1, device=weight.device)
    return (prompt_len.sum() + ((weight > 0) * place).amax(-1).sum()).item()


def model_shape(config, world):
    """The ModelConfig of a fresh model. Raises BadInput if there is no such shape."""
    try:
        return ModelConfig(
            world.vocab_size,
            world.block_size,
            config.n_layer,
            config.n_head,
            config.n_kv_head,
            config.n_embd,
            config.n_inner,
            tie_embeddings=config.tie,
            look_back=config.look_back,
        )
    except ValueError as error:
        raise BadInput(f"no model has this shape: {error}") from None


def backward(network, world, batches, precision):
    """
    Gradients of one step. The loss is the (weighted) mean over all tokens of the global batch,
    however it is cut into micro-batches and among processes.

    Returns this process's part of the loss, and how many tokens went through its network.
    """
    world_size = ranks()
    total_weight = all_reduce([sum(weight.sum().item() for *_, weight in batches)])[0]
    loss = 0.0
    tokens = 0
    for i, (prompt, prompt_len, response, weight) in enumerate(batches):
        # gradients are exchanged once, behind the last micro-batch
        last = i == len(batches) - 1
        once = nullcontext() if world_size == 1 or last else network.no_sync()
        with once, precision:
            logprob, _ = network(
                prompt, prompt_len, response, weight > 0, world.allowed_ids, entropy=False
            )
            part = -(logprob * weight).sum() / total_weight
            (part * world_size).backward()  # DDP averages over ranks, we want the sum
        loss += part.item()
        tokens += tokens_in(prompt_len, weight)
    return loss, tokens


def main(argv):
    config = parse_config(Config, argv, SMOKE)
    device, rank, world_size, precision = start_processes(config)
    world = load_world(config.world, device, config.task)
    world.refuse_foreign_options(config)
    batch_size = share_of("batch_size", config.batch_size, world_size)

    # --------------------------------------------------------------------------------------------
    # model and optimizers; all ranks start from the same weights
    run = Run("mle", config, f"{world.name}-mle", world.fingerprint)
    checkpoint = run.resumed
    if config.init_from and not config.resume:
        path = checkpoint_path(config.init_from, config.out)
        checkpoint = open_checkpoint(path, world, device, stages=("mle",))
        run.build_on(checkpoint)
    if run.resumed:
        shape = ("n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "tie", "look_back")
        run.refuse_other_options((*shape, "optimizer", "seed"))
    model_config = model_shape(config, world)
    if checkpoint:
        model_config = ModelConfig(**checkpoint["model_config"])
    torch.manual_seed(config.seed)
    model = Model(model_config).to(device)
    model.recompute = config.gradient_checkpointing
    optimizers = make_optimizers(model, config, device)
    if checkpoint and not run.resumed:
        model.load_state_dict(checkpoint["model"])
        # the same optimizers go on where they were; a pretrained model's are not known
        if checkpoint["config"].get("optimizer", "muon") == config.optimizer:
            for name, (optimizer, _) in optimizers.items():
                optimizer.load_state_dict(checkpoint[name])
    run.keep(
        model_config, model=model, **{n: optimizer for n, (optimizer, _) in optimizers.items()}
    )
    checkpoint = None
    if config.compile:
        model.compile_blocks()
    network = DistributedDataParallel(model) if world_size > 1 else model
    n_train = len(world.records["train"])
    run.tell(f"{model.num_parameters():,} parameters, {n_train:,} training transitions, {device}")

    val = validation_indices(world, config.eval_records)
    terms = world.terms(world.reward)

    def judged():
        return validate(model, world, val, terms, precision)

    def drawn():
        n = max(1, batch_size // config.branches)
        fraction = config.changed_fraction
        return world.draw("train", n, run.rng(rank), fraction, config.kind_power)

    # --------------------------------------------------------------------------------------------
    # the loop
    for _ in run.steps(judged):
        for optimizer, lr in optimizers.values():
            run.set_rate(optimizer, lr)

        # the transitions of this step, in micro-batches
        batches = world.mle_batches(
            batch_size,
            run.rng(rank),
            config.micro_batch_size,
            branches=config.branches,
            changed_fraction=config.changed_fraction,
            kind_power=config.kind_power,
            permute_ids=config.permute_ids,
            prompt_loss=config.prompt_loss,
        )
        loss, tokens = backward(network, world, batches, precision)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()

        if run.finite({"loss": loss, "gradient norm": norm}, drawn):
            for optimizer, _ in optimizers.values():
                optimizer.step()
        model.zero_grad(set_to_none=True)
        loss, tokens = all_reduce([loss, tokens])
        run.work += 3 * tokens
        shown = "loss", "tokens_per_second"
        run.log(shown, tokens, loss=loss, norm=norm, lr=config.lr * run.rate())


if __name__ == "__main__":
    run_main(main)
