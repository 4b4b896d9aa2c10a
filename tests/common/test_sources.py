"""Audio inside archives: addresses, and the bytes they lead to."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from common.audio import AudioError
from common.sources import Member, parse, read_bytes
from common.storage import StorageError, open_store
from common.uris import on_disk, opened

SOUND = bytes(range(256)) * 40


def zip_of(path: Path, names: list[str], data: bytes = SOUND, **how: int) -> list[Member]:
    with zipfile.ZipFile(path, "w", **how) as archive:  # type: ignore[arg-type]
        for name in names:
            archive.writestr(name, data)
        return members_of(path, archive)


def members_of(path: Path, archive: zipfile.ZipFile) -> list[Member]:
    return [
        Member(info.header_offset, info.compress_size, "zip", str(path), info.filename)
        for info in archive.infolist()
    ]


def tar_of(path: Path, names: list[str], form: int = tarfile.PAX_FORMAT) -> list[Member]:
    with tarfile.open(path, "w", format=form) as tar:
        for name in names:
            header = tarfile.TarInfo(name)
            header.size = len(SOUND)
            tar.addfile(header, io.BytesIO(SOUND))
    with tarfile.open(path) as tar:
        return [
            Member(i.offset, i.offset_data + i.size - i.offset, "tar", str(path), i.name)
            for i in tar
        ]


@pytest.mark.parametrize("name", ["a.wav", "a!/b: c.wav", "x.zip!/ä\n.wav", " .wav"])
def test_an_address_is_read_back_as_it_was_written(name: str) -> None:
    for archive, kind in (("/d!/a.tar", "tar"), ("s3://b/member:1.ZIP", "zip")):
        member = Member(3, 4, kind, archive, name)  # type: ignore[arg-type]
        assert parse(str(member)) == member


@pytest.mark.parametrize("uri", ["/member:1:2:zip:/a.zip!/b", "s3://b/a.zip!/b", "/a/b.wav", ""])
def test_paths_and_uris_are_no_addresses(uri: str) -> None:
    assert parse(uri) is None


@pytest.mark.parametrize("how", [{}, {"compression": zipfile.ZIP_DEFLATED}])
def test_members_of_a_zip(tmp_path: Path, how: dict[str, int]) -> None:
    path = tmp_path / "a.zip"
    for member in zip_of(path, ["x.wav", "ä/狗.wav", "é" * 200], **how):
        assert read_bytes(member) == SOUND


def test_a_zip_written_to_a_pipe_and_one_with_padding(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *where: int) -> int:
            raise io.UnsupportedOperation

        tell = seek

    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        pipe = Pipe()
        with zipfile.ZipFile(pipe, "w", method) as archive:
            archive.writestr("x.wav", SOUND)
        path = tmp_path / "pipe.zip"
        path.write_bytes(pipe.getvalue())
        with zipfile.ZipFile(path) as archive:
            assert archive.infolist()[0].flag_bits & 8  # its CRC comes after the content
            (member,) = members_of(path, archive)
        assert read_bytes(member) == SOUND
    with zipfile.ZipFile(tmp_path / "padded.zip", "w") as archive:
        info = zipfile.ZipInfo("x.wav")
        info.extra = b"\xff\xff" + (5000).to_bytes(2, "little") + bytes(5000)
        archive.writestr(info, SOUND)
        (member,) = members_of(tmp_path / "padded.zip", archive)
    assert read_bytes(member) == SOUND


def test_a_zip_over_4_gib(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with path.open("wb") as file:
        file.seek(5 << 30)  # a sparse file
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.wav", SOUND)
    with zipfile.ZipFile(path) as archive:
        (member,) = members_of(path, archive)
    assert member.offset == 5 << 30
    assert read_bytes(member) == SOUND


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_of_a_tar(tmp_path: Path, form: int) -> None:
    for member in tar_of(tmp_path / "a.tar", ["x.wav", "./狗.wav", "é" * 200], form):
        assert read_bytes(member) == SOUND


def test_a_damaged_member_is_its_own_fault(tmp_path: Path) -> None:
    for how, offset in (({}, 60), ({"compression": zipfile.ZIP_DEFLATED}, 60)):
        path = tmp_path / "a.zip"
        first, second = zip_of(path, ["x.wav", "y.wav"], **how)
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(AudioError, match=r"unreadable: .*/a\.zip!/x\.wav: damaged"):
            read_bytes(first)
        assert read_bytes(second) == SOUND


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    (bomb,) = zip_of(tmp_path / "a.zip", ["x.wav"], bytes(65 << 20), compression=8)
    with pytest.raises(AudioError, match="bytes expand to over"):
        read_bytes(bomb)


def test_another_archive_in_its_place_is_noticed(tmp_path: Path) -> None:
    for make, path in ((zip_of, tmp_path / "a.zip"), (tar_of, tmp_path / "a.tar")):
        members = make(path, ["x.wav", "y.wav"])
        make(path, ["y.wav", "x.wav"])
        with pytest.raises(StorageError, match=r"x\.wav is not where it was"):
            read_bytes(members[0])
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(StorageError, match=r"y\.wav is not where it was"):
            read_bytes(members[1])
        path.unlink()
        with pytest.raises(StorageError, match="no such file; it was there when the plan was made"):
            read_bytes(members[0])


def test_members_of_a_bucket_are_read_by_one_range(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"{s3_bucket}/sources")
    members = [
        *tar_of(tmp_path / "a.tar", ["x.wav", "y.wav"]),
        *zip_of(tmp_path / "a.zip", ["x.wav", "y.wav"]),
    ]
    asked: list[int] = []
    read_range = type(store).read_range

    def counted(self: object, key: str, start: int, length: int) -> bytes:
        asked.append(length)
        return read_range(self, key, start, length)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store), "read_range", counted)
    for member in members:
        name = f"a.{member.format}"
        store.write(name, tmp_path / name)
        there = Member(
            member.offset, member.length, member.format, f"{store.uri}/{name}", member.name
        )
        with opened(str(there)) as (file, size):
            assert file.read() == SOUND and size == len(SOUND)
        with on_disk(str(there)) as path:
            assert path.read_bytes() == SOUND
    assert len(asked) == 2 * len(members)
    assert max(asked) < len(SOUND) + 2000
    store.delete("a.tar")
    with pytest.raises(StorageError, match=r"archive s3://.*a\.tar: no such file"):
        read_bytes(Member(0, 1, "tar", f"{store.uri}/a.tar", "x.wav"))
