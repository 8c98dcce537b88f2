"""Every option that names a file or folder, of every script, with one that is missing or wrong."""

import ast
import hashlib
import json
from pathlib import Path

import pytest

import evaluate
import sample
import tokenizer_vq
import train_mle
import train_rlvr
from common import BadInput
from data.own import prepare as own
from data.robot import prepare as robot
from data.textgame import prepare as textgame
from data.webnav import prepare as webnav

# small enough to end in a moment where an option is accepted after all
TINY = ["--steps=1", "--threads=1", "--eval_records=2"]
MODEL = ["--n_layer=1", "--n_embd=32", "--batch_size=2"]
SCRIPTS = {
    "train_mle": (train_mle, ["--world=./mine", *TINY, *MODEL]),
    "train_rlvr": (train_rlvr, ["--world=./mine", *TINY, "--prompts_per_step=2", "--group_size=2"]),
    "evaluate": (evaluate, ["--world=./mine", "--records=2", "--val_records=2", "--best_of=0"]),
    "sample": (sample, ["--world=./mine", "--number=1"]),
    "tokenizer_vq": (tokenizer_vq, ["--world=./clips", "--steps=1", "--channels=8"]),
    "own": (own, ["--path=mine.jsonl", "--out=./made"]),
    "textgame": (textgame, ["--source=bytesized32", "--path=.", "--out=./made"]),
    "webnav": (webnav, ["--source=webarena", "--path=mine.jsonl", "--out=./made"]),
    "robot": (robot, ["--source=episodes", "--path=.", "--out=./made", "--episodes=3"]),
}
# options whose value is the name of something on disk
ON_DISK = ("world", "task", "init_from", "mle", "more", "rlvr", "path", "out", "lpips_weights")
ON_DISK += ("tokenizer",)
CASES = [
    (script, option)
    for script, (module, _) in SCRIPTS.items()
    for option in module.Config.__dataclass_fields__
    if option in (*ON_DISK, "average")
]


def contents(folder):
    """{path: digest} of all files below a folder but those of runs."""
    files = (p for p in Path(folder).rglob("*") if p.is_file() and "out" not in p.parts)
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths")
    rows = [json.dumps(dict(prompt=f"{n} =", response=str(n))) + "\n" for n in range(30)]
    (folder / "mine.jsonl").write_text("".join(rows))
    own.main([f"--path={folder}/mine.jsonl", f"--out={folder}/mine", "--vocab_size=260"])
    (folder / "text.txt").write_text("hello\n")
    (folder / "noise.pt").write_bytes(bytes(range(256)))
    (folder / "folder").mkdir()
    return folder


@pytest.mark.parametrize("script,option", CASES)
def test_a_path_that_is_wrong_gets_one_sentence(place, monkeypatch, script, option):
    """Guards against tracebacks, and against anything of the user's that changes on the way."""
    monkeypatch.chdir(place)
    module, options = SCRIPTS[script]
    before = contents(place)
    for path in ("./missing", "./folder", "./text.txt", "./noise.pt", "/dev/null", "/proc/x/y"):
        if option == "out" and path in ("./missing", "./folder"):
            continue  # where it is allowed to write
        with pytest.raises(BadInput) as error:
            module.main([*options, f"--{option}={path}"])
        assert "\n" not in str(error.value), path
    assert contents(place) == before


def test_what_is_optional_may_be_deleted():
    """No other file imports use/, bench.py or pretrained.py when it is imported itself."""
    root = Path(__file__).parents[1]
    optional = "use", "bench", "pretrained"
    for path in [*root.glob("*.py"), *root.glob("data/**/*.py")]:
        if path.stem in optional:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            imported = [getattr(node, "module", None) or "", *names]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert not {name.split(".")[0] for name in imported} & {*optional}, path
