"""Playing: truth and pictures to the bit, the server and what it refuses, the page in a browser."""

import base64
import copy
import http.client
import io
import json
import math
import re
import shutil
import socket
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import train_rlvr
from common import BadInput, save_checkpoint
from data import load_world
from data.own import prepare as own_prepare
from data.robot import sim
from data.textgame import prepare as textgame_prepare
from data.textgame.task import Truth
from data.webnav import prepare as webnav_prepare
from model import Model, ModelConfig
from tests.browser import CHROMIUM, Browser
from tests.test_model import lively
from tests.test_video import make_world, save_tokenizer
from tokenizer_vq import Tokenizer, TokenizerConfig, to_frames
from use import drive, play, read

STILL = [0, 0, 0, -1]


def save_model(name, world, seed):
    """A checkpoint with random weights, called <world>-<name>."""
    torch.manual_seed(seed)
    shape = dict(n_layer=2, n_head=2, n_kv_head=2, n_embd=32)
    model = lively(Model(ModelConfig(world.vocab_size, world.block_size, **shape)).eval(), 1)
    checkpoint = dict(stage=name, world=world.fingerprint, progress={}, config={})
    checkpoint.update(model=model.state_dict(), model_config=asdict(model.config))
    save_checkpoint(f"out/{world.name}-{name}/best.pt", checkpoint)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """
    Worlds under data/, their models and a log under out/: a robot with one frame and with several,
    episodes of one's own (both kinds), text games, a shop, a text of one's own.
    """
    folder = tmp_path_factory.mktemp("play")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_world(folder, "data/one", 1, 0)
        make_world(folder, "data/many", 4, 8)
        for name in ("one", "many"):
            (folder / f"out/data/{name}-tokenizer").rename(folder / f"out/{name}-tokenizer")
        for split in ("train", "val", "test"):
            (folder / "data/robot" / split).mkdir(parents=True)
            for n in range(2):
                image, action, state, *_ = sim.episode(n, 8)
                arrays = dict(image=image, action=action, state=state)
                np.savez(folder / f"data/robot/{split}/{n}.npz", **arrays)
        about = dict(form="video", domain="robot", context_frames=2, horizon=1, reward="mae")
        about.update(action_low=[-1] * 4, action_high=[1] * 4)
        (folder / "data/robot/meta.json").write_text(json.dumps(about))
        tokenizer = Tokenizer(TokenizerConfig(64, 64, 16, 0, channels=8, levels="4,4,4"))
        save_tokenizer(folder, "robot", tokenizer)
        sizes = ["--instances=8", "--held_out=8", "--vocab_size=600"]
        textgame_prepare.main([*sizes, "--out=data/textgame"])
        webnav_prepare.main(["--sessions=18", "--vocab_size=600", "--out=data/webnav"])
        rows = [json.dumps(dict(prompt=f"{n} =", response=str(n))) + "\n" for n in range(30)]
        (folder / "mine.jsonl").write_text("".join(rows))
        own_prepare.main(["--path=mine.jsonl", "--out=data/mine", "--vocab_size=260"])
        for name in ("one", "many", "robot", "textgame", "mine"):
            world = load_world(f"data/{name}")
            save_model("mle", world, 1)
            save_model("rlvr", world, 2)
    return folder


@pytest.fixture
def page(folder, monkeypatch):
    """What the page may ask for, in that folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(play, "home", lambda name: folder / "data" / name)
    monkeypatch.setattr("data.world.home", lambda name: folder / "data" / Path(name).name)
    return play.Play(play.Config(threads=1, device="cpu"), torch.device("cpu"))


@pytest.fixture
def server(page):
    server = play.Server(page, 0)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def send(server, path, body=None, method=None, **headers):
    """(status, what came back) of one request; a body that is no bytes goes as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
    reply = connection.getresponse()
    found = reply.read()
    connection.close()
    return reply.status, found


def ask(server, deed, **request):
    status, found = send(server, f"/{deed}", request)
    assert status == 200, found
    return json.loads(found)


def pixels(address):
    data = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))


def as_pixels(frame):
    return frame.mul(255).round().byte().permute(1, 2, 0).numpy()


# --------------------------------------------------------------------------------------------------
# Video


