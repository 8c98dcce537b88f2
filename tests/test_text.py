"""
Text worlds: the compact language of text games, the byte-pair encoding, batches, scoring, and the
preparation of the real data.
"""

import gzip
import json
import re
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
import train_rlvr
from common import BadInput
from data import load_world
from data.bpe import encoding, train_bpe
from data.text import TextWorld, marked, write_text_world
from data.textgame import games, lines, prepare
from data.textgame.task import TASK as lines_task
from data.world import load_task
from model import Model, ModelConfig


def game_state(t):
    return t["game_state"] + [t["score"]]


@pytest.fixture(scope="module")
def transitions():
    return list(games.transitions(14, seed=5))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "textgame"
    prepare.main(["--instances=14", "--held_out=7", f"--out={folder}", "--vocab_size=600"])
    return load_world(str(folder))


# --------------------------------------------------------------------------------------------------
# The compact language


def check_round_trip(state, next_id, game, difference, defaults):
    text = lines.write_state(game, state, next_id, defaults)
    read_game, read_state, read_next = lines.read_state(text, defaults)
    assert (read_game, read_next) == (game, next_id)
    assert json.dumps(read_state, sort_keys=True) == json.dumps(state, sort_keys=True)
    answer = lines.write_difference(difference, state, defaults)
    read = lines.read_difference(answer, state, defaults)
    expected, got = (rewards.apply_difference(state, d) for d in (difference, read))
    assert json.dumps(got, sort_keys=True) == json.dumps(expected, sort_keys=True), answer
    return answer


def check_record(t, defaults):
    """The same for a transition of games.transitions(), or of a file of ByteSized32."""
    own = defaults[t["game"]]
    return check_round_trip(game_state(t), t["uuid_base"], t["game"], t["diff"], own)


def test_procedural_records_round_trip(transitions):
    read = [json.loads(json.dumps(t)) for t in transitions]
    defaults = prepare.type_defaults([prepare.compact(t, "here") for t in read])
    assert any(defaults[game][type_] for game in defaults for type_ in defaults[game])
    for t in transitions:
        answer = check_record(t, defaults)
        assert (answer == lines.SAME) == (not t["changed"])


@pytest.mark.parametrize("file,every", [("test", 1), ("train", 20)])
def test_real_records_round_trip(shared, file, every):
    """
    Every record of the test set and every 20th of training (all 155,766 were checked once; it takes
    25 s).
    """
    about = json.loads((shared / "data/bytesized32/games.json").read_text())
    defaults = {game: value["defaults"] for game, value in about.items()}
    with gzip.open(shared / f"data/bytesized32/{file}.jsonl.gz", "rt") as records:
        for number, line in enumerate(records):
            if number % every == 0:
                check_record(json.loads(line), defaults)


def lists_and_dictionaries(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)


