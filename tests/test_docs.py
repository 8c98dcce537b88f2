"""
What the front page promises: its snippets run as they stand, links lead somewhere, tables are those
of their json, and the version is the same everywhere. The commands of all documents are checked in
test_scripts.py.
"""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import common
from tests.test_scripts import DOCUMENTS, ROOT, copy_repository, environment

README = (ROOT / "README.md").read_text(encoding="utf-8")

# --------------------------------------------------------------------------------------------------
# The five snippets of "Make it yours"

SECTION = README.partition("\n## Make it yours\n")[2].partition("\n## ")[0]
# {what is bold at the start of a paragraph: the code of its block}
SNIPPETS = {}
for part in re.split(r"^\*\*", SECTION, flags=re.M)[1:]:
    for code in re.findall(r"^```\w+\n(.*?)^```$", part, re.M | re.S):
        SNIPPETS[part.partition("**")[0]] = code


def bash(folder, commands):
    """Runs commands as a user would, with SMOKE=1, and returns what they printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment(SMOKE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def write_text(folder):
    """mydata.jsonl, as somebody would have it: sums, some of them with a truth of their own."""
    with open(folder / "mydata.jsonl", "w") as file:
        for n in range(60):
            row = {"prompt": f"{n} + 1 =", "response": f"{n + 1}"}
            if n % 3 == 0:
                row["truth"] = f"{n + 1} "
            file.write(json.dumps(row) + "\n")


def labels(printed):
    """The first cells of the rows of the table that was printed, without the decoding."""
    return {row.partition(",")[0] for row in re.findall(r"^\| (\S.*?) *\|", printed, re.M)}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """(A copy of the repository in which the first snippet has run, what it printed)."""
    folder = copy_repository(tmp_path_factory.mktemp("house"))
    write_text(folder)
    return folder, bash(folder, SNIPPETS["Your own text"])


@pytest.fixture
def copy(house, tmp_path):
    """A copy of the house."""
    return shutil.copytree(house[0], tmp_path / "copy")


def test_there_are_five_snippets_of_at_most_eight_lines():
    titles = "Your own text", "Your own video", "A new reward", "A new world", "A new algorithm"
    assert tuple(SNIPPETS) == titles
    assert SECTION.count("\n```") == 2 * len(titles)
    for title, code in SNIPPETS.items():
        assert 1 <= len(code.splitlines()) <= 8, title
        assert max(map(len, code.splitlines())) <= 100, title


def test_your_own_text(house):
    folder, printed = house
    assert {"MLE", "MLE continued", "RLVR"} <= labels(printed)
    assert any(label.startswith("lookup") for label in labels(printed))
    records = (folder / "data/mine/train.jsonl").read_text()
    assert 0 < records.count('"truth"') < records.count('"prompt"')


def test_your_own_video(copy):
    rng = np.random.default_rng(0)
    (copy / "episodes").mkdir()
    for n in range(8):
        image = rng.integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)
        action = rng.normal(size=(9, 3)).astype(np.float32)
        np.savez(copy / f"episodes/{n}.npz", image=image, action=action)
    bash(copy, SNIPPETS["Your own video"])
    where = re.search(r"films of .*?`out/([\w-]+)`", SECTION, re.S)[1]
    assert list((copy / "out/smoke" / where).glob("*.gif"))
    assert (copy / "out/smoke/clips-rlvr/best.pt").is_file()


def test_a_new_reward(copy):
    """The block is a file, and its option goes to each command for text, as README says."""
    name, option = re.search(r"Put this into `(\S+)` and add `(\S+)` to", SECTION).groups()
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text(SNIPPETS["A new reward"])
    commands = re.sub("$", f" {option}", SNIPPETS["Your own text"].rstrip(), flags=re.M)
    assert commands.count(option) == 5
    printed = bash(copy, commands)
    header = re.search(r"^\| .*\| work \(M tokens\)", printed, re.M)[0]
    assert re.search(r"\| wrong +\|", header) and "exact_match" not in header
    rows = map(json.loads, (copy / "out/smoke/mine-rlvr/metrics.jsonl").open())
    judged = [row for row in rows if "val_wrong" in row]
    assert judged
    for row in judged:
        assert row["val_reward"] == -row["val_wrong"]


def test_a_new_world(copy):
    name, command, world = re.search(
        r"is\s`(data/\S+\.py)`\. `(python -m [\w.]+)` writes.*?`(--world=\w+)`", SECTION, re.S
    ).groups()
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text(SNIPPETS["A new world"])
    assert "683 transitions" in bash(copy, command)
    train = f"python train_mle.py {world}\npython train_rlvr.py {world}\n"
    printed = bash(copy, f"{train}python evaluate.py {world}")
    assert {"MLE", "RLVR"} <= labels(printed)


def test_a_new_algorithm(copy):
    line = re.search(r"In place\sof the line `(.*?)` put these", SECTION)[1]
    option = re.search(r"`(--algorithm=\w+)`", SECTION)[1]
    source = (copy / "train_rlvr.py").read_text()
    assert source.count(f"\n{line}\n") == 1
    source = source.replace(f"\n{line}\n", f"\n{SNIPPETS['A new algorithm']}")
    (copy / "train_rlvr.py").write_text(source)
    bash(copy, f"python train_rlvr.py --world=data/mine --name=new {option}")
    rows = map(json.loads, (copy / "out/smoke/new/metrics.jsonl").open())
    steps = [row for row in rows if "clipped" in row]
    assert len(steps) == 3
    for row in steps:
        assert row["clipped"] == 0 and row["ratio"] == 1


# --------------------------------------------------------------------------------------------------
# Links, length, tables


def prose(document):
    """A document without its code, which may hold what looks like headings and links."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(document):
    """The anchors that GitHub makes of a document's headings."""
    found = []
    for heading in re.findall(r"^#+ +(.*)$", prose(document), re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        again = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found
        )
        found.append(f"{slug}-{again}" if again else slug)
    return found


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only git knows which files are published")
@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_lead_somewhere(document):
    """To a file or folder that is in git, to a heading that is there, or elsewhere by https."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {ROOT / name for name in listed.split("\0")[:-1] if (ROOT / name).is_file()}
    there = tracked | {folder for path in tracked for folder in path.parents}
    text = re.sub(r"`[^`\n]*`(?!\])", "", prose(document))
    links = re.findall(r"\]\(\s*(\S+?)\s*\)", text) + re.findall(r"(?:href|src)=\"([^\"]*)", text)
    assert links and text.count("](") == len(re.findall(r"\]\(\s*\S+?\s*\)", text))
    assert "http://" not in text
    for link in links:
        if link.startswith("https://"):
            continue
        assert not re.match(r"[a-z]+:", link), f"{link} is neither of the repository nor https"
        name, _, anchor = link.partition("#")
        path = (ROOT / document).parent.joinpath(name).resolve() if name else ROOT / document
        assert path in there, f"{link} leads to no file in git"
        if anchor:
            assert anchor in anchors(path.relative_to(ROOT)), f"{link} leads to no heading"


def test_anchors_are_as_github_makes_them(tmp_path, monkeypatch):
    headings = "# A b\n## SMOKE=1\n## `x_y`, and [z](u)?\n## A b\n```\n# code\n```\n### Über-x\n"
    (tmp_path / "a.md").write_text(headings, encoding="utf-8")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert anchors("a.md") == ["a-b", "smoke1", "x_y-and-z", "a-b-1", "über-x"]


def test_the_front_page_is_short():
    """Lines of tables cannot be broken, and those between marks are written by docs/tables.py."""
    assert len(README.encode()) <= 10_000
    by_hand = re.sub(r"^<!-- table .*?^<!-- end -->$", "", README, flags=re.M | re.S)
    for line in by_hand.splitlines():
        assert len(line) <= 120 or line.startswith("| "), line


def test_tables_are_those_of_their_json():
    command = [sys.executable, "docs/tables.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# --------------------------------------------------------------------------------------------------
# The version


def citation():
    """CITATION.cff: {key at the margin: value}, and the lines that are indented."""
    top = {}
    inner = []
    for line in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines():
        assert "\t" not in line and line == line.rstrip() and line
        if line.startswith("  "):
            assert re.fullmatch(r" +(- )?[a-z-]+:( \S.*)?", line), line
            inner.append(line.strip())
            continue
        key, value = re.fullmatch(r"([a-z-]+):(?: (\S.*))?", line).groups()
        assert key not in top
        top[key] = (value or "").strip('"')
    return top, inner


def test_the_version_is_the_same_everywhere():
    top, inner = citation()
    assert {"cff-version", "message", "title", "authors", "references"} <= set(top)
    assert (top["cff-version"], top["type"], top["title"]) == (
        "1.2.0",
        "software",
        "nanoRLVR-World",
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", top["date-released"])
    assert (ROOT / "LICENSE").read_text().startswith(f"{top['license']} License")
    assert sum("family-names" in line for line in inner) == 4 and "year: 2025" in inner
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, date = re.search(r"^## (\d+\.\d+\.\d+) \((\S+)\)$", changes, re.M).groups()
    assert top["version"] == newest == common.VERSION
    assert top["date-released"] == date
    assert len(changes.splitlines()) <= 60


def test_a_row_of_the_front_page_is_the_mean_over_its_seeds(tmp_path, monkeypatch):
    """Guards against the oracle's row, a sample at T = 1 or another seed's in place of the best."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import tables

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    for seed, greedy in enumerate(("greedy", "T=0.5")):
        rows = {"copy (nothing changes)": 0.1, "lookup (no learning)": 0.2}
        rows.update({"MLE, T=1": 0.9, f"MLE, {greedy}": 0.3 + 0.1 * seed, "MLE, vote of 16": 0.5})
        rows.update({"MLE, best of 16 (an oracle's choice)": 1.0, "MLE continued, T=1": 0.9})
        rows.update({f"MLE continued, {greedy}": 0.4, "RLVR, T=1": 0.9, f"RLVR, {greedy}": 0.6})
        rows = {label: {"right": [v, v], "work": 1e6, "seconds": 2} for label, v in rows.items()}
        results = {"rows": rows, "scale": {"right": 100}}
        (tmp_path / "results" / f"run{seed}.json").write_text(json.dumps(results))
    cells = tables.front({"seeds": ["run0", "run1"], "column": "right"})
    assert cells == ["20.00", "35.00 ± 7.07", "50.00", "40.00", "60.00"]
    lines = dict((first, rest) for first, *rest in tables.lines_of({"seeds": ["run0", "run1"]}))
    assert lines["MLE, best decoding"] == ["35.00 ± 7.07", "1.0", "2"]
    assert len(lines) == 1 + 10