def test_truth_is_the_simulator_stepped_by_hand(server):
    found = ask(server, "start", world="robot", number=3)
    assert not found["record"] and found["models"] == ["MLE", "RLVR"] and not found["notes"]
    key = found["id"]
    table = sim.Table(np.random.default_rng([0, 3, 1]))
    table.step(STILL)  # the prompt's second frame
    rng = np.random.default_rng(0)
    for n in range(10):
        assert np.array_equal(pixels(found["frames"]["truth"]), table.render())
        assert found["hand"] == table.gripper.tolist()
        assert set(found["frames"]) == set(found["scores"]) | {"truth"}
        move = np.float32(rng.uniform(-1, 1, 4)).tolist()
        table.step(np.float32(move))
        found = ask(server, "step", id=key, move=move)
        assert found["since"] == n + 1
    found = ask(server, "set", id=key)
    assert found["since"] == 0
    for label in ("MLE", "RLVR"):
        assert np.array_equal(pixels(found["frames"][label]), table.render())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["one", "many"])
def test_pictures_are_those_of_sample(page, name, temperature):
    """The same actions and random numbers, the same pictures: all of a multi-step answer."""
    world = page.world(name)
    batch = world.batch("test", [0])  # the first frames of the first episode
    config = sample.Config(temperature=temperature, seed=0)
    page.config.temperature = temperature
    found = page.start(dict(world=name, number=0))
    steps = [page.step(dict(id=found["id"], move=None)) for _ in range(world.horizon)]
    for label, path in sample.paths(world, sample.Config()).items():
        expected = world.decode(batch, sample.answers(path, world, batch, config))[0, 0]
        for frame, step in zip(expected, steps):
            assert np.array_equal(pixels(step["frames"][label]), as_pixels(frame))
    assert found["record"]


def test_a_record_is_followed_until_it_is_left(page):
    """Then only the models go on, until all are set to it again; it ends with one sentence."""
    key = page.start(dict(world="many", number=0))["id"]
    page.step(dict(id=key, move=None))
    left = page.step(dict(id=key, move=[1, 0, 0, -1]))
    assert set(left["frames"]) == {"MLE", "RLVR"} and not left["scores"]
    with pytest.raises(BadInput, match="the record ends here"):
        page.step(dict(id=key, move=None))
    for _ in range(21):  # past several horizons, and past the oldest context
        page.step(dict(id=key, move=[0, 1, 0, -1]))
    again = page.set(dict(id=key))
    assert set(again["frames"]) == {"truth", "tokenizer", "MLE", "RLVR"}
    with pytest.raises(BadInput, match="the record ends here"):
        for _ in range(30):
            page.step(dict(id=key, move=None))


def test_gripper_errors():
    """The distance by which the simulator moved it, in any state of it; None where it is not."""
    table = sim.Table(np.random.default_rng(5))
    table.gripper = np.array([0.5, 0.6])
    frames = []
    moves = [(0, 0), (5, -12), (-16, 3), (9, 13)]  # pixels
    for n, move in enumerate(moves):
        other = copy.copy(table)
        other.gripper = table.gripper + np.array(move) / sim.SIZE
        other.height = n % 2
        other.closed = n > 1
        frames.append(to_frames(other.render()))
    other.gripper = np.array([9.0, 9.0])
    frames.append(to_frames(other.render()))
    *found, gone = drive.gripper_errors(torch.stack(frames), table)
    assert gone is None and found == pytest.approx([math.hypot(*m) for m in moves], abs=0.8)


# --------------------------------------------------------------------------------------------------
# Text


def test_text_games_are_marked_and_go_on(server):
    found = ask(server, "start", world="textgame", number=7)
    key = found["id"]
    assert found["state"].startswith("game sailing") and "wait" in found["actions"]
    action = found["actions"][1]
    step = ask(server, "step", id=key, line=action)
    assert step["state"] != found["state"] and step["last"]["truth"]
    for answer in step["last"]["said"].values():
        assert {mark for mark, _ in answer["lines"]} <= {"right", "wrong", "missing"}
    # nobody knows what an action does that the game does not have: only the models answer
    other = ask(server, "step", id=key, line="sing a song")
    assert other["state"] == step["state"] and other["last"]["truth"] is None
    assert other["last"]["said"]["MLE"]["lines"]
    ask(server, "step", id=key, line="wait")
    samples = ask(server, "group", id=key, label="RLVR")["samples"]
    rewards = torch.tensor([[one["reward"] for one in samples]])
    advantages = [one["advantage"] for one in samples]
    expected = train_rlvr.group_advantages(rewards)[0].tolist()
    assert len(samples) == 5 and advantages == pytest.approx(expected, abs=1e-4)


