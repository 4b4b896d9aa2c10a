"""Recipes: what is wrong is named with file, key and remedy; what is right arrives typed."""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from common.config import CodecRef, Section, load_recipe
from common.errors import AttuneError

GOOD = """
name: r
run_dir: runs/r
data_dir: ${run_dir}/data
sample_rate: 16000
text_encoder: {path: somewhere, max_length: 32}
lm: {steps: 3, optim: {lr: 0.1}}
"""


class Optim(Section):
    lr: float
    warmup: int = 0


class Lm(Section):
    steps: int
    optim: Optim


def _write(tmp_path: Path, text: str = GOOD) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_overrides_and_interpolation_arrive_typed(tmp_path: Path):
    recipe = load_recipe(_write(tmp_path), ["run_dir=/else", "lm.optim.lr=0.5", "seed=7"])
    assert recipe.data_dir == "/else/data" and recipe.seed == 7
    assert recipe.codec == CodecRef()
    assert recipe.section("lm", Lm) == Lm(steps=3, optim=Optim(lr=0.5))


class Folder(Section):
    kind: Literal["folder"]
    audio: Path | None = None


class Table(Section):
    kind: Literal["table"]
    rows: int = 0


class Free(Section):
    text: str = ""
    maybe: str | None = None
    number: int | None = None
    share: float | Literal["auto", "off"] = "auto"
    either: int | str = 0
    flag: bool = False
    samples: tuple[str, ...] = ()
    names: dict[str, str] = Field(default={})
    weights: dict[str, float] = Field(default={})
    parts: list[Folder | Table] = Field(default=[])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("text=song #2", "song #2"),
        ("text=no", "no"),
        ("text=null", "null"),
        ("text=2024-11-30", "2024-11-30"),
        ("text=1e3", "1e3"),
        ("text=dog: loud", "dog: loud"),
        ("text=[rain", "[rain"),
        ("text=[rain]", "[rain]"),
        ("text= a=b ", " a=b "),
        ("text=", ""),
        ("text='2024'", "2024"),  # quotes of YAML
        ("text='a' and 'b'", "'a' and 'b'"),
        ("text=${run_dir}/takes #2", "runs/r/takes #2"),
        ("text=${sample_rate}", "16000"),
        ("maybe=null", None),
        ("maybe=no", "no"),
        ("number=null", None),
        ("number=0x10", 16),
        ("number=010", 10),
        ("share=0.5", 0.5),
        ("share=010", 10.0),
        ("share=auto", "auto"),
        ("share=off", "off"),
        ("either=7", 7),
        ("either=no", "no"),
        ("either=7 #1", 7),
        ("flag=no", False),
        ('samples=["a dog barks", rain]', ("a dog barks", "rain")),
        ("samples.0=song #2", ("song #2",)),
        ("names.no=2024", {"no": "2024"}),
        ("names={a: b}", {"a": "b"}),
        ("weights.a=3", {"a": 3.0}),
        ("parts.0.audio=/x/takes #2", [Folder(kind="folder", audio=Path("/x/takes #2"))]),
        ("parts[0].audio=2024", [Folder(kind="folder", audio=Path("2024"))]),
        ("parts.0.audio=null", [Folder(kind="folder")]),
        ("parts=[{kind: table, rows: 3}]", [Table(kind="table", rows=3)]),
    ],
)  # fmt: skip
def test_the_type_of_the_field_decides_what_an_override_means(
    tmp_path: Path, override: str, value: Any
):
    text = GOOD.split("lm:")[0] + "lm: {samples: [bell], parts: [{kind: folder}]}\n"
    recipe = load_recipe(_write(tmp_path, text), [f"lm.{override}"])
    made = getattr(recipe.section("lm", Free), override.split("=")[0].split(".")[0].split("[")[0])
    assert made == value and type(made) is type(value)


