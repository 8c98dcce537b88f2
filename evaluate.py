"""
Judge a world model: the results table, and the scores that training validates by.

    python evaluate.py                       the default world's table, after runs/textgame.sh
    python evaluate.py --world=webnav --kinds               also a line per kind of page
    python evaluate.py --rlvr=my-run,another-run            the better of two runs on validation
    python evaluate.py --average=seed0-results,seed1-results    mean ± std over training seeds

The table's rows: copy (nothing changes), lookup (no learning: the training record of the same state
with the nearest action), for video the tokenizer's floor, MLE, MLE continued (for at least the work
of RLVR; the better of its runs on validation) and RLVR, each at T = 1 and at the decoding that does
best on validation. Of 16 samples of MLE: the likeliest, the vote (the one that the others agree
with most), for video the median of the pictures, and the best, which only an oracle finds. Work is
tokens through the network, 1 for a forward pass and 3 for one with its backward pass. Differences
have a 95 % bootstrap interval over independent units. The test set is used here and nowhere else.
"""

import json
import platform
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

# common first: it says how torch's threads wait, before torch is imported
from common import OUT, VERSION, BadInput, load_checkpoint, option, parse_config, run_main
from common import refuse_other_world, start_processes, work_behind

import numpy as np
import torch

from data import load_world
from data.world import SPLITS
from generate import generate
from model import Model, ModelConfig


@dataclass
class Config:
    world: str = "textgame"  # a folder, or its name under data/
    task: str = ""  # the world's task.py, where it is your own
    name: str = ""  # results go to out/<name>; empty: <world>-results
    # runs, by name, or checkpoint files
    mle: str = ""  # stage 1; empty: <world>-mle
    more: str = ""  # MLE continued, separated by commas; empty: every <world>-mle-more-*
    rlvr: str = ""  # stage 2; empty: <world>-rlvr; several, by commas: the best on validation
    each: bool = False  # a row for each of the runs in --rlvr instead of the best of them
    average: str = ""  # names of results, by commas: one table of their mean ± std instead
    # what is judged
    split: str = option("test", *SPLITS)
    records: int = option(0, 0, 10**9)  # judge only so many records of the split (0: all)
    val_records: int = option(256, 1, 10**9)  # for the choice of decoding and checkpoint
    select_by: str = ""  # reward by which these are chosen; empty: the world's own
    seeds: int = option(3, 1, 64)  # samples of each answer for rows that sample
    best_of: int = option(16, 0, 4096)  # N samples for the vote and the best-of-N curves (0: none)
    kinds: bool = False  # also one line per kind of game or page
    lpips_weights: str = ""  # folder of the public VGG16 and LPIPS weights, for the metric lpips
    # the machine
    device: str = "auto"  # cpu, cuda, mps or auto
    threads: int = option(2, 1, 1024)  # of a CPU
    seed: int = option(0, 0, 2**31)
    out: str = OUT  # the folder of all results


SMOKE = dict(records=12, val_records=8, best_of=4, seeds=2)


