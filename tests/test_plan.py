"""Acting in a world: candidates behind one state, the agent's choice, what the rows share."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch

from common import BadInput
from data import load_world
from data.textgame import games, lines
from data.textgame import prepare as textgame_prepare
from data.webnav import prepare as webnav_prepare
from data.webnav import shop
from generate import generate, imagine
from model import Model, ModelConfig
from tests.test_model import lively
from use import plan


def config(**changes):
    return plan.Config(**{"starts": 40, "steps": 3, "threads": 1, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of a small shop and of small games."""
    folder = tmp_path_factory.mktemp("worlds")
    webnav_prepare.main(["--sessions=18", "--vocab_size=600", f"--out={folder / 'webnav'}"])
    sizes = ["--instances=8", "--held_out=8", "--vocab_size=600"]
    textgame_prepare.main([*sizes, f"--out={folder / 'textgame'}"])
    return folder


@pytest.fixture(scope="module")
def worlds(folders):
    return {name: load_world(str(folders / name)) for name in ("webnav", "textgame")}


STARTS = {"webnav": plan.visits, "textgame": plan.plays}


def starts(worlds, name, **changes):
    return list(STARTS[name](worlds[name], config(**changes)))


def a_model(world, seed=0, eos=0.0):
    """Random weights whose answers differ; eos: how much likelier than others their end is."""
    torch.manual_seed(seed)
    shape = dict(n_layer=2, n_head=2, n_kv_head=2, n_embd=32, look_back=True)
    model = lively(Model(ModelConfig(world.vocab_size, world.block_size, **shape)).eval(), 1)
    logits = model.logits

    def with_end(hidden, allowed=None, temperature=1.0):
        found = logits(hidden, allowed, temperature).clone()
        found[..., world.eos_id] += eos
        return found

    model.logits = with_end
    return model


# --------------------------------------------------------------------------------------------------
# Candidates behind one state


@pytest.mark.parametrize("name", STARTS)
def test_candidates_in_a_group_answer_as_each_alone(worlds, name):
    """
    Guards against an action that sees its neighbours, padding, or more room than it would have
    alone; the single prompts go the way of evaluation: state and action are the prompt.
    """
    world = worlds[name]
    model = a_model(world, eos=2.0)
    records = world.records["train"]
    groups = {}
    for i, record in enumerate(records):
        groups.setdefault(record["state"], []).append(i)
    groups = [own[:3] for own in groups.values() if len(own) > 1][:40]
    states = [records[own[0]]["state"] for own in groups]
    actions = [[records[i]["prompt"] for i in own] for own in groups]
    batch = world.candidates(states, actions)
    rollout = imagine(model, batch)
    texts = world.decode(batch, rollout.tokens)
    indices = [i for own in groups for i in own]
    single = world.batch("train", indices)
    alone = world.decode(single, generate(model, single, 1, 0.0).tokens)
    alone = dict(zip(indices, (text for (text,) in alone)))
    different = set()
    for own, row in zip(groups, texts):
        for i, text in zip(own, row):
            expected = None if alone[i] is None else records[i]["prompt"] + alone[i]
            assert text == expected
            different.add(alone[i])
    assert len(groups) >= 30 and len(different) > 12 and None in different
    # all that was given stands there, and none of it ended an answer
    given = (batch.forced >= 0) & rollout.mask()
    assert torch.equal(rollout.tokens[given], batch.forced[given])
    assert (batch.forced < world.eos_id).all()
    assert ((batch.forced < 0).sum(-1) == world.response_len).all()


def test_two_candidates_are_enough_and_one_may_be_alone(worlds):
    world = worlds["webnav"]
    visits = starts(worlds, "webnav", starts=3)
    candidates = [["click [2]", "go_back"], ["click [1]"], ["hover [3]", "click [3]"]]
    values = plan.learned(a_model(world, eos=9.0), world, visits, candidates)
    assert [len(own) for own in values] == [2, 1, 2]


def test_an_answer_that_never_ends_is_no_prediction(worlds):
    for name, world in worlds.items():
        places = starts(worlds, name, starts=8)
        never = a_model(world, eos=-1e9)
        candidates = [plan.propose(p, random.Random(0), config()) for p in places]
        for place, values in zip(places, plan.learned(never, world, places, candidates)):
            assert values == [place.value()] * len(values)
            for answer in (None, "nonsense", "", "score null", "#999 isOn"):
                assert plan.promise(place, answer) == place.value()
            assert plan.promise(place, world.task.nothing_changes) == place.value()


