"""`ablate`: the paper's tables from your own runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Option

from common.cli import DeviceOption, JsonOption, OverridesArgument, choose_device, print_json
from common.config import load_recipe
from common.cores import usable_cores
from common.errors import AttuneError
from training.commands.options import WeightsOption


def ablate(
    overrides: OverridesArgument = None,
    config: Annotated[Path, Option(help="Rows and profiles.")] = Path("configs/ablation.yaml"),
    profile: Annotated[str, Option(help="Profile: small, esc10, paper, music.")] = "paper",
    rows: Annotated[list[str] | None, Option("--row", help="Only this row (repeatable).")] = None,
    jobs: Annotated[int, Option(min=0, help="Rows at a time (0: one per core; 1 on a GPU).")] = 0,
    processes: Annotated[int, Option("--nproc", min=1, help="Processes (GPUs) per row.")] = 1,
    ray: Annotated[str, Option(help="Use Ray: a cluster's address, auto, or local.")] = "",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dry_run: Annotated[bool, Option("--dry-run", help="Only report what would be made.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train and measure every row of Table 1 over several seeds; writes Tables 1 to 3.

    Resumes where it stopped, row by row.
    """
    from training.evaluation.ablation.cells import read_cell
    from training.evaluation.ablation.config import load_ablation
    from training.evaluation.ablation.page import write_report
    from training.evaluation.ablation.run import cells_of, run_cells
    from training.evaluation.metrics.weights import default_weights

    file = load_ablation(config)
    if profile not in file.profiles:
        there = ", ".join(file.profiles)
        raise AttuneError(f"--profile {profile}: {config} has {there}")
    chosen = file.profiles[profile]
    more = chosen.overrides + tuple(overrides or ())
    known = {row.name for row in file.rows_of(chosen)}
    if unknown := [name for name in rows or () if name not in known]:
        raise AttuneError(f"--row {unknown[0]}: this profile has {', '.join(sorted(known))}")
    chosen = chosen.model_copy(update={"overrides": more, "rows": tuple(rows or chosen.rows)})
    if not ray:
        device = choose_device(device)
    elif device == "auto":  # this machine does not know the devices of a cluster's nodes
        device = "cpu"
    source = str(config.parent / chosen.recipe)
    cells = cells_of(file, chosen, source, weights or default_weights(), device, processes)
    out = Path(load_recipe(source, list(more)).run_dir)
    if dry_run:
        made = [cell.name for cell in cells if read_cell(cell) is not None]
        left = [cell.name for cell in cells if cell.name not in made]
        if as_json:
            print_json({"done": made, "to_do": left, "folder": str(out)})
        else:
            print(f"{len(made)} cells are done, {len(left)} are to be made into {out}:")
            print(*left, sep="\n")
        return
    at_once = jobs or (1 if device != "cpu" or processes > 1 else usable_cores())

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    tell(f"{len(cells)} cells, {'on Ray' if ray else f'{at_once} at a time'}, into {out}")
    outcomes = run_cells(cells, at_once, ray or None, tell)
    documents = [found for found in outcomes.values() if not isinstance(found, str)]
    failed = {name: why for name, why in outcomes.items() if isinstance(why, str)}
    if not documents:
        raise AttuneError(f"every row failed: {next(iter(failed.values()))}")
    written = write_report(out, file, chosen, documents, failed)
    if as_json:
        print_json(written)
    else:
        print((out / "tables.md").read_text())
        print(out / "ablation.html")
    if failed:
        raise AttuneError(
            f"{len(failed)} of {len(cells)} cells failed ({', '.join(failed)}); the same command "
            "makes only these again"
        )