class Decoding(NamedTuple):
    """How answers are taken from a model; temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Decoding(0.0)
# these compete on validation
DECODINGS = {
    "greedy": GREEDY,
    "T=0.5": Decoding(0.5),
    "top-k 100": Decoding(1.0, top_k=100),
    "top-p 0.9": Decoding(1.0, top_p=0.9),
}

# ------------------------------------------------------------------------------------------------
# Scores


class Scores(NamedTuple):
    """What evaluate() found: scores {metric: [N, G]} fp32 on the CPU, in the order of indices."""

    metrics: dict
    length: float  # mean tokens of an answer
    limit: float  # share of answers without an end token


def rollouts(model, world, split, indices, decoding, group_size, generator):
    """
    Yields (rows, batch, rollout): group_size answers to each of 64 of the records `indices` at a
    time; rows are their places in indices.
    """
    model.eval()
    # neighbours of like length: little padding
    order = sorted(range(len(indices)), key=lambda n: world.prompt_length(split, indices[n]))
    temperature, *cut = decoding
    for i in range(0, len(order), 64):
        rows = order[i : i + 64]
        batch = world.batch(split, [indices[n] for n in rows])
        yield rows, batch, generate(model, batch, group_size, temperature, generator, *cut)


@torch.no_grad()
def evaluate(model, world, split, indices, names, decoding=GREEDY, group_size=1, generator=None):
    """
    Samples group_size responses to each of the records `indices` of a split and scores what they
    decode to. Returns Scores.
    """
    scores = {name: torch.zeros(len(indices), group_size) for name in names}
    lengths = []
    limits = []
    drawn = rollouts(model, world, split, indices, decoding, group_size, generator)
    for rows, batch, rollout in drawn:
        for name, values in world.score(batch, rollout.tokens, names).items():
            scores[name][rows] = values.cpu()
        lengths.append(rollout.length.float().mean().item())
        ended = rollout.ended.float().mean().item() if batch.eos_id is not None else 1.0
        limits.append(1 - ended)
    return Scores(scores, sum(lengths) / len(lengths), sum(limits) / len(limits))


@torch.no_grad()
def validation_loss(model, world, indices, precision):
    """Mean negative log-likelihood per response token (nats) of validation records."""
    total = 0.0
    count = 0
    for i in range(0, len(indices), 64):
        batch = world.batch("val", indices[i : i + 64])
        mask = batch.response_mask[:, None]
        response = batch.response[:, None]
        allowed = batch.allowed_ids
        with precision:
            logprob, _ = model(
                batch.prompt, batch.prompt_len, response, mask, allowed, entropy=False
            )
        total -= logprob.sum().item()
        count += mask.sum().item()
    return total / count


def validate(model, world, indices, terms, precision, temperature=0.0):
    """
    Judges a model under training on validation records. Returns (value, {name: number}): by value
    the best checkpoint is chosen; it is the reward, and the likelihood between equals.
    """
    generator = torch.Generator(world.device).manual_seed(0)
    names = list(dict.fromkeys([*world.metrics, *(name for _, name in terms)]))
    decoding = Decoding(temperature)
    scores = evaluate(model, world, "val", indices, names, decoding, generator=generator).metrics
    reward = world.weighted_sum(terms, scores).mean().item()
    loss = validation_loss(model, world, indices, precision)
    means = {name: values.mean().item() for name, values in scores.items()}
    return (reward, -loss), {"reward": reward, **means, "loss": loss}


def validation_indices(world, n, seed=0):
    """n validation records, the same ones at every call."""
    order = np.random.default_rng(seed).permutation(len(world.records["val"]))
    return order[:n].tolist()


# ------------------------------------------------------------------------------------------------
# Rows of the table


class Row(NamedTuple):
    label: str
    scores: dict  # {metric: [N, seeds]}
    seconds: float = 0.0  # of training behind it, all stages together
    work: float = 0.0
    machine: str = ""
    budget: dict = {}  # {"work", "seconds"} of its whole run; the best checkpoint may be early


def checkpoint_path(name, out=OUT):
    """
    Where a run's best checkpoint lies, given its name or the path of a checkpoint file, or the
    config.json in the folder of a pretrained model.
    """
    if name.endswith((".pt", ".json")) or Path(name).is_file():
        return Path(name)
    if Path(name, "config.json").is_file():
        return Path(name, "config.json")
    return Path(name if "/" in name else Path(out, name), "best.pt")


def open_checkpoint(path, world, device, stages=("mle", "rlvr")):
    """
    The checkpoint at a path of checkpoint_path; of a pretrained model it is one with no work behind
    it. Raises BadInput for none, and for one of another world or stage.
    """
    if Path(path).name == "config.json":
        from pretrained import as_checkpoint

        return as_checkpoint(Path(path).parent, world, device)
    make = f"python train_mle.py --world={world.in_commands()}"
    checkpoint = load_checkpoint(path, device, make, stages)
    refuse_other_world(checkpoint, world.fingerprint, path)
    return checkpoint


def load_model(path, world, device):
    """(model, checkpoint) of a path of this world. Raises BadInput for another one's."""
    checkpoint = open_checkpoint(path, world, device)
    model = Model(ModelConfig(**checkpoint["model_config"])).to(device)
    model.load_state_dict(checkpoint["model"])
    return model.eval(), checkpoint


