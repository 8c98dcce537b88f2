"""
What a task.py is to a world, and a world to everything else: a domain of one's own without a
changed line, metrics of any kind, files of one's own, and code that is never loaded by accident.
"""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch

import data.world
import evaluate
import sample
import train_mle
import train_rlvr
from common import BadInput
from data import load_world
from data.own import prepare as own
from data.robot import prepare as robot
from data.text import read_records, write_text_world
from data.world import Metric, TextTask, VideoTask, World, claim, load_task, read_meta
from generate import generate
from model import Model, ModelConfig

# A domain of one's own: sums in words of a's. "surplus" is how many a's too many or too few: less
# is better, and an answer that is none is worse than any. Its values are whole numbers.
TOY_TASK = """
from data.world import Metric, TextTask

def read(answer, truth):
    if set(answer) - {"a"}:
        raise ValueError("only a's are numbers")
    return len(answer)

TASK = TextTask(
    metrics={
        "right": Metric(lambda n, truth: n == truth, by_change=True),
        "surplus": Metric(lambda n, truth: abs(n - truth), better=-1, scale=1, worst=20),
        "score": Metric(lambda n, truth: -abs(n - truth), scale=1, worst=-20.0),
    },
    reward="right+0.1*surplus",
    token_pattern=r"a|.",
    nothing_changes="a",
    truth=lambda record, shared: record["truth"]["sum"],
    read=read,
)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A working folder with sums/task.py and mine.jsonl, a row of {"sum": n} for each pair."""
    monkeypatch.chdir(tmp_path)
    Path("sums").mkdir()
    Path("sums/task.py").write_text(TOY_TASK)
    rows = []
    for i in range(1, 6):
        for j in range(1, 6):
            truth = {"sum": i + j}
            rows.append(dict(prompt=f"{'a' * i}+{'a' * j}=", response="a" * (i + j), truth=truth))
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


TASK = "--task=sums/task.py"
PREPARE = ["--path=mine.jsonl", "--out=./mine", "--vocab_size=260", TASK]


def numbers(text):
    """The rows of a table in Markdown: {first cell: [the other cells]}."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("| "):
            first, *cells = (cell.strip() for cell in line.split("|")[1:-1])
            rows.setdefault(first, cells)  # of several tables the first
    return rows


def test_a_domain_of_ones_own_without_a_changed_line(toy, capsys):
    """
    Guards against domains known by name somewhere: preparation, both stages of training, the table
    and the sample of a domain that only its task.py knows.
    """
    own.main(PREPARE)
    world = "--world=./mine"
    shape = ["--n_layer=1", "--n_head=2", "--n_kv_head=2", "--n_embd=32", "--threads=1"]
    few = ["--eval_every=2", "--eval_records=4", "--threads=1"]
    train_mle.main([world, TASK, *shape, *few, "--steps=2", "--batch_size=8", "--warmup=1"])
    small = ["--steps=1", "--prompts_per_step=4", "--group_size=4", "--num_minibatches=2"]
    train_rlvr.main([world, TASK, *few, *small, "--reward=right+0.1*surplus+score"])
    capsys.readouterr()
    evaluate.main([world, TASK, "--best_of=4", "--seeds=2", "--threads=1"])
    table = numbers(capsys.readouterr().out)
    assert list(table[""][:3]) == ["right overall", "surplus", "score"]
    # copy says "a": right of none, and off by each sum less one
    mine = load_world("./mine", task="sums/task.py")
    sums = [record["truth"]["sum"] for record in mine.records["test"]]
    off = sum(n - 1 for n in sums) / len(sums)
    assert [float(cell) for cell in table["copy (nothing changes)"][:3]] == pytest.approx(
        [0, off, -off], abs=0.01
    )
    assert len(table["RLVR, T=1"]) == len(table[""]) and "±" in table["RLVR, T=1"][1]
    sample.main([world, TASK, "--number=2", "--color=false", "--threads=1"])
    printed = capsys.readouterr().out
    assert "rlvr/best.pt, greedy" in printed and len(re.findall("surplus", printed)) == 2
    log = [json.loads(line) for line in Path("out/mine-rlvr/metrics.jsonl").open()]
    judged = [row for row in log if "val_surplus" in row]
    for row in judged:
        value = row["val_right"] - 0.1 * row["val_surplus"] + row["val_score"]
        assert row["val_reward"] == pytest.approx(value, abs=1e-3)
    assert judged
    # the right answer is shown as right although the record's own text is another
    assert mine.is_perfect("test", 0, "a" * sums[0]) and not mine.is_perfect("test", 0, "a")


@pytest.mark.parametrize("script", [train_mle, train_rlvr, evaluate, sample])
def test_without_its_task_a_domain_gets_a_sentence(toy, script):
    """Guards against a world that is read with another domain's metrics, or ends in a traceback."""
    own.main(PREPARE)
    with pytest.raises(BadInput, match="'sums' needs its task: --task=FOLDER/sums/task.py"):
        script.main(["--world=./mine", "--threads=1"])
    with pytest.raises(BadInput, match="there is no toys/task.py"):
        script.main(["--world=./mine", "--task=toys/task.py", "--threads=1"])
    Path("toys").mkdir()
    Path("toys/task.py").write_text(TOY_TASK)
    with pytest.raises(BadInput, match="is the task of 'toys', the world is of 'sums'"):
        script.main(["--world=./mine", "--task=toys/task.py", "--threads=1"])
    assert not Path("out").exists()


