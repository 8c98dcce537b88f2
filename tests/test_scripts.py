"""The scripts as a user runs them: the chain from raw data to the table, resume, bad input, two processes."""
import inspect
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import bench
import common
import sample
import tokenizer_vq
import train_mle
import train_rlvr
from common import BadInput, parse_config
from data.own import prepare as own_prepare
from data.robot import prepare as robot_prepare
from data.text import TextWorld
from data.textgame import prepare as textgame_prepare
from data.webnav import prepare as webnav_prepare
from tests.test_grpo import NoLegal, an_experience, small_model

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"train_mle.py": train_mle, "train_rlvr.py": train_rlvr, "sample.py": sample, "data/textgame/prepare.py": textgame_prepare,
           "data/webnav/prepare.py": webnav_prepare, "data/own/prepare.py": own_prepare, "data/robot/prepare.py": robot_prepare,
           "tokenizer_vq.py": tokenizer_vq, "bench.py": bench}


def run(folder, *command, code=0):
    """Runs a script of the repository in `folder` as its own process and returns what it printed."""
    done = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], cwd=folder, capture_output=True, text=True, timeout=300,
                          env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder in which a text game has been prepared, trained and post-trained, in seconds."""
    folder = tmp_path_factory.mktemp("house")
    run(folder, "data/textgame/prepare.py", "--preset=smoke", "--out=textgame")
    run(folder, "train_mle.py", "--preset=smoke", "--world=textgame")
    run(folder, "train_rlvr.py", "--preset=smoke", "--world=textgame")
    return folder


def test_the_table_has_all_its_rows(house):
    run(house, "train_mle.py", "--preset=smoke", "--world=textgame", "--init_from=out/textgame-mle/best.pt", "--match=out/textgame-rlvr/last.pt",
        "--name=textgame-mle-more-1", "--steps=0")
    printed = run(house, "sample.py", "--preset=smoke", "--world=textgame", "--eval", "--kinds")
    for row in ("copy (nothing changes)", "lookup (no learning)", "MLE, T=1", "MLE continued, T=1", "RLVR, T=1"):
        assert f"| {row}" in printed
    assert "best of N" in printed and "by kind" in printed
    results = json.loads((house / "out/textgame-results/results.json").read_text())
    copy = results["rows"]["copy (nothing changes)"]
    assert copy["strict_binary unchanged"] == [1.0] and copy["strict_binary changed"] == [0.0]
    assert results["rows"]["MLE continued, T=1"]["seconds"] >= results["rows"]["MLE, T=1"]["seconds"] > 0


def test_average_over_training_seeds(tmp_path, capsys):
    for seed, (a, greedy, decoding) in enumerate([([0.4, 0.6], 0.7, "greedy"), ([0.3, 0.5], 0.9, "T=0.5"), ([0.6, 0.6], 0.8, "greedy")]):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "results.json").write_text(json.dumps({"scale": {"accuracy": 100, "task": 1}, "rows": {
            "copy (nothing changes)": {"accuracy": [0.25], "task": [0.5], "seconds": 0.0},
            "RLVR, T=1": {"accuracy": a, "task": [1.0], "seconds": 10.0},
            f"RLVR, {decoding}": {"accuracy": [greedy], "task": [1.0], "seconds": 10.0}}}))
    sample.main(["--average=" + ",".join(str(tmp_path / str(seed)) for seed in range(3))])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows == [["", "accuracy", "task", "seconds"], ["copy (nothing changes)", "25.00 ± 0.00", "0.500 ± 0.000", "0"],
                    ["RLVR, T=1", "50.00 ± 10.00", "1.000 ± 0.000", "10"], ["RLVR, best decoding", "80.00 ± 10.00", "1.000 ± 0.000", "10"]]
    with pytest.raises(BadInput, match="nowhere holds no results.json"):
        sample.main([f"--average={tmp_path}/nowhere"])


def test_transitions_are_shown(house):
    printed = run(house, "sample.py", "--world=textgame", "--number=2")
    assert printed.count("strict_binary") == 2 and "> " in printed and ("✓" in printed or "✗" in printed)


def test_metrics_hold_what_one_should_watch(house):
    rows = [json.loads(line) for line in (house / "out/textgame-rlvr/metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if "reward" in row]
    assert len(train) == 3
    for name in ("reward", "reward_std", "equal_groups", "length", "limit", "kl", "entropy", "clipped", "ratio", "ratio_error_first", "norm",
                 "sampling_s", "scoring_s", "reference_s", "update_s", "tokens_per_second"):
        assert all(isinstance(row[name], float) for row in train), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_what_the_sampler_said_is_compared_with_scoring(house, tmp_path, monkeypatch, dtype, wrong):
    """Trap 7, also in bf16, where recomputing the old log-probabilities would hide a sampler that is off."""
    monkeypatch.chdir(tmp_path)
    sample = train_rlvr.Model.sample

    def biased(*arguments, **options):
        rollout = sample(*arguments, **options)
        rollout.logprob = rollout.logprob - wrong
        return rollout
    monkeypatch.setattr(train_rlvr.Model, "sample", biased)
    train_rlvr.main(["--preset=smoke", f"--world={house / 'textgame'}", f"--init_from={house / 'out/textgame-mle/best.pt'}", f"--dtype={dtype}", "--steps=1"])
    rows = [json.loads(line) for line in Path("out/textgame-rlvr/metrics.jsonl").read_text().splitlines()]
    errors = [row["ratio_error_first"] for row in rows if "reward" in row]
    assert errors == [pytest.approx(math.expm1(wrong), abs=0.01 if dtype == "bfloat16" else 1e-4)]


def test_validation_at_a_temperature_leaves_training_alone(house, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen, real, steps = [], train_rlvr.evaluate, []
    monkeypatch.setattr(train_rlvr, "evaluate", lambda *args, **options:
                        seen.append((options["temperature"], options["generator"].initial_seed())) or real(*args, **options))
    for temperature in ("0", "0.7"):
        train_rlvr.main(["--preset=smoke", f"--world={house}/textgame", f"--init_from={house}/out/textgame-mle/best.pt", f"--eval_temperature={temperature}"])
        steps.append([json.loads(line) for line in Path("out/textgame-rlvr/metrics.jsonl").read_text().splitlines()])
        shutil.rmtree("out")
    assert seen == [(0.0, 0)] * 3 + [(0.7, 0)] * 3  # every validation draws the same numbers, so that differences are the model's
    trained = [[[row[name] for name in ("length", "kl", "entropy", "norm")] for row in rows if "reward" in row] for rows in steps]
    assert trained[0] == trained[1] and len(trained[0]) == 3


def test_webnav_runs_through(tmp_path):
    run(tmp_path, "data/webnav/prepare.py", "--preset=smoke", "--out=webnav")
    run(tmp_path, "train_mle.py", "--preset=smoke", "--world=webnav", "--steps=2")
    run(tmp_path, "train_rlvr.py", "--preset=smoke", "--world=webnav", "--steps=1", "--reward=official_f1+0.5*exact_match")
    assert "strict_f1" in run(tmp_path, "sample.py", "--preset=smoke", "--world=webnav", "--eval")


def test_your_own_transitions_run_through(tmp_path):
    """The README's ten lines: a .jsonl of prompts and responses, without contexts, kinds or flags."""
    with open(tmp_path / "mine.jsonl", "w") as file:
        for n in range(60):
            file.write(json.dumps({"prompt": f"{n} + 1 =", "response": f" {n + 1}"}) + "\n")
    run(tmp_path, "data/own/prepare.py", "--path=mine.jsonl", "--out=mine", "--vocab_size=270")
    run(tmp_path, "train_mle.py", "--preset=smoke", "--world=mine")
    run(tmp_path, "train_rlvr.py", "--preset=smoke", "--world=mine", "--reward=line_f1")
    assert "exact_match" in run(tmp_path, "sample.py", "--preset=smoke", "--world=mine", "--eval")