def best_decoding(model, world, indices, config):
    """The decoding with the best reward on validation, and that value."""
    terms = world.terms(config.select_by or world.reward)
    names = [name for _, name in terms]
    values = {}
    for label, decoding in DECODINGS.items():
        generator = torch.Generator(world.device).manual_seed(config.seed)
        found = evaluate(model, world, "val", indices, names, decoding, generator=generator)
        values[label] = world.weighted_sum(terms, found.metrics).mean().item()
    best = max(values, key=values.get)
    return best, values[best]


def sampled_scores(model, world, indices, decoding, config):
    """{metric: [N, seeds]}: independent samples of each answer (one where decoding is greedy)."""
    n = config.seeds if decoding.temperature else 1
    generator = torch.Generator(world.device).manual_seed(config.seed)
    names = list(world.metrics)
    # the samples of a prompt share one pass over it
    return evaluate(model, world, config.split, indices, names, decoding, n, generator).metrics


class Many(NamedTuple):
    """N answers of a model to each record, at T = 1."""

    scores: dict  # {metric: [records, N]}
    reward: torch.Tensor  # [records, N]
    logprob: torch.Tensor  # [records, N] of whole answers; -inf for one that has not ended
    agreement: torch.Tensor  # [records, N] see World.agreement
    median: dict  # {metric: [records, 1]} of their median, or None where there is none


@torch.no_grad()
def sample_many(model, world, indices, config):
    """best_of answers to each record of the split at T = 1, and all that is said of them: Many."""
    generator = torch.Generator(world.device).manual_seed(config.seed)
    terms = world.terms(config.select_by or world.reward)
    names = list(world.metrics)
    shape = len(indices), config.best_of
    scores = {name: torch.zeros(shape) for name in names}
    median = {name: torch.zeros(shape[0], 1) for name in names}
    logprob = torch.zeros(shape)
    agreement = torch.zeros(shape)
    drawn = rollouts(model, world, config.split, indices, Decoding(), config.best_of, generator)
    for rows, batch, rollout in drawn:
        for name, values in world.score(batch, rollout.tokens, names).items():
            scores[name][rows] = values.cpu()
        ended = rollout.ended | (batch.eos_id is None)
        chosen = rollout.mask() if batch.forced is None else batch.forced[:, None] < 0
        own = (rollout.logprob * chosen).sum(-1)
        logprob[rows] = own.masked_fill(~ended, float("-inf")).cpu()
        agreement[rows] = world.agreement(batch, rollout.tokens, terms).cpu()
        middle = world.median(batch, rollout.tokens, names)
        for name, values in (middle or {}).items():
            median[name][rows] = values.cpu()
    reward = world.weighted_sum(terms, scores)
    return Many(scores, reward, logprob, agreement, median if middle else None)


def chosen_rows(many):
    """{"likeliest of 16", "vote of 16" and so on: {metric: [records, 1]}}: one answer of many."""
    N = many.logprob.size(1)
    # ties of the vote go to the likelier answer
    first = many.agreement >= many.agreement.amax(1, keepdim=True) - 1e-6
    vote = many.logprob.masked_fill(~first, float("-inf"))
    choices = {
        f"likeliest of {N}": many.logprob,
        f"vote of {N}": vote,
        f"best of {N} (an oracle's choice)": many.reward,
    }
    rows = {}
    for label, values in choices.items():
        winner = values.argmax(1, keepdim=True)  # [records, 1]
        rows[label] = {name: scores.gather(1, winner) for name, scores in many.scores.items()}
    if many.median:
        rows[f"median of {N}"] = many.median
    return rows


