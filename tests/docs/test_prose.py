"""All pages keep the rules of prose: short sentences, short lines, no banned words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(
        page for page in (ROOT / "docs").rglob("*.md") if not {"_build", "tutorials", "generated"} & set(page.parts)
    ),
    *sorted((ROOT / "tutorials").glob("0*.py")),
]
WORDS, COLUMNS = 30, 100
# words of the table in style.md that have another word in their place, and old words for weights and subjects
BANNED = {
    "twin": "from-scratch baseline",
    "twins": "from-scratch baselines",
    "whom": "name the subjects",
    "seen": "used in pretraining",
    "unseen": "not used in pretraining",
    "begun": "initial weights",
    "told": "reported",
    "tells": "reports, shows",
    "fragment": "preset",
    "fragments": "presets",
    "children": "jobs",
    "feed": "batch reader",
    "who is who": "subject identification",
    "appear whole": "atomic write",
    "goes on": "continues",
    "go on": "continue",
    "going on": "continuing",
    "of its own accord": "by itself",
    "of one's own": "your own",
    "behind your back": "",
    "honest": "unbiased, calibrated",
    "honestly": "",
    "luck": "random variation",
    "labelled": "labeled",
    "normalise": "normalize",
    "tumour": "tumor",
    "millilitres": "milliliters",
    "colour": "color",
    "centre": "center",
    "neighbour": "neighbor",
    "neighbours": "neighbors",
}
EXCEPTIONS = {("docs/formats/dicom.md", "fragments")}  # pieces of compressed pixels, by the standard
ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|et al|vs|Fig|approx|no)\.", re.IGNORECASE)


def blocks(text: str) -> list[tuple[int, str]]:
    """Paragraphs, items, cells and headings of a page without code, each with the line on which it begins."""
    found: list[tuple[int, str]] = []
    inside, joins = False, False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith(("```", ":::")) or stripped == "$$":
            inside, joins = inside ^ (not stripped.startswith(":::")), False
        elif inside or not stripped or stripped.startswith(("<", "#")):
            joins = False
            if stripped.startswith("#") and not inside:
                found.append((number, stripped.lstrip("# ")))
        elif stripped.startswith("|"):
            joins = False
            found += [(number, cell) for cell in map(str.strip, re.split(r"(?<!\\)\|", stripped)) if cell.strip("-: ")]
        elif joins and not re.match(r"([-*]|\d+\.) ", stripped):
            begin, before = found.pop()
            found.append((begin, f"{before} {stripped}"))
        else:
            joins = True
            found.append((number, stripped))
    return found


def plain(text: str) -> str:
    """Prose without the marks of Markdown: each piece of code, address or formula counts as one word."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", lambda link: link[1] or "link", text)
    text = re.sub(r"`[^`]*`|\$[^$]*\$|\{[^}]*\}", "code", text)
    text = re.sub(r"^([-*]|\d+\.) ", "", text)
    return text.replace("*", "")


def sentences(text: str) -> list[str]:
    text = ABBREVIATIONS.sub(lambda match: match[1], plain(text))
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]


def text_of(page: Path) -> str:
    """The text of a page; of a tutorial its cells of Markdown, on the lines that they have in the file."""
    lines, text = page.read_text(encoding="utf-8").splitlines(), []
    if page.suffix != ".py":
        return "\n".join(lines)
    inside = False
    for line in lines:
        if line.startswith("# %%"):
            inside = "[markdown]" in line
            text.append("")
        else:
            text.append(line.removeprefix("#").removeprefix(" ") if inside else "")
    return "\n".join(text)


def in_formulas(text: str) -> set[int]:
    """Numbers of the lines of formulas between ``$$``."""
    found, inside = set(), False
    for number, line in enumerate(text.splitlines(), 1):
        inside ^= line.strip() == "$$"
        if inside:
            found.add(number)
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(params=PAGES, ids=name_of)
def page(request) -> Path:
    return request.param


def test_sentences_have_at_most_30_words(page: Path):
    long = [
        f"{name_of(page)}:{number}: {len(sentence.split())} words: {sentence}"
        for number, block in blocks(text_of(page))
        for sentence in sentences(block)
        if len(sentence.split()) > WORDS
    ]
    assert not long, "\n".join(long)


def test_lines_have_at_most_100_columns(page: Path):
    text = page.read_text(encoding="utf-8")
    lines = [line.removeprefix("# ") if page.suffix == ".py" else line for line in text.splitlines()]
    long = {number for number, line in enumerate(lines, 1) if len(line) > COLUMNS and line[0] != "|"}
    assert not [f"{name_of(page)}:{number}" for number in sorted(long - in_formulas(text))]


def test_no_banned_word_is_used(page: Path):
    used = [
        f"{name_of(page)}:{number}: {word!r}, write {other!r}"
        for number, block in blocks(text_of(page))
        for word, other in BANNED.items()
        if re.search(rf"\b{word}\b", plain(block), re.IGNORECASE) and (name_of(page), word) not in EXCEPTIONS
    ]
    assert not used, "\n".join(used)


def test_blocks_leave_out_code_and_join_lines():
    lines = ["# Title", "", "One line", "and another. Next?", "- item `a b c`", "", "```", "code", "```", "| a | b c |"]
    assert [block for _, block in blocks("\n".join(lines))] == [
        "Title",
        "One line and another. Next?",
        "- item `a b c`",
        "a",
        "b c",
    ]
    assert sentences("One et al. 2020 line. See [](a.md): `x y z` is set.") == [
        "One et al 2020 line.",
        "See link: code is set.",
    ]


def test_pictures_and_tables_have_american_spelling():
    british = re.compile("labelled(?!by)|normalis|colour|centre|neighbour|tumour", re.IGNORECASE)
    files = [path for kind in ("svg", "csv", "json") for path in (ROOT / "docs").rglob(f"*.{kind}")]
    assert not [
        f"{name_of(path)}: {match[0]}"
        for path in files
        if "_build" not in path.parts
        for match in british.finditer(path.read_text(encoding="utf-8"))
    ]
