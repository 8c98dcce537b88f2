"""
Look at a world model: read its predictions, or judge it.

a few transitions   python sample.py --world=textgame
the results table   python sample.py --world=textgame --eval
one checkpoint      python sample.py --world=textgame --rlvr=out/my-run/best.pt
per kind of game    python sample.py --world=textgame --eval --kinds
over training seeds python sample.py --average=out/textgame-results-1,out/textgame-results-2,out/textgame-results-3

The table's rows: copy (nothing changes), lookup (no learning: the training record of the same state with the nearest action), MLE, MLE continued
(for the same wall-clock as RLVR; the better of its runs on validation) and RLVR, each at T = 1 and at the decoding that does best on
validation. The test set is used here and nowhere else.
"""
import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from common import BadInput, load_checkpoint, parse_config, run_main, start_processes
from data import evaluate, load_world, reward_terms, weighted_sum
from model import Model, ModelConfig


@dataclass
class Config:
    world: str = "textgame"     # a folder, or its name under data/
    eval: bool = False          # print the results table instead of a few transitions
    kinds: bool = False         # with --eval: also one line per kind of game or page
    mle: str = ""               # checkpoint of stage 1; empty: out/<world>-mle/best.pt
    more: str = ""              # checkpoints of MLE continued, separated by commas; empty: out/<world>-mle-more-*/best.pt
    rlvr: str = ""              # checkpoint of stage 2; empty: out/<world>-rlvr/best.pt; several, separated by commas: the best on validation
    each: bool = False          # a row for each of the checkpoints in --rlvr, named by its folder, instead of the best of them
    average: str = ""           # folders of results that --eval wrote, separated by commas: one table of their mean ± std instead
    out: str = ""               # where --eval writes its results.json and results.md; empty: out/<world>-results
    split: str = "test"         # the split to show or judge
    records: int = 0            # judge only so many records of the split (0: all)
    val_records: int = 256      # validation records for the choice of decoding and checkpoint
    best_of: int = 16           # largest N of the best-of-N curves (0: none)
    curve_records: int = 200    # records for the curves
    seeds: int = 3              # samples of each answer for rows that sample
    choose: str = ""            # weighted sum of metrics that picks checkpoint and decoding on validation; empty: the world's own
    reward: str = ""            # the reward that picks the best of N; empty: the world's own
    number: int = 4             # transitions (video: episodes) to show
    lpips_weights: str = ""     # folder of the public VGG16 and LPIPS weights, for the metric lpips of video worlds
    temperature: float = 0.0    # of the transitions shown; 0: greedy
    color: bool = True          # colour the transitions shown
    device: str = "auto"        # cpu, cuda, mps or auto
    seed: int = 0


PRESETS = {"smoke": dict(records=12, val_records=8, best_of=4, curve_records=4, seeds=2)}

# decodings that compete on validation, by name: temperature, top_k, top_p
DECODINGS = {"greedy": (0.0, 0, 1.0), "T=0.5": (0.5, 0, 1.0), "top-k 100": (1.0, 100, 1.0), "top-p 0.9": (1.0, 0, 0.9)}

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


def best_decoding(model, world, indices, config):
    """The decoding with the best headline (or --choose) on validation, and that value."""
    terms, values = reward_terms(world, config.choose or world.headline), {}
    for name, (temperature, top_k, top_p) in DECODINGS.items():
        generator = torch.Generator(world.device).manual_seed(config.seed)
        scores, _ = evaluate(model, world, "val", indices, [metric for _, metric in terms], 1, temperature, top_k, top_p, generator=generator)
        values[name] = weighted_sum(world, terms, scores).mean().item()
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