plain_values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
json_values = st.recursive(
    plain_values | st.text(max_size=12), lists_and_dictionaries, max_leaves=5
)
property_names = st.sampled_from(["isOn", "t", "color", "x_1"])
objects = st.lists(
    st.builds(
        dict,
        name=st.text(min_size=1, max_size=8),
        type=st.sampled_from(["Cup", "Stove"]),
        contains=st.just([]),
        properties=st.dictionaries(property_names, json_values, max_size=3),
    ),
    min_size=2,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(objects, objects, json_values, st.data())
def test_any_state_and_difference_round_trip(before, after, score, data):
    """Hostile names and values: quotes, '#3', '(ID: 3)', newlines, True beside 1, nested lists."""
    for i, item in enumerate(before):
        item["uuid"] = i
        if data.draw(st.booleans()):
            item["name"] = f"{item['name']} (ID: {i})"
    names = list({item["name"] for item in before})
    some_names = st.lists(st.sampled_from(names), max_size=3, unique=True)
    before[0]["contains"] = data.draw(some_names)
    state = before + [{"score": score, "gameOver": False, "gameWon": False}]
    for i, item in enumerate(after):
        item["uuid"] = i
        if i < len(before):
            item["name"] = before[i]["name"]
    after[0]["contains"] = data.draw(some_names)
    all_names = {item["name"] for item in before + after}
    if len(names) < len(before) or len(all_names) < max(len(before), len(after)):
        return  # equal names cannot be told apart; the real data's are unique among the contained
    defaults = {"Cup": {"isOn": True, "t": 1}}
    new_score = {"score": 1, "gameOver": True, "gameWon": False}
    difference = {"modified": after, "removed": [], "score": new_score}
    check_round_trip(state, 9, "some game", difference, defaults)


def test_false_and_zero_are_kept_apart_inside_lists():
    """Guards against an object that is called unchanged because False == 0."""
    cup = dict(uuid=0, name="cup", type="Cup", contains=[], properties={"t": [False, 1]})
    state = [cup, {"score": 0, "gameOver": False, "gameWon": False}]
    other = {**cup, "properties": {"t": [0, True]}}
    difference = {"modified": [other], "removed": [], "score": {}}
    check_round_trip(state, 1, "some game", difference, {})


BAD_ANSWERS = [
    "",
    " ",
    "same ",
    "same\n",
    "\nsame",
    "sam",
    "#99 isOn",
    "#1",
    "#1  isOn",
    "gone",
    "gone #99",
    "gone #1#1",
    "score",
    "score x",
    "score 1 won over",
    "score 1\nscore 1",
    "new #1 cup : Cup",
    "new #77 cup",
    "#1 -#99",
    "#1 +#99",
    "#1 isOn=",
    "#1 isOn={",
    "#1 isOn=[1",
    "#1 @uuid=3",
    "#1 ~nothing",
    "#1 nothing+=1",
    "#1 isOpen+=1",
    '#1 isOpen["a"]=1',
    '#1 nothing["a"]=1',
    '#1 x["a"',
    "#1 x+=",
    "#1 x+=1e9",
    "#1 x+=" + "9" * 5000,
    "#1 ->",
    "#1 ->#99",
    "#1 ->1",
    "new #77 cup : Cup ->#99",
    "isOn\ngone",
    "#1 isOn\nsame",
    "#1 isOn\n#1 isOn",
    "#1 isOn hello=",
    "[" * 5000,
    "#1 x=" + "[" * 5000,
    "#1 x=" + "9" * 5000,
    "\ud800",
    "#١ isOn",
]


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_malformed_answers_are_refused_and_worth_nothing(world, answer):
    """Guards against rewards for empty, repeated, extra or cut text."""
    truth = world.truth("train", 0)
    before = json.dumps(truth)
    with pytest.raises(ValueError):
        lines.read_difference(answer, truth.state, truth.defaults)
    for scores in world.score_texts("train", 0, [answer, None], world.metrics):
        assert set(scores) == set(world.metrics) and set(scores.values()) == {0.0}
    assert json.dumps(world.truth("train", 0)) == before  # reading answers changes no truth


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='#0123 isOn=-+>~!@"[]{}:\nscoregonewsam', max_size=40))
def test_any_answer_is_read_or_refused(text):
    box = {"name": "box (ID: 1)", "uuid": 1, "type": "Box", "properties": {"isOn": False}}
    box["contains"] = ["cup (ID: 2)"]
    cup = {"name": "cup (ID: 2)", "uuid": 2, "type": "Cup", "properties": {}, "contains": []}
    state = [box, cup, {"score": 0, "gameOver": False, "gameWon": False}]
    try:
        difference = lines.read_difference(text, state, {})
    except ValueError:
        return
    assert set(difference) == {"modified", "removed", "score"}


def thing(uuid, name, contains=(), **properties):
    item = {"name": f"{name} (ID: {uuid})", "uuid": uuid, "type": name.title()}
    return {**item, "properties": properties, "contains": list(contains)}


