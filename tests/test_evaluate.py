"""
What the results table says beyond plain means: votes, medians, expectations, intervals, sentences;
each against brute force, or against numbers worked out by hand.
"""

import copy
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch

import data.video
import evaluate
import rewards
import train_mle
from common import BadInput
from data import load_world
from data.text import write_text_world
from data.textgame import prepare
from data.world import Metric, VideoTask, load_task
from evaluate import Many, cell, chosen_rows, column_mean, interval, verdict
from model import Model, ModelConfig
from tests.test_video import make_world

INF = float("inf")


def text_world(folder, **more):
    """A world of the domain own: 24 prompts, answers yes, no or maybe; more: keys of val, test."""
    said = ["yes", "no", "maybe"]
    rows = [{"prompt": f"{i}?", "response": said[i % 3]} for i in range(24)]
    judged = [{**row, **more} for row in rows]
    splits = {"train": rows[:12], "val": judged[12:16], "test": judged[16:]}
    write_text_world(folder, "own", load_task("own"), splits, vocab_size=260)
    return load_world(str(folder))


def spell(world, rows):
    """Lists of texts (None: an answer that never ends) -> tokens [B, G, R]."""
    ids = [[t and world.bpe.encode_ordinary(t) for t in row] for row in rows]
    longest = 1 + max(len(i) for row in ids for i in row if i is not None)
    tokens = torch.full((len(rows), len(rows[0]), longest), world.eos_id)
    for b, row in enumerate(ids):
        for g, own in enumerate(row):
            if own is None:
                tokens[b, g] = 0
            else:
                tokens[b, g, : len(own)] = torch.tensor(own)
    return tokens


# --------------------------------------------------------------------------------------------------
# Votes over texts


def test_answers_agree_as_often_as_they_are_said(tmp_path):
    """Guards against a vote that counts an answer itself, or answers without an end."""
    world = text_world(tmp_path / "own")
    rows = [["yes", "no", "yes", None, "yes", "maybe"], [None, None, "no", "maybe", None, "no"]]
    tokens = spell(world, rows)
    found = world.agreement(world.batch("val", [0, 1]), tokens, world.terms("exact_match"))
    for row, values in zip(rows, found.tolist()):
        count = Counter(row)
        expected = [-INF if text is None else count[text] - 1 for text in row]
        assert [5 * value for value in values] == pytest.approx(expected)


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    folder = tmp_path_factory.mktemp("games") / "textgame"
    prepare.main(["--instances=1", "--held_out=1", f"--out={folder}", "--vocab_size=400"])
    return load_world(str(folder))


@pytest.mark.parametrize("kind", ["task", "binary"])
def test_game_answers_are_scored_against_the_state_that_another_leads_to(games, kind):
    """Guards against votes that compare with the true state, or that malformed answers can win."""
    records = games.records["train"]
    by_state = {}
    for i, record in enumerate(records):
        by_state.setdefault(record["state"], {})[record["response"]] = i
    distinct = max(by_state.values(), key=len)
    index, *_ = distinct.values()
    assert len(distinct) > 3
    said = [*distinct, "gibberish", next(iter(distinct)), None, "gibberish", "gibberish"]
    batch = games.batch("train", [index])
    terms = games.terms(f"strict_{kind}")
    found = games.agreement(batch, spell(games, [said]), terms)[0].tolist()
    state = games.shared["states"][records[index]["truth"]["state"]]
    led_to = []
    for text in said:
        if text in distinct:
            difference = records[distinct[text]]["truth"]["difference"]
            led_to.append(rewards.apply_difference(state, difference))
        else:
            led_to.append(None)
    for i, own in enumerate(led_to):
        others = [other for j, other in enumerate(led_to) if j != i and other is not None]
        total = sum(rewards.strict_text_game(own, state, other, kind) for other in others)
        expected = -INF if own is None else total / (len(said) - 1)
        assert found[i] == pytest.approx(expected, rel=1e-5), said[i]
    # three equal ones of the malformed do not even agree with each other
    assert found[said.index("gibberish")] == -INF < max(found)


def many_of(agreement, logprob, reward):
    """Many of rows written by hand; the score "number" of an answer is its place."""
    agreement, logprob, reward = (torch.tensor(values) for values in (agreement, logprob, reward))
    number = torch.arange(float(reward.size(1))).expand_as(reward)
    return Many({"number": number}, reward, logprob, agreement, None)


