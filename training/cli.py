"""`python -m training`: train, generate, evaluate, export and import."""

from __future__ import annotations

import typer

from training.commands import ablate, evaluation, generate, preference, train, transfer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train codec and language model, generate and evaluate audio.",
)
for command in (
    train.lm,
    train.codec,
    evaluation.report,
    evaluation.evaluate,
    evaluation.weights,
    ablate.ablate,
    generate.generate,
    generate.play,
):
    app.command()(command)
app.add_typer(preference.preference_app, name="preference")
app.command("export")(transfer.export_command)
app.command("import")(transfer.import_command)
