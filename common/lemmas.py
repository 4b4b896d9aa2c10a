"""Word tables of the prompts: which stop words stay, and lemmas that a dictionary gets wrong.

The tables come from reading the 1,700 most frequent words of AudioCaps, Clotho, BBC Sound Effects
and the labels of AudioSet, FSD50K and VGG-Sound, each with its lemmas and its parts of speech.
"""

from __future__ import annotations

CONTENT_WORDS = frozenset({
    # Things, and how they are: "front door", "talk show", "coal mine", "empty can".
    "amount", "bottom", "call", "empty", "front", "full", "mine", "name", "part", "serious", "show",
    "side", "top",
    # Full verbs. Every form stays ("go", "goes", "going"), so that captions and typed prompts
    # agree. be, have, do and seem go in every form: they say nothing about the sound.
    "became", "become", "becomes", "becoming", "get", "give", "go", "keep", "made", "make", "move",
    "put", "say", "see", "take", "used", "using",
    # Directions and particles. They nearly always belong to a verb ("take off", "back up"), and as
    # prepositions they say where something moves ("walk down the stairs").
    "around", "back", "down", "off", "out", "together", "up",
})  # fmt: skip
"""Stop words of a library that are kept, whatever their part of speech."""

DEPENDENT_WORDS = frozenset({
    "along", "by", "can", "front", "in", "last", "on", "over", "own", "part", "through", "top",
    "well",
})  # fmt: skip
"""Words that are content in one use and function words in another: "tin can", "can be heard"."""

PARTICLES = frozenset({"along", "by", "in", "on", "over", "through"})
"""Prepositions that stay where they belong to a verb: "turn on", but not "on the table"."""

PHRASAL_VERBS = {
    "along": frozenset({"hum", "play", "sing"}),
    "by": frozenset({
        "come", "drive", "fly", "go", "move", "pass", "race", "ride", "roar", "roll", "rush",
        "speed", "travel", "walk", "whoosh", "zoom",
    }),
    "in": frozenset({"come", "fade", "pull"}),
    "on": frozenset({"carry", "come", "go", "keep", "switch", "turn"}),
    "over": frozenset({"fly", "pass", "take", "tick", "turn"}),
}  # fmt: skip
"""Verbs (lemmas) directly before a particle, by particle. Such a particle stays whatever its tag,
so that it also stays in a prompt that was normalized before."""

SET_PHRASES = {"front": ("in", "of"), "part": ("as", "of"), "top": ("on", "")}
"""Nouns that are no things between two words: "in front of", "as part of", "on top (of)"."""

AFTER_CAN = frozenset({
    "also", "barely", "be", "clearly", "conclude", "faintly", "go", "have", "hear", "just", "not",
    "notice", "only", "really", "see", "sound", "still", "then",
})  # fmt: skip
"""Before these words "can" is an auxiliary; "be" and "hear" are 95% of the cases. Taggers take
nearly every "can" for an auxiliary, even in "tin can"."""