def test_one_answer_of_many_is_the_right_one():
    """Guards against ties that the first sample wins, and unfinished answers that win anything."""
    many = many_of(
        agreement=[[0.2, 0.6, 0.6, 0.1], [-INF, -INF, -INF, 0.0], [-0.5, -0.5, -INF, -0.7]],
        logprob=[[-1.0, -5.0, -4.0, -9.0], [-INF, -INF, -INF, -80.0], [-3.0, -2.0, -INF, -1.0]],
        reward=[[0.0, 0.1, 0.2, 0.3], [0.0, 0.0, 0.0, 1.0], [-1.0, -2.0, -9.0, -3.0]],
    )
    rows = chosen_rows(many)
    places = {label.partition(" ")[0]: row["number"][:, 0].tolist() for label, row in rows.items()}
    assert places == {"likeliest": [0, 3, 3], "vote": [2, 3, 1], "best": [3, 3, 0]}
    assert set(rows) == {"likeliest of 4", "vote of 4", "best of 4 (an oracle's choice)"}
    middle = {"number": torch.tensor([[7.0]])}
    assert chosen_rows(many._replace(median=middle))["median of 4"] is middle


def test_an_unfinished_majority_loses_to_the_one_that_ended(tmp_path):
    """Guards against equal answers without an end that outvote the only one that has one."""
    world = text_world(tmp_path / "own")
    batch = world.batch("val", [0])
    tokens = spell(world, [[None, None, None, "no", None]])
    agreement = world.agreement(batch, tokens, world.terms("exact_match"))
    logprob = torch.tensor([[-INF, -INF, -INF, -99.0, -INF]])
    many = Many({"number": torch.arange(5.0)[None]}, torch.zeros(1, 5), logprob, agreement, None)
    rows = chosen_rows(many)
    assert rows["vote of 5"]["number"].item() == rows["likeliest of 5"]["number"].item() == 3


# --------------------------------------------------------------------------------------------------
# Votes and medians over frames


