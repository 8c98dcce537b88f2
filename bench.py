"""
How fast is it, and how much memory does it take? One command, one table a part.

    python bench.py                     everything; on a GPU also the paper's video model
    python bench.py --peer=hf,trl       beside others    (pip install -r requirements-bench.txt)
    python bench.py --only=sampling     one part
    SMOKE=1 python bench.py             tiny shapes, to see that it runs

Every figure is the median of `repeats` runs after one that does not count. Ratios to a peer are
measured in the same run, on a model of the same shape with the same numbers of prompts, tokens and
updates. GRPO steps are those of train_rlvr.py itself, read from its metrics.jsonl.
"""

import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

# common first: it says how torch's threads wait, before torch is imported
from common import BadInput, autocast, one_of, option, parse_config, run_main, start_processes

import torch
import torch.nn as nn
import torch.nn.functional as F

import rewards
from data import load_world
from data.text import write_text_world
from data.textgame import prepare as textgame
from data.webnav import prepare as webnav
from data.world import Batch, load_task
from generate import generate
from model import Model, ModelConfig

ROOT = Path(__file__).resolve().parent


@dataclass
class Config:
    only: str = ""  # some of mle,sampling,reward,grpo,group,prompt,memory; empty: all
    peer: str = ""  # some of hf,trl: transformers' generate and training step, TRL's GRPOTrainer
    repeats: int = option(3, 1, 1000)  # runs per figure, after one that does not count
    prompts_per_step: int = option(16, 2, 2**20)  # prompts per rollout batch
    group_size: int = option(16, 2, 4096)  # responses to each
    num_minibatches: int = option(4, 1, 2**20)  # optimizer steps per rollout batch
    # MLE and sampling are measured in both
    dtype: str = option("float32", "float32", "bfloat16")  # of GRPO steps and curves, TRL's too
    longest: int = option(2048, 64, 2**20)  # longest prompt of the curves, in tokens
    small: bool = False  # tiny shapes
    # the machine
    device: str = "auto"  # cpu, cuda, mps or auto
    threads: int = option(2, 1, 1024)  # of a CPU
    seed: int = option(0, 0, 2**31)  # of weights and prompts


SMOKE = dict(repeats=1, prompts_per_step=2, group_size=4, num_minibatches=2, longest=64, small=True)


@dataclass
class Shape:
    """
    A model, the lengths it works on (P prompt tokens, R response tokens) and the dtypes in which
    MLE and sampling are measured.
    """

    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    P: int
    R: int
    n_inner: int = 0  # as in ModelConfig
    tie: bool = True
    dtypes: tuple = ("float32", "bfloat16")

    def config(self):
        heads = self.n_head, self.n_head  # no groups of them
        size = self.n_layer, *heads, self.n_embd, self.n_inner
        return ModelConfig(self.vocab_size, self.P + self.R, *size, tie_embeddings=self.tie)

    def model(self, device):
        """This repository's model of this shape, with random weights."""
        return Model(self.config()).to(device)

    def batch(self, B, device):
        """A Batch of B random prompts of P tokens, whose answers all have R tokens."""
        prompt = torch.randint(self.vocab_size, (B, self.P), device=device)
        prompt_len = torch.full((B,), self.P, device=device)
        response = torch.randint(self.vocab_size, (B, self.R), device=device)
        mask = torch.ones_like(response, dtype=torch.bool)
        return Batch(prompt, prompt_len, response, mask, self.R)

    def __str__(self):
        return (
            f"{self.n_layer} x {self.n_embd}, {self.n_head} heads, vocabulary {self.vocab_size}, "
            f"P {self.P}, R {self.R}"
        )


SHORT = Shape(4, 4, 128, 544, 67, 64)
LONG = Shape(6, 4, 256, 544, 370, 48)
# the paper's single-step video model, of 120,381,696 parameters; on a GPU only
PAPER = Shape(12, 12, 768, 4633, 1332, 320, n_inner=3072, tie=False, dtypes=("bfloat16",))
TINY = Shape(1, 2, 32, 64, 12, 8)

