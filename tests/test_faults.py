"""
Stop, resume, break and misuse: what a long run must survive, and what it says when it cannot go on.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import common
import train_mle
import train_rlvr
from common import BadInput
from tests import soak
from tests.soak import small
from tests.test_scripts import MLE, ROOT, environment, logged, progress, run, train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    run(folder, "data/textgame/prepare.py", "--out=./textgame")
    run(folder, "train_mle.py", "--world=./textgame")
    return folder


def test_random_kills_damage_and_resumes_change_nothing(monkeypatch):
    """
    A little of `make soak`: SIGKILL, SIGTERM, torn and flipped checkpoints; from this seed on the
    rounds are of train_mle.py, train_rlvr.py and tokenizer_vq.py in turn.
    """
    monkeypatch.chdir(ROOT)
    faults, rounds, lost = soak.soak(minutes=3, seed=16, most=8)
    assert lost == 0 and rounds >= 1 and faults >= 5


def test_soak_would_notice():
    """
    The comparison is no formality: one changed weight, or one line of metrics that is missing or
    stands twice, is another outcome.
    """
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    good = [torch.ones(3)], rows
    assert soak.same(good, ([torch.ones(3)], [dict(row) for row in rows]))
    assert not soak.same(good, ([torch.tensor([1, 1, 1 + 1e-6])], rows))
    assert not soak.same(good, ([torch.ones(3)] * 2, rows))
    assert not soak.same(good, ([torch.ones(3)], rows[:1]))
    assert not soak.same(good, ([torch.ones(3)], rows + rows[-1:]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_says_how_to_go_on(house, tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    options = small(train_mle, world=house / "textgame", steps=100000, eval_every=50)
    monkeypatch.setattr(sys, "argv", ["train_mle.py", *options])
    child = soak.start(train_mle, options)
    log = tmp_path / "out/textgame-mle/metrics.jsonl"
    while not (log.is_file() and log.read_text().count("\n") >= 2):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), Path("log.txt").read_text()
        time.sleep(0.05)
    os.kill(child, number)
    code = soak.wait(child)
    printed = Path("log.txt").read_text()
    assert code == 0, printed
    line = next(line for line in printed.splitlines() if line.startswith("stopped after step"))
    step = int(line.split()[3].rstrip(","))
    assert line.endswith("--resume") and "train_mle.py" in line and "Traceback" not in printed
    assert progress(tmp_path / "out/textgame-mle/last.pt")["step"] == step


# --------------------------------------------------------------------------------------------------
# Checkpoints


def save(path, value, n=1000):
    model = {"w": torch.full((n,), float(value))}
    checkpoint = {"model": model, "model_config": {}, "stage": "mle", "progress": {"step": value}}
    common.save_checkpoint(path, checkpoint)


def newest(path):
    """The checkpoint that --resume would go on from."""
    return common.newest_checkpoint(path, "mle")


def test_every_flipped_bit_and_every_cut_is_noticed_and_the_one_before_is_used(tmp_path, capsys):
    path = tmp_path / "last.pt"
    rng = random.Random(0)
    noticed = 0
    for _ in range(60):
        for old in tmp_path.iterdir():
            old.unlink()
        save(path, 1)
        save(path, 2)
        soak.damage(path, rng)
        checkpoint = newest(path)
        value = checkpoint["progress"]["step"]
        # a bit of the zip's padding may flip without harm
        assert value in (1, 2)
        assert torch.equal(checkpoint["model"]["w"], torch.full((1000,), float(value)))
        noticed += value == 1
    assert noticed > 40
    said = capsys.readouterr().err
    assert said.count("damaged") == noticed and said.count("last-before.pt instead") == noticed


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(tmp_path, monkeypatch):
    """Killed in the first save after going on from the one before: there is still a good one."""
    path = tmp_path / "last.pt"
    save(path, 1)
    save(path, 2)
    path.write_bytes(path.read_bytes()[:100])
    assert newest(path)["progress"]["step"] == 1
    replace = os.replace

    def killed(source, target):
        if Path(target) == path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(common.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(path, 3)
    assert newest(path)["progress"]["step"] == 1


def test_both_damaged_is_one_sentence(tmp_path):
    save(tmp_path / "last.pt", 1)
    save(tmp_path / "last.pt", 2)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match="damaged"):
        newest(tmp_path / "last.pt")


def test_hostile_checkpoints_are_refused(tmp_path):
    """
    A zip bomb under a checkpoint's name is not unpacked; other zips, tensors and texts are no
    checkpoints.
    """
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(50):
                entry.write(bytes(10**7))  # half a GB of zeros
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    torch.save({"model": {}}, tmp_path / "keys.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("bomb", "tensor", "keys", "text"):
        start = time.process_time()
        with pytest.raises(BadInput, match=f"{name}.pt is not a checkpoint of this version or is"):
            common.load_checkpoint(tmp_path / f"{name}.pt")
        assert time.process_time() - start < 0.2


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    """A limit on the size of files stands in for the full disk."""
    save(tmp_path / "a.pt", 1, 10)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(BadInput, match="could not save .*a.pt"):
            save(tmp_path / "a.pt", 1, 10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert len(common.load_checkpoint(tmp_path / "a.pt")["model"]["w"]) == 10


def test_resume_with_another_model_is_refused(house):
    options = small(train_mle, world="./textgame", out="out/smoke", n_layer=3, resume=True)
    printed = run(house, "train_mle.py", *options, code=2, smoke=False)
    assert "--n_layer=1" in printed


def a_run(folder):
    """A Run as far as its log goes."""
    config = SimpleNamespace(out=folder, name="run", resume=False, wandb="")
    return common.Run("mle", config, "run")


def test_the_length_of_the_metrics_is_right_before_the_first_line_too(tmp_path):
    """
    Resumed and stopped again at once, a checkpoint must not keep the length that the file had
    before its end was dropped.
    """
    first = a_run(tmp_path)
    first.open_log(0)
    path = tmp_path / "run" / "metrics.jsonl"
    first.write(1, loss=2.0)
    kept = first.file.tell()
    first.write(2, loss=1.0)
    again = a_run(tmp_path)
    again.open_log(kept)
    assert again.file.tell() == kept == path.stat().st_size
    again.write(2, loss=1.0)
    assert again.file.tell() == path.stat().st_size > kept
    assert [row["step"] for row in logged(tmp_path / "run")] == [1, 2]


# --------------------------------------------------------------------------------------------------
# Numbers that go wrong


def test_what_is_not_finite_is_skipped_and_counted_and_the_third_in_a_row_stops(tmp_path, capsys):
    run = a_run(tmp_path)
    for loss in (1.0, float("nan"), 2.0, float("inf"), float("nan")):
        assert run.finite({"loss": loss}, lambda: [7]) == (loss in (1.0, 2.0))
    assert run.skipped == 3
    assert "loss inf; update skipped (2 so far)" in capsys.readouterr().out
    told = r"3 updates in a row.*loss nan.*records 7, 9.*run/last.pt.*--resume"
    with pytest.raises(BadInput, match=told):
        run.finite({"loss": float("nan")}, lambda: [7, 9])


@pytest.mark.parametrize("script", ["mle", "rlvr"])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    house, tmp_path, monkeypatch, script, capsys
):
    """
    At step 1 the gradient is NaN: that update is skipped; from step 4 on all are: the run stops,
    and its last checkpoint is sound.
    """
    monkeypatch.chdir(tmp_path)
    module = {"mle": train_mle, "rlvr": train_rlvr}[script]
    clip = torch.nn.utils.clip_grad_norm_
    calls = []

    def poisoned(parameters, most):
        parameters = list(parameters)
        calls.append(0)
        if len(calls) == 2 or len(calls) > 4:
            parameters[0].grad.fill_(float("nan"))
        return clip(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
    options = {} if script == "mle" else {"num_minibatches": 1}
    with pytest.raises(BadInput, match=r"3 updates in a row.*norm nan"):
        train(module, house, steps=50, eval_every=3, **options)
    assert "update skipped (1 so far)" in capsys.readouterr().out
    checkpoint = common.load_checkpoint(tmp_path / f"out/textgame-{script}/last.pt")
    assert checkpoint["progress"]["step"] >= 3
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_troubles_are_named():
    fine = {"equal_groups": 0.5, "limit": 0.0, "kl": 0.1}
    equal = {**fine, "equal_groups": 1.0}
    assert not list(train_rlvr.troubles([fine] * 20))
    assert not list(train_rlvr.troubles([equal] * 19))
    (told,) = train_rlvr.troubles([equal] * 20)
    assert "equal rewards" in told
    never_end, far_away = train_rlvr.troubles([{**fine, "limit": 0.6, "kl": 2.0}])
    assert "never end" in never_end and "nat per token" in far_away


# --------------------------------------------------------------------------------------------------
# Two processes


def torchrun(port, *words):
    """A command line for two processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    return [*start, f"--master_port={port}", *map(str, words)]


