"""How the text encoder reads the prompts of a plan: how many it cuts, and how many it cannot read.

Two prompts that differ only after the cut have equal states, and so have prompts in a script that
the encoder's vocabulary lacks: training cannot tell their clips apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.config import TextEncoderConfig
from common.text_encoder import check_max_length, count_tokens, cut_off, load_tokenizer

_SHOWN = 80
"""Characters of an example."""


def count_prompts(prompts: pa.Array, config: TextEncoderConfig) -> dict[str, Any]:
    """Count the prompts that the encoder cuts, and those of which it knows too little.

    Only prompts that may be such are tokenized, by the tokens of their words: there are far fewer
    different words than prompts (a million prompts take some seconds).

    Args:
        prompts: string, each prompt once.

    Returns:
        `max_length`, `prompts` (their number), `cut` and `unknown`: each with `prompts` (a number)
        and, if it is not 0, `example` (the first such prompt); `cut` also with `lost` (the end of
        the example that the encoder does not get) and `longest` (tokens of the longest prompt).

    Raises:
        AttuneError: the encoder is not here, or has fewer positions than `max_length`.
    """
    check_max_length(config)
    tokenizer = load_tokenizer(config.path)
    rows = pc.utf8_split_whitespace(prompts)
    words = rows.flatten().dictionary_encode()
    of_words = count_tokens(tokenizer, words.dictionary.to_pylist())
    tokens, unknown = (
        np.concatenate([[0], np.cumsum(counts[np.asarray(words.indices)])])
        for counts in (of_words.tokens - of_words.special, of_words.unknown)
    )
    ends = np.asarray(rows.offsets)
    # A word may have other tokens at the start of a text, in byte-level encodings by one or two.
    maybe = 1.25 * np.diff(tokens[ends]) + of_words.special > config.max_length
    chosen = prompts.filter(pa.array(maybe | (np.diff(unknown[ends]) > 0))).to_pylist()
    counts = count_tokens(tokenizer, chosen)
    found: dict[str, Any] = {"max_length": config.max_length, "prompts": len(prompts)}
    for name, mask in (
        ("cut", counts.tokens > config.max_length),
        ("unknown", counts.mostly_unknown),
    ):
        found[name] = {"prompts": int(mask.sum())}
        if mask.any():
            found[name]["example"] = chosen[int(mask.argmax())]
    if "example" in found["cut"]:
        lost = cut_off(tokenizer, found["cut"]["example"], config.max_length)
        found["cut"] |= {"lost": lost, "longest": int(counts.tokens.max())}
    return found


def token_lines(found: dict[str, Any] | None) -> list[str]:
    """What `count_prompts` found, a line for each kind that there is.

    Args:
        found: None for a plan without counts; with `not_counted`, the reason why there are none.
    """
    lines: list[str] = []
    if found is None or "not_counted" in found:
        return [f"prompts were not looked at: {found['not_counted']}"] if found else lines
    cut, unknown, total = found["cut"], found["unknown"], found["prompts"]
    if cut["prompts"]:
        kept = cut["example"].removesuffix(cut["lost"]).strip()
        kept = kept if len(kept) <= _SHOWN else f"...{kept[-_SHOWN:]}"
        lines.append(
            f"{cut['prompts']:,} of {total:,} prompts have more than text_encoder.max_length="
            f"{found['max_length']} tokens (the longest {cut['longest']}); the encoder does not "
            f"get their end, e.g. {cut['lost'][:_SHOWN]!r} after {kept!r}"
        )
    if unknown["prompts"]:
        lines.append(
            f"{unknown['prompts']:,} of {total:,} prompts: the text encoder does not know more "
            "than a third of their tokens, and different ones may look equal to it; e.g. "
            f"{unknown['example'][:_SHOWN]!r}; set text_encoder.path to an encoder for their "
            "language"
        )
    return lines
