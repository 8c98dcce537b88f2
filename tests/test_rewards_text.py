"""
Text rewards: what they must be, what they must not reward, and their time.

They are held against golden values, published numbers, closed forms by hand and a brute force.
"""

import contextlib
import copy
import gzip
import json
import signal
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
from rewards import (
    apply_difference,
    exact_match,
    line_f1,
    official_text_game,
    official_text_game_difference,
    official_web_page,
    official_web_page_scores,
    strict_text_game,
    strict_web_page,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"
KINDS = ("binary", "task_specific")

quick = settings(max_examples=100, deadline=None, database=None)


@cache
def shared(name):
    """The records of a .jsonl.gz file of ../shared; skips the test where this checkout has none."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no reference file {path}")
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


@cache
def official_test():
    """
    {(game, state_id): (state, difference, next state)}.

    The next state is the one that the game itself went to, not our reconstruction.
    """
    after = {}
    for r in shared("data/bytesized32/official_test.jsonl.gz"):
        next_state = r["tick_state"]["objects"] + [r["next_score_state"]]
        after[r["game"], r["state_id"]] = next_state
    found = {}
    for r in shared("data/bytesized32/test.jsonl.gz"):
        key = r["game"], r["state_id"]
        found[key] = r["game_state"] + [r["score"]], r["diff"], after[key]
    return found


def by_uuid(state):
    return {obj["uuid"]: (obj["properties"], sorted(obj["contains"])) for obj in state[:-1]}


# --------------------------------------------------------------------------------------------------
# A small world by hand: a door holds a key, a lamp shines.
# 2 + 1, 1 + 1, 2 + 1 = 8 item facts and 3 score entries.
# The action opens the door and empties it: 2 facts change.


def thing(uuid, contains=(), **properties):
    return {
        "name": f"thing (ID: {uuid})",
        "uuid": uuid,
        "type": "Thing",
        "properties": properties,
        "contains": list(contains),
    }


def score(value=0, over=False, won=False):
    return {"score": value, "gameOver": over, "gameWon": won}


def difference(*modified, removed=(), **keys):
    return {"modified": list(modified), "removed": list(removed), "score": {}} | keys


LAMP = thing(3, bright=[1, 2], wire={"plus": ["key", 1], "minus": None})
KEY = thing(2, shiny=True)
STATE = [thing(1, ["key (ID: 2)"], open=False, color="red"), KEY, LAMP, score()]
OPEN = thing(1, open=True, color="red")
NEXT = [OPEN, KEY, LAMP, score()]
GOLD = difference(OPEN)


def both(answer, state=STATE, truth=NEXT):
    """(binary, task-specific) of a difference or of a raw answer."""
    function = official_text_game if isinstance(answer, str) else official_text_game_difference
    return tuple(function(answer, state, truth, kind) for kind in KINDS)


def close(*values):
    return pytest.approx(values, abs=1e-12)


# --------------------------------------------------------------------------------------------------
# Official text game: parity


def test_official_text_game_reproduces_the_golden_values():
    worlds = official_test()
    seen = Counter()
    for row in shared("golden/text_game.jsonl.gz"):
        state, diff, _ = worlds[row["game"], row["state_id"]]
        for kind in KINDS if row["kind"] != "malformed" else ():
            value = official_text_game(row["response"], state, apply_difference(state, diff), kind)
            where = row["kind"], kind, row["game"], row["state_id"]
            assert value == pytest.approx(row[kind], abs=1e-6), where
            seen[row["kind"]] += 1
    assert len(seen) == 23 and seen.total() == 2 * 861


def test_published_baselines_of_the_test_set():
    """
    "Nothing changes" is right on 1744 of 2954 (59.04 %).

    The true difference is right on all but the 51 that create an object.
    """
    unchanged = 0
    gold = 0
    strict = 0
    for state, diff, truth in official_test().values():
        unchanged += official_text_game_difference(difference(), state, truth, "binary")
        gold += official_text_game_difference(diff, state, truth, "binary")
        strict += strict_text_game(state, state, truth, "binary")
    assert unchanged == 1744
    assert gold == 2954 - 51
    assert strict == 1744


# --------------------------------------------------------------------------------------------------
# Official text game: the fine print, with values computed by hand


def test_gold_and_unchanged_answers():
    assert both(GOLD) == close(1, 1.3)
    assert both(difference()) == close(0, 0.09 * 6 / 8 + 0.01)  # the two changed facts are wrong
    assert both(difference(), truth=STATE) == close(1, 0.3)  # nothing to change: no share
    assert both(difference(OPEN), truth=STATE) == close(0, 0.09 * 6 / 8 + 0.01)


def test_fine_print_a_score_key():
    assert both({"modified": [OPEN], "removed": []}) == close(0, 0.09 + 0 + 0 + 1)
    for same in ({}, None, [], 0, 7, score()):
        assert both(difference(OPEN, score=same)) == close(1, 1.3), same
    # replaced whole: two keys are missing
    assert both(difference(OPEN, score={"score": 0})) == close(0, 0.09 + 0.01 / 3 + 1)
    assert both(difference(OPEN, score=score(1))) == close(0, 0.09 + 0.01 * 2 / 3 + 1)
    # replaced by something that is no score at all
    for no_score in ({"gameOver": False, "gameWon": False}, ["x"], "kept"):
        assert both(difference(OPEN, score=no_score)) == close(0, 0.09 + 1), no_score
    best = NEXT[:-1] + [{"score": 0, "best": None}]
    assert both(difference(OPEN, score={"score": 0}), truth=best) == close(0, 0.09 + 0.01 / 2 + 1)
    assert both(GOLD, truth=NEXT[:-1] + [score(1)]) == close(0, 0.09 + 0.01 * 2 / 3 + 1)


def test_fine_print_b_created_and_dropped_objects_have_no_share():
    created = thing(9, ["key (ID: 2)"], fresh=True)
    truth = [OPEN, KEY, LAMP, created, score()]
    assert both(difference(OPEN, created), truth=truth) == close(0, 0.09 * 8 / 9 + 0.01 + 1)
    # an invented object is never looked at
    assert both(difference(OPEN, created)) == close(1, 1.3)
    # the dropped door is one error and has no share
    assert both(difference(removed=[1])) == close(0, 0.09 * 5 / 6 + 0.01)
    assert both(difference(OPEN, removed=[2])) == close(0, 0.09 * 6 / 7 + 0.01 + 1)
    # an object that should have gone
    assert both(difference(OPEN), truth=[OPEN, LAMP, score()]) == close(1, 1.3)
    assert both(difference(), truth=[KEY, LAMP, score()]) == close(1, 0.3)


def test_fine_print_c_invented_and_removed_properties():
    assert both(difference(thing(1, open=True, color="red", ghost=1))) == close(1, 0)
    assert both(difference(OPEN, thing(2, shiny=True, ghost=1))) == close(1, 0)
    colourless = [thing(1, open=True), KEY, LAMP, score()]
    # kept: binary does not look, the share does
    assert both(difference(OPEN), truth=colourless) == close(1, 0.3 + 2 / 3)
    # dropped: not counted at all
    assert both(difference(thing(1, open=True)), truth=colourless) == close(1, 0.3 + 1)
    added = [thing(1, open=True, color="red", locked=False), KEY, LAMP, score()]
    assert both(difference(added[0]), truth=added) == close(1, 1.3)
    assert both(difference(OPEN), truth=added) == close(0, 0.09 * 8 / 9 + 0.01 + 2 / 3)


def test_fine_print_d_equality():
    for true in (1, 1.0):
        assert both(difference(thing(1, open=true, color="red"))) == close(1, 1.3)
    assert both(difference(thing(1, open="true", color="red")))[0] == 0
    assert both(difference(OPEN | {"name": "x", "type": "y"})) == close(1, 1.3)
    nameless = {key: OPEN[key] for key in ("uuid", "properties", "contains")}
    assert both(difference(nameless)) == close(1, 1.3)
    assert both(difference(STATE[0], OPEN)) == close(1, 1.3)  # of duplicates the last wins
    assert both(difference(OPEN, STATE[0])) == both(difference())
    # removed wins over modified
    assert both(difference(OPEN, removed=[1])) == both(difference(removed=[1]))
    # uuids are not coerced
    assert both(difference(OPEN | {"uuid": "1"}, removed=["2", "3"])) == both(difference())
    tuples = thing(3, bright=(1, 2), wire={"plus": ("key", 1), "minus": None})
    assert both(difference(OPEN, tuples)) == close(1, 1.3)
    # the order of a list property counts
    assert both(difference(OPEN, thing(3, bright=[2, 1], wire=LAMP["properties"]["wire"])))[0] == 0
    rewired = thing(3, bright=[1, 2], wire={"minus": None, "plus": ["key", 2]})
    assert both(difference(OPEN, rewired))[0] == 0


def test_contains_is_compared_without_order_but_with_multiplicity():
    truth = [thing(1, ["a", "b", "a"], open=True, color="red"), KEY, LAMP, score()]
    for contains, right in ((["a", "a", "b"], 1), (["a", "b"], 0), (["a", "b", "b"], 0)):
        predicted = thing(1, contains, open=True, color="red")
        assert both(difference(predicted), truth=truth)[0] == right
        assert strict_text_game([predicted] + NEXT[1:], STATE, truth, "binary") == right


def test_objects_without_properties_or_contains_are_one_error_each():
    # and then the share is absent
    assert both(difference({"uuid": 1, "contains": []})) == close(0, 0.09 * 6 / 7 + 0.01)
    # left out counts as [] in the share
    one_error = close(0, 0.09 * 7 / 8 + 0.01 + 1)
    assert both(difference({"uuid": 1, "properties": OPEN["properties"]})) == one_error
    assert both(difference(OPEN, {"uuid": 2, "properties": {"shiny": True}})) == one_error


GOLD_JSON = json.dumps(GOLD)


def test_fine_print_e_malformed_json_is_worth_nothing():
    assert both(GOLD_JSON) == close(1, 1.3)
    for answer in (
        GOLD_JSON[:-1],
        GOLD_JSON[:-20],
        GOLD_JSON + " That is all.",
        GOLD_JSON + GOLD_JSON,
        GOLD_JSON.replace('"', "'"),
        "",
        "[]",
        "7",
        '"modified removed"',
        '["modified", "removed"]',
        '{"modified": []}',
        '{"removed": []}',
        f"[{GOLD_JSON}]",
    ):
        assert both(answer) == (0, 0), answer


def test_differences_of_a_wrong_shape_are_passed_over_or_worth_nothing():
    unchanged = both(difference())
    junk = [None, 1, "uuid", [], {}, {"uuid": [1]}, {"uuid": {}}]
    for modified in (None, 5, "x", {"uuid": 1}, junk):
        assert both({"modified": modified, "removed": [], "score": {}}) == unchanged, modified
    for removed in (None, 1, "1", {"1": 1}, [[1], {"1": 1}, None]):
        assert both({"modified": [], "removed": removed, "score": {}}) == unchanged, removed
    for broken in (
        {"properties": None},
        {"properties": 5},
        {"contains": None},
        {"contains": 5},
        {"contains": [1, "x", None]},
    ):
        assert both(difference(OPEN | broken)) == (0, 0), broken
    assert both(difference(OPEN, score="a uuid")) == (0, 0)


def test_final_answer_extraction():
    wrong = json.dumps(difference())
    for i, phrase in enumerate(rewards.FINAL_PHRASES):
        answer = f"{wrong} {phrase} {wrong} {phrase}\n\t{GOLD_JSON}\n"
        assert both(answer) == close(1, 1.3), "behind the last occurrence"
        why = "the earlier phrase of the list is used wherever it stands"
        for later in rewards.FINAL_PHRASES[i + 1 :]:
            assert both(f"{later} {wrong} {phrase} {GOLD_JSON}") == close(1, 1.3)
            assert both(f"{phrase} {GOLD_JSON} {later} {wrong}") == (0, 0), why
    answer = f"First:\n```json\n{wrong}\n```\nno:\n```json \n\n{GOLD_JSON}  \n```\nDone. ```"
    assert both(answer) == close(1, 1.3), "the last block"
    answer = f"```json{GOLD_JSON}```json{wrong}```"
    assert both(answer) == close(1, 1.3), "a fence that closes a block does not open the next"
    answer = f"```json{GOLD_JSON}```and then ```json\n{wrong}"
    assert both(answer) == close(1, 1.3), "a block needs its end"
    answer = f"```json\n{GOLD_JSON}\n``` ```json {{}} ```"
    assert both(answer) == (0, 0), "a last block below 10 characters: the whole text, no JSON"
    assert both(f"```\n{GOLD_JSON}\n```") == (0, 0), "only ```json opens a block"
    answer = f"The final answer is: ```json\n{GOLD_JSON}\n```"
    assert both(answer) == (0, 0), "behind a phrase no block is looked for"
    assert rewards.last_json_block("```json0123456789```") == "0123456789"
    assert rewards.final_answer("```json0123456789```") == "0123456789"
    assert rewards.final_answer("```json012345678```") == "```json012345678```"


def test_python_words_are_read_as_json():
    answer = str(difference(OPEN, LAMP, score=score())).replace("'", '"')
    assert all(word in answer for word in ("True", "False", "None"))
    assert both(answer) == close(1, 1.3)


@pytest.mark.parametrize(
    "function, answer, kind",
    [
        (official_text_game, "", "task"),
        (official_text_game_difference, GOLD, "Binary"),
        (strict_text_game, NEXT, "task_specific"),
        (strict_text_game, None, "x"),
    ],
)
def test_an_unknown_kind_is_an_error_and_not_a_zero(function, answer, kind):
    with pytest.raises(ValueError, match="expected"):
        function(answer, STATE, NEXT, kind)


def test_a_broken_truth_raises_instead_of_scoring_zero():
    twice = [OPEN, OPEN, score()]
    with pytest.raises(ValueError, match="uuid 1"):
        strict_text_game(NEXT, STATE, twice, "task")
    with pytest.raises(TypeError):
        official_text_game_difference(GOLD, STATE, None, "binary")


# --------------------------------------------------------------------------------------------------
# apply_difference and the strict text game


def test_apply_difference_leads_to_the_state_the_game_went_to():
    """
    On all 2954 test records, where 51 create an object.

    The truth is the game's own record and not our reconstruction.
    """
    for key, (state, diff, truth) in official_test().items():
        predicted = apply_difference(state, diff)
        assert by_uuid(predicted) == by_uuid(truth) and predicted[-1] == truth[-1], key


def test_apply_difference_by_hand():
    a = thing(1, x=1)
    b = thing(2, x=1)
    c = thing(3, x=1)
    b2 = thing(2, x=2)
    b3 = thing(2, x=3)
    new = thing(7)
    state = [a, b, c, score()]
    assert apply_difference(state, difference(new, b2, b3, removed=[1])) == [b3, c, new, score()]
    state = [a, b, score()]
    assert apply_difference(state, difference(b2, new, removed=[2, 7, 99])) == [a, score()]
    assert apply_difference([a, score()], difference(score={"score": 5})) == [a, {"score": 5}]
    assert apply_difference([a, score()], {"modified": [], "removed": []}) == [a, score()]


def test_strict_values_by_hand():
    """8 item facts + 3 score entries = 11, of which 2 change."""

    def task(*predicted, truth=NEXT, state=STATE):
        return strict_text_game(list(predicted), state, truth, "task")

    assert task(*NEXT) == 1.3 and strict_text_game(NEXT, STATE, NEXT, "binary") == 1.0
    assert task(*STATE) == pytest.approx(0.1 * 9 / 11 + 0)
    half = thing(1, open=False, color="red")
    assert task(half, *NEXT[1:]) == pytest.approx(0.1 * 10 / 11 + 1 / 2)
    # a change that does not happen counts
    assert task(OPEN, thing(2, shiny=False), LAMP, score()) == pytest.approx(0.1 * 10 / 11 + 2 / 3)
    assert task(OPEN, KEY, LAMP, score(1)) == pytest.approx(0.1 * 10 / 11 + 2 / 3)
    # an invented property
    haunted = thing(2, shiny=True, ghost=1)
    assert task(OPEN, haunted, LAMP, score()) == pytest.approx(0.1 * 11 / 12 + 2 / 3)
    # an invented object, even without properties
    assert task(*NEXT[:3], thing(9), score()) == pytest.approx(0.1 * 11 / 12 + 2 / 3)
    # a dropped object
    assert task(OPEN, LAMP, score()) == pytest.approx(0.1 * 9 / 11 + 2 / 4)
    gone = [OPEN, LAMP, score()]
    assert task(*gone, truth=gone) == 1.3
    # an object that should have gone; officially this is perfect
    assert task(*NEXT, truth=gone) == pytest.approx(0.1 * 9 / 11 + 2 / 4)
    assert strict_text_game(NEXT, STATE, gone, "binary") == 0.0
    assert task(*STATE, truth=STATE) == 1.3
    assert task(OPEN | {"name": "x", "type": "y"}, *NEXT[1:]) == 1.3
    assert task(thing(1, open=1, color="red"), *NEXT[1:]) == 1.3
    assert task(*NEXT[2::-1], score()) == 1.3  # the order of objects is no fact
    assert task(*NEXT[:-1], {"score": 0, "gameOver": False}) == pytest.approx(0.1 * 10 / 11 + 2 / 3)


def test_a_bare_object_still_counts_for_the_uuids():
    bare = {"name": "dust", "uuid": 5, "type": "Dust"}
    assert strict_text_game([OPEN, KEY, LAMP, bare, score()], STATE, NEXT, "binary") == 0.0
    assert strict_text_game(NEXT, STATE, [OPEN, KEY, LAMP, bare, score()], "binary") == 0.0
    dusty = [*NEXT[:-1], bare, score()]
    assert strict_text_game(dusty, STATE, dusty, "task") == 1.3


def test_a_prediction_that_is_no_state_is_worth_nothing():
    for predicted in (
        None,
        [],
        [score(), 5],
        [OPEN, OPEN, KEY, LAMP, score()],
        NEXT[:-1],
        [None, *NEXT],
        {"uuid": 1},
        "text",
        7,
        [*NEXT[:-1], None],
        [OPEN | {"uuid": []}, *NEXT[1:]],
        [OPEN | {"contains": {}}, *NEXT[1:]],
        [OPEN | {"contains": ""}, *NEXT[1:]],
        [OPEN | {"contains": ["a", 1]}, *NEXT[1:]],
        [OPEN | {"properties": []}, *NEXT[1:]],
    ):
        assert strict_text_game(predicted, STATE, NEXT, "binary") == 0.0
        assert strict_text_game(predicted, STATE, NEXT, "task") == 0.0, predicted


# distinct under == exactly when distinct as JSON
values = st.sampled_from([2, 3, "x", None, [2], [3], {"a": 2}])
objects = st.fixed_dictionaries(
    {
        "uuid": st.integers(0, 3),
        "properties": st.dictionaries(st.sampled_from("pq"), values),
        "contains": st.lists(st.sampled_from("ab"), max_size=2),
    }
)
states = st.builds(
    lambda objects, score: [*objects, score],
    st.lists(objects, max_size=3, unique_by=lambda obj: obj["uuid"]),
    st.dictionaries(st.sampled_from(["score", "won"]), values),
)


def fact_set(state):
    """
    A state as a set of (what, value as JSON).

    The brute force below is set algebra on these and shares no code with the reward.
    """
    facts = {(key, json.dumps(value)) for key, value in state[-1].items()}
    for obj in state[:-1]:
        facts.add(((obj["uuid"],), str(sorted(obj["contains"]))))
        for name, value in obj["properties"].items():
            facts.add(((obj["uuid"], name), json.dumps(value)))
    return facts


def names(facts):
    return {name for name, _ in facts}


@quick
@given(states, states, states)
def test_strict_text_game_equals_a_brute_force(predicted, state, truth):
    p, s, t = map(fact_set, (predicted, state, truth))
    changed = names(s ^ t) | names(s ^ p)
    right_share = len(p & t) / len(names(p | t)) if p | t else 1
    changed_share = len(changed - names(p ^ t)) / len(changed) if changed else 1
    task = 0.1 * right_share + 0.2 * (p == t) + changed_share
    assert strict_text_game(predicted, state, truth, "binary") == float(p == t)
    assert strict_text_game(predicted, state, truth, "task") == pytest.approx(task, abs=1e-12)


@quick
@given(states, states)
def test_the_strict_maximum_is_reached_by_the_truth_alone(predicted, truth):
    assert strict_text_game(truth, predicted, truth, "task") == 1.3
    value = strict_text_game(predicted, predicted, truth, "task")
    assert 0 <= value <= 1.3 and (value == 1.3) == (fact_set(predicted) == fact_set(truth))


# --------------------------------------------------------------------------------------------------
# Inputs that change, gold answers that are not the best, answers that gain by saying more


def test_scoring_never_changes_its_inputs():
    """
    Scores of one truth are computed for a whole group.

    An input changed in place would poison all later ones.
    """
    haunted = thing(1, open=True, color="red", ghost=1)
    answers = [
        GOLD,
        difference(haunted, thing(9), removed=[2], score=score(1)),
        difference(OPEN, STATE[0], score=None),
        difference({"uuid": 1}),
        {"modified": None, "removed": [[1]]},
    ]
    for answer in answers:
        inputs = copy.deepcopy([answer, STATE, NEXT])
        for _ in range(2):
            results = [both(inputs[0], *inputs[1:]), both(json.dumps(inputs[0]), *inputs[1:])]
            if inputs[0]["modified"] is not None:
                predicted = apply_difference(inputs[1], inputs[0])
                before = copy.deepcopy(predicted)
                for kind in ("binary", "task"):
                    results.append(strict_text_game(predicted, *inputs[1:], kind))
                assert predicted == before and predicted is not inputs[1]
            # repr: also the order, and True against 1
            assert repr(inputs) == repr([answer, STATE, NEXT])
        assert results[0] == results[1]


def test_the_gold_answer_gets_the_maximum():
    """
    On every test record: strict always, exactly; official wherever no object is created (51 are).

    The official maximum is 0.3 where no object changes.
    """
    capped = 0
    for state, diff, truth in official_test().values():
        assert strict_text_game(apply_difference(state, diff), state, truth, "binary") == 1.0
        assert strict_text_game(apply_difference(state, diff), state, truth, "task") == 1.3
        before = by_uuid(state)
        after = by_uuid(truth)
        if after.keys() - before.keys():
            capped += 1
            continue
        changes = any(before[uuid] != after[uuid] for uuid in after)
        assert both(json.dumps(diff), state, truth) == close(1, 1.3 if changes else 0.3)
    assert capped == 51
    for row in shared("golden/web_page.jsonl.gz"):
        assert strict_web_page(row["truth"], row["truth"]) == 1.0
        assert official_web_page(row["truth"], row["truth"]) == 1.0


ITEMS = ["[1] link 'Home'", "[22] button 'Add to Cart' focused: True", "[333] StaticText '$45.00'"]


def page(new=(), deleted=(), updated=()):
    sections = []
    for heading, items in zip(rewards.HEADINGS, (new, deleted, updated)):
        sections.append(f"{heading}\n" + ("\n".join(items) or "None"))
    return "\n\n".join(sections)


EMPTY = page()
GOLD_PAGE = page(ITEMS[:2], (), ITEMS[2:])


PROSE = ["Let me think.", "None", "Other items:"]
MISPLACED = ["New items:", "Updated items: [1] link 'Home'", *ITEMS, "[4] tab 'x'"]


@pytest.mark.parametrize("junk", PROSE + MISPLACED)
def test_a_line_too_many_costs_precision_wherever_it_stands(junk):
    lines = GOLD_PAGE.split("\n")
    for i in range(len(lines) + 1):
        answer = "\n".join(lines[:i] + [junk] + lines[i:])
        assert strict_web_page(answer, GOLD_PAGE) < 1, (i, junk)
        # a heading in the wrong place also moves the lines below it
        if junk not in rewards.HEADINGS:
            assert strict_web_page(answer, GOLD_PAGE) >= 2 * 2 / (3 + 4) - 1e-12


def test_what_the_official_web_reward_gives_away():
    """The loopholes that the strict reward closes, shown open and closed."""
    preamble = "I guess so.\n" * 50 + GOLD_PAGE
    repeated = page(ITEMS[:2] * 50, (), ITEMS[2:])
    assert official_web_page(preamble, GOLD_PAGE) == official_web_page(repeated, GOLD_PAGE) == 1
    assert strict_web_page(preamble, GOLD_PAGE) == pytest.approx(2 * 3 / (3 + 53))
    assert strict_web_page(repeated, GOLD_PAGE) == pytest.approx(2 * 3 / (3 + 101))
    # "None" as an item
    assert official_web_page(EMPTY, GOLD_PAGE) == pytest.approx(2 / 7)
    assert strict_web_page(EMPTY, GOLD_PAGE) == 0
    everywhere = page(ITEMS, ITEMS, ITEMS)
    assert strict_web_page(everywhere, GOLD_PAGE) == pytest.approx(2 * 3 / (3 + 9))


def test_empty_answers():
    for empty in ("", " \n\n ", EMPTY):
        assert strict_web_page(empty, GOLD_PAGE) == 0
        assert strict_web_page(empty, EMPTY) == 1
    for said in ("None", "Nothing changes.", EMPTY + "\nNone"):
        assert strict_web_page(said, EMPTY) == 0
    assert strict_web_page(GOLD_PAGE, EMPTY) == 0
    assert official_web_page("", GOLD_PAGE) == official_web_page("", "") == 0
    assert both("") == (0, 0)
    assert line_f1("", "x") == exact_match("", "x") == 0
    assert line_f1(" \n", "") == exact_match(" \n", "") == 1


def test_text_answers_gain_nothing_by_saying_more():
    gold = strict_text_game(apply_difference(STATE, GOLD), STATE, NEXT, "task")
    for more in (
        difference(OPEN, thing(9)),
        difference(OPEN, thing(9), thing(10, x=1)),
        difference(OPEN, thing(2, shiny=True, ghost=1)),
        difference(OPEN, score=score() | {"bonus": 1}),
    ):
        assert strict_text_game(apply_difference(STATE, more), STATE, NEXT, "task") < gold
        assert strict_text_game(apply_difference(STATE, more), STATE, NEXT, "binary") == 0
    assert both(GOLD_JSON + GOLD_JSON) == (0, 0)
    assert both(GOLD_JSON + "\nThe final answer is: " + GOLD_JSON + "!") == (0, 0)
    assert line_f1("a\na\nb", "a\nb") == pytest.approx(0.8)


# --------------------------------------------------------------------------------------------------
# Web page and the user's own text


def test_official_web_page_reproduces_the_golden_values():
    rows = shared("golden/web_page.jsonl.gz")
    for row in rows:
        value = official_web_page(row["response"], row["truth"])
        assert value == pytest.approx(row["f1"], abs=1e-6)
    assert len(rows) == 300


def test_official_web_page_by_hand():
    truth = page(ITEMS)  # the two sections without items hold "None": 5 lines
    answer = (
        f"Sure!\nNew items: here\n{ITEMS[0]}  \n{ITEMS[0]}\nDeleted items:\n{ITEMS[1]}\n\n"
        f"no New items: left\nNew items:\n{ITEMS[1]}"
    )
    assert official_web_page_scores(answer, truth) == close(2 / 4, 2 / 5, 4 / 9)
    assert official_web_page_scores("no heading\n" + ITEMS[0], truth) == (0, 0, 0)
    assert official_web_page_scores(truth, truth) == (1, 1, 1)


def test_strict_web_page_by_hand():
    assert strict_web_page(GOLD_PAGE, GOLD_PAGE) == 1.0
    # blanks around a line are nothing
    assert strict_web_page("  " + GOLD_PAGE.replace("\n", " \r\n\t"), GOLD_PAGE) == 1.0
    # right line, wrong section
    moved = page(ITEMS[:1], ITEMS[1:2], ())
    assert strict_web_page(moved, GOLD_PAGE) == pytest.approx(2 * 1 / (2 + 3))
    assert strict_web_page(page([ITEMS[0].lower()]), GOLD_PAGE) == 0
    sections = GOLD_PAGE.split("\n\n")
    # any order; an empty section may be left out
    assert strict_web_page("\n".join([sections[2], sections[0]]), GOLD_PAGE) == 1.0


def test_users_text_by_hand():
    assert exact_match(" a\nb \n", "a\nb") == 1
    assert exact_match("a b", "a  b") == 0 and exact_match("A", "a") == 0
    assert line_f1("b\n\n a ", "a\nb") == 1.0
    assert line_f1("a\na", "a\na\na\nc") == pytest.approx(2 * 2 / (2 + 4))
    assert line_f1("x", "a") == 0


some_items = st.lists(
    st.sampled_from(ITEMS + ["[4] tab 'x'", "[5] img ''"]), unique=True, max_size=4
)
pages = st.builds(page, some_items, some_items, some_items)


@quick
@given(pages, pages)
def test_strict_web_page_equals_plain_set_f1_on_well_formed_pages(answer, truth):
    def items(text):
        chunks = [chunk.split("\n") for chunk in text.split("\n\n")]
        return {(chunk[0], line) for chunk in chunks for line in chunk[1:] if line != "None"}

    p = items(answer)
    t = items(truth)
    expected = 1 if p == t else 2 * len(p & t) / (len(p) + len(t))
    assert strict_web_page(answer, truth) == pytest.approx(expected)


keys = st.sampled_from(["uuid", "properties", "contains", "score", "open"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner),
    max_leaves=8,
)
near_objects = st.dictionaries(
    st.sampled_from(["uuid", "properties", "contains"]),
    json_values | st.sampled_from([1, 2, {"open": True}, ["a"]]),
)
near_differences = st.dictionaries(
    st.sampled_from(["modified", "removed", "score"]),
    json_values | st.lists(near_objects, max_size=3),
)
pieces = [*rewards.FINAL_PHRASES[:3], *rewards.HEADINGS, *ITEMS]
pieces += ["```json", "```", "None", "\n", " ", "{", "[", GOLD_JSON]
near_answers = st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=8).map("".join)


@quick
@given(st.text() | near_answers | near_differences.map(json.dumps), st.text() | near_answers)
def test_any_string_gets_a_number_in_range(answer, truth):
    binary, task = both(answer)
    assert type(binary) is float and binary in (0.0, 1.0)
    assert type(task) is float and 0 <= task <= 1.3
    for metric in (official_web_page, strict_web_page, exact_match, line_f1):
        value = metric(answer, truth)
        assert type(value) is float and 0 <= value <= 1
    for metric in (strict_web_page, line_f1, exact_match):
        assert metric(answer, answer) == 1.0


@quick
@given(st.lists(near_objects | json_values, max_size=3))
def test_any_list_as_a_predicted_state_gets_a_number_in_range(predicted):
    assert strict_text_game(predicted, STATE, NEXT, "binary") in (0.0, 1.0)
    assert 0 <= strict_text_game(predicted, STATE, NEXT, "task") <= 1.3


# --------------------------------------------------------------------------------------------------
# Time: an answer of 1 MB takes well below a second; what is quadratic would take hours


@contextlib.contextmanager
def within(seconds):
    """
    Fails a test that takes too much of this process's own time, instead of letting it hang.

    A busy machine does not count.
    pytest.fail raises a BaseException, which no `except Exception` in the code under test swallows.
    """

    def fail(*_):
        pytest.fail(f"took more than {seconds} s")

    old = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)


MB = 1_000_000
many = range(9, 40_000)
LONG_ANSWERS = {
    "backticks": "`" * MB,
    "open fences": "```json" * (MB // 7),
    "blanks": "```json" + " " * MB,
    "one line": "x" * MB,
    "lines": "x\n" * (MB // 2),
    "blanks and fences": ("```json" + "\n " * 500) * (MB // 1007),
    "blank blocks": "```json   ```" * (MB // 13),
    "headings": "New items:\n" * (MB // 11),
    "phrases": "The final answer is:" * (MB // 20),
    "deep lists": "[" * MB,
    "deep objects": '{"modified":' * (MB // 12),
    "digits": "1" * MB,
    "many modified": '{"removed":[],"score":{},"modified":[' + '{"uuid":1},' * (MB // 11) + "{}]}",
    "many new": json.dumps(
        {"removed": list(many), "modified": [{"uuid": i} for i in many], "score": {}}
    ),
}


@pytest.mark.parametrize("answer", LONG_ANSWERS.values(), ids=LONG_ANSWERS)
def test_time_is_linear_in_the_answer(answer):
    with within(5):
        assert all(0 <= value <= 1.3 for value in both(answer))
        for metric in (official_web_page, strict_web_page, exact_match, line_f1):
            assert 0 <= metric(answer, GOLD_PAGE) < 1


def test_time_is_linear_in_a_parsed_difference():
    with within(5):
        long = difference(*map(thing, range(10_000)), removed=range(-90_000, 0))
        predicted = apply_difference(STATE, long)
        assert 0 <= strict_text_game(predicted, STATE, NEXT, "task") < 1.3


@pytest.mark.parametrize("depth", [900, 1_100, 100_000])
def test_deep_nesting_is_no_way_out(depth):
    """
    A list nested deeper than Python recurses must end in a reward.

    In the parser as well as in the comparison.
    """
    nest = "[" * depth + "]" * depth
    answer = GOLD_JSON.replace('"color": "red"', f'"color": {nest}')
    assert both(answer) in (close(0, 0.09 * 7 / 8 + 0.01 + 1), (0, 0))
