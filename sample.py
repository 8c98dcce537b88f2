"""
Look at a world model: read its predictions, or judge it.

a few transitions   python sample.py --world=textgame
the results table   python sample.py --world=textgame --eval
one checkpoint      python sample.py --world=textgame --rlvr=out/my-run/best.pt
per kind of game    python sample.py --world=textgame --eval --kinds

The table's rows: copy (nothing changes), lookup (no learning: the training record of the same state with the nearest action), MLE, MLE continued
(for the same wall-clock as RLVR; the better of its runs on validation) and RLVR, each at T = 1 and at the decoding that does best on
validation. The test set is used here and nowhere else.
"""
import difflib
import json
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from common import BadInput, load_checkpoint, parse_config, run_main, start_processes
from data import evaluate, load_world
from model import Model, ModelConfig
from rewards import parse_reward


@dataclass
class Config:
    world: str = "textgame"     # a folder, or its name under data/
    eval: bool = False          # print the results table instead of a few transitions
    kinds: bool = False         # with --eval: also one line per kind of game or page
    mle: str = ""               # checkpoint of stage 1; empty: out/<world>-mle/best.pt
    more: str = ""              # checkpoints of MLE continued, separated by commas; empty: out/<world>-mle-more-*/best.pt
    rlvr: str = ""              # checkpoint of stage 2; empty: out/<world>-rlvr/best.pt
    out: str = ""               # where --eval writes its results.json and results.md; empty: out/<world>-results
    split: str = "test"         # the split to show or judge
    records: int = 0            # judge only so many records of the split (0: all)
    val_records: int = 256      # validation records for the choice of decoding and checkpoint
    best_of: int = 16           # largest N of the best-of-N curves (0: none)
    curve_records: int = 200    # records for the curves
    seeds: int = 3              # samples of each answer for rows that sample
    reward: str = ""            # the reward that picks the best of N; empty: the world's own
    number: int = 4             # transitions to show
    temperature: float = 0.0    # of the transitions shown; 0: greedy
    color: bool = True          # colour the transitions shown
    device: str = "auto"        # cpu, cuda, mps or auto
    seed: int = 0


PRESETS = {"smoke": dict(records=12, val_records=8, best_of=4, curve_records=4, seeds=2)}

# decodings that compete on validation, by name: temperature, top_k, top_p
DECODINGS = {"greedy": (0.0, 0, 1.0), "T=0.5": (0.5, 0, 1.0), "top-p 0.9": (1.0, 0, 0.9)}

# ---------------------------------------------------------------------------------------------------------------------
# Rows of the table


def load_model(path, world, device):
    """A model from a checkpoint of this world, and the seconds of training behind it, all stages together."""
    checkpoint = load_checkpoint(path, device, make=f"python train_mle.py --world={world.folder}")
    if checkpoint["world"] != world.fingerprint:
        raise BadInput(f"{path} was trained on another world ({checkpoint['world']}, not {world.fingerprint}); name the right one with --world")
    model = Model(ModelConfig(**checkpoint["model_config"])).to(device)
    model.load_state_dict(checkpoint["model"])
    return model.eval(), checkpoint["seconds_before"] + checkpoint["seconds"]


def fixed_scores(world, split, indices, names, answer):
    """Scores of a rule that answers without a model: answer(index) -> text. {name: [N, 1]}."""
    rows = [world.score_texts(split, i, [answer(i)], names)[0] for i in indices]
    return {name: torch.tensor([[row[name]] for row in rows]) for name in names}


def nearest_action(world, split):
    """answer(index) of the lookup row: what happened in the same state of the training data after the most similar action."""
    by_state = defaultdict(list)
    for record in world.records["train"]:
        if "context" in record:
            by_state[record["context"]].append((Counter(record["prompt"].split()), record))

    def answer(index):
        record = world.records[split][index]
        words = Counter(record["prompt"].split())
        near = by_state.get(record.get("context"), [])
        if not near:
            return world.nothing_changes
        shared = [2 * sum((words & other).values()) / max(1, sum(words.values()) + sum(other.values())) for other, _ in near]
        finalists = sorted(range(len(near)), key=lambda i: -shared[i])[:8]  # the letters decide between actions with as many words in common
        letters = {i: difflib.SequenceMatcher(None, record["prompt"], near[i][1]["prompt"]).ratio() for i in finalists}
        return near[max(finalists, key=lambda i: (shared[i], letters[i]))][1]["response"]
    return answer


def best_decoding(model, world, indices, config):
    """The decoding with the best headline metric on validation, and that value."""
    values = {}
    for name, (temperature, top_k, top_p) in DECODINGS.items():
        generator = torch.Generator(world.device).manual_seed(config.seed)
        scores, _ = evaluate(model, world, "val", indices, [world.headline], 1, temperature, top_k, top_p, generator=generator)
        values[name] = world.signs[world.headline] * scores[world.headline].mean().item()
    best = max(values, key=values.get)
    return best, values[best]


