"""
Hostile input: 2,000 damaged files for each reader. Whatever is in them, it is read or refused in
one sentence, soon, and nothing of it is run.
"""

import gzip
import io
import json
import random
import time

import numpy as np
import pytest
import torch

import common
import rewards
from common import BadInput
from data import load_world
from data import text as text_module
from data.episodes import read_episode
from data.own import prepare as own
from data.text import json_lines, read_records
from data.textgame import games, lines
from data.textgame import prepare as textgame
from data.webnav import prepare as webnav
from data.webnav import shop
from data.world import load_task

INPUTS = 2000
JUNK = [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{" * 2000, b"[" * 2000, b'"', b"\\u0000"]
JUNK += [b"\\ud800", b"1e999", b"NaN", b"-Infinity", b"9" * 400, b"null", b"{}", b"[]", b"\n"]
JUNK += [b"#99999999999999999999", b"(ID: 3)", b"New items:", b"```json", b"</think>"]
JUNK += [b"__reduce__", b"\x80\x04\x95", b"true", b"-1", b'""', b"=" * 50]


def mutated(data, rng):
    """
    `data` with one to four small damages: flipped bits, a piece cut out, moved, repeated or
    overwritten, junk put in, the end cut off.
    """
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not data:
            break
        kind = rng.randrange(6)
        i = rng.randrange(len(data))
        j = min(len(data), i + rng.choice((1, 2, 8, 64)))
        if kind == 0:
            data[i] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[i:j]
        elif kind == 2:
            data[i:i] = data[i:j] * rng.choice((1, 3))
        elif kind == 3:
            data[i:i] = rng.choice(JUNK)
        elif kind == 4:
            data[i:j] = rng.choice(JUNK)
        else:
            del data[rng.choice((i, len(data) // 2)) :]
    return bytes(data)


def one_sentence(read, data, most_seconds=2.0):
    """
    Calls read(data). Any BadInput must be one line with something to do in it; any other exception
    fails. True if it was refused. Seconds are those of this process, whoever else is at work.
    """
    start = time.process_time()
    try:
        read(data)
        refused = False
    except BadInput as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)[:2000]
        refused = True
    assert time.process_time() - start < most_seconds, data[:200]
    return refused


def fuzz(read, originals, seed=0, inputs=INPUTS):
    rng = random.Random(seed)
    for data in originals:
        assert not one_sentence(read, data), "the undamaged input must be read"
    refused = sum(one_sentence(read, mutated(rng.choice(originals), rng)) for _ in range(inputs))
    assert refused > 0.1 * inputs, "the damages are too mild to test anything"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file"


def json_bytes(**record):
    return json.dumps(record).encode() + b"\n"


def test_own_jsonl(file):
    def read(data):
        file.write_bytes(data)
        for record in read_records(file, "mend it"):
            assert isinstance(record["prompt"] + record["response"], str)
            assert record.get("changed", True) in (True, False)

    rows = []
    for i in range(4):
        more = dict(state="é", truth="done", kind="k", changed=True)
        rows.append(json_bytes(prompt=f"state {i}\n", response="done", **more))
    fuzz(read, [b"".join(rows), rows[0]])


def test_own_prepare(tmp_path, capsys):
    """The script on damaged files: a world or a sentence, and never a half-written folder."""
    path = tmp_path / "mine.jsonl"
    out = tmp_path / "mine"
    rng = random.Random(1)
    rows = []
    for i in range(30):
        more = dict(state="n", truth="1", kind="sum")
        rows.append(json_bytes(prompt=f"{i} + 1 =", response=f" {i + 1}", **more))

    def read(data):
        path.write_bytes(data)
        own.main([f"--path={path}", f"--out={out}", "--vocab_size=270"])

    for _ in range(60):
        if one_sentence(read, mutated(b"".join(rows), rng)):
            assert not [p for p in tmp_path.iterdir() if ".tmp" in p.name]
    assert one_sentence(read, b"") and not one_sentence(read, b"".join(rows))


def test_text_game_records(file):
    records = [json.dumps(r).encode() for r in list(games.transitions(8, seed=1, steps=3))[::9]]

    def read(data):
        file.write_bytes(data)
        for where, raw in json_lines(file, "copy it again"):
            textgame.Writer({}).record(textgame.compact(raw, where))

    fuzz(read, records)


def test_web_page_rows(file):
    record = next(shop.transitions([0]))
    question = record["state"] + record["prompt"]
    chat = [{"role": "user", "content": "page"}]
    rows = [
        json_bytes(question=question, answer="<think>x</think>\n" + record["response"]),
        json_bytes(prompt=chat, reward_model={"ground_truth": record["response"]}),
    ]

    def read(data):
        file.write_bytes(data)
        for where, value in json_lines(file, "copy it again"):
            webnav.read_row(value, where)

    fuzz(read, rows)


def test_web_page_files(file):
    path = file.with_suffix(".jsonl")
    nothing = "New items:\nNone\n\nDeleted items:\nNone\n\nUpdated items:\nNone"
    row = json_bytes(question="page", answer=nothing)

    def read(data):
        path.write_bytes(data)
        for value, where in webnav.read_file(path):
            webnav.read_row(value, where)

    fuzz(read, [row * 3])


def test_episodes(file):
    path = file.with_suffix(".npz")
    image = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    action = np.zeros((4, 2), np.float32)
    buffers = []
    for save in (np.savez, np.savez_compressed):
        for more in ({}, {"state": np.ones((4, 3), np.float32)}):
            buffer = io.BytesIO()
            save(buffer, image=image, action=action, **more)
            buffers.append(buffer.getvalue())

    def read(data):
        path.write_bytes(data)
        episode = read_episode(path)
        assert episode.image.dtype == np.uint8 and episode.image.ndim == 4
        assert episode.action.dtype == np.float32
        assert len(episode.image) == len(episode.action)
        if episode.state is not None:
            assert episode.state.dtype == np.float32 and len(episode.state) == len(episode.image)

    fuzz(read, buffers)


def test_checkpoints(file):
    path = file.with_suffix(".pt")
    about = {"model_config": {"a": 1}, "stage": "mle", "progress": {}, "random": "x"}
    common.save_checkpoint(path, {"model": {"w": torch.ones(50)}, **about})
    whole = path.read_bytes()

    def read(data):
        path.write_bytes(data)
        checkpoint = common.load_checkpoint(path)
        # read at all means read right
        assert torch.equal(checkpoint["model"]["w"], torch.ones(50))

    fuzz(read, [whole])


def test_world_files(tmp_path, capsys):
    """meta.json, bpe.json, shared.json and the splits of a text world, damaged one at a time."""
    options = ["--instances=8", "--held_out=8", "--vocab_size=512"]
    textgame.main([f"--out={tmp_path / 'w'}", *options])
    rng = random.Random(2)
    names = ("meta.json", "bpe.json", "shared.json", "train.jsonl", "val.jsonl")
    whole = {name: (tmp_path / "w" / name).read_bytes() for name in names}

    def read(_):
        world = load_world(tmp_path / "w")
        batch = world.batch("train", list(range(min(8, len(world.records["train"])))))
        world.score(batch, batch.response[:, None], list(world.metrics))

    assert not one_sentence(read, b"", 10)
    for n in range(150):
        name = names[n % len(names)]
        original = whole[name]
        if name.endswith("l"):
            original = original[:20000]
        (tmp_path / "w" / name).write_bytes(mutated(original, rng))
        one_sentence(read, b"", 10)
        (tmp_path / "w" / name).write_bytes(whole[name])


def test_damaged_truths_of_a_world_are_one_sentence_or_scored(tmp_path, capsys):
    """
    Guards against a damaged shared.json or truth that ends in a traceback in the midst of training:
    small damages to the part that the records at hand look at.
    """
    options = ["--instances=8", "--held_out=8", "--vocab_size=512"]
    textgame.main([f"--out={tmp_path / 'w'}", *options])
    world = load_world(tmp_path / "w")
    batch = world.batch("train", [0])
    record = world.records["train"][0]
    shared = json.dumps({**world.shared, "states": world.shared["states"][:1]}).encode()
    truth = json.dumps(record["truth"]).encode()
    rng = random.Random(4)
    read_at_all = 0
    for n in range(INPUTS):
        try:
            damaged = json.loads(mutated((shared, truth)[n % 2], rng))
        except (ValueError, RecursionError):
            continue  # refused when it is read
        world.shared = damaged if n % 2 == 0 else json.loads(shared)
        record["truth"] = json.loads(truth) if n % 2 == 0 else damaged
        one_sentence(lambda _: world.score(batch, batch.response[:, None], world.metrics), b"")
        read_at_all += 1
    assert read_at_all > 0.1 * INPUTS


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    """Also from a gzip bomb: 300 MB of one line in 300 kB."""
    with gzip.open(tmp_path / "train.jsonl.gz", "wb") as bomb:
        for _ in range(300):
            bomb.write(b"x" * 10**6)
    mine = tmp_path / "mine.jsonl"
    mine.write_text("x" * 2000)
    monkeypatch.setattr(text_module, "LONGEST_LINE", 1000)
    for read in (
        lambda: read_records(mine, "mend it"),
        lambda: textgame.read_transitions(tmp_path, "train"),
        lambda: list(webnav.read_file(mine)),
    ):
        start = time.process_time()
        with pytest.raises(BadInput, match="line 1: longer than 1,000"):
            read()
        assert time.process_time() - start < 1


# --------------------------------------------------------------------------------------------------
# Answers of a model are bytes of any kind: a number in range, in bounded time, never an exception


def scored_by(task, truth):
    """A function of an answer: all metrics of a task, as a world computes them."""

    def score(answer):
        try:
            prediction = task.read(answer, truth)
        except (ValueError, TypeError):
            return [metric.worst for metric in task.metrics.values()]
        return [metric.function(prediction, truth) for metric in task.metrics.values()]

    return score


@pytest.fixture(scope="module")
def answers():
    """(function of an answer, a well-formed answer) for each domain."""
    t = next(t for t in games.transitions(8, seed=2) if t["changed"])
    state = t["game_state"] + [t["score"]]
    next_state = rewards.apply_difference(state, t["diff"])
    game = load_task("textgame")
    record = {"kind": t["game"], "truth": {"state": 0, "difference": t["diff"]}}
    game_truth = game.truth(record, {"states": [state], "defaults": {}})
    page = next(r for r in shop.transitions([1]) if r["changed"])["response"]

    def official(answer):
        kinds = ("binary", "task_specific")
        return [rewards.official_text_game(answer, state, next_state, kind) for kind in kinds]

    return [
        (scored_by(game, game_truth), lines.write_difference(t["diff"], state, {})),
        (official, "The final answer is: " + json.dumps(t["diff"])),
        (scored_by(load_task("webnav"), page), page),
        (scored_by(load_task("own"), "one\ntwo"), "one\ntwo"),
    ]


def test_any_answer_gets_a_number_in_range(answers):
    rng = random.Random(3)
    for score, good in answers:
        for _ in range(INPUTS):
            values = list(score(mutated(good.encode(), rng).decode("utf-8", "replace")))
            assert len(values) >= 2
            assert all(isinstance(v, (int, float)) and 0 <= v <= 1.3 for v in values)


PIECES = ["x", "\n", "{", "[1] link 'a'\n", "#3 ->#0\n", '{"modified": [', "New items:\n"]
PIECES += ["```json\n", "same\n", "new #9 a : B\n", "é", '"', " "]


@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_is_scored_in_no_time(answers, piece):
    """50 ms on a free machine; the test allows for a busy one."""
    answer = piece * (10**6 // len(piece.encode()))
    for score, good in answers:
        start = time.process_time()
        list(score(good + answer))
        list(score(answer))
        assert time.process_time() - start < 1.0
