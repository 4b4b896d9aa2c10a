"""Captions before and after, by spaCy: twenty sentences in the manner of each dataset.

The sentences are our own; each right-hand side was checked by hand.
"""

from __future__ import annotations

import pytest

from common.prompts import PromptForm, normalize_prompts

LEMMAS = PromptForm("lemmas")

AUDIOCAPS = {
    "A dog is barking at the park": "dog bark park",
    "A man gives a speech while a crowd applauds": "man give speech crowd applaud",
    "An engine idles and then revs up loudly": "engine idle rev up loudly",
    "Two women are talking while a baby cries in the background": "woman talk baby cry background",
    "Several ducks quack as water splashes": "duck quack water splash",
    "A sewing machine hums and clicks": "sewing machine hum click",
    "Someone saws wood, followed by hammering": "saw wood follow hammer",
    "A horn honks three times in the distance": "horn honk time distance",
    "A toilet is being flushed": "toilet flush",
    "Birds are chirping and a rooster crows twice": "bird chirp rooster crow",
    "Rain falls on a tin roof with thunder far away": "rain fall tin roof thunder far away",
    "A train blows its whistle and passes by": "train blow whistle pass by",
    "Food is sizzling in a frying pan": "food sizzle fry pan",
    "Whistling with wind blowing": "whistle wind blow",
    "A cat meows and people are laughing": "cat meow people laugh",
    "Speeches are held in a large hall": "speech hold large hall",
    "A helicopter flies overhead,then a loud bang.and people yell": (
        "helicopter fly overhead loud bang people yell"
    ),
    "A child's toy squeaks 5 times": "child toy squeak time",
    "Men's voices echo in a hallway": "man voice echo hallway",
    "The bird calls again and again": "bird call",
}
CLOTHO = {
    "Someone is walking on gravel at a steady pace.": "walk gravel steady pace",
    "The leaves of a tall tree are rustling in the wind .": "leaf tall tree rustle wind",
    "a heavy door creaks open  and slams shut behind them.": "heavy door creak open slam shut",
    "Water drips into a metal bucket, one drop at a time.": "water drip metal bucket drop time",
    "Church bells ring out over the city at twelve o'clock.": "church bell ring out city o'clock",
    "A person flips through the pages of a book.": "person flip page book",
    "Heavy rain pours down while a car drives through a puddle.": (
        "heavy rain pour down car drive puddle"
    ),
    "Crickets chirped constantly during a warm evening.": "cricket chirp constantly warm evening",
    "An old clock is ticking and the wind is howling outside.": "old clock tick wind howl outside",
    "People chatter in a busy cafe, and dishes clink.": "people chatter busy cafe dish clink",
    "A machine whirs at a higher and higher pitch.": "machine whir high high pitch",
    "Footsteps climb the stairs of a wooden building.": "footstep climb stair wooden building",
    "Two metal objects are scraped against each other repeatedly": "metal object scrape repeatedly",
    "A seagull calls as waves crash onto the shore.": "seagull call wave crash shore",
    "Traffic is moving along a highway at forty miles per hour.": "traffic move highway mile hour",
    "A glass bottle rolls across the floor, then it breaks.": "glass bottle roll floor break",
    "Someone is saying something that can't be understood.": "say not understand",
    "A large crowd was cheering inside of a stadium.": "large crowd cheer inside stadium",
    "Electricity is buzzing with static from an untuned radio.": (
        "electricity buzz static untune radio"
    ),
    "Children play outdoors as a plane passes overhead.": "child play outdoors plane pass overhead",
}
BBC = {
    "Two-stroke motor mower, start, run, stop.": "stroke motor mower start run stop",
    "Single-cylinder engine ticking over (1 1/2 h.p.)": "single cylinder engine tick over hp",
    "Door slammed - 3'45\" of ambience afterwards": "door slam ambience",
    "Cars: Saloon car, 1965 model. Exterior, approach & stop": (
        "car saloon car model exterior approach stop"
    ),
    "Church clock striking 12 o'clock": "church clock strike o'clock",
    "Steam train arriving, 4-6-2 locomotive": "steam train arrive locomotive",
    "Horse trotting on cobbles, 1 horse (reprocessed)": "horse trot cobble horse reprocess",
    "Ship's siren: 3 blasts, 2nd one distant": "ship siren blast distant",
    "Applause, audience of 300 people": "applause audience people",
    "B-29 bomber flying past": "bomber fly past",
    "Wolf howling, close-up.": "wolf howl close up",
    "Tap dripping into full sink": "tap drip full sink",
    "Crowd at football match - 1940s recording": "crowd football match recording",
    "50/50 mixture of sand &amp; gravel poured": "mixture sand gravel pour",
    "Ice-cream van, chimes, drives off.": "ice cream van chime drive off",
    "Men\u2019s shoes on stone stairs, up/down": "man shoe stone stair up down",
    "Interior of DC-10, jet engines running at 90% power": "interior dc jet engine run power",
    "Cash register, old-fashioned: drawer opening & closing": (
        "cash register old fashioned drawer open close"
    ),
    "Thirty-five guns fired in salute": "gun fire salute",
    "Breaking glass - large pane, 2 ft x 3 ft": "break glass large pane ft ft",
}
MUSICCAPS = {
    "This is a slow ballad with a female singer and an acoustic guitar.": (
        "slow ballad female singer acoustic guitar"
    ),
    "The low quality recording features a live performance.": (
        "low quality recording feature live performance"
    ),
    "A male vocalist sings a melody over punchy drums at 120 BPM.": (
        "male vocalist sing melody punchy drum bpm"
    ),
    "The song is an instrumental.": "song instrumental",
    "An e-guitar is playing a distorted riff in a 4/4 beat.": "guitar play distort riff beat",
    "This techno track would fit in a club.": "techno track fit club",
    "Someone is strumming a ukulele; there are no other instruments.": (
        "strum ukulele no instrument"
    ),
    "Jazz piano, upright bass and brushed drums create a relaxing mood.": (
        "jazz piano upright bass brush drum create relaxing mood"
    ),
    "The synthesizer plays arpeggiated chords.": "synthesizer play arpeggiated chord",
    "A choir of children's voices harmonizes.": "choir child voice harmonize",
    "It sounds like something from the 80s.": "sound like",
    "Two violins and a cello play a sad tune.": "violin cello play sad tune",
    "Hi-hats and claps provide the rhythm.": "hi hat clap provide rhythm",
    "A drum & bass track with heavy sub-bass.": "drum bass track heavy sub bass",
    "The tempo is fast, with a groovy bassline.": "tempo fast groovy bassline",
    "Trumpets blare over a marching snare.": "trumpet blare march snare",
    "An amateur recording of a man whistling.": "amateur recording man whistle",
    "This rock &amp; roll song has soulful backing vocals.": "rock roll song soulful backing vocal",
    "A flute melody, soothing and calm.": "flute melody soothe calm",
    "The DJ scratches records while the crowd is cheering.": "dj scratch record crowd cheer",
}


@pytest.mark.parametrize(
    "cases",
    [AUDIOCAPS, CLOTHO, BBC, MUSICCAPS],
    ids=["audiocaps", "clotho", "bbc", "musiccaps"],
)
def test_captions_become_prompts(cases: dict[str, str]) -> None:
    assert len(cases) == 20
    assert dict(zip(cases, normalize_prompts(list(cases), LEMMAS), strict=True)) == cases