def test_text_at_the_top_level_arrives_as_typed(tmp_path: Path):
    path = _write(tmp_path, GOOD + "codec: {path: '${root}/codec'}\n")
    recipe = load_recipe(path, ["root=/x/takes #2", "name=2024", "text_encoder.path=1e3", "seed=3"])
    assert (recipe.root, recipe.codec.path) == ("/x/takes #2", "/x/takes #2/codec")
    assert (recipe.name, recipe.text_encoder.path, recipe.seed) == ("2024", "1e3", 3)
    assert load_recipe(path, ["root=null"]).root == "null"
    assert load_recipe(path, ["root=${run_dir}/a", "run_dir=no"]).codec.path == "no/a/codec"


def test_the_last_override_of_a_key_counts(tmp_path: Path):
    path = _write(tmp_path, GOOD.split("lm:")[0])
    recipe = load_recipe(path, ["lm.text=no", "lm.text=2024", "lm={number: 3}"])
    assert recipe.section("lm", Free) == Free(text="2024", number=3)
    assert load_recipe(path, ["lm.text=no", "lm={text: rain}"]).section("lm", Free).text == "rain"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["smaple_rate=3"], r"unknown key 'smaple_rate'; did you mean 'sample_rate'\?"),
        (["text_encoder.max_len=3"], r"'text_encoder.max_len'; did you mean 'max_length'\?"),
        (["lm.optim.warmpu=3"], r"unknown key 'lm.optim.warmpu'; did you mean 'warmup'\?"),
        (["sample_rate=fast"], r"'sample_rate': .*found 'fast'"),
        (["lm.steps=null"], r"'lm.steps'.*found None"),
        (["nonsense"], r"override 'nonsense': expected key.sub=value"),
        (["seed=[1"], r"override 'seed=\[1'"),
        (["name.sub.deep=3"], r"'name\.sub\.deep=3'|'name': "),
        (["source_file=x"], "unknown key 'source_file'"),
        (["overrides=[]"], "unknown key 'overrides'"),
        (["root=${oc.env:ATTUNE_TEST_UNSET}"], "ATTUNE_TEST_UNSET"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, overrides: list[str], message: str):
    path = _write(tmp_path)
    with pytest.raises(AttuneError, match=message) as caught:
        load_recipe(path, overrides).section("lm", Lm)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or str(caught.value).startswith("override")


@pytest.mark.parametrize("text", ["a: [1", "- just\n- a list\n", "\x00\xff", "42", ""])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str):
    with pytest.raises(AttuneError, match=r"recipe\.yaml"):
        load_recipe(_write(tmp_path, text))


@pytest.mark.parametrize("key", ["lm.parts.1.size", "lm.parts[1].size"])
def test_an_override_reaches_into_a_list(tmp_path: Path, key: str):
    class Part(Section):
        size: int

    class Parts(Section):
        parts: list[Part]

    text = GOOD.split("lm:")[0] + "lm: {parts: [{size: 1}, {size: 2}]}\n"
    recipe = load_recipe(_write(tmp_path, text), [f"{key}=5"])
    assert [part.size for part in recipe.section("lm", Parts).parts] == [1, 5]
    with pytest.raises(AttuneError, match="override"):
        load_recipe(_write(tmp_path, text), ["lm.parts.7.size=5"])


def test_missing_file_and_missing_key(tmp_path: Path):
    with pytest.raises(AttuneError, match="no such file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(AttuneError, match="is a folder"):
        load_recipe(tmp_path)
    with pytest.raises(AttuneError, match="missing key 'text_encoder'"):
        load_recipe(_write(tmp_path, GOOD.replace("text_encoder", "# ")))


def test_the_shipped_recipes_load(monkeypatch: pytest.MonkeyPatch):
    from pipeline.config import PipelineConfig
    from training.codec.config import CodecTrainingConfig
    from training.config import LMConfig
    from training.evaluation.config import ReportConfig
    from training.sampling.config import SamplingConfig

    # ablation.yaml is rows over recipes, which its own test loads one by one.
    for path in sorted(set(Path("configs").glob("*.yaml")) - {Path("configs/ablation.yaml")}):
        recipe = load_recipe(path, ["root=/data"])
        recipe.section("lm", LMConfig)
        recipe.section("sampling", SamplingConfig)
        recipe.section("report", ReportConfig)
        if recipe.pipeline:
            recipe.section("pipeline", PipelineConfig)
        if recipe.codec_training:
            recipe.section("codec_training", CodecTrainingConfig)