# ------------------------------------------------------------------------------------------------
# Measuring


def seconds(function, repeats, device):
    """Median seconds of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(function, device):
    """The most memory in bytes that a call held at one time, beyond what was there before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    # every allocation and release: what the process shows from outside is coarser
    with torch.profiler.profile(profile_memory=True) as recorded:
        function()
    events = recorded.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    held = 0
    highest = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def matrix_peak(dtype, device, repeats):
    """FLOP/s of a product of two square matrices: what the machine can do at best."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / seconds(lambda: a @ a, max(5, repeats), device)


def table(title, header, rows):
    """Prints a table in Markdown."""
    rows = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("| " + " | ".join(cells) + " |")
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    print("\n".join(["", title, "", lines[0], rule, *lines[1:]]), flush=True)


def quietly(function, *arguments):
    """Calls a function without showing what it prints."""
    with redirect_stdout(io.StringIO()):
        return function(*arguments)


# ------------------------------------------------------------------------------------------------
# Peers


def peers(config):
    """The names in --peer. Raises BadInput for an unknown one or one that is not installed."""
    names = [one_of("peer", name, ("hf", "trl")) for name in config.peer.split(",") if name]
    for package in ["transformers"] * bool(names) + ["trl"] * ("trl" in names):
        if importlib.util.find_spec(package) is None:
            get = "pip install -r requirements-bench.txt"
            raise BadInput(f"--peer={config.peer} needs the package {package}: {get}")
    return names


def llama(shape, device):
    """transformers' Llama of the same shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = dict(num_hidden_layers=shape.n_layer, hidden_size=shape.n_embd)
    size.update(num_attention_heads=shape.n_head, num_key_value_heads=shape.n_head)
    size.update(intermediate_size=shape.config().n_inner, tie_word_embeddings=shape.tie)
    size.update(vocab_size=shape.vocab_size, max_position_embeddings=shape.P + shape.R)
    # nothing ends an answer
    config = LlamaConfig(**size, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    return LlamaForCausalLM(config).to(device)


class GPT(nn.Module):
    """
    nanoGPT's network in torch's own parts, called as gpt(tokens [B, T + 1]) -> loss: what an
    ordinary training step costs on this machine.
    """

    def __init__(self, shape):
        super().__init__()
        C = shape.n_embd
        # two matrices with as many numbers as the SwiGLU's three, where that is not of usual width
        width = 3 * shape.n_inner // 2 if shape.n_inner else 4 * C
        self.n_head = shape.n_head
        self.embed = nn.Embedding(shape.vocab_size, C)
        self.place = nn.Embedding(shape.P + shape.R, C)
        self.blocks = nn.ModuleList()
        for _ in range(shape.n_layer):
            sizes = {"qkv": (C, 3 * C), "out": (C, C), "up": (C, width), "down": (width, C)}
            block = nn.ModuleDict({n: nn.Linear(*size, bias=False) for n, size in sizes.items()})
            block.update({n: nn.LayerNorm(C, bias=False) for n in ("norm1", "norm2")})
            self.blocks.append(block)
        self.norm = nn.LayerNorm(C, bias=False)
        self.head = nn.Linear(C, shape.vocab_size, bias=False)
        if shape.tie:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens[:, :-1])
        B, T, C = x.shape
        x = x + self.place.weight[:T]
        for block in self.blocks:
            qkv = block["qkv"](block["norm1"](x)).view(B, T, 3, self.n_head, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](y.transpose(1, 2).reshape(B, T, C))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


# ------------------------------------------------------------------------------------------------
# The parts


