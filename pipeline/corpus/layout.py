"""Write the embedded corpus as files of AudioSet, AudioCaps, Clotho and a music catalog.

    OUT/audioset/   class_labels_indices.csv  balanced_train_segments.csv  eval_segments.csv
                    balanced_train_segments/YTID.wav  eval_segments/YTID.wav
    OUT/audiocaps/  train.csv  val.csv  train/YTID_START.wav  val/YTID_START.wav
    OUT/clotho/     clotho_captions_development.csv  clotho_metadata_development.csv
                    development/*.wav
    OUT/music/      catalog.jsonl  audio/*.flac

Headers, quoting, encodings and odd file names are those of the real files.  Some clips are labelled
as speech, some captions lose all words in text processing, and some files are broken, so that every
kind of refusal happens.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from scipy.io import wavfile

from common.errors import AttuneError, one_line
from pipeline.corpus.music import MUSIC_RATE, TRACKS, render_track
from pipeline.corpus.sounds import CLASSES, SAMPLE_RATE, Params, SoundClass, draw_params, render

CORPUS_VERSION = 1
TRAIN_PER_CLASS = 12
EVAL_PER_CLASS = 4
TWO_EVENT_CLIPS = 24
AUDIOCAPS_TRAIN = 72
AUDIOCAPS_VAL = 8
CLOTHO_CLIPS = 48
SPEECH_CLIPS = 6
BROKEN = ("truncated", "zero_byte", "not_audio", "nan", "silent", "too_short")
"""One broken AudioSet file of each kind."""
SPEECH_MID = "/m/09x0r"
_SPEECH, _BROKEN = 2, 3  # numbers of the AudioSet parts in the seeds of their clips

_COUNTS = ("once", "twice", "three times", "4 times", "five times", "6 times")
_LEVELS = ("far away", "quietly", "nearby", "loudly")
_CLOTHO_NAMES = (
    "{stem} & {other}, take {n}.wav",
    "121006_{stem}&amp;{other}_{n}.wav",
    "{stem}#{n} .wav",
    " {stem}  {other} {n}.wav",
    "{stem} ({other}); [{n}].wav",
    "{stem}_{other}_{n}.wav",
)


@dataclass(frozen=True)
class Clip:
    """One synthesized clip: its sound and its captions."""

    events: tuple[SoundClass, ...]
    params: tuple[Params, ...]
    seconds: float
    seed: tuple[int, ...]

    def render(self) -> np.ndarray:
        return render(self.events, self.seconds, self.params, np.random.default_rng(self.seed))

    def caption(self, rng: np.random.Generator) -> str:
        """One natural sentence, e.g. "A dog barks three times, then a siren wails loudly"."""
        parts = []
        for event, p in zip(self.events, self.params, strict=True):
            level = _LEVELS[min(3, int((p.level_db + 18) / 4.1))]
            more = ("", f" {_COUNTS[p.count]}", f" {level}")[int(rng.integers(0, 3))]
            parts.append(f"{event.subject} {event.verb}{more}")
        joint = (", then ", " followed by ", " and after that ")[int(rng.integers(0, 3))]
        sentence = joint.join(parts)
        return sentence[0].upper() + sentence[1:]


def write_corpus(
    out: Path, seed: int = 0, progress: Callable[[str], None] = lambda line: None
) -> dict[str, int]:
    """Write the whole corpus into `out`; a finished one with the same version and seed is kept.

    Args:
        out: folder to create.  A folder with anything else in it is refused, not overwritten.
        seed: same seed, same bytes.
        progress: called with one line per dataset.

    Returns:
        Number of audio files per dataset.

    Raises:
        AttuneError: `out` exists and is not an embedded corpus, or cannot be written.
    """
    stamp = {"version": CORPUS_VERSION, "seed": seed}
    try:
        found = _finished(out)
        if {key: found.get(key) for key in stamp} == stamp:
            progress(f"corpus in {out} is complete; kept")
            return dict(found["files"])
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        files = {}
        for name, write in (
            ("audioset", _write_audioset),
            ("audiocaps", _write_audiocaps),
            ("clotho", _write_clotho),
            ("music", _write_music),
        ):
            (partial / name).mkdir(parents=True)
            files[name] = write(partial / name, seed)
            progress(f"{name}: {files[name]} audio files")
        (partial / "corpus.json").write_text(json.dumps(stamp | {"files": files}, indent=2) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
        return files
    except (OSError, soundfile.LibsndfileError) as error:
        raise AttuneError(f"{out}: cannot write the corpus there: {one_line(error)}") from error


def _finished(out: Path) -> dict[str, Any]:
    """The content of corpus.json; empty if there is no corpus yet."""
    marker = out / "corpus.json"
    if not marker.is_file():
        if out.exists() and any(out.iterdir()):
            raise AttuneError(f"{out} exists and is not an embedded corpus; name an empty folder")
        return {}
    try:
        found = json.loads(marker.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise AttuneError(f"{marker}: is damaged; delete {out} to have the corpus made again")
    return found


# --- clips ----------------------------------------------------------------------------------------


def _clip(seed: int, dataset: int, index: int, events: tuple[SoundClass, ...]) -> Clip:
    rng = np.random.default_rng((seed, dataset, index))
    seconds = round(float(rng.uniform(2.0, 4.5) if len(events) == 1 else rng.uniform(4, 6)), 2)
    params = tuple(draw_params(rng) for _ in events)
    return Clip(events, params, seconds, (seed, dataset, index, 1))


def _pair(rng: np.random.Generator) -> tuple[SoundClass, ...]:
    return tuple(CLASSES[i] for i in rng.choice(len(CLASSES), size=2, replace=False))


def youtube_id(*key: int) -> str:
    """A made-up identifier in YouTube's alphabet (11 characters; some begin with `-`)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    name = "".join(alphabet[byte % 64] for byte in digest[:11])
    return "-" + name[1:] if key[-1] % 19 == 3 else name


