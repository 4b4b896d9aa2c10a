"""How a command line ends: one line on a mistake, a word on Ctrl-C, the right status."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, time
import typer
from common.cli import run_app
from common.errors import AttuneError

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

@app.command()
def good(n: int = 0): print("fine", n)

@app.command()
def mistake(): raise AttuneError("first line\\nsecond line")

@app.command()
def defect(): raise ValueError("ours")

@app.command()
def interrupted(): os.kill(os.getpid(), signal.SIGINT); time.sleep(5)

@app.command()
def status(): raise typer.Exit(3)

run_app(app)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["good", "--n", "2"], 0, "fine 2"),
        (["mistake"], 1, "error: first line second line"),
        (["defect"], 1, "Traceback"),
        (["interrupted"], 130, "rerun the same command"),
        (["status"], 3, ""),
        (["good", "--n", "x"], 2, "valid int"),
        (["nothing"], 2, "No such command"),
        (["--help"], 0, "mistake"),
    ],
)
def test_every_ending_has_its_status_and_its_words(arguments: list[str], status: int, said: str):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    if arguments[0] != "defect":
        assert "Traceback" not in done.stderr
