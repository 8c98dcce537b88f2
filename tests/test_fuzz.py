"""Hostile input: 2,000 damaged files for each reader. Whatever is in them, it is read or refused in one sentence, soon, and nothing of it is run."""
import gzip
import io
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import common
import rewards
from common import BadInput
from data.episodes import read_episode
from data.own import prepare as own
from data.text import TextWorld, read_jsonl, score_text, score_textgame, score_webnav
from data.textgame import games, lines
from data.textgame import prepare as textgame
from data.webnav import prepare as webnav
from data.webnav import shop

INPUTS = 2000
JUNK = [b"\x00", b"\xff\xfe", b"{" * 2000, b"[" * 2000, b'"', b"\\u0000", b"\\ud800", b"1e999", b"NaN", b"-Infinity", b"9" * 400, b"null", b"{}", b"[]", b"\n",
        b"#99999999999999999999", b"(ID: 3)", b"New items:", b"```json", b"</think>", b"__reduce__", b"\x80\x04\x95", b"true", b"-1", b'""', b"=" * 50]


def mutated(data, rng):
    """`data` with one to four small damages: flipped bits, a piece cut out, moved, repeated or overwritten, junk put in, the end cut off."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not data:
            break
        kind, i = rng.randrange(6), rng.randrange(len(data))
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
            del data[rng.choice((i, len(data) // 2)):]
    return bytes(data)


def one_sentence(read, data, most_seconds=2.0):
    """Calls read(data). Any BadInput must be one line with something to do in it; any other exception fails. True if it was refused."""
    start = time.perf_counter()
    try:
        read(data)
        refused = False
    except BadInput as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)[:2000]
        refused = True
    assert time.perf_counter() - start < most_seconds, data[:200]
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


def test_own_jsonl(file):
    def read(data):
        file.write_bytes(data)
        read_jsonl(file)
    lines_ = [json.dumps({"prompt": f"state {i}\n", "response": "done", "context": "é", "changed": True}).encode() + b"\n" for i in range(4)]
    fuzz(read, [b"".join(lines_), lines_[0]])


def test_own_prepare(tmp_path, capsys):
    """The whole script on damaged files: a world or a sentence, and never a half-written folder."""
    path, out, rng = tmp_path / "mine.jsonl", tmp_path / "mine", random.Random(1)
    whole = b"".join(json.dumps({"prompt": f"{i} + 1 =", "response": f" {i + 1}", "context": "n", "truth": "1", "kind": "sum"}).encode() + b"\n" for i in range(30))

    def read(data):
        path.write_bytes(data)
        own.main([f"--path={path}", f"--out={out}", "--vocab_size=270"])
    for _ in range(60):
        if one_sentence(read, mutated(whole, rng)):
            assert not [p for p in tmp_path.iterdir() if ".tmp" in p.name]


def test_text_game_records(file):
    records = [json.dumps(r).encode() for r in list(games.transitions(8, seed=1, steps=3))[::9]]

    def read(data):
        t = textgame.compact(data.decode("utf-8", "replace"), "file, line 1")
        textgame.to_record(t, {}, {})
    fuzz(read, records)


def test_web_page_rows():
    record = next(shop.transitions([0]))
    question = {"question": record["context"] + record["prompt"], "answer": "<think>x</think>\n" + record["response"]}
    rows = [json.dumps(row).encode() for row in (question, {"prompt": [{"role": "user", "content": "page"}], "reward_model": {"ground_truth": record["response"]}})]

    def read(data):
        path = Path("rows.jsonl")
        for row in data.split(b"\n"):
            try:
                value = json.loads(row)
            except (ValueError, RecursionError):
                raise BadInput("not JSON") from None  # read_file's own sentence; below, with real files
            webnav.read_row(value, f"{path}, line 1")
    fuzz(read, rows)


def test_web_page_files(file):
    path = file.with_suffix(".jsonl")
    row = json.dumps({"question": "page", "answer": "New items:\nNone\n\nDeleted items:\nNone\n\nUpdated items:\nNone"}).encode() + b"\n"

    def read(data):
        path.write_bytes(data)
        for value, where in webnav.read_file(path):
            webnav.read_row(value, where)
    fuzz(read, [row * 3])


def test_episodes(file):
    path = file.with_suffix(".npz")
    buffers = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, image=np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3), action=np.zeros((4, 2), np.float32))
        buffers.append(buffer.getvalue())

    def read(data):
        path.write_bytes(data)
        image, action = read_episode(path)
        assert image.dtype == np.uint8 and image.ndim == 4 and action.dtype == np.float32 and len(image) == len(action)
    fuzz(read, buffers)


def test_checkpoints(file):
    path = file.with_suffix(".pt")
    common.save_checkpoint(path, {"model": {"w": torch.ones(50)}, "model_config": {"a": 1}, "stage": "mle", "random": "x"})
    whole = path.read_bytes()

    def read(data):
        path.write_bytes(data)
        checkpoint = common.load_checkpoint(path)
        assert torch.equal(checkpoint["model"]["w"], torch.ones(50))  # read at all means read right
    fuzz(read, [whole])


def test_world_files(tmp_path, capsys):
    """meta.json, bpe.json and the splits of a text world, damaged one at a time."""
    textgame.main(["--preset=smoke", f"--out={tmp_path}", "--instances=8", "--held_out=8"])
    rng = random.Random(2)
    names = ("meta.json", "bpe.json", "train.jsonl", "val.jsonl")
    whole = {name: (tmp_path / name).read_bytes() for name in names}

    def read(_):
        world = TextWorld(tmp_path)
        batch = world.batch("train", [0, 1])
        world.score(batch, batch.response[:, None], list(world.metrics))
    for n in range(120):
        name = names[n % len(names)]
        (tmp_path / name).write_bytes(mutated(whole[name][:20000] if name.endswith("l") else whole[name], rng))
        one_sentence(read, b"", 10)
        (tmp_path / name).write_bytes(whole[name])


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    """Also from a gzip bomb: 300 MB of one line in 300 kB."""
    with gzip.open(tmp_path / "train.jsonl.gz", "wb") as bomb:
        for _ in range(300):
            bomb.write(b"x" * 10 ** 6)
    (tmp_path / "mine.jsonl").write_text("x" * 2000)
    monkeypatch.setattr(common, "LONGEST_LINE", 1000)
    for read in (lambda: read_jsonl(tmp_path / "mine.jsonl"), lambda: textgame.read_transitions(tmp_path, "train"),
                 lambda: list(webnav.read_file(tmp_path / "mine.jsonl"))):
        start = time.perf_counter()
        with pytest.raises(BadInput, match="line 1: longer than 1,000"):
            read()
        assert time.perf_counter() - start < 1


# Answers of a model are bytes of any kind: a number in range, in bounded time, and never an exception


@pytest.fixture(scope="module")
def answers():
    """(functions of an answer, well-formed answers) for each domain."""
    t = next(t for t in games.transitions(8, seed=2) if t["changed"])
    state = t["game_state"] + [t["score"]]
    next_state = rewards.apply_difference(state, t["diff"])
    record = {"kind": t["game"]}
    page = next(r for r in shop.transitions([1]) if r["changed"])["response"]
    names = {"game": ("strict_binary", "strict_task", "official_binary", "official_task"), "page": ("strict_f1", "official_f1", "official_precision", "exact_match")}
    return [
        (lambda a: score_textgame(record, a, (state, next_state), names["game"], {}).values(), lines.write_difference(t["diff"], state, {})),
        (lambda a: [rewards.official_text_game(a, state, next_state, kind) for kind in ("binary", "task_specific")], "The final answer is: " + json.dumps(t["diff"])),
        (lambda a: score_webnav({}, a, page, names["page"], {}).values(), page),
        (lambda a: score_text({}, a, "one\ntwo", ("exact_match", "line_f1"), {}).values(), "one\ntwo"),
    ]


def test_any_answer_gets_a_number_in_range(answers):
    rng = random.Random(3)
    for score, good in answers:
        for _ in range(INPUTS):
            values = list(score(mutated(good.encode(), rng).decode("utf-8", "replace")))
            assert all(isinstance(value, (int, float)) and 0 <= value <= 1.3 for value in values)


@pytest.mark.parametrize("piece", ["x", "\n", "{", "[1] link 'a'\n", "#3 ->#0\n", '{"modified": [', "New items:\n", "```json\n", "same\n", "new #9 a : B\n", "é", '"', " "])
def test_a_megabyte_is_scored_in_no_time(answers, piece):
    """50 ms on a free machine; the test allows for a busy one."""
    answer = piece * (10 ** 6 // len(piece.encode()))
    for score, good in answers:
        start = time.perf_counter()
        list(score(good + answer))
        list(score(answer))
        assert time.perf_counter() - start < 1.0
