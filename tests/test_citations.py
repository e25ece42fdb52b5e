"""The repository explains itself alone: whatever a page, docstring or message cites is in it."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = "preprocess", "train", "evaluate", "shared"
NUMBERS = r"\d+(?:\.\d+)*(?:(?:,| and) \d+(?:\.\d+)*)*"
CITED = re.compile(rf"(docs/\w+\.md)(?:,? sections?)? ({NUMBERS})\b")
LINKED = re.compile(rf"\]\((\w+\.md)\),? (?:section )?({NUMBERS})\b")
PATH = re.compile(rf"(?<![\w./{{}}<-])(?:{'|'.join(PACKAGES)}|tests|docs)/[\w./-]+\.(?:py|md|cuh?|json|txt|yaml)\b")
MODULE = re.compile(rf"python -m ((?:{'|'.join(PACKAGES)})\.[a-z_.]*[a-z_])\b(?!\.[A-Z])")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Pages that this repository was written after; the one folder beside it that tests read, where it is there, is data.
FOREIGN = re.compile(r"\bMETHOD\b|\bFORMAT(?:\.md| \d)|\bDESIGN\b|\bSTYLE\.md|\.\./shared(?!/data)")


def tracked() -> dict[str, str]:
    """{path: text} of every file that git keeps, but for this one; line ends and comment marks are single spaces."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"no git checkout: {listed.stderr.strip()}")
    texts = {}
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            texts[name] = re.sub(r"\s*\n[\s#]*", " ", path.read_text("utf-8", "ignore"))
    return texts


def sections(page: str) -> set[str]:
    """Numbers of a page's headings, with those of the sections that they belong to."""
    return set(re.findall(r"^#+ (\d+(?:\.\d+)*)\.? ", (ROOT / page).read_text(), re.MULTILINE))


def faults(name: str, text: str) -> list[str]:
    """What the text of a file cites that the repository lacks."""
    found = [f"cites {match!r}" for match in FOREIGN.findall(text)]
    found += [f"names {path}" for path in PATH.findall(text) if "NAME" not in path
              and not (ROOT / path).exists() and not (ROOT / "tests" / path).exists()]
    for module in MODULE.findall(text):
        path = ROOT / module.replace(".", "/")
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
            found.append(f"names python -m {module}")
    numbered = CITED.findall(text) + [(f"docs/{page}", numbers) for page, numbers in LINKED.findall(text)]
    for page, numbers in numbered:
        if (ROOT / page).exists():
            found += [f"cites {page} {number}" for number in set(re.findall(r"[\d.]*\d", numbers)) - sections(page)]
    if name.endswith(".md"):
        found += [f"links to {target}" for target in LINK.findall(text) if not re.match(r"[a-z]+:|#", target)
                  and not (ROOT / name).parent.joinpath(target.partition("#")[0]).exists()]
    return found


def test_nothing_is_cited_that_the_repository_lacks():
    wrong = {name: found for name, text in tracked().items() if (found := faults(name, text))}
    assert not wrong


def test_the_citation_file_is_of_this_version():
    """Its schema is checked by `cffconvert --validate`, which is no dependency; here what a release would forget."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["title"], cited["version"], cited["license"]) == tuple(
        setup["metadata"][key] for key in ("name", "version", "license"))
    assert [(one["year"], one["authors"][0]["family-names"]) for one in cited["references"]] == [(2021, "Li"),
                                                                                                (2022, "Xiao")]


@pytest.mark.parametrize("text, fault", [
    ("as METHOD 1.4 says", "cites 'METHOD'"), ("(FORMAT.md)", "cites 'FORMAT.md'"), ("FORMAT 1", "cites 'FORMAT 1'"),
    ("see ../shared/evidence/tvl1.md", "cites '../shared'"), ("`tests/bench/gone.py`", "names tests/bench/gone.py"),
    ("docs/gone.md says", "names docs/gone.md"), ("`python -m preprocess.gone S`", "names python -m preprocess.gone"),
    ("(docs/method.md 1.9)", "cites docs/method.md 1.9"), ("docs/method.md 1.3, 1.41", "cites docs/method.md 1.41"),
    ("docs/experiments.md, section 40", "cites docs/experiments.md 40"),
    ("[method.md](method.md), section 2.9", "cites docs/method.md 2.9"), ("[it](gone.png)", "links to gone.png")])
def test_a_citation_of_what_is_not_there_is_found(text, fault):
    assert fault in faults("docs/page.md", text)


@pytest.mark.parametrize("text", [
    "(docs/method.md 1.4)", "docs/method.md 1.2, 1.3 and 2.", "docs/experiments.md, section 4", "docs/format.md",
    "[method.md](method.md), section 2.2", "`python -m evaluate.ablation`", "tests/bench/flow.py", "FORMAT = 1",
    "../shared/data", "[here](https://example.org/gone.md)", "STORE/docs/gone.md"])
def test_what_is_there_may_be_cited(text):
    assert not faults("docs/page.md", text)
