"""
In docs/*.md and README.md, what stands between the lines <!-- table NAME --> and <!-- end --> is a
table of docs/results/NAME.json. This writes them all anew (--check: only says which are not so).

A json is one of

    {"rows": {label: {heading: [one per seed]}}, "scale"}     results.json of evaluate.py
    {"seeds": [NAME, ...], "columns": [heading, ...]}         several of these, one a training seed
    {"header": [...], "rows": {label: [cell, ...]}}           cells as they are
    {"header": [...], "rows": {label: {"seeds", "column"}}}   or taken from results: see front()

and may name its commit and machine. docs/results/lesson is for docs/lesson.py.
"""

import json
import os
import re
import statistics
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PART = re.compile(r"^<!-- table ([\w.-]+) -->$.*?^<!-- end -->$", re.M | re.S)


def load(name):
    """docs/results/NAME.json."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def cell(values, scale):
    """[one per seed] -> 'mean ± std' times scale, 'mean' where there is one seed, '-' for none."""
    if None in values:
        return "-"
    values = [scale * value for value in values]
    mean = statistics.fmean(values)
    digits = 2 if abs(mean) >= 10 else 3
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(set(values)) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def best_decoding(label):
    """'MLE, greedy' -> 'MLE, best decoding': which it is may differ from seed to seed."""
    model, comma, how = label.partition(", ")
    return label if how == "T=1" or " of " in how or not comma else f"{model}, best decoding"


def over_seeds(names):
    """The results of several training seeds as one: {"rows", "scale"}, a mean for each seed."""
    runs = [load(name) for name in names]
    rows = {}
    for run in runs:
        for label, columns in run["rows"].items():
            row = rows.setdefault(best_decoding(label), {})
            for heading, values in columns.items():
                own = statistics.fmean(values) if isinstance(values, list) else values
                row.setdefault(heading, []).append(own)
    for row in rows.values():
        row["work"] = statistics.fmean(row["work"])
        row["seconds"] = statistics.fmean(row["seconds"])
    return {"rows": rows, "scale": runs[0]["scale"]}


def front(row):
    """{"seeds": [NAME, ...], "column"} -> cells: a reference, MLE, vote, MLE continued, RLVR."""
    results = over_seeds(row["seeds"])
    found = {}
    for label, columns in results["rows"].items():
        values = cell(columns[row["column"]], results["scale"][row["column"]])
        found[label.partition(" of ")[0].partition(" (")[0]] = values
    best = (f"{model}, best decoding" for model in ("MLE", "MLE continued", "RLVR"))
    mle, continued, rlvr = (found[label] for label in best)
    reference = found.get("lookup", found["copy"])
    return [reference, mle, found.get("MLE, vote", "-"), continued, rlvr]


def lines_of(results):
    """[header, row, ...], each a list of cells, of any form of json."""
    if "header" in results:
        rows = results["rows"].items()
        cells = ([label, *(front(row) if isinstance(row, dict) else row)] for label, row in rows)
        return [results["header"], *cells]
    chosen = results.get("columns")
    if "seeds" in results:
        results = over_seeds(results["seeds"])
    scale = {heading: results["scale"][heading] for heading in chosen or results["scale"]}
    table = [["", *scale, "work (M tokens)", "seconds"]]
    for label, row in results["rows"].items():
        cells = [cell(row[heading], scale[heading]) for heading in scale]
        table.append([label, *cells, f"{row['work'] / 1e6:.1f}", f"{row['seconds']:.0f}"])
    return table


def gains(names):
    """Sentences: how far RLVR is ahead of each rival in each training seed, with 95 % intervals."""
    runs = [load(name) for name in names]
    heading = runs[0]["headline"]
    scale = runs[0]["scale"][heading]
    lines = []
    for rival in runs[0]["differences"]["RLVR"]:
        found = [run["differences"]["RLVR"][rival][heading] for run in runs]
        each = ("{:+.1f} ({:.1f} to {:.1f})".format(*(scale * x for x in gap)) for gap in found)
        lines.append(f"- RLVR − {rival} in {heading}: {', '.join(each)}.")
    return "\n".join(lines)


def part(name, document):
    """The marked part of a document: a table in Markdown, and where it is from."""
    path = DOCS / "results" / f"{name}.json"
    try:
        results = load(name)
        table = lines_of(results)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    except OSError as error:
        sys.exit(f"error: {document} wants a table of {error.filename}: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        sys.exit(f"error: {document} wants a table of {path}, which holds none ({error!r})")
    table.insert(1, ["-" * width for width in widths])
    rows = [" | ".join(c.ljust(w) for c, w in zip(row, widths)) for row in table]
    text = "\n".join(f"| {row} |" for row in rows)
    known = {"source": "{}", "budget": "budgets in {}", "version": "version {}"}
    known.update(commit="commit {}", machine="{}")
    if "seeds" in results:
        results = {**load(results["seeds"][0]), **results}
        text = f"{text}\n\n{gains(results['seeds'])}"
    notes = [words.format(results[key]) for key, words in known.items() if results.get(key)]
    link = f"[{name}.json]({os.path.relpath(path, document.parent)})"
    return f"<!-- table {name} -->\n\n{text}\n\n*{'; '.join([link, *notes])}*\n\n<!-- end -->"


def main(check):
    made = {}
    for document in [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"]:
        text = document.read_text(encoding="utf-8")
        marks = re.findall(r"^<!-- (?:table .*|end) -->$", text, re.M)
        if 2 * len(PART.findall(text)) != len(marks):
            sys.exit(f"error: {document}: a <!-- table NAME --> or <!-- end --> stands alone")
        new = PART.sub(lambda found, at=document: part(found[1], at), text)
        if new != text:
            made[document] = new
    for document, text in made.items():
        print(f"{document} is {'out of date: python docs/tables.py' if check else 'written'}")
        if not check:
            document.write_text(text, encoding="utf-8")
    sys.exit(1 if check and made else 0)


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