def test_compact_language_by_hand():
    """The lines of the module's docstring, each against the difference it stands for."""
    cup = thing(6, "cup")
    box = thing(0, "box")
    inside = ["cup (ID: 6)", "box (ID: 0)"]
    room = thing(1, "room", inside, isOn=False, t=20, wires={"a": None, "n": 1})
    state = [room, box, cup, {"score": 0, "gameOver": False, "gameWon": False}]
    defaults = {"Room": {"t": 20, "wires": {"a": None, "n": 1}}}
    assert lines.write_state("g", state, 7, defaults) == (
        "game g\nscore 0\nnext #7\n#1 room : Room !isOn >#6#0\n#0 box : Box\n#6 cup : Cup\n"
    )
    without_cup = {**room, "contains": ["box (ID: 0)"]}
    with_cup = {**box, "contains": ["cup (ID: 6)"]}
    with_tea = {**box, "contains": ["tea (ID: 7)"]}

    def changed(**properties):
        return {**room, "properties": {**room["properties"], **properties}}

    without_t = {**room, "properties": {"isOn": False, "wires": {"a": None, "n": 1}}}
    wired = {"a": ["cup (ID: 6)", None], "n": 1}
    won = {"score": 1, "gameOver": True, "gameWon": True}
    for text, modified, removed, score in [
        ("same", [], [], {}),
        ("#6 ->#0", [without_cup, with_cup], [], {}),
        ("gone #6", [without_cup], [6], {}),
        ("#1 isOn t+=5", [changed(isOn=True, t=25)], [], {}),
        ("#1 t=0", [changed(t=0)], [], {}),
        ("#1 t+=5.0", [changed(t=25.0)], [], {}),
        ("#1 t+=0.5", [changed(t=20.5)], [], {}),
        ('#1 wires["a"]=["cup#6",null]', [changed(wires=wired)], [], {}),
        ('#1 wires["n"]+=2', [changed(wires={"a": None, "n": 3})], [], {}),
        ("#1 ~t", [without_t], [], {}),
        ("new #7 tea : Tea hot ->#0", [with_tea, thing(7, "tea", hot=True)], [], {}),
        ("#1 -#6", [without_cup], [], {}),
        ("score 1 over won", [], [], won),
    ]:
        read = lines.read_difference(text, state, {})
        by_uuid = lambda item: item["uuid"]
        assert sorted(read["modified"], key=by_uuid) == sorted(modified, key=by_uuid), text
        assert (read["removed"], read["score"]) == (removed, score)
        assert lines.write_difference(read, state, {}) == text
    # both say the same
    by_value, by_step = (lines.read_difference(f"#1 {w}", state, {}) for w in ("t=25", "t+=5"))
    assert by_value == by_step
    down = lines.read_difference("#1 t-=3", state, {})
    assert down["modified"][0]["properties"]["t"] == 17 and room["properties"]["t"] == 20


def test_the_papers_json_form(transitions, tmp_path):
    """The same scores as the lines', raw by the official scorer; thinking before it is free."""
    prepare.main([f"--out={tmp_path / 'a'}", "--instances=9", "--held_out=8", "--form=json"])
    world = load_world(str(tmp_path / "a"))
    names = list(world.task.metrics)
    assert names == list(lines_task.metrics) and "permute_ids" in world.foreign_options
    same = world.task.nothing_changes
    for i, record in enumerate(world.records["val"][:60]):
        truth = world.truth("val", i)
        text = json.loads(record["state"])
        assert [*text["game_state"], text["score"]] == truth.state
        thinking = "I look. The final answer is: " + record["response"]
        no_score = json.dumps(
            {k: v for k, v in json.loads(record["response"]).items() if k != "score"}
        )
        bad = (
            "no",
            "{}",
            '{"modified": 3, "removed": [[]]}',
        )
        answers = [record["response"], thinking, same, no_score, *bad]
        scores = world.score_texts("val", i, answers, names)
        assert scores[0] == scores[1] and scores[0]["strict_binary"] == 1
        assert (scores[2]["strict_binary"] == 1) == (not record["changed"])
        for answer, score in zip(answers, scores):
            for kind in ("binary", "task_specific"):
                name = "official_task" if kind != "binary" else "official_binary"
                raw = rewards.official_text_game(answer, truth.state, truth.next_state, kind)
                assert score[name] == raw
        assert all(score["strict_task"] == 0 for score in scores[4:])
        assert scores[3]["official_binary"] == 0  # the official scorer wants a score
    with pytest.raises(ValueError):
        world.task.as_truth("{}", world.truth("val", 0))


def test_permuting_uuids_is_a_symmetry(transitions):
    """
    The answer to the permuted question, applied to the permuted state, is the permuted next state.
    """
    rng = np.random.default_rng(0)
    for t in transitions[:60]:
        state = game_state(t)
        question = lines.write_state(t["game"], state, t["uuid_base"], {})
        answer = lines.write_difference(t["diff"], state, {})
        new_id = rng.permutation(t["uuid_base"] + 3).tolist()
        new_question, new_answer = load_task("textgame").permute([question, answer], new_id)
        _, new_state, _ = lines.read_state(new_question, {})
        got = rewards.apply_difference(new_state, lines.read_difference(new_answer, new_state, {}))
        expected = rewards.apply_difference(state, t["diff"])
        assert len(got) == len(expected) and got[-1] == expected[-1]
        for new, old in zip(got[:-1], expected[:-1]):
            assert new["uuid"] == new_id[old["uuid"]]
            assert new["properties"].keys() == old["properties"].keys()
            assert len(new["contains"]) == len(old["contains"])