@pytest.mark.parametrize("domain", ["../x", "x/y", "os", "json", "data", "", ".", "..", "/x"])
@pytest.mark.parametrize("form", ["text", "video"])
def test_meta_json_never_says_which_code_is_loaded(toy, monkeypatch, form, domain):
    """
    Guards against a data set that names code: whatever stands under "domain", no file is run but
    data/<domain>/task.py of ours, or the one that --task names.
    """
    own.main(PREPARE)
    spy = "import pathlib\npathlib.Path('ran').touch()\n" + TOY_TASK
    # wherever a careless join could lead
    monkeypatch.setattr(data.world, "HERE", toy / "house" / "data")
    places = ["x", "house/x", "house/data/x/y", "house/data", "house", ".", "x/y", "mine", "os"]
    for place in places:
        Path(place).mkdir(parents=True, exist_ok=True)
        Path(place, "task.py").write_text(spy)
    path = Path("mine/meta.json")
    domain = domain.replace("/x", f"{toy}/x") if domain.startswith("/") else domain
    path.write_text(json.dumps({**json.loads(path.read_text()), "form": form, "domain": domain}))
    for task in ("", "x/task.py", "os.py"):
        with pytest.raises(BadInput) as error:
            load_world("./mine", task=task)
        assert "\n" not in str(error.value)
    assert not Path("ran").exists()


def test_a_task_that_is_none_gets_a_sentence(tmp_path):
    (tmp_path / "sums").mkdir()
    file = tmp_path / "sums" / "task.py"
    with pytest.raises(BadInput, match="there is no .*sums/task.py"):
        load_task("sums", file)
    for text in ("", "TASK = {}", "TASK = None"):
        file.write_text(text)
        with pytest.raises(BadInput, match="defines no TASK"):
            load_task("sums", file)
    file.write_text(TOY_TASK)
    assert list(load_task("sums", file).metrics) == ["right", "surplus", "score"]


@pytest.mark.parametrize("domain,kind", [("own", TextTask), ("robot", VideoTask)])
def test_a_world_of_one_form_refuses_a_task_of_the_other(tmp_path, domain, kind):
    """
    Guards against a traceback where a world's form is not that of its task: in meta.json, and where
    a prepare.py is given a task of the other kind.
    """
    assert isinstance(load_task(domain), kind)
    (tmp_path / "mine.jsonl").write_text(jsonl(*ROWS))
    task = f"--task={data.world.HERE / domain / 'task.py'}"
    with pytest.raises(BadInput) as error:
        if kind is VideoTask:
            own.main([f"--path={tmp_path / 'mine.jsonl'}", f"--out={tmp_path / 'w'}", task])
        else:
            robot.main([f"--out={tmp_path / 'w'}", "--episodes=3", "--frames=9", task])
    assert "\n" not in str(error.value) and not list(tmp_path.glob("w*"))
    form = "video" if kind is TextTask else "text"
    about = {"form": form, "domain": domain, "reward": "mae", "context_frames": 2, "horizon": 1}
    about.update(action_low=[0], action_high=[1])
    (tmp_path / "meta.json").write_text(json.dumps(about))
    with pytest.raises(BadInput) as error:
        load_world(tmp_path)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------
# Metrics


