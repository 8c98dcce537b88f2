"""Stop, resume, break and misuse: what a long run must survive, and what it says when it cannot go on."""
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

import common
import train_mle
import train_rlvr
from common import BadInput
from tests import soak
from tests.test_scripts import ROOT, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    run(folder, "data/textgame/prepare.py", "--preset=smoke", "--out=textgame")
    run(folder, "train_mle.py", "--preset=smoke", "--world=textgame")
    return folder


def test_random_kills_damage_and_resumes_change_nothing(monkeypatch, capfd):
    """A minute of `make soak`: SIGKILL, SIGTERM, torn and flipped checkpoints over the three training scripts."""
    monkeypatch.chdir(ROOT)
    faults, rounds, lost = soak.soak(minutes=0.75, seed=3)
    assert lost == 0 and rounds >= 2 and faults >= 5


def test_soak_would_notice(tmp_path):
    """The comparison is no formality: one changed weight, or one line of metrics that is missing or stands twice, is another outcome."""
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    good = [torch.ones(3)], rows
    assert soak.same(good, ([torch.ones(3)], [dict(row) for row in rows]))
    assert not soak.same(good, ([torch.tensor([1, 1, 1 + 1e-6])], rows))
    assert not soak.same(good, ([torch.ones(3)], rows[:1])) and not soak.same(good, ([torch.ones(3)], rows + rows[-1:]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_says_how_to_go_on(house, tmp_path, number):
    command = [sys.executable, str(ROOT / "train_mle.py"), "--preset=smoke", f"--world={house / 'textgame'}", "--steps=100000", "--eval_every=50"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "out/textgame-mle/metrics.jsonl"
    while process.poll() is None and not (log.is_file() and log.read_text().count("\n") >= 2):
        time.sleep(0.1)
    process.send_signal(number)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 0, printed
    line = next(line for line in printed.splitlines() if line.startswith("stopped after step"))
    step = int(line.split()[3].rstrip(","))
    assert line.endswith("--resume") and "train_mle.py" in line and "Traceback" not in printed
    assert common.load_checkpoint(tmp_path / "out/textgame-mle/last.pt")["progress"][0] == step


def save(path, value, keep=True):
    common.save_checkpoint(path, {"model": {"w": torch.full((1000,), float(value))}, "model_config": {}, "stage": "test", "value": value}, keep)


def test_every_flipped_bit_and_every_cut_is_noticed_and_the_one_before_is_used(tmp_path, capsys):
    path, rng = tmp_path / "last.pt", random.Random(0)
    noticed = 0
    for n in range(60):
        for old in tmp_path.iterdir():
            old.unlink()
        save(path, 1)
        save(path, 2)
        soak.damage(path, rng)
        checkpoint = common.newest_checkpoint(path)
        whole = torch.full((1000,), float(checkpoint["value"]))  # a bit of the zip's padding may flip without harm
        assert checkpoint["value"] in (1, 2) and torch.equal(checkpoint["model"]["w"], whole)
        noticed += checkpoint["value"] == 1
    assert noticed > 40
    said = capsys.readouterr().err
    assert said.count("damaged") == noticed and said.count("last-before.pt instead") == noticed


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(tmp_path, monkeypatch):
    """Killed in the middle of the first save after going on from the one before: there is still a good one."""
    path = tmp_path / "last.pt"
    save(path, 1)
    save(path, 2)
    path.write_bytes(path.read_bytes()[:100])
    assert common.newest_checkpoint(path)["value"] == 1
    replace = os.replace

    def killed(source, target):
        if Path(target) == path:
            raise KeyboardInterrupt
        replace(source, target)
    monkeypatch.setattr(common.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(path, 3)
    assert common.newest_checkpoint(path)["value"] == 1


def test_both_damaged_is_one_sentence(tmp_path):
    save(tmp_path / "last.pt", 1)
    save(tmp_path / "last.pt", 2)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match="damaged"):
        common.newest_checkpoint(tmp_path / "last.pt")


def test_hostile_checkpoints_are_refused(tmp_path):
    """A zip bomb under a checkpoint's name is not unpacked; other zips, tensors and texts are no checkpoints."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(200):
                entry.write(bytes(10 ** 7))  # 2 GB of zeros
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    torch.save({"model": {}}, tmp_path / "keys.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("bomb", "tensor", "keys", "text"):
        start = time.perf_counter()
        with pytest.raises(BadInput, match=f"{name}.pt is not a checkpoint of ours or is damaged"):
            common.load_checkpoint(tmp_path / f"{name}.pt")
        assert time.perf_counter() - start < 2


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    """A limit on the size of files stands in for the full disk."""
    code = ("import resource, signal, torch, common\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "whole = lambda n: {'model': {'w': torch.ones(n)}, 'model_config': {}, 'stage': 'test'}\n"
            "common.save_checkpoint('a.pt', whole(10))\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
            "common.run_main(lambda argv: common.save_checkpoint('a.pt', whole(10 ** 6)))\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "could not save a.pt" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert len(common.load_checkpoint(tmp_path / "a.pt")["model"]["w"]) == 10


def test_resume_with_another_model_is_refused(house):
    printed = run(house, "train_mle.py", "--preset=smoke", "--world=textgame", "--resume", "--n_layer=3", code=2)
    assert "--n_layer=1" in printed


def test_the_length_of_the_metrics_is_right_before_the_first_line_too(tmp_path):
    """Resumed and stopped again at once, a checkpoint must not keep the length that the file had before its end was dropped."""
    log = common.MetricsLog(tmp_path, {})
    log.write(1, loss=2.0)
    kept = log.position()
    log.write(2, loss=1.0)
    again = common.MetricsLog(tmp_path, {}, position=kept)
    assert again.position() == kept == (tmp_path / "metrics.jsonl").stat().st_size
    again.write(2, loss=1.0)
    assert again.position() == (tmp_path / "metrics.jsonl").stat().st_size > kept


# Numbers that go wrong


def test_guard_skips_counts_and_stops():
    guard = common.Guard("last.pt", limit=3)
    for step, loss in enumerate([1.0, float("nan"), 2.0, float("inf"), float("nan")]):
        assert guard.finite(step, {"loss": loss}, lambda: [7]) == (loss in (1.0, 2.0))
    assert guard.skipped == 3
    with pytest.raises(BadInput, match=r"3 updates in a row up to step 5.*loss nan.*records 7, 9.*last.pt.*--resume"):
        guard.finite(5, {"loss": float("nan")}, lambda: [7, 9])


@pytest.mark.parametrize("script", ["mle", "rlvr"])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(house, tmp_path, monkeypatch, script, capsys):
    """At step 1 the gradient is NaN: that update is skipped; from step 2 on all are: the run stops, and its last checkpoint is sound."""
    monkeypatch.chdir(tmp_path)
    module = {"mle": train_mle, "rlvr": train_rlvr}[script]
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def poisoned(parameters, most):
        parameters = list(parameters)
        calls.append(0)
        if len(calls) == 2 or len(calls) > 4:
            parameters[0].grad.fill_(float("nan"))
        return clip(parameters, most)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
    arguments = ["--preset=smoke", f"--world={house / 'textgame'}", "--steps=50"]
    arguments += ["--eval_every=3"] if script == "mle" else ["--eval_every=3", "--updates=1", f"--init_from={house / 'out/textgame-mle/best.pt'}"]
    with pytest.raises(BadInput, match=r"3 updates in a row.*gradient norm nan|3 updates in a row.*norm nan"):
        module.main(arguments)
    assert "this update is skipped (1 so far)" in capsys.readouterr().err
    checkpoint = common.load_checkpoint(tmp_path / f"out/textgame-{script}/last.pt")
    assert checkpoint["progress"][0] >= 3 and all(value.isfinite().all() for value in checkpoint["model"].values())


def test_troubles_are_named():
    fine = {"equal_groups": 0.5, "limit": 0.0, "kl": 0.1}
    assert not train_rlvr.troubles([fine] * 30)
    assert set(train_rlvr.troubles([{**fine, "equal_groups": 1.0}] * 20)) == {"equal"} and not train_rlvr.troubles([{**fine, "equal_groups": 1.0}] * 19)
    assert set(train_rlvr.troubles([{**fine, "limit": 0.6, "kl": 2.0}])) == {"limit", "kl"}


# Two processes


def test_one_failing_rank_ends_all_of_them_with_its_error(house, tmp_path):
    code = ("import sys, torch; sys.path.insert(0, %r); import train_mle, data.text, os\n"
            "draw = data.text.TextWorld.draw\n"
            "def fail(self, *a, **k):\n"
            "    fail.calls += 1\n"
            "    if os.environ['RANK'] == '1' and fail.calls > 3: raise RuntimeError('rank 1 broke')\n"
            "    return draw(self, *a, **k)\n"
            "fail.calls = 0\n"
            "data.text.TextWorld.draw = fail\n"
            "train_mle.main(['--preset=smoke', '--world=%s', '--steps=100000'])\n" % (str(ROOT), house / "textgame"))
    (tmp_path / "fail.py").write_text(code)
    start = time.time()
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29613", "fail.py"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0 and "rank 1 broke" in done.stderr and time.time() - start < 60


@pytest.mark.parametrize("script,steps,every,port", [("train_mle.py", 40, 5, 29615), ("train_rlvr.py", 8, 1, 29617)])
def test_two_processes_resume_as_if_never_stopped(house, tmp_path, script, steps, every, port):
    """Killed and resumed under torchrun with two gloo processes: the weights of the undisturbed run."""
    start = [f"--init_from={house / 'out/textgame-mle/best.pt'}"] * (script == "train_rlvr.py")

    def torchrun(*arguments):
        return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", str(ROOT / script), "--preset=smoke",
                f"--world={house / 'textgame'}", f"--steps={steps}", f"--eval_every={every}", *start, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(torchrun("--name=whole"), cwd=tmp_path, check=True, capture_output=True, env=environment, timeout=200)
    process = subprocess.Popen(torchrun("--name=cut"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    log = tmp_path / "out/cut/metrics.jsonl"
    while process.poll() is None and not (log.is_file() and log.read_text().count("\n") >= 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)  # torchrun itself dies; its children lose their parent
    process.communicate()
    for pid in (int(p) for p in os.listdir("/proc") if p.isdigit()):
        try:
            if b"--name=cut" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    subprocess.run(torchrun("--name=cut", "--resume"), cwd=tmp_path, check=True, capture_output=True, env=environment, timeout=200)
    whole, cut = (common.load_checkpoint(tmp_path / "out" / name / "last.pt") for name in ("whole", "cut"))
    assert whole["progress"][0] == cut["progress"][0] == steps  # and no more steps than were asked for
    assert all(torch.equal(whole["model"][name], cut["model"][name]) for name in whole["model"])
    logged = [[json.loads(line)["step"] for line in (tmp_path / "out" / name / "metrics.jsonl").read_text().splitlines()] for name in ("whole", "cut")]
    assert logged[0] == logged[1]
