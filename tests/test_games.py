"""
The procedural text games.

Records that tell the truth, rules that depend on nothing hidden but chance, chance that is as
outcomes() says, data worth training on.
"""

import copy
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data.textgame import lines, prepare
from data.textgame.games import (
    KINDS,
    Baking,
    Circuit,
    Game,
    Painting,
    Sailing,
    Storage,
    actions,
    outcomes,
    step,
    toward,
    transitions,
)
from data.world import WORDS

NAMES = {kind.__name__.lower(): kind for kind in KINDS}
GAMES = 7 * len(KINDS)


@pytest.fixture(scope="module")
def records():
    """Of games with and without chance, half and half."""
    return list(transitions(GAMES, seed=2))


@pytest.fixture(scope="module")
def certain():
    """Of games without chance."""
    return list(transitions(GAMES, seed=2, chance=0))


@pytest.fixture(scope="module")
def uncertain():
    """Of games with chance, with all that could have happened."""
    return list(transitions(2 * len(KINDS), seed=9, tries=2, chance=1, all_outcomes=True))


def has_omen(record):
    return any(o["type"] == NAMES[record["game"]].omen[1] for o in record["game_state"])


def by(records, *keys):
    """{values of the keys: records}, in order."""
    groups = defaultdict(list)
    for record in records:
        groups[tuple(record[key] for key in keys)].append(record)
    return groups


def key(value):
    return json.dumps(value, sort_keys=True)


def next_state(record):
    """What README says: replace the modified, drop the removed, append the new."""
    changed = {o["uuid"]: o for o in record["diff"]["modified"]}
    old = {o["uuid"] for o in record["game_state"]}
    kept = [o for o in record["game_state"] if o["uuid"] not in record["diff"]["removed"]]
    new = [o for o in record["diff"]["modified"] if o["uuid"] not in old]
    return [changed.get(o["uuid"], o) for o in kept] + new


def restored(record):
    """A game that knows nothing but the record's state."""
    game = NAMES[record["game"]]()
    game.objects = copy.deepcopy({o["name"]: o for o in record["game_state"]})
    game.uuid_base = record["uuid_base"]
    game.score = dict(record["score"])
    return game


def spoken(game, text):
    """The action tuple that is written so."""
    return next(action for action in actions(game) if action[0].format(*action[1:]) == text)


# The record format


KEYS = """game instance state_id step gold game_state uuid_base score action diff next_score
          changed changed_by""".split()


def test_records_have_the_format_of_the_compact_files(records):
    for number, r in enumerate(records):
        assert set(r) == set(KEYS)
        assert set(r["diff"]) == {"modified", "removed", "score"} and r["state_id"] == number
        for o in r["game_state"] + r["diff"]["modified"]:
            assert set(o) == {"name", "uuid", "type", "properties", "contains"}
            assert all(type(value) in (bool, int, str) for value in o["properties"].values())
        for score in (r["score"], r["next_score"]):
            types = [type(score[k]) for k in ("score", "gameOver", "gameWon")]
            assert types == [int, bool, bool] and len(score) == 3
        assert all(flag in (0, 1) for flag in r["changed_by"]) and len(r["changed_by"]) == 3
        assert json.loads(json.dumps(r)) == r


def test_states_are_trees_of_existing_objects(records):
    for r in records:
        for state in (r["game_state"], next_state(r)):
            names = [o["name"] for o in state]
            children = [child for o in state for child in o["contains"]]
            assert len(set(names)) == len(names)
            # the first is the root; every other has exactly one parent
            assert sorted(children) == sorted(names[1:])
            assert all(o["name"].endswith(f" (ID: {o['uuid']})") for o in state)


def test_new_objects_are_numbered_from_uuid_base(records):
    for r in records:
        old = {o["uuid"] for o in r["game_state"]}
        new = sorted(o["uuid"] for o in next_state(r) if o["uuid"] not in old)
        assert max(old) < r["uuid_base"]
        assert r["step"] > 1 or old == set(range(r["uuid_base"]))  # no number is skipped
        assert new == list(range(r["uuid_base"], r["uuid_base"] + len(new)))
        assert set(r["diff"]["removed"]) <= old


