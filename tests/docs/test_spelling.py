"""American spelling throughout: a short list of British words that slip in most easily."""

from __future__ import annotations

import re

from tests.docs.test_code_blocks import PAGES, ROOT

STEMS = (
    "colour", "behaviour", "neighbour", "favour", "honour", "labour", "centre", "metre", "grey",
    "modelling", "modelled", "labelled", "labelling", "travelled", "cancelled", "learnt", "whilst",
    "licence", "defence", "catalogue", "analyse", "artefact", "judgement", "fulfil ", "towards",
)  # fmt: skip
# "-ise" for "-ize": of the words that are written about here
VERBS = (
    "normal", "initial", "optim", "organ", "recogn", "summar", "maxim", "minim", "parametr",
    "general", "discret", "visual", "util", "serial", "synchron", "special", "real", "stabil",
    "vector", "random", "penal", "emphas", "memor", "local", "categor",
)  # fmt: skip
ENDINGS = r"is(?:e[ds]?|ing|ation)\b"
BRITISH = re.compile(rf"\b(?:{'|'.join(STEMS)})|\b(?:{'|'.join(VERBS)}){ENDINGS}", re.I)
# the names of old, as they were
OLD = ROOT / "torchrl_shm" / "renamed.py"
FILES = [
    *PAGES,
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "mkdocs.yml")),
    *sorted({*(ROOT / "torchrl_shm").rglob("*.py")} - {OLD}),
    *sorted((ROOT / "recipes").rglob("*.py")),
]


def find(text: str) -> list[str]:
    """British words of a text; addresses have the spelling of their owners."""
    return BRITISH.findall(re.sub(r"https?://\S+", "", text))


def test_spelling_is_american() -> None:
    found = {path.relative_to(ROOT).as_posix(): find(path.read_text()) for path in FILES}
    assert {name: words for name, words in found.items() if words} == {}


def test_british_words_are_found() -> None:
    assert find("Behaviour is normalised, in grey") == ["Behaviour", "normalised", "grey"]
    assert not find("behavior, normalized, gray, realistic, exercise, revise, https://x.org/colour")
