"""
Makes a web-page world: prompts (page and action), responses (new, deleted and updated items) and a
vocabulary.

    python data/webnav/prepare.py
        a simulated web shop -> data/webnav
    python data/webnav/prepare.py --source=webarena --path=FILE_OR_DIR
        the paper's WebArena transitions -> data/webarena

FILE_OR_DIR is huggingface.co/datasets/thuml/webarena-world-model-cot, or any .jsonl or .parquet
files with rows in one of its forms.
"""

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from common import BadInput, option, parse_config, run_main
from data.text import json_lines, write_text_world
from data.webnav import shop
from data.webnav.task import TASK
from data.world import home


@dataclass
class Config:
    source: str = option("procedural", "procedural", "webarena")
    path: str = ""  # webarena: a .jsonl or .parquet file, or a folder of them
    out: str = ""  # a name under data/ or a path; empty: webnav or webarena
    # procedural: visits to the shop, 30 transitions each; 1/9 is for validation and 1/9 for test
    sessions: int = option(240, 9, 10**6)
    seed: int = option(0, 0, 2**31)  # procedural: which shop, and which visits
    vocab_size: int = option(1024, 258, 2**17)  # tokens, the 256 bytes and the end token included
    tokenizer: str = ""  # folder of a pretrained model: its vocabulary in place of one of our own
    template: str = option("none", "none", "chat")  # chat: prompts in its chat form
    longest: int = option(0, 0, 10**6)  # leave out records with longer answers, in tokens (0: none)


SMOKE = {"sessions": 9}

# ------------------------------------------------------------------------------------------------
# The shop


def without(records, seen):
    """
    The records whose (state, prompt) is not in the set `seen`, each pair once. Adds them to it.
    """
    kept = []
    for record in records:
        pair = record["state"], record["prompt"]
        if pair not in seen:
            seen.add(pair)
            kept.append(record)
    return kept


def procedural(config):
    """
    Splits by visit. Validation visits are the last of the training seeds, test visits have other
    seeds; all are to the same shop.
    """
    held_out = config.sessions // 9
    visits = {
        "train": range(config.sessions - 2 * held_out),
        "val": range(config.sessions - 2 * held_out, config.sessions - held_out),
        "test": range(1_000_000, 1_000_000 + held_out),
    }
    splits = {}
    seen = set()
    for split, numbers in visits.items():
        records = shop.transitions(numbers, config.seed, config.seed)
        splits[split] = without(records, seen)
    return splits


# ------------------------------------------------------------------------------------------------
# WebArena: reading the paper's files

AGAIN = "get it again from huggingface.co/datasets/thuml/webarena-world-model-cot"
RIGHT = "check that --path names WebArena world-model data"
HEADINGS = ("New items:", "Deleted items:", "Updated items:")


def read_file(path):
    """
    Yields (row, where) of a .jsonl or .parquet file; where names file and line for messages.
    Raises BadInput.
    """
    if path.suffix == ".parquet":
        for number, row in enumerate(parquet_rows(path), 1):
            yield row, f"{path}, row {number}"
        return
    for where, row in json_lines(path, AGAIN):
        yield row, where