def best_of_n(scores, world, config):
    """
    Best-of-N, scores {metric: [records, samples]}: {N: {"winner": {metric: mean}, "own": {metric:
    mean}}}. winner: the sample with the best reward, all its metrics; own: each metric's own best,
    as the paper counts. Both average over disjoint blocks of N out of the samples.
    """
    reward = world.weighted_sum(world.terms(config.select_by or world.reward), scores)
    curve = {}
    n = 1
    while n <= reward.size(1):
        whole = reward.size(1) // n * n
        winner = reward[:, :whole].reshape(-1, n).argmax(1, keepdim=True)  # [records · blocks, 1]
        curve[n] = {"winner": {}, "own": {}}
        for name, values in scores.items():
            block = values[:, :whole].reshape(-1, n)
            sign = world.better(name)
            curve[n]["winner"][name] = block.gather(1, winner).mean().item()
            curve[n]["own"][name] = (sign * (sign * block).amax(1)).mean().item()
        n *= 2
    return curve


def model_rows(label, paths, world, indices, val, config):
    """
    The two rows of a model, at T = 1 and at its best decoding; of several checkpoints the one that
    is best on validation. Returns (rows, that model).
    """
    best = None
    for path in paths:
        model, checkpoint = load_model(path, world, world.device)
        decoding, value = best_decoding(model, world, val, config)
        if best is None or value > best[0]:
            best = value, model, checkpoint, decoding, path
    _, model, checkpoint, decoding, path = best
    behind = work_behind(checkpoint)
    last = path.with_name("last.pt")
    budget = work_behind(load_checkpoint(last)) if last.is_file() else behind
    settings = checkpoint["config"]
    machine = f"{settings['dtype']}, {settings['threads']} threads"
    rows = []
    for how in ("T=1", decoding):
        scores = sampled_scores(model, world, indices, DECODINGS.get(how, Decoding()), config)
        rows.append(
            Row(f"{label}, {how}", scores, behind["seconds"], behind["work"], machine, budget)
        )
    return rows, model


def checkpoints(world, config):
    """{row: [paths]} of the models to judge; rows whose checkpoints are not there are left out."""
    name = world.name
    more = [f"{name}-mle-more-{n}" for n in range(1, 9)]
    more = [run for run in more if checkpoint_path(run, config.out).is_file()]
    wanted = {
        "MLE": [config.mle or f"{name}-mle"],
        "MLE continued": config.more.split(",") if config.more else more,
        "RLVR": (config.rlvr or f"{name}-rlvr").split(","),
    }
    if config.each:
        for run in wanted.pop("RLVR"):
            path = checkpoint_path(run, config.out)
            wanted[path.parent.name] = [run]
    found = {}
    for row, runs in wanted.items():
        paths = [checkpoint_path(run, config.out) for run in runs]
        # what was asked for by name must be there
        asked = row not in ("MLE continued", "RLVR") or (
            config.more if "MLE" in row else config.rlvr
        )
        if asked or (paths and all(path.is_file() for path in paths)):
            found[row] = paths
        else:
            missing = ", ".join(map(str, paths)) or f"{config.out}/{name}-mle-more-1/best.pt"
            print(f"(no row {row!r}: there is no checkpoint {missing})", file=sys.stderr)
    return found


# ------------------------------------------------------------------------------------------------
# Differences, and whether they are more than luck


def column_mean(weight, scores):
    """weight [N], scores [N, seeds] -> their weighted mean over the records [seeds]."""
    return (weight[:, None] * scores).sum(0) / weight.sum()


def interval(difference, weight, units, resamples=2000):
    """
    difference [N], weight [N], units [N] (which of them belong together) -> (weighted mean, low,
    high): the 95 % percentile interval of a bootstrap that draws whole units with replacement.
    """
    _, unit = np.unique(np.array(units), return_inverse=True)
    difference = np.asarray(difference, dtype=float)
    weight = np.asarray(weight, dtype=float)
    above = np.bincount(unit, weights=weight * difference)  # [U]
    below = np.bincount(unit, weights=weight)
    U = len(above)
    drawn = np.random.default_rng(0).multinomial(U, np.full(U, 1 / U), size=resamples)
    with np.errstate(invalid="ignore"):  # no unit drawn that has any weight
        means = drawn @ above / (drawn @ below)
    low, high = np.nanquantile(means, (0.025, 0.975))
    return above.sum() / below.sum(), float(low), float(high)