OWN_LEMMAS = {
    # One of a thing and several, where a rule makes another word of it ("specie", "good").
    "baas": "baa", "calves": "calf", "clothes": "clothes", "fortes": "forte",
    "gasworks": "gasworks", "glassworks": "glassworks", "goods": "goods", "mans": "man",
    "men": "man", "pass": "pass", "reverses": "reverse", "species": "species", "tablas": "tabla",
    "taxis": "taxi", "vickers": "vickers",
    # Things, and a verb, that end like a comparative or a past form.
    "cleaner": "cleaner", "lighter": "lighter", "lower": "lower", "moped": "moped",
    "synthesiser": "synthesiser", "trawler": "trawler",
    # Comparatives that taggers miss, and adverbs of place.
    "best": "good", "better": "good", "deeper": "deep", "higher": "high", "indoors": "indoors",
    "nearer": "near", "outdoors": "outdoors",
    # Past forms: the saw that cuts wood, from left to right, a gun shot, a grown man; but bells are
    # rung and windows are wound down.
    "blown": "blow", "fallen": "fall", "grown": "grown", "heard": "hear",
    "left": "left", "lit": "light", "motorized": "motorize", "rung": "ring", "saw": "saw",
    "shaken": "shake", "shot": "shot", "spoken": "speak", "stuck": "stick", "sung": "sing",
    "wound": "wind",
    # Words in -ing that are no actions, and actions in -ing that are no forms of another verb.
    "bowling": "bowling", "building": "building", "ceiling": "ceiling", "clothing": "clothing",
    "dining": "dining", "ding": "ding", "dinging": "ding", "evening": "evening",
    "parking": "parking", "ping": "ping", "railing": "railing", "recording": "recording",
    "ring": "ring", "shilling": "shilling", "shopping": "shopping", "sing": "sing",
    "singing": "sing", "spring": "spring", "string": "string", "swing": "swing",
    "tocking": "tock", "vending": "vending", "warning": "warning", "wedding": "wedding",
    # Words in -ed that say how something is: "a crowded room" has no crowd in its sound.
    "aged": "aged", "armoured": "armoured", "bodied": "bodied", "crowded": "crowded",
    "distressed": "distressed", "engined": "engine", "excited": "excited", "fashioned": "fashioned",
    "frightened": "frightened", "frustrated": "frustrated", "haired": "haired",
    "haunted": "haunted", "hearted": "hearted", "hoofed": "hoofed", "jagged": "jagged",
    "labored": "labored", "marked": "marked", "mixed": "mixed", "ragged": "ragged",
    "relaxed": "relaxed", "scared": "scared", "sized": "sized", "skilled": "skilled",
    "sophisticated": "sophisticated", "spirited": "spirited", "studded": "studded",
    "surprised": "surprised", "tired": "tired", "wheeled": "wheeled", "wooded": "wooded",
}  # fmt: skip
"""The lemma of a word, whatever its part of speech."""

LEAF_SOUNDS = ("blow", "crackl", "crinkl", "crumpl", "crunch", "rustl", "shuffl", "snap")
"""Words that begin like this stand beside leaves of a tree, not beside "leaves the station"."""

BEFORE_LEAVES = (*LEAF_SOUNDS, "dead", "dry", "fall", "tree")
"""Beginnings of words before leaves of a tree."""

THINGS_IN_ING = frozenset({
    # What people hear, see, or say.
    "feeling", "gathering", "greeting", "meaning", "meeting", "saying", "setting",
    # Parts, materials, places.
    "backing", "bearing", "bedding", "bunting", "casing", "coating", "coupling", "crossing",
    "decking", "fitting", "flooring", "grating", "housing", "icing", "lining", "matting", "mooring",
    "moulding", "packaging", "painting", "piping", "rigging", "roofing", "scaffolding",
    "siding", "spacing", "stocking", "tubing", "wiring",
    # Names of machines, rooms, trades: "washing machine", "swimming pool", "mating call".
    "boarding", "booking", "boxing", "briefing", "broadcasting", "catering", "conditioning",
    "engineering", "fishing", "heating", "lighting", "living", "mating", "plumbing",
    "processing", "sewing", "shipping", "swimming", "training", "washing",
    # Times and states of mind.
    "beginning", "healing", "longing", "timing",
})  # fmt: skip
"""Words in -ing that stay as nouns and adjectives. As verbs they get the verb's lemma ("a man is
sewing"). Other nouns in -ing name an action: "loud splashing" -> "loud splash"."""

MOODS = frozenset({
    "alarming", "annoying", "appealing", "calming", "charming", "chilling", "haunting",
    "interesting", "jarring", "lilting", "menacing", "stirring", "thrilling", "touching",
})  # fmt: skip
"""Adjectives in -ing that are no actions. Other adjectives in -ing get the verb's lemma if the verb
is also a noun: "dripping tap" -> "drip tap"; "exciting" stays."""