def parquet_rows(path):
    """The rows of a parquet file as dictionaries. Raises BadInput."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadInput(f"reading {path} needs the package pyarrow: pip install pyarrow") from None
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError):
        raise BadInput(
            f"{path} is not a complete parquet file; it may be cut short, {AGAIN}"
        ) from None


def read_row(row, where):
    """
    {"prompt", "response", "changed"} of a row in any of the forms that the paper's files have.
    Raises BadInput.
    """
    if not isinstance(row, dict):
        raise BadInput(f"{where}: expected an object with the keys question and answer; {RIGHT}")
    extra = row.get("extra_info")
    if not isinstance(extra, dict):
        extra = {}
    reward = row.get("reward_model")
    if not isinstance(reward, dict):
        reward = {}
    prompt = first_text(row.get("question"), row.get("prompt"), extra.get("question"))
    answer = first_text(row.get("answer"), reward.get("ground_truth"), extra.get("answer"))
    if not prompt:
        raise BadInput(
            f"{where}: the row has no question (nor prompt, nor extra_info.question); {RIGHT}"
        )
    if not answer:
        raise BadInput(
            f"{where}: the row has no answer (nor reward_model.ground_truth, nor "
            f"extra_info.answer); {RIGHT}"
        )
    response = without_thoughts(answer)
    lines = response.split("\n")
    for heading in HEADINGS:
        if not any(line.startswith(heading) for line in lines):
            raise BadInput(
                f"{where}: the answer has no line {heading!r}; it may be cut short, {AGAIN}"
            )
    items = [line for line in lines if not line.startswith(HEADINGS)]
    changed = any(line.strip() not in ("None", "") for line in items)
    return {"prompt": prompt, "response": response, "changed": changed}


def first_text(*values):
    """
    The first value that is a text or a list of chat messages (whose contents are joined); "" if
    there is none.
    """
    for value in values:
        if isinstance(value, (list, tuple)) and value and all(map(is_message, value)):
            value = "\n\n".join(message["content"] for message in value)
        if isinstance(value, str) and value.strip():
            return value
    return ""


def is_message(value):
    """Whether a value is a chat message, {"content": a text}."""
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def without_thoughts(answer):
    """
    The answer proper: what follows the last </think> and, there, starts with the first heading.
    """
    lines = answer.rpartition("</think>")[2].strip().split("\n")
    start = next((i for i, line in enumerate(lines) if line.startswith(HEADINGS[0])), 0)
    return "\n".join(lines[start:])


def split_name(path):
    """
    The split that a file's name speaks of: "test-00000-of-00001.parquet" is test; train unless it
    says otherwise.
    """
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    if "test" in words:
        return "test"
    if words & {"val", "valid", "validation", "dev"}:
        return "val"
    return "train"


def webarena(config):
    """
    Splits of the paper's files: by the names of the files if the folder has both training and test
    files, else by a hash of the prompt. Raises BadInput.
    """
    path = Path(config.path)
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in found if file.suffix in (".jsonl", ".parquet") and file.is_file()]
    if not files:
        raise BadInput(f"there is no .jsonl or .parquet file at --path={config.path}; {AGAIN}")
    named = {"train", "test"} <= {split_name(file) for file in files}
    splits = {"train": [], "val": [], "test": []}
    for file in files:
        records = [read_row(row, where) for row, where in read_file(file)]
        if not records:
            raise BadInput(f"{file} is empty; {AGAIN}")
        splits[split_name(file) if named else "train"] += records
    for split in ("test", "val"):
        if not splits[split]:
            hold_out(splits, split)
        prompts = {record["prompt"] for record in splits[split]}
        splits["train"] = [record for record in splits["train"] if record["prompt"] not in prompts]
    return splits


def hold_out(splits, split, share=0.1):
    """
    Fills a split with the records of a tenth of the training prompts, those with the smallest hash:
    equal prompts stay together.
    """

    def digest(prompt):
        return hashlib.sha256(f"{split} {prompt}".encode("utf-8", "replace")).digest()

    prompts = sorted({record["prompt"] for record in splits["train"]}, key=digest)
    chosen = set(prompts[: max(1, round(share * len(prompts)))])
    splits[split] = [record for record in splits["train"] if record["prompt"] in chosen]


def main(argv):
    config = parse_config(Config, argv, SMOKE)
    if config.source == "webarena" and not config.path:
        raise BadInput(
            "--source=webarena needs --path=FILE_OR_DIR, the files of "
            "huggingface.co/datasets/thuml/webarena-world-model-cot"
        )
    if config.source == "procedural" and config.path:
        raise BadInput("--path is read with --source=webarena only; add that, or leave --path out")
    splits = procedural(config) if config.source == "procedural" else webarena(config)
    folder = home(config.out or ("webnav" if config.source == "procedural" else "webarena"))
    # which shop it is: who acts there needs it
    shared = {"shop": config.seed} if config.source == "procedural" else {}
    sizes = dict(vocab_size=config.vocab_size, longest=config.longest)
    sizes.update(tokenizer=config.tokenizer, template=config.template)
    write_text_world(folder, "webnav", TASK, splits, shared=shared, **sizes)


if __name__ == "__main__":
    run_main(main)
