"""Audio in zip and tar archives is found and read without unpacking."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from calls import freeze
from in_process import encode_all
from packing import pack, pack_names
from reading import catalog, read, records, refusals, touch, write

from common.config import load_recipe
from common.errors import AttuneError
from common.prompts import PromptForm
from common.shards import ShardDataset
from common.sources import parse, read_bytes
from common.storage import StorageError, open_store
from pipeline.catalogs import archives
from pipeline.catalogs.audio_root import ArchiveRoot
from pipeline.catalogs.base import Refusal
from pipeline.encode.finalize import finalize
from pipeline.inspect.left_out import left_out
from pipeline.plan.decide import build_plan, decide
from pipeline.text.captions import TextRules

RULES = TextRules(PromptForm("plain"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTUNE_CACHE", str(tmp_path / "cache"))


def content(address: str | None) -> str:
    source = parse(address or "")
    assert source is not None, address
    return read_bytes(source).decode()


@pytest.fixture(params=["x.zip", "x.tar", "s3 x.zip", "s3 x.tar"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """Packs files into an archive, on a disk or in a bucket; returns its path or URI."""

    def make(*names: str) -> str:
        where, _, name = request.param.rpartition(" ")
        path = pack_names(tmp_path / name, *names)
        if not where:
            return str(path)
        store = open_store(f"{request.getfixturevalue('s3_bucket')}/{name}")
        store.write(name, path)
        return f"{store.uri}/{name}"

    return make


def test_names_and_stems_in_an_archive(place: Callable[..., str]) -> None:
    where = place("top/a.wav", "top/sub/b.flac", "./top/sub/b.wav", "top/Ä.wav", "top/list.csv")
    root = ArchiveRoot(where)
    for name, found in {
        "top/a.wav": "top/a.wav", "a.wav": "top/a.wav", "x/a.wav": "top/a.wav",
        "sub/b.wav": "./top/sub/b.wav", "./sub//b.wav": "./top/sub/b.wav",
        "list.csv": "top/list.csv",
    }.items():  # fmt: skip
        assert content(root.by_name(name)) == found
        assert root.real_path(name) == f"{where}!/{os.path.normpath(found)}"
    assert root.by_name("b.wav") is root.by_name("y/a.wav") is root.by_name("") is None
    assert content(root.by_name(root.spelling("A\u0308.wav"))) == "top/Ä.wav"
    assert root.similar("A.wav") == ["top/a.wav"]
    # If two files have one stem, the first in order counts, as in a folder.
    assert content(root.by_stem("none", "b")) == "top/sub/b.flac"
    found = root.by_stems(pa.array(["none", "a", "b"]), pa.array(["a", "b", "c"]))
    paths = found.paths.to_pylist()
    assert list(map(content, paths)) == ["top/a.wav", "top/a.wav", "top/sub/b.flac"]
    assert found.real.to_pylist() == [root.real_path(path) for path in paths]
    with pytest.raises(ValueError, match="leads outside"):
        root.by_name("../a.wav")


def test_several_archives_are_one_place(tmp_path: Path) -> None:
    pack_names(tmp_path / "train.zip", "train/1.wav", "train/2.wav")
    pack_names(tmp_path / "test.tar", "1.wav", "3.wav")
    root = ArchiveRoot(tmp_path / "t*")
    assert content(root.by_name("1.wav")) == "1.wav"  # as it is in an archive
    assert content(root.by_name("train/1.wav")) == "train/1.wav"
    assert content(root.by_name("test/1.wav")) == "1.wav"
    assert content(root.by_stem("2")) == "train/2.wav"
    assert root.by_stem("1") is None
    pack_names(tmp_path / "third.zip", "3.wav")
    root = ArchiveRoot(tmp_path / "t*.*")
    assert root.by_name("3.wav") is None
    assert root.similar("3.wav") == ["test.tar!/3.wav", "third.zip!/3.wav"]


def test_what_an_archive_must_not_hold(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("../up.wav", "/abs.wav", "__MACOSX/._x.wav", "._x.wav", "fine.wav", "fifo"):
            member = tarfile.TarInfo(name)
            member.type = tarfile.FIFOTYPE if name == "fifo" else tarfile.REGTYPE
            tar.addfile(member)
        for kind, name in ((tarfile.SYMTYPE, "soft.wav"), (tarfile.LNKTYPE, "hard.wav")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "fine.wav"
            tar.addfile(member)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("soft.wav")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("../up.wav", b"")
        archive.writestr("fine.wav", b"")
    rows = ["soft.wav", "../up.wav", "fine.wav", "hard.wav", "/abs.wav", "fifo"]
    write(tmp_path / "metadata.csv", "file_name,text", *(f"{name},a ping" for name in rows))
    for name, n in (("a.tar", 6), ("a.zip", 3)):
        write(tmp_path / "metadata.csv", "file_name,text", *(f"{r},a ping" for r in rows[:n]))
        outcomes = read(dataset="audiofolder", root=tmp_path, audio=tmp_path / name)
        assert [r.native_id for r in records(outcomes)] == ["fine.wav"]
        assert {o.reason for o in outcomes if isinstance(o, Refusal)} == {"outside_root"}
        first = next(o for o in outcomes if isinstance(o, Refusal))
        assert first.detail == f"'soft.wav' in {tmp_path / name} is a link"
    files = ArchiveRoot(tmp_path / "a.tar").audio_files(deep=True)
    assert list(files) == [f"{tmp_path}/a.tar!/fine.wav"]


def test_archives_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    good = {
        kind: pack_names(tmp_path / f"good.{kind}", "a.wav", "b.wav") for kind in ("zip", "tar")
    }
    zipped, tarred = (good[kind].read_bytes() for kind in ("zip", "tar"))
    encrypted, lzma = bytearray(zipped), bytearray(zipped)
    encrypted[zipped.index(b"PK\1\2") + 8] |= 1
    lzma[zipped.index(b"PK\1\2") + 10] = 14
    part = bytearray(zipped)
    part[zipped.index(b"PK\5\6") + 4] = 3
    broken = bytearray(tarred)
    broken[1024 + 150] ^= 1  # in the checksum of the second header
    for name, data, message in (
        ("cut.zip", zipped[:-30], "not a whole zip: .*; it may be cut: fetch it again"),
        ("encrypted.zip", encrypted, r"a\.wav is encrypted; unpack it \(unzip /"),
        ("lzma.zip", lzma, "compressed by method 14; only stored and deflated"),
        ("part.zip", part, r"one part of several; join them: zip -s 0 /.* --out /.*\.whole\.zip"),
        ("cut.tar", tarred[:1600], "not a whole tar: unexpected end of data; fetch it again"),
        ("short.tar", tarred[:2048], "not a whole tar: it has no end mark"),
        ("broken.tar", broken, "not a whole tar: it has no end mark"),
        ("page.tar", b"<html>" * 200, "not a whole tar: "),
        ("gz.tar", gzip.compress(tarred), r"compressed as a whole.*\(gzip -dk /.*/gz\.tar\)"),
        ("a.tar.gz", gzip.compress(tarred), r"\(gzip -dk /.*/a\.tar\.gz\) and name the \.tar"),
        ("none.zip", b"", "not a whole zip"),
        ("none.tar", b"", "not a whole tar"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(AttuneError, match=message) as found:
            ArchiveRoot(tmp_path / name)
        assert str(tmp_path / name) in str(found.value)
        assert "\n" not in str(found.value)
    with pytest.raises(AttuneError, match=r"/gone-\*\.zip: no such archive"):
        ArchiveRoot(tmp_path / "gone-*.zip")


def test_only_directories_and_headers_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal asked
            asked += len(buffer)
            return super().readinto(buffer)

    monkeypatch.setattr(
        archives,
        "open",
        lambda name, mode, buffering: io.BufferedReader(Counting(name), buffering),
        raising=False,
    )
    for name in ("a.zip", "a.tar"):
        pack(tmp_path / name, {f"{i}.wav": bytes(100_000) for i in range(50)})
        asked = 0
        assert len(list(ArchiveRoot(tmp_path / name).audio_files(deep=True))) == 50
        assert 0 < asked < 150_000  # of 5 MB
        ArchiveRoot(tmp_path / name)  # an unchanged archive is not read again
        assert asked < 150_000


def test_the_headers_of_a_tar_in_a_bucket_are_read_once(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"{s3_bucket}/index")
    store.write("x.tar", pack_names(tmp_path / "x.tar", "top/a.wav", "./top/b.wav", "../c.wav"))
    asked = []
    read_range = type(store).read_range
    monkeypatch.setattr(
        type(store), "read_range", lambda *args: asked.append(args) or read_range(*args)
    )
    roots = []
    for kept in (False, True, False):
        if not kept:  # no index, or a damaged one
            for file in (tmp_path / "cache/archives").glob("*"):
                file.write_bytes(b"PAR1")
        archives._listing.cache_clear()
        asked.clear()
        roots.append(ArchiveRoot(f"{store.uri}/*.tar"))
        assert bool(asked) is not kept
    assert roots[0]._listings == roots[1]._listings == roots[2]._listings
    assert content(roots[1].by_name("b.wav")) == "./top/b.wav"
    store.write("x.tar", pack_names(tmp_path / "x.tar", "top/other.wav"))
    files = ArchiveRoot(f"{store.uri}/x.tar").audio_files(deep=True)
    assert list(files) == [f"{store.uri}/x.tar!/top/other.wav"]


def test_audiofolder_reads_the_archive_beside_its_list(tmp_path: Path) -> None:
    names = [f"audio/z{i}.wav" for i in range(3)]
    write(tmp_path / "metadata.csv", "file_name,text", *(f"{name},a beep" for name in names))
    pack_names(tmp_path / "audio.zip", *names, "audio/more.wav")
    made = catalog(dataset="audiofolder", root=tmp_path)
    found = records(list(made.read()))
    assert [content(record.audio_uri) for record in found] == names
    assert [record.native_id for record in found] == names
    rows = decide([made], rules=RULES).rows
    assert left_out([made], rows)["unlisted_files"] == {
        str(tmp_path): {"files": 1, "examples": [f"{tmp_path}/audio.zip!/audio/more.wav"]}
    }
    touch(tmp_path, "audio/z0.wav")  # files that are there count, and only they
    outcomes = read(dataset="audiofolder", root=tmp_path)
    assert [record.audio_uri for record in records(outcomes)] == [str(tmp_path / names[0])]
    assert refusals(outcomes) == [("3", "missing_audio"), ("4", "missing_audio")]
    outcomes = read(dataset="audiofolder", root=tmp_path, audio=tmp_path / "audio.zip")
    assert len(records(outcomes)) == 3


def test_archives_without_a_list_are_one_line(tmp_path: Path) -> None:
    pack_names(tmp_path / "0.tar", "0.wav", "0.txt")
    with pytest.raises(AttuneError, match=r"dataset: webdataset and audio: /.*/\*\.tar$"):
        read(dataset="audiofolder", root=tmp_path)


def test_stems_are_looked_up_in_archives(tmp_path: Path) -> None:
    root = "FSD50K.dev_audio"
    pack_names(tmp_path / f"{root}.zip", f"{root}/64760.wav")
    clips = write(tmp_path / "dev.csv", "fname,labels,mids,split", "64760,Bark,/m/05tny_,train")
    vocabulary = write(tmp_path / "vocabulary.csv", "0,Bark,/m/05tny_")
    common = {"dataset": "fsd50k", "clips": clips, "vocabulary": vocabulary}
    (record,) = records(read(**common, audio=tmp_path / "*.zip"))
    assert content(record.audio_uri) == "FSD50K.dev_audio/64760.wav"
    # A list that needs no audio means the same file.
    (blind,) = records(list(catalog(**common, audio=tmp_path / "*.zip").without_audio().read()))
    assert blind.real_uri == record.real_uri == f"{tmp_path}/{root}.zip!/{root}/64760.wav"
    found = ArchiveRoot(tmp_path / "*.zip", is_blind=True).by_stems(
        pa.array(["none", "-"]), pa.array(["64760", "-"])
    )
    assert found.real.to_pylist() == [record.real_uri, f"{tmp_path}/*.zip!/-"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_hold_out_list_names_files_of_an_archive(tmp_path: Path, is_there: bool) -> None:
    archive = pack_names(tmp_path / "audio.tar", "audio/f0.wav", "audio/f1.wav")
    rows = [json.dumps({"path": f"audio/f{i}.wav", "description": f"pluck {i}"}) for i in range(2)]
    train = write(tmp_path / "train.jsonl", *rows)
    test = write(tmp_path / "test.jsonl", rows[0])
    held = catalog(dataset="music", name="h", catalog=test, audio=archive, role="hold_out")
    made = catalog(dataset="music", catalog=train, audio=archive)
    if not is_there:
        archive.unlink()
        made = made.without_audio()
    table = decide([made, held], rules=RULES).rows.to_pylist()
    assert [row["reason"] for row in table] == ["leakage", None, "held_out"]
    assert "member:" not in table[0]["detail"]


def test_folder_zip_and_tar_become_the_same_codes(
    small_corpus: Path, recipe_text: Callable[..., str], tmp_path: Path
) -> None:
    names = ["tone_00.wav", "tone_07.wav", "tone_11.wav", "page.wav"]
    files = {f"audio/{name}": (small_corpus / name).read_bytes() for name in names}
    rows = [f"{name},a tone of {name[:7]}" for name in files]
    found = {}
    for kind in ("folder", "stored.zip", "deflated.zip", "tar"):
        root = tmp_path / kind
        root.mkdir()
        write(root / "metadata.csv", "file_name,text", *rows)
        if kind == "folder":
            for name, data in files.items():
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_bytes(data)
        else:
            pack(root / f"x.{kind[-3:]}", files, deflate=kind.startswith("deflated"))
        path = tmp_path / f"{kind}.yaml"
        data_dir = tmp_path / f"{kind}-data"
        path.write_text(recipe_text(data_dir, f"dataset: audiofolder, root: {root}"))
        recipe = load_recipe(path)
        frozen, _ = freeze(recipe)
        encode_all(frozen, recipe)
        finalize(frozen, recipe.name, recipe.codec.path)
        data_set = ShardDataset.open(data_dir)
        samples = [data_set.read(i) for i in range(len(data_set))]
        found[kind] = {
            s.record["native_id"]: (s.record["source_sha256"], s.codes.tolist()) for s in samples
        }
    assert found["folder"].keys() == files.keys() - {"audio/page.wav"}
    assert found["stored.zip"] == found["deflated.zip"] == found["tar"] == found["folder"]


def test_an_archive_that_is_gone_fails_the_shard_and_refuses_no_clip(
    small_corpus: Path, recipe_text: Callable[..., str], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    pack(root / "x.tar", {"a.wav": (small_corpus / "tone_00.wav").read_bytes()})
    write(root / "metadata.csv", "file_name,text", "a.wav,a tone")
    text = recipe_text(tmp_path / "data", f"dataset: audiofolder, root: {root}")
    path = write(tmp_path / "r.yaml", text)
    recipe = load_recipe(path)
    frozen, _ = freeze(recipe)
    (root / "x.tar").unlink()
    with pytest.raises(StorageError, match=r"archive /.*/x\.tar: no such file; .*is it mounted"):
        encode_all(frozen, recipe)


def test_an_archive_in_a_list_of_several_names_only_its_own(tmp_path: Path) -> None:
    pack_names(tmp_path / "b.tar", "1.wav")
    write(tmp_path / "m.jsonl", '{"path": "1.wav", "description": "a hum"}')
    music = catalog(dataset="music", catalog=tmp_path / "m.jsonl", audio=tmp_path / "*.tar")
    plan = build_plan([music], rules=RULES, clips_per_shard=4, seed=0).plan
    assert plan["audio_uri"].to_pylist() == [f"member:0:517:tar:{tmp_path}/b.tar!/1.wav"]