def cell(values, scale):
    """[seeds] -> 'mean ± std' in percent, or 'mean' where there is one seed."""
    values = values * scale
    digits = 2 if values.mean().abs() >= 10 else 3
    return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")


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
    reward = weighted_sum(world, terms, scores)
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
    terms = reward_terms(world, config.reward or world.reward)
    told = reward_terms(world, config.choose or world.headline)[0][1]  # the metric that curves and kinds are shown in
    more = config.more.split(",") if config.more else sorted(map(str, Path("out").glob(f"{name}-mle-more-*/best.pt")))
    paths = {"MLE": [config.mle or f"out/{name}-mle/best.pt"], "MLE continued": more, "RLVR": (config.rlvr or f"out/{name}-rlvr/best.pt").split(",")}
    if config.each:
        paths.update({Path(path).parent.name: [path] for path in paths.pop("RLVR")})

    rows = [(label, scores, 0.0) for label, scores in world.references(config.split, indices)]
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

    parts = world.columns(config.split, indices)
    scale = world.scale
    plain = [metric for metric in world.metrics if scale[metric] == 1]
    header = ["", *(heading for heading, *_ in parts), "seconds"]
    table = [[label, *(cell(how(scores[metric]), scale[metric]) for _, metric, how in parts), f"{seconds:.0f}"] for label, scores, seconds in rows]
    report = [f"{name}, {config.split} split, {len(indices)} transitions"
              f" (times 100{', ' + ', '.join(plain) + ' as they are' if plain else ''}; ± over {config.seeds} samples of each answer;"
              f" seconds: all training behind the row's checkpoint)", "", markdown(header, table)]
    if curves:
        report += ["", f"best of N samples at T = 1, {config.curve_records} transitions: {told} of the sample with the best reward"
                   f" ({config.reward or world.reward}) | {told}'s own best", "",
                   markdown(["N", *(f"{row} {what}" for row in curves for what in ("by reward", "own best"))],
                            [[n, *(f"{curves[row][n][what][told] * scale[told]:.2f}" for row in curves for what in ("winner", "own"))]
                             for n in next(iter(curves.values()))])]
    if config.kinds:
        report += ["", kind_table(world, told, config.split, indices, rows)]
    text = "\n".join(report)
    print(text)
    folder = Path(config.out or f"out/{name}-results")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(text + "\n")
    (folder / "results.json").write_text(json.dumps({
        "config": asdict(config), "scale": {heading: scale[metric] for heading, metric, _ in parts}, "curves": curves,
        "rows": {label: {**{heading: how(scores[metric]).tolist() for heading, metric, how in parts}, "seconds": seconds}
                 for label, scores, seconds in rows}}, indent=1))
    print(f"\nwritten to {folder / 'results.md'} and results.json")


def average(folders):
    """Prints one table from the results.json of several training seeds: mean ± std (n - 1) over them. Raises BadInput where one is missing."""
    rows, scale = {}, {}
    for folder in folders:
        try:
            results = json.loads((Path(folder) / "results.json").read_text())
            scale = scale or {**results["scale"], "seconds": 1}
            for label, columns in results["rows"].items():
                row, _, decoding = label.partition(", ")
                key = f"{row}, best decoding" if decoding in DECODINGS else label  # which one that is may differ from seed to seed
                rows.setdefault(key, []).append([np.mean(columns[heading]) for heading in scale])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{folder} holds no results.json of sample.py --eval ({type(error).__name__}: {error}); make it first") from None
    table = [[label, *(cell(torch.tensor(values), scale[heading]) if heading != "seconds" else f"{np.mean(values):.0f}"
                       for heading, values in zip(scale, zip(*seeds)))] for label, seeds in rows.items()]
    print(f"mean ± std over {len(folders)} training seeds\n\n" + markdown(["", *scale], table))


def kind_table(world, metric, split, indices, rows):
    """A metric per kind of game or page, for every row: changed / overall."""
    groups = defaultdict(list)
    for n, i in enumerate(indices):
        groups[world.records[split][i].get("kind", "")].append(n)
    table = []
    for kind, members in sorted(groups.items()):
        changed = torch.tensor([bool(world.records[split][indices[n]].get("changed", True)) for n in members])
        cells = []
        for _, scores, _ in rows:
            values = 100 * scores[metric][members].mean(1)
            cells.append(f"{values[changed].mean():.0f} / {values.mean():.0f}" if changed.any() else f"- / {values.mean():.0f}")
        table.append([kind, len(members), int(changed.sum()), *cells])
    return f"{metric} by kind, changed / overall:\n\n" + markdown(["kind", "records", "changed", *(label for label, *_ in rows)], table)


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


# ---------------------------------------------------------------------------------------------------------------------
# A film, as a person would watch it


