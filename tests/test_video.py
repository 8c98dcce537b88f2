"""Tokenizer and video world: ids and frames, the order of frames and actions, forced tokens, metrics of decoded frames, bad input."""
import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
from model import Model, ModelConfig
from tokenizer_vq import EMA, FSQ, Tokenizer, TokenizerConfig, fingerprint, to_frames


def an_episode(rng, frames=10, size=16, cell=1):
    """A white square of 4x4 pixels on a coloured ground; action[t] = (dx, dy) in cells moves it from image[t] to image[t + 1]."""
    ground = rng.integers(0, 120, 3) if cell == 1 else np.array([60, 60, 60])
    images, actions, x, y = [], [], cell * int(rng.integers(0, 12 // cell + 1)), cell * int(rng.integers(0, 12 // cell + 1))
    for _ in range(frames):
        image = np.broadcast_to(ground, (size, size, 3)).astype(np.uint8).copy()
        image[y:y + 4, x:x + 4] = 255
        dx, dy = (int(np.clip(place + cell * rng.integers(-3, 4), 0, 12) - place) for place in (x, y))
        images.append(image)
        actions.append([dx / cell, dy / cell])
        x, y = x + dx, y + dy
    return np.stack(images), np.array(actions, dtype=np.float32)


def make_world(folder, name, horizon, dynamics, episodes=(6, 2, 2), cell=1):
    """A folder of episodes under folder/name and an untrained tokenizer under folder/out."""
    rng = np.random.default_rng(0)
    for split, n in zip(("train", "val", "test"), episodes):
        (folder / name / split).mkdir(parents=True)
        for i in range(n):
            write_episode(folder / name / split / f"{i:04d}.npz", *an_episode(rng, cell=cell))
    (folder / name / "meta.json").write_text(json.dumps({
        "domain": "video", "context_frames": 2, "horizon": horizon, "reward": "mae+0.5*ssim", "action_low": [-3, -3], "action_high": [3, 3]}))
    torch.manual_seed(0)
    config = TokenizerConfig(16, 16, 4, dynamics, channels=8, levels="4,4,4")
    tokenizer = Tokenizer(config)
    save_checkpoint(folder / f"out/{name}-tokenizer/best.pt", {"model": tokenizer.state_dict(), "model_config": asdict(config), "stage": "tokenizer"})
    return tokenizer


@pytest.fixture(params=["single", "multi"])
def world(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", *((1, 0) if request.param == "single" else (4, 8)))
    return load_world("tiny")


# ---------------------------------------------------------------------------------------------------------------------
# Quantizers and tokenizer


@pytest.mark.parametrize("levels", [[7, 5, 5, 5, 5], [8, 6, 5], [2, 3]])
def test_fsq_ids_and_vectors_are_one_to_one(levels):
    quantizer = FSQ(levels)
    ids = torch.arange(quantizer.codes)
    vectors = quantizer.lookup(ids)
    assert len({tuple(v.tolist()) for v in vectors}) == quantizer.codes == np.prod(levels)
    z = 3 * torch.randn(5000, len(levels))
    quantized, found, _ = quantizer(z)
    assert (quantizer.lookup(found) - quantized).abs().max() < 1e-6 and 0 <= found.min() and found.max() < quantizer.codes
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
    assert torch.equal(ids, distance.argmin(1)) and loss.item() == pytest.approx(distance.min(1).values.mean().item() / 3, rel=1e-5)
    quantizer.codebook += 100  # all dead but one
    quantizer.total += 100
    quantizer.train()
    for _ in range(400):
        quantizer(torch.randn(200, 3))
    assert len(quantizer(z)[1].unique()) > 12


@pytest.mark.parametrize("quantizer", ["fsq", "ema"])
def test_ids_decode_to_what_the_training_pass_made(quantizer):
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(16, 24, 4, 8, channels=8, levels="4,4", codes=32, quantizer=quantizer)).eval()
    frames = torch.rand(3, 1 + 2, 3, 16, 24)
    made, _, ids, dynamics = tokenizer(frames)
    assert made.shape == frames.shape and ids.shape == (3, 24) and dynamics.shape == (6, 6)
    assert torch.equal(tokenizer.encode(frames[:, 0]), ids)
    assert torch.allclose(tokenizer.decode(ids), made[:, 0], atol=1e-5)
    assert torch.equal(tokenizer.encode_dynamics(frames[:, 1:], ids).flatten(0, 1), dynamics)
    assert torch.allclose(tokenizer.decode_dynamics(dynamics.view(3, 2, 6), ids), made[:, 1:], atol=1e-5)
    alone = tokenizer.decode_dynamics(dynamics.view(3, 2, 6)[1:2, 1:], ids[1:2])  # neither batch mates nor other frames matter
    assert torch.allclose(alone[0, 0], made[1, 2], atol=1e-5)


@pytest.mark.parametrize("new", [0, 1])
def test_pixels_that_are_not_new_are_the_context_frames(new):
    """With the share of new pixels forced to 0 a later frame is its context frame, whatever its tokens say; with 1 nothing of it is left."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(16, 16, 4, 8, channels=8, levels="4,4,4")).eval()
    ids, other = torch.randint(64, (2, 3, 4)), torch.randint(64, (2, 16))  # [N, T, m], [N, tokens]
    last = tokenizer.dynamics_decoder.up[-1]
    with torch.no_grad():
        last.weight[12:] = 0  # the fourth channel of each of the 2x2 pixels
        last.bias[12:] = 60.0 * new - 30
        made = tokenizer.decode_dynamics(ids, other)
        assert made.shape == (2, 3, 3, 16, 16)
        if not new:
            assert torch.allclose(made, tokenizer.decode(other)[:, None].expand_as(made), atol=1e-6)
        else:
            assert (made - tokenizer.decode(other)[:, None]).abs().mean() > 0.01
            assert (made[:, 0] - made[:, 1]).abs().max() > 1e-4  # the frames are drawn from their own tokens


def test_the_tokenizer_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 4, 8, cell=4)
    tokenizer_vq.main(["--world=tiny", "--channels=16", "--levels=4,4,4,4", "--factor=4", "--dynamics=8", "--steps=450", "--seconds=0", "--batch_size=8",
                       "--eval_every=150", "--warmup=5"])
    rows = [json.loads(line) for line in (tmp_path / "out/tiny-tokenizer/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["val_psnr"] > 20 and rows[-1]["val_psnr"] > rows[0]["val_psnr"] and rows[-1]["val_dynamics_psnr"] > 14
    assert 0 < rows[-1]["val_codebook"] <= 1 <= rows[-1]["val_perplexity"] <= 256
    picture = Image.open(tmp_path / "out/tiny-tokenizer/reconstruction.png")
    assert picture.width > picture.height / 4


def test_a_tokenizer_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 1, 0)
    base = ["--preset=smoke", "--world=tiny", "--factor=4", "--eval_every=2"]
    tokenizer_vq.main([*base, "--name=whole", "--steps=6"])
    save = tokenizer_vq.save_checkpoint

    def save_and_stop(path, checkpoint, keep):
        save(path, checkpoint, keep)
        if path.name == "last.pt" and checkpoint["progress"][0] == 4:
            raise KeyboardInterrupt
    monkeypatch.setattr(tokenizer_vq, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        tokenizer_vq.main([*base, "--name=parts", "--steps=6"])
    monkeypatch.setattr(tokenizer_vq, "save_checkpoint", save)
    tokenizer_vq.main([*base, "--name=parts", "--steps=6", "--resume"])
    whole, parts = (torch.load(tmp_path / f"out/{n}/last.pt", weights_only=True)["model"] for n in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


# ---------------------------------------------------------------------------------------------------------------------
# The world


def test_frames_and_actions_stand_in_the_right_order(world):
    """Trap 22: the action in front of a frame is the one that leads to it."""
    for index in (0, 3):
        e, start, context = world.records["train"][index]
        image, action = world.episodes["train"][e]
        batch = world.batch("train", [index])
        bins = ((action + 3) / 6 * 256).astype(int).clip(0, 255) + world.action_base
        prompt, response = batch.prompt[0].numpy(), batch.response[0].numpy()
        if world.horizon == 1:
            expected = [np.concatenate([world.tokenizer.encode(to_frames(image[t:t + 1]))[0].numpy(), bins[t]]) for t in (start, start + 1)]
            assert np.array_equal(prompt, np.concatenate(expected))
            assert np.array_equal(response, world.tokenizer.encode(to_frames(image[start + 2:start + 3]))[0].numpy())
        else:
            ids = world.tokenizer.encode(to_frames(image[context:context + 1]))
            dynamics = world.tokenizer.encode_dynamics(to_frames(image[None, start:start + 5]), ids)[0].numpy()
            assert np.array_equal(prompt, np.concatenate([ids[0].numpy() + 64, dynamics[0], bins[start]]))
            assert np.array_equal(response, np.concatenate([np.concatenate([dynamics[t], bins[start + t]]) for t in range(1, 5)]))
            assert start - 15 <= context <= start


def test_decoded_truth_is_the_tokenizer_floor_in_order(world):
    """Frames survive the way through tokens: decoding the true response gives the reconstructions of the true frames, each in its place."""
    batch = world.batch("val", [0, 5, 7])
    frames = world.decode(batch, batch.response[:, None])[:, 0]
    last, true = world.truth("val", [0, 5, 7])
    if world.horizon == 1:
        expected = world.tokenizer.decode(world.tokenizer.encode(true[:, 0]))[:, None]
    else:
        image = [world.episodes["val"][world.records["val"][i][0]][0] for i in (0, 5, 7)]
        context = world.tokenizer.encode(to_frames(np.stack([im[world.records["val"][i][2]] for im, i in zip(image, (0, 5, 7))])))
        expected = world.tokenizer.decode_dynamics(world.tokenizer.encode_dynamics(true, context), context)
    assert torch.allclose(frames, expected, atol=1e-4)
    scores = world.score(batch, batch.response[:, None].expand(-1, 2, -1), ["mse", "psnr", "ssim", "mae_last"])
    for n in range(3):
        by_hand = np.mean([((frames[n, f] - true[n, f]) ** 2).mean().item() for f in range(world.horizon)])
        assert scores["mse"][n].tolist() == pytest.approx([by_hand, by_hand], rel=1e-4)
        assert scores["mae_last"][n, 0].item() == pytest.approx((frames[n, -1] - true[n, -1]).abs().mean().item(), rel=1e-4)
    floor = dict(world.references("val", [0, 5, 7]))["tokenizer floor"]
    assert torch.allclose(floor["mse"], scores["mse"][:, :1])


def test_sampled_ids_are_legal_and_actions_are_the_true_ones(world):
    """Trap 23, and 4: forced tokens come back as they were given, carry no loss, and everything else is a code of the tokenizer."""
    torch.manual_seed(0)
    model = Model(ModelConfig(world.vocab_size, world.block_size, 1, 2, 2, 16))
    batch = world.batch("train", [0, 1])
    rollout = model.sample(batch.prompt, batch.prompt_len, 3, world.response_len, None, world.legal(), batch.forced)
    is_action = ~batch.response_mask[:, None].expand_as(rollout.tokens)
    assert (rollout.tokens[~is_action] < world.tokenizer.codes).all()
    assert torch.equal(rollout.tokens[is_action], batch.response[:, None].expand_as(rollout.tokens)[is_action])
    assert int((~is_action).sum()) == 2 * 3 * world.horizon * world.predicted
    logprob, _ = model(batch.prompt, batch.prompt_len, rollout.tokens, ~is_action, world.legal())
    assert torch.allclose(logprob[~is_action], rollout.logprob[~is_action], atol=1e-4)
    logprob.sum().backward()
    assert model.embed.weight.grad is not None


def test_forced_tokens_get_no_gradient_in_the_update(tmp_path, monkeypatch):
    """Trap 23: the experience of a rollout has its mask off exactly where actions were put in."""
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 4, 8)
    world = load_world("tiny")
    model = Model(ModelConfig(world.vocab_size, world.block_size, 1, 2, 2, 16))
    config = train_rlvr.Config(group=3)
    experience, *_ = train_rlvr.rollout(model, world, [0, 1], [(1.0, "mae")], config, nullcontext(), torch.Generator().manual_seed(0), None)
    place = torch.arange(world.response_len) % (world.m + world.A)
    assert torch.equal(experience.mask, (place < world.m).expand_as(experience.mask))
    assert (experience.rewards <= 0).all()  # an error counts as minus
    config = train_rlvr.Config(group=3, supervision="process")
    of_frames, *_ = train_rlvr.rollout(model, world, [0, 1], [(1.0, "mae")], config, nullcontext(), torch.Generator().manual_seed(0), None)
    assert torch.allclose(of_frames.rewards, experience.rewards, atol=1e-6)
    each = world.score(world.batch("train", [0, 1]), experience.tokens, ["mae", "repetition"], per_frame=True)
    assert torch.allclose(-each["mae"].mean(-1), experience.rewards, atol=1e-6) and each["repetition"].shape == (2, 3, world.horizon)
    ends, weight = world.score(world.batch("train", [0, 1]), experience.tokens, ["mae_last", "mae_discount"]), 0.9 ** torch.arange(world.horizon)
    assert torch.allclose(ends["mae_last"], each["mae"][..., -1]) and torch.allclose(ends["mae_discount"], (each["mae"] * weight).sum(-1) / weight.sum())
    whole = train_rlvr.group_advantages(-each["mae"].sum(-1))
    assert torch.allclose(of_frames.advantages[..., 0], whole, atol=1e-3)  # the first frame answers for all of them
    assert (world.frame_ids(world.frame_of_token()) == torch.arange(world.horizon)[:, None]).all()
    last = train_rlvr.group_advantages(-each["mae"][..., -1])
    assert torch.allclose(of_frames.advantages[..., -1], last, atol=1e-5) and not torch.allclose(last, whole, atol=0.05)


def test_process_supervision_needs_frames(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 4, 8)
    make_world(tmp_path, "single", 1, 0)
    for world, reward in (("tiny", "mae_last"), ("tiny", "mae+last_repeats"), ("single", "mae")):
        with pytest.raises(BadInput, match="--supervision=process needs"):
            train_rlvr.main([f"--world={world}", f"--reward={reward}", "--supervision=process"])


def test_copying_is_the_copy_row_and_repetition_is_counted(world):
    batch = world.batch("val", [0, 5])
    again = batch.response.clone()
    last = world.last_ids(batch)
    if world.horizon == 1:
        again = last.clone()
    else:
        again.view(2, world.horizon, -1)[:, :, :world.m] = last[:, None]
    scores = world.score(batch, again[:, None], ["repetition"] + ["last_repeats"] * (world.horizon > 1))
    assert all((value == 1).all() for value in scores.values())
    mixed = again.clone()  # repeats in all frames but the last
    if world.horizon > 1:
        mixed[:, -(world.m + world.A):] = batch.response[:, -(world.m + world.A):] - 1
    scores = world.score(batch, mixed[:, None], ["repetition"] + ["last_repeats"] * (world.horizon > 1))
    ids = world.frame_ids(mixed)
    by_hand = [[torch.equal(ids[n, f], ids[n, f - 1] if f else last[n]) for f in range(world.horizon)] for n in range(2)]
    assert scores["repetition"][:, 0].tolist() == pytest.approx([np.mean(same) for same in by_hand])
    if world.horizon > 1:
        assert scores["last_repeats"][:, 0].tolist() == [float(same[-1]) for same in by_hand] == [0, 0]
    copy = dict(world.references("val", [0, 5]))["copy (last frame again)"]
    last_frame, truth = world.truth("val", [0, 5])
    assert copy["mse"][:, 0].tolist() == pytest.approx(((truth - last_frame[:, None]) ** 2).mean((1, 2, 3, 4)).tolist(), rel=1e-4)


def test_moving_pixels_are_those_that_differ_from_the_last_frame(world):
    batch = world.batch("val", [4])
    last, true = world.truth("val", [4])
    predicted = torch.rand(1, 2, *true.shape[1:])
    scores = world.frame_scores(predicted, last, true, ["mae_moving", "mae"])
    for g in range(2):
        by_hand = []
        for f in range(true.size(1)):
            moves = ((true[0, f] - last[0]).abs() > 8 / 255).any(0)
            by_hand.append((predicted[0, g, f] - true[0, f]).abs()[:, moves].mean().item() if moves.any() else 0.0)
        assert scores["mae_moving"][0, g].mean().item() == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert world.metrics[:4] == ("mae", "mse", "psnr", "ssim") and batch.split == "val"


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
    save_checkpoint(tmp_path / "out/tiny-tokenizer/best.pt",
                    {"model": tokenizer.state_dict(), "model_config": asdict(tokenizer.config), "stage": "tokenizer"})
    second = load_world("tiny")
    assert second.fingerprint != first.fingerprint and not torch.equal(second.tokens["train"], first.tokens["train"])
    assert len(list((tmp_path / "tiny").glob("tokens-*.npz"))) == 1
    next((tmp_path / "tiny").glob("tokens-*.npz")).write_bytes(b"torn")
    assert torch.equal(load_world("tiny").tokens["train"], second.tokens["train"])
    assert fingerprint(second.tokenizer) in second.fingerprint


def test_action_bins_are_uniform_over_the_training_range(world):
    bins = world.action_ids(np.array([[-3, 3], [0, -2.99], [-99, 99]], dtype=np.float32)) - world.action_base
    assert bins.tolist() == [[0, 255], [128, 0], [0, 255]]


# ---------------------------------------------------------------------------------------------------------------------
# The scripts


@pytest.mark.parametrize("horizon,dynamics", [(1, 0), (3, 8)])
def test_the_chain_runs_through(tmp_path, monkeypatch, capsys, horizon, dynamics):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", horizon, dynamics)
    train_mle.main(["--preset=smoke", "--world=tiny"])
    train_rlvr.main(["--preset=smoke", "--world=tiny", "--reward=mae+0.5*ssim+repetition", "--choose=mae"])
    train_rlvr.main(["--preset=smoke", "--world=tiny", "--reward=mse_last+psnr_discount", "--name=other", "--steps=1"])
    sample.main(["--preset=smoke", "--world=tiny", "--eval"])
    printed = capsys.readouterr().out
    for row in ("copy (last frame again)", "tokenizer floor", "MLE, T=1", "RLVR, T=1"):
        assert f"| {row}" in printed
    assert "psnr_moving" in printed and "best of N" in printed
    sample.main(["--preset=smoke", "--world=tiny", "--number=1"])
    image, movie = Image.open("out/tiny-results/test-0.png"), Image.open("out/tiny-results/test-0.gif")
    columns = 3 if horizon > 1 else 8
    assert movie.n_frames == columns and image.width == 64 + columns * 128 and image.height == 5 * 128


@pytest.mark.parametrize("preset", ["paper-single", "paper-multi"])
def test_the_papers_shapes_start(preset, tmp_path, monkeypatch, capsys):
    """256x320 frames, four of context or seven predicted, 13 action numbers, the paper's width; one of its twelve layers, and no LPIPS weights."""
    monkeypatch.chdir(tmp_path)
    prepare.main(["--preset=paper", "--out=paper", "--episodes=1", "--frames=8"])
    few = [f"--preset={preset}", "--steps=1", "--eval_every=1"]
    tokenizer_vq.main([*few, "--perceptual=0", "--batch_size=1", "--eval_frames=1", "--channels=8", "--depth=1"])
    train_mle.main([*few, "--n_layer=1", "--batch_size=1", "--eval_records=1"])
    train_rlvr.main([*few, "--reward=mae+0.5*ssim", "--prompts=4", "--group=2", "--eval_records=1"])
    world = load_world("paper" if preset == "paper-single" else "paper-multi")
    frames = world.decode(world.batch("val", [0]), world.batch("val", [0]).response[:, None])
    if preset == "paper-single":  # PAPER.md, "Sequences": 4 x (320 + 13), then 320
        assert (world.max_prompt, world.response_len) == (1332, 320) and frames.shape == (1, 1, 1, 3, 256, 320)
    else:                         # 1280 context tokens; each later frame 80 dynamics tokens and its action
        assert (world.max_prompt, world.response_len) == (1280 + 93, 7 * 93) and frames.shape == (1, 1, 7, 3, 256, 320)
    assert "done: 1 steps" in capsys.readouterr().out and Path(f"out/{world.folder.name}-rlvr/best.pt").is_file()


def test_shuffled_actions_make_prediction_worse(tmp_path, monkeypatch):
    """Trap 22 end to end: a model that learned from the actions predicts worse when they are taken from other steps."""
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 1, 0, episodes=(40, 8, 2), cell=4)
    tokenizer_vq.main(["--world=tiny", "--channels=8", "--levels=3,3,3", "--factor=4", "--steps=150", "--seconds=0", "--batch_size=16", "--eval_every=150"])
    train_mle.main(["--world=tiny", "--n_layer=2", "--n_head=2", "--n_kv_head=2", "--n_embd=64", "--batch_size=32", "--steps=150", "--eval_every=150",
                    "--eval_records=8", "--lr=0.02"])
    world = load_world("tiny")
    model, _ = sample.load_model("out/tiny-mle/best.pt", world, "cpu")
    batch = world.batch("val", list(range(len(world.records["val"]))))

    def loss(prompt):
        return -model(prompt, batch.prompt_len, batch.response[:, None], batch.response_mask[:, None], world.legal())[0].mean().item()
    shuffled = batch.prompt.clone()
    actions = shuffled.view(len(shuffled), 2, -1)[:, 1, world.N:]
    shuffled.view(len(shuffled), 2, -1)[:, 1, world.N:] = actions.roll(3, 0)
    with torch.no_grad():
        assert loss(shuffled) > 2 * loss(batch.prompt)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_bad_input_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path, "tiny", 1, 0)
    for options, sentence in ((["--factor=3"], "power of two"), (["--factor=32"], "cannot be cut"), (["--levels=4,x"], "whole numbers"),
                              (["--quantizer=pq"], "unknown quantizer"), (["--dynamics=4", "--factor=8"], "at least --factor"),
                              (["--perceptual=1"], "publish")):
        with pytest.raises(BadInput, match=sentence):
            tokenizer_vq.main(["--preset=smoke", "--world=tiny", *options])
    train_mle.main(["--preset=smoke", "--world=tiny"])
    before = {path: path.read_bytes() for path in Path("out/tiny-mle").iterdir()}
    for script, option in ((train_mle, "power=0.5"), (train_mle, "renumber=0.5"), (train_mle, "branches=2"), (train_mle, "prompt_loss=1"),
                           (train_rlvr, "changed=0.5"), (train_rlvr, "renumber=0.5")):
        with pytest.raises(BadInput, match=f"--{option.split('=')[0]} says nothing"):
            script.main(["--preset=smoke", "--world=tiny", "--init_from=out/tiny-mle/best.pt", f"--{option}"])
    assert {path: path.read_bytes() for path in Path("out/tiny-mle").iterdir()} == before and not Path("out/tiny-rlvr").exists()
    with pytest.raises(BadInput, match="no metric 'lpips'.*--lpips_weights"):
        train_rlvr.main(["--preset=smoke", "--world=tiny", "--reward=mae+lpips"])
    meta = json.loads((tmp_path / "tiny/meta.json").read_text())
    (tmp_path / "tiny/meta.json").write_text(json.dumps({**meta, "horizon": 4}))
    with pytest.raises(BadInput, match="dynamics"):
        load_world("tiny")
    (tmp_path / "tiny/meta.json").write_text(json.dumps({**meta, "context_frames": 30}))
    with pytest.raises(BadInput, match="frames"):
        load_world("tiny")
    (tmp_path / "out/tiny-tokenizer/best.pt").unlink()
    with pytest.raises(BadInput, match="python tokenizer_vq.py"):
        load_world("tiny")


def test_ssim_of_the_decoded_truth_agrees_with_the_metric(world):
    batch = world.batch("val", [2])
    frames = world.decode(batch, batch.response[:, None])[0, 0]
    _, true = world.truth("val", [2])
    expected = rewards.ssim(frames, true[0]).mean().item()
    assert world.score(batch, batch.response[:, None], ["ssim"])["ssim"].item() == pytest.approx(expected, abs=1e-5)
