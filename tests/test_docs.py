"""The documentation quotes the source as it is, and links to what exists."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from data import labelled, published_weights
from data.mmearth import data as mmearth
from data.ssl4eo import data as ssl4eo

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")])
QUOTE = re.compile(r'```python title="(?P<path>[^"]+)"\n(?P<code>.*?)```', re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def _bare(code: str) -> str:
    """Without what a formatter may change: white space and trailing commas."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", code))


def _quotes() -> list[tuple[str, str, str]]:
    return [(page.name, m["path"], m["code"]) for page in PAGES for m in QUOTE.finditer(page.read_text())]


@pytest.mark.parametrize(("page", "path", "code"), _quotes())
def test_quoted_lines_are_the_source(page: str, path: str, code: str):
    assert _bare(code) in _bare((ROOT / path).read_text()), f"{page} quotes lines that {path} no longer has"


def test_formulas_stand_beside_code():
    assert sum(page == "method.md" for page, _, _ in _quotes()) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {', '.join(missing)}"


def _run(page: str, names: dict[str, Any], **replaced: str) -> dict[str, Any]:
    """Runs a page's examples in their order, in one namespace, as a reader would type them.

    Args:
        page: Its file in `docs`.
        names: What the page supposes to be there.
        replaced: Words that stand for others, to make the examples small.
    """
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL):
        for old, new in replaced.items():
            code = code.replace(old, new)
        exec(compile(code, f"docs/{page}", "exec"), names)
    return names


def test_the_examples_of_the_quick_start_run(small_world: Path, tmp_path: Path):
    places = {'"data/simulated"': repr(str(small_world)), '"runs/first"': repr(str(tmp_path))}
    names = _run("quick_start.md", {}, **places, **{"tile_size=96": "tile_size=72"})
    assert names["embedding"].shape == (4, 192)


def test_the_examples_of_other_archives_run(tmp_path: Path):
    ssl4eo.create(tmp_path / "sites")
    mmearth.create(tmp_path / "places")
    places = {"data/ssl4eo_s12": f"{tmp_path}/sites", "data/mmearth": f"{tmp_path}/places"}
    names = _run("own_archive.md", {}, **places)
    assert names["sample"]["image_s2l2a"].shape == (12, 264, 264)
    assert len(names["places"]) == 5


def _fit_torchgeo(number: int, folder: Path, replaced: tuple[str, str], **options: object) -> tuple[str, list[str]]:
    """Fits a configuration of the page on TorchGeo's tasks, made small; returns it and the command's options."""
    from terrafm_tg.cli.main import main

    text = re.findall(r"```yaml[^\n]*\n(.*?)```", (ROOT / "docs/use_in_torchgeo.md").read_text(), re.DOTALL)[number]
    (folder / "my.yaml").write_text(text.replace(*replaced))
    options |= {"trainer.accelerator": "cpu", "trainer.max_epochs": 1, "trainer.default_root_dir": folder}
    words = [f"--config={folder / 'my.yaml'}", "--trainer.logger=false", *(f"--{k}={v}" for k, v in options.items())]
    main(["fit", *words])
    return text, words


def test_the_examples_for_torchgeo_run(hub: Path, tmp_path: Path):
    """With a file of the published layout in the cache: the base model, as the page says it."""
    from terrafm_tg.models import build_encoder

    with torch.device("meta"):
        shapes = {name: p.shape for name, p in build_encoder("terrafm_base").state_dict().items()}
    state = {name: 0.02 * torch.randn(shape) for name, shape in shapes.items() if ".fusion." not in name}
    torch.save(state, hub / "TerraFM-B.pth")
    labelled.eurosat(tmp_path / "eurosat")
    small = {"224": "64", "(14, 14)": "(4, 4)", "data/eurosat": f"{tmp_path}/eurosat"}
    names = _run("use_in_torchgeo.md", {}, **small)
    (hub / "TerraFM-B.pth").unlink()
    assert names["embedding"].shape == names["fused"].shape == (2, 768)
    assert names["data"].batch_size == 4

    small = {"data.root": tmp_path / "eurosat", "data.size": 32, "data.batch_size": 4, "model.weights": "null"}
    text, _ = _fit_torchgeo(0, tmp_path, ("terrafm_base_s2l1c", "terrafm_tiny_s2l1c"), **small)
    assert yaml.safe_load(text)["model"]["init_args"]["weights"] == "terrafm_base"


def test_the_segmentation_for_torchgeo_runs(tmp_path: Path):
    from terrafm_tg.cli.main import main

    labelled.cloud(tmp_path / "cloud")
    torch.save(published_weights.tiny(), tmp_path / "TerraFM-T.pth")
    small = {"data.root": tmp_path / "cloud", "data.batch_size": 2, "model.weights": tmp_path / "TerraFM-T.pth"}
    _, words = _fit_torchgeo(1, tmp_path, ("terrafm_base", "terrafm_tiny"), **small)
    writer = "--trainer.callbacks+=terrafm_tg.callbacks.PredictionWriter"
    main(["predict", *words, f"--ckpt_path={next(tmp_path.rglob('*.ckpt'))}", writer])
    written = torch.load(tmp_path / "predictions/0_0_000000.pt", weights_only=True)
    assert written["predictions"]["probabilities"].shape == (2, 4, 64, 64)