def model_scores(model, world, split, indices, decoding, config):
    """Scores of one model row: {metric: [N, seeds]}, `seeds` independent samples of each answer (one where decoding is greedy)."""
    temperature, top_k, top_p = (1.0, 0, 1.0) if decoding == "T=1" else DECODINGS[decoding]
    generator = torch.Generator(world.device).manual_seed(config.seed)
    return evaluate(model, world, split, indices, list(world.metrics), config.seeds if temperature else 1, temperature, top_k, top_p,
                    generator=generator)[0]  # the samples of a prompt share one pass over it


# ---------------------------------------------------------------------------------------------------------------------
# The table


def columns(world, split, indices):
    """[(heading, metric, how)]: how maps scores [N, seeds] to one number per seed [seeds]."""
    records = [world.records[split][i] for i in indices]
    changed = torch.tensor([bool(r.get("changed", True)) for r in records])
    kinds = defaultdict(list)
    for n, record in enumerate(records):
        kinds[record.get("kind", "")].append(n)

    def over_kinds(values):
        return torch.stack([values[rows].mean(0) for rows in kinds.values()]).mean(0)

    def every(values):
        return values.mean(0)

    def where(mask):
        return lambda values: values[mask].mean(0)
    parts = []
    for name in world.metrics:
        if name in world.split_metrics and 0 < changed.sum() < len(changed):
            parts += [(f"{name} unchanged", name, where(~changed)), (f"{name} changed", name, where(changed))]
        parts.append((name + (" overall" if name in world.split_metrics else ""), name, every))
        if name in world.split_metrics and len(kinds) > 1:
            parts.append((f"{name} mean of kinds", name, over_kinds))
    return parts


