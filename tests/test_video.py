"""
Tokenizer and video world: ids and frames, the order of frames and actions, given tokens, metrics of
decoded frames, bad input.
"""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import common
import evaluate
import rewards
import sample
import tokenizer_vq
import train_mle
import train_rlvr
from common import BadInput, save_checkpoint
from data import load_world
from data.episodes import write_episode
from data.robot import prepare
from data.video import VideoWorld
from generate import generate
from model import Model, ModelConfig
from tests.test_model import lively
from tokenizer_vq import EMA, FSQ, Tokenizer, TokenizerConfig, fingerprint, to_frames
from use import drive, rollout

ROOT = Path(__file__).resolve().parents[1]


def an_episode(rng, frames=10, size=16, cell=1):
    """
    A white square of 4x4 pixels on a coloured ground; action[t] = (dx, dy) in cells moves it from
    image[t] to image[t + 1]. Returns (image, action, state), state[t] its place (x, y) in image[t].
    """
    ground = rng.integers(0, 120, 3) if cell == 1 else np.array([60, 60, 60])
    images = []
    actions = []
    places = []
    x, y = (cell * int(rng.integers(0, 12 // cell + 1)) for _ in range(2))
    for _ in range(frames):
        image = np.broadcast_to(ground, (size, size, 3)).astype(np.uint8).copy()
        image[y : y + 4, x : x + 4] = 255
        dx, dy = (int(np.clip(n + cell * rng.integers(-3, 4), 0, 12) - n) for n in (x, y))
        images.append(image)
        actions.append([dx / cell, dy / cell])
        places.append([x, y])
        x += dx
        y += dy
    action = np.array(actions, dtype=np.float32)
    return np.stack(images), action, np.array(places, dtype=np.float32)


def save_tokenizer(folder, name, tokenizer):
    """As tokenizer_vq.py saves it, under folder/out."""
    checkpoint = {"model": tokenizer.state_dict(), "model_config": asdict(tokenizer.config)}
    checkpoint.update(stage="tokenizer", progress={})
    save_checkpoint(folder / f"out/{name}-tokenizer/best.pt", checkpoint)


def make_world(folder, name, horizon, dynamics, episodes=(6, 2, 2), cell=1, **meta):
    """A folder of episodes under folder/name and an untrained tokenizer under folder/out."""
    rng = np.random.default_rng(0)
    for split, n in zip(("train", "val", "test"), episodes):
        (folder / name / split).mkdir(parents=True)
        for i in range(n):
            image, action, state = an_episode(rng, cell=cell)
            write_episode(folder / name / split / f"{i:04d}.npz", image, action, state=state)
    about = {"form": "video", "domain": "robot", "context_frames": 2, "horizon": horizon}
    about.update(reward="mae+0.5*ssim", action_low=[-3, -3], action_high=[3, 3])
    (folder / name / "meta.json").write_text(json.dumps({**about, **meta}))
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(16, 16, 4, dynamics, channels=8, levels="4,4,4"))
    save_tokenizer(folder, name, tokenizer)
    return tokenizer


@pytest.fixture(params=["single", "multi"])
def world(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", *((1, 0) if request.param == "single" else (4, 8)))
    return load_world("tiny")


def small_model(world):
    torch.manual_seed(0)
    return Model(ModelConfig(world.vocab_size, world.block_size, 1, 2, 2, 16))


# the smallest runs that do everything once
TOKENIZER = ["--channels=8", "--depth=1", "--steps=4", "--eval_every=2", "--eval_frames=8"]
TOKENIZER += ["--batch_size=4", "--warmup=1", "--threads=1"]
MLE = ["--n_layer=1", "--n_head=2", "--n_kv_head=2", "--n_embd=32", "--batch_size=16"]
MLE += ["--warmup=2", "--steps=6", "--eval_every=3", "--eval_records=8", "--threads=1"]
RLVR = ["--prompts_per_step=4", "--group_size=4", "--num_minibatches=2", "--micro_batch_size=2"]
RLVR += ["--steps=3", "--eval_every=2", "--eval_records=8", "--threads=1"]
JUDGE = ["--records=12", "--val_records=8", "--best_of=4", "--seeds=2"]
JUDGE += ["--threads=1"]


# --------------------------------------------------------------------------------------------------
# Quantizers and tokenizer


@pytest.mark.parametrize("levels", [[7, 5, 5, 5, 5], [8, 6, 5], [2, 3]])
def test_fsq_ids_and_vectors_are_one_to_one(levels):
    quantizer = FSQ(levels)
    ids = torch.arange(quantizer.codes)
    vectors = quantizer.lookup(ids)
    assert len({tuple(v.tolist()) for v in vectors}) == quantizer.codes == np.prod(levels)
    z = 3 * torch.randn(5000, len(levels))
    quantized, found, _ = quantizer(z)
    assert (quantizer.lookup(found) - quantized).abs().max() < 1e-6
    assert 0 <= found.min() and found.max() < quantizer.codes
    assert len(found.unique()) > 0.9 * min(quantizer.codes, 200)  # every level is reached
    z = torch.randn(8, len(levels), requires_grad=True)
    quantizer(z)[0].sum().backward()
    assert (z.grad > 0).all()  # straight through the rounding


def test_ema_takes_the_nearest_code_and_revives_dead_ones():
    torch.manual_seed(0)
    quantizer = EMA(16, 3).eval()
    z = torch.randn(200, 3)
    _, ids, loss = quantizer(z)
    distance = ((z[:, None] - quantizer.codebook[None]) ** 2).sum(-1)
    nearest = distance.min(1)
    assert torch.equal(ids, nearest.indices)
    assert loss.item() == pytest.approx(nearest.values.mean().item() / 3, rel=1e-5)
    quantizer.codebook += 100  # all dead but one
    quantizer.total += 100
    quantizer.train()
    for _ in range(400):
        quantizer(torch.randn(200, 3))
    assert len(quantizer(z)[1].unique()) > 12


@pytest.mark.parametrize("quantizer", ["fsq", "ema"])
def test_ids_decode_to_what_the_training_pass_made(quantizer):
    torch.manual_seed(0)
    shape = dict(channels=8, levels="4,4", codes=32, quantizer=quantizer)
    tokenizer = Tokenizer(TokenizerConfig(16, 24, 4, 8, **shape)).eval()
    frames = torch.rand(3, 1 + 2, 3, 16, 24)
    made, _, ids, dynamics = tokenizer(frames)
    assert made.shape == frames.shape and ids.shape == (3, 24) and dynamics.shape == (6, 6)
    assert torch.equal(tokenizer.encode(frames[:, 0]), ids)
    assert torch.allclose(tokenizer.decode(ids), made[:, 0], atol=1e-5)
    assert torch.equal(tokenizer.encode_dynamics(frames[:, 1:], ids).flatten(0, 1), dynamics)
    assert torch.allclose(
        tokenizer.decode_dynamics(dynamics.view(3, 2, 6), ids), made[:, 1:], atol=1e-5
    )
    # neither batch mates nor other frames matter
    alone = tokenizer.decode_dynamics(dynamics.view(3, 2, 6)[1:2, 1:], ids[1:2])
    assert torch.allclose(alone[0, 0], made[1, 2], atol=1e-5)


@pytest.mark.parametrize("new", [0, 1])
def test_pixels_that_are_not_new_are_the_context_frames(new):
    """
    With the share of new pixels forced to 0 a later frame is its context frame, whatever its tokens
    say; with 1 nothing of it is left.
    """
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(16, 16, 4, 8, channels=8, levels="4,4,4")).eval()
    ids = torch.randint(64, (2, 3, 4))  # [N, T, m]
    other = torch.randint(64, (2, 16))  # [N, tokens]
    last = tokenizer.dynamics_decoder.up[-1]
    with torch.no_grad():
        last.weight[12:] = 0  # the fourth channel of each of the 2x2 pixels
        last.bias[12:] = 60.0 * new - 30
        made = tokenizer.decode_dynamics(ids, other)
        assert made.shape == (2, 3, 3, 16, 16)
        if not new:
            context = tokenizer.decode(other)[:, None]
            assert torch.allclose(made, context.expand_as(made), atol=1e-6)
        else:
            assert (made - tokenizer.decode(other)[:, None]).abs().mean() > 0.01
            # the frames are drawn from their own tokens
            assert (made[:, 0] - made[:, 1]).abs().max() > 1e-4


def test_the_tokenizer_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 4, 8, cell=4)
    options = ["--channels=16", "--levels=4,4,4,4", "--factor=4", "--dynamics=8", "--warmup=5"]
    options += ["--steps=450", "--batch_size=8", "--eval_every=150", "--threads=1"]
    tokenizer_vq.main(["--world=tiny", *options])
    log = (tmp_path / "out/tiny-tokenizer/metrics.jsonl").read_text().splitlines()
    first, *_, last = [row for row in map(json.loads, log) if "val_psnr" in row]
    assert last["val_psnr"] > 20 and last["val_psnr"] > first["val_psnr"]
    assert last["val_dynamics_psnr"] > 14
    assert 0 < last["val_codebook"] <= 1 <= last["val_perplexity"] <= 256
    picture = Image.open(tmp_path / "out/tiny-tokenizer/reconstruction.png")
    assert picture.width > picture.height / 4


def test_a_tokenizer_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 1, 0)
    base = [*TOKENIZER, "--world=tiny", "--factor=4", "--steps=6"]
    tokenizer_vq.main([*base, "--name=whole"])
    save = common.save_checkpoint

    def save_and_stop(path, checkpoint):
        save(path, checkpoint)
        if path.name == "last.pt" and checkpoint["progress"]["step"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(common, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            tokenizer_vq.main([*base, "--name=parts"])
    tokenizer_vq.main([*base, "--name=parts", "--resume"])
    whole, parts = (
        torch.load(tmp_path / f"out/{name}/last.pt", weights_only=True)["model"]
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


# --------------------------------------------------------------------------------------------------
# The world


def test_frames_and_actions_stand_in_the_right_order(world):
    """
    Guards against actions shifted by one step: the action in front of a frame is the one that leads
    to it.
    """

    def ids_of(image, t):
        return world.tokenizer.encode(to_frames(image[t : t + 1]))[0].numpy()

    for index in (0, 3):
        e, start, context = world.records["train"][index]
        episode = world.episodes["train"][e]
        image = episode.image
        batch = world.batch("train", [index])
        bins = ((episode.action + 3) / 6 * 256).astype(int).clip(0, 255) + world.action_base
        prompt = batch.prompt[0].numpy()
        response = batch.response[0].numpy()
        if world.horizon == 1:
            expected = []
            for t in (start, start + 1):
                expected += [ids_of(image, t), bins[t]]
            assert np.array_equal(prompt, np.concatenate(expected))
            assert np.array_equal(response, ids_of(image, start + 2))
        else:
            ids = ids_of(image, context)
            later = to_frames(image[None, start : start + 5])
            dynamics = world.tokenizer.encode_dynamics(later, torch.from_numpy(ids)[None])
            dynamics = dynamics[0].numpy()
            assert np.array_equal(prompt, np.concatenate([ids + 64, dynamics[0], bins[start]]))
            expected = []
            for t in range(1, 5):
                expected += [dynamics[t], bins[start + t]]
            assert np.array_equal(response, np.concatenate(expected))
            assert start - 15 <= context <= start


def test_decoded_truth_is_the_tokenizer_floor_in_order(world):
    """
    Frames survive the way through tokens: decoding the true response gives the reconstructions of
    the true frames, each in its place.
    """
    chosen = [0, 5, 7]
    batch = world.batch("val", chosen)
    frames = world.decode(batch, batch.response[:, None])[:, 0]
    last, true = world.truth("val", chosen)
    if world.horizon == 1:
        expected = world.tokenizer.decode(world.tokenizer.encode(true[:, 0]))[:, None]
    else:
        contexts = []
        for i in chosen:
            e, _, context = world.records["val"][i]
            contexts.append(world.episodes["val"][e].image[context])
        context = world.tokenizer.encode(to_frames(np.stack(contexts)))
        dynamics = world.tokenizer.encode_dynamics(true, context)
        expected = world.tokenizer.decode_dynamics(dynamics, context)
    assert torch.allclose(frames, expected, atol=1e-4)
    twice = batch.response[:, None].expand(-1, 2, -1)
    scores = world.score(batch, twice, ["mse", "psnr", "ssim", "mae_last"])
    for n in range(3):
        errors = [((frames[n, f] - true[n, f]) ** 2).mean().item() for f in range(world.horizon)]
        assert scores["mse"][n].tolist() == pytest.approx([np.mean(errors)] * 2, rel=1e-4)
        at_the_end = (frames[n, -1] - true[n, -1]).abs().mean().item()
        assert scores["mae_last"][n, 0].item() == pytest.approx(at_the_end, rel=1e-4)
    floor = dict(world.references("val", chosen))["tokenizer floor"]
    assert torch.allclose(floor["mse"], scores["mse"][:, :1])


def test_sampled_ids_are_legal_and_actions_are_the_true_ones(world):
    """
    Guards against given tokens that are sampled, shifted or trained on: they come back as they were
    given, carry no loss, and everything else is a code of the tokenizer.
    """
    model = small_model(world)
    batch = world.batch("train", [0, 1])
    rollout = generate(model, batch, 3)
    is_action = ~batch.response_mask[:, None].expand_as(rollout.tokens)
    true = batch.response[:, None].expand_as(rollout.tokens)
    assert (rollout.tokens[~is_action] < world.tokenizer.codes).all()
    assert torch.equal(rollout.tokens[is_action], true[is_action])
    assert int((~is_action).sum()) == 2 * 3 * world.horizon * world.predicted
    answers = batch.prompt, batch.prompt_len, rollout.tokens
    logprob, _ = model(*answers, ~is_action, world.allowed_ids)
    assert torch.allclose(logprob[~is_action], rollout.logprob[~is_action], atol=1e-4)
    logprob.sum().backward()
    assert model.embed.weight.grad is not None


def test_given_tokens_get_no_gradient_in_the_update(tmp_path, monkeypatch):
    """
    The experience of a rollout has its mask off exactly where actions were put in; and with process
    supervision, each frame's tokens answer for the frames from it on.
    """
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 4, 8)
    world = load_world("tiny")
    model = small_model(world)
    batch = world.batch("train", [0, 1])
    rollout = generate(model, batch, 3, generator=torch.Generator().manual_seed(1))
    terms = [(1.0, "mae")]
    config = train_rlvr.Config(group_size=3)
    experience = train_rlvr.judge(world, batch, rollout, terms, config)
    place = torch.arange(world.response_len) % (world.m + world.A)
    assert torch.equal(experience.mask, (place < world.m).expand_as(experience.mask))
    assert (experience.rewards <= 0).all()  # an error counts as minus

    config = train_rlvr.Config(group_size=3, supervision="process")
    of_frames = train_rlvr.judge(world, batch, rollout, terms, config)
    assert torch.allclose(of_frames.rewards, experience.rewards, atol=1e-6)
    each = world.score(batch, experience.tokens, ["mae", "repetition"], by_frame=True)
    assert torch.allclose(-each["mae"].mean(-1), experience.rewards, atol=1e-6)
    assert each["repetition"].shape == (2, 3, world.horizon)
    ends = world.score(batch, experience.tokens, ["mae_last", "mae_discount"])
    weight = 0.9 ** torch.arange(world.horizon)
    discounted = (each["mae"] * weight).sum(-1) / weight.sum()
    assert torch.allclose(ends["mae_last"], each["mae"][..., -1])
    assert torch.allclose(ends["mae_discount"], discounted)
    whole = train_rlvr.group_advantages(-each["mae"].sum(-1))
    # the first frame answers for all of them
    assert torch.allclose(of_frames.advantages[..., 0], whole, atol=1e-3)
    frames = world.frame_ids(world.frame_of_token())
    assert (frames == torch.arange(world.horizon)[:, None]).all()
    last = train_rlvr.group_advantages(-each["mae"][..., -1])
    assert torch.allclose(of_frames.advantages[..., -1], last, atol=1e-5)
    assert not torch.allclose(last, whole, atol=0.05)


def test_process_supervision_needs_frames(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 4, 8)
    make_world(tmp_path, "single", 1, 0)
    for world, reward in (("tiny", "mae_last"), ("tiny", "mae+last_repeats"), ("single", "mae")):
        with pytest.raises(BadInput, match="--supervision=process needs"):
            train_rlvr.main([f"--world={world}", f"--reward={reward}", "--supervision=process"])


# a metric of recorded states: how far the brightest pixels of a predicted frame are from the place
# at which its episode says the square was
TOY_TASK = """
import torch
from data.world import Metric, VideoTask

def middle(frames):
    bright = frames.mean(-3) ** 8
    place = torch.arange(bright.size(-1)).float()
    total = bright.sum((-1, -2))
    x = (bright.sum(-2) * place).sum(-1) / total
    y = (bright.sum(-1) * place).sum(-1) / total
    return torch.stack([x, y], dim=-1)

def toy(predicted, true, state):
    return (middle(predicted) - (state[:, None] + 1.5)).square().sum(-1).sqrt()

TASK = VideoTask(reward="toy", metrics={"toy": Metric(toy, better=-1, scale=1)})
"""


@pytest.mark.parametrize("horizon,dynamics", [(1, 0), (3, 8)])
def test_a_metric_of_recorded_states_is_a_reward(tmp_path, monkeypatch, horizon, dynamics):
    """
    Guards against a state that belongs to another frame, and against a video task whose own metrics
    are not read in a sum, have the wrong sign, or have no variants.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squares").mkdir()
    (tmp_path / "squares" / "task.py").write_text(TOY_TASK)
    make_world(tmp_path, "tiny", horizon, dynamics, domain="squares", reward="toy")
    with pytest.raises(BadInput, match="--task=FOLDER/squares/task.py"):
        load_world("tiny")
    world = load_world("tiny", task="squares/task.py")
    chosen = [0, 5, 7]
    last, true = world.truth("val", chosen)
    state = world.true_state("val", chosen)
    for n, i in enumerate(chosen):
        e, first, _ = world.records["val"][i]
        first += 1 if horizon > 1 else 2
        for f in range(horizon):
            image = world.episodes["val"][e].image[first + f]
            row, column = np.argwhere((image == 255).all(-1))[0]
            assert state[n, f].tolist() == [column, row]
    # the true frames are right: the square is where the state says; a black one beside it is wrong
    exact = world.frame_scores(true[:, None], (last, true, state), ["toy"])["toy"]
    moved = world.frame_scores(true[:, None].roll(2, -1), (last, true, state), ["toy"])["toy"]
    assert exact.max() < 0.1 and (moved > 1).any()

    batch = world.batch("val", chosen)
    tokens = torch.randint(0, 64, (3, 2, world.response_len))
    scores = world.score(batch, tokens, ["toy", "mae", "toy_last"])
    terms = world.terms("mae+0.25*toy")
    reward = world.compute_reward(batch, tokens, terms)
    assert torch.allclose(reward, -scores["mae"] - 0.25 * scores["toy"])
    frames = world.decode(batch, tokens)
    for b in range(3):
        for g in range(2):
            seen = []
            for f in range(horizon):
                bright = frames[b, g, f].mean(0).double().numpy() ** 8
                where = [np.average(range(16), weights=bright.sum(axis)) for axis in (0, 1)]
                seen.append(np.hypot(*(where - state[b, f].numpy() - 1.5)))
            assert scores["toy"][b, g].item() == pytest.approx(np.mean(seen), rel=1e-3)
            assert scores["toy_last"][b, g].item() == pytest.approx(seen[-1], rel=1e-3)

    task = "--task=squares/task.py"
    train_mle.main([*MLE, "--world=tiny", task, "--steps=1"])
    train_rlvr.main([*RLVR, "--world=tiny", task, "--reward=mae+toy", "--steps=1"])
    log = Path("out/tiny-rlvr/metrics.jsonl").read_text().splitlines()
    final = [row for row in map(json.loads, log) if "val_toy" in row][-1]
    assert final["val_reward"] == pytest.approx(-final["val_mae"] - final["val_toy"], rel=1e-4)
    evaluate.main([*JUDGE, "--world=tiny", task])
    table = json.loads(Path("out/tiny-results/results.json").read_text())["rows"]
    copy = table["copy (last frame again)"]["toy"]
    assert copy[0] > 0.5 and table["MLE, T=1"]["toy"][0] > 0


def test_copying_is_the_copy_row_and_repetition_is_counted(world):
    batch = world.batch("val", [0, 5])
    again = batch.response.clone()
    last = world.last_ids(batch)
    if world.horizon == 1:
        again = last.clone()
    else:
        again.view(2, world.horizon, -1)[:, :, : world.m] = last[:, None]
    names = ["repetition"] + ["last_repeats"] * (world.horizon > 1)
    scores = world.score(batch, again[:, None], names)
    assert all((value == 1).all() for value in scores.values())
    mixed = again.clone()  # repeats in all frames but the last
    if world.horizon > 1:
        end = slice(-(world.m + world.A), None)
        mixed[:, end] = batch.response[:, end] - 1
    scores = world.score(batch, mixed[:, None], names)
    ids = world.frame_ids(mixed)
    by_hand = []
    for n in range(2):
        frames = [last[n], *ids[n]]
        by_hand.append([torch.equal(a, b) for a, b in zip(frames, frames[1:])])
    assert scores["repetition"][:, 0].tolist() == pytest.approx([np.mean(same) for same in by_hand])
    if world.horizon > 1:
        at_the_end = [float(same[-1]) for same in by_hand]
        assert scores["last_repeats"][:, 0].tolist() == at_the_end == [0, 0]
    copy = dict(world.references("val", [0, 5]))["copy (last frame again)"]
    last_frame, truth = world.truth("val", [0, 5])
    error = ((truth - last_frame[:, None]) ** 2).mean((1, 2, 3, 4))
    assert copy["mse"][:, 0].tolist() == pytest.approx(error.tolist(), rel=1e-4)


def test_moving_pixels_are_those_that_differ_from_the_last_frame(world):
    batch = world.batch("val", [4])
    last, true = world.truth("val", [4])
    predicted = torch.rand(1, 2, *true.shape[1:])
    scores = world.frame_scores(predicted, (last, true, None), ["mae_moving", "mae"])
    for g in range(2):
        by_hand = []
        for f in range(true.size(1)):
            moves = ((true[0, f] - last[0]).abs() > 8 / 255).any(0)
            error = (predicted[0, g, f] - true[0, f]).abs()[:, moves]
            by_hand.append(error.mean().item() if moves.any() else 0.0)
        assert scores["mae_moving"][0, g].mean().item() == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert list(world.metrics)[:4] == ["mae", "mse", "psnr", "ssim"] and batch.split == "val"


def test_tokens_are_cached_and_a_changed_tokenizer_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = make_world(tmp_path, "tiny", 1, 0)
    first = load_world("tiny")
    monkeypatch.setattr(VideoWorld, "tokenize", lambda *_: pytest.fail("the cache was not used"))
    assert torch.equal(load_world("tiny").tokens["train"], first.tokens["train"])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        tokenizer.encoder.out.bias += 0.5
    save_tokenizer(tmp_path, "tiny", tokenizer)
    second = load_world("tiny")
    assert second.fingerprint != first.fingerprint
    assert not torch.equal(second.tokens["train"], first.tokens["train"])
    assert len(list((tmp_path / "tiny").glob("tokens-*.npz"))) == 1
    next((tmp_path / "tiny").glob("tokens-*.npz")).write_bytes(b"torn")
    assert torch.equal(load_world("tiny").tokens["train"], second.tokens["train"])
    assert fingerprint(second.tokenizer) in second.fingerprint


def test_action_bins_are_uniform_over_the_training_range(world):
    action = np.array([[-3, 3], [0, -2.99], [-99, 99]], dtype=np.float32)
    bins = world.action_ids(action) - world.action_base
    assert bins.tolist() == [[0, 255], [128, 0], [0, 255]]


# --------------------------------------------------------------------------------------------------
# The scripts


@pytest.mark.parametrize("horizon,dynamics", [(1, 0), (3, 8)])
def test_the_chain_runs_through(tmp_path, monkeypatch, capsys, horizon, dynamics):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", horizon, dynamics)
    train_mle.main([*MLE, "--world=tiny"])
    first = ["--reward=mae+0.5*ssim+repetition", "--select_by=mae"]
    train_rlvr.main([*RLVR, "--world=tiny", *first])
    other = ["--reward=mse_last+psnr_discount", "--name=other", "--steps=1"]
    train_rlvr.main([*RLVR, "--world=tiny", *other])
    evaluate.main([*JUDGE, "--world=tiny"])
    printed = capsys.readouterr().out
    for row in ("copy (last frame again)", "tokenizer floor", "MLE, T=1", "RLVR, T=1"):
        assert f"| {row}" in printed
    assert "psnr_moving" in printed and "best of N" in printed
    sample.main(["--world=tiny", "--number=1", "--threads=1"])
    image = Image.open("out/tiny-results/test-0.png")
    movie = Image.open("out/tiny-results/test-0.gif")
    columns = 3 if horizon > 1 else 8
    assert movie.n_frames == columns
    assert (image.width, image.height) == (64 + columns * 128, 5 * 128)


def commands_of(page, folder):
    """
    {script: its options} of a page in runs/, as bash makes them: a "python" of our own stands in
    front of the true one and writes down what it is called with.
    """
    (folder / "bin").mkdir()
    stand_in = folder / "bin" / "python"
    stand_in.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" "" >> {folder}/called\n')
    stand_in.chmod(0o755)
    env = {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    subprocess.run(["bash", str(ROOT / "runs" / page)], env=env, check=True, timeout=60)
    calls = [call.split("\n") for call in (folder / "called").read_text().strip().split("\n\n")]
    return {call[0]: call[1:] for call in calls}


@pytest.mark.parametrize("page", ["paper_single.sh", "paper_multi.sh"])
def test_the_papers_shapes_start(page, tmp_path, monkeypatch, capsys):
    """
    256x320 frames, four of context or seven predicted, 13 action numbers, the paper's width; one of
    its twelve layers, and no LPIPS weights.
    """
    called = commands_of(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    name = "paper" if page == "paper_single.sh" else "paper-multi"
    assert f"--world={name}" in called["train_rlvr.py"]
    few = [f"--world=./{name}", "--steps=1", "--eval_every=1", "--threads=1"]
    few_episodes = ["--out=./paper", "--episodes=1", "--frames=8"]
    prepare.main([*called["data/robot/prepare.py"], *few_episodes])
    narrow = ["--batch_size=1", "--eval_frames=1", "--channels=8", "--depth=1"]
    tokenizer_vq.main([*called["tokenizer_vq.py"], *few, *narrow])
    one = ["--n_layer=1", "--batch_size=1"]
    # a step of RLVR samples and scores answers just as validation does, and it takes long
    for script in (train_mle, train_rlvr):
        monkeypatch.setattr(script, "validate", lambda *_: (0.0, {}))
    train_mle.main([*called["train_mle.py"], *few, *one])
    few_answers = ["--prompts_per_step=1", "--num_minibatches=1", "--group_size=2"]
    train_rlvr.main([*called["train_rlvr.py"], *few, *few_answers])
    world = load_world(f"./{name}")
    batch = world.batch("val", [0])
    frames = world.decode(batch, batch.response[:, None])
    lengths = world.max_prompt, world.response_len
    if name == "paper":  # 4 x (320 + 13), then 320
        assert lengths == (1332, 320) and frames.shape == (1, 1, 1, 3, 256, 320)
    else:  # 1280 context tokens; each later frame 80 dynamics tokens and its action
        assert lengths == (1280 + 93, 7 * 93) and frames.shape == (1, 1, 7, 3, 256, 320)
    assert "done: 1 steps" in capsys.readouterr().out
    made = torch.load(f"out/{name}-rlvr/best.pt", weights_only=True)["model_config"]
    shape = [made[key] for key in ("n_layer", "n_head", "n_kv_head", "n_embd", "n_inner")]
    assert shape == [1, 12, 12, 768, 3072] and not made["tie_embeddings"] and not made["look_back"]


def test_shuffled_actions_make_prediction_worse(tmp_path, monkeypatch):
    """
    Guards against actions that do not matter: a model that learned from them predicts worse when
    they are taken from other steps.
    """
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 1, 0, episodes=(40, 8, 2), cell=4)
    few = ["--world=tiny", "--steps=150", "--eval_every=150", "--threads=1"]
    codes = ["--channels=8", "--levels=3,3,3", "--factor=4", "--batch_size=16"]
    tokenizer_vq.main([*few, *codes])
    shape = ["--n_layer=2", "--n_head=2", "--n_kv_head=2", "--n_embd=64"]
    train_mle.main([*few, *shape, "--batch_size=32", "--eval_records=8", "--lr=0.02"])
    world = load_world("tiny")
    model, _ = evaluate.load_model("out/tiny-mle/best.pt", world, "cpu")
    batch = world.batch("val", list(range(len(world.records["val"]))))

    def loss(prompt):
        answers = batch.prompt_len, batch.response[:, None], batch.response_mask[:, None]
        return -model(prompt, *answers, world.allowed_ids)[0].mean().item()

    shuffled = batch.prompt.clone()
    actions = shuffled.view(len(shuffled), 2, -1)[:, 1, world.N :]
    shuffled.view(len(shuffled), 2, -1)[:, 1, world.N :] = actions.roll(3, 0)
    with torch.no_grad():
        assert loss(shuffled) > 2 * loss(batch.prompt)


def test_long_rollouts_go_on_as_one_drives(world, monkeypatch):
    """Against use/drive.py, a frame at a time: through all actions, past several contexts."""
    model = lively(small_model(world).eval(), 1)
    config = rollout.Config(actions=9 if world.multi else 8, seed=3)
    episodes = world.episodes["test"]
    world.horizon = min(world.horizon, 3)  # several starts, within 10 frames
    world.response_len = world.horizon * (world.m + world.A) if world.multi else world.N
    world.allowed_ids = world.legal_ids()
    monkeypatch.setattr(rollout, "OLDEST", 5)  # one context that is made anew
    monkeypatch.setattr(drive, "OLDEST", 5)
    start = rollout.Start(world, episodes, config)
    go = rollout.by_horizon if world.multi else rollout.one_by_one
    frames = go(model, world, start, config, None)
    assert frames.shape == start.true.shape
    first = 0 if world.multi else world.K - 1
    for episode, rolled, true in zip(episodes, frames, start.true):
        lane = (drive.ManyFrames if world.multi else drive.OneFrame)(world, model, config)
        lane.set(list(episode.image[: first + 1]), list(episode.action[:first]))
        for t in range(config.actions):
            assert torch.allclose(lane.step(episode.action[first + t]), rolled[t], atol=1e-5)
        assert torch.equal(true, to_frames(episode.image[first + 1 : first + 1 + config.actions]))
    for one, truth in zip(rollout.floor(world, start), start.true):
        assert one.shape == truth.shape


def test_rollouts_make_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 4, 8)
    train_mle.main(["--world=tiny", *MLE])
    train_mle.main(["--world=tiny", *MLE, "--init_from=tiny-mle", "--name=tiny-mle-more-1"])
    train_rlvr.main(["--world=tiny", *RLVR])
    rollout.main(["--world=tiny", "--actions=6", "--threads=1"])
    printed = capsys.readouterr().out
    results = json.loads(Path("out/tiny-rollout/results.json").read_text())
    assert {len(values) for row in results["rows"].values() for values in row.values()} == {6}
    copied = results["rows"]["copy (the first frame again)"]["mse"]
    world = load_world("tiny")
    images = [to_frames(e.image) for e in world.episodes["test"]]
    by_hand = [
        100 * torch.stack([rewards.mse(i[:1], i[t][None]) for i in images]).mean()
        for t in range(1, 7)
    ]
    assert copied == pytest.approx([float(x) for x in by_hand], rel=1e-5)
    assert "RLVR − MLE continued" in printed and set(results["gains"]) == {"RLVR"}
    with pytest.raises(BadInput, match="fewer --actions"):
        rollout.main(["--world=tiny", "--actions=40", "--threads=1"])


# --------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    "options,sentence",
    [
        (["--factor=3"], "from 4 to 64"),
        (["--factor=5"], "power of two"),
        (["--factor=32"], "cannot be cut"),
        (["--levels=4,x"], "whole numbers"),
        (["--quantizer=pq"], "unknown quantizer"),
        (["--dynamics=4", "--factor=8"], "at least --factor"),
        (["--perceptual=1"], "publish"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_one_sentence(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 1, 0)
    with pytest.raises(BadInput, match=sentence) as error:
        tokenizer_vq.main([*TOKENIZER, "--world=tiny", *options])
    assert "\n" not in str(error.value)


def test_options_of_text_are_refused_and_change_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 1, 0)
    train_mle.main([*MLE, "--world=tiny"])
    before = {path: path.read_bytes() for path in Path("out/tiny-mle").iterdir()}
    start = "--init_from=out/tiny-mle/best.pt"
    of_text = {
        train_mle: ["kind_power=0.5", "permute_ids=0.5", "branches=2", "prompt_loss=1"],
        train_rlvr: ["changed_fraction=0.5", "permute_ids=0.5"],
    }
    for script, options in of_text.items():
        for option in options:
            with pytest.raises(BadInput, match=f"--{option.split('=')[0]} says nothing"):
                script.main(["--world=tiny", start, f"--{option}"])
    assert {path: path.read_bytes() for path in Path("out/tiny-mle").iterdir()} == before
    assert not Path("out/tiny-rlvr").exists()
    with pytest.raises(BadInput, match="no metric 'lpips'.*--lpips_weights"):
        train_rlvr.main(["--world=tiny", "--reward=mae+lpips"])


def test_a_world_that_does_not_fit_together_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 1, 0)
    path = tmp_path / "tiny/meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "horizon": 4}))
    with pytest.raises(BadInput, match="dynamics"):
        load_world("tiny")
    path.write_text(json.dumps({**meta, "context_frames": 30}))
    with pytest.raises(BadInput, match="frames"):
        load_world("tiny")
    path.write_text(json.dumps({key: meta[key] for key in ("form", "domain", "reward")}))
    with pytest.raises(BadInput, match="meta.json is damaged"):
        load_world("tiny")
    path.write_text(json.dumps(meta))
    (tmp_path / "out/tiny-tokenizer/best.pt").unlink()
    with pytest.raises(BadInput, match="python tokenizer_vq.py"):
        load_world("tiny")


def test_ssim_of_the_decoded_truth_agrees_with_the_metric(world):
    batch = world.batch("val", [2])
    truth = batch.response[:, None]
    frames = world.decode(batch, truth)[0, 0]
    _, true = world.truth("val", [2])
    expected = rewards.ssim(frames, true[0]).mean().item()
    assert world.score(batch, truth, ["ssim"])["ssim"].item() == pytest.approx(expected, abs=1e-5)