def bench_mle(config, device):
    """
    Training steps on plain sequences (forward, backward, AdamW), beside nanoGPT's network with as
    many parameters, within about 1 %.
    """
    shapes = [(Shape(4, 4, 128, 544, 1, 127), 64), (Shape(6, 6, 384, 2048, 1, 255), 12)]
    if device.type == "cuda":
        shapes.append((replace(PAPER, P=1, R=PAPER.P + PAPER.R - 1), 16))
    if config.small:
        shapes = [(replace(TINY, P=1, R=15), 2)]
    rows = []
    for shape, batch in shapes:
        tokens = torch.randint(shape.vocab_size, (batch, shape.R + 1), device=device)
        models = mle_models(config, shape, tokens)
        ours = models[0][0]
        # FLOP of a token, forward and backward (PaLM, appendix B); looking up a row costs nothing
        matrices = ours.num_parameters() - (0 if shape.tie else ours.embed.weight.numel())
        flops = 6 * matrices + 12 * shape.n_layer * shape.n_embd * shape.R
        for dtype in shape.dtypes:
            precision = autocast(device, dtype)
            speeds = []
            for model, loss in models:
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

                def step():
                    with precision:
                        value = loss()
                    value.backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

                speeds.append(tokens.numel() / seconds(step, max(5, config.repeats), device))
            own = speeds[0]
            peak = matrix_peak(getattr(torch, dtype), device, config.repeats)
            row = [f"{shape.n_layer} x {shape.n_embd}, {batch} x {shape.R + 1} tokens", dtype]
            row += [f"{ours.num_parameters():,}", f"{own:,.0f}", f"{flops * own / peak:.0%}"]
            for speed in speeds[1:]:
                row += [f"{speed:,.0f}", f"{own / speed:.2f}"]
            rows.append(row)
    header = ["shape", "dtype", "parameters", "tokens/s", "of matrix peak"]
    header += ["nanoGPT's network", "ratio"] + ["transformers", "ratio"] * ("hf" in peers(config))
    table("Maximum likelihood", header, rows)


def mle_models(config, shape, tokens):
    """[(model, its loss as a function of nothing)] on tokens [B, R + 1]: ours, then the peers."""
    device = tokens.device
    B, T = tokens.shape
    ours = shape.model(device)
    gpt = GPT(shape).to(device)
    length = torch.ones(B, dtype=torch.long, device=device)
    mask = torch.ones(B, 1, T - 1, dtype=torch.bool, device=device)

    def loss():
        return -ours(tokens[:, :1], length, tokens[:, None, 1:], mask, entropy=False)[0].mean()

    models = [(ours, loss), (gpt, lambda: gpt(tokens))]
    if "hf" in peers(config):
        theirs = llama(shape, device)
        models.append((theirs, lambda: theirs(input_ids=tokens, labels=tokens).loss))
    return models


def bench_sampling(config, device):
    """G responses of full length to each prompt, beside transformers' generate."""
    B, G = config.prompts_per_step, config.group_size
    shapes = [SHORT, LONG] + [PAPER] * (device.type == "cuda")
    rows = []
    for shape in [TINY] if config.small else shapes:
        model = shape.model(device)
        theirs = llama(shape, device).eval() if "hf" in peers(config) else None
        batch = shape.batch(B, device)
        for dtype in shape.dtypes:
            precision = autocast(device, dtype)
            samplers = [lambda: sample(model, batch, G, precision)]
            if theirs is not None:
                samplers.append(lambda: sample_llama(theirs, batch, G, precision))
            tokens = B * G * shape.R
            speeds = [tokens / seconds(sampler, config.repeats, device) for sampler in samplers]
            row = [shape, dtype, *(f"{speed:,.0f}" for speed in speeds)]
            rows.append(row + [f"{speeds[0] / speed:.1f}" for speed in speeds[1:]])
    header = ["shape", "dtype", "tokens/s"] + ["generate", "ratio"] * ("hf" in peers(config))
    table(f"Sampling, {B} x {G}", header, rows)


def sample(model, batch, G, precision):
    with precision:
        generate(model, batch, G)


