"""
The scripts as a user runs them: the chain from raw data to the table, the pages in runs/, resume,
bad input, every option, two processes.
"""

import contextlib
import dataclasses
import gzip
import inspect
import itertools
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import bench
import common
import evaluate
import pretrained
import sample
import tokenizer_vq
import train_mle
import train_rlvr
from common import BadInput, parse_config
from data.own import prepare as own_prepare
from data.robot import prepare as robot_prepare
from data.text import TextWorld
from data.textgame import prepare as textgame_prepare
from data.tokenizer_json import LETTERS
from data.webnav import prepare as webnav_prepare
from model import Model, ModelConfig
from pretrained import write_pretrained
from tests import fork_server, soak
from tests.conftest import SHARED
from tests.soak import small
from tests.test_grpo import NoLegal, an_experience, small_model
from use import plan, rollout

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "train_mle.py": train_mle,
    "train_rlvr.py": train_rlvr,
    "evaluate.py": evaluate,
    "sample.py": sample,
    "tokenizer_vq.py": tokenizer_vq,
    "bench.py": bench,
    "data/own/prepare.py": own_prepare,
    "data/robot/prepare.py": robot_prepare,
    "data/textgame/prepare.py": textgame_prepare,
    "data/webnav/prepare.py": webnav_prepare,
    "use/plan.py": plan,
    "use/rollout.py": rollout,
    "pretrained.py": pretrained,
}
MLE = "out/smoke/textgame-mle/best.pt"


def environment(**more):
    """What a user's shell would have, `python` being one that starts soon."""
    path = f"{fork_server.folder()}:/usr/bin:/bin"
    return {"PATH": path, "OMP_NUM_THREADS": "1", "HOME": os.environ.get("HOME", "/"), **more}