def cell(values, scale):
    """[seeds] -> 'mean ± std' in percent, or 'mean' where there is one seed."""
    values = values * scale
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def markdown(header, rows):
    """A table in Markdown, columns aligned."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = ["| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths)) + " |" for row in [header, *rows]]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def best_of_n(model, world, split, indices, terms, config):
    """
    Best-of-N at T = 1: {N: {"winner": {metric: mean}, "own": {metric: mean}}}. winner: the sample with the best reward, all its metrics; own:
    each metric's own best, as the paper counts. Both average over disjoint blocks of N out of best_of samples.
    """
    generator = torch.Generator(world.device).manual_seed(config.seed)
    scores, _ = evaluate(model, world, split, indices, list(world.metrics), config.best_of, 1.0, generator=generator)  # {name: [N, best_of]}
    reward = sum(weight * world.signs[name] * scores[name] for weight, name in terms)
    curve, n = {}, 1
    while n <= config.best_of:
        block = reward[:, :config.best_of // n * n].reshape(-1, n)  # [records * blocks, n]
        winner = block.argmax(1, keepdim=True)
        split_up = {name: s[:, :config.best_of // n * n].reshape(-1, n) for name, s in scores.items()}
        curve[n] = {"winner": {name: s.gather(1, winner).mean().item() for name, s in split_up.items()},
                    "own": {name: (world.signs[name] * (world.signs[name] * s).amax(1)).mean().item() for name, s in split_up.items()}}
        n *= 2
    return curve


def judge(world, config, device):
    """Prints the table (and the curves) and writes them to out/<world>-results."""
    name = world.folder.name
    indices = list(range(len(world.records[config.split])))
    if config.records:
        indices = sorted(np.random.default_rng(0).permutation(indices)[:config.records].tolist())
    val = np.random.default_rng(1).permutation(len(world.records["val"]))[:config.val_records].tolist()
    terms = parse_reward(config.reward or world.reward, world.metrics)
    more = config.more.split(",") if config.more else sorted(map(str, Path("out").glob(f"{name}-mle-more-*/best.pt")))
    paths = {"MLE": [config.mle or f"out/{name}-mle/best.pt"], "MLE continued": more, "RLVR": [config.rlvr or f"out/{name}-rlvr/best.pt"]}

    rows = [("copy (nothing changes)", fixed_scores(world, config.split, indices, world.metrics, lambda i: world.nothing_changes), 0.0),
            ("lookup (no learning)", fixed_scores(world, config.split, indices, world.metrics, nearest_action(world, config.split)), 0.0)]
    curves = {}
    for row, candidates in paths.items():
        if row != "MLE" and not all(Path(path).is_file() for path in candidates or [""]):
            print(f"(no row {row!r}: there is no checkpoint {', '.join(candidates) or f'out/{name}-mle-more-*/best.pt'})", file=sys.stderr)
            continue
        loaded = [load_model(path, world, device) for path in candidates]
        chosen = [best_decoding(model, world, val, config) for model, _ in loaded]
        pick = max(range(len(loaded)), key=lambda i: chosen[i][1])
        model, seconds = loaded[pick]
        for decoding in ("T=1", chosen[pick][0]):
            rows.append((f"{row}, {decoding}", model_scores(model, world, config.split, indices, decoding, config), seconds))
        if config.best_of and row != "MLE continued":
            curves[row] = best_of_n(model, world, config.split, indices[:config.curve_records], terms, config)

    parts = columns(world, config.split, indices)
    scale = {metric: 1.0 if metric in world.unscaled else 100.0 for metric in world.metrics}
    header = ["", *(heading for heading, *_ in parts), "seconds"]
    table = [[label, *(cell(how(scores[metric]), scale[metric]) for _, metric, how in parts), f"{seconds:.0f}"] for label, scores, seconds in rows]
    report = [f"{name}, {config.split} split, {len(indices)} transitions"
              f" (percent{', ' + ', '.join(world.unscaled) + ' as they are' if world.unscaled else ''}; ± over {config.seeds} samples of each answer;"
              f" seconds: all training behind the row's checkpoint)", "", markdown(header, table)]
    if curves:
        report += ["", f"best of N samples at T = 1, {config.curve_records} transitions: {world.headline} of the sample with the best reward"
                   f" ({config.reward or world.reward}) | {world.headline}'s own best", "",
                   markdown(["N", *(f"{row} {what}" for row in curves for what in ("by reward", "own best"))],
                            [[n, *(f"{curves[row][n][what][world.headline] * scale[world.headline]:.2f}" for row in curves for what in ("winner", "own"))]
                             for n in next(iter(curves.values()))])]
    if config.kinds:
        report += ["", kind_table(world, config.split, indices, rows)]
    text = "\n".join(report)
    print(text)
    folder = Path(config.out or f"out/{name}-results")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(text + "\n")
    (folder / "results.json").write_text(json.dumps({
        "config": asdict(config), "curves": curves,
        "rows": {label: {**{heading: how(scores[metric]).tolist() for heading, metric, how in parts}, "seconds": seconds}
                 for label, scores, seconds in rows}}, indent=1))
    print(f"\nwritten to {folder / 'results.md'} and results.json")


def kind_table(world, split, indices, rows):
    """Headline metric per kind of game or page, for every row: changed / overall."""
    groups = defaultdict(list)
    for n, i in enumerate(indices):
        groups[world.records[split][i].get("kind", "")].append(n)
    table = []
    for kind, members in sorted(groups.items()):
        changed = torch.tensor([bool(world.records[split][indices[n]].get("changed", True)) for n in members])
        cells = []
        for _, scores, _ in rows:
            values = 100 * scores[world.headline][members].mean(1)
            cells.append(f"{values[changed].mean():.0f} / {values.mean():.0f}" if changed.any() else f"- / {values.mean():.0f}")
        table.append([kind, len(members), int(changed.sum()), *cells])
    return f"{world.headline} by kind, changed / overall:\n\n" + markdown(["kind", "records", "changed", *(label for label, *_ in rows)], table)


# ---------------------------------------------------------------------------------------------------------------------
# A few transitions, as a person would read them


def show(world, config, device):
    """Prints state, action and the predicted difference, each line marked right (✓), wrong (✗) or missing (·)."""
    name = world.folder.name
    path = config.rlvr or f"out/{name}-rlvr/best.pt"
    if not config.rlvr and not Path(path).is_file():
        path = config.mle or f"out/{name}-mle/best.pt"
    model, _ = load_model(path, world, device)
    rng = np.random.default_rng(config.seed)
    indices = world.draw(config.split, config.number, rng, changed=0.75)
    batch = world.batch(config.split, indices)
    generator = torch.Generator(world.device).manual_seed(config.seed)
    tokens = model.sample(batch.prompt, batch.prompt_len, 1, world.response_len, world.eos_id, world.legal(), batch.forced, config.temperature,
                          generator=generator).tokens
    scores = world.score(batch, tokens, [world.headline, world.reward])
    paint = (lambda color, text: f"\033[{color}m{text}\033[0m") if config.color else lambda color, text: text
    print(f"{path}, {'greedy' if config.temperature == 0 else f'T={config.temperature:g}'}: ✓ right, ✗ wrong, · missing\n")
    for n, (index, (answer,)) in enumerate(zip(indices, world.decode(batch, tokens))):
        record = world.records[config.split][index]
        print(paint(2, record.get("context", "").rstrip("\n")))
        print(paint(1, record["prompt"].rstrip("\n")))
        truth = (record["truth"] if isinstance(record.get("truth"), str) else record["response"]).split("\n")
        predicted = ["(no end)"] if answer is None else answer.split("\n")
        for line in predicted:
            print("  " + (paint(32, f"✓ {line}") if line in truth else paint(31, f"✗ {line}")))
        for line in truth:
            if line not in predicted:
                print("  " + paint(33, f"· {line}"))
        print(", ".join(f"{metric} {values[n, 0]:.2f}" for metric, values in scores.items()) + "\n" + "-" * 60)


def main(argv):
    config = parse_config(Config, argv, PRESETS)
    device, *_ = start_processes(config.device, config.seed)
    world = load_world(config.world, device)
    if config.split not in world.records:
        raise BadInput(f"--split={config.split}: there are {', '.join(world.records)}")
    judge(world, config, device) if config.eval else show(world, config, device)


if __name__ == "__main__":
    run_main(main)