def _save(path: Path, wave: np.ndarray, rate: int = SAMPLE_RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype="PCM_16")


# --- AudioSet -------------------------------------------------------------------------------------


def _write_audioset(root: Path, seed: int) -> int:
    with (root / "class_labels_indices.csv").open("w", newline="") as file:
        file.write("index,mid,display_name\n")
        names = [("Speech", SPEECH_MID), *((c.name, c.mid) for c in CLASSES)]
        for index, (name, mid) in enumerate(names):
            file.write(f'{index},{mid},"{name}"\n')

    rng = np.random.default_rng((seed, 1))
    train: list[tuple[SoundClass, ...]] = [(c,) for c in CLASSES for _ in range(TRAIN_PER_CLASS)]
    train += [_pair(rng) for _ in range(TWO_EVENT_CLIPS)]
    listed: dict[str, list[tuple[str, float, list[str]]]] = {"balanced_train": [], "eval": []}
    for part, dataset, clips in (
        ("balanced_train", 1, train),
        ("balanced_train", _SPEECH, [(c,) for c in CLASSES[:SPEECH_CLIPS]]),
        ("balanced_train", _BROKEN, [(c,) for c in CLASSES[: len(BROKEN)]]),
        ("eval", 4, [(c,) for c in CLASSES for _ in range(EVAL_PER_CLASS)]),
    ):
        for index, events in enumerate(clips):
            clip = _clip(seed, dataset, index, events)
            name = youtube_id(seed, dataset, index)
            path = root / f"{part}_segments" / f"{name}.wav"
            if dataset == _BROKEN:
                _save_broken(path, clip, BROKEN[index])
            else:
                _save(path, clip.render())
            mids = [SPEECH_MID] * (dataset == _SPEECH) + [event.mid for event in events]
            listed[part].append((name, clip.seconds, mids))
    for part, rows in listed.items():
        _write_segments(root / f"{part}_segments.csv", rows)
    return sum(map(len, listed.values()))


def _write_segments(path: Path, rows: list[tuple[str, float, list[str]]]) -> None:
    labels = {mid for row in rows for mid in row[2]}
    with path.open("w", newline="") as file:
        file.write("# Segments csv created by the embedded corpus\n")
        file.write(
            f"# num_ytids={len(rows)}, num_segs={len(rows)}, num_unique_labels={len(labels)}, "
            f"num_positive_labels={sum(len(row[2]) for row in rows)}\n"
        )
        file.write("# YTID, start_seconds, end_seconds, positive_labels\n")
        for name, seconds, mids in rows:
            file.write(f'{name}, 0.000, {seconds:.3f}, "{",".join(mids)}"\n')