def test_a_type_always_has_the_same_properties(records):
    """Otherwise a default per type would have to be taken back object by object."""
    properties = {}
    for o in (o for r in records for o in r["game_state"] + r["diff"]["modified"]):
        own = set(o["properties"])
        assert properties.setdefault(o["type"], own) == own, o["name"]


def test_states_are_small(records):
    sizes = [len(r["game_state"]) - has_omen(r) for r in records]
    assert 5 <= min(sizes) and max(sizes) <= 9


# Truth


def test_state_alone_decides_and_replay_gives_the_next_state(certain):
    """
    No hidden variables where there is no chance: a game restored from the record does the same.

    Applying diff to game_state gives its next state.
    """
    for r in certain:
        game = restored(r)
        new, outcome = step(game, spoken(game, r["action"]))
        assert outcome == {k: r[k] for k in outcome}
        assert list(game.objects.values()) == r["game_state"]  # step leaves the game as it is
        assert next_state(r) == list(new.objects.values())
        assert (r["diff"]["score"] or r["score"]) == r["next_score"] == new.score


def test_no_boat_sails_against_the_wind():
    game = built(Sailing)
    sea = game.the("Sea")
    boat = game.the("Boat")
    island = next(name for name in game.all("Island") if game.at(boat) != name)
    game[sea]["wind"] = game[island]["lies"]
    assert game.copy().act(("sail to {}", island)).at(boat) == game.at(boat)
    game[sea]["wind"] = next(name for name in game.QUARTERS if name != game[island]["lies"])
    assert game.act(("sail to {}", island)).at(boat) == island


def test_nobody_unlocks_under_a_cat():
    game = built(Storage)
    game.unsettle(random.Random(0))
    chest = game.the("Chest")
    key = next(name for name in game.all("Key") if game[name]["fits"] == game[chest]["lock"])
    game[game.the("Agent")]["free"] = 9
    game.move(key, game.the("Agent"))
    game[game.the("Cat")]["naps"] = "chest"
    assert game.hint() == ("wait",)
    assert game.act(("unlock {} with {}", chest, key))[chest]["isLocked"]
    game[game.the("Cat")]["naps"] = "sofa"
    assert game.hint() == ("unlock {} with {}", chest, key)
    assert not game.act(game.hint())[chest]["isLocked"]


def test_walk_goes_on_from_the_gold_action(records):
    for visited in by(records, "instance").values():
        states = list(by(visited, "step").values())
        assert [s[0]["step"] for s in states] == list(range(1, len(states) + 1))
        for tried, after in zip(states, states[1:] + [None]):
            gold = [r for r in tried if r["gold"]]
            assert len(gold) == 1 and all(
                r["game_state"] == gold[0]["game_state"] and r["score"] == gold[0]["score"]
                for r in tried
            )
            assert len({r["action"] for r in tried}) == len(tried)
            assert not gold[0]["score"]["gameOver"]
            if after:
                assert (
                    next_state(gold[0]) == after[0]["game_state"]
                    and gold[0]["next_score"] == after[0]["score"]
                )


def test_changed_equals_difference(records):
    for r in records:
        before = {o["uuid"]: o for o in r["game_state"]}
        assert all(before.get(o["uuid"]) != o for o in r["diff"]["modified"])
        assert r["changed"] == bool(
            r["diff"]["modified"] or r["diff"]["removed"] or r["diff"]["score"]
        )
        assert any(r["changed_by"]) or not r["changed"]
        assert r["changed_by"][2] == bool(r["diff"]["score"]) == (r["score"] != r["next_score"])


def test_records_share_no_objects():
    """Who changes one record in place changes no other."""
    records = list(transitions(len(KINDS), seed=2))
    texts = list(map(key, records))
    for i, r in enumerate(records):
        for o in r["game_state"] + r["diff"]["modified"]:
            o["properties"]["spoilt"] = True
            o["contains"].append("spoilt")
        r["score"]["score"] = r["next_score"]["score"] = r["diff"]["score"]["score"] = -1
        assert list(map(key, records[i + 1 : i + 9])) == texts[i + 1 : i + 9]