def compare(world, judged, indices, config):
    """
    {row: {rival: {heading: (difference, low, high)}}} for every row of RLVR against MLE, MLE
    continued and the vote; judged: {label: {metric: [N, seeds]}}, one decoding each.
    """
    units = world.units(config.split, indices)
    rivals = [label for label in judged if label in ("MLE", "MLE continued") or "vote" in label]
    found = {}
    for row in judged:
        if row in rivals:
            continue
        found[row] = {}
        for rival in rivals:
            cells = {}
            for heading, name, weight in world.columns(config.split, indices):
                gap = judged[row][name].mean(1) - judged[rival][name].mean(1)
                cells[heading] = interval(gap, weight, units)
            found[row][rival] = cells
    return found


def headline(world, indices, config):
    """The heading of the column by which rows are compared: over all records."""
    for heading, name, weight in world.columns(config.split, indices):
        if name == world.headline and (weight == weight[0]).all():
            return heading


def verdict(row, rival, heading, cells, metric):
    """'RLVR is ahead of MLE continued in strict_f1 by 4.1 points (2.9 to 5.2).' It may be level."""
    sign = metric.better
    gain, *ends = (sign * metric.scale * value for value in cells[heading])
    low, high = sorted(ends)
    place = "level with" if low <= 0 <= high else "ahead of" if gain > 0 else "behind"
    if place == "behind":
        gain, low, high = -gain, -high, -low
    points = " points" if metric.scale == 100 else ""
    numbers = f"{gain:.3g}{points} ({low:.3g} to {high:.3g})"
    return f"{row} is {place} {rival} in {heading}{':' if 'level' in place else ' by'} {numbers}."


def comparison_table(world, compared, indices, config):
    """The differences of compare() as text, and sentences that the numbers decide."""
    columns = world.columns(config.split, indices)
    scale = {heading: world.metrics[name].scale for heading, name, _ in columns}
    table = []
    sentences = []
    for row, rivals in compared.items():
        for rival, cells in rivals.items():
            line = [f"{row} − {rival}"]
            for heading, factor in scale.items():
                mean, low, high = (factor * value for value in cells[heading])
                line.append(f"{mean:+.2f} ({low:.2f} to {high:.2f})")
            table.append(line)
            metric = world.metrics[world.headline]
            sentences.append(verdict(row, rival, headline(world, indices, config), cells, metric))
    n = len(set(world.units(config.split, indices)))
    title = (
        f"differences, each at its best decoding, with 95 % intervals over {n} independent units"
    )
    return "\n\n".join([title, markdown(["", *scale], table), "\n".join(sentences)]), sentences


# ------------------------------------------------------------------------------------------------
# The table


