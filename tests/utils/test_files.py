from pathlib import Path

import pytest

from terrafm_tg.utils.files import atomic_write, files_below, fingerprint, remove_leftovers


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file[1].txt"
    with atomic_write(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(ValueError, match="embedded null"), atomic_write(path) as temporary:
        Path("\0").write_bytes(temporary.write_text("two").to_bytes())
    assert [p.read_text() for p in path.parent.iterdir()] == ["one"]


def test_leftovers_are_removed(tmp_path: Path) -> None:
    for name in (".a.txt.1.tmp", "below/.a.txt.2.tmp", ".b.txt.3.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "a.txt", sole_writer=True) as temporary:
        temporary.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.txt.3.tmp", "a.txt", "below"]
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.txt"]


def test_files_below_are_listed_in_order_and_named(tmp_path: Path) -> None:
    for name in ("b/z.tif", "b/a/y.TIF", "c.tif", "a.jp2", "b/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def listed(*endings: str, deep: bool = True) -> list[str]:
        return [p.relative_to(tmp_path).as_posix() for p in files_below(tmp_path, *endings, deep=deep)]

    assert listed(".tif", ".jp2") == ["a.jp2", "c.tif", "b/z.tif", "b/a/y.TIF"]
    assert listed(deep=False) == ["a.jp2", "c.tif"]
    assert not list(files_below(tmp_path / "none"))
    files = list(files_below(tmp_path))
    before = fingerprint(files, tmp_path)
    assert fingerprint(reversed(files), tmp_path) == before
    (tmp_path / "c.tif").write_text("longer than it was")
    assert len({before, fingerprint(files, tmp_path), fingerprint(files[1:], tmp_path)}) == 3
