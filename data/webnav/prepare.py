"""
Makes a web-page world: prompts (page and action), responses (new, deleted and updated items) and a vocabulary.

python data/webnav/prepare.py                                      a simulated web shop -> data/webnav
python data/webnav/prepare.py --source=webarena --path=FILE_OR_DIR   the paper's WebArena transitions -> data/webarena

FILE_OR_DIR is huggingface.co/datasets/thuml/webarena-world-model-cot, or any .jsonl or .parquet files with rows in one of its forms.
"""
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from common import BadInput, numbered_lines, one_of, parse_config, run_main  # noqa: E402
from data.text import write_text_world  # noqa: E402
from data.webnav import shop  # noqa: E402


@dataclass
class Config:
    source: str = "procedural"  # procedural or webarena
    path: str = ""              # webarena: a .jsonl or .parquet file, or a folder of them
    out: str = ""               # the world's folder; empty: data/webnav or data/webarena
    sessions: int = 240         # procedural: visits to the shop, about 30 transitions each; 1/9 are for validation, 1/9 for test
    seed: int = 0               # procedural: which shop, and which visits
    vocab_size: int = 1024      # tokens of the byte-pair encoding, the 256 bytes and the end token included


PRESETS = {"smoke": {"sessions": 9, "vocab_size": 512}}

# ---------------------------------------------------------------------------------------------------------------------
# The shop


def without(records, seen):
    """The records whose (context, prompt) is not in the set `seen`, each pair once. Adds them to it."""
    kept = []
    for record in records:
        pair = record["context"], record["prompt"]
        if pair not in seen:
            seen.add(pair)
            kept.append(record)
    return kept


def procedural(config):
    """Splits by visit. Validation visits are the last of the training seeds, test visits have other seeds; all are to the same shop."""
    if config.sessions < 9:
        raise BadInput(f"--sessions={config.sessions} is too few for three splits; give at least 9")
    held_out, seen = config.sessions // 9, set()
    visits = {"train": range(config.sessions - 2 * held_out), "val": range(config.sessions - 2 * held_out, config.sessions - held_out),
              "test": range(1_000_000, 1_000_000 + held_out)}
    return {split: without(shop.transitions(numbers, config.seed, config.seed), seen) for split, numbers in visits.items()}


# ---------------------------------------------------------------------------------------------------------------------
# WebArena: reading the paper's files

AGAIN = "get it again from huggingface.co/datasets/thuml/webarena-world-model-cot"
RIGHT = "check that --path names WebArena world-model data"
HEADINGS = ("New items:", "Deleted items:", "Updated items:")


def read_file(path):
    """Yields (row, where) of a .jsonl or .parquet file; where names file and line for messages. Raises BadInput."""
    if path.suffix == ".parquet":
        for number, row in enumerate(parquet_rows(path), 1):
            yield row, f"{path}, row {number}"
        return
    with open(path, "rb") as file:  # bytes: json.loads reports bad UTF-8 as it reports bad JSON
        for number, line in numbered_lines(file, path):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise BadInput(f"{path}, line {number}: not a complete JSON object; the file may be cut short, {AGAIN}") from None
            yield row, f"{path}, line {number}"


def parquet_rows(path):
    """The rows of a parquet file as dictionaries."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadInput(f"reading {path} needs the package pyarrow: pip install pyarrow") from None
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError):
        raise BadInput(f"{path} is not a complete parquet file; it may be cut short, {AGAIN}") from None


def read_row(row, where):
    """{"prompt", "response", "changed"} of a row in any of the forms that the paper's files have. Raises BadInput."""
    if not isinstance(row, dict):
        raise BadInput(f"{where}: expected an object with the keys question and answer; {RIGHT}")
    inside = {key: row[key] if isinstance(row.get(key), dict) else {} for key in ("extra_info", "reward_model")}
    prompt = first_text(row.get("question"), row.get("prompt"), inside["extra_info"].get("question"))
    answer = first_text(row.get("answer"), inside["reward_model"].get("ground_truth"), inside["extra_info"].get("answer"))
    if not prompt:
        raise BadInput(f"{where}: the row has no question (nor prompt, nor extra_info.question); {RIGHT}")
    if not answer:
        raise BadInput(f"{where}: the row has no answer (nor reward_model.ground_truth, nor extra_info.answer); {RIGHT}")
    response = without_thoughts(answer)
    lines = response.split("\n")
    for heading in HEADINGS:
        if not any(line.startswith(heading) for line in lines):
            raise BadInput(f"{where}: the answer has no line {heading!r}; it may be cut short, {AGAIN}")
    changed = any(line.strip() not in ("None", "") and not line.startswith(HEADINGS) for line in lines)
    return {"prompt": prompt, "response": response, "changed": changed}


def first_text(*values):
    """The first value that is a text or a list of chat messages (whose contents are joined); "" if there is none."""
    for value in values:
        if isinstance(value, (list, tuple)) and value and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value):
            value = "\n\n".join(message["content"] for message in value)
        if isinstance(value, str) and value.strip():
            return value
    return ""


def without_thoughts(answer):
    """The answer proper: what follows the last </think> and, there, starts with the first heading."""
    lines = answer.rpartition("</think>")[2].strip().split("\n")
    start = next((i for i, line in enumerate(lines) if line.startswith(HEADINGS[0])), 0)
    return "\n".join(lines[start:])


def split_name(path):
    """The split that a file's name speaks of: "test-00000-of-00001.parquet" is test; train unless it says otherwise."""
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    return "test" if "test" in words else "val" if words & {"val", "valid", "validation", "dev"} else "train"


def webarena(config):
    """Splits of the paper's files: by the names of the files if the folder has both training and test files, else by a hash of the prompt."""
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
    """Fills a split with the records of a tenth of the training prompts, those with the smallest hash: equal prompts stay together."""
    def digest(prompt):
        return hashlib.sha256(f"{split} {prompt}".encode("utf-8", "replace")).digest()

    prompts = sorted({record["prompt"] for record in splits["train"]}, key=digest)
    chosen = set(prompts[:max(1, round(share * len(prompts)))])
    splits[split] = [record for record in splits["train"] if record["prompt"] in chosen]


def main(argv):
    config = parse_config(Config, argv, PRESETS)
    one_of("source", config.source, ("procedural", "webarena"))
    if config.source == "webarena" and not config.path:
        raise BadInput("--source=webarena needs --path=FILE_OR_DIR, the files of huggingface.co/datasets/thuml/webarena-world-model-cot")
    if config.source == "procedural" and config.path:
        raise BadInput("--path is read with --source=webarena only; add that, or leave --path out")
    splits = procedural(config) if config.source == "procedural" else webarena(config)
    name = "webnav" if config.source == "procedural" else "webarena"
    folder = Path(config.out) if config.out else Path(__file__).resolve().parents[1] / name
    write_text_world(folder, domain="webnav", splits=splits, vocab_size=config.vocab_size)


if __name__ == "__main__":
    run_main(main)