# --------------------------------------------------------------------------------------------------
# The byte-pair encoding


def test_bpe_by_hand():
    merged = train_bpe([("aaabdaaabac", 10)], 256 + 1 + 3)
    assert merged == [b"aa", b"aaa", b"aaab"] or merged == [b"aa", b"ab", b"aaab"]


def test_bpe_encodes_as_its_merges_say_and_loses_nothing(world):
    """tiktoken's result against the merges applied in order, on the world's own texts."""
    ranks = {bytes([b]): b for b in range(256)}
    for i, token in enumerate(json.loads((world.folder / "bpe.json").read_text())):
        ranks[bytes.fromhex(token)] = 256 + i
    for record in world.records["train"][:40]:
        for text in (record["state"], record["prompt"], record["response"]):
            ids = []
            for piece in re.findall(world.task.token_pattern, text):
                parts = [bytes([b]) for b in piece.encode()]
                while len(parts) > 1:
                    pairs = [a + b for a, b in zip(parts, parts[1:])]
                    best = min(pairs, key=lambda pair: ranks.get(pair, 10**9))
                    if best not in ranks:
                        break
                    i = pairs.index(best)
                    parts[i : i + 2] = [best]
                ids += [ranks[part] for part in parts]
            assert world.bpe.encode_ordinary(text) == ids
            assert world.bpe.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_the_encoding(text):
    bpe = encoding([b"ab", b" a"])
    text = text.encode("utf-8", "replace").decode()
    assert isinstance(bpe, tiktoken.Encoding)
    assert bpe.decode(bpe.encode_ordinary(text)) == text


# --------------------------------------------------------------------------------------------------
# The world


def test_gold_answers_get_the_maximum(world):
    """
    Guards against a metric that the true answer does not win, on decoded tokens; an answer without
    an end token gets nothing.
    """
    indices = list(range(40))
    batch = world.batch("train", indices)
    scores = world.score(batch, batch.response[:, None], world.metrics)
    assert (scores["strict_binary"] == 1).all()
    assert torch.allclose(scores["strict_task"], torch.tensor(1.3))
    created = []
    for i in indices:
        answer = world.records["train"][i]["response"].split("\n")
        created.append(any(line.startswith("new ") for line in answer))
    # the official recovery drops new objects
    assert [bool(v) for v in scores["official_binary"][:, 0]] == [not c for c in created]
    unended = batch.response[:, None].masked_fill(batch.response[:, None] == world.eos_id, 0)
    assert (world.score(batch, unended, ["strict_task"])["strict_task"] == 0).all()


def test_score_is_per_answer_and_needs_the_right_record(world):
    batch = world.batch("train", [0, 1, 2, 3])
    tokens = batch.response[:, None].repeat(1, 3, 1)
    tokens[:, 1] = world.eos_id  # an empty answer
    scores = world.score(batch, tokens, ["strict_task"])["strict_task"]
    assert scores.shape == (4, 3)
    assert (scores[:, 1] == 0).all() and (scores[:, [0, 2]] > 1.2).all()


def test_batch_layout(world):
    batch = world.batch("val", [3, 0, 7])
    for row, i in enumerate([3, 0, 7]):
        state, prompt, response = world.tokens["val"][i]
        assert batch.prompt[row, : batch.prompt_len[row]].tolist() == state + prompt
        assert batch.response[row][batch.response_mask[row]].tolist() == response + [world.eos_id]
    assert (batch.prompt[1, batch.prompt_len[1] :] == world.eos_id).all()


def test_answers_to_permuted_prompts_are_scored_as_answers_to_the_records(world):
    """
    A batch with other uuids is another text, and the right answer to it, decoded, is the record's
    own.
    """
    indices = [i for i, record in enumerate(world.records["train"]) if record["changed"]][:40]
    batch = world.batch("train", indices, 0.5, np.random.default_rng(0))
    decoded = world.decode(batch, batch.response[:, None])
    other = 0
    for row, (i, (answer,)) in enumerate(zip(indices, decoded)):
        record = world.records["train"][i]
        assert answer == record["response"]
        prompt = world.bpe.decode(batch.prompt[row, : batch.prompt_len[row]].tolist())
        raw = world.bpe.decode(batch.response[row][batch.response_mask[row]].tolist()[:-1])
        permuted = batch.undo[row] is not None
        assert (prompt != record["state"] + record["prompt"]) == permuted
        assert permuted or raw == answer
        other += raw != answer
        # it speaks of the objects of its own prompt
        defaults = world.shared["defaults"][record["kind"]]
        state = lines.read_state(prompt.rsplit("\n> ", 1)[0], defaults)[1]
        lines.read_difference(raw, state, defaults)
    assert 10 < other < 30
    scores = world.score(batch, batch.response[:, None], ["strict_binary"])
    assert (scores["strict_binary"] == 1).all()
    nothing = torch.zeros_like(batch.response[:, None])
    assert world.decode(batch, nothing) == [[None]] * len(indices)


