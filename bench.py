"""
How fast is it, and how much memory does it take? One command, one table.

everything            python bench.py
beside others         python bench.py --peer=hf,trl        (pip install -r requirements-bench.txt)
one part              python bench.py --only=sampling
a laptop test         python bench.py --preset=smoke

Every figure is the median of `repeats` runs after one that does not count. Ratios to a peer are measured in the same run, on a model of the same
shape with the same numbers of prompts, tokens and updates. GRPO steps are those of train_rlvr.py itself, read from its metrics.jsonl.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import rewards
from common import (
    BadInput,
    autocast,
    is_main_process,
    one_of,
    parse_config,
    run_main,
    start_processes,
)
from data import load_world
from data.text import write_text_world
from data.textgame import prepare as textgame
from data.webnav import prepare as webnav
from model import Model, ModelConfig

ROOT = Path(__file__).resolve().parent
PARTS = ("mle", "sampling", "reward", "grpo", "group", "prompt", "memory")


@dataclass
class Config:
    only: str = ""  # parts to run, separated by commas: mle, sampling, reward, grpo, group, prompt, memory; empty: all
    peer: str = ""  # others to run beside: hf (transformers' generate and training step), trl (its GRPOTrainer)
    repeats: int = 3  # runs per figure, after one that does not count; the median is shown
    prompts: int = 16  # prompts per rollout batch
    group: int = 16  # responses to each
    updates: int = 4  # optimizer steps per rollout batch
    dtype: str = "float32"  # of GRPO steps and curves, the peers' too: float32 or bfloat16; MLE and sampling are measured in both
    longest: int = 2048  # longest prompt of the curves
    small: bool = False  # tiny shapes, to see that it runs
    device: str = "auto"  # cpu, cuda, mps or auto
    seed: int = 0  # of weights and prompts


PRESETS = {"smoke": dict(repeats=1, prompts=2, group=4, updates=2, longest=64, small=True)}


@dataclass
class Shape:
    """A model, the lengths it works on (P prompt tokens, R response tokens) and the dtypes in which MLE and sampling are measured."""

    n_layer: int
    n_head: int
    n_embd: int
    vocab: int
    P: int
    R: int
    dtypes: tuple = ("float32", "bfloat16")

    def model(self, device, **changes):
        torch.manual_seed(0)
        config = dict(
            vocab_size=self.vocab,
            block_size=self.P + self.R,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_kv_head=self.n_head,
            n_embd=self.n_embd,
        )
        return Model(ModelConfig(**{**config, **changes})).to(device)

    def __str__(self):
        return f"{self.n_layer} x {self.n_embd}, {self.n_head} heads, vocabulary {self.vocab}, P {self.P}, R {self.R}"


SHORT, LONG = Shape(4, 4, 128, 544, 67, 64), Shape(6, 4, 256, 544, 370, 48)
PAPER = Shape(
    12, 12, 768, 4631, 1332, 320, ("bfloat16",)
)  # the paper's single-step video model, with tied embeddings and a narrower SwiGLU; on a GPU only

# ---------------------------------------------------------------------------------------------------------------------
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
    with torch.profiler.profile(
        profile_memory=True
    ) as recorded:  # every allocation and release; what the process shows from outside is coarser
        function()
    changes = [
        event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    held = highest = 0
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
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
        for row in rows
    ]
    print(f"\n{title}\n\n{lines[0]}\n|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print("\n".join(lines[1:]), flush=True)


def peers(config):
    """The names in --peer. Raises BadInput for an unknown one or one that is not installed."""
    names = [one_of("peer", name, ("hf", "trl")) for name in config.peer.split(",") if name]
    for package in {"transformers" for _ in names} | {"trl" for name in names if name == "trl"}:
        try:
            __import__(package)
        except ImportError:
            raise BadInput(
                f"--peer={config.peer} needs the package {package}: pip install -r requirements-bench.txt"
            ) from None
    return names


def llama(shape, device):
    """transformers' Llama of the same shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    inner = ModelConfig(n_embd=shape.n_embd, n_head=shape.n_head, n_kv_head=shape.n_head).n_inner
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.n_embd,
            intermediate_size=inner,
            num_hidden_layers=shape.n_layer,
            num_attention_heads=shape.n_head,
            num_key_value_heads=shape.n_head,
            tie_word_embeddings=True,
            max_position_embeddings=shape.P + shape.R,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).to(device)