@torch.no_grad()
def sample_llama(model, batch, G, precision):
    """The same with transformers: as many tokens, from the full distribution."""
    prompt = batch.prompt.repeat_interleave(G, 0)
    R = batch.response_len
    how = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    how.update(max_new_tokens=R, min_new_tokens=R, attention_mask=torch.ones_like(prompt))
    with precision:
        model.generate(input_ids=prompt, **how)


def bench_reward(config, device):
    """Decoding and scoring answers, half of them wrong; and frames."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, prepare in (("textgame", textgame), ("webnav", webnav)):
            sizes = [f"--{n}={value}" for n, value in prepare.SMOKE.items()]
            quietly(prepare.main, [*sizes, f"--out={folder}/{name}"])
            world = load_world(f"{folder}/{name}", device)
            batch, tokens = answers(world)
            for metric in world.metrics:
                score = lambda: world.score(batch, tokens, [metric])
                speed = tokens[..., 0].numel() / seconds(score, config.repeats, device)
                rows.append([name, metric, f"{speed:,.0f} responses"])
    shape = 16 if config.small else 256, 3, 64, 64
    a = torch.rand(shape, device=device)
    b = torch.rand(shape, device=device)
    for metric in (rewards.mae, rewards.mse, rewards.psnr, rewards.ssim):
        speed = len(a) / seconds(lambda: metric(a, b), config.repeats, device)
        rows.append(["video, 64x64", metric.__name__, f"{speed:,.0f} frames"])
    table("Rewards", ["world", "metric", "per second"], rows)


def answers(world):
    """
    A Batch of up to 32 training records and tokens [B, 16, R]: 16 answers to each, by turns its own
    and its neighbour's.
    """
    numbers = list(range(min(32, len(world.records["train"]))))
    batch = world.batch("train", numbers)
    wrong = world.batch("train", numbers[1:] + numbers[:1])
    R = min(batch.response.size(1), wrong.response.size(1))
    tokens = torch.stack([batch.response[:, :R], wrong.response[:, :R]] * 8, dim=1)
    # no two alike behind the first two: nothing is scored once for many
    first = tokens[:, 2:, 0]
    tokens[:, 2:, 0] = torch.randint(world.vocab_size - 1, first.shape, device=first.device)
    return batch, tokens


def bench_grpo(config, device):
    """Whole steps of train_rlvr.py: sampling, reward, reference, update."""
    phases = "sampling", "scoring", "reference", "update"
    trl = "trl" in peers(config)
    rows = []
    for shape in [replace(TINY, vocab_size=300)] if config.small else [SHORT, LONG]:
        steps = grpo_steps(config, shape)
        length, *parts = (
            statistics.median(step[name] for step in steps)
            for name in ("length", *(f"{phase}_s" for phase in phases))
        )
        row = [shape, f"{length:.0f}", *(f"{part:.2f}" for part in (*parts, sum(parts)))]
        if trl:
            theirs = trl_step(config, shape, device)
            row += [f"{theirs:.2f}", f"{theirs / sum(parts):.1f}"]
        rows.append(row)
    header = ["shape", "tokens", "sampling", "reward", "reference", "update", "step"]
    size = f"{config.prompts_per_step} x {config.group_size}, {config.num_minibatches} updates"
    title = f"A GRPO step, {size}, {config.dtype}: seconds"
    table(title, header + ["TRL", "ratio"] * trl, rows)


def grpo_steps(config, shape):
    """The lines of train_rlvr.py's metrics.jsonl, a step each, behind two that warm up."""
    B = config.prompts_per_step
    with tempfile.TemporaryDirectory() as folder:
        quietly(digits_world, f"{folder}/world", shape)
        both = dict(world=f"{folder}/world", out=folder, eval_every=1000, eval_records=2)
        both.update(device=config.device, threads=config.threads)
        # likelihood training only makes the checkpoint that the other starts from
        mle = dict(n_layer=shape.n_layer, n_embd=shape.n_embd, look_back=False)
        mle.update(n_head=shape.n_head, n_kv_head=shape.n_head, steps=1, lr=0, batch_size=4)
        run_script("train_mle.py", both | mle)
        rlvr = dict(init_from=f"{folder}/world-mle/last.pt", steps=config.repeats + 2)
        rlvr.update(prompts_per_step=B, group_size=config.group_size, micro_batch_size=B)
        rlvr.update(num_minibatches=config.num_minibatches, dtype=config.dtype)
        rlvr.update(reward="line_f1", kl_coef=0.001)
        run_script("train_rlvr.py", both | rlvr)
        text = Path(folder, "world-rlvr", "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if "update_s" in line][2:]


def digits_world(folder, shape):
    """
    Writes a text world whose prompts have exactly P tokens and whose longest response has R: digits
    stand alone, and words fill the vocabulary.
    """
    generator = torch.Generator().manual_seed(0)

    def digits(n):
        return "".join(map(str, torch.randint(10, (n,), generator=generator).tolist()))

    records = [{"prompt": digits(shape.P), "response": digits(shape.R - 1)} for _ in range(64)]
    # words have no blanks in front, so that each pair of letters is one merge
    words = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(shape.vocab_size - 257)]
    filler = [{"prompt": f"{word},{word}", "response": "1"} for word in words]
    splits = {"train": records + 2 * filler, "val": records[:8], "test": records[:8]}
    write_text_world(folder, "own", load_task("own"), splits, shape.vocab_size)