@pytest.fixture(scope="module", params=["single", "multi"])
def videos(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_world(folder, "tiny", *((1, 0) if request.param == "single" else (3, 8)))
        world = load_world("tiny")
        # a metric of the recorded state: how far its first number is from the frames' brightness
        toy = Metric(lambda frames, _, state: (frames.mean((3, 4, 5)) - state[:, None, :, 0]).abs())
        world.task = VideoTask(metrics={"toy": toy})
        world.metrics["toy"] = toy
        yield world


def some_answers(world, G):
    """(batch, tokens [3, G, R], their frames as numpy) of random codes, each prompt's its own."""
    batch = world.batch("val", [0, 4, 6])
    draws = torch.Generator().manual_seed(G)
    shape = 3, G, world.response_len
    tokens = torch.randint(0, world.tokenizer.codes, shape, generator=draws)
    return batch, tokens, world.decode(batch, tokens).numpy()


def pixel_reward(a, b, terms):
    """The reward of frames a [F, 3, H, W] if b were the true ones, by numpy and rewards.ssim."""
    each = {
        "mae": -np.abs(a - b).mean(),
        "mse": -((a - b) ** 2).mean(),
        "mae_last": -np.abs(a[-1] - b[-1]).mean(),
        "ssim": rewards.ssim(torch.tensor(a), torch.tensor(b)).mean().item(),
    }
    return sum(weight * each[name] for weight, name in terms)


@pytest.mark.parametrize("G", [1, 2, 5])
@pytest.mark.parametrize(
    "reward,counts",
    [
        ("mae", [(1, "mae")]),
        ("mae+0.5*ssim", [(1, "mae"), (0.5, "ssim")]),
        ("repetition+3*mae_last+toy", [(3, "mae_last")]),
        ("repetition+2*toy", [(1, "mae"), (0.5, "ssim")]),
    ],
)
def test_frames_agree_as_every_pair_of_them_does(videos, monkeypatch, reward, counts, G):
    """Guards against frames compared with themselves, with the truth or with another prompt's."""
    batch, tokens, frames = some_answers(videos, G)
    expected = np.zeros((3, G))
    for b in range(3):
        for i in range(G):
            pairs = [(frames[b, i], frames[b, j]) for j in range(G) if j != i]
            expected[b, i] = np.mean([pixel_reward(*pair, counts) for pair in pairs] or [0])
    # prompts together, and each on its own
    for pieces in (10**6, 1):
        monkeypatch.setitem(data.video.FRAMES_AT_ONCE, "cpu", pieces)
        found = videos.agreement(batch, tokens, videos.terms(reward)).numpy()
        assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("G", [1, 2, 3, 4])
def test_the_median_is_that_of_each_pixel(videos, monkeypatch, G):
    """Guards against a median that is the darker of two middle pixels, or of some frames only."""
    batch, tokens, frames = some_answers(videos, G)
    _, true = videos.truth("val", batch.indices)
    state = videos.true_state("val", batch.indices).numpy()
    middle = np.median(frames, axis=1).astype(np.float32)  # [B, F, 3, H, W]
    expected = {name: [] for name in ("mae", "mse", "ssim", "toy")}
    for b in range(3):
        for name in ("mae", "mse", "ssim"):
            sign = videos.better(name)
            expected[name].append(sign * pixel_reward(middle[b], true[b].numpy(), [(1, name)]))
        bright = middle[b].mean((1, 2, 3))
        expected["toy"].append(np.abs(bright - state[b, :, 0]).mean())
    monkeypatch.setitem(data.video.FRAMES_AT_ONCE, "cpu", 1)
    found = videos.median(batch, tokens, list(videos.metrics))
    assert set(found) == set(videos.metrics)
    for name, values in expected.items():
        assert found[name][:, 0].tolist() == pytest.approx(values, abs=2e-5), name


def test_a_median_has_no_repetition_and_the_table_says_so(videos):
    """Guards against a zero where nothing can be said: a picture without tokens repeats none."""
    batch, tokens, _ = some_answers(videos, 3)
    found = videos.median(batch, tokens, list(videos.metrics))
    for name in found:
        nothing = name in ("repetition", "last_repeats")
        assert found[name].shape == (3, 1) and bool(found[name].isnan().all()) == nothing
        assert (cell(column_mean(torch.ones(3), found[name]), 100) == "-") == nothing


def check_many(world, model, indices, own_tokens):
    """sample_many against the same draws one by one; own_tokens(batch): which the model chose."""
    config = evaluate.Config(best_of=4, split="test", seed=3)
    many = evaluate.sample_many(model, world, indices, config)
    drawn = torch.Generator().manual_seed(3)
    terms = world.terms(world.reward)
    given = model, world, "test", indices, evaluate.Decoding(), 4, drawn
    for rows, batch, rollout in evaluate.rollouts(*given):
        mask = rollout.mask() & own_tokens(batch)
        answers = batch.prompt, batch.prompt_len, rollout.tokens, mask, batch.allowed_ids
        with torch.no_grad():
            logprob = (model(*answers)[0] * mask).sum(-1)
        if batch.eos_id is not None:
            assert 0 < rollout.ended.float().mean() < 1
            logprob[~rollout.ended] = -INF
        assert torch.allclose(many.logprob[rows], logprob, atol=1e-3)
        scores = world.score(batch, rollout.tokens, list(world.metrics))
        assert all(torch.equal(many.scores[name][rows], scores[name]) for name in scores)
        assert torch.allclose(many.reward[rows], world.weighted_sum(terms, scores))
        assert torch.equal(many.agreement[rows], world.agreement(batch, rollout.tokens, terms))
    return many


def small_model(world):
    torch.manual_seed(0)
    return Model(ModelConfig(world.vocab_size, world.block_size, 1, 2, 2, 16)).eval()


def test_many_pictures_are_told_truly(videos):
    """Guards against the likelihood of given actions in that of an answer, and rows mixed up."""
    frames_only = lambda batch: batch.response_mask[:, None]
    assert check_many(videos, small_model(videos), [5, 0, 9, 2], frames_only).median


def test_many_texts_are_told_truly(tmp_path):
    """Guards against answers that never ended with a likelihood, and rows mixed up by length."""
    world = text_world(tmp_path / "own")
    model = small_model(world)
    said = torch.zeros(world.vocab_size, dtype=torch.bool)
    said[[world.eos_id, *world.bpe.encode_ordinary("yesno")]] = True  # it ends now and then
    batch_of = world.batch

    def batch(*given):
        made = batch_of(*given)
        made.allowed_ids = said.expand(world.response_len, -1)
        return made

    world.batch = batch
    assert check_many(world, model, [5, 0, 7, 2], lambda batch: True).median is None


# --------------------------------------------------------------------------------------------------
# Intervals


def test_a_constant_difference_has_no_interval():
    """Guards against noise that comes from drawing more or less weight, not from the records."""
    weight = np.random.default_rng(1).random(50)
    units = [f"game {i % 7}" for i in range(50)]
    assert interval(np.full(50, -0.3), weight, units) == pytest.approx((-0.3, -0.3, -0.3))


def test_the_interval_of_independent_records_is_the_textbooks():
    """Guards against intervals of another width or place than mean ± 1.96 s / sqrt(n)."""
    values = np.random.default_rng(2).normal(0.05, 0.4, 400)
    mean, low, high = interval(torch.tensor(values), torch.ones(400), list(range(400)))
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std(ddof=1) / 20
    assert mean - low == pytest.approx(half, rel=0.15)
    assert high - mean == pytest.approx(half, rel=0.15)


@pytest.mark.parametrize("k", [2, 9])
def test_copies_of_records_are_no_more_evidence(k):
    """Guards against intervals over records, which shrink by 1 / sqrt(k) with k copies of each."""
    values = np.random.default_rng(3).normal(0.05, 0.4, 60)
    units = [f"visit {n}" for n in range(60)]
    once = interval(values, np.ones(60), units)
    repeated = interval(np.tile(values, k), np.ones(60 * k), units * k)
    assert repeated == pytest.approx(once)
    alone = interval(np.tile(values, k), np.ones(60 * k), range(60 * k))
    assert alone[2] - alone[1] == pytest.approx((once[2] - once[1]) / k**0.5, rel=0.15)


def test_records_of_no_weight_are_as_if_they_were_not_there():
    """Guards against a column "changed" whose interval also feels the records that do not."""
    rng = np.random.default_rng(4)
    values = rng.normal(0.05, 0.4, 300)
    units = np.arange(300) // 3  # two records of each unit count
    weight = (np.arange(300) % 3 > 0).astype(float)
    kept = weight > 0
    subset = interval(values[kept], np.ones(200), units[kept])
    values[~kept] = 1e3 * rng.normal(size=100)
    assert interval(values, weight, units) == pytest.approx(subset)
    # units without any weight: the same but for the luck of the draw
    more = interval(
        np.concatenate([values, 1e3 + values]),
        np.concatenate([weight, np.zeros(300)]),
        np.concatenate([units, 100 + units]),
    )
    assert more[0] == pytest.approx(subset[0])
    assert more[1:] == pytest.approx(subset[1:], abs=0.15 * (subset[2] - subset[1]))


# --------------------------------------------------------------------------------------------------
# Outcomes that could have been


OUTCOMES = [[0.2, "yes"], [0.5, "no"], [0.3, "maybe"]]


def test_an_answer_is_expected_to_be_right_as_often_as_its_outcome_happens(tmp_path):
    """Guards against an expectation that depends on the one outcome that was drawn."""
    world = text_world(tmp_path / "own", outcomes=OUTCOMES)
    assert world.headline == "expected_exact_match"
    texts = ["yes", "no", "maybe", "never", "no", None]
    names = ["expected_exact_match", "exact_match"]
    chance = {text: p for p, text in OUTCOMES}
    for split in ("val", "test"):
        indices = list(range(len(world.records[split])))
        batch = world.batch(split, indices)
        tokens = spell(world, [texts] * len(indices))
        scores = world.score(batch, tokens, names)
        for i in indices:
            drawn = world.records[split][i]["response"]
            expected = [chance.get(text, 0) for text in texts]
            assert scores["expected_exact_match"][i].tolist() == pytest.approx(expected)
            assert scores["exact_match"][i].tolist() == [float(text == drawn) for text in texts]
        rows = dict(world.references(split, indices))
        ceiling = rows["ceiling (the likeliest outcome)"]["expected_exact_match"][:, 0].tolist()
        assert ceiling == pytest.approx([0.5] * len(indices))
    # votes of it are votes of the plain metric
    votes = [world.agreement(batch, tokens, world.terms(name)) for name in names]
    assert torch.equal(*votes)


def test_equal_outcomes_are_one_outcome(tmp_path):
    """Guards against a "ceiling" below what another answer reaches, told twice in the outcomes."""
    told = [[0.4, "yes"], [0.3, "no"], [0.3, "no"]]
    try:
        world = text_world(tmp_path / "own", outcomes=told)
    except BadInput as error:  # refusing them is as good
        assert "outcomes" in str(error)
        return
    no = world.score_texts("test", 0, ["no"], ["expected_exact_match"])[0]["expected_exact_match"]
    ceiling = dict(world.references("test", [0]))["ceiling (the likeliest outcome)"]
    assert no == pytest.approx(0.6) and ceiling["expected_exact_match"].item() >= no - 1e-6


def test_where_a_record_does_not_tell_its_outcomes_the_one_that_happened_counts(tmp_path):
    """Guards against training records, which have no outcomes, being scored 0 by expectation."""
    world = text_world(tmp_path / "own", outcomes=OUTCOMES)
    terms = world.terms("expected_exact_match")
    tokens = spell(world, [["yes", "no"]])
    assert world.compute_reward(world.batch("val", [0]), tokens, terms)[0].tolist() == (
        pytest.approx([0.2, 0.5])
    )
    own = world.records["train"][0]["response"]
    found = world.compute_reward(world.batch("train", [0]), spell(world, [[own, "other"]]), terms)
    assert found[0].tolist() == [1, 0]


def test_a_world_without_outcomes_expects_nothing(tmp_path):
    """Guards against columns and a ceiling that say the same as the plain metric."""
    world = text_world(tmp_path / "own")
    assert list(world.metrics) == ["exact_match", "line_f1"] and world.headline == "exact_match"
    assert not any("ceiling" in label for label, _ in world.references("test", [0]))
    with pytest.raises(BadInput, match="expected_exact_match"):
        world.terms("expected_exact_match")


@pytest.mark.parametrize(
    "outcomes",
    [
        [[0.5, "yes"], [0.4, "no"]],
        [[0.7, "yes"], [0.4, "no"]],
        [[1.5, "yes"], [-0.5, "no"]],
        [[1.0, "yes"], [0.0, "no"]],
        [["1", "yes"]],
        [[1.0, 3]],
        [[1.0]],
        [[0.5, "yes", 1], [0.5, "no", 1]],
        [1.0],
        [],
        {"yes": 1.0},
        "yes",
        None,
        [[float("nan"), "yes"]],
        [[None, "yes"]],
    ],
)
def test_outcomes_that_are_none_get_a_sentence_with_their_line(tmp_path, outcomes):
    """Guards against probabilities that do not sum to 1, and a traceback for another shape."""
    text_world(tmp_path / "own")
    path = tmp_path / "own" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["outcomes"] = outcomes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match=r"test\.jsonl, line 3: 'outcomes'") as error:
        load_world(str(tmp_path / "own"))
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------
# Sentences