def _save_broken(path: Path, clip: Clip, kind: str) -> None:
    wave = clip.render()
    if kind == "zero_byte":
        path.write_bytes(b"")
    elif kind == "not_audio":
        path.write_text("<html><body>404: this clip is no longer available</body></html>\n")
    elif kind == "truncated":
        _save(path, wave)
        os.truncate(path, len(wave) // 2)
    elif kind == "nan":
        wave[1000:1100] = np.nan
        # libsndfile would write the time into the PEAK chunk of a float file.
        wavfile.write(path, SAMPLE_RATE, wave)
    elif kind == "silent":
        _save(path, np.zeros_like(wave))
    else:  # too_short
        _save(path, wave[:6], rate=44_100)  # 0.14 ms


# --- AudioCaps ------------------------------------------------------------------------------------


def _write_audiocaps(root: Path, seed: int) -> int:
    for split, dataset, count in (("train", 5, AUDIOCAPS_TRAIN), ("val", 6, AUDIOCAPS_VAL)):
        rng = np.random.default_rng((seed, dataset))
        with (root / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)  # CRLF line ends, as the real files have
            writer.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
            for index in range(count):
                single = index % 3 != 0
                events = (CLASSES[index % len(CLASSES)],) if single else _pair(rng)
                clip = _clip(seed, dataset, index, events)
                name = youtube_id(seed, dataset, index)
                start = int(rng.integers(0, 59)) * 10
                captions = [clip.caption(rng)]
                if split == "train" and index == 7:
                    captions = ["It was the 3rd one"]  # text processing drops every word
                elif split == "train" and index in (8, 9):
                    captions = [f"A man gives a speech while {clip.caption(rng).lower()}"]
                elif split == "val":
                    captions = [clip.caption(rng) for _ in range(5)]
                for k, caption in enumerate(captions):
                    writer.writerow([10_000 * dataset + 5 * index + k, name, start, caption])
                # Half of the files at 44.1 kHz stereo: real collections mix sample rates.
                path = root / split / f"{name}_{start}.wav"
                wave = clip.render()
                if index % 2:
                    wide = soxr.resample(wave, SAMPLE_RATE, 44_100, quality="VHQ")
                    _save(path, np.stack([wide, 0.8 * wide], axis=1), 44_100)
                else:
                    _save(path, wave)
    return AUDIOCAPS_TRAIN + AUDIOCAPS_VAL


# --- Clotho ---------------------------------------------------------------------------------------


def _write_clotho(root: Path, seed: int) -> int:
    rng = np.random.default_rng((seed, 7))
    with (
        (root / "clotho_captions_development.csv").open("w", newline="") as captions_file,
        (root / "clotho_metadata_development.csv").open("w", encoding="latin-1") as metadata_file,
    ):
        captions = csv.writer(captions_file, lineterminator="\n")
        metadata = csv.writer(metadata_file, lineterminator="\n")
        captions.writerow(["file_name", *(f"caption_{k}" for k in range(1, 6))])
        columns = ["file_name", "keywords", "sound_id", "sound_link", "start_end_samples"]
        metadata.writerow([*columns, "manufacturer", "license"])
        for index in range(CLOTHO_CLIPS):
            events = (CLASSES[index % len(CLASSES)],) if index % 2 else _pair(rng)
            clip = _clip(seed, 7, index, events)
            name = _CLOTHO_NAMES[index % len(_CLOTHO_NAMES)].format(
                stem=events[0].subject.split()[-1].title(),
                other=events[-1].verb.split()[0],
                n=index,
            )
            texts = [clip.caption(rng) for _ in range(5)]
            texts = [text + ("." if k % 2 else "") for k, text in enumerate(texts)]
            if index == 5:
                texts = ["There are two of them.", "It is this one", "They were 5 of those"]
                texts += ["here and there", "That is it."]
            captions.writerow([name, *texts])
            sound_id, link = 900_000 + index, f"https://example.org/sounds/{900_000 + index}"
            metadata.writerow(
                [
                    name,
                    ";".join(event.name.lower() for event in events),
                    *((sound_id, link) if index % 11 else ("Not found", "Not found")),
                    f"[0, {round(clip.seconds * 44_100)}]" if index % 3 else "",
                    "g\xe9n\xe9rateur" if index == 4 else "generator",
                    "http://creativecommons.org/publicdomain/zero/1.0/",
                ]
            )
            _save(root / "development" / name, clip.render())
    return CLOTHO_CLIPS


# --- music ----------------------------------------------------------------------------------------


def _write_music(root: Path, seed: int) -> int:
    with (root / "catalog.jsonl").open("w", encoding="utf-8") as file:
        for index, track in enumerate(TRACKS):
            name = track.title.lower().replace(" ", "_")
            wave = render_track(track, np.random.default_rng((seed, 8, index)))
            _save(root / "audio" / f"{name}.flac", wave, MUSIC_RATE)
            row = {
                "title": track.title,
                "artist": track.artist,
                "key": f"{track.key} {track.mode}",
                "bpm": track.bpm,
                "genre": track.genre,
                "moods": list(track.moods),
                "keywords": [track.instrument, track.genre],
                "description": f"A {track.moods[0]} {track.genre} track with {track.instrument}",
                "name": name,
                "instrument": track.instrument,
                "path": f"{name}.flac",
                "license": "CC0-1.0",
            }
            file.write(json.dumps(row) + "\n")
    return len(TRACKS)