def test_one_failing_rank_ends_all_of_them_with_its_error(house, tmp_path):
    options = small(train_mle, world=house / "textgame", steps=100000)
    (tmp_path / "fail.py").write_text(
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import train_mle, data.text\n"
        "draw = data.text.TextWorld.draw\n"
        "def fail(self, *a, **k):\n"
        "    fail.calls += 1\n"
        "    if os.environ['RANK'] == '1' and fail.calls > 3: raise RuntimeError('rank 1 broke')\n"
        "    return draw(self, *a, **k)\n"
        "fail.calls = 0\n"
        "data.text.TextWorld.draw = fail\n"
        f"train_mle.main({options!r})\n"
    )
    done = subprocess.run(
        torchrun(29613, "fail.py"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=ONE_THREAD,
    )
    assert done.returncode != 0 and "rank 1 broke" in done.stderr


def kill_all_in(folder):
    """SIGKILL for every process of ours that works in a folder of this test's own."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd") == str(folder.resolve()):
                os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass


def two_ranks(port, folder, script, *options):
    """
    What torchrun does for two processes, without its ten seconds. Returns run(*more options, until)
    -> the exit codes of both; they are killed when the file `until` is there.
    """

    def run(*more, until=None):
        ranks = []
        for rank in ("0", "1"):
            where = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_WORLD_SIZE="2")
            where.update(WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank)
            with open(folder / f"log{rank}", "w") as log:
                command = ["python", str(script), *options, *more]
                more_of = dict(env=environment(**where), stdout=log, stderr=subprocess.STDOUT)
                ranks.append(subprocess.Popen(command, cwd=folder, **more_of))
        while until and ranks[0].poll() is None and not until.is_file():
            time.sleep(0.01)
        if until:
            kill_all_in(folder)
        return [rank.wait(timeout=200) for rank in ranks]

    return run


@pytest.mark.parametrize(
    "module,steps,every,port", [(train_mle, 12, 3, 29615), (train_rlvr, 4, 1, 29617)]
)
def test_two_processes_resume_as_if_never_stopped(house, tmp_path, module, steps, every, port):
    """Killed and resumed with two processes: the weights of the undisturbed run."""
    options = small(module, world=house / "textgame", steps=steps, eval_every=every)
    if module is train_rlvr:
        options.append(f"--init_from={house / MLE}")
    both = two_ranks(port, tmp_path, ROOT / f"{module.__name__}.py", *options)
    assert both("--name=whole") == [0, 0]
    paths = [tmp_path / "out" / name / "last.pt" for name in ("whole", "cut")]
    killed = both("--name=cut", until=paths[1])
    assert progress(paths[1])["step"] < steps
    assert 0 not in killed and both("--name=cut", "--resume") == [0, 0]
    whole, cut = map(common.load_checkpoint, paths)
    # and no more steps than were asked for
    assert whole["progress"]["step"] == cut["progress"]["step"] == steps
    assert whole["progress"]["work"] == cut["progress"]["work"]
    for name, value in whole["model"].items():
        assert torch.equal(value, cut["model"][name])
    lines = [[row["step"] for row in logged(path.parent)] for path in paths]
    assert lines[0] == lines[1]