@pytest.mark.parametrize(
    "better,difference,sentence",
    [
        (1, (0.04, 0.02, 0.06), "A is ahead of B in m by 4 points (2 to 6)."),
        (1, (-0.04, -0.05, -0.02), "A is behind B in m by 4 points (2 to 5)."),
        (1, (-0.01, -0.03, 0.02), "A is level with B in m: -1 points (-3 to 2)."),
        (-1, (-0.04, -0.05, -0.02), "A is ahead of B in m by 4 points (2 to 5)."),
        (-1, (0.04, 0.02, 0.05), "A is behind B in m by 4 points (2 to 5)."),
        (-1, (-0.01, -0.03, 0.02), "A is level with B in m: 1 points (-2 to 3)."),
        (1, (0.0, 0.0, 0.0), "A is level with B in m: 0 points (0 to 0)."),
    ],
)
def test_sentences_say_who_is_ahead(better, difference, sentence):
    """Guards against an error that is smaller and called worse, and ends of the wrong order."""
    metric = Metric(None, better=better)
    assert verdict("A", "B", "m", {"m": difference}, metric).replace("-0", "0") == sentence
    metric.scale = 1
    said = verdict("A", "B", "m", {"m": difference}, metric)
    place = sentence.partition(" in m")[0]
    low, high = map(float, re.search(r"\((\S+) to (\S+)\)", said).groups())
    assert said.startswith(place) and "points" not in said and low <= high