def film(world, config, device):
    """Writes a strip (.png) and an animation (.gif) of one episode: truth, tokenizer floor, MLE, RLVR and the error of the last of them."""
    name = world.folder.name
    paths = {"MLE": config.mle or f"out/{name}-mle/best.pt", "RLVR": config.rlvr or f"out/{name}-rlvr/best.pt"}
    paths = {row: path for row, path in paths.items() if row == "MLE" or config.rlvr or Path(path).is_file()}
    folder = Path(config.out or f"out/{name}-results")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(min(config.number, len(world.episodes[config.split]))):
        segments = [i for i, (episode, *_) in enumerate(world.records[config.split]) if episode == number]
        batch = world.batch(config.split, segments[:1] if world.horizon > 1 else segments[:12])
        last, true = world.truth(config.split, batch.truth)
        rows = {"truth": true, "tokenizer": world.decode(batch, batch.response[:, None])[:, 0]}  # each [B, F, 3, H, W]
        for row, path in paths.items():
            generator = torch.Generator(world.device).manual_seed(config.seed)
            model, _ = load_model(path, world, device)
            tokens = model.sample(batch.prompt, batch.prompt_len, 1, world.response_len, None, world.legal(), batch.forced, config.temperature,
                                  generator=generator).tokens
            rows[row] = world.decode(batch, tokens)[:, 0]
        rows["error x4"] = (4 * (rows[list(rows)[-1]] - true).abs()).clamp(0, 1)
        rows = {row: frames.flatten(0, 1) for row, frames in rows.items()}  # [columns, 3, H, W]
        draw_strip(rows, world.actions_shown(batch), folder / f"{config.split}-{number}")
        print(f"{folder / f'{config.split}-{number}'}.png and .gif: {', '.join(rows)}")


def draw_strip(rows, actions, path):
    """rows {label: [n, 3, H, W] in [0, 1]}, actions [n, 2] in [-1, 1], drawn on the first row as arrows -> path.png, and path.gif over time."""
    height, width = next(iter(rows.values())).shape[-2:]
    scale, margin = max(1, 128 // width), 64
    height, width = height * scale, width * scale
    n = len(actions)
    strip = Image.new("RGB", (margin + n * width, len(rows) * height), "white")
    pen = ImageDraw.Draw(strip)
    for r, (label, frames) in enumerate(rows.items()):
        pen.text((4, r * height + height // 2 - 6), label, fill="black")
        for c, frame in enumerate(frames):
            array = frame.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
            strip.paste(Image.fromarray(array).resize((width, height), Image.NEAREST), (margin + c * width, r * height))
    for c, (dx, dy) in enumerate(actions.tolist()):
        x, y, reach = margin + c * width + width // 2, height // 2, width / 3
        tip = x + dx * reach, y + dy * reach
        pen.line([(x, y), tip], fill="yellow", width=2)
        pen.ellipse([tip[0] - 3, tip[1] - 3, tip[0] + 3, tip[1] + 3], fill="yellow")
    strip.save(path.with_suffix(".png"))
    films = []
    for c in range(n):
        column = strip.crop((margin + c * width, 0, margin + (c + 1) * width, len(rows) * height))
        film_frame = Image.new("RGB", (len(rows) * (width + 4), height + 14), "white")
        for r, label in enumerate(rows):
            film_frame.paste(column.crop((0, r * height, width, (r + 1) * height)), (r * (width + 4), 14))
            ImageDraw.Draw(film_frame).text((r * (width + 4) + 2, 1), label, fill="black")
        films.append(film_frame)
    films[0].save(path.with_suffix(".gif"), save_all=True, append_images=films[1:], duration=300, loop=0)


def main(argv):
    config = parse_config(Config, argv, PRESETS)
    if config.average:
        return average(config.average.split(","))
    device, *_ = start_processes(config.device, config.seed)
    world = load_world(config.world, device, config.lpips_weights)
    if config.split not in world.records:
        raise BadInput(f"--split={config.split}: there are {', '.join(world.records)}")
    if config.eval:
        judge(world, config, device)
    else:
        (film if world.domain == "video" else show)(world, config, device)


if __name__ == "__main__":
    run_main(main)