def test_the_examples_of_fine_tuning_run(tmp_path: Path):
    labelled.eurosat(tmp_path / "eurosat")
    labelled.bigearthnet(tmp_path / "bigearthnet")
    small = {'weights="terrafm_base"': "weights=None", "terrafm_base": "terrafm_tiny"}
    small |= {"size=224": "size=32", "size=128": "size=32", "Trainer(": 'Trainer(accelerator="cpu", '}
    small |= {"data/eurosat": f"{tmp_path}/eurosat", "data/bigearthnet": f"{tmp_path}/bigearthnet"}
    small |= {"runs/mine": str(tmp_path)}
    names = _run("fine_tune.md", {}, **small)
    assert names["probabilities"][0].shape == (4, 10)
    assert 0 <= names["scores"][0]["test_OverallAveragePrecision"] <= 1


def test_the_examples_of_the_stems_run():
    names = _run("which_stem.md", {}, terrafm_base="terrafm_tiny")
    assert names["surface"].shape == names["top"].shape == (1, 192)
    assert _run("feeding.md", {}, terrafm_base="terrafm_tiny")["embedding"].shape == (1, 192)


class Parsed(Exception):
    """The command's options were accepted."""


def _commands() -> list[list[str]]:
    """Every command that a page prints, once, as words; a line that begins with a space belongs to the one before."""
    blocks = [block for page in PAGES for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = [line for block in blocks for line in re.split(r"\n(?=\S)", re.sub(r"\\\n\s*", " ", block))]
    return list({line: words for line in lines if (words := shlex.split(line, comments=True))}.values())


BENCH = [words[1:] for words in _commands() if words[:2] == ["terrafm", "bench"]]


@pytest.mark.parametrize("words", [w for w in _commands() if w[1:] not in BENCH], ids=" ".join)
def test_every_printed_command_is_accepted(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`terrafm`'s options are parsed and nothing is run; of other commands the target or script is there."""
    from terrafm_tg.cli.fit import TerraFMCLI
    from terrafm_tg.cli.main import main

    def accept(*_: Any) -> None:
        raise Parsed

    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if words[0] in ("python", "sbatch"):
        script = next(word for word in words[1:] if not word.startswith("-"))
        assert (ROOT / (f"{script.replace('.', '/')}.py" if "-m" in words else script)).is_file()
    if "terrafm" not in words:
        return
    yaml_of = re.findall(r"```yaml[^\n]*\n(.*?)```", (ROOT / "docs/use_in_torchgeo.md").read_text(), re.DOTALL)
    for name, text in zip(("my_task.yaml", "my_clouds.yaml"), yaml_of, strict=True):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ArgumentParser, "instantiate_classes", accept)
    monkeypatch.setattr(TerraFMCLI, "before_instantiate_classes", accept)
    with pytest.raises(Parsed):
        main(words[words.index("terrafm") + 1 :])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_modules_are_there(page: Path):
    text = page.read_text()
    for module in re.findall(r"python -m (benchmarks[.\w]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for path in re.findall(r"`((?:examples|tests|docs|conf|benchmarks)/[\w/]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("words", BENCH, ids=lambda words: Path(words[2]).stem)
def test_the_commands_of_the_benchmarks_page_lay_out_work(
    words: list[str], benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from terrafm_tg.cli.main import main

    monkeypatch.chdir(ROOT)
    main([*words, f"--root={benchmarks}", f"--out={tmp_path}", "--dry_run=true"])
    found = re.search(r"0 of (\d+) units are done", " ".join(capsys.readouterr().out.split()))
    assert int(found[1]) > 0


def test_the_examples_of_the_benchmarks_page_run(benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from evaluation.bench_results import results

    monkeypatch.chdir(tmp_path)
    table = tmp_path / "runs/bench/geobench_knn/results.parquet"
    table.parent.mkdir(parents=True)
    results(["m-eurosat"], seeds=1).to_parquet(table)
    small = {"terrafm_base": "terrafm_tiny", 'weights="default"': "size=32"}
    small |= {'"data/bench"': repr(str(benchmarks)), '"runs/bench/report"': repr(str(tmp_path / "report"))}
    names = _run("benchmarks.md", {}, **small)
    assert names["sample"]["image_s2l1c"].shape == (13, 32, 32)
    assert names["headline"].metric == "accuracy"
    assert len(names["theirs"]) == 28
    assert names["page"].read_text().startswith("<!DOCTYPE html>")