def run_script(name, options):
    """
    Runs a script of the repository as a process of its own, with options {name: value}. Raises
    BadInput with the end of what it printed if it fails.
    """
    # SMOKE would put other sizes in the place of those that are measured
    apart = {"SMOKE", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
    environment = {key: value for key, value in os.environ.items() if key not in apart}
    command = [sys.executable, str(ROOT / name), *(f"--{n}={v}" for n, v in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise BadInput(f"{' '.join(command)} failed: {done.stderr[-500:].strip()}")


def trl_step(config, shape, device):
    """
    Seconds of TRL's GRPOTrainer for one rollout batch and its updates, on the same shape and
    numbers.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    updates = config.num_minibatches
    steps = (config.repeats + 2) * updates
    responses = config.prompts_per_step * config.group_size
    ids = torch.randint(2, shape.vocab_size, (64, shape.P)).tolist()
    prompts = [" ".join(f"w{i}" for i in row) for row in ids]
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            times.append(time.perf_counter())

        def on_train_end(self, *_, **__):
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        # TRL loads the reference model from where the policy came from
        llama(shape, device).save_pretrained(f"{folder}/model")
        size = dict(num_generations=config.group_size, steps_per_generation=updates)
        size.update(per_device_train_batch_size=responses // updates, max_steps=steps)
        size.update(max_completion_length=shape.R, generation_kwargs={"min_new_tokens": shape.R})
        how = dict(beta=0.001, learning_rate=1e-6, temperature=1.0, top_k=0)
        how.update(bf16=config.dtype == "bfloat16", model_init_kwargs={"dtype": "float32"})
        how.update(use_cpu=device.type == "cpu", gradient_checkpointing=False)
        silent = dict(logging_steps=10**6, report_to=[], save_strategy="no", disable_tqdm=True)
        trainer = GRPOTrainer(
            model=f"{folder}/model",
            reward_funcs=lambda completions, **_: [float(len(set(c))) for c in completions],
            args=GRPOConfig(output_dir=folder, **size, **how, **silent),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=word_tokenizer(shape.vocab_size),
            callbacks=[Clock()],
        )
        quietly(trainer.train)
    # the first two rollout batches warm up
    starts = range(2 * updates, steps, updates)
    return statistics.median(times[i + updates] - times[i] for i in starts)


def word_tokenizer(vocab_size):
    """transformers' tokenizer of the words w0 (padding), w1 (the end), w2, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", eos_token="w1", padding_side="left"
    )


def one_update(model, batch, G, precision):
    """A function that runs one grouped forward and backward pass."""
    B, R = batch.response.shape
    device = batch.prompt.device
    response = torch.randint(model.config.vocab_size, (B, G, R), device=device)
    mask = torch.ones_like(response, dtype=torch.bool)

    def run():
        with precision:
            loss = model(batch.prompt, batch.prompt_len, response, mask)[0].mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def sampling_and_update(config, device, shape, B, G):
    """
    [tokens/s of sampling, seconds of sampling, seconds of forward and backward] for B prompts and G
    responses each.
    """
    model = shape.model(device)
    batch = shape.batch(B, device)
    precision = autocast(device, config.dtype)
    sampling = seconds(lambda: sample(model, batch, G, precision), config.repeats, device)
    update = seconds(one_update(model, batch, G, precision), config.repeats, device)
    return [f"{B * G * shape.R / sampling:,.0f}", f"{sampling:.2f}", f"{update:.2f}"]


def bench_group(config, device):
    """
    The same number of responses, more of them to each prompt: the prompt's share of the work
    shrinks with 1/G.
    """
    shape = TINY if config.small else Shape(4, 4, 128, 544, 370, 48)
    total = 16 if config.small else 256
    rows = []
    for G in (4, 8, 16, 32, 64):
        if G <= total:
            B = total // G
            rows.append([G, B, *sampling_and_update(config, device, shape, B, G)])
    header = ["group", "prompts", "sampling tokens/s", "sampling s", "forward + backward s"]
    table(f"{total} responses, {shape}", header, rows)


def bench_prompt(config, device):
    """Longer prompts."""
    shape = TINY if config.small else Shape(4, 4, 128, 544, 64, 48)
    B, G = config.prompts_per_step // 2, config.group_size
    rows = []
    for P in (64, 128, 256, 512, 1024, 2048):
        if P <= config.longest:
            rows.append([P, *sampling_and_update(config, device, replace(shape, P=P), B, G)])
    header = ["prompt", "sampling tokens/s", "sampling s", "forward + backward s"]
    table(f"{B} x {G} responses of {shape.R} tokens, by prompt length", header, rows)


def bench_memory(config, device):
    """
    The vocabulary-wide rows exist for a chunk of positions at a time: memory grows with the chunk,
    not with vocabulary times batch.
    """
    shape = Shape(4, 4, 128, 1000 if config.small else 151936, 67, 64)
    model = shape.model(device)
    batch = shape.batch(1, device)
    rows = []
    for positions in (64,) if config.small else (256, 512, 1024):
        G = positions // shape.R
        run = one_update(model, batch, G, autocast(device, config.dtype))
        run()
        taken = peak_memory(run, device)
        whole = 4 * positions * shape.vocab_size
        rows.append([f"{positions:,}", f"{whole / 2**30:.2f}", f"{taken / 2**30:.2f}"])
    size = f"{shape.n_layer} x {shape.n_embd}, vocabulary {shape.vocab_size:,}"
    header = ["response positions", "one fp32 [positions, vocabulary]", "peak, gradients included"]
    table(f"Memory of an update, {size}: GiB beyond weights and optimizer", header, rows)


PARTS = dict(mle=bench_mle, sampling=bench_sampling, reward=bench_reward, grpo=bench_grpo)
PARTS.update(group=bench_group, prompt=bench_prompt, memory=bench_memory)


def main(argv):
    config = parse_config(Config, argv, SMOKE)
    device, *_ = start_processes(config)
    chosen = [one_of("part", name, PARTS) for name in config.only.split(",") if name] or PARTS
    peers(config)
    machine = f"{torch.get_num_threads()} CPU threads"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
    fp32, bf16 = (matrix_peak(t, device, 5) / 1e9 for t in (torch.float32, torch.bfloat16))
    print(
        f"torch {torch.__version__}, {machine}; matrix product: {fp32:,.0f} GFLOP/s fp32, "
        f"{bf16:,.0f} bf16"
    )
    for name in chosen:
        PARTS[name](config, device)


if __name__ == "__main__":
    run_main(main)
