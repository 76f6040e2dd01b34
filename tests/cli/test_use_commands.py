"""Embeddings in use from the command line."""

import json
from pathlib import Path

import pytest

from data.embedding_products import ABOUT, middle, values, write_cog
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


def labels() -> Path:
    """Three points of each of two classes."""
    pixels = [(5, 2), (12, 4), (17, 3), (4, 20), (11, 21), (16, 19)]
    lines = [f"{middle(*pixel)[0]},{middle(*pixel)[1]},{'ab'[i // 3]}" for i, pixel in enumerate(pixels)]
    Path("l.csv").write_text("\n".join(["lon,lat,class", *lines, "1,1,b"]))
    return Path("l.csv")


def test_classify_prints_the_score_beside_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    write_cog(Path("m.tif"), values())
    main(["classify", "m.tif", "out.tif", "--labels", str(labels()), "--method=knn", "--k=1"])
    text = capsys.readouterr().out
    assert "1 label of 7 outside of the embeddings: left out." in text
    assert "Balanced accuracy 1.00 (95 % interval" in text
    assert "over 6 places of 2 classes; a constant guess has 0.50" in text
    assert "true \\ predicted" in text
    assert "Written: out.tif, out_confidence.tif, out.png, out_score.json" in text
    assert all(Path(name).is_file() for name in ("out.tif", "out_confidence.tif", "out.png", "out_score.json"))
    assert "`--labels` is needed" in refusal(capsys, "classify", "m.tif", "out.tif")


def test_change_prints_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    x = values()
    write_cog(Path("a.tif"), x)
    x[5:9, 3:7] *= -1
    write_cog(Path("b.tif"), x, about=ABOUT | {"dates": ["2025-01-01"]})
    main(["change", "a.tif", "b.tif", "out.tif", "--threshold", "1.5"])
    text = capsys.readouterr().out
    assert "Median cosine distance 0.0000" in text
    assert "Changed, above 1.5000: 3.4% in 1 area\n" in text
    assert "Written: out.tif, out_polygons.geojson, out.png" in text
    write_cog(Path("b.tif"), x, about={"model": "other"})
    assert "differ in their model (terrafm_tiny and other)" in refusal(capsys, "change", "a.tif", "b.tif", "out.tif")
    assert "`threshold` is 3" in refusal(capsys, "change", "a.tif", "b.tif", "out.tif", "--threshold=3")
