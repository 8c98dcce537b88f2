"""
The table top and episodes on disk.

What actions do, that the truth is known, and that foreign files get a sentence.
"""

import io
import json
import zipfile

import numpy as np
import pytest

from common import BadInput
from data.episodes import read_episode, read_episodes, read_world_episodes, write_episode
from data.robot import prepare
from data.robot.sim import LIFT, STEP, TASKS, Table, episode, policy
from data.world import SPLITS


def a_table(seed=0, **state):
    table = Table(np.random.default_rng(seed))
    for name, value in state.items():
        setattr(table, name, value)
    return table


# --------------------------------------------------------------------------------------------------
# The simulator


def test_a_seed_fixes_an_episode():
    a = episode([0, 1], 6)
    b = episode([0, 1], 6)
    c = episode([0, 2], 6)
    assert all(np.array_equal(x, y) for x, y in zip(a[:3], b[:3]))
    assert not np.array_equal(a[0], c[0])
    assert a[0].shape == (6, 64, 64, 3) and a[0].dtype == np.uint8
    assert a[1].shape == (6, 4) and a[1].dtype == np.float32


def test_actions_lead_from_one_frame_to_the_next():
    """state[t + 1] is state[t] moved by action[t], and not by the action before or after it."""
    for seed in range(30):
        _, action, state, *_ = episode([3, seed], 10)
        for t in range(9):
            if state[t, 3] or state[t + 1, 3]:
                continue  # something may be held
            expected = np.clip(state[t, :2] + STEP * action[t, :2], [0.06, 0.12], 0.94)
            assert state[t + 1, :2] == pytest.approx(expected, abs=1e-5)
            height = np.clip(state[t, 2] + LIFT * action[t, 2], 0, 1)
            assert state[t + 1, 2] == pytest.approx(height, abs=1e-5)


def test_the_gripper_is_seen_where_it_is():
    table = a_table(place=np.full((3, 2), 0.9))
    for x, y in ((0.3, 0.5), (0.6, 0.4), (0.5, 0.7)):
        table.gripper = np.array([x, y])
        dark = table.render().astype(int).sum(-1) < 250
        dark[:20] = False  # the drawer
        rows, columns = np.nonzero(dark)
        assert columns.mean() / 64 == pytest.approx(x, abs=0.03)
        assert rows.mean() / 64 == pytest.approx(y, abs=0.03)


def test_a_low_gripper_pushes_and_a_high_one_does_not():
    for height, moved in ((0.0, True), (1.0, False)):
        table = a_table(height=height, gripper=np.array([0.3, 0.6]))
        table.place = np.array([[0.5, 0.6], [0.2, 0.85], [0.8, 0.85]])
        for _ in range(3):
            table.step([1, 0, 0, -1])
        assert (table.place[0, 0] > 0.51) == moved


def test_objects_never_overlap_nor_leave_the_table():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table = Table(rng)
        table.height = 0.0
        for _ in range(40):
            table.step([*rng.uniform(-1, 1, 2), 0, -1])
            assert (table.place >= 0.06).all() and (table.place <= 0.94).all()
    table.height = 1.0
    table.step([0, 0, 1, -1])
    for i in range(3):
        for j in range(i):
            # corners may be tight
            touching = table.radius[i] + table.radius[j]
            assert np.hypot(*(table.place[i] - table.place[j])) > 0.8 * touching


def test_a_grasped_object_goes_along_until_it_is_let_go():
    table = a_table(height=0.0)
    table.place = np.array([[0.5, 0.6], [0.2, 0.85], [0.8, 0.85]])
    table.gripper = np.array([0.5, 0.6])
    table.target = 0
    table.step([0, 0, 0, 1])
    assert table.held == 0 and not table.success("grasp")
    table.step([1, -1, 1, 1])
    assert table.place[0].tolist() == pytest.approx([0.6, 0.5]) and table.success("grasp")
    table.step([0, 0, 0, -1])
    table.step([1, 0, 0, -1])
    assert table.held == -1 and table.place[0, 0] == pytest.approx(0.6)
    assert not table.success("grasp")


def test_the_drawer_opens_by_its_handle_only():
    table = a_table(height=0.0, gripper=np.array([0.8, 0.2]))
    for _ in range(4):
        table.step([0, 1, -1, 1])
    assert table.drawer == 0
    table = a_table(height=0.0)
    table.gripper = table.handle()
    table.place = np.array([[0.2, 0.8], [0.5, 0.85], [0.8, 0.8]])
    table.step([0, 0, 0, 1])
    before = table.render()
    for _ in range(3):
        table.step([0, 1, 0, 1])
    assert table.drawer == 1.0 and table.success("drawer")
    assert not np.array_equal(before[:12], table.render()[:12])