def test_marks(page):
    key = page.start(dict(world="textgame", number=7))["id"]
    read = page.places[key]
    page.step(dict(id=key, line="wait"))
    state = read.place.game.state()
    truth = Truth(state, state, read.place.defaults)
    assert read.judge("same", "same", truth)["lines"] == [("right", "same")]
    marks = read.judge("#0 isOpen\nnonsense", "same", truth)["lines"]
    assert marks == [("wrong", "#0 isOpen"), ("wrong", "nonsense"), ("missing", "same")]
    assert read.judge(None, "same", truth)["lines"][0] == ("wrong", "(no end)")


def test_shop_and_own_text(server):
    found = ask(server, "start", world="webnav", number=0)
    assert "no MLE yet: python train_mle.py" in found["notes"][0] and len(found["notes"]) == 2
    step = ask(server, "step", id=found["id"], line=found["actions"][1])
    assert step["last"]["truth"].startswith("New items:")
    assert ask(server, "step", id=found["id"], line="dance [1]")["last"]["truth"] is None
    found = ask(server, "start", world="mine", number=1)
    (action,) = found["actions"]
    step = ask(server, "step", id=found["id"], line=action)
    assert step["last"]["truth"] == action.split()[0]
    assert set(step["last"]["said"]["MLE"]) == {"lines", "reward"}


def test_models_are_asked_as_they_were_trained(page):
    """With a frame around the question, too, where a pretrained model's chat form has one."""
    for name in ("mine", "webnav"):
        key = page.start(dict(world=name, number=1))["id"]
        place = page.places[key]
        place.place = read.Page(place.world, 1)
        state, prompt, _ = place.world.tokens["test"][1]
        place.world.before, place.world.after = [1], [2]
        page.step(dict(id=key, line=place.place.actions()[0]))
        place.world.before, place.world.after = [], []
        assert place.last[0].tolist() == [[1, *state, *prompt, 2]]


def test_a_task_of_ones_own_gets_its_own_truth(page):
    page.config.world = "webnav"
    page.config.task = str(Path(__file__).resolve().parents[1] / "use/webnav/task.py")
    found = page.start(dict(world="webnav", number=0))
    page.step(dict(id=found["id"], line=found["actions"][1]))
    place = page.places[found["id"]]
    _, response, truth = place.last
    assert {mark for mark, _ in place.judge(response, response, truth)["lines"]} == {"right"}


# --------------------------------------------------------------------------------------------------
# Runs


def test_a_log_is_read_as_it_grows(server, folder):
    path = folder / "out/grows/metrics.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"step": 1, "reward": 0.5, "other": 1}\nnonsense\n{"step": 2, "rew')
    log = ask(server, "runs")["logs"]["grows"]
    assert log["rows"] == [{"step": 1, "reward": 0.5}]
    path.write_text(path.read_text() + 'ard": NaN}\n')
    more = ask(server, "runs", seen={"grows": log["end"]})["logs"]["grows"]
    assert more["rows"] == [{"step": 2, "reward": None}] and more["begin"] == log["end"]
    path.write_text('{"step": 1, "kl": 2}\n')  # begun anew
    new = ask(server, "runs", seen={"grows": more["end"]})["logs"]["grows"]
    assert new["begin"] == 0 and new["rows"] == [{"step": 1, "kl": 2}]
    for seen in ({"grows": -1}, {"grows": "x"}, {"grows": True}, 7):
        ask(server, "runs", seen=seen)


