"""Write the results of the ablation: tables, CSV, a plot, a page, and everything as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from common import page
from training.evaluation.ablation.config import AblationConfig, Profile
from training.evaluation.ablation.paper_tables import (
    Results,
    as_csv,
    latex,
    markdown,
    plot,
    tables,
    verdicts,
)

_PAPER_ON = {"sfx": "AudioCaps' test clips", "music": "MusicCaps"}


def write_report(
    out: Path,
    config: AblationConfig,
    profile: Profile,
    cells: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Write `tables.md`, `tables.tex`, `results.csv`, `ablation.png`, `.html` and `.json`.

    Args:
        out: folder of the profile.
        cells: results of `run_cell`, at least one.
        failed: {cell: why it failed}.

    Returns:
        The content of `ablation.json`.
    """
    results = Results(config, profile, cells)
    made, lines, notes = tables(results), verdicts(results), _notes(profile, cells, failed)
    text = "\n".join(map(markdown, made))
    listed = "\n".join(f"- {line}" for line in [*lines, *notes])
    (out / "tables.md").write_text(f"{text}\n{listed}\n")
    (out / "tables.tex").write_text("\n".join(map(latex, made)))
    (out / "results.csv").write_text(as_csv(results))
    drawn = plot(results)
    if drawn is not None:
        drawn.savefig(out / "ablation.png", dpi=150)
    html = page.render(
        __package__,
        "page.html",
        tables=made,
        verdicts=lines,
        notes=notes,
        plot="" if drawn is None else page.picture(drawn),
        cells=out / "cells",
    )
    (out / "ablation.html").write_text(html)
    document = {
        "cells": list(cells),
        "failed": dict(failed),
        "tests": {metric: asdict(test) for metric, test in results.tests().items()},
        "verdicts": lines,
    }
    (out / "ablation.json").write_text(json.dumps(document, indent=2) + "\n")
    return document


def _notes(
    profile: Profile, cells: Sequence[Mapping[str, Any]], failed: Mapping[str, str]
) -> list[str]:
    missing = dict.fromkeys(why for cell in cells for why in cell["missing"].values())
    return [
        f"Mean \u00b1 s.d. over {len(profile.seeds)} seeds (fewer if a cell is missing); "
        f"{cells[0]['clips']} generated clips per seed, {cells[0]['reference_clips']} real clips: "
        f"{cells[0]['reference']}. {date.today().isoformat()}.",
        f"The paper's values are of {_PAPER_ON[profile.task]}; compare them with ours only if ours "
        "are of the same clips.",
        *(f"Not measured: {why}" for why in missing),
        *(f"Failed: {name}: {why}" for name, why in failed.items()),
    ]