def test_skilled_hands_succeed_more_often_than_clumsy_ones():
    def rate(task, skill):
        done = 0
        for seed in range(25):
            rng = np.random.default_rng(seed)
            table = Table(rng)
            for _ in range(40):
                table.step(policy(table, task, skill, rng))
                if table.success(task):
                    done += 1
                    break
        return done / 25

    for task in TASKS:
        assert rate(task, 1.0) >= 0.35, task
        assert rate(task, 1.0) > rate(task, 0.0) + 0.2, task
    with pytest.raises(ValueError, match="no task"):
        a_table().success("dance")


def test_repeating_the_last_frame_is_far_worse_than_31_dB():
    """Things move enough: at least three times the error of a tokenizer of 31 dB."""
    errors = []
    for seed in range(40):
        image = episode([5, seed], 16)[0].astype(np.float32) / 255
        errors.append(((image[1:] - image[:-1]) ** 2).mean())
    assert np.mean(errors) >= 3 * 10**-3.1


# --------------------------------------------------------------------------------------------------
# Worlds on disk


# a few short episodes, a third of them for each of validation and test
SMALL = ["--frames=9", "--horizon=3", "--val=0.3", "--test=0.3"]


def test_prepare_writes_two_worlds_of_one_data_set(tmp_path, capsys):
    prepare.main([*SMALL, "--episodes=6", f"--out={tmp_path / 'r'}"])
    single = json.loads((tmp_path / "r" / "meta.json").read_text())
    multi = json.loads((tmp_path / "r-multi" / "meta.json").read_text())
    assert single["horizon"] == 1 and multi["horizon"] == 3 and "PSNR" in capsys.readouterr().out
    splits = {}
    for split in SPLITS:
        splits[split] = read_world_episodes(tmp_path / "r", split)
    assert [len(e) for e in splits.values()] == [6, 2, 2]
    pictures = [e.image.tobytes() for episodes in splits.values() for e in episodes]
    assert len(set(pictures)) == 10  # no episode stands in two splits
    again = read_world_episodes(tmp_path / "r-multi", "val")
    assert np.array_equal(again[0].image, splits["val"][0].image)
    low = np.min([e.action.min(0) for e in splits["train"]], axis=0)
    assert single["action_low"] == pytest.approx(low.tolist())
    # over the old one
    options = ["--episodes=4", "--height=32", "--width=48"]
    prepare.main([*SMALL, f"--out={tmp_path / 'r'}", *options])
    train = read_world_episodes(tmp_path / "r", "train")
    assert len(train) == 4 and train[0].image.shape[1:] == (32, 48, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"r", "r-multi"}


def own_episodes(folder, n):
    """Writes n episodes with states, as a user may have them, and returns them as Episodes."""
    folder.mkdir(parents=True)
    for i in range(n):
        image, action, state, *_ = episode([9, i], 9)
        write_episode(folder / f"{i}.npz", image, action, state=state)
    return read_episodes(folder)


def test_your_own_episodes_are_split(tmp_path):
    written = own_episodes(tmp_path / "mine", 10)
    options = ["--source=episodes", "--val=0.2", "--test=0.3"]
    prepare.main([f"--path={tmp_path / 'mine'}", f"--out={tmp_path / 'w'}", *options])
    found = [read_world_episodes(tmp_path / "w", split) for split in SPLITS]
    assert [len(part) for part in found] == [5, 2, 3]
    # each stands in one split, with what was recorded beside its pixels
    key = lambda e: (e.image.tobytes(), e.action.tobytes(), e.state.tobytes())
    assert {key(e) for part in found for e in part} == set(map(key, written))


def test_real_clips_become_a_world(shared, tmp_path):
    out = tmp_path / "bridge"
    prepare.main(["--source=episodes", f"--path={shared / 'data/bridge_debug'}", f"--out={out}"])
    train = read_world_episodes(out, "train")
    assert train[0].image.shape == (10, 64, 64, 3) and train[0].action.shape == (10, 7)
    assert sum(len(read_world_episodes(out, split)) for split in SPLITS) == 25


