"""The NLTK policy, on a small WordNet and stop word list in their own file formats."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nltk
import pytest
from nltk.corpus import WordNetCorpusReader, wordnet31

from common.errors import AttuneError
from common.prompts import PromptForm, explain_prompt, normalize_prompts, normalizer_id

WORDS = {
    "noun": "bark bell bit building child dog engine evening fall falls leaf left man men park saw "
    "talk talks wing",
    "verb": "bark bite build fall go hop hope hum leave scrap scrape see sing singe "
    "speak talk turn",
    "adj": "out outer talking",
    "adv": "loudly",
}
EXCEPTIONS: dict[str, dict[str, str]] = {
    "noun": {"children": "child", "feet": "foot", "leaves": "leaf", "men": "man"},
    "verb": {"bit": "bite", "humming": "hum", "left": "leave", "saw": "see", "spoke": "speak"},
    "adj": {},
    "adv": {},
}
STOP_WORDS = (
    *("a", "and", "at", "be", "by", "can", "can't", "don", "don't", "down", "in", "is", "no"),
    *("off", "on", "s", "t", "the", "there", "up", "while"),
)

CASES = {
    "a dog is barking at the park": "dog bark park",
    "The men talk loudly while 12 children sing": "man talk loudly child sing",
    "bells are singing &amp; talking": "bell are sing talk",  # "are" is not in the small list
    "scraping, hoped; falls of leaves": "scrape hope fall of leaf",
    "The saw bit in; the left wings": "saw bit left wing",
    "twenty-one dogs, 2nd dog, 1 1/2 hundreds, 3'45\"": "dog dog",
    "the dog's bark; don't": "dog bark not",
    "two-stroke engines humming": "stroke engine hum",
    "the outer building in the evening": "outer building evening",
    "rimshots by hermes": "rimshot hermes",
    "The cans and a can; it can't be, cannot bark": "can can it not not bark",
    "dogs can be off; a bell goes by": "dog off bell go by",
    "down by the dog turning on": "down dog turn on",
    "no one talks": "nobody talk",
}


def write_wordnet(folder: Path) -> None:
    """One synset for each of `WORDS`; see WordNet's wndb(5) for the formats."""
    folder.mkdir(parents=True)
    header = "  1 A small WordNet.  \n"
    for pos, lemmas in WORDS.items():
        letter = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}[pos]
        data, index = header, header
        for lemma in sorted(lemmas.split()):
            frames = " 01 + 01 00" if pos == "verb" else ""
            synset = f"{len(data):08d} 00 {letter} 01 {lemma} 0 000{frames} | what {lemma} is  \n"
            index += f"{lemma} {letter} 1 0 1 0 {len(data):08d}  \n"
            data += synset
        (folder / f"data.{pos}").write_text(data)
        (folder / f"index.{pos}").write_text(index)
        lines = [f"{form} {lemma}\n" for form, lemma in sorted(EXCEPTIONS[pos].items())]
        (folder / f"{pos}.exc").write_text("".join(lines))
    (folder / "lexnames").write_text("00\tall\t1\n")
    for name in ("index.sense", "cntlist.rev"):
        (folder / name).write_text("")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`corpora` of a fresh NLTK data folder, the only one that NLTK looks into."""
    corpora = tmp_path / "corpora"
    write_wordnet(corpora / "wordnet")
    (corpora / "stopwords").mkdir()
    (corpora / "stopwords/english").write_text("\n".join(STOP_WORDS) + "\n")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    return corpora


@pytest.mark.usefixtures("data")
def test_captions_become_lemmas_by_wordnet() -> None:
    """Repeated captions and the order stay."""
    assert normalize_prompts([*CASES, *CASES], PromptForm("lemmas-nltk")) == [*CASES.values()] * 2


@pytest.mark.usefixtures("data")
def test_a_negation_goes_with_the_other_stop_words_if_it_should() -> None:
    texts = ["no one talks", "dogs don't bark", "a bell without a dog", "dogs cannot bark"]
    prompts = ["talk", "dog bark", "bell dog", "dog bark"]
    assert normalize_prompts(texts, PromptForm("lemmas-nltk", "drop")) == prompts


@pytest.mark.usefixtures("data")
def test_the_steps_end_in_the_prompt() -> None:
    assert explain_prompt("2 dogs ARE barking", PromptForm("lemmas-nltk")) == [
        ("lowercased", "0 dogs are barking"),
        ("stop words and numbers removed", "dogs are barking"),
        ("lemmas", "dog are bark"),
    ]


def test_the_small_wordnet_is_one_that_nltk_reads(data: Path) -> None:
    reader = WordNetCorpusReader(nltk.data.find("corpora/wordnet"), wordnet31)
    assert {synset.definition() for synset in reader.synsets("bark")} == {"what bark is"}
    assert [synset.pos() for synset in reader.synsets("leaves")] == ["n", "v"]


def test_zipped_data_does_as_well(data: Path) -> None:
    unpacked = normalizer_id("lemmas-nltk")
    for name in ("wordnet", "stopwords"):
        shutil.make_archive(str(data / name), "zip", data, name)
        shutil.rmtree(data / name)
    nltk.data.path.append(str(data))  # another search path: nothing remembered is taken
    assert normalizer_id("lemmas-nltk") == unpacked
    assert normalize_prompts(["barking men"], PromptForm("lemmas-nltk")) == ["bark man"]


def test_the_id_names_rules_library_and_content(data: Path) -> None:
    before = normalizer_id("lemmas-nltk")
    assert before.startswith(f"lemmas-nltk-6+nltk-{nltk.__version__}+data-")
    assert before != normalizer_id("lemmas")
    for name in ("wordnet/verb.exc", "stopwords/english"):
        with (data / name).open("a") as file:
            file.write("zzz zz\n")
        nltk.data.path.append(str(data / name))
        assert normalizer_id("lemmas-nltk") != before
        before = normalizer_id("lemmas-nltk")


@pytest.mark.parametrize("missing", ["wordnet", "stopwords"])
def test_missing_data_is_reported_in_one_line(data: Path, missing: str) -> None:
    shutil.rmtree(data / missing)
    message = rf"corpus {missing} .*python -m nltk.downloader wordnet stopwords.*NLTK_DATA"
    with pytest.raises(AttuneError, match=message) as error:
        normalize_prompts(["a dog"], PromptForm("lemmas-nltk"))
    assert "\n" not in str(error.value)
    with pytest.raises(AttuneError, match=message):
        normalizer_id("lemmas-nltk")


def test_data_is_found_by_the_environment_and_nltk_only_loads_for_its_policy(data: Path) -> None:
    program = """
import sys
from common.prompts import PromptForm, normalize_prompts, normalizer_id
normalizer_id("lemmas"), normalize_prompts(["a"], PromptForm("plain"))
assert "nltk" not in sys.modules
print(*normalize_prompts(["barking dogs"], PromptForm("lemmas-nltk")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"NLTK_DATA": str(data.parent), "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("bark dog\n", 0), done.stderr