# --------------------------------------------------------------------------------------------------
# What an answer leads to


def test_true_difference_leads_to_the_true_page():
    """Every line of the true page, and no other."""
    this = shop.make_shop(0)
    steps = 0
    for seed in range(20):
        rng = random.Random(seed)
        state = shop.first_state(this, rng)
        tree = shop.number(shop.render(this, state), {})
        for _ in range(20):
            action = shop.random_action(this, tree, rng)
            state, new, response = shop.step(this, state, tree, action)
            page = shop.apply_difference(shop.read_page(shop.observation(tree)), response)
            assert page == shop.read_page(shop.observation(new))
            assert len(page) == len(new)
            tree = new
            steps += response != shop.NOTHING
    assert steps > 200


def test_progress_is_a_ladder():
    def near(*lines):
        return shop.progress(dict(enumerate(lines)), "Red Mug")

    assert near("RootWebArea 'Home'", "link 'Mugs'", "link 'Blue Mug $4'") == (False, 0)
    assert near("RootWebArea 'Mugs'") == (False, 1)
    for line in ("link 'Red Mug $12'", "link 'For you: Red Mug'", "option 'Red Mug'"):
        assert near("RootWebArea 'Mugs'", line) == (False, 2)
    assert near("RootWebArea 'Red Mug'", "link 'Red Mug $12'") == (False, 3)
    for line in ("StaticText '1 x Red Mug'", "StaticText '2 x Large Red Mug'"):
        assert near("RootWebArea 'Home'", line) == (True, 4)


@pytest.mark.parametrize("name", STARTS)
def test_true_answers_promise_what_happens(worlds, name):
    """So a model that is always right equals the simulator."""
    world = worlds[name]
    rng = random.Random(0)
    ranks = set()
    for place in starts(worlds, name):
        for action in plan.propose(place, rng, config(k=6)):
            if name == "webnav":
                *_, answer = shop.step(place.shop, place.state, place.tree, action)
            else:
                told = games.step(place.game, action)[1]["diff"]
                told = json.loads(json.dumps(told))
                answer = lines.write_difference(told, place.game.state(), place.defaults)
            assert plan.promise(place, answer) == place.after(action).value()
            ranks.add(place.after(action).value())
    assert len(ranks) >= 4
    # and the model is asked in the words of its training
    assert {r["prompt"][:2] for r in world.records["train"]} == {place.prompt(action)[:2]}


# --------------------------------------------------------------------------------------------------
# The agent


class Road:
    """A place on a road: actions are how far to go; the goal is 9."""

    def __init__(self, here=0, drawn=(1, 2, 3)):
        self.here = here
        self.drawn = drawn

    def value(self):
        return self.here >= 9, self.here

    def over(self):
        return self.here >= 9

    def draw(self, rng, n):
        return list(self.drawn)

    def after(self, action):
        return Road(self.here + action, self.drawn)


def test_proposals_are_ordered_by_frequency_then_by_the_first_draw():
    road = Road(drawn=[3, 1, 2, 2, 5, 1, 4])
    for k, expected in ((2, [1, 2]), (4, [1, 2, 3, 5]), (9, [1, 2, 3, 5, 4])):
        assert plan.propose(road, random.Random(0), config(k=k)) == expected


def test_ties_keep_the_order_of_the_proposals():
    def ask(places, candidates):
        assert candidates == [[4, 2, 3, 1]]
        return [[(False, near) for near in (0, 7, 7, 5)]]

    reached, nearer = plan.act([Road(drawn=[4, 2, 3, 1])], ask, config(k=4, steps=4))
    assert reached.tolist() == [0.0]  # it goes 2, four times
    # what is said is compared with where it stands: at 0, 2, 4 and 6
    assert nearer == {(True, True): 3 + 3 + 3 + 2, (False, True): 1 + 1 + 1 + 2}


def test_where_no_candidate_changes_anything_the_first_choice_stands():
    useless = plan.one_by_one(lambda place, action: place.value())
    reached, nearer = plan.act([Road(drawn=[3, 9])], useless, config(k=2, steps=2))
    assert reached.tolist() == [0.0] and nearer == {(False, True): 4}
    reached, _ = plan.act([Road(drawn=[9, 3])], useless, config(k=2, steps=2))
    assert reached.tolist() == [1.0]