def run(folder, script, *options, code=0, smoke=True, python="python"):
    """Runs a script of the repository in `folder` and returns what it printed."""
    done = subprocess.run(
        [python, str(ROOT / script), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(SMOKE="1" if smoke else ""),
    )
    assert done.returncode == code, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder in which a text game has been prepared, trained and post-trained, in seconds."""
    folder = tmp_path_factory.mktemp("house")
    # once as it really starts
    run(folder, "data/textgame/prepare.py", "--out=./textgame", python=sys.executable)
    run(folder, "train_mle.py", "--world=./textgame")
    run(folder, "train_rlvr.py", "--world=./textgame")
    return folder


def train(module, house, **options):
    """Runs a training script in this process: tiny, in the world of a house."""
    if module is train_rlvr:
        options.setdefault("init_from", house / MLE)
    module.main(small(module, world=house / "textgame", **options))


def logged(folder, key="step"):
    """The lines of a run's metrics.jsonl that have a key."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if key in row]


def progress(path):
    """What a checkpoint says of its run."""
    return common.load_checkpoint(path)["progress"]


# --------------------------------------------------------------------------------------------------
# The chain, and its table


def test_the_table_has_all_its_rows(house):
    more = "--init_from=textgame-mle", "--name=textgame-mle-more-1"
    run(house, "train_mle.py", "--world=./textgame", *more)
    printed = run(house, "evaluate.py", "--world=./textgame", "--kinds")
    labels = "copy (nothing changes)", "lookup (no learning)"
    for row in (*labels, "MLE, T=1", "MLE continued, T=1", "RLVR, T=1"):
        assert f"| {row}" in printed
    assert "best of N" in printed and "by kind" in printed
    folder = house / "out/smoke/textgame-results"
    assert (folder / "results.md").read_text().strip() in printed
    rows = json.loads((folder / "results.json").read_text())["rows"]
    copy = rows["copy (nothing changes)"]
    assert copy["strict_binary unchanged"] == [1.0] and copy["strict_binary changed"] == [0.0]
    # seconds and work of a row are those of all training behind it
    mle = progress(house / MLE)
    for label, name in (("MLE continued", "mle-more-1"), ("RLVR", "rlvr")):
        own = progress(house / f"out/smoke/textgame-{name}/best.pt")
        for key in ("seconds", "work"):
            assert mle["before"][key] == 0 and own["before"][key] == mle[key] > 0
            assert rows["MLE, T=1"][key] == mle[key]
            assert rows[f"{label}, T=1"][key] == mle[key] + own[key]


def test_average_over_training_seeds(tmp_path, capsys):
    seeds = [
        ([0.4, 0.6], 0.7, "greedy"),
        ([0.3, 0.5], 0.9, "T=0.5"),
        ([0.6, 0.6], 0.8, "greedy"),
    ]
    for seed, (a, greedy, decoding) in enumerate(seeds):
        (tmp_path / str(seed)).mkdir()
        rows = {
            "copy (nothing changes)": {"accuracy": [0.25], "task": [0.5], "seconds": 0.0},
            "RLVR, T=1": {"accuracy": a, "task": [1.0], "seconds": 10.0},
            f"RLVR, {decoding}": {"accuracy": [greedy], "task": [1.0], "seconds": 10.0},
        }
        for row in rows.values():
            row["work"] = 2e5 * row["seconds"] + 1e6 * seed
        results = {"scale": {"accuracy": 100, "task": 1}, "rows": rows, "headline": "accuracy"}
        gap = [0.02 * seed, -0.01, 0.05]
        results["differences"] = {"RLVR": {"MLE": {"accuracy": gap, "task": gap}}}
        (tmp_path / str(seed) / "results.json").write_text(json.dumps(results))
    evaluate.main(["--average=0,1,2", f"--out={tmp_path}"])
    table = []
    printed = capsys.readouterr().out
    assert "RLVR − MLE in accuracy: 2.000 ± 2.000 (+0.00, +2.00, +4.00)" in printed
    for line in printed.splitlines():
        if line.startswith("| "):
            table.append([cell.strip() for cell in line.split("|")[1:-1]])
    assert table == [
        ["", "accuracy", "task", "work (M tokens)", "seconds"],
        ["copy (nothing changes)", "25.00 ± 0.00", "0.500 ± 0.000", "1.0", "0"],
        ["RLVR, T=1", "50.00 ± 10.00", "1.000 ± 0.000", "3.0", "10"],
        ["RLVR, best decoding", "80.00 ± 10.00", "1.000 ± 0.000", "3.0", "10"],
    ]
    with pytest.raises(BadInput, match="nowhere holds no results.json"):
        evaluate.main(["--average=nowhere", f"--out={tmp_path}"])


def test_transitions_are_shown(house):
    printed = run(house, "sample.py", "--world=./textgame")
    assert printed.count("strict_binary") == 2 and "> " in printed
    assert "✓" in printed or "✗" in printed


def test_metrics_hold_what_one_should_watch(house):
    rows = logged(house / "out/smoke/textgame-rlvr", "reward")
    assert len(rows) == 3
    shares = "reward reward_std equal_groups length limit kl entropy clipped ratio norm"
    others = "ratio_error_first sampling_s scoring_s reference_s update_s tokens_per_second"
    for name in (*shares.split(), *others.split()):
        assert all(isinstance(row[name], float) for row in rows), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_what_the_sampler_said_is_compared_with_scoring(house, tmp_path, monkeypatch, dtype, wrong):
    """
    Guards against a sampler whose log-probabilities are not those of the network, unnoticed; also
    in bf16, where recomputing the old ones would hide it.
    """
    monkeypatch.chdir(tmp_path)
    generate = train_rlvr.generate

    def biased(*arguments, **options):
        rollout = generate(*arguments, **options)
        rollout.logprob = rollout.logprob - wrong
        return rollout

    monkeypatch.setattr(train_rlvr, "generate", biased)
    train(train_rlvr, house, dtype=dtype, steps=1)
    errors = [row["ratio_error_first"] for row in logged("out/textgame-rlvr", "reward")]
    near = 0.01 if dtype == "bfloat16" else 1e-4
    assert errors == [pytest.approx(math.expm1(wrong), abs=near)]


def test_validation_at_a_temperature_leaves_training_alone(house, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    trained = []
    scores_of = evaluate.evaluate

    def spy(model, world, split, indices, names, decoding, *rest, generator):
        seen.append((decoding.temperature, generator.initial_seed()))
        return scores_of(model, world, split, indices, names, decoding, *rest, generator=generator)

    monkeypatch.setattr(evaluate, "evaluate", spy)
    for temperature in (0, 0.7):
        train(train_rlvr, house, eval_temperature=temperature)
        rows = logged("out/textgame-rlvr", "reward")
        trained.append([[row[n] for n in ("length", "kl", "entropy", "norm")] for row in rows])
        shutil.rmtree("out")
    # every validation draws the same numbers, so that differences are the model's
    assert seen == [(0.0, 0)] * 3 + [(0.7, 0)] * 3
    assert trained[0] == trained[1] and len(trained[0]) == 3


def test_bench_measures(tmp_path):
    """Every part of bench.py on tiny shapes, beside transformers."""
    pytest.importorskip("transformers")
    printed = run(tmp_path, "bench.py", "--peer=hf")
    titles = "Maximum likelihood", "Sampling, 2 x 4", "Rewards", "A GRPO step"
    for title in (*titles, "16 responses", "by prompt length", "Memory of an update"):
        assert title in printed
    words = "nanoGPT's network", "transformers", "generate", "ratio", "strict_task", "ssim"
    for word in words:
        assert word in printed


def test_peak_memory_is_that_of_the_allocations():
    """Two of 4 MB are held at one time, though three are made."""

    def three():
        a = torch.zeros(1000, 1000)
        b = a + 1
        del a
        return (b * 2).sum().item()

    three()
    assert 8e6 <= bench.peak_memory(three, torch.device("cpu")) < 9e6


@pytest.mark.parametrize("able", [False, True])
def test_bf16_is_chosen_by_capability(monkeypatch, able):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: able, raising=False)
    for dtype, wanted in (("auto", able), ("float32", False), ("bfloat16", True)):
        argv = [f"--dtype={dtype}", "--device=cpu", "--threads=1"]
        config = parse_config(train_mle.Config, argv)
        *_, precision = common.start_processes(config)
        assert config.dtype == ("bfloat16" if wanted else "float32")
        with precision:
            assert torch.is_autocast_enabled("cpu") == wanted


# --------------------------------------------------------------------------------------------------
# Budgets, work, the data that are asked for


def test_the_rate_falls_to_zero_at_the_last_step(house, tmp_path, monkeypatch):
    """Linear warm-up, constant, then linear to 0 over the last part of the run."""
    monkeypatch.chdir(tmp_path)
    train(train_mle, house, steps=12, lr=0.1, warmup=2, decay=0.75, eval_every=100, eval_records=1)
    rates = [row["lr"] for row in logged("out/textgame-mle", "lr")]
    wanted = [0.1 * min(1, (step + 1) / 2, (1 - step / 12) / 0.75) for step in range(12)]
    assert rates == [pytest.approx(rate, rel=1e-4) for rate in wanted]
    assert rates[0] == 0.05 and max(rates) == 0.1 and rates[-1] < 0.02


def test_rlvr_can_let_the_rate_fall_and_sample_in_other_pieces_than_it_updates(
    house, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    sizes = []
    generate = train_rlvr.generate

    def spy(model, batch, *rest, **options):
        sizes.append(len(batch.prompt))
        return generate(model, batch, *rest, **options)

    monkeypatch.setattr(train_rlvr, "generate", spy)
    pieces = dict(rollout_batch_size=3, micro_batch_size=2)
    train(train_rlvr, house, steps=5, lr=0.001, warmup=1, decay=0.8, eval_every=10**5, **pieces)
    rates = [row["lr"] for row in logged("out/textgame-rlvr", "reward")]
    wanted = [0.001 * min(1, (1 - step / 5) / 0.8) for step in range(5)]
    assert rates == [pytest.approx(rate, rel=1e-4) for rate in wanted]
    assert sizes == [3, 1] * 5  # four prompts a step


@pytest.fixture
def slow_clock(monkeypatch):
    """Whenever anybody looks at the clock of a run, a second has passed."""
    seconds = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    monkeypatch.setattr(common, "time", clock)


def test_a_cap_on_seconds_stops_a_run_that_can_be_resumed(
    house, tmp_path, monkeypatch, capsys, slow_clock
):
    """--seconds is a cap only: what is trained in a step, and at which rate, does not change."""
    monkeypatch.chdir(tmp_path)
    train(train_mle, house, steps=12, name="whole")
    train(train_mle, house, steps=12, name="cut", seconds=20)
    printed = capsys.readouterr().out
    step = progress("out/cut/last.pt")["step"]
    assert 0 < step < 12 and f"stopped after step {step}, all is saved" in printed
    assert 20 <= progress("out/cut/last.pt")["seconds"] < 40
    train(train_mle, house, steps=12, name="cut", resume=True)
    whole, cut = (common.load_checkpoint(f"out/{name}/last.pt") for name in ("whole", "cut"))
    assert whole["progress"]["step"] == cut["progress"]["step"] == 12
    for name, value in whole["model"].items():
        assert torch.equal(value, cut["model"][name])
    rates = [
        [(row["step"], row["lr"]) for row in logged(f"out/{n}", "lr")] for n in ("whole", "cut")
    ]
    assert rates[0] == rates[1]


def test_the_command_that_a_capped_run_names_goes_on(
    house, tmp_path, monkeypatch, capsys, slow_clock
):
    """Guards against advice that leads nowhere: followed, each command must do steps."""
    monkeypatch.chdir(tmp_path)
    options = small(train_mle, world=house / "textgame", steps=12, seconds=20)
    steps = []
    for _ in range(12):
        monkeypatch.setattr(sys, "argv", ["train_mle.py", *options])
        train_mle.main(options)
        printed = capsys.readouterr().out
        steps.append(progress("out/textgame-mle/last.pt")["step"])
        if "stopped after" not in printed:
            break
        command = re.search(r"go on with: python train_mle.py (.*)", printed)[1]
        options = shlex.split(command)
    assert steps[-1] == 12 and len(steps) > 1 and sorted(set(steps)) == steps, steps


@pytest.mark.parametrize("prompt_loss", [0.0, 0.5])
def test_the_work_of_maximum_likelihood_is_what_one_counts_by_hand(
    house, tmp_path, monkeypatch, prompt_loss
):
    """
    Three for each token of a state, once however many records share it, and of the prompts and
    answers behind it with their end tokens.
    """
    monkeypatch.chdir(tmp_path)
    counted = []
    branch_batch = TextWorld.branch_batch

    def spy(world, groups, *rest):
        for group in groups:
            counted.append(len(group[0][0]) + sum(len(p) + len(r) + 1 for _, p, r in group))
        return branch_batch(world, groups, *rest)

    monkeypatch.setattr(TextWorld, "branch_batch", spy)
    shape = dict(batch_size=7, branches=3, micro_batch_size=1, permute_ids=0.5)
    train(train_mle, house, steps=4, prompt_loss=prompt_loss, **shape)
    found = progress("out/textgame-mle/last.pt")
    assert len(counted) == 4 * (7 // 3) and found["work"] == 3 * sum(counted)
    assert found["before"] == {"seconds": 0.0, "work": 0}
    assert logged("out/textgame-mle", "work")[-1]["work"] == found["work"]


@pytest.mark.parametrize(
    "options,passes",
    [
        ({}, 4),  # the reference's pass, and forward and backward
        ({"kl_coef": 0.0, "update_epochs": 2}, 6),
        ({"dtype": "bfloat16"}, 5),  # the old log-probabilities are computed anew
        ({"redraw": 2}, 4),  # what is drawn and thrown away was sampled, too
    ],
)
def test_the_work_of_rlvr_is_what_one_counts_by_hand(house, tmp_path, monkeypatch, options, passes):
    """
    One for each token that is sampled and each that is given in front of it, once a group; then as
    many passes over those that are kept as the options ask for.
    """
    monkeypatch.chdir(tmp_path)
    sampled = []
    kept = []
    generate = train_rlvr.generate
    collect = train_rlvr.collect

    def generate_spy(model, batch, *rest, **more):
        rollout = generate(model, batch, *rest, **more)
        sampled.append(batch.prompt_len.sum().item() + rollout.length.sum().item())
        return rollout

    def collect_spy(*arguments):
        experience, *rest = collect(*arguments)
        for length, answers in zip(experience.prompt_len, experience.length):
            kept.append(length.item() + sum(answers.tolist()))
        return experience, *rest

    monkeypatch.setattr(train_rlvr, "generate", generate_spy)
    monkeypatch.setattr(train_rlvr, "collect", collect_spy)
    train(train_rlvr, house, steps=2, **{"dtype": "float32", **options})
    found = progress("out/textgame-rlvr/last.pt")
    assert len(kept) == 2 * 4 and (sum(sampled) > sum(kept)) == ("redraw" in options)
    assert found["work"] == sum(sampled) + passes * sum(kept)
    mle = progress(house / MLE)
    assert found["before"] == {key: mle[key] for key in ("seconds", "work")}


def test_what_is_asked_of_the_data_reaches_the_world(house, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {}
    original = TextWorld.mle_batches
    signature = inspect.signature(original)

    def spy(*arguments, **options):
        asked.update(signature.bind(*arguments, **options).arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(TextWorld, "mle_batches", spy)
    wanted = dict(micro_batch_size=3, branches=2, changed_fraction=0.3, kind_power=0.4)
    wanted.update(permute_ids=0.5, prompt_loss=0.6)
    train(train_mle, house, steps=1, **wanted)
    assert {name: asked[name] for name in wanted} == wanted and asked["n"] == 16


# --------------------------------------------------------------------------------------------------
# Resume, and what else must not change what is trained


@pytest.mark.parametrize("module,stop_at,steps", [(train_mle, 3, 5), (train_rlvr, 2, 4)])
def test_resume_goes_on_as_if_never_stopped(house, tmp_path, monkeypatch, module, stop_at, steps):
    """
    Guards against optimizer state, random numbers or a place in the schedule that are not restored:
    stopped after a save and resumed, a run ends with the very weights of the undisturbed run.
    """
    monkeypatch.chdir(tmp_path)
    options = dict(steps=steps, permute_ids=0.5, eval_every=stop_at)
    train(module, house, name="whole", **options)
    save = common.save_checkpoint

    def save_and_stop(path, checkpoint):
        save(path, checkpoint)
        if Path(path).name == "last.pt" and checkpoint["progress"]["step"] == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(common, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(module, house, name="cut", **options)
    monkeypatch.setattr(common, "save_checkpoint", save)
    train(module, house, name="cut", resume=True, **options)
    whole, cut = (common.load_checkpoint(f"out/{name}/last.pt") for name in ("whole", "cut"))
    for name in ("step", "work", "best", "evaluated"):
        assert whole["progress"][name] == cut["progress"][name], name
    assert whole["progress"]["step"] == steps
    for name, value in whole["model"].items():
        assert torch.equal(value, cut["model"][name])
    optimizers = [name for name in ("muon", "adamw", "optimizer") if name in whole]
    states = [[s for name in optimizers for s in c[name]["state"].values()] for c in (whole, cut)]
    assert len(states[0]) > 5
    for a, b in zip(*states, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(torch.as_tensor(a[n]), torch.as_tensor(b[n])) for n in a)


def test_a_run_of_the_same_name_takes_nothing_away(house, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(train_mle, house, steps=2)
    before = {p.name: p.read_bytes() for p in Path("out/textgame-mle").iterdir()}
    train(train_mle, house, steps=1)
    found = [folder for folder in Path("out").iterdir() if folder.name != "textgame-mle"]
    assert len(found) == 1
    assert {p.name: p.read_bytes() for p in found[0].iterdir()} == before
    assert progress("out/textgame-mle/last.pt")["step"] == 1


def test_a_run_stopped_before_its_first_step_is_resumed_where_it_is(house, tmp_path, monkeypatch):
    """Guards against taking an empty log for that of another run."""
    monkeypatch.chdir(tmp_path)
    # what watch_signals() returns when Ctrl-C came while the data were read
    with monkeypatch.context() as at_once:
        at_once.setattr(common, "watch_signals", lambda: lambda: True)
        train(train_mle, house, steps=2)
    assert progress("out/textgame-mle/last.pt")["step"] == 0
    train(train_mle, house, steps=2, resume=True)
    assert [folder.name for folder in Path("out").iterdir()] == ["textgame-mle"]
    assert progress("out/textgame-mle/last.pt")["step"] == 2


@contextlib.contextmanager
def busy_core():
    """Meanwhile another process burns a core."""
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        burner.kill()
        burner.wait()


def test_a_busy_neighbour_does_not_change_the_weights(house, tmp_path):
    """With two threads, also where they wait for each other: bit for bit the same."""
    wide = dict(threads=2, n_embd=64, batch_size=32, eval_every=100, world=house / "textgame")
    stages = {
        "mle": ("train_mle.py", small(train_mle, **wide)),
        "rlvr": ("train_rlvr.py", small(train_rlvr, threads=2, world=house / "textgame")),
    }
    for out, neighbour in (("alone", nullcontext()), ("beside", busy_core())):
        with neighbour:
            for script, options in stages.values():
                run(tmp_path, script, *options, f"--out={out}", smoke=False)
    for stage in stages:
        paths = [tmp_path / out / f"textgame-{stage}/last.pt" for out in ("alone", "beside")]
        alone, beside = (common.load_checkpoint(path)["model"] for path in paths)
        assert all(torch.equal(value, beside[name]) for name, value in alone.items()), stage


# --------------------------------------------------------------------------------------------------
# Bad input: one sentence, exit code 2

IN_THE_HOUSE = [
    ("train_mle.py --wrld=x", ["--wrld", "did you mean --world"]),
    ("train_mle.py --preset=smoke", ["unknown option --preset"]),
    ("train_mle.py --lr=fast", ["--lr=fast", "a number"]),
    ("train_mle.py --steps=1.5", ["whole number"]),
    ("train_mle.py --steps=0", ["--steps=0", "from 1 to"]),
    ("train_mle.py --dtype=bfloat61", ["dtype", "did you mean 'bfloat16'?"]),
    ("train_mle.py --device=gpu", ["--device", "gpu", "there are: "]),
    ("train_mle.py steps=3", ["--name=value"]),
    ("train_mle.py --world=nowhere", ["nowhere", "prepare.py"]),
    ("train_mle.py --init_from=nothing.pt", ["no checkpoint at nothing.pt"]),
    ("train_mle.py --init_from=nothing", ["no checkpoint at out/nothing/best.pt"]),
    ("train_mle.py --init_from=textgame/bpe.json", ["bpe.json", "not a checkpoint"]),
    ("train_mle.py --init_from=tokenizer.pt", ["tokenizer.pt", "'tokenizer', not mle"]),
    ("train_mle.py --resume", ["out/textgame-mle/last.pt", "the same command without --resume"]),
    ("train_mle.py --n_embd=30", ["n_embd"]),
    ("train_mle.py --decay=1.5 --steps=3", ["--decay", "from 0 to 1"]),
    ("train_rlvr.py --reward=strict_tusk", ["strict_tusk", "strict_task"]),
    ("train_rlvr.py --reward=x*strict_task", ["'x'", "not a number"]),
    ("train_rlvr.py --select_by=strict_tusk", ["strict_tusk", "strict_task"]),
    ("train_rlvr.py --supervision=process", ["--supervision=process"]),
    ("train_rlvr.py --algorithm=best", ["algorithm", "grpo, grpo_single_clip"]),
    ("train_rlvr.py --kl_estimator=k4", ["kl_estimator", "k3"]),
    ("train_rlvr.py --group_size=1", ["--group_size", "from 2"]),
    ("train_rlvr.py --prompts_per_step=5", ["--prompts_per_step=5", "2 equal pieces"]),
    ("train_rlvr.py --rollout_batch_size=-1", ["--rollout_batch_size", "from 0"]),
    ("train_rlvr.py --eval_temperature=-1", ["--eval_temperature", "from 0"]),
    ("train_rlvr.py --init_from=none.pt", ["no checkpoint at none.pt", "python train_mle.py"]),
    ("train_rlvr.py --lpips_weights=there", ["--lpips_weights", "text world"]),
    ("evaluate.py --split=tset", ["tset", "test"]),
    ("evaluate.py --mle=nothing", ["no checkpoint at out/nothing/best.pt"]),
    ("evaluate.py --select_by=strict_tusk", ["strict_tusk", "strict_task"]),
    ("sample.py --split=tset", ["tset", "test"]),
    ("sample.py --mle=nothing", ["no checkpoint at out/nothing/best.pt"]),
    ("tokenizer_vq.py", ["text world"]),
]
ELSEWHERE = [
    ("data/textgame/prepare.py --source=bytesized32", ["--path=DIR"]),
    ("data/textgame/prepare.py --source=procedual", ["did you mean 'procedural'"]),
    ("data/webnav/prepare.py --source=webarena", ["--path=FILE_OR_DIR"]),
    ("data/robot/prepare.py --source=episodes", ["--path=DIR"]),
    ("data/own/prepare.py --path=mine.jsonl", ["--out"]),
    ("bench.py --peer=vllm", ["peer", "hf, trl"]),
]


@pytest.mark.parametrize("command,words", IN_THE_HOUSE + ELSEWHERE)
def test_bad_input_is_one_sentence(house, command, words):
    nothing = {"stage": "tokenizer", "model_config": {}, "progress": {}}
    common.save_checkpoint(house / "tokenizer.pt", nothing)
    script, *options = command.split()
    named = any(option.startswith("--world=") for option in options)
    if (command, words) in IN_THE_HOUSE and not named:
        options.append("--world=./textgame")
    printed = run(house, script, *options, code=2, smoke=False)
    error = [line for line in printed.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "Traceback" not in printed, printed
    assert all(word in error[0] for word in words), printed


def test_checkpoint_of_another_world_is_refused(house, tmp_path):
    run(tmp_path, "data/webnav/prepare.py", "--out=./webnav")
    path = house / MLE
    for script, option in (
        ("train_mle.py", "init_from"),
        ("train_rlvr.py", "init_from"),
        ("evaluate.py", "mle"),
        ("sample.py", "mle"),
    ):
        printed = run(tmp_path, script, f"--{option}={path}", "--world=./webnav", code=2)
        assert "another world" in printed, script
    foreign = "--world=./webnav", "--permute_ids=0.5"
    printed = run(tmp_path, "train_mle.py", *foreign, code=2)
    assert "--permute_ids says nothing" in printed
    assert not (tmp_path / "out").exists()


def test_nothing_is_half_written(tmp_path, monkeypatch):
    good = {"model": torch.ones(3), "model_config": {}, "stage": "mle", "progress": {}}
    common.save_checkpoint(tmp_path / "a.pt", good)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(common.os, "fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        common.save_checkpoint(tmp_path / "a.pt", {"x": torch.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert common.load_checkpoint(tmp_path / "a.pt")["model"].sum() == 3


def test_a_checkpoint_is_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(BadInput, match="evil.pt"):
        common.load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_a_compiled_and_distributed_models_state_loads_into_a_plain_one():
    """
    Guards against names that change: neither compiled blocks nor DDP, which wraps the model from
    outside, rename what a checkpoint holds.
    """
    model = small_model()
    model.compile_blocks(backend="eager")
    small_model().load_state_dict(model.state_dict())


# --------------------------------------------------------------------------------------------------
# Options


def option_fields():
    """(script, field) of every option there is."""
    pairs = [(s, field) for s, m in SCRIPTS.items() for field in dataclasses.fields(m.Config)]
    return [pytest.param(s, field, id=f"{s} --{field.name}") for s, field in pairs]


def accepted(script, field, text):
    """The value that an option reads from a text, or None if it is refused in one sentence."""
    try:
        config = parse_config(SCRIPTS[script].Config, [f"--{field.name}={text}"])
    except BadInput as error:
        assert field.name in str(error) and "\n" not in str(error), error
        return None
    return getattr(config, field.name)


@pytest.mark.parametrize("script,field", option_fields())
def test_every_option_reads_what_it_allows_and_refuses_the_rest(script, field):
    allowed = field.metadata.get("allowed", ())
    for text in ("0", "-1", "1e30", "inf", "-inf", "nan", "", "word"):
        value = accepted(script, field, text)
        if value is None:
            assert field.type is not str or allowed, f"a text such as {text!r} should be read"
            continue
        assert type(value) is field.type
        if field.type is str:
            assert not allowed or value in allowed
        elif field.type is not bool:
            assert allowed[0] <= value <= allowed[1]
    if field.type in (int, float):
        low, high = allowed
        step = 1 if field.type is int else 0
        below = low - 1 if step else math.nextafter(low, -math.inf)
        above = high + 1 if step else math.nextafter(high, math.inf)
        assert accepted(script, field, repr(low)) == low
        assert accepted(script, field, repr(high)) == high
        assert accepted(script, field, repr(below)) is None
        assert accepted(script, field, repr(above)) is None
    if allowed and field.type is str:
        assert all(accepted(script, field, word) == word for word in allowed)
    if field.type is bool:
        texts = {"true": True, "False": False, "1": True, "0": False, "yes": True, "no": False}
        for text, value in texts.items():
            assert accepted(script, field, text) is value


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_option(script, capsys):
    module = SCRIPTS[script]
    with pytest.raises(SystemExit) as stop:
        parse_config(module.Config, ["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert module.__doc__.strip() in printed
    # the name says it, the words say it, or the comment stands at the one before
    plain = {"seed", "max_grad_norm", "test"}
    for field in dataclasses.fields(module.Config):
        start = f"  --{field.name}={field.default}".ljust(32)
        line = next((line for line in printed.splitlines() if line.startswith(start)), None)
        assert line, f"{script}: --{field.name} is not explained"
        told = line[len(start) :].strip()
        words = field.metadata.get("allowed") and field.type is str
        assert words or field.name in plain or told[:1] not in ("", "("), line


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_read_by_the_script(script):
    """Guards against a Config field that no line reads, and which therefore does nothing."""
    source = (ROOT / script).read_text()
    if "Run(" in source:
        source += inspect.getsource(common.Run)
    if "start_processes(config)" in source:
        source += inspect.getsource(common.start_processes)
    if "checkpoints(world, config)" in source:
        source += inspect.getsource(evaluate.checkpoints)
    names = [field.name for field in dataclasses.fields(SCRIPTS[script].Config)]
    read = r'config\.{0}\b|getattr\(config, "{0}"'
    assert not [name for name in names if not re.search(read.format(name), source)]


@pytest.mark.parametrize("script", [s for s, m in SCRIPTS.items() if hasattr(m, "SMOKE")])
def test_smoke_speaks_of_options_that_exist(script):
    module = SCRIPTS[script]
    for name, value in module.SMOKE.items():
        field = module.Config.__dataclass_fields__[name]
        assert accepted(script, field, str(value)) == value


# --------------------------------------------------------------------------------------------------
# The commands that are written down

COMMAND = re.compile(r"(?:python|torchrun)\s+((?:--\S+\s+)*)(\S+\.py)([^|;&\n`]*)")


def check_command(script, options):
    """A command that is written down must name a script and options that exist."""
    assert (ROOT / script).is_file()
    if not script.startswith("docs/") and "--help" not in options:
        module = {**SCRIPTS, "tests/soak.py": soak}[script]
        parse_config(module.Config, options)


def code_in(text):
    """The code of a text in Markdown: blocks, and what stands between single backticks."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    inline = re.findall(r"`([^`]+)`", prose)
    said = [code for code in inline if not code.startswith("unknown option")]
    return "\n".join([*blocks, *said]).replace("\\\n", " ")


DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_of_the_documents_exist(document):
    text, _, _ = (ROOT / document).read_text().partition("\n## Renamed options")
    code = code_in(text)
    commands = COMMAND.findall(code)
    assert len(commands) >= 10 or document != "README.md"
    for _, script, options in commands:
        check_command(script, shlex.split(options, comments=True))
    modules = soak, *SCRIPTS.values()
    known = {field.name for module in modules for field in dataclasses.fields(module.Config)}
    # of docs/tables.py and of torchrun
    known |= {"help", "check", "nproc_per_node", "nnodes"}
    named = set(re.findall(r"(?<!\S)--(?!rdzv_)(\w+)", code))
    assert sorted(named - known) == []
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)", makefile, re.M)[1].split()
    for target, world in re.findall(r"^\s*make (\w+)(?: WORLD=([a-z]\w*))?", code, re.M):
        assert target in targets
        assert not world or (ROOT / "runs" / f"{world}.sh").is_file()
    for page in re.findall(r"runs/[a-z]\w*\.sh", code):
        assert (ROOT / page).is_file()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_of_the_docstrings_exist(script):
    """An example at the top of a script ends where two blanks stand."""
    commands = COMMAND.findall(re.sub(r"(?<=\S)  .*", "", SCRIPTS[script].__doc__))
    assert commands
    for _, name, options in commands:
        check_command(name, shlex.split(re.sub(r"[\[\]]", "", options)))


PAGES = sorted(path.stem for path in (ROOT / "runs").glob("*.sh"))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("argument", ["", "1"])
def test_the_commands_of_the_pages_exist(page, argument, tmp_path):
    """The page is run by bash, with a `python` that writes down what it is asked to do."""
    (tmp_path / "python").write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" END >> {tmp_path}/asked\n')
    (tmp_path / "python").chmod(0o755)
    folders = dict.fromkeys(("BYTESIZED32", "PRETRAINED", "WEBARENA", "LPIPS"), "DIR")
    subprocess.run(
        ["bash", ROOT / "runs" / f"{page}.sh", *filter(None, [argument])],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **folders},
        check=True,
    )
    commands = (tmp_path / "asked").read_text().split("END\0")[:-1]
    assert len(commands) >= 5
    for command in commands:
        script, *options = command.split("\0")[:-1]
        check_command(script, options)
    assert script in ("evaluate.py", "use/plan.py")
    text = (ROOT / "runs" / f"{page}.sh").read_text()
    if "${1:-0}" in text and '--name="$run-results"' in text:
        # what `make seeds` averages
        assert f"--name={page}{'-seed1' if argument else ''}-results" in options
    if page == "textgame" and not argument:
        # the default demo is what the scripts do without options
        for command in commands[:3]:
            script, *options = command.split("\0")[:-1]
            config = vars(SCRIPTS[script].Config())
            for option in options:
                name, _, value = option[2:].partition("=")
                of_the_run = f"textgame-{script[6:-3]}" if name == "name" else "textgame-mle"
                same = str(config[name]) or (of_the_run if "train" in script else "textgame")
                assert value == same, option


# --------------------------------------------------------------------------------------------------
# The pages in runs/, from beginning to end


def copy_repository(folder):
    """What is needed to run a page, so that nothing is written into the checkout."""
    code = "*.py", "data/*.py", "data/*/*.py", "use/*.py", "use/*/*.py", "runs/*.sh"
    others = "Makefile", "requirements*.txt"
    for path in itertools.chain(*(ROOT.glob(pattern) for pattern in (*code, *others))):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return folder


def files_in(folder):
    """The files of a copy of the repository that no page run with SMOKE=1 may touch."""
    found = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if (
            path.is_file()
            and place.parts[:2] != ("out", "smoke")
            and "__pycache__" not in str(place)
        ):
            found[str(place)] = path.read_bytes()
    return found


def records_of_the_papers(folder):
    """A few hundred ByteSized32 transitions of all games, and web pages: {variable: path}."""
    folder.mkdir()
    for split, every in (("train", 380), ("test", 24)):
        with gzip.open(SHARED / "data" / "bytesized32" / f"{split}.jsonl.gz", "rt") as file:
            chosen = itertools.islice(file, 0, None, every)
            (folder / f"{split}.jsonl").write_text("".join(chosen))
    pages = (ROOT / "tests/fixtures/webarena.jsonl").read_text().splitlines()
    with open(folder / "pages.jsonl", "w") as file:
        for n, page in itertools.product(range(6), pages):
            file.write(page.replace("RootWebArea '", f"RootWebArea '{n} ") + "\n")
    a_pretrained_model(folder / "model")
    paths = {"WEBARENA": folder / "pages.jsonl", "PRETRAINED": folder / "model"}
    return {"BYTESIZED32": str(folder), **{name: str(path) for name, path in paths.items()}}


def a_pretrained_model(folder):
    """A folder with random weights, in which every byte is a token."""
    write_pretrained(Model(ModelConfig(257, 8192, 1, 2, 2, 32)), folder)
    vocabulary = {chr(letter): n for n, letter in enumerate(LETTERS)}
    cut = {"type": "ByteLevel", "add_prefix_space": False}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "pre_tokenizer": cut}
    tokenizer["added_tokens"] = [{"id": 256, "content": "<|end|>"}]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "generation_config.json").write_text('{"eos_token_id": 256}')


# what runs one after the other in one copy of the repository; the longest come first
LANES = [
    ["bash runs/robot.sh", "bash runs/robot_matrix.sh"],
    ["bash runs/robot_multi.sh"],
    ["bash runs/paper_text.sh"],
    ["bash runs/textgame.sh", "make seeds SEEDS=1", "bash runs/webnav.sh", "bash runs/plan.sh"],
    ["bash runs/bytesized32.sh", "bash runs/bytesized32_smollm2.sh"],
    ["bash runs/lesson.sh"],
    ["bash runs/algorithms.sh 0 likelihood"],
    ["bash runs/paper_multi.sh"],
    ["bash runs/paper_single.sh"],
]
NEEDS_SHARED = tuple(
    f"bash runs/{page}.sh" for page in ("bytesized32", "bytesized32_smollm2", "paper_text")
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """
    All pages with SMOKE=1, two at a time, in copies of the repository. {command: a Future of
    (what it printed, exit code, folder, whether only out/smoke was written to)}.
    """
    base = tmp_path_factory.mktemp("pages")
    papers = records_of_the_papers(base / "papers") if SHARED.is_dir() else {}
    settings = environment(SMOKE="1", **papers)

    def page(command, folder):
        before = files_in(folder)
        done = subprocess.run(
            command.split(),
            cwd=folder,
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
        )
        return done.stdout, done.returncode, folder, files_in(folder) == before

    def lane(number):
        folder = copy_repository(base / str(number))
        # what `make` would set up first
        (folder / ".venv").mkdir()
        (folder / ".venv/bin").symlink_to(fork_server.folder())
        (folder / ".venv/installed").touch()
        return {c: page(c, folder) for c in LANES[number] if papers or c not in NEEDS_SHARED}

    with ThreadPoolExecutor(2) as pool:
        lanes = [pool.submit(lane, number) for number in range(len(LANES))]
        yield {command: lanes[n] for n in range(len(LANES)) for command in LANES[n]}


def test_every_page_is_in_a_lane():
    run = {command.split()[1] for lane in LANES for command in lane}
    assert {f"runs/{page}.sh" for page in PAGES} <= run


@pytest.mark.parametrize("command", [command for lane in LANES for command in lane])
def test_every_page_runs_and_ends_with_a_table(pages, command):
    if command in NEEDS_SHARED and not SHARED.is_dir():
        pytest.skip("needs ByteSized32 in ../shared, which is not published with the project")
    printed, code, folder, untouched = pages[command].result()[command]
    assert code == 0, printed[-3000:]
    assert "Traceback" not in printed and "error:" not in printed
    assert untouched, "SMOKE=1 writes to out/smoke only"
    if "plan" in command:
        assert printed.count("4 paired starts") == 3 and printed.count("| simulator ") == 3
        return
    table = printed[printed.rindex("| work (M tokens) | seconds |") :]
    if "make seeds" in command:
        assert "mean ± std over 2 training seeds" in printed
        # the rule, three references, three models, and one of many answers in three ways
        assert table.count("\n|") == 1 + 3 + 3 * 2 + 3
        assert re.search(r"RLVR − vote of 4 in expected_strict_binary: .*\(.*, .*\)", printed)
        return
    results = Path(re.findall(r"written to (\S+) and results.json", table)[-1]).parent
    rows = json.loads((folder / results / "results.json").read_text())["rows"]
    labels = {label.partition(",")[0] for label in rows}
    assert any(label.startswith("copy (") for label in labels) and "MLE" in labels
    page = (folder / command.split()[1]).read_text()
    # the matrix finds the rivals that runs/robot.sh has left
    assert ("MLE continued" in labels) == ("more" in page or "matrix" in command)
    assert any("rlvr" in label.lower() for label in labels)
    for label, row in rows.items():
        assert f"| {label} " in printed
        learned = not re.match("copy|lookup|tokenizer|ceiling", label)
        assert (row["work"] > 0) == (row["seconds"] > 0) == learned
        metrics = [values for name, values in row.items() if name not in ("work", "seconds")]
        kinds = {type(value) for values in metrics for value in values}
        # a median of pictures has no tokens that could repeat
        assert kinds == ({float, type(None)} if "median" in label else {float})
    if "sample.py" in page and "robot" in command:
        assert list((folder / "out/smoke").glob("*/test-0.gif"))


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("version", [(3, 10, 14), (3, 11, 0)])
def test_make_refuses_a_python_that_is_too_old(version, tmp_path):
    """The python says of itself what we want it to, and writes down what else it is asked to do."""
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / "requirements.txt").touch()
    program = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    (tmp_path / "python").write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" -c "{program}" "$2"\n'
        f'echo "$@" > {tmp_path}/asked\nexit 7\n'
    )
    (tmp_path / "python").chmod(0o755)
    command = ["make", f"PYTHON={tmp_path}/python", "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    refused = "error: Python 3.11 or later is needed" in done.stdout + done.stderr
    assert refused == (version < (3, 11))
    assert (tmp_path / "asked").exists() != refused
    if not refused:
        assert (tmp_path / "asked").read_text().split() == ["-m", "venv", ".venv"]


# --------------------------------------------------------------------------------------------------
# Two processes


def two_ranks(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    experience = an_experience(small_model())
    mine = experience.rows(torch.arange(rank, 6, 2))
    model = small_model()
    network = DistributedDataParallel(model)
    # two micro-batches: the gradients are exchanged once
    config = train_rlvr.Config(kl_coef=0.1, max_grad_norm=1e9, micro_batch_size=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    row = train_rlvr.update(network, optimizer, NoLegal(), mine, config, nullcontext())
    torch.save({"model": model.state_dict(), "row": row}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    """
    Guards against means of means and gradients that are averaged where a sum is due: the same
    samples, split over two processes, give equal parameters on both, and those of one process.
    """
    (tmp_path / "rank.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.test_scripts import two_ranks\n"
        "two_ranks(int(sys.argv[1]), sys.argv[2])\n"
    )
    ranks = []
    for rank in "01":
        command = ["python", str(tmp_path / "rank.py"), rank, str(tmp_path)]
        ranks.append(subprocess.Popen(command, env=environment()))
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.manual_seed(0)
    experience = an_experience(small_model())
    model = small_model()
    config = train_rlvr.Config(kl_coef=0.1, max_grad_norm=1e9, micro_batch_size=6)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    row = train_rlvr.update(model, optimizer, NoLegal(), experience, config, nullcontext())
    for name, value in model.state_dict().items():
        assert torch.equal(first["model"][name], second["model"][name])
        assert torch.allclose(first["model"][name], value, atol=1e-6), name
    for name in ("loss", "kl"):
        assert first["row"][name] == pytest.approx(row[name], abs=1e-6)


def test_torchrun_trains(house, tmp_path):
    """Both stages with two processes; ranks draw different prompts, and one of them writes."""
    start = ["python", "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29611"]
    for script, options in (
        ("train_mle.py", []),
        ("train_rlvr.py", [f"--init_from={house / MLE}"]),
    ):
        done = subprocess.run(
            [*start, str(ROOT / script), f"--world={house / 'textgame'}", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env=environment(SMOKE="1"),
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("done:") == 1