class GPT(nn.Module):
    """nanoGPT's network in torch's own parts, called as gpt(tokens [B, T + 1]) -> loss: what an ordinary training step costs on this machine."""

    def __init__(self, shape):
        super().__init__()
        self.heads, C = shape.n_head, shape.n_embd
        self.embed, self.place = nn.Embedding(shape.vocab, C), nn.Embedding(shape.P + shape.R, C)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                dict(
                    norm1=nn.LayerNorm(C, bias=False),
                    qkv=nn.Linear(C, 3 * C, bias=False),
                    out=nn.Linear(C, C, bias=False),
                    norm2=nn.LayerNorm(C, bias=False),
                    up=nn.Linear(C, 4 * C, bias=False),
                    down=nn.Linear(4 * C, C, bias=False),
                )
            )
            for _ in range(shape.n_layer)
        )
        self.norm = nn.LayerNorm(C, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens[:, :-1])
        B, T, C = x.shape
        x = x + self.place.weight[:T]
        for block in self.blocks:
            q, k, v = (
                block["qkv"](block["norm1"](x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](y.transpose(1, 2).reshape(B, T, C))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        logits = F.linear(self.norm(x), self.embed.weight)  # tied, as nanoGPT's
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


# ---------------------------------------------------------------------------------------------------------------------
# The parts


def bench_mle(config, device):
    """Training steps on plain sequences (forward, backward, AdamW), beside nanoGPT's network with as many parameters, within 1 %."""
    shapes = (
        [(Shape(1, 2, 32, 64, 1, 15), 2)]
        if config.small
        else [(Shape(4, 4, 128, 544, 1, 127), 64), (Shape(6, 6, 384, 2048, 1, 255), 12)]
    )
    if device.type == "cuda" and not config.small:
        shapes.append((replace(PAPER, P=1, R=PAPER.P + PAPER.R - 1), 16))
    rows = []
    for shape, batch in shapes:
        tokens = torch.randint(0, shape.vocab, (batch, shape.R + 1), device=device)
        mask = torch.ones(batch, 1, shape.R, dtype=torch.bool, device=device)
        length = torch.ones(batch, dtype=torch.long, device=device)
        ours, gpt = shape.model(device), GPT(shape).to(device)
        losses = {
            ours: lambda: (
                -ours(tokens[:, :1], length, tokens[:, None, 1:], mask, entropy=False)[0].mean()
            ),
            gpt: lambda: gpt(tokens),
        }
        if "hf" in peers(config):
            theirs = llama(shape, device)
            losses[theirs] = lambda: theirs(input_ids=tokens, labels=tokens).loss
        for dtype in shape.dtypes:
            context = autocast(device, dtype)
            speeds = []
            for model, loss in losses.items():
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

                def step():
                    with context:
                        value = loss()
                    value.backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

                speeds.append(tokens.numel() / seconds(step, max(5, config.repeats), device))
            flops = (
                6 * ours.num_parameters() + 12 * shape.n_layer * shape.n_embd * shape.R
            )  # a token, forward and backward (PaLM, appendix B)
            share = flops * speeds[0] / matrix_peak(getattr(torch, dtype), device, config.repeats)
            others = [
                cell
                for speed in speeds[1:]
                for cell in (f"{speed:,.0f}", f"{speeds[0] / speed:.2f}")
            ]
            rows.append(
                [
                    f"{shape.n_layer} x {shape.n_embd}, {batch} x {shape.R + 1} tokens",
                    dtype,
                    f"{ours.num_parameters():,}",
                    f"{speeds[0]:,.0f}",
                    f"{share:.0%}",
                    *others,
                ]
            )
    table(
        "Maximum likelihood",
        ["shape", "dtype", "parameters", "tokens/s", "of matrix peak", "nanoGPT's network", "ratio"]
        + ["transformers", "ratio"] * ("hf" in peers(config)),
        rows,
    )


def bench_sampling(config, device):
    """G responses of full length to each prompt, beside transformers' generate in the same dtype."""
    rows = []
    for shape in (
        [Shape(1, 2, 32, 64, 12, 8)]
        if config.small
        else [SHORT, LONG] + [PAPER] * (device.type == "cuda")
    ):
        model, tokens = shape.model(device).eval(), config.prompts * config.group * shape.R
        prompt = torch.randint(0, shape.vocab, (config.prompts, shape.P), device=device)
        length = torch.full((config.prompts,), shape.P, device=device)
        theirs, repeated = (
            llama(shape, device).eval() if "hf" in peers(config) else None,
            prompt.repeat_interleave(config.group, 0),
        )
        for dtype in shape.dtypes:

            def ours():
                with autocast(device, dtype):
                    model.sample(prompt, length, config.group, shape.R)

            def generate():
                with torch.no_grad(), autocast(device, dtype):
                    theirs.generate(
                        input_ids=repeated,
                        attention_mask=torch.ones_like(repeated),
                        do_sample=True,
                        temperature=1.0,
                        top_k=0,
                        top_p=1.0,
                        max_new_tokens=shape.R,
                        min_new_tokens=shape.R,
                    )

            speeds = [
                tokens / seconds(function, config.repeats, device)
                for function in (ours, generate)[: 1 + (theirs is not None)]
            ]
            rows.append(
                [
                    shape,
                    dtype,
                    *(f"{speed:,.0f}" for speed in speeds),
                    *(f"{speeds[0] / speed:.1f}" for speed in speeds[1:]),
                ]
            )
    table(
        f"Sampling, {config.prompts} x {config.group}",
        ["shape", "dtype", "tokens/s"] + ["generate", "ratio"] * ("hf" in peers(config)),
        rows,
    )


def bench_reward(config, device):
    """Decoding and scoring answers, half of them wrong; and frames."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, prepare in (("textgame", textgame), ("webnav", webnav)):
            quietly(prepare.main, ["--preset=smoke", f"--out={folder}/{name}"])
            world = load_world(f"{folder}/{name}", device)
            numbers = list(range(min(32, len(world.records["train"]))))
            batch = world.batch("train", numbers)
            wrong = world.batch("train", numbers[1:] + numbers[:1])
            R = min(batch.response.size(1), wrong.response.size(1))
            tokens = torch.stack(
                [batch.response[:, :R], wrong.response[:, :R]] * 8, dim=1
            )  # [B, G, R]
            tokens[:, 2:, 0] = torch.randint(
                0, world.vocab_size - 1, tokens[:, 2:, 0].shape, device=device
            )  # no two alike: nothing is scored once for many
            for metric in world.metrics:
                taken = seconds(
                    lambda: world.score(batch, tokens, [metric]), config.repeats, device
                )
                rows.append([name, metric, f"{tokens[..., 0].numel() / taken:,.0f} responses"])
    a, b = (torch.rand(16 if config.small else 256, 3, 64, 64, device=device) for _ in range(2))
    for metric in (rewards.mae, rewards.mse, rewards.psnr, rewards.ssim):
        rows.append(
            [
                "video, 64x64",
                metric.__name__,
                f"{len(a) / seconds(lambda: metric(a, b), config.repeats, device):,.0f} frames",
            ]
        )
    table("Rewards", ["world", "metric", "per second"], rows)


def quietly(function, *arguments):
    """Calls a function without showing what it prints."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def digits_world(folder, shape):
    """A text world whose prompts have exactly P tokens and whose longest response has R: digits stand alone, and words fill the vocabulary."""
    generator = torch.Generator().manual_seed(0)

    def digits(n):
        return "".join(map(str, torch.randint(0, 10, (n,), generator=generator).tolist()))

    words = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(shape.vocab - 257)]
    filler = [
        "".join(words[i : i + 4]) for i in range(0, len(words), 4)
    ]  # words have no blanks in front, so each pair of letters is one merge
    records = [{"prompt": digits(shape.P), "response": digits(shape.R - 1)} for _ in range(64)]
    train = (
        records + [{"prompt": f"{word},{word}"[: shape.P], "response": "1"} for word in words] * 2
        if filler
        else records
    )
    quietly(
        write_text_world,
        folder,
        "text",
        {"train": train, "val": records[:8], "test": records[:8]},
        shape.vocab,
    )


def script(folder, *command):
    """Runs a script of the repository in a folder; raises BadInput with the end of what it printed if it fails."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise BadInput(f"{' '.join(command)} failed: {done.stderr[-500:]}")


def bench_grpo(config, device):
    """Whole steps of train_rlvr.py: sampling, reward, reference, update."""
    rows = []
    for shape in [Shape(1, 2, 32, 300, 12, 8)] if config.small else [SHORT, LONG]:
        with tempfile.TemporaryDirectory() as folder:
            digits_world(Path(folder) / "world", shape)
            common = ["--world=world", f"--device={config.device}"]
            script(
                folder,
                "train_mle.py",
                *common,
                f"--n_layer={shape.n_layer}",
                f"--n_head={shape.n_head}",
                f"--n_kv_head={shape.n_head}",
                f"--n_embd={shape.n_embd}",
                "--look_back=false",
                "--steps=1",
                "--lr=0",
                "--batch_size=4",
                "--eval_records=2",
                "--eval_every=100",
            )
            script(
                folder,
                "train_rlvr.py",
                *common,
                f"--steps={config.repeats + 2}",
                f"--prompts={config.prompts}",
                f"--group={config.group}",
                f"--updates={config.updates}",
                "--reward=line_f1",
                "--kl=0.001",
                f"--micro_batch={config.prompts}",
                "--eval_every=1000",
                "--eval_records=2",
                f"--dtype={config.dtype}",
                "--init_from=out/world-mle/last.pt",
            )
            lines = [
                json.loads(line)
                for line in (Path(folder) / "out/world-rlvr/metrics.jsonl").read_text().splitlines()
            ]
        steps = [line for line in lines if "update_s" in line][2:]  # the first two warm up
        parts = [
            statistics.median(step[name] for step in steps)
            for name in ("sampling_s", "scoring_s", "reference_s", "update_s")
        ]
        cells = [
            shape,
            f"{statistics.median(step['length'] for step in steps):.0f}",
            *(f"{part:.2f}" for part in parts),
            f"{sum(parts):.2f}",
        ]
        if "trl" in peers(config):
            other = trl_step(config, shape, device)
            cells += [f"{other:.2f}", f"{other / sum(parts):.1f}"]
        rows.append(cells)
    table(
        f"A GRPO step, {config.prompts} x {config.group}, {config.updates} updates, {config.dtype}: seconds",
        ["shape", "tokens", "sampling", "reward", "reference", "update", "step"]
        + ["TRL", "ratio"] * ("trl" in peers(config)),
        rows,
    )


def trl_step(config, shape, device):
    """Seconds of TRL's GRPOTrainer for one rollout batch and its updates, on the same shape and numbers."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    words = {f"w{i}": i for i in range(shape.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", eos_token="w1", padding_side="left"
    )
    generator = torch.Generator().manual_seed(0)
    prompts = [
        " ".join(
            f"w{i}" for i in torch.randint(2, shape.vocab, (shape.P,), generator=generator).tolist()
        )
        for _ in range(64)
    ]
    times, steps = [], (config.repeats + 2) * config.updates

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            times.append(time.perf_counter())

        def on_train_end(self, *_, **__):
            times.append(time.perf_counter())

    responses = config.prompts * config.group
    with tempfile.TemporaryDirectory() as folder:
        llama(shape, device).save_pretrained(
            f"{folder}/model"
        )  # TRL loads the reference model from where the policy came from
        arguments = GRPOConfig(
            output_dir=folder,
            model_init_kwargs={"dtype": "float32"},
            per_device_train_batch_size=responses // config.updates,
            steps_per_generation=config.updates,
            num_generations=config.group,
            max_completion_length=shape.R,
            beta=0.001,
            temperature=1.0,
            top_k=0,
            learning_rate=1e-6,
            max_steps=steps,
            logging_steps=10**6,
            report_to=[],
            save_strategy="no",
            use_cpu=device.type == "cpu",
            bf16=config.dtype == "bfloat16",
            gradient_checkpointing=False,
            disable_tqdm=True,
            generation_kwargs={"min_new_tokens": shape.R},
        )
        trainer = GRPOTrainer(
            model=f"{folder}/model",
            reward_funcs=lambda completions, **_: [float(len(set(c))) for c in completions],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        quietly(trainer.train)
    per_batch = [
        times[i + config.updates] - times[i]
        for i in range(2 * config.updates, steps, config.updates)
    ]
    return statistics.median(per_batch)


def one_update(model, B, G, P, R, context, device):
    """A function that runs one grouped forward and backward pass."""
    prompt = torch.randint(0, model.config.vocab_size, (B, P), device=device)
    response = torch.randint(0, model.config.vocab_size, (B, G, R), device=device)
    length, mask = (
        torch.full((B,), P, device=device),
        torch.ones(B, G, R, dtype=torch.bool, device=device),
    )

    def run():
        with context:
            loss = model(prompt, length, response, mask)[0].mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def sampling_and_update(config, device, shape, B, G):
    """[tokens/s of sampling, seconds of sampling, seconds of forward and backward] for B prompts and G responses each."""
    model, context = shape.model(device), autocast(device, config.dtype)
    prompt, length = (
        torch.randint(0, shape.vocab, (B, shape.P), device=device),
        torch.full((B,), shape.P, device=device),
    )

    def sample():
        with context:
            model.sample(prompt, length, G, shape.R)

    sampling = seconds(sample, config.repeats, device)
    update = seconds(
        one_update(model, B, G, shape.P, shape.R, context, device), config.repeats, device
    )
    return [f"{B * G * shape.R / sampling:,.0f}", f"{sampling:.2f}", f"{update:.2f}"]


def bench_group(config, device):
    """The same number of responses, more of them to each prompt: the prompt's share of the work shrinks with 1/G."""
    shape = Shape(1, 2, 32, 64, 12, 8) if config.small else Shape(4, 4, 128, 544, 370, 48)
    total = 16 if config.small else 256
    rows = [
        [G, total // G, *sampling_and_update(config, device, shape, total // G, G)]
        for G in (4, 8, 16, 32, 64)
        if G <= total
    ]
    table(
        f"{total} responses, {shape}",
        ["group", "prompts", "sampling tokens/s", "sampling s", "forward + backward s"],
        rows,
    )


def bench_prompt(config, device):
    """Longer prompts."""
    rows = []
    for P in (64, 128, 256, 512, 1024, 2048):
        if P <= config.longest:
            shape = Shape(1, 2, 32, 64, P, 8) if config.small else Shape(4, 4, 128, 544, P, 48)
            rows.append(
                [P, *sampling_and_update(config, device, shape, config.prompts // 2, config.group)]
            )
    table(
        f"{config.prompts // 2} x {config.group} responses of {shape.R} tokens, by prompt length",
        ["prompt", "sampling tokens/s", "sampling s", "forward + backward s"],
        rows,
    )


def bench_memory(config, device):
    """The vocabulary-wide rows exist for a chunk of positions at a time: memory grows with the chunk, not with vocabulary times batch."""
    vocab = 1000 if config.small else 151936
    rows = []
    for positions in (256, 512, 1024) if not config.small else (64,):
        shape = Shape(4, 4, 128, vocab, 67, 64)
        model = shape.model(device)
        run = one_update(
            model, 1, positions // 64, shape.P, shape.R, autocast(device, config.dtype), device
        )
        run()
        taken = peak_memory(run, device)
        whole = 4 * positions * vocab
        rows.append([f"{positions:,}", f"{whole / 2**30:.2f}", f"{taken / 2**30:.2f}"])
    table(
        f"Memory of an update, 4 x 128, vocabulary {vocab:,}: GiB beyond weights and optimizer",
        ["response positions", "one fp32 [positions, vocabulary]", "peak, gradients included"],
        rows,
    )


def main(argv):
    config = parse_config(Config, argv, PRESETS)
    device, *_ = start_processes(config.device, config.seed)
    chosen = [one_of("part", name, PARTS) for name in config.only.split(",") if name] or PARTS
    peers(config)
    if is_main_process():
        name = (
            torch.cuda.get_device_name()
            if device.type == "cuda"
            else f"{torch.get_num_threads()} CPU threads"
        )
        print(
            f"torch {torch.__version__}, {name}; matrix product: {matrix_peak(torch.float32, device, 5) / 1e9:,.0f} GFLOP/s fp32, "
            f"{matrix_peak(torch.bfloat16, device, 5) / 1e9:,.0f} bf16"
        )
    for part in chosen:
        {
            "mle": bench_mle,
            "sampling": bench_sampling,
            "reward": bench_reward,
            "grpo": bench_grpo,
            "group": bench_group,
            "prompt": bench_prompt,
            "memory": bench_memory,
        }[part](config, device)


if __name__ == "__main__":
    run_main(main)