@pytest.mark.parametrize("permute_ids", [0.0, 1.0])
def test_a_rollout_has_as_many_permuted_prompts_as_asked_for(world, permute_ids):
    model = Model(ModelConfig(world.vocab_size, world.block_size, 1, 2, 2, 16))
    config = train_rlvr.Config(prompts_per_step=20, group_size=2, permute_ids=permute_ids)
    watch = train_rlvr.Watch(torch.device("cpu"))
    terms = [(1.0, "strict_task")]
    given = model, world, terms, config, nullcontext(), np.random.default_rng(0), watch
    experience, _, drawn, _ = train_rlvr.collect(*given)
    assert len(drawn) == len(experience.prompt) == 20
    same = 0
    for i, prompt, length in zip(drawn, experience.prompt, experience.prompt_len):
        state, own, _ = world.tokens["train"][i]
        same += prompt[:length].tolist() == state + own
    assert same == (0 if permute_ids else 20)


@pytest.mark.parametrize("permute_ids", [0.0, 1.0])
def test_mle_batches_hold_whole_records_behind_their_state(world, permute_ids):
    known = {(tuple(s), tuple(p + r)) for s, p, r in world.tokens["train"]}
    seen = 0
    options = dict(branches=4, changed_fraction=0.5, permute_ids=permute_ids, prompt_loss=0.25)
    batches = world.mle_batches(40, np.random.default_rng(0), 3, **options)
    for prompt, prompt_len, response, weight in batches:
        assert len(prompt) <= 3
        mask = weight == 1
        for b in range(len(prompt)):
            state = prompt[b, : prompt_len[b]].tolist()
            for g in range(response.size(1)):
                if not mask[b, g].any():
                    continue  # a state with fewer records than branches
                start = mask[b, g].nonzero().min().item()
                end = mask[b, g].nonzero().max().item()
                assert mask[b, g, start : end + 1].all() and response[b, g, end] == world.eos_id
                action = world.bpe.decode(response[b, g, :start].tolist())
                answer = world.bpe.decode(response[b, g, start:end].tolist())
                assert action.startswith("> ") and action.endswith("\n")
                assert (weight[b, g, :start] == 0.25).all() and (weight[b, g, end + 1 :] == 0).all()
                seen += 1
                if permute_ids == 0:
                    assert (tuple(state), tuple(response[b, g, :end].tolist())) in known
                else:  # still a consistent transition: the answer can be applied to the state
                    text = world.bpe.decode(state)
                    defaults = world.shared["defaults"][text.split("\n")[0][5:]]
                    lines.read_difference(answer, lines.read_state(text, defaults)[1], defaults)
    assert seen > 20


def test_draw_follows_its_weights(world):
    rng = np.random.default_rng(0)
    records = world.records["train"]
    for fraction in (0.0, 1.0):
        drawn = [records[i]["changed"] for i in world.draw("train", 200, rng, fraction)]
        assert all(changed == bool(fraction) for changed in drawn)
    kinds = [records[i]["kind"] for i in world.draw("train", 7000, rng, kind_power=0.0)]
    counts = np.unique(kinds, return_counts=True)[1]
    assert counts.min() > 800 and counts.max() < 1200  # power 0: seven kinds, equally often


def test_splits_share_no_state(world):
    states = {split: {r["state"] for r in world.records[split]} for split in world.records}
    assert not states["train"] & states["test"] and not states["train"] & states["val"]
    assert not states["val"] & states["test"]


# --------------------------------------------------------------------------------------------------
# The real data