# Chance


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_the_share_of_uncertain_transitions(share):
    rs = list(transitions(4 * len(KINDS), seed=1, steps=5, chance=share, all_outcomes=True))
    assert abs(sum(len(r["outcomes"]) > 1 for r in rs) / len(rs) - share) < 0.04
    assert all((len(r["outcomes"]) > 1) == has_omen(r) for r in rs)  # the state shows it
    chosen = Counter(
        game for game, instance in {(r["game"], r["instance"]) for r in rs if has_omen(r)}
    )
    assert all(chosen[name] == 4 * share for name in NAMES)


def test_chance_is_one_property_and_all_else_follows_the_rules():
    """
    In seven kinds the property stays as it is in 40 % of the steps and takes any other value alike.

    It does so whatever the state and the action are. Circuit's stays in 70 %.
    """
    turns = defaultdict(list)
    for r in transitions(5 * len(KINDS), seed=8, chance=1):
        game = restored(r)
        kind, name, values = game.event
        values = list(values)
        place = game.the(kind)
        old = game[place][name]
        after = {o["name"]: o for o in next_state(r)}
        new = after[place]["properties"][name]
        turns[type(game) is Circuit].append((values.index(new) - values.index(old)) % len(values))
        game.act(spoken(game, r["action"]))
        game.tick()
        assert game[place][name] == old  # neither the action nor time changes it
        game[place][name] = new
        assert after == game.objects
    share = [turns[False].count(turn) / len(turns[False]) for turn in range(8)]
    assert len(turns[False]) > 1500 and abs(share[0] - 0.4) < 0.03
    assert all(abs(s - 0.6 / 7) < 0.02 for s in share[1:]), share
    assert abs(turns[True].count(0) / len(turns[True]) - 0.7) < 0.05


def test_the_likeliest_outcome_leads_by_far(uncertain):
    for r in uncertain:
        found = [probability for probability, _ in r["outcomes"]]
        diffs = [key(diff) for _, diff in r["outcomes"]]
        assert sum(found) == pytest.approx(1) and len(set(diffs)) == len(diffs)
        assert found == sorted(found, reverse=True) and key(r["diff"]) in diffs
        if r["game"] == "circuit":
            assert found == pytest.approx([0.7, 0.3])
        else:
            assert len(found) == 8 and 0.35 <= found[0] <= 0.45 and found[0] >= 3 * found[1]


def greedy(answers):
    """The answer that is found by taking the likeliest next token, of [(probability, tokens)]."""
    start = []
    while True:
        weight = Counter()
        for probability, tokens in answers:
            if tokens[: len(start)] == start:
                weight[tokens[len(start)]] += probability
        start.append(max(weight, key=weight.get))
        if start[-1] == "end":
            return start


@pytest.mark.parametrize("pattern", [WORDS, "(?s)."], ids=["words", "characters"])
def test_token_by_token_misses_the_likeliest_outcome_but_of_two(uncertain, pattern):
    read = [prepare.compact(json.loads(json.dumps(r)), "here") for r in uncertain]
    defaults = prepare.type_defaults(read)
    for t in read:
        answers = []
        for probability, diff in t["outcomes"]:
            text = lines.write_difference(diff, t["state"], defaults[t["game"]])
            answers.append((probability, [*re.findall(pattern, text), "end"]))
        assert (greedy(answers) == max(answers)[1]) == (t["game"] == "circuit"), answers


def test_step_draws_from_the_outcomes(uncertain):
    """Chi-square with at most 7 degrees of freedom: above 30 once in 10,000 times."""
    for r in list({r["game"]: r for r in uncertain}.values()):
        game = restored(r)
        action = spoken(game, r["action"])
        drawn = Counter()
        for number in range(400):
            game.luck = number / 400
            drawn[key(step(game, action)[1]["diff"])] += 1
        expected = {key(diff): 400 * probability for probability, diff in outcomes(game, action)}
        assert set(drawn) <= set(expected)
        distance = sum((drawn[diff] - n) ** 2 / n for diff, n in expected.items())
        assert distance < 30, (r["game"], distance)


