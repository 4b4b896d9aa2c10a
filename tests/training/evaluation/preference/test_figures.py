"""The report: figures that follow from the answers by hand, and texts that nothing executes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from html_tags import Tags
from tiny_runs import run_command
from two_models import make_study

from common.errors import AttuneError
from training.evaluation.preference.answers import Answers
from training.evaluation.preference.figures import _by_prompt, harmless, table_4
from training.evaluation.preference.page import write_report
from training.evaluation.preference.study import Model, Side, Study

PAIRS, RATERS = 5, 4
FOR_A = (4, 3, 2, 1, 0)
"""Of four raters, by pair."""
EVIL = '<script>alert(1)</script><img src="http://evil.example/x">'


def _answer(
    answers: Answers, study: Study, rater: int, pair: int, model: Model, comment: str = ""
) -> None:
    showing = next(s for s in study.raters[rater].showings if s.pair == pair)
    sides: tuple[Side, ...] = ("left", "right")
    side = next(side for side in sides if showing.model(side) == model)
    answers.add(rater, pair, side, comment)


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Study]:
    """Finished: rater r prefers A for a pair if r is below `FOR_A`."""
    folder, study = make_study(tmp_path, PAIRS, RATERS)
    answers = Answers(folder, study)
    comments = {(0, 0): EVIL, (1, 1): '=HYPERLINK("http://evil.example")'}
    for rater in range(RATERS):
        for pair in range(PAIRS):
            model: Model = "a" if rater < FOR_A[pair] else "b"
            _answer(answers, study, rater, pair, model, comments.get((rater, pair), ""))
    answers.close()
    return folder, study


def test_figures_follow_from_the_answers(place: tuple[Path, Study]) -> None:
    folder, study = place
    found = write_report(folder)
    assert found == json.loads((folder / "report" / "report.json").read_text())
    assert (found["answers"], found["answers_of_a_finished_study"]) == (20, 20)
    assert (found["preference"]["a"]["hits"], found["preference"]["b"]["hits"]) == (10, 10)
    assert found["preference"]["a"]["share"] == 0.5 and found["preference"]["a"]["p_value"] == 1
    assert [found["majorities"][key] for key in ("a", "b", "tied")] == [2, 2, 1]
    # Pairs of raters that agree, of six: 6, 3, 2, 3, 6; chance is one half.
    assert found["agreement"]["observed"] == pytest.approx(20 / 30)
    assert found["agreement"]["value"] == pytest.approx((20 / 30 - 0.5) / 0.5)
    assert [(row["a"], row["b"]) for row in found["prompts"]] == [
        (4, 0), (3, 1), (2, 2), (1, 3), (0, 4)
    ]  # fmt: skip
    assert [row["prompt"] for row in found["prompts"]] == [pair.prompt for pair in study.pairs]
    assert [(row["a"], row["b"]) for row in found["raters"]] == [(4, 1), (3, 2), (2, 3), (1, 4)]
    left = sum(
        (model == "a") == showing.a_left
        for rater, about in enumerate(study.raters)
        for showing in about.showings
        for model in ["a" if rater < FOR_A[showing.pair] else "b"]
    )
    assert found["sides"]["left_chosen"]["hits"] == left
    assert found["sides"]["left_chosen"]["hits"] == sum(row["left"] for row in found["raters"])
    assert found["sides"]["a_was_left"] == 10


def test_pairs_of_one_prompt_have_one_vote(place: tuple[Path, Study]) -> None:
    _, study = place
    prompts = ("dog", "rain", "dog", "bell", "rain")
    pairs = [
        pair.model_copy(update={"prompt": text})
        for pair, text in zip(study.pairs, prompts, strict=True)
    ]
    counts = np.array([[4, 0], [1, 3], [3, 1], [2, 2], [2, 2]])
    found = _by_prompt(study.model_copy(update={"pairs": pairs}), counts)
    np.testing.assert_array_equal(found, [[7, 1], [3, 5], [2, 2]])


def test_every_answer_is_a_row_and_no_cell_a_formula(place: tuple[Path, Study]) -> None:
    folder, study = place
    write_report(folder)
    with (folder / "report" / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 == len({(row["rater"], row["prompt"]) for row in rows})
    names = {"a": study.a.name, "b": study.b.name}
    for row in rows:
        rater = int(row["rater"]) - 1
        showing = study.raters[rater].showings[int(row["position"]) - 1]
        assert study.pairs[showing.pair].prompt == row["prompt"] and row["seed"] == "0"
        assert row["left"] == names["a" if showing.a_left else "b"] != row["right"]
        assert row["preferred"] == names["a" if rater < FOR_A[showing.pair] else "b"]
        assert row["preferred"] == row[row["choice"]]
    comments = {row["comment"] for row in rows}
    assert comments == {"", EVIL, '\'=HYPERLINK("http://evil.example")'}


def test_cells_that_spreadsheets_would_run() -> None:
    for cell in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\n=1"):
        assert harmless(cell) == f"'{cell}"
    for cell in ("a=1", "", "1 - 2", 7, None):
        assert harmless(cell) == cell


def test_the_page_is_whole_and_comments_are_text(place: tuple[Path, Study]) -> None:
    folder, study = place
    write_report(folder)
    page = Tags((folder / "report" / "report.html").read_text())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("audio") == 2 * PAIRS
    assert "script" not in tags and EVIL in page.text
    assert all(source.startswith("data:") for source in page.sources())
    policy = next(about["content"] for tag, about in page.tags if "http-equiv" in about)
    assert policy and "default-src 'none'" in policy
    assert all(about.get("alt") for tag, about in page.tags if tag == "img")
    for words in ("Fleiss' kappa 0.33", "50.0% [27.2%, 72.8%]", "10 of 20 answers", "p = 1"):
        assert words in page.text, words
    tokens = [rater.token for rater in study.raters]
    written = [path.read_bytes() for path in (folder / "report").iterdir()]
    assert not any(token.encode() in content for token in tokens for content in written)
    for name in ("preference.png", "prompts.png"):
        image = matplotlib.image.imread(folder / "report" / name)
        assert image.shape[0] > 300 and image.std() > 0.05


def test_the_verdict_is_that_of_prompts(tmp_path: Path) -> None:
    """Raters who go together: all four for A on four prompts, for B on one."""
    folder, study = make_study(tmp_path, PAIRS, RATERS)
    answers = Answers(folder, study)
    for rater in range(RATERS):
        for pair in range(PAIRS):
            _answer(answers, study, rater, pair, "b" if pair == 0 else "a")
    answers.close()
    found = write_report(folder)
    assert found["preference"]["a"]["p_value"] < 0.05 < found["majorities"]["p_value"]
    by_prompt = found["by_prompt"]
    assert by_prompt["a"]["share"] == 0.8 and by_prompt["a"]["prompts"] == PAIRS
    for side, other in (("a", "b"), ("b", "a")):
        low, high = by_prompt[side]["low"], by_prompt[other]["high"]
        assert low == pytest.approx(1 - high, abs=0.02)
        assert low < found["preference"][side]["low"]
    page = Tags((folder / "report" / "report.html").read_text())
    assert "That is no more than noise." in page.text and "That is more than" not in page.text
    assert "one vote per prompt, sign test" in page.text and "bootstrap over prompts" in page.text
    assert f"80.0% [{by_prompt['a']['low']:.1%}, {by_prompt['a']['high']:.1%}]" in page.text
    assert "80.0% [56.3%, 94.3%]" in page.text  # were answers independent


def test_table_4_beside_the_papers_figures(place: tuple[Path, Study]) -> None:
    folder, _ = place
    told = run_command("preference", "report", folder).stdout
    table = (
        "| listening test | without rr | with rr |\n|---|---:|---:|\n"
        "| music, Shi et al. | 48% | 52% |\n| sound effects, Shi et al. | 33% | 67% |\n"
        "| this study, 20 answers | lm-south: 50% | lm-north: 50% |\n"
    )
    assert table in told and "Fleiss' kappa 0.333" in told and "report.html" in told
    found = run_command("preference", "report", folder, "--json").stdout
    assert json.loads(found)["table_4"] + "\n" == table
    figures = json.loads(found) | {"a": "a|b\nc"}
    assert figures["table_4"].count("\n") == table_4(figures).count("\n")
    assert "| a\\|b c: 50% |" in table_4(figures)


def test_a_study_as_it_stands(tmp_path: Path) -> None:
    folder, study = make_study(tmp_path, PAIRS, RATERS)
    with pytest.raises(AttuneError, match="no answers yet"):
        write_report(folder)
    answers = Answers(folder, study)
    _answer(answers, study, 2, 3, "b")
    found = write_report(folder)
    assert found["preference"]["b"]["share"] == 1 and found["answers"] == 1
    assert found["agreement"]["value"] is None
    page = (folder / "report" / "report.html").read_text()
    assert "kappa is undefined: no prompt has two answers" in page
    assert found["by_prompt"]["b"]["low"] is None and "There is no interval" in page
    _answer(answers, study, 1, 3, "b")
    assert write_report(folder)["agreement"]["why"] == "all answers are the same"
    told = run_command("preference", "report", folder).stdout
    assert "kappa undefined, all answers are the same" in told


def test_answers_that_the_plan_does_not_have(place: tuple[Path, Study]) -> None:
    folder, study = place
    for rater, pair in ((RATERS, 0), (0, PAIRS)):
        answers = Answers(folder, study)
        answers.add(rater, pair, "left", "")
        with pytest.raises(AttuneError, match=f"rater {rater + 1} answered pair {pair}"):
            write_report(folder)
        answers._database.execute("DELETE FROM answers WHERE rater = 4 OR pair = 5")
        answers.close()