def test_official_form_reads_like_the_compact_form(shared):
    folder = shared / "data/bytesized32"
    ours = {}
    with gzip.open(folder / "test.jsonl.gz", "rt") as file:
        for line in file:
            raw = json.loads(line)
            ours[raw["game"], raw["state_id"]] = prepare.compact(raw, "here")
    with gzip.open(folder / "official_test.jsonl.gz", "rt") as file:
        for line in file:
            raw = json.loads(line)
            key = raw["game"], raw["state_id"]
            a = prepare.compact(raw, "there")
            b = ours[key]
            assert (a["action"], a["next_id"]) == (b["action"], b["next_id"])
            after = [rewards.apply_difference(t["state"], t["difference"]) for t in (a, b)]
            if key == ("make-campfire", 153):
                continue  # a rename that the official difference leaves out
            facts = []
            for state in after:
                items = {i["uuid"]: (i["properties"], sorted(i["contains"])) for i in state[:-1]}
                facts.append((items, state[-1]))
            assert facts[0] == facts[1]


def tiny_bytesized32(folder, transitions):
    folder.mkdir(exist_ok=True)
    for name, part in (("train", transitions[:200]), ("test", transitions[200:300])):
        text = "".join(json.dumps(t) + "\n" for t in part)
        (folder / f"{name}.jsonl").write_text(text)


def prepared(tmp_path, *options):
    """Runs prepare.py on tmp_path/raw."""
    out = tmp_path / "w"
    prepare.main(["--source=bytesized32", f"--path={tmp_path / 'raw'}", f"--out={out}", *options])
    return out


@pytest.mark.parametrize("split,key", [("official", None), ("state", "state"), ("game", "kind")])
def test_bytesized32_splits(tmp_path, transitions, split, key):
    # every kind in both files
    pool = sorted(transitions, key=lambda t: (t["step"], t["instance"]))
    tiny_bytesized32(tmp_path / "raw", pool)
    world = load_world(prepared(tmp_path, f"--split={split}", "--val_records=30"))
    pairs = {}
    values = {}
    for name, records in world.records.items():
        pairs[name] = {(r["state"], r["prompt"]) for r in records}
        values[name] = {r[key] for r in records} if key else set()
    assert not values["train"] & values["test"] and not values["train"] & values["val"]
    assert not values["val"] & values["test"]
    if not key:
        assert len(world.records["test"]) == 100 and not pairs["train"] & pairs["val"]
        assert len(world.records["train"]) + len(world.records["val"]) == 200


def test_records_of_a_state_share_it_once(tmp_path, transitions):
    """
    Guards against truths that point at another state: the shared state of a record is what its text
    says, and its truth what its answer leads to; no state is written twice.
    """
    tiny_bytesized32(tmp_path / "raw", transitions)
    world = load_world(prepared(tmp_path, "--val_records=30"))
    numbers = {}
    for split, records in world.records.items():
        for i, record in enumerate(records):
            truth = world.truth(split, i)
            numbers.setdefault(record["truth"]["state"], set()).add(record["state"])
            assert lines.read_state(record["state"], truth.defaults)[1] == truth.state
            read = lines.read_difference(record["response"], truth.state, truth.defaults)
            assert rewards.apply_difference(truth.state, read) == truth.next_state
    assert all(len(texts) == 1 for texts in numbers.values())
    states = [json.dumps(state) for state in world.shared["states"]]
    assert len(set(states)) == len(states) == len(numbers) > 10


def test_validation_asks_for_effects_that_training_does_not_show():
    train = []  # 63 effects a kind, of 6 or 7 records each
    for kind in "ab":
        for changed in (True, False):
            for i in range(400):
                record = {"kind": kind, "state": f"{kind}{i % 9}", "changed": changed, "n": i}
                train.append({**record, "response": f"{i % 7}" if changed else "same"})
    like = [{"kind": "a", "changed": True}] * 3 + [{"kind": "a", "changed": False}] * 6
    like.append({"kind": "b", "changed": True})

    def counts(records):
        return Counter((r["kind"], r["changed"]) for r in records)

    kept, val = prepare.cut_validation(train, like, 100, np.random.default_rng(0))
    assert counts(val) == {("a", True): 30, ("a", False): 60, ("b", True): 10}
    assert len(kept) == 1500 and not {id(r) for r in kept} & {id(r) for r in val}
    shown = {(r["state"], r["response"]) for r in kept}
    changes = [r for r in val if r["kind"] == "a" and r["changed"]]
    new = [r for r in changes if (r["state"], r["response"]) not in shown]
    assert 9 <= len(new) <= 15  # as many whole effects as fit into half of the 30
    _, val = prepare.cut_validation(train, like, 1000, np.random.default_rng(0))
    # never more than 15 %
    assert counts(val) == {("a", True): 60, ("a", False): 60, ("b", True): 60}