def test_answers_that_are_none_get_the_worst_value(toy):
    """
    Guards against a zero where less is better: an answer that never ends or is malformed was the
    best of its group. Metrics may return bools and whole numbers.
    """
    own.main(PREPARE)
    world = load_world("./mine", task="sums/task.py")
    i = next(i for i, r in enumerate(world.records["train"]) if r["truth"]["sum"] == 4)
    said = ["aaaa", "aa", "aaab", None, "", "aaaa"]
    scores = world.score_texts("train", i, said, world.metrics)
    assert [list(s.values()) for s in scores] == [
        [1.0, 0.0, 0.0],
        [0.0, 2.0, -2.0],
        [0.0, 20.0, -20.0],
        [0.0, 20.0, -20.0],
        [0.0, 4.0, -4.0],
        [1.0, 0.0, 0.0],
    ]
    assert all(type(value) is float for s in scores for value in s.values() if value != 20)
    batch = world.batch("train", [i])
    tokens = torch.full((1, 4, 6), world.eos_id)
    for g, text in enumerate(["aaaa", "aaab", "aaaaaa", "aa"]):
        ids = world.bpe.encode_ordinary(text)
        tokens[0, g, : len(ids)] = torch.tensor(ids)
    tokens[0, 2] = world.bpe.encode_ordinary("a")[0]  # six a's and no end
    terms = world.terms("right+0.1*surplus+score")
    reward = world.compute_reward(batch, tokens, terms)
    assert reward.dtype == torch.float32
    assert reward[0].tolist() == pytest.approx([1, -22, -22, -2.2])
    # in a rollout, too: answers that never end are the worst of any group
    torch.manual_seed(0)
    model = Model(ModelConfig(world.vocab_size, world.block_size, 1, 2, 2, 16))
    rollout = generate(model, batch, 8)
    config = train_rlvr.Config(group_size=8)
    experience = train_rlvr.judge(world, batch, rollout, terms, config)
    assert not rollout.ended.all()
    assert experience.rewards[~rollout.ended].tolist() == pytest.approx(
        [-22] * int((~rollout.ended).sum())
    )


def test_signs_of_a_sum_and_best_of_n(toy):
    """Guards against a best-of-N curve that takes the largest error for the best."""
    own.main(PREPARE)
    world = load_world("./mine", task="sums/task.py")
    assert isinstance(world, World) and world.reward == "right+0.1*surplus"
    assert [world.better(name) for name in world.metrics] == [1, -1, 1]
    torch.manual_seed(0)
    model = Model(ModelConfig(world.vocab_size, world.block_size, 1, 2, 2, 16))
    # a model that says nothing but a's, more or fewer
    said = torch.zeros(world.vocab_size, dtype=torch.bool)
    said[[*world.bpe.encode_ordinary("a"), world.eos_id]] = True
    logits = model.logits
    model.logits = lambda hidden, _, temperature: logits(hidden, said, temperature)
    config = evaluate.Config(best_of=8, split="val", select_by="surplus")
    indices = list(range(len(world.records["val"])))
    many = evaluate.sample_many(model, world, indices, config)
    curve = evaluate.best_of_n(many.scores, world, config)
    generator = torch.Generator().manual_seed(0)
    given = model, world, "val", indices, ["surplus"], evaluate.Decoding(), 8, generator
    scores = evaluate.evaluate(*given).metrics["surplus"]
    for n in (1, 2, 4, 8):
        best = scores.view(-1, n).amin(1).mean().item()
        assert curve[n]["own"]["surplus"] == pytest.approx(best)
        assert curve[n]["winner"]["surplus"] == pytest.approx(best)
    assert curve[8]["own"]["surplus"] < curve[1]["own"]["surplus"]
    with pytest.raises(BadInput, match="no metric 'surplu'.*right, surplus, score"):
        world.terms("right+surplu")


# --------------------------------------------------------------------------------------------------
# A user's own .jsonl