def cell(values, scale):
    """[seeds] -> 'mean ± std' times scale, 'mean' where there is one seed, '-' for nan."""
    values = values * scale
    if values.isnan().any():
        return "-"
    digits = 2 if values.mean().abs() >= 10 else 3
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def markdown(header, rows):
    """A table in Markdown, columns aligned."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        lines.append("| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths)) + " |")
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def results_table(world, rows, indices, config):
    """The table and what one must know to read it, as text."""
    columns = world.columns(config.split, indices)
    scale = {name: metric.scale for name, metric in world.metrics.items()}
    plain = [name for name in world.metrics if scale[name] == 1]
    header = ["", *(heading for heading, *_ in columns), "work (M tokens)", "seconds"]
    table = []
    for row in rows:
        cells = []
        for _, name, weight in columns:
            cells.append(cell(column_mean(weight, row.scores[name]), scale[name]))
        table.append([row.label, *cells, f"{row.work / 1e6:.1f}", f"{row.seconds:.0f}"])
    machines = sorted({row.machine for row in rows if row.machine})
    as_they_are = f", {', '.join(plain)} as they are" if plain else ""
    lines = [
        f"{world.name}, {config.split} split, {len(indices)} transitions (times 100{as_they_are}; "
        f"± over {config.seeds} samples of each answer; work and seconds: all training behind the "
        f"row; trained on {world.device.type}: {'; '.join(machines)})",
        "",
        markdown(header, table),
    ]
    by_label = {row.label.partition(",")[0]: row for row in rows}
    if "MLE continued" in by_label and "RLVR" in by_label:
        rival = by_label["MLE continued"]
        rlvr = by_label["RLVR"]
        for what in ("work", "seconds"):
            if rival.budget[what] < rlvr.budget[what]:
                lines.append(f"\nMLE continued had less {what} than RLVR here: read it with care.")
    return "\n".join(lines)


def curves_table(world, curves, config):
    """The best-of-N curves as text, in the first metric."""
    name = next(iter(world.metrics))
    scale = world.metrics[name].scale
    header = ["N"]
    for row in curves:
        header += [f"{row} by reward", f"{row} own best"]
    table = []
    for N in next(iter(curves.values())):
        cells = [N]
        for curve in curves.values():
            cells += [f"{curve[N][what][name] * scale:.2f}" for what in ("winner", "own")]
        table.append(cells)
    title = (
        f"best of N samples at T = 1: {name} of the sample with the best reward "
        f"({config.select_by or world.reward}) | {name}'s own best"
    )
    return f"{title}\n\n{markdown(header, table)}"


def kinds_table(world, rows, indices, config):
    """The first metric per kind of game or page, for every row: changed / overall."""
    metric = next(iter(world.metrics))
    records = world.records[config.split]
    groups = defaultdict(list)
    for n, i in enumerate(indices):
        groups[records[i].get("kind", "")].append(n)
    table = []
    for kind, members in sorted(groups.items()):
        flags = [records[indices[n]].get("changed", True) for n in members]
        changed = torch.tensor(flags)
        cells = []
        for row in rows:
            values = world.metrics[metric].scale * row.scores[metric][members].mean(1)
            of_changed = f"{values[changed].mean():.0f}" if changed.any() else "-"
            cells.append(f"{of_changed} / {values.mean():.0f}")
        table.append([kind, len(members), sum(flags), *cells])
    header = ["kind", "records", "changed", *(row.label for row in rows)]
    return f"{metric} by kind, changed / overall:\n\n{markdown(header, table)}"


def provenance(world, rows):
    """{"version", "commit", "machine"} of a table: this checkout's, and that of the training."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"  # no git, or no checkout
    machine = platform.processor() or platform.machine()
    if world.device.type == "cuda":
        machine = torch.cuda.get_device_name(world.device)
    settings = sorted({row.machine for row in rows if row.machine})
    return {"version": VERSION, "commit": commit, "machine": "; ".join([machine, *settings])}