def test_bench_measures(tmp_path):
    """Every part of bench.py on tiny shapes, beside transformers."""
    printed = run(tmp_path, "bench.py", "--preset=smoke", "--peer=hf")
    for title in ("Maximum likelihood", "Sampling, 2 x 4", "Rewards", "A GRPO step", "16 responses", "by prompt length", "Memory of an update"):
        assert title in printed
    for peer in ("nanoGPT's network", "transformers", "generate", "ratio", "strict_task", "ssim"):
        assert peer in printed


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
        with common.autocast(torch.device("cpu"), dtype):
            assert torch.is_autocast_enabled("cpu") == wanted


@pytest.mark.parametrize("budget", ["steps", "seconds", "patience"])
def test_the_rate_falls_to_zero_when_the_budget_ends(house, tmp_path, monkeypatch, budget):
    """Constant, then linear to 0 over the last part of the budget; also if the first steps took four times as long as the later ones."""
    now, tick = 0.0, 4.0

    def clock():
        nonlocal now, tick
        now, tick = now + tick, max(1.0, tick - 0.25)
        return now
    monkeypatch.setattr(train_mle, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.chdir(tmp_path)
    options = {"steps": ["--steps=12"], "seconds": ["--steps=0", "--seconds=20"], "patience": ["--steps=0", "--patience=0"]}[budget]
    train_mle.main(["--preset=smoke", f"--world={house / 'textgame'}", "--lr=0.1", "--warmup=1", "--decay=0.75", "--eval_every=1", "--eval_records=1",
                    *options])
    rows = [json.loads(line) for line in (tmp_path / "out/textgame-mle/metrics.jsonl").read_text().splitlines()]
    stale = next(row["step"] for row, before in zip(rows[1:], rows) if row["val_strict_binary"] <= before["val_strict_binary"])  # and then it decays
    end = {"steps": 12, "seconds": 20, "patience": 4 * stale}[budget]  # three quarters are decay
    used = [row["train_seconds" if budget == "seconds" else "step"] / end for row in rows]
    for before, row in zip([0.0, *used], rows):
        assert row["lr"] == pytest.approx(0.1 * min(1, (1 - before) / 0.75), rel=1e-4)
    assert used[-2] < 1 <= used[-1] and rows[0]["lr"] > 0.09 and rows[-1]["lr"] < 0.02


@pytest.mark.parametrize("budget", ["steps", "seconds"])
def test_rlvr_can_let_the_rate_fall_and_sample_in_other_pieces_than_it_updates(house, tmp_path, monkeypatch, budget):
    monkeypatch.chdir(tmp_path)
    sizes, sample_ = [], train_rlvr.Model.sample
    monkeypatch.setattr(train_rlvr.Model, "sample", lambda model, prompt, *rest, **options: sizes.append(len(prompt)) or sample_(model, prompt, *rest, **options))
    train_rlvr.main(["--preset=smoke", f"--world={house}/textgame", f"--init_from={house}/out/textgame-mle/best.pt", "--lr=0.001", "--warmup=1", "--rollout_batch=3",
                     "--eval_every=100000", "--decay=0.8", *(["--steps=5"] if budget == "steps" else ["--steps=100000", "--seconds=1.5"])])
    rows = [json.loads(line) for line in Path("out/textgame-rlvr/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "reward" in row]
    used = [0.0] + [row["step"] / 5 if budget == "steps" else row["train_seconds"] / 1.5 for row in rows]
    assert [row["lr"] for row in rows] == [pytest.approx(0.001 * min(1, (1 - before) / 0.8), rel=1e-4, abs=1e-7) for before in used[:-1]] and used[-2] < 1 <= used[-1]
    assert sizes[1:3] == [3, 1] and sizes.count(3) == sizes.count(1) == len(rows)  # four prompts a step; the first and last calls are validation's


def test_what_is_asked_of_the_data_reaches_the_world(house, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked, signature, original = {}, inspect.signature(TextWorld.mle_batches), TextWorld.mle_batches

    def spy(*arguments, **options):
        asked.update(signature.bind(*arguments, **options).arguments)
        return original(*arguments, **options)
    monkeypatch.setattr(TextWorld, "mle_batches", spy)
    wanted = dict(micro_batch=3, branches=2, changed=0.3, power=0.4, renumber=0.5, prompt_loss=0.6)
    train_mle.main(["--preset=smoke", f"--world={house / 'textgame'}", "--steps=1", *(f"--{name}={value}" for name, value in wanted.items())])
    assert {name: asked[name] for name in wanted} == wanted and asked["n"] == 16


@pytest.mark.parametrize("script,stop_at", [("train_mle", 3), ("train_rlvr", 2)])
def test_resume_goes_on_as_if_never_stopped(house, tmp_path, monkeypatch, script, stop_at):
    """Trap 20: stopped after a save and resumed, a run ends with the very weights of the undisturbed run."""
    module = {"train_mle": train_mle, "train_rlvr": train_rlvr}[script]
    monkeypatch.chdir(tmp_path)
    arguments = ["--preset=smoke", f"--world={house / 'textgame'}", "--steps=5", "--renumber=0.5"] + (
        ["--eval_every=3"] if script == "train_mle" else ["--eval_every=2", f"--init_from={house / 'out/textgame-mle/best.pt'}"])
    module.main([*arguments, "--name=whole"])
    save = module.save_checkpoint

    def save_and_stop(path, checkpoint, keep):
        save(path, checkpoint, keep)
        if path.name == "last.pt" and checkpoint["progress"][0] == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        module.main([*arguments, "--name=cut"])
    monkeypatch.setattr(module, "save_checkpoint", save)
    module.main([*arguments, "--name=cut", "--resume"])
    whole, cut = (torch.load(tmp_path / "out" / name / "last.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole["progress"][0] == cut["progress"][0] >= 5
    assert all(torch.equal(whole["model"][name], cut["model"][name]) for name in whole["model"])
    states = [[state for o in c.get("optimizers", [c.get("optimizer")]) for state in o["state"].values()] for c in (whole, cut)]
    assert len(states[0]) > 5
    for a, b in zip(*states):
        assert a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])) for name in a)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input: one sentence, exit code 2


@pytest.mark.parametrize("command,words", [
    (["train_mle.py", "--wrld=x"], ["--wrld", "did you mean --world"]),
    (["train_mle.py", "--lr=fast"], ["--lr=fast", "a number"]),
    (["train_mle.py", "--steps=1.5"], ["whole number"]),
    (["train_mle.py", "--preset=smok"], ["preset", "smoke"]),
    (["train_mle.py", "steps=3"], ["--name=value"]),
    (["train_mle.py", "--world=nowhere"], ["nowhere", "prepare.py"]),
    (["train_mle.py", "--world=textgame", "--init_from=nothing.pt"], ["no checkpoint at nothing.pt"]),
    (["train_mle.py", "--world=textgame", "--init_from=textgame/bpe.json"], ["bpe.json", "not a checkpoint"]),
    (["train_mle.py", "--world=textgame", "--n_embd=30"], ["n_embd"]),
    (["train_mle.py", "--world=textgame", "--decay=1.5", "--steps=3"], ["--decay", "between 0 and 1"]),
    (["train_mle.py", "--preset=smoke", "--world=textgame", "--steps=0", "--patience=0", "--eval_every=1", "--decay=1"], ["--decay", "below 1"]),
    (["train_rlvr.py", "--world=textgame", "--reward=strict_tusk"], ["strict_tusk", "strict_task"]),
    (["train_rlvr.py", "--world=textgame", "--reward=x*strict_task"], ["'x'", "not a number"]),
    (["train_rlvr.py", "--world=textgame", "--advantage=best"], ["advantage", "grpo, mean, loo"]),
    (["train_rlvr.py", "--world=textgame", "--kl_kind=k4"], ["kl_kind", "k3"]),
    (["train_rlvr.py", "--world=textgame", "--group=1"], ["--group"]),
    (["train_rlvr.py", "--world=textgame", "--rollout_batch=-1"], ["--rollout_batch at least 0"]),
    (["train_rlvr.py", "--world=textgame", "--eval_temperature=-1"], ["--eval_temperature at least 0"]),
    (["train_rlvr.py", "--world=textgame", "--init_from=none.pt"], ["no checkpoint at none.pt", "python train_mle.py"]),
    (["sample.py", "--world=textgame", "--split=tset"], ["tset", "test"]),
    (["data/textgame/prepare.py", "--source=bytesized32"], ["--path=DIR"]),
    (["data/textgame/prepare.py", "--source=procedual"], ["did you mean 'procedural'"]),
    (["data/own/prepare.py", "--path=mine.jsonl"], ["--out"]),
])
def test_bad_input_is_one_sentence(house, command, words):
    printed = run(house, *command, code=2)
    error = [line for line in printed.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "Traceback" not in printed and all(word in error[0] for word in words), printed


def test_checkpoint_of_another_world_is_refused(house, tmp_path):
    run(tmp_path, "data/webnav/prepare.py", "--preset=smoke", "--out=webnav")
    for command in (["train_rlvr.py", f"--init_from={house / 'out/textgame-mle/best.pt'}"], ["train_mle.py", f"--init_from={house / 'out/textgame-mle/best.pt'}"],
                    ["sample.py", f"--mle={house / 'out/textgame-mle/best.pt'}"]):
        assert "another world" in run(tmp_path, *command, "--world=webnav", code=2)
    assert "--renumber says nothing" in run(tmp_path, "train_mle.py", "--preset=smoke", "--world=webnav", "--renumber=0.5", code=2)
    assert not (tmp_path / "out").exists()


def test_nothing_is_half_written(tmp_path, monkeypatch):
    common.save_checkpoint(tmp_path / "a.pt", {"model": torch.ones(3), "model_config": {}, "stage": "test"})

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
    """Trap 28: neither compiled blocks nor DDP, which wraps the model from outside, rename what a checkpoint holds."""
    model = small_model()
    model.compile_blocks(backend="eager")
    small_model().load_state_dict(model.state_dict())


# ---------------------------------------------------------------------------------------------------------------------
# The README's commands


def readme_commands():
    blocks = re.findall(r"```(?:bash|sh)?\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(r"(python|torchrun) ", line)]


def test_readme_commands_parse():
    """Trap 26: every script and option that the README names exists (the scripts themselves run above, with --preset=smoke)."""
    commands = readme_commands()
    assert len(commands) >= 10
    for command in commands:
        for part in command.split("&&"):
            words = [word for word in shlex.split(part) if not word.startswith("--nproc_per_node")]
            assert words[1] in SCRIPTS, command
            module = SCRIPTS[words[1]]
            parse_config(module.Config, words[2:], getattr(module, "PRESETS", {}), quiet=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_option(script, capsys):
    module = SCRIPTS[script]
    comments = common.field_comments(module.Config)
    with pytest.raises(SystemExit) as stop:
        parse_config(module.Config, ["--help"], getattr(module, "PRESETS", {}))
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in module.Config.__dataclass_fields__:
        assert f"--{name}=" in printed and (comments.get(name) or name in ("seed", "clip_high", "weight_decay")), f"{script}: --{name} has no comment"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_read_by_the_script(script):
    """Trap 17: a Config field that no line of the script reads does nothing."""
    source = (ROOT / script).read_text()
    unread = [name for name in SCRIPTS[script].Config.__dataclass_fields__ if not re.search(rf"config\.{name}\b", source)]
    assert not unread


# ---------------------------------------------------------------------------------------------------------------------
# Two processes


def two_ranks(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    experience = an_experience(small_model())
    mine = next(train_rlvr.pieces(train_rlvr.select(experience, torch.arange(rank, 6, 2)), 3))[1]
    model = small_model()
    network = DistributedDataParallel(model)
    config = train_rlvr.Config(kl=0.1, max_norm=1e9, micro_batch=2)  # two micro-batches: the gradients are exchanged once
    row = train_rlvr.update(network, model, torch.optim.SGD(model.parameters(), lr=1e-2), NoLegal(), mine, config, nullcontext(), 2)
    torch.save({"model": model.state_dict(), "row": row}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    """Traps 11 and 18: same samples, split over two gloo processes: equal parameters on both, and those of a single process."""
    mp.spawn(two_ranks, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    model = small_model()
    row = train_rlvr.update(model, model, torch.optim.SGD(model.parameters(), lr=1e-2), NoLegal(), an_experience(small_model()),
                            train_rlvr.Config(kl=0.1, max_norm=1e9, micro_batch=6), nullcontext(), 1)
    for name, value in model.state_dict().items():
        assert torch.equal(first["model"][name], second["model"][name])
        assert torch.allclose(first["model"][name], value, atol=1e-6), name
    assert first["row"]["loss"] == pytest.approx(row["loss"], abs=1e-6) and first["row"]["kl"] == pytest.approx(row["kl"], abs=1e-6)


def test_torchrun_trains(house, tmp_path):
    """Both stages under torchrun with two processes; ranks draw different prompts, and one of them writes."""
    for script, extra in (("train_mle.py", []), ("train_rlvr.py", [f"--init_from={house / 'out/textgame-mle/best.pt'}"])):
        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29611", str(ROOT / script),
                               "--preset=smoke", f"--world={house / 'textgame'}", *extra], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("done:") == 1