def jsonl(*rows, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


ROWS = [{"prompt": f"{i} é", "response": "ja" if i % 2 else "nein"} for i in range(12)]


@pytest.mark.parametrize(
    "content",
    [
        jsonl(*ROWS).encode(),
        b"\xef\xbb\xbf" + jsonl(*ROWS).encode(),
        jsonl(*ROWS, end="\r\n").encode(),
        ("\n \n" + jsonl(*ROWS, end="\n\n\t\n")).encode(),
        jsonl(*ROWS).encode().rstrip(),
        b"\xef\xbb\xbf\r\n" + jsonl(*ROWS, end="\r\n\r\n").encode(),
    ],
    ids=["plain", "bom", "crlf", "blank lines", "no end", "all"],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_what_spreadsheets_and_editors_write_is_read(tmp_path, content, suffix):
    """Guards against a byte-order mark, a blank line or CRLF that is taken for damage or data."""
    file = tmp_path / f"mine{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert read_records(file, "mend it") == ROWS
    own.main([f"--path={file}", f"--out={tmp_path / 'w'}", "--vocab_size=260"])
    world = load_world(tmp_path / "w")
    kept = [record for records in world.records.values() for record in records]
    by_prompt = lambda record: record["prompt"]
    assert sorted(kept, key=by_prompt) == sorted(ROWS, key=by_prompt)


GOOD = {"prompt": "a", "response": "b"}


@pytest.mark.parametrize(
    "content,words",
    [
        (jsonl(*ROWS).encode("cp1252"), ["line 1", "UTF-8", "byte 15"]),
        (jsonl(GOOD, ROWS[0]).encode("utf-16"), ["line 1", "UTF-8"]),
        (jsonl(GOOD, GOOD).encode() + b"\xef\xbb\xbf" + jsonl(GOOD).encode(), ["line 3", "JSON"]),
        (jsonl(GOOD, {**GOOD, "changed": "false"}).encode(), ["line 2", "'changed'"]),
        (jsonl(GOOD, {**GOOD, "changed": None}).encode(), ["line 2", "'changed'"]),
        (jsonl(GOOD, {**GOOD, "changed": 0}).encode(), ["line 2", "'changed'"]),
        (jsonl(GOOD, {**GOOD, "state": None}).encode(), ["line 2", "'state'"]),
        (jsonl(GOOD, {**GOOD, "kind": 3}).encode(), ["line 2", "'kind'"]),
        (jsonl({**GOOD, "response": None}).encode(), ["line 1", "'response'"]),
        (jsonl(GOOD, {**GOOD, "prompt": ""}).encode(), ["line 2", "prompt is empty"]),
        (jsonl(GOOD, [GOOD]).encode(), ["line 2", "object"]),
        (("\n\n" + jsonl(GOOD)).encode() + b'{"prompt": "a', ["line 4", "cut short"]),
        (b"\n\n", ["empty"]),
    ],
)
def test_what_is_wrong_with_a_record_is_said_with_its_line(tmp_path, content, words):
    """
    Guards against "changed": "false" that counts as true, letters of another encoding that become
    question marks, and messages without the place.
    """
    file = tmp_path / "mine.jsonl"
    file.write_bytes(content)
    with pytest.raises(BadInput) as error:
        own.main([f"--path={file}", f"--out={tmp_path / 'w'}"])
    message = str(error.value)
    assert "\n" not in message and "mine.jsonl" in message, message
    assert all(word in message for word in words), message
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_a_truth_that_our_metrics_cannot_read_is_refused(tmp_path):
    """
    Guards against "truth": 5 that is found in the midst of training: where exact_match and line_f1
    judge, it must be a text.
    """
    file = tmp_path / "mine.jsonl"
    file.write_text(jsonl(*ROWS[:9], {**GOOD, "truth": 5}))
    with pytest.raises(BadInput) as error:
        own.main([f"--path={file}", f"--out={tmp_path / 'w'}", "--vocab_size=260"])
        world = load_world(tmp_path / "w")
        for split, records in world.records.items():
            for i, record in enumerate(records):
                world.score_texts(split, i, [record["response"]], world.metrics)
    assert "\n" not in str(error.value) and "truth" in str(error.value)


# --------------------------------------------------------------------------------------------------
# Folders


def everything_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("meta", [None, '{"my": "notes"}', "[1]", "not JSON"])
def test_a_text_world_never_replaces_files_of_yours(tmp_path, meta):
    """Guards against --out=DIR with the user's own DIR/train.jsonl, which was overwritten."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.jsonl").write_text(jsonl(*ROWS))
    (folder / "notes.txt").write_text("keep")
    if meta is not None:
        (folder / "meta.json").write_text(meta)
    before = everything_in(tmp_path)
    with pytest.raises(BadInput, match="holds .*, which no prepare.py has written") as error:
        own.main([f"--path={folder / 'train.jsonl'}", f"--out={folder}", "--vocab_size=260"])
    assert "train.jsonl" in str(error.value) and "\n" not in str(error.value)
    assert everything_in(tmp_path) == before and len(list(tmp_path.rglob("*"))) == len(before) + 1


def test_a_text_world_of_ours_is_replaced_and_what_else_lies_there_stays(tmp_path):
    """Guards against a claim so strict that no world can be made again, or beside its source."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "source.jsonl").write_text(jsonl(*ROWS))
    options = [f"--path={folder / 'source.jsonl'}", f"--out={folder}", "--vocab_size=260"]
    own.main(options)
    first = load_world(folder).records
    own.main([*options, "--seed=1"])
    assert load_world(folder).records != first
    assert (folder / "source.jsonl").read_text() == jsonl(*ROWS)
    assert claim(folder, "text", ("train.jsonl", "meta.json")) == folder
    with pytest.raises(BadInput, match="is a file"):
        claim(folder / "source.jsonl", "text", ())
    splits = {split: [GOOD] for split in ("train", "val", "test")}
    with pytest.raises(BadInput, match="is a file"):
        write_text_world(folder / "source.jsonl", "own", load_task("own"), splits)


def test_a_world_is_found_by_name_or_folder(tmp_path, monkeypatch):
    """Guards against a folder of the working directory that is not found where it stands."""
    monkeypatch.setattr(data.world, "HERE", tmp_path / "house")
    monkeypatch.chdir(tmp_path)
    for place in ("house/here", "there", "house/both", "both"):
        Path(place).mkdir(parents=True)
        Path(place, "meta.json").write_text('{"form": "text", "domain": "own"}')
    found = {name: read_meta(name)[0] for name in ("here", "there", "both", "./both", "there/")}
    assert found["here"] == tmp_path / "house" / "here" and found["there"] == Path("there")
    assert found["both"] == tmp_path / "house" / "both" and found["./both"] == Path("both")
    for name, make in (
        ("textgame", "python data/textgame/prepare.py"),
        ("bytesized32", "runs/bytesized32.sh"),
        ("nothing", "python data/own/prepare.py --help"),
    ):
        monkeypatch.setattr(data.world, "HERE", Path(data.__file__).parent)
        with pytest.raises(BadInput, match=re.escape(make)):
            read_meta(str(tmp_path / name))


def test_a_metric_is_read_as_it_says():
    """The defaults that a task.py may rely on."""
    metric = Metric(len)
    assert (metric.better, metric.scale, metric.worst, metric.by_change) == (1, 100, 0.0, False)


@pytest.mark.parametrize(
    "metric,words",
    [
        ("Metric(lambda a, t: -3.0)", "worse than its worst value 0"),
        ("Metric(lambda a, t: 1, better=-1)", "worse than its worst value 0"),
        ("Metric(lambda a, t: float('nan'), worst=-9)", "worse than its worst value -9"),
        ("Metric(lambda a, t: 1 / 0)", "ZeroDivisionError"),
    ],
)
def test_a_metric_must_keep_to_its_worst_value(tmp_path, metric, words):
    """
    Guards against a negative reward whose worst answers score below those that never end: training
    would learn never to end an answer, and the table would call that perfect.
    """
    (tmp_path / "odd").mkdir()
    task = f'from data.world import Metric, TextTask\nTASK = TextTask({{"odd": {metric}}}, "odd")\n'
    (tmp_path / "odd/task.py").write_text(task)
    rows = [dict(prompt=f"{n} =", response=str(n)) for n in range(30)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [f"--path={tmp_path}/mine.jsonl", f"--out={tmp_path}/mine", "--vocab_size=260"]
    with pytest.raises(BadInput, match=words):
        own.main([*options, f"--task={tmp_path}/odd/task.py"])
    assert not (tmp_path / "mine").exists()


def test_a_world_cut_in_another_way_is_another_world(tmp_path):
    """Guards against a model that is judged on records it was trained on, after a new split."""
    rows = [dict(prompt=f"{n} =", response=str(n)) for n in range(30)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [f"--path={tmp_path}/mine.jsonl", f"--out={tmp_path}/mine", "--vocab_size=258"]
    found = []
    for seed in (0, 0, 1):
        own.main([*options, f"--seed={seed}"])
        found.append(load_world(str(tmp_path / "mine")).fingerprint)
    assert found[0] == found[1] != found[2]


def test_a_world_of_the_other_form_is_not_replaced(tmp_path):
    """Guards against a video world that turns into a text world under its trained models."""
    (tmp_path / "clips").mkdir()
    meta = json.dumps({"form": "video", "domain": "robot"})
    (tmp_path / "clips/meta.json").write_text(meta)
    with pytest.raises(BadInput, match="holds a video world, this one is text"):
        claim(tmp_path / "clips", "text", ("meta.json",))
    assert claim(tmp_path / "clips", "video", ("meta.json",)) == tmp_path / "clips"
    assert (tmp_path / "clips/meta.json").read_text() == meta
