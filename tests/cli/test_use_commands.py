"""Embeddings in use from the command line."""

import json
from pathlib import Path

import pytest

from data.embedding_products import middle, values, write_cog
from refusals import refusal
from terrafm_tg.cli.main import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_search_prints_and_writes_places(capsys: pytest.CaptureFixture[str]) -> None:
    write_cog(Path("m.tif"), values())
    a, b = (",".join(f"{x:.5f}" for x in middle(9, column)) for column in (4, 20))
    main(["search", "m.tif", "--at", a, b, "--k", "3", "--out", "found.geojson"])
    text = capsys.readouterr().out
    assert text.count("2024-05-01") == 2 + 6
    assert "6 places in found.geojson" in text
    features = json.loads(Path("found.geojson").read_text())["features"]
    assert [f["properties"]["query"] for f in features] == [1, 1, 1, 2, 2, 2]
    main(["search", "m.tif", f"--at={a}", "--at", b, "--index=ivf", "--together"])
    text = capsys.readouterr().out
    assert "Index made: m.tif.faiss; it finds" in text
    assert "of the true 10 nearest" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--at", "-60.5,-3.2"], "`at` lies (-60.5,-3.2) outside of m.tif"),
        ([], "`--at` is needed: a point as longitude,latitude"),
        (["--at", "1,2,3"], "There is no file 1,2,3"),
        (["--at", "nothere.geojson"], "There is no file nothere.geojson"),
        (["--at", "13,52", "--k=0"], "`k` is 0"),
        (["--at", "13,52", "--kk=0"], "`--kk` is no option"),
    ],
)
def test_search_refuses_in_a_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_cog(Path("m.tif"), values())
    message = refusal(capsys, "search", "m.tif", *words)
    assert said in message
    assert len(message.splitlines()) <= 2