def test_differences_are_rlvrs_less_its_rivals(tmp_path):
    """Guards against a sign the wrong way round, and a row that is compared with itself."""
    world = text_world(tmp_path / "own")
    indices = list(range(8))
    draws = torch.Generator().manual_seed(0)
    names = list(world.metrics)
    mle = {name: torch.rand(8, 3, generator=draws) / 2 for name in names}
    ahead = {name: values.mean(1, keepdim=True) + 0.1 for name, values in mle.items()}
    behind = {name: values + 0.2 for name, values in mle.items()}
    judged = {"MLE": mle, "vote of 4": mle, "MLE continued": behind, "RLVR": ahead}
    config = evaluate.Config(split="test")
    compared = evaluate.compare(world, judged, indices, config)
    assert list(compared) == ["RLVR"]
    gains = {"MLE": 0.1, "vote of 4": 0.1, "MLE continued": -0.1}
    assert set(compared["RLVR"]) == set(gains)
    for rival, cells in compared["RLVR"].items():
        assert set(cells) == {heading for heading, *_ in world.columns("test", indices)}
        for found in cells.values():
            assert found == pytest.approx((gains[rival],) * 3, abs=1e-6)
    text, sentences = evaluate.comparison_table(world, compared, indices, config)
    assert "RLVR − MLE " in text and "+10.00" in text and "-10.00" in text
    assert "over 8 independent units" in text
    assert sum(" is ahead of " in said for said in sentences) == 2
    assert any(said.startswith("RLVR is behind MLE continued") for said in sentences)