def test_each_action_meets_its_own_luck(uncertain):
    """Known luck, known outcome: no draw depends on another that was made before."""
    r = next(r for r in uncertain if r["game"] == "sailing")
    game = restored(r)
    tried = actions(game)[:60]
    first = [step(game, action)[1]["diff"] for action in tried]
    assert first[::-1] == [step(game, action)[1]["diff"] for action in reversed(tried)]
    sea = game.the("Sea")
    assert len({step(game, action)[0][sea]["wind"] for action in tried}) >= 6


def test_without_chance_luck_does_nothing(certain):
    for r in certain[::4]:
        game = restored(r)
        action = spoken(game, r["action"])
        assert outcomes(game, action) == [(1.0, r["diff"])]
        for game.luck in (0.1, 0.9):
            assert step(game, action)[1]["diff"] == r["diff"]


def test_what_could_have_happened_is_told_of_what_is_judged(tmp_path):
    """Validation and test records have all outcomes, also their own; training records none."""
    sizes = ["--instances=8", "--held_out=8", "--vocab_size=400"]
    prepare.main([*sizes, "--chance=0.5", f"--out={tmp_path / 'world'}"])
    for split in ("train", "val", "test"):
        text = (tmp_path / "world" / f"{split}.jsonl").read_text()
        records = [json.loads(line) for line in text.splitlines()]
        if split == "train":
            assert not any("outcomes" in record for record in records)
            continue
        for record in records:
            assert sum(p for p, _ in record["outcomes"]) == pytest.approx(1)
            assert record["response"] in [response for _, response in record["outcomes"]]
        assert {len(record["outcomes"]) for record in records} == {1, 2, 8}
        assert len({record["unit"] for record in records}) == 8


# Determinism and splits


def test_seed_fixes_everything():
    first = key(list(transitions(2 * len(KINDS), seed=3, steps=5)))
    assert first == key(list(transitions(2 * len(KINDS), seed=3, steps=5)))
    assert first != key(list(transitions(2 * len(KINDS), seed=4, steps=5)))
    # an instance does not depend on how many there are
    longer = transitions(3 * len(KINDS), seed=3, steps=5)
    assert first == key([r for r in longer if r["instance"] < 2 * len(KINDS)])


def test_hash_seed_does_not_matter():
    code = (
        "import json; from data.textgame.games import KINDS, transitions; "
        "print(json.dumps(list(transitions(len(KINDS), seed=5, steps=5))))"
    )
    here = json.dumps(list(transitions(len(KINDS), seed=5, steps=5)))
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    assert there.stdout.strip() == here  # this process has a hash seed of its own


def test_instances_share_no_state(records):
    """Splitting by instance leaks no state from training into test, in one seed or between two."""
    seeds = [records, list(transitions(GAMES, seed=1, tries=1))]
    owner = defaultdict(set)
    for number, seed in enumerate(seeds):
        for r in seed:
            owner[key(r["game_state"])].add((number, r["instance"]))
    assert all(len(instances) == 1 for instances in owner.values())


# Worth training on


def test_share_of_changed_records(certain):
    share = {}
    for (name,), rs in by(certain, "game").items():
        share[name] = sum(r["changed"] for r in rs) / len(rs)
    assert 0.3 < sum(r["changed"] for r in certain) / len(certain) < 0.5
    assert set(share) == set(NAMES) and all(0.2 < s < 0.65 for s in share.values()), share


def test_every_way_of_changing_occurs(certain):
    created = set()
    for r in certain:
        if any(o["uuid"] >= r["uuid_base"] for o in r["diff"]["modified"]):
            created.add(r["game"])
    destroyed = {r["game"] for r in certain if r["diff"]["removed"]}
    ticking = {r["game"] for r in certain if r["changed_by"][:2] == [0, 1]}
    scored = {r["game"] for r in certain if r["changed_by"][2]}
    assert created == {"circuit", "painting", "garden"}
    assert destroyed >= created | {"storage", "dishes"}
    assert ticking == set(NAMES) - {"storage", "sailing"} and scored == set(NAMES)
    assert any(r["next_score"]["gameOver"] and not r["next_score"]["gameWon"] for r in certain)
    assert any(r["next_score"]["score"] < r["score"]["score"] for r in certain)


