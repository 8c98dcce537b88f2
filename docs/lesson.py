"""
The lesson's table and, of two shares of chance or more, its figure, from its cells:
docs/results/lesson.json and docs/lesson.svg.

    python docs/lesson.py                 from the cells in docs/results/lesson
    python docs/lesson.py 0.5-long-0      first takes in this cell, which runs/lesson.sh left in out
"""

import json
import statistics
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
CELLS = DOCS / "results" / "lesson"
COLUMN = "expected_strict_binary"

# columns of the table: (heading, how a row's label in a cell begins or ends)
ROWS = [
    ("copy", "copy"),
    ("MLE, T = 1", "MLE, T=1"),
    ("MLE, best decoding", "MLE, "),
    ("likeliest of 16", "MLE, likeliest of "),
    ("vote of 16", "MLE, vote of "),
    ("MLE continued", "MLE continued, "),
    ("RLVR", "-rlvr, "),
    ("RLVR on strict_task", "-rlvr-task, "),
    ("best of 16, by an oracle", "MLE, best of "),
    ("ceiling", "ceiling"),
]
# lines of the figure: (heading, colour, dashes)
LINES = [
    ("ceiling", "#888888", "6 4"),
    ("RLVR", "#d62728", ""),
    ("vote of 16", "#9467bd", "2 3"),
    ("MLE continued", "#1f77b4", ""),
    ("MLE, T = 1", "#7fb3d5", "2 3"),
]


def take_in(name):
    """Copies a cell's results.json, and what its groups looked like, into docs/results/lesson."""
    out = DOCS.parent / "out"
    results = json.loads((out / f"lesson-{name}-results" / "results.json").read_text())
    log = out / f"lesson-{name}-rlvr" / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [row for row in rows if "equal_groups" in row]
    results["training"] = {}
    for key in ("reward", "equal_groups", "entropy", "kl"):
        values = [row[key] for row in rows]
        n = min(10, len(values))
        results["training"][key] = statistics.fmean(values[:n]), statistics.fmean(values[-n:])
    CELLS.mkdir(parents=True, exist_ok=True)
    (CELLS / f"{name}.json").write_text(json.dumps(results, indent=1))


def value_of(cell, heading, label):
    """A row's column of one cell, times 100; where two decodings stand there, the chosen one."""
    found = []
    for row, columns in cell["rows"].items():
        chosen = label in row if label.startswith("-") else row.startswith(label)
        of_many = row.startswith("MLE, ") and " of " in row and " of " not in label
        if chosen and not of_many:
            found.append(100 * statistics.fmean(columns[COLUMN]))
    if not found:
        sys.exit(f"error: a cell has no row {heading!r}")
    return found[-1]


def summary(cells):
    """{(chance, kind): {heading: [one per seed], "gain": [[difference, low, high] per seed]}}."""
    table = {}
    for path in sorted(cells.glob("*.json")):
        cell = json.loads(path.read_text())
        chance, kind, _ = path.stem.split("-")
        row = table.setdefault((float(chance), kind), {heading: [] for heading, _ in ROWS})
        for heading, label in ROWS:
            row[heading].append(value_of(cell, heading, label))
        for run, rivals in cell["differences"].items():
            if run.endswith("-rlvr"):
                gain = [100 * x for x in rivals["MLE continued"][COLUMN]]
                row.setdefault("gain", []).append(gain)
        row.setdefault("training", []).append(cell["training"])
    return table


def spread(values):
    """'71.2 ± 0.4' over seeds, or '71.2' of one."""
    std = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{std}"


def write_table(table):
    """docs/results/lesson.json, in the form that docs/tables.py reads."""
    header = ["chance, stage 1", "seeds", *(heading for heading, _ in ROWS)]
    header += ["RLVR − MLE continued", "groups with equal rewards", "entropy"]
    rows = {}
    for (chance, kind), row in sorted(table.items(), key=lambda item: (item[0][1], item[0][0])):
        cells = [spread(row[heading]) for heading, _ in ROWS]
        gains = ", ".join(
            f"{mean:+.1f} ({low:.1f} to {high:.1f})" for mean, low, high in row["gain"]
        )
        cells = [str(len(row["gain"])), *cells, gains]
        for key, scale in (("equal_groups", 100), ("entropy", 1)):
            first, last = (
                scale * statistics.fmean(training[key][end] for training in row["training"])
                for end in (0, 1)
            )
            digits = 0 if scale == 100 else 2
            unit = " %" if scale == 100 else ""
            cells.append(f"{first:.{digits}f} to {last:.{digits}f}{unit}")
        rows[f"{chance:g}, {kind}"] = cells
    source = "expected strict_binary in %, one training seed or mean ± std; entropy in nats a token"
    results = {"source": source, "header": header, "rows": rows}
    path = DOCS / "results" / "lesson.json"
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def write_figure(table):
    """docs/lesson.svg: expected strict_binary against the share of uncertain transitions."""
    rows = {chance: row for (chance, kind), row in sorted(table.items()) if kind == "long"}
    width, height, left, top, right, bottom = 640, 400, 60, 40, 150, 50
    low = 10 * (min(min(map(min, (r[h] for h, *_ in LINES))) for r in rows.values()) // 10)

    def x(chance):
        return left + chance * (width - left - right)

    def y(value):
        return top + (100 - value) / (100 - low) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22">right answers, in expectation (%)</text>',
        f'<text x="{x(0.5)}" y="{height - 10}" text-anchor="middle">'
        "share of transitions with chance in them</text>",
    ]
    for value in range(int(low), 101, 10):
        parts.append(
            f'<path d="M{left} {y(value):.1f}H{width - right}" stroke="#e5e5e5"/>'
            f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>'
        )
    for chance in rows:
        parts.append(
            f'<text x="{x(chance):.1f}" y="{height - 30}" text-anchor="middle">{chance:g}</text>'
        )
    ends = []  # labels at the right end, kept apart
    for heading, colour, dashes in LINES:
        points = [(x(chance), y(statistics.fmean(row[heading]))) for chance, row in rows.items()]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5" '
            f'stroke-dasharray="{dashes}"/>'
        )
        for chance, row in rows.items():
            for value in row[heading] if heading != "ceiling" else []:
                parts.append(
                    f'<circle cx="{x(chance):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>'
                )
        ends.append([points[-1][1], heading, colour])
    previous = -100.0
    for place, heading, colour in sorted(ends):
        previous = max(place, previous + 16)
        parts.append(
            f'<text x="{x(1) + 12}" y="{previous + 4:.1f}" fill="{colour}">{heading}</text>'
        )
    (DOCS / "lesson.svg").write_text("\n".join([*parts, "</svg>\n"]))


def main(names):
    for name in names:
        take_in(name)
    table = summary(CELLS)
    if not table:
        sys.exit(f"error: there is no cell in {CELLS}: bash runs/lesson.sh 0.5 0")
    write_table(table)
    if sum(kind == "long" for _, kind in table) > 1:
        write_figure(table)


if __name__ == "__main__":
    main(sys.argv[1:])