def test_those_that_have_arrived_stand_still():
    asked = []

    def ask(places, candidates):
        asked.append(len(places))
        return [[(False, 0)] * len(own) for own in candidates]

    roads = [Road(0, [9]), Road(0, [3]), Road(9, [1])]
    reached, _ = plan.act(roads, ask, config(steps=4))
    assert asked == [2, 1, 1, 0] and reached.tolist() == [1.0, 1.0, 1.0]
    assert [road.here for road in roads] == [0, 0, 9], "the starts are for the next row, too"


@pytest.mark.parametrize("name", STARTS)
def test_simulator_equals_stepping_by_hand(worlds, name):
    places = starts(worlds, name)
    how = config(k=4, steps=4)
    simulator = plan.one_by_one(lambda place, action: place.after(action).value())
    reached, nearer = plan.act(places, simulator, how)
    assert nearer[True, False] == nearer[False, True] == 0 < nearer[True, True]
    for n, place in enumerate(places):
        for step in range(4):
            if place.over():
                break
            best = None
            for action in plan.propose(place, random.Random(f"policy 0 {n} {step}"), how):
                future = place.after(action)
                if best is None or future.value() > best.value():
                    best = future
            place = best
        assert reached[n] == place.value()[0]


@pytest.mark.parametrize("name", STARTS)
def test_starts_are_the_same_for_every_row_and_other_for_another_seed(worlds, name):
    a, b, other = (starts(worlds, name, seed=seed) for seed in (0, 0, 1))
    texts = [place.text() for place in a]
    assert texts == [place.text() for place in b]
    assert [place.value() for place in a] == [place.value() for place in b]
    assert texts != [place.text() for place in other]
    assert not any(place.over() for place in a)
    plan.act(a, plan.one_by_one(lambda p, action: p.after(action).value()), config())
    assert texts == [place.text() for place in a], "acting changes no start"
    fewer = starts(worlds, name, starts=7)
    assert [place.text() for place in fewer] == texts[:7]


def test_games_start_with_chance_in_the_share_that_was_asked_for(worlds):
    for chance in (0.0, 0.5, 1.0):
        places = starts(worlds, "textgame", chance=chance, starts=80)
        omens = sum(bool(place.game.the(place.game.omen[1])) for place in places)
        assert abs(omens - 80 * chance) < 9


def test_the_policy_of_the_games_does_what_the_data_does(worlds):
    """What training never shows is not proposed; where it shows nothing, anything is."""
    world = worlds["textgame"]
    seen = {record["prompt"].split()[1] for record in world.records["train"]}
    for place in starts(worlds, "textgame"):
        assert place.habit.total() > 20
        for action in place.draw(random.Random(0), 10):
            assert action in games.actions(place.game)
            assert action[0].split()[0] in seen
    anything = games.random_actions(place.game, random.Random(0), 200, Counter())
    assert len(set(anything)) > 50


# --------------------------------------------------------------------------------------------------
# The command


@pytest.mark.parametrize("name", STARTS)
def test_table_of_a_run(folders, worlds, name, tmp_path, capsys):
    world = worlds[name]
    model = a_model(world)
    made = {
        "stage": "mle",
        "world": world.fingerprint,
        "config": {"dtype": "float32", "threads": 1},
        "model_config": vars(model.config),
        "progress": {"before": {"seconds": 1.0, "work": 2}, "seconds": 1.0, "work": 1},
        "model": model.state_dict(),
    }
    # the better of two runs on validation is taken
    for run, best in (("mle", 0.0), ("mle-more-1", 0.1), ("mle-more-2", 0.2)):
        (tmp_path / f"{name}-{run}").mkdir()
        checkpoint = {**made, "progress": {**made["progress"], "best": (best, 0.0)}}
        torch.save(checkpoint, tmp_path / f"{name}-{run}" / "best.pt")
    options = ["--starts=4", "--k=2", "--steps=2", "--threads=1", "--device=cpu"]
    plan.main([f"--world={folders / name}", f"--out={tmp_path}", *options])
    printed = capsys.readouterr()
    assert "no row 'RLVR'" in printed.err and "no row 'MLE" not in printed.err
    folder = tmp_path / f"{name}-plan"
    assert (folder / "results.md").read_text().strip() in printed.out
    results = json.loads((folder / "results.json").read_text())
    rows = results["rows"]
    labels = ["no model", "nothing changes", "MLE", "MLE continued", "simulator"]
    assert list(rows) == labels and all(f"| {label} " in printed.out for label in labels)
    assert {"version", "commit", "machine", "config"} <= set(results)
    for row in rows.values():
        mean, low, high = row["success"]
        assert mean == pytest.approx(100 * np.mean(row["each"])) and low <= mean <= high
        gap = np.mean(row["each"]) - np.mean(rows["MLE continued"]["each"])
        assert row["− MLE continued"][0] == pytest.approx(100 * gap)
    # by what the agent does: that nothing changes is worth nothing
    assert rows["nothing changes"]["each"] == rows["no model"]["each"]
    assert rows["nothing changes"]["true nearer"] == rows["nothing changes"]["false nearer"] == 0
    assert rows["simulator"]["false nearer"] == rows["simulator"]["missed nearer"] == 0