def test_where_time_works_every_action_changes_something(records):
    """A tick follows whatever is done: in such states also 'look' and nonsense change the state."""
    idle = [r for r in records if r["action"] == "look"]
    assert any(r["changed"] for r in idle) and any(not r["changed"] for r in idle)
    assert all(r["changed_by"][0] == 0 for r in idle)


def test_wandering_and_tries_are_obeyed():
    for tried in by(transitions(len(KINDS), seed=6, tries=5, steps=3), "instance", "step").values():
        assert len(tried) in (2, 5) and tried[0]["step"] <= 3
    for tried in by(transitions(len(KINDS), seed=6, tries=1), "instance", "step").values():
        assert len(tried) == 1
    eager = list(transitions(len(KINDS), seed=6, useful=1.0, steps=2, chance=0))
    lazy = list(transitions(len(KINDS), seed=6, useful=0.0, steps=2, chance=0))
    assert (
        sum(r["changed"] for r in eager) / len(eager)
        > 0.7
        > 0.4
        > sum(r["changed"] for r in lazy) / len(lazy)
    )


@pytest.mark.parametrize("chance", [0, 1])
def test_hints_win_most_games(chance):
    """The scripted way leads through the interesting states to the end, whatever happens."""
    walk = dict(steps=40, tries=1, wander=0)
    last = {r["instance"]: r for r in transitions(GAMES, seed=7, chance=chance, **walk)}
    won = {}
    for (name,), ends in by(last.values(), "game").items():
        won[name] = sum(r["next_score"]["gameWon"] for r in ends)
    assert set(won) == set(NAMES) and min(won.values()) >= 0.85 * GAMES / len(KINDS), won


# The rules, by hand


def test_free_space_is_kept_exactly(records):
    """free + sizes inside stays what it was, for every place of every instance."""
    total = {}
    for r in records:
        for state in (r["game_state"], next_state(r)):
            size = {o["name"]: o["properties"].get("size", 1) for o in state}
            for o in state:
                if "free" in o["properties"]:
                    room = o["properties"]["free"] + sum(size[child] for child in o["contains"])
                    assert (
                        o["properties"]["free"] >= 0
                        and total.setdefault((r["instance"], o["name"]), room) == room
                    )


def test_lids_and_hands():
    game = Game()
    room = game.start(random.Random(0), "room", hands=1)
    box = game.add("box", "Container", room, isOpenable=True, isOpen=False, free=2)
    words = ("ball", "cup", "bag")
    ball, cup, bag = (game.add(word, "Thing", room, isMoveable=True) for word in words)
    game[bag]["free"] = 5
    agent = game.the("Agent")
    hands = lambda: game.inside(game.the("Agent"))
    assert hands() == [] and not game.copy().act(("put {} in {}", ball, box)).inside(box)
    game.act(("take {}", ball))
    assert hands() == [ball] and game[agent]["free"] == 0
    game.act(("take {}", cup)).act(("put {} in {}", ball, box))
    assert hands() == [ball]  # one hand only, and the box is closed
    game.act(("open {}", box)).act(("put {} in {}", ball, box))
    game.act(("close {}", box)).act(("take {}", ball))
    assert game.inside(box) == [ball] and game[box]["free"] == 1 and hands() == []  # behind the lid
    game[cup]["free"] = 5
    game.move(cup, bag)
    game.act(("take {}", bag)).act(("put {} in {}", bag, cup)).act(("put {} in {}", bag, agent))
    assert hands() == [bag] and game.inside(bag) == [cup]  # nothing goes into what it holds
    game.act(("take {}", room)).act(("take {}", agent)).act(("open {}", ball))
    game.act(("turn on {}", box)).act(("drop {}", bag))
    assert (
        game.here() == room
        and game.inside(room) == [agent, box, bag]
        and game[box] == {"isOpenable": True, "isOpen": False, "free": 1}
    )


def test_toward():
    values = (20, 45, 50, 60, 52)
    assert [toward(value, 50, 8) for value in values] == [28, 50, 50, 52, 50]