# --------------------------------------------------------------------------------------------------
# Several seeds


def cells_of(text):
    """Rows of a table in Markdown: {first cell: [the other cells]}."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in lines]
    return {first: others for first, *others in rows}


def test_two_seeds_make_one_table(tmp_path, monkeypatch, capsys):
    """Guards against results that evaluate.py writes and its own --average cannot add up."""
    monkeypatch.chdir(tmp_path)
    text_world(tmp_path / "own", outcomes=OUTCOMES)
    shape = ["--n_layer=1", "--n_head=2", "--n_kv_head=2", "--n_embd=16", "--threads=1"]
    few = ["--steps=1", "--batch_size=2", "--warmup=1", "--eval_every=1", "--eval_records=2"]
    train_mle.main(["--world=./own", *shape, *few])
    options = ["--rlvr=own-mle", "--best_of=2", "--seeds=2", "--threads=1", "--name=a"]
    evaluate.main(["--world=./own", *options])
    first = json.loads((tmp_path / "out/a/results.json").read_text())
    rows = first["rows"]
    assert first["headline"] == "expected_exact_match"
    assert {"ceiling (the likeliest outcome)", "MLE, vote of 2", "MLE, T=1"} < set(rows)
    # another seed: other numbers, and another decoding that is best
    (chosen,) = (label for label in rows if label.startswith("RLVR") and "T=1" not in label)
    second = copy.deepcopy(first)
    rng = np.random.default_rng(0)
    for results in (first, second):
        for values in results["rows"].values():
            for heading in results["scale"]:
                values[heading] = rng.random(len(values[heading])).tolist()
            values["work"] = float(rng.integers(10**7))
        for rivals in results["differences"].values():
            for cells in rivals.values():
                for heading in cells:
                    cells[heading] = rng.normal(size=3).tolist()
    other = "RLVR, top-p 0.9" if "0.9" not in chosen else "RLVR, greedy"
    second["rows"][other] = second["rows"].pop(chosen)
    for name, results in (("a", first), ("b", second)):
        (tmp_path / "out" / name).mkdir(exist_ok=True)
        (tmp_path / "out" / name / "results.json").write_text(json.dumps(results))
    capsys.readouterr()
    evaluate.main(["--average=a,b"])
    printed = capsys.readouterr().out
    table = cells_of(printed)
    assert table[""] == [*first["scale"], "work (M tokens)", "seconds"]
    pairs = [("MLE, T=1", "MLE, T=1", "MLE, T=1"), ("RLVR, best decoding", chosen, other)]
    for label, *own in pairs:
        a, b = (results["rows"][name] for results, name in zip((first, second), own))
        for heading, found in zip(first["scale"], table[label]):
            means = [first["scale"][heading] * np.mean(values[heading]) for values in (a, b)]
            mean, spread = map(float, found.split(" ± "))
            assert mean == pytest.approx(np.mean(means), abs=0.006)
            assert spread == pytest.approx(np.std(means, ddof=1), abs=0.006)
        assert float(table[label][-2]) == pytest.approx((a["work"] + b["work"]) / 2e6, abs=0.06)
    # how far RLVR is ahead, in each seed
    heading = first["headline"]
    lines = [line for line in printed.splitlines() if line.startswith("RLVR − ")]
    assert len(lines) == len(first["differences"]["RLVR"]) == 2
    for rival in first["differences"]["RLVR"]:
        (line,) = (line for line in lines if line.startswith(f"RLVR − {rival} in {heading}: "))
        gains = [100 * r["differences"]["RLVR"][rival][heading][0] for r in (first, second)]
        each = re.search(r"\((\S+), (\S+)\)$", line).groups()
        assert [float(gain) for gain in each] == pytest.approx(gains, abs=0.006)
        mean = float(line.partition(": ")[2].split()[0])
        assert mean == pytest.approx(np.mean(gains), abs=0.006)
    with pytest.raises(BadInput, match="twice"):
        evaluate.main(["--average=a,a"])