def test_worlds_in_which_nobody_can_act_get_one_sentence(folders, tmp_path):
    (tmp_path / "robot").mkdir()
    meta = {"form": "video", "domain": "robot", "reward": "mae"}
    (tmp_path / "robot" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(BadInput, match="web shop and in text games"):
        plan.main([f"--world={tmp_path / 'robot'}"])
    # of the domain, but other pages and other games
    shop = "webnav", '{"shop": 0}', "{}", "simulated shop"
    game = "textgame", '"baking"', '"boil-water"', "procedural games"
    for world, old, new, message in (shop, game):
        (tmp_path / world).mkdir()
        for file in (folders / world).iterdir():
            (tmp_path / world / file.name).write_text(file.read_text().replace(old, new))
        with pytest.raises(BadInput, match=message):
            plan.main([f"--world={tmp_path / world}", "--device=cpu"])


def test_the_shop_is_the_one_that_was_prepared(tmp_path):
    """Guards against another shop that happens to have the same categories, as 0 and 6 have."""
    folder = tmp_path / "six"
    webnav_prepare.main(["--sessions=9", "--vocab_size=300", "--seed=6", f"--out={folder}"])
    world = load_world(str(folder))
    (visit,) = plan.visits(world, plan.Config(starts=1, seed=3))
    assert visit.shop == shop.make_shop(6) and visit.shop != shop.make_shop(0)


def test_a_reward_of_the_agents_own(folders):
    """The true answer is right; an answer is as right as the products it leads nearer to."""
    world = load_world(str(folders / "webnav"), task="use/webnav/task.py")
    this = shop.make_shop(world.shared["shop"])
    seen = Counter()
    for i, record in enumerate(world.records["train"][:150]):
        before = shop.read_page(record["state"])
        after = shop.apply_difference(before, record["response"])
        steps = {
            p.name: (shop.progress(before, p.name), shop.progress(after, p.name))
            for p in this.products
        }
        leads = any(new > old for old, new in steps.values())
        page = f"New items:\n[999] RootWebArea '{this.products[0].name}'\n"
        there = record["response"].replace("New items:\n", page)
        answers = [record["response"], world.task.nothing_changes, there]
        right, nothing, wrong = world.score_texts("train", i, answers, ["nearer", "strict_f1"])
        assert right == {"nearer": 1, "strict_f1": 1} and nothing["nearer"] == (not leads)
        if all(old[1] < 3 for old, _ in steps.values()) and not leads:
            assert wrong["nearer"] == 0
        seen[leads] += 1
    assert min(seen[True], seen[False]) > 10


def test_a_reward_of_the_players_own(folders):
    """A hit pays, a false alarm costs, and silence pays the odds at which they are even."""
    world = load_world(str(folders / "textgame"), task="use/textgame/task.py")
    seen = Counter()
    for i, record in enumerate(world.records["train"]):
        truth = world.truth("train", i)
        won, score = (truth.next_state[-1][key] for key in ("gameWon", "score"))
        now = truth.state[-1]
        leads = (won, score) > (now["gameWon"], now["score"])
        answers = [record["response"], lines.SAME, f"score {now['score'] + 1}"]
        right, silent, alarm = (
            s["nearer"] for s in world.score_texts("train", i, answers, ["nearer"])
        )
        assert right == (1 if leads else 0.1) and silent == 0.1 and alarm == leads
        seen[leads] += 1
    assert seen[True] > 5