def everything_in(folder):
    """{path: bytes} of all files under a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "path,out,words",
    [
        ("mine/train", "mine", "lie within each other"),
        ("mine/train", "mine/train", "lie within each other"),
        ("mine/train", "mine/train/world", "lie within each other"),
        ("mine/train", "mine/val/../train", "lie within each other"),
        ("mine/train", "link", "lie within each other"),
        ("mine/train", "other", "holds train, which no prepare.py has written"),
        ("mine/train", "theirs", "holds meta.json, which no prepare.py has written"),
        ("mine/train", "half", "holds meta.json, which no prepare.py has written"),
        ("", "other", "holds train, which no prepare.py has written"),
        ("", "mine", "holds train, val, which no prepare.py has written"),
        ("", "file", "is a file"),
    ],
)
def test_prepare_never_removes_what_is_yours(tmp_path, path, out, words):
    """
    Guards against a world that replaces a user's own episodes: --out=DIR with --path=DIR/train
    removed them all. Refused in one sentence, and every file is as it was.
    """
    own_episodes(tmp_path / "mine" / "train", 10)
    own_episodes(tmp_path / "other" / "train", 2)
    (tmp_path / "mine" / "val").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine" / "train")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "meta.json").write_text('{"my": "notes"}')
    (tmp_path / "half-multi").mkdir()
    (tmp_path / "half-multi" / "meta.json").write_text("[1, 2]")
    (tmp_path / "file").write_text("notes")
    before = everything_in(tmp_path)
    options = ["--source=episodes", f"--path={tmp_path / path}"] if path else []
    with pytest.raises(BadInput, match=words) as error:
        prepare.main([*options, "--episodes=2", *SMALL, f"--out={tmp_path / out}"])
    assert "\n" not in str(error.value)
    assert everything_in(tmp_path) == before
    assert not [p for p in tmp_path.rglob("*") if ".tmp" in p.name]


def test_a_world_of_ours_is_replaced_and_what_else_lies_there_stays(tmp_path):
    """Guards against a claim so strict that no world can be made again."""
    out = tmp_path / "w"
    prepare.main([*SMALL, "--episodes=3", f"--out={out}"])
    (out / "task.py").write_text("TASK = None")
    prepare.main([*SMALL, "--episodes=4", f"--out={out}"])
    assert len(read_world_episodes(out, "train")) == 4
    assert (out / "task.py").read_text() == "TASK = None"


IMAGE = np.zeros((5, 8, 8, 3), np.uint8)
ACTION = np.zeros((5, 2), np.float32)


@pytest.mark.parametrize(
    "image,action,sentence",
    [
        (IMAGE.astype(np.float32), ACTION, "uint8"),
        (IMAGE[0], ACTION, "uint8"),
        (IMAGE, ACTION[:3], "5 frames"),
        (IMAGE, ACTION[:, 0], "action is"),
        (IMAGE, np.where(np.arange(5)[:, None] == 3, np.nan, ACTION), "action 3 is not finite"),
        (IMAGE[:0], ACTION[:0], "image is"),
        (np.array([object()] * 5), ACTION, "Python objects"),
        (IMAGE, np.array([["a"]] * 5), "action is"),
    ],
)
def test_a_bad_array_gets_a_sentence(tmp_path, image, action, sentence):
    np.savez(tmp_path / "bad.npz", image=image, action=action)
    with pytest.raises(BadInput, match=sentence) as error:
        read_episode(tmp_path / "bad.npz")
    assert "bad.npz" in str(error.value)


def test_a_bad_file_gets_a_sentence(tmp_path):
    path = tmp_path / "bad.npz"
    write_episode(path, IMAGE, ACTION)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text", whole[:60] + bytes(40) + whole[100:]):
        path.write_bytes(content)
        with pytest.raises(BadInput, match="bad.npz"):
            read_episode(path)
    np.savez(path, image=IMAGE)
    with pytest.raises(BadInput, match="no array 'action'"):
        read_episode(path)
    # declares 190 terabytes
    header = io.BytesIO()
    shape = (10**6, 10**6, 64, 3)
    declared = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, declared)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("image.npy", header.getvalue())
        file.writestr("action.npy", header.getvalue())
    with pytest.raises(BadInput, match="declares 192,000,000,000,000"):
        read_episode(path)


def test_mixed_or_short_episodes_get_a_sentence(tmp_path):
    with pytest.raises(BadInput, match="no .npz episodes"):
        read_episodes(tmp_path)
    write_episode(tmp_path / "a.npz", IMAGE, ACTION)
    with pytest.raises(BadInput, match="a.npz has 5 frames, but a segment needs 9"):
        read_episodes(tmp_path, 9)
    write_episode(tmp_path / "b.npz", np.zeros((5, 16, 8, 3), np.uint8), ACTION)
    with pytest.raises(BadInput, match="b.npz has frames of 16x8"):
        read_episodes(tmp_path)
    write_episode(tmp_path / "b.npz", IMAGE, np.zeros((5, 3), np.float32))
    with pytest.raises(BadInput, match="b.npz has 3 numbers an action"):
        read_episodes(tmp_path)
    (tmp_path / "b.npz").unlink()
    write_episode(tmp_path / "b.npz", IMAGE, ACTION, state=np.zeros((5, 1)))
    with pytest.raises(BadInput, match="b.npz and a.npz have states of different sizes"):
        read_episodes(tmp_path)


def test_too_few_episodes_get_a_sentence(tmp_path):
    own_episodes(tmp_path / "mine", 2)
    with pytest.raises(BadInput, match="none is left to train on"):
        options = [f"--path={tmp_path / 'mine'}", f"--out={tmp_path / 'w'}"]
        prepare.main(["--source=episodes", *options])
    assert not (tmp_path / "w").exists()
    with pytest.raises(BadInput, match="there is no world in .*nowhere"):
        read_world_episodes(tmp_path / "nowhere", "train")
