"""Pages: sounds at any rate, and templates that run nothing and forget nothing."""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
import pytest
import soundfile

from common.page import clip, render, sound


@pytest.mark.parametrize(
    ("rate", "played"), [(16_000, 16_000), (4000, 8000), (22_255, 22_050), (96_000, 48_000)]
)
def test_every_rate_can_be_played(rate: int, played: int):
    wave = np.sin(np.arange(rate) * 2 * np.pi * 200 / rate).astype(np.float32) / 2
    content = base64.b64decode(sound(wave, rate).removeprefix("data:audio/mpeg;base64,"))
    read, found = soundfile.read(io.BytesIO(content))
    assert found == played and len(read) == pytest.approx(played, rel=0.2)
    assert np.abs(read).max() == pytest.approx(0.5, abs=0.1)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with one template that shows everything that pages share."""
    folder = tmp_path / "shows_all"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "page.html").write_text(
        '{% extends "base.html" %}'
        '{% from "parts.html" import bars, clip, key_figures, legend, plot, table %}'
        "{% block title %}{{ text }}{% endblock %}{% block lead %}{{ text }}{% endblock %}"
        "{% block sections %}{{ key_figures({text: text}) }}{{ bars({text: 1}, text) }}"
        "{{ legend([text]) }}{{ plot(text, text) }}{{ table((text, 'n'), [(text, 12345)]) }}"
        "{{ table(('',), [(heard,)]) }}{% endblock %}{% block footer %}{{ text }}{% endblock %}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "shows_all"


def test_no_text_becomes_html(package: str):
    text = "<script>alert('\"')</script> & <b>"
    heard = clip(np.zeros(1600, np.float32), 16_000, text, "right")
    html = render(package, "page.html", text=text, heard=heard)
    assert "<script" not in html and "<b>&lt;script" in html
    assert html.count("alert(&#39;&#34;&#39;)") == 14
    assert '<td class="number">12,345</td>' in html and "default-src 'none'" in html


def test_a_forgotten_fact_is_an_error(package: str):
    with pytest.raises(jinja2.UndefinedError, match="heard"):
        render(package, "page.html", text="")
