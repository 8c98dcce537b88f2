"""
A net under a rearrangement: two checkouts of the project do the same few steps of every stage in
every world, on one thread, and must come to the same numbers.

    git worktree add --detach /tmp/base REVISION
    python tests/net.py /tmp/base
    python tests/net.py saved.pt              what `python tests/net.py --ask saved.pt` said before

Equal must be: initial weights, optimizer settings, sampled tokens, rewards. Log-probabilities and
losses may differ by 1e-6, weights after 20 steps by 1e-5. Each checkout is asked by its own copy of
this file, in the options of its own day; what the numbers are called is the same in both.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DTYPES = ("float32", "bfloat16")
EXACT = ("initial", "settings", "tokens", "rewards", "mask")
TOLERANCE = {"logprob": 1e-6, "loss": 1e-6, "weights": 1e-5}


# ------------------------------------------------------------------------------------------------
# Asking this checkout


def prepare():
    """Five small worlds in the working folder."""
    from data.own import prepare as own
    from data.robot import prepare as robot
    from data.textgame import prepare as textgame
    from data.webnav import prepare as webnav

    with open("mine.jsonl", "w") as file:
        for n in range(300):
            record = {
                "prompt": f"{n % 20} and {n // 20} =",
                "response": f" {n % 20 + n // 20}\ndone",
            }
            file.write(json.dumps(record) + "\n")
    own.main(["--path=mine.jsonl", "--out=./mine", "--vocab_size=270", "--reward=line_f1"])
    textgame.main(["--instances=10", "--held_out=7", "--vocab_size=512", "--out=./textgame"])
    webnav.main(["--sessions=9", "--vocab_size=512", "--out=./webnav"])
    sizes = ["--episodes=12", "--frames=9", "--horizon=3", "--val=0.2", "--test=0.2"]
    robot.main([*sizes, "--out=./robot"])


def tokenizer(dtype):
    import tokenizer_vq

    common = [f"--dtype={dtype}", "--channels=8", "--batch_size=4", "--warmup=2", "--steps=20"]
    common += ["--eval_every=10", "--eval_frames=8", "--threads=1"]
    tokenizer_vq.main([*common, "--world=./robot"])
    tokenizer_vq.main([*common, "--world=./robot-multi", "--dynamics=16"])


def mle(world, dtype, steps, name):
    import train_mle

    options = ["--n_layer=2", "--n_head=2", "--n_kv_head=1", "--n_embd=64", "--batch_size=16"]
    options += ["--micro_batch_size=3", "--warmup=5", "--eval_every=50", "--eval_records=8"]
    options += [f"--world=./{world}", f"--dtype={dtype}", f"--steps={steps}", f"--name={name}"]
    options += ["--threads=1"]
    if world == "textgame":
        options += ["--changed_fraction=0.5", "--kind_power=0.5", "--permute_ids=0.3"]
        options += ["--prompt_loss=0.1"]
    train_mle.main(options)


def rlvr(world, dtype, start, name):
    import train_rlvr

    options = ["--prompts_per_step=6", "--group_size=5", "--micro_batch_size=4", "--steps=4"]
    options += ["--eval_every=2", "--eval_records=8", "--warmup=2", "--lr=0.001", "--threads=1"]
    options += ["--entropy_coef=0.01", "--kl_coef=0.1"]
    options += [f"--world=./{world}", f"--dtype={dtype}", f"--init_from={start}", f"--name={name}"]
    if world == "textgame":
        options += ["--changed_fraction=0.5", "--kind_power=0.5", "--permute_ids=0.3"]
        options += ["--update_epochs=2"]
    if world == "robot-multi":
        options += ["--supervision=process", "--reward=mae+0.5*ssim+0.1*repetition"]
    train_rlvr.main(options)


def watch(seen):
    """From now on rollouts, updates and fresh optimizers are written into `seen`, lists by name."""
    import torch

    import evaluate
    import train_rlvr

    def note(name, value):
        seen.setdefault(name, []).append(value)

    def spy(owner, name, take):
        real = getattr(owner, name)

        def watched(*arguments, **options):
            result = real(*arguments, **options)
            take(result, *arguments, **options)
            return result

        setattr(owner, name, watched)

    def rollout(result, *_, **__):
        mask = result.mask()
        note("tokens", result.tokens.masked_fill(~mask, 0))
        note("logprob", result.logprob.masked_fill(~mask, 0))

    def update(result, logprob, old_logprob, advantages, mask, *_, **__):
        note("mask", mask.clone())
        note("loss", result[0].detach().masked_fill(~mask, 0))
        note("logprob", logprob.detach().masked_fill(~mask, 0))
        note("logprob", old_logprob.detach().masked_fill(~mask, 0))

    def fresh(_, optimizer, parameters, *__, **___):
        note("initial", [p.detach().clone() for p in parameters])

    spy(evaluate, "generate", rollout)
    spy(train_rlvr, "generate", rollout)
    spy(train_rlvr, "policy_loss", update)
    grpo = train_rlvr.ALGORITHMS["grpo"]
    train_rlvr.ALGORITHMS["grpo"] = grpo._replace(loss=train_rlvr.policy_loss)
    spy(train_rlvr, "group_advantages", lambda result, rewards, *_, **__: note("rewards", rewards))
    for kind in (torch.optim.Muon, torch.optim.AdamW):
        real = kind.__init__

        def watched(self, parameters, *arguments, real=real, **options):
            parameters = list(parameters)
            fresh(None, self, parameters)
            real(self, parameters, *arguments, **options)

        kind.__init__ = watched


def ask(out):
    """Runs everything in the working folder and saves what was seen under names that say where."""
    import torch

    torch.set_num_threads(1)
    found, seen = {}, {}
    prepare()
    watch(seen)

    def collect(where, checkpoint):
        for name, values in seen.items():
            found[f"{where} {name}"] = values
        state = torch.load(checkpoint, weights_only=True)
        found[f"{where} weights"] = list(state["model"].values())
        optimizers = [state[name] for name in ("muon", "adamw", "optimizer") if name in state]
        found[f"{where} settings"] = [json.dumps(o["param_groups"]) for o in optimizers]
        seen.clear()

    for dtype in DTYPES:
        tokenizer(dtype)
        for world in ("robot", "robot-multi"):
            checkpoint = f"out/{world}-tokenizer/last.pt"
            found[f"{dtype} {world} tokenizer weights"] = list(
                torch.load(checkpoint, weights_only=True)["model"].values()
            )
        seen.clear()
        for world in ("mine", "textgame", "webnav", "robot", "robot-multi"):
            mle(world, dtype, 20, "short")
            collect(f"{dtype} {world} mle", "out/short/last.pt")
            mle(world, dtype, 150, "long")
            seen.clear()
            rlvr(world, dtype, "out/long/last.pt", "rlvr")
            collect(f"{dtype} {world} rlvr", "out/rlvr/last.pt")
    torch.save(found, out)


# ------------------------------------------------------------------------------------------------
# Comparing two checkouts


def largest_difference(a, b):
    """The largest difference between two nested lists of tensors; infinite where shapes differ."""
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return float("inf")
        return max([largest_difference(x, y) for x, y in zip(a, b)], default=0.0)
    if isinstance(a, str):
        return 0.0 if a == b else float("inf")
    if a.shape != b.shape:
        return float("inf")
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


def saved(root):
    """What a checkout says: its folder is asked, or a .pt file that --ask has written is read."""
    import torch

    if root.suffix == ".pt":
        return torch.load(root, weights_only=True)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        command = [sys.executable, str(root / "tests/net.py"), "--ask", f"{folder}/found.pt"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{root}: failed\n{done.stderr[-3000:]}")
        return torch.load(f"{folder}/found.pt", weights_only=True)


def main(base, here=ROOT):
    old = saved(Path(base).resolve())
    new = saved(Path(here).resolve())
    failed = sorted(old.keys() ^ new.keys())
    print("only in one of the two:", ", ".join(failed) or "nothing")
    for name in sorted(old.keys() & new.keys()):
        kind = name.rpartition(" ")[2]
        difference = largest_difference(old[name], new[name])
        good = difference <= TOLERANCE.get(kind, 0.0)
        print(f"{'equal' if good else 'DIFFERS'} {name}: {difference:.3g}")
        failed += [] if good else [name]
    rewards = [r for name in new if name.endswith("rewards") for r in new[name]]
    varied = sum(bool((r.amax(1) > r.amin(1)).any()) for r in rewards)
    print(f"{len(new)} things compared, {len(failed)} differ; rewards vary in {varied} rollouts")
    sys.exit(bool(failed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ask"]:
        ask(sys.argv[2])
    elif len(sys.argv) in (2, 3):
        main(*sys.argv[1:])
    else:
        sys.exit(__doc__)