def built(kind, seed=0):
    game = kind()
    game.build(random.Random(seed))
    return game


def test_oven_heats_food_and_its_timer_turns_it_off():
    game = built(Baking)
    oven = game.the("Oven")
    food = game.the("Food")
    game.move(food, oven)
    warmth = game[game.here()]["temperature"] = 20
    game[oven].update(isOpen=False, isOn=True, temperature=warmth, power=20, limit=70, timer=2)
    game[food].update(temperature=warmth, rate=12, bakedAt=40, burntAt=50)
    seen = []
    for _ in range(4):
        game.tick()
        heat = [game[oven][key] for key in ("temperature", "timer", "isOn")]
        seen.append((*heat, game[food]["temperature"], game[food]["state"]))
    assert seen == [
        (40, 1, True, 32, "raw"),
        (60, 0, False, 44, "baked"),
        (50, 0, False, 50, "burnt"),
        (40, 0, False, 40, "burnt"),
    ]
    assert game.judge()[2]


def test_closing_a_circuit_warms_the_egg_in_the_same_step():
    game = built(Circuit)
    kinds = ("Switch", "Device", "Egg", "Container", "Battery")
    switch, device, egg, nest, battery = map(game.the, kinds)
    for other in game.all("Device")[1:]:
        game.move(other, None)
    for name in (device, egg):
        game.move(name, nest)
    game[switch].update(isOn=False, wiredTo=battery)
    game[device].update(wiredTo=switch, watts=3, heat=4)
    game[battery]["charge"] = 5
    game[egg].update(temperature=20, hatchesAt=28)
    game, outcome = step(game, ("turn on {}", switch))
    assert (
        game[device]["works"]
        and game[battery]["charge"] == 2
        and game[egg]["temperature"] == 24
        and len(outcome["diff"]["modified"]) == 4
    )
    game, outcome = step(game, ("look",))
    assert (
        game.the("Egg") is None
        and game.inside(nest)[-1] == game.the("Chick")
        and outcome["next_score"]["gameWon"]
    )
    assert game[battery]["charge"] == 0
    assert step(game, ("wait",))[0][device]["works"] is False  # nothing left in the battery


def test_pouring_fills_what_fits_and_mixes():
    game = built(Painting)
    a, b, c = game.all("Jar")
    for jar, colour, volume in ((a, "red", 7), (b, "blue", 6), (c, None, 0)):
        game[jar]["holds"] = 10
        game.fill(jar, None, 0)
        game.fill(jar, colour, volume)
    game.move(a, game.the("Agent"))
    game.act(("pour {} into {}", a, b))
    assert game.content(a) == ("red", 3) and game.content(b) == ("purple", 10)
    assert game.copy().act(("pour {} into {}", a, b)).objects == game.objects  # it is full
    game.act(("pour {} into {}", a, c))
    assert (
        game.content(a) == (None, 0)
        and game.content(c) == ("red", 3)
        and len(game.all("Paint")) == 2
    )
    game.act(("drop {}", a)).act(("take {}", b)).act(("pour {} into {}", b, c))
    assert game.content(b) == ("purple", 3) and game.content(c) == ("brown", 10)
    game.act(("empty {}", b))
    assert game.content(b) == (None, 0) and len(game.all("Paint")) == 1


def test_keys_fit_by_number_and_wear_out():
    game = built(Storage)
    chest = game.the("Chest")
    agent = game.the("Agent")
    game[agent]["free"] = 9
    lock = game[chest]["lock"]
    right, wrong = sorted(game.all("Key"), key=lambda name: game[name]["fits"] != lock)
    game[right]["uses"] = 1
    # not in the hands
    assert game.copy().act(("unlock {} with {}", chest, right)).objects == game.objects
    for name in (right, wrong):
        game.move(name, agent)
    assert game.copy().act(("unlock {} with {}", chest, wrong)).objects == game.objects
    assert game.copy().act(("open {}", chest)).objects == game.objects
    game.act(("unlock {} with {}", chest, right)).act(("open {}", chest))
    assert game[chest]["isOpen"] and right not in game.objects and game[agent]["free"] == 8