def judge(world, config):
    """Prints the table, the differences and the curves, and writes them to out/<name>."""
    indices = list(range(len(world.records[config.split])))
    if config.records:
        chosen = np.random.default_rng(0).permutation(indices)[: config.records]
        indices = sorted(chosen.tolist())
    val = validation_indices(world, config.val_records, seed=1)
    rows = [Row(label, scores) for label, scores in world.references(config.split, indices)]
    curves = {}
    judged = {}  # {label: scores}: one decoding each
    for label, paths in checkpoints(world, config).items():
        own, model = model_rows(label, paths, world, indices, val, config)
        rows += own
        judged[label] = own[-1].scores
        if not config.best_of or label == "MLE continued":
            continue
        if label == "MLE":
            many = sample_many(model, world, indices, config)
            curves[label] = best_of_n(many.scores, world, config)
            for what, scores in chosen_rows(many).items():
                rows.append(own[0]._replace(label=f"MLE, {what}", scores=scores))
                judged.update({what: scores} if "vote" in what else {})
        else:
            given = replace(config, seeds=config.best_of)
            scores = sampled_scores(model, world, indices, Decoding(), given)
            curves[label] = best_of_n(scores, world, config)
    report = [results_table(world, rows, indices, config)]
    compared = compare(world, judged, indices, config)
    sentences = []
    if compared:
        table, sentences = comparison_table(world, compared, indices, config)
        report.append(table)
    if curves:
        report.append(curves_table(world, curves, config))
    if config.kinds and world.kinds:
        report.append(kinds_table(world, rows, indices, config))
    text = "\n\n".join(report) + "\n"

    # written before it is printed: a terminal that cannot show it must not lose it
    folder = Path(config.out) / (config.name or f"{world.name}-results")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("results.*"):
        old.replace(old.with_stem("results-before"))
    (folder / "results.md").write_text(text, encoding="utf-8")
    columns = world.columns(config.split, indices)
    results = {
        "config": asdict(config),
        **provenance(world, rows),
        "scale": {heading: world.metrics[name].scale for heading, name, _ in columns},
        "headline": headline(world, indices, config),
        "differences": compared,  # {row: {rival: {heading: (difference, low, high)}}}
        "verdicts": sentences,
        "curves": curves,
        "rows": {},
    }
    for row in rows:
        values = {}
        for heading, name, weight in columns:
            means = column_mean(weight, row.scores[name]).tolist()
            values[heading] = [None if np.isnan(mean) else mean for mean in means]
        results["rows"][row.label] = {**values, "seconds": row.seconds, "work": row.work}
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    print(f"{text}\nwritten to {folder / 'results.md'} and results.json")


def average(folders):
    """
    Prints one table from the results.json of several training seeds: mean ± std (n - 1) over them,
    and how far RLVR is ahead in each of them. Raises BadInput where one is missing.
    """
    rows = {}
    scale = {}
    gains = defaultdict(list)
    for folder in folders:
        try:
            results = json.loads((folder / "results.json").read_text())
            scale = scale or results["scale"]
            for label, columns in results["rows"].items():
                row, _, decoding = label.partition(", ")
                # which decoding is best may differ from seed to seed
                key = f"{row}, best decoding" if decoding in DECODINGS else label
                means = [np.mean(np.array(columns[heading], dtype=float)) for heading in scale]
                own = *means, columns["work"] / 1e6, columns["seconds"]
                rows.setdefault(key, []).append(own)
            heading = results["headline"]
            for row, rivals in results["differences"].items():
                for rival, cells in rivals.items():
                    gains[f"{row} − {rival} in {heading}"].append(
                        cells[heading][0] * scale[heading]
                    )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{folder} holds no results.json of evaluate.py ({type(error).__name__}: {error}); "
                f"make it first"
            ) from None
    table = []
    for label, seeds in rows.items():
        columns = list(zip(*seeds))
        cells = [cell(torch.tensor(v), scale[heading]) for heading, v in zip(scale, columns)]
        table.append([label, *cells, f"{np.mean(columns[-2]):.1f}", f"{np.mean(columns[-1]):.0f}"])
    header = ["", *scale, "work (M tokens)", "seconds"]
    print(f"mean ± std over {len(folders)} training seeds\n\n" + markdown(header, table) + "\n")
    for what, values in gains.items():
        each = ", ".join(f"{value:+.2f}" for value in values)
        print(f"{what}: {cell(torch.tensor(values), 1)} ({each})")


def main(argv):
    config = parse_config(Config, argv, SMOKE)
    if config.average:
        if len(set(config.average.split(","))) < len(config.average.split(",")):
            raise BadInput(f"--average={config.average} names one result twice")
        average([Path(config.out) / name for name in config.average.split(",")])
        return
    device, *_ = start_processes(config)
    world = load_world(config.world, device, config.task, config.lpips_weights)
    world.terms(config.select_by or world.reward)
    judge(world, config)


if __name__ == "__main__":
    run_main(main)
