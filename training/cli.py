"""`python -m training`: train, generate, judge, export and import."""

from __future__ import annotations

import typer

from training.commands import ablate, generate, judge, preference, train, transfer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train codec and language model, generate and evaluate audio.",
)
for command in (
    train.lm,
    train.codec,
    judge.report,
    judge.evaluate,
    judge.weights,
    ablate.ablate,
    generate.generate,
    generate.play,
):
    app.command()(command)
app.add_typer(preference.preference_app, name="preference")
app.command("export")(transfer.export_command)
app.command("import")(transfer.import_command)
