"""How a command ends: one line on a mistake, a hint on Ctrl-C, the right status."""

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from common.cli import choose_device
from common.errors import AttuneError

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

class Alone(AttuneError):
    every_rank_reports = True

@app.command()
def alone(): raise Alone("only here")

@app.command()
def full():
    import torch
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 80 GiB")

@app.command()
def defect(): raise ValueError("ours")

@app.command()
def interrupted(): os.kill(os.getpid(), signal.SIGINT); time.sleep(5)

@app.command()
def status(): raise typer.Exit(3)

run_app(app)
"""


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["good", "--n", "2"], 0, "fine 2"),
        (["mistake"], 1, "error: first line second line"),
        (["defect"], 1, "Traceback"),
        (
            ["full"],
            1,
            "error: CUDA out of memory; use a smaller lm.micro_batch or samp",
        ),
        (["interrupted"], 130, "rerun the same command"),
        (["status"], 3, ""),
        (["good", "--n", "x"], 2, "valid int"),
        (["nothing"], 2, "No such command"),
        (["--help"], 0, "mistake"),
    ],
)
def test_every_ending_has_its_status_and_its_words(arguments: list[str], status: int, said: str):
    done = run(*arguments)
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    if arguments[0] != "defect":
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "rank", "said"),
    [
        ("mistake", "0", "error: first line second line\n"),
        ("mistake", "3", ""),
        ("alone", "0", "error: only here\n"),
        ("alone", "3", "error (process 3): only here\n"),
    ],
)
def test_of_several_processes_all_mistakes_are_reported_and_most_once(
    command: str, rank: str, said: str
):
    done = run(command, RANK=rank)
    assert (done.returncode, done.stderr) == (1, said)


def test_a_device_is_chosen_or_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    # A GPU that is seen and cannot be used, as one that another process fills.
    full = RuntimeError("CUDA error: out of memory")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr("torch.empty", Mock(side_effect=full))
        assert choose_device("auto") == "cpu"
        assert "out of memory); using the CPU" in capsys.readouterr().err
        patch.setattr("torch.empty", Mock())
        assert choose_device("auto") == "cuda"
    with pytest.raises(AttuneError, match="--device banana: not available here; use auto, cpu or"):
        choose_device("banana")