def test_pictures_come_from_runs_only(server, folder, tmp_path):
    results = folder / "out/one-results"
    results.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(results / "a b.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (results / "results.md").write_text("a table")
    (results / "link.png").unlink(missing_ok=True)
    (results / "link.png").symlink_to(tmp_path / "secret.png")
    found = ask(server, "runs")
    assert found["tables"]["one-results"] == "a table"
    assert "one-results/a b.png" in found["pictures"]
    assert "one-results/link.png" not in found["pictures"]
    assert send(server, "/one-results/a%20b.png")[0] == 200
    for path in (
        "/one-results/link.png",
        "/../../etc/passwd",
        "/one-results/..%2f..%2fmine.jsonl",
        "/one-results/results.md",
        "/one-mle/best.pt",
        "//etc/passwd",
    ):
        status, body = send(server, path)
        assert status == 400 and json.loads(body) == {"error": "there is no such page"}


# --------------------------------------------------------------------------------------------------
# Bad input


def test_requests_that_are_not_ours(server):
    """Each gets one sentence, and the server lives on."""
    key = ask(server, "start", world="robot", number=0)["id"]
    text = ask(server, "start", world="mine", number=0)["id"]
    bad = [
        ("start", {}),
        ("start", dict(world="../../etc", number=0)),
        ("start", dict(world="robt", number=0)),
        ("start", dict(world=["robot"], number=0)),
        ("start", dict(world="robot", number=-1)),
        ("start", dict(world="robot", number="1")),
        ("start", dict(world="robot", number=2**40)),
        ("step", dict(id="unknown", move=STILL)),
        ("step", dict(id=None)),
        ("step", dict(id=key, move=None)),
        ("step", dict(id=key, move=[9, 0, 0, 0])),
        ("step", dict(id=key, move=[1, 0, 0])),
        ("step", dict(id=key, move="left")),
        ("step", dict(id=key, move=[None] * 4)),
        ("step", dict(id=text, line="")),
        ("step", dict(id=text, line=7)),
        ("step", dict(id=text, line="x " * 9000)),
        ("group", dict(id=text, label="MLE")),
        ("group", dict(id=key, label="MLE")),
        ("set", dict(id=text)),
        ("__init__", {}),
        ("config", {}),
    ]
    for deed, request in bad:
        status, body = send(server, f"/{deed}", request)
        error = json.loads(body)["error"]
        assert status == 400 and "\n" not in error and "Traceback" not in error
    for body in (b"", b"{", b"[]", b"\xff", b"[" * 30000, b"1" * 70000):
        assert send(server, "/runs", body)[0] == 400
    for headers in (dict(Content_Length="-1"), dict(Content_Length="many")):
        assert send(server, "/runs", b"{}", **headers)[0] == 400
    assert send(server, "/runs", method="DELETE")[0] == 501
    server.play.worlds = lambda request: 1 / 0  # a bug of ours
    status, body = send(server, "/worlds", {})
    assert status == 400 and json.loads(body)["error"].startswith("play.py has a bug")
    assert ask(server, "step", id=key, move=STILL)["since"] == 1


def test_what_to_run_first(server, folder):
    """A world without tokenizer, without models, with a model of another world."""
    bare = folder / "data/bare"
    bare.mkdir()
    about = json.loads((folder / "data/one/meta.json").read_text())
    (bare / "meta.json").write_text(json.dumps({**about, "episodes": "../one"}))
    assert "bare" in ask(server, "worlds")["worlds"]
    status, found = send(server, "/start", dict(world="bare", number=0))
    assert status == 400 and "python tokenizer_vq.py --world=" in json.loads(found)["error"]
    (folder / "out/one-tokenizer").rename(folder / "out/bare-tokenizer")
    try:
        found = ask(server, "start", world="bare", number=0)
        assert set(found["frames"]) == {"truth", "tokenizer"}
        assert "python train_mle.py" in found["notes"][0]
        assert "python train_rlvr.py" in found["notes"][1]
        server.play.config.mle = "textgame-mle"
        assert "is of another world" in ask(server, "start", world="bare", number=0)["notes"][0]
    finally:
        (folder / "out/bare-tokenizer").rename(folder / "out/one-tokenizer")
    (bare / "meta.json").write_text("{")
    status, found = send(server, "/start", dict(world="bare", number=0))
    assert status == 400 and "damaged" in json.loads(found)["error"]
    shutil.rmtree(bare)


def test_other_origins_and_hosts_cannot_act(server):
    port = server.server_port
    own = f"http://127.0.0.1:{port}"
    for headers in (
        dict(Origin="http://evil.example"),
        dict(Origin="null"),
        dict(Origin=f"https://127.0.0.1:{port}"),
        dict(Origin=f"http://127.0.0.1:{port + 1}"),
        dict(Host="evil.example"),
        dict(Host=f"evil.example:{port}"),
    ):
        assert send(server, "/worlds", {}, **headers)[0] == 400
        assert send(server, "/", **headers)[0] == 400
    assert send(server, "/worlds", {}, Origin=own)[0] == 200
    assert send(server, "/worlds", {}, Host=f"localhost:{port}")[0] == 200


def test_a_tab_that_closes_in_a_step_and_two_tabs(server, capfd):
    one, two = (ask(server, "start", world="robot", number=n)["id"] for n in (0, 1))
    body = json.dumps(dict(id=one, move=[1, 0, 0, -1])).encode()
    head = f"POST /step HTTP/1.0\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Length: "
    with socket.create_connection(("127.0.0.1", server.server_port)) as tab:
        tab.sendall(head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body)
    with socket.create_connection(("127.0.0.1", server.server_port)) as tab:
        tab.sendall(head.encode() + b"500\r\n\r\n{")
    assert ask(server, "step", id=two, move=STILL)["since"] == 1
    assert ask(server, "step", id=one, move=STILL)["since"] == 2
    for n in range(play.PLACES):
        ask(server, "start", world="mine", number=n)
    status, found = send(server, "/step", dict(id=one, move=STILL))
    assert status == 400 and "R opens another" in json.loads(found)["error"]
    assert "Traceback" not in capfd.readouterr().err


def test_command_line(folder, monkeypatch, capsys):
    """A taken port, an unknown world: a sentence; else the address is printed, and Ctrl-C ends."""
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(BadInput, match="^--port=.*; leave it out, and a free one is found$"):
            play.main(["--threads=1", f"--port={taken.getsockname()[1]}"])
    with pytest.raises(BadInput, match="there is no world"):
        play.main(["--threads=1", "--world=nowhere"])

    def stopped(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(play.Server, "serve_forever", stopped)
    play.main(["--threads=1"])
    assert re.search(r"^http://127\.0\.0\.1:[1-9]\d+ ", capsys.readouterr().out, re.M)


# --------------------------------------------------------------------------------------------------
# In a browser


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium")
def test_in_a_browser(server, folder, tmp_path):
    """No errors, keys move the gripper, texts are marked, curves grow while a run writes."""
    browser = Browser(tmp_path)
    try:
        address = f"http://127.0.0.1:{server.server_port}/"
        browser.call("Page.navigate", url=address + "#robot")
        browser.wait("document.querySelectorAll('#lanes figure').length === 4")
        x, y = browser.run("place.hand")
        browser.key("ArrowLeft" if x > 0.5 else "ArrowRight")
        browser.wait("place.since === 1 && !busy")
        moved = browser.run("place.hand")
        assert abs(moved[0] - x) == pytest.approx(0.1) and moved[1] == y
        assert browser.run("document.querySelectorAll('.strip img').length") == 4
        # the gripper goes where the mouse is held down
        box = browser.run(
            "(({x, y, width}) => [x, y, width])($('lanes').querySelector('img')"
            ".getBoundingClientRect())"
        )
        where = dict(x=box[0] + box[2] / 2, y=box[1] + 0.6 * box[2], button="left", clickCount=1)
        browser.call("Input.dispatchMouseEvent", type="mousePressed", **where)
        browser.wait("Math.hypot(place.hand[0] - 0.5, place.hand[1] - 0.6) < 0.01")
        browser.call("Input.dispatchMouseEvent", type="mouseReleased", **where)
        browser.wait("!held.size && !tapped.size && !busy")
        browser.key("t", "t")
        browser.wait("place.since === 0")
        browser.key("ArrowUp")  # the second tap comes while the first is obeyed
        browser.key("ArrowUp")
        browser.wait("place.since === 2")

        browser.run("location.hash = 'textgame'")
        browser.wait("document.querySelectorAll('#actions button').length > 0 && !busy")
        browser.run("document.querySelector('#actions button').click()")
        browser.wait("document.querySelectorAll('#answer-MLE .lines div').length > 0 && !busy")
        marks = browser.run("document.querySelectorAll('.right, .wrong, #answers .missing').length")
        assert marks >= 2
        browser.run("document.querySelector('#answer-RLVR button').click()")
        browser.wait("document.querySelectorAll('#group .sample').length === 5 && !busy")

        path = folder / "out/new-rlvr/metrics.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.6}\n')
        browser.run("location.hash = 'runs'")
        browser.wait("document.querySelector('#curve-reward polyline')")
        points = "document.querySelector('#curve-reward polyline').points.length"
        assert browser.run(points) == 2
        with open(path, "a") as file:
            file.write('{"step": 3, "reward": 0.7}\n')
        browser.wait(f"{points} === 3")
        for width in (1280, 390):
            for dark in (False, True):
                browser.look(tmp_path / "look.png", width, 800, dark)
                over = "document.documentElement.scrollWidth <= innerWidth"
                assert browser.run(over), width
        assert not browser.errors
    finally:
        browser.close()