@pytest.mark.parametrize(
    "spoil,words",
    [
        (lambda text: text[:-30], ["line 200", "cut short"]),
        (lambda text: '{"a": 1}\n' + text, ["line 1", "lacks"]),
        (lambda text: "hello\n" + text, ["line 1", "JSON"]),
        (lambda text: "[1, 2]\n" + text, ["line 1"]),
        (lambda text: text.replace('"uuid_base"', '"x"', 1), ["line 1", "uuid_base"]),
        (lambda text: "", ["empty"]),
    ],
)
def test_bad_real_data_is_one_sentence_and_leaves_nothing(tmp_path, transitions, spoil, words):
    tiny_bytesized32(tmp_path / "raw", transitions)
    file = tmp_path / "raw" / "train.jsonl"
    file.write_text(spoil(file.read_text()))
    with pytest.raises(BadInput) as error:
        prepared(tmp_path)
    message = str(error.value)
    assert all(word in message for word in [*words, "train.jsonl"]) and "\n" not in message
    assert not list(tmp_path.glob("w*"))


def test_cut_gzip_is_one_sentence(tmp_path, transitions):
    tiny_bytesized32(tmp_path / "raw", transitions)
    file = tmp_path / "raw" / "train.jsonl"
    (tmp_path / "raw" / "train.jsonl.gz").write_bytes(gzip.compress(file.read_bytes())[:-50])
    file.unlink()
    with pytest.raises(BadInput, match=r"train.jsonl.gz cannot be read after line \d+ \(EOFError"):
        prepared(tmp_path)
    assert not list(tmp_path.glob("w*"))


def test_empty_split_and_bad_world_files(tmp_path):
    own = load_task("own")
    record = {"prompt": "a", "response": "b"}
    with pytest.raises(BadInput, match="val split"):
        write_text_world(tmp_path / "w", "own", own, {"train": [record], "val": [], "test": []})
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadInput, match="there is no world in .*nowhere"):
        load_world(tmp_path / "nowhere")
    write_text_world(tmp_path / "w", "own", own, {s: [record] for s in ("train", "val", "test")})
    line = json.dumps(record) + "\n"
    for name, text, words in [
        ("val.jsonl", line + '{"prompt": "a", "resp', "val.jsonl, line 2"),
        ("val.jsonl", '{"prompt": "a"}\n', "'response'"),
        ("shared.json", "{", "damaged"),
        ("bpe.json", '["zz"]', "damaged"),
        ("meta.json", "{", "damaged"),
        ("meta.json", '{"form": "text", "domain": "own"}', "damaged"),
        ("meta.json", '{"domain": "own", "reward": "exact_match"}', "another version"),
    ]:
        whole = (tmp_path / "w" / name).read_text()
        (tmp_path / "w" / name).write_text(text)
        with pytest.raises(BadInput, match=words) as error:
            load_world(tmp_path / "w")
        assert "\n" not in str(error.value)
        (tmp_path / "w" / name).write_text(whole)
    assert load_world(tmp_path / "w").reward == "exact_match"


def test_lines_are_marked_however_they_are_put():
    """Guards against a perfect answer that is called wrong, or a missing line that is not shown."""
    true = "#1 isOpen\nscore 1"
    assert marked("score 1\n#2 isOn", true, False) == [
        ("right", "score 1"),
        ("wrong", "#2 isOn"),
        ("missing", "#1 isOpen"),
    ]
    assert marked("#1 isOpen=true\nscore 1", true, True) == [
        ("right", "#1 isOpen=true"),
        ("right", "score 1"),
    ]
    assert marked(None, "same", False) == [("wrong", "(no end)"), ("missing", "same")]


def test_units_are_games_or_states_or_prompts():
    """Guards against intervals over transitions, which are not independent within a game."""
    records = [
        {"unit": "game 1", "state": "a", "prompt": "x"},
        {"unit": "game 1", "state": "b", "prompt": "y"},
        {"state": "b", "prompt": "x"},
        {"prompt": "x"},
    ]
    world = SimpleNamespace(records={"test": records})
    assert TextWorld.units(world, "test", [3, 0, 1, 2]) == ["x", "game 1", "game 1", "b"]
