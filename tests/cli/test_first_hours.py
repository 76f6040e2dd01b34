"""A person's first hours: mistakes that anyone makes get the next step in one sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from refusals import IN_MEMORY, refusal
from terrafm_tg.cli.main import main
from terrafm_tg.cli.options import find_configs
from terrafm_tg.cli.trainer import RunLength

WAYS = ("--config conf/data/simulated.yaml", "terrafm download", "--config conf/data/folder.yaml --data.root")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder: the package's configurations are found by name."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["--config", "conf/pretrain.yaml"], "no folder data/major_tom"),
        ([], "no `model`: start with `--config pretrain`"),
        (["--config=size/tiny", "--config=pretrain"], "no `model`: start with `--config pretrain`"),
        (["--model.depth=2"], "no `model`: start with `--config pretrain`"),
        (["--model=TerraFM"], "no `data`"),
    ],
)
def test_the_first_command_names_three_ways_on(words: list[str], missing: str, capsys) -> None:
    message = refusal(capsys, "fit", *words)
    assert f"There is {missing}" in message
    assert all(way in message for way in WAYS)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fitt"], "'fitt' is not a command: did you mean `terrafm fit`?"),
        (["fit", "conf/pretrain.yaml"], "a configuration is given as `--config conf/pretrain.yaml`"),
        (["fit", "--config", "pretrian"], "did you mean `conf/pretrain.yaml`?"),
        (["fit", "--config=pretrain", "--model.lrr", "1"], "did you mean `--model.optimizer.lr`?"),
        (["fit", "--config=pretrain", "--model.optimizer.lrr", "1"],
         "`terrafm fit --model.help=terrafm_tg.tasks.TerraFM` lists those"),
        (["fit", "--config=pretrain", "--data.rot=x"], "did you mean `--data.root`?"),
        (["fit", "--config=pretrain", "--trainer.max_stepz=3"], "did you mean `--trainer.max_steps`?"),
        (["bench", "--model", "x"], "`--model` is no option (did you mean `--models`?)"),
        (["fit", "--config=pretrain", "--ckpt_path=nothere"], "There is no checkpoint nothere: correct `ckpt_path`."),
        (["export", "nothere.ckpt", "x"], "There is no checkpoint nothere.ckpt: correct `checkpoint`"),
    ],
)  # fmt: skip
def test_a_mistyped_word_gets_the_nearest(words: list[str], said: str, capsys) -> None:
    message = refusal(capsys, *words)
    assert said in message
    assert len(message.splitlines()) <= 2
    assert not list(Path().iterdir())  # noticed before anything is made


def test_a_file_that_is_no_checkpoint_is_not_to_be_deleted(capsys) -> None:
    Path("pretrain.yaml").write_text("trainer: {}")
    message = refusal(capsys, "export", "pretrain.yaml", "x")
    assert "pretrain.yaml" in message
    assert "delete" not in message


@pytest.mark.parametrize("command", ["inspect", "grid", "index", "stats", "pack"])
def test_options_are_said_for_people(command: str, capsys) -> None:
    """Without Python's types, None, names of modules, or options of classes."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = capsys.readouterr().out.partition("options:")[2]
    assert not re.search(r"type:|Union|Mapping|\bNone\b|terrafm_tg|:class:|`~|\.help", words)
    assert all(f"--{name} " in words for name in ("folders", "bands", "unit", "scale", "offset", "nodata"))


def test_help(capsys) -> None:
    """Lists every command in its group; `terrafm help COMMAND` lists the options of one."""
    for words in (["--help"], ["help", "simulate"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n{title}:\n") for title in ("data", "training", "products", "measuring")]
    assert places == sorted(places)
    for command in ("fit", "validate", "test", "predict", "simulate", "index", "export", "profile"):
        assert f"\n  {command} " in text
    assert "--cell_size" in text


def test_a_reader_may_leave_early() -> None:
    """Such as `terrafm --help | head -1`."""
    read, write = os.pipe()
    os.close(read)
    code = "from terrafm_tg.cli.main import main; main(['--help'])"
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 141


def test_a_file_of_ones_own_wins() -> None:
    assert Path(find_configs(["--config", "size/tiny"])[1]).read_text().startswith("# terrafm_tiny")
    assert find_configs(["--config=conf/size/tiny.yaml"]) == find_configs(["--config=size/tiny"])
    own = Path("conf/size/tiny.yaml")
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_configs(["--config", str(own)]) == ["--config", str(own)]


@pytest.mark.parametrize("units", [True, False])
def test_precision_follows_the_device(units: bool, monkeypatch, capsys, caplog) -> None:
    """And a run says its size and, roughly, how long it will take, and advertises nothing."""
    monkeypatch.setattr("terrafm_tg.cli.trainer.has_bf16_units", lambda device: units)
    monkeypatch.setattr("terrafm_tg.cli.trainer._LONG", 0.0)
    main(["fit", *IN_MEMORY, "--trainer.max_steps=3", "--trainer.callbacks=null", "--trainer.limit_val_batches=0"])
    printed = "".join(capsys.readouterr()) + caplog.text
    assert f"Precision {'bf16-mixed' if units else '32-true'}, which suits this device" in printed
    assert "parameters are trained" in printed
    assert "s per batch, the 3 batches of this run take" in printed
    for word in ("Tip", "litlogger", "FLOPs", "TPU"):
        assert word not in printed
    assert yaml.safe_load(next(Path().rglob("config.yaml")).read_text())["trainer"]["precision"] is not None


def test_the_length_of_a_run_is_said_twice(monkeypatch, caplog) -> None:
    """Roughly by the second batch, which cold caches slow, and better by twenty."""
    clock = iter([100, 110, *range(111, 200)])
    monkeypatch.setattr("terrafm_tg.cli.trainer.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("terrafm_tg.cli.trainer._ENOUGH", 60)
    length = RunLength()
    for _ in range(50):
        length.on_train_batch_end(SimpleNamespace(estimated_stepping_batches=500, accumulate_grad_batches=2))
    rough, better = caplog.messages
    assert rough.startswith("At 10 s per batch, the 1,000 batches of this run take 2.8 hours (by the second one")
    assert better.startswith("At 1.4 s per batch, the 1,000 batches of this run take 24.2 minutes (measured on 20")


def test_a_missing_extra_is_named(monkeypatch, capsys) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torchgeo.datasets'", name="torchgeo.datasets")

    needs = ["torch>=2.6", 'torchgeo-bench; extra == "torchgeo-bench"', 'torchgeo>=0.10; extra == "train"']
    monkeypatch.setattr(sys.modules["terrafm_tg.cli.main"], "import_module", missing)
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needs)
    message = refusal(capsys, "fit")
    assert message == "terrafm: error: `terrafm fit` needs torchgeo: run pip install 'terrafm-tg[train]'."
