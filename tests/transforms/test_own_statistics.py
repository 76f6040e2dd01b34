"""Statistics of a run's own data: read from wherever they are kept, and used by whatever normalizes."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from tasks.tiny_terrafm import loader, make_batch, tiny_terrafm, trainer
from terrafm_tg.cli.main import main
from terrafm_tg.datamodules.labelled import SensorTransforms
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A
from terrafm_tg.models import build_encoder, export_encoder, load_encoder_state
from terrafm_tg.tasks import FineTuneClassification, TerraFM
from terrafm_tg.transforms import Normalize
from terrafm_tg.transforms.statistics import find_statistics, with_statistics

OWN = {
    "s2l2a": {"mean": [1000.0 + i for i in range(12)], "std": [500.0 + i for i in range(12)]},
    "s1rtc": {"mean": [-11.0, -17.0], "std": [4.0, 5.0]},
}


def normalized(x, name):
    """The paper's formula."""
    mean, std = (torch.tensor(OWN[name][key])[:, None, None] for key in ("mean", "std"))
    return (x - (mean - 2 * std)) / (4 * std)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a run with statistics of its own."""
    folder = tmp_path_factory.mktemp("trained")
    task = tiny_terrafm(statistics=OWN)
    run = trainer(folder)
    run.fit(task, loader([make_batch(2)]))
    run.save_checkpoint(folder / "run.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_encoder(folder / "run.ckpt", folder / "encoder")
    return folder


@pytest.mark.parametrize("source", ["mapping", "run.ckpt", "encoder.ckpt", "encoder.safetensors", "stats.json"])
def test_normalize_uses_them_wherever_they_are_kept(source, trained):
    (trained / "stats.json").write_text(json.dumps(OWN | {"tiles": 7, "clip": 0.001}))
    normalize = Normalize(statistics=OWN if source == "mapping" else trained / source)
    sample = {m.key: torch.rand(len(m.bands), 4, 4) * 100 + (5 if m.unit == "DN" else -60) for m in MODALITIES.values()}
    found = normalize(sample)
    for name in OWN:
        torch.testing.assert_close(found[f"image_{name}"], normalized(sample[f"image_{name}"], name))
    assert torch.equal(found["image_s2l1c"], Normalize()(sample)["image_s2l1c"])


def test_a_channel_that_no_stem_reads_and_a_missing_pixel_are_at_the_mean():
    normalize = Normalize("s2l2a", ["B10", "B02"], statistics=OWN)
    x = torch.tensor([900.0, OWN["s2l2a"]["mean"][1]])[:, None, None]
    assert normalize(x).flatten().tolist() == [0.5, 0.5]
    assert normalize(torch.zeros(2, 1, 1)).flatten().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_an_exported_encoder_says_so_and_the_builders_pass_them_on(ending, trained):
    path = trained / f"encoder.{ending}"
    with pytest.warns(UserWarning, match="was trained with statistics of its own for s2l2a, s1rtc: normalize"):
        model = build_encoder("terrafm_tiny", path, modality="s1rtc", bands=["VH", "VV"])
    assert model.statistics == OWN
    cfg = model.pretrained_cfg
    x = torch.rand(2, 4, 4) - 15
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    expected = Normalize("s1rtc", ["VH", "VV"], statistics=model.statistics)(x)
    torch.testing.assert_close((x - mean) / std, expected)
    assert load_encoder_state(path)[1]["statistics"] == OWN


def test_an_encoder_with_the_published_ones_says_nothing(tmp_path):
    task = tiny_terrafm()
    run = trainer(tmp_path)
    run.fit(task, loader([make_batch(2)]))
    run.save_checkpoint(tmp_path / "run.ckpt")
    paths = export_encoder(tmp_path / "run.ckpt", tmp_path / "encoder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in paths:
            assert build_encoder("terrafm_tiny", path).statistics is None
            assert find_statistics(path) is None


def test_views_are_normalized_with_them():
    batch = make_batch(3)
    whole = tiny_terrafm(statistics=OWN).multicrop.whole(batch, 96)
    published = tiny_terrafm().multicrop.whole(batch, 96)
    for name in OWN:
        m = MODALITIES[name]
        mean, std = (torch.tensor(getattr(m, key))[:, None, None] for key in ("mean", "std"))
        in_unit = published.images[name] * 4 * std + mean - 2 * std
        torch.testing.assert_close(whole.images[name], normalized(in_unit, name), atol=1e-4, rtol=1e-4)
    assert torch.equal(whole.images["s2l1c"], published.images["s2l1c"])


def test_a_run_keeps_them_and_must_not_change_them(trained):
    path = trained / "run.ckpt"
    loaded = TerraFM.load_from_checkpoint(path, map_location="cpu")
    assert loaded.hparams["statistics"] == OWN
    assert loaded.multicrop.statistics == OWN
    other = OWN | {"s1rtc": {"mean": [-12.0, -17.0], "std": [4.0, 5.0]}}
    for settings, message in (
        ({}, r"statistics.s2l2a \(.* in the checkpoint, None now\)"),
        ({"statistics": other}, r"statistics\.s1rtc \(.*-11.0.* in the checkpoint, .*-12.0"),
    ):
        for action in ("fit", "validate"):  # of both, images would be others than the encoder knows
            run = trainer(trained, max_epochs=2)
            with pytest.raises(TerraFMError, match=message):
                getattr(run, action)(tiny_terrafm(**settings), loader([make_batch(2)]), ckpt_path=path)


def test_a_checkpoint_without_them_is_not_continued_with_some(tmp_path):
    run = trainer(tmp_path)
    run.fit(tiny_terrafm(), loader([make_batch(2)]))
    run.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(TerraFMError, match=r"statistics \(None in the checkpoint, \{'s1rtc"):
        trainer(tmp_path, max_epochs=2).fit(
            tiny_terrafm(statistics=OWN), loader([make_batch(2)]), ckpt_path=tmp_path / "run.ckpt"
        )


def test_a_run_that_starts_from_such_an_encoder_goes_on_with_its_statistics(trained):
    with pytest.warns(UserWarning, match="statistics of its own"):
        task = tiny_terrafm(weights=str(trained / "encoder.ckpt"))
    assert task.hparams["statistics"] == task.multicrop.statistics == OWN


def test_fine_tuning_normalizes_with_those_of_its_weights(trained, tmp_path):
    settings = {"model": "terrafm_tiny", "num_classes": 3, "modalities": ["s1rtc"], "normalize": True, "depth": 2}
    with pytest.warns(UserWarning, match="statistics of its own"):
        task = FineTuneClassification(weights=str(trained / "encoder.ckpt"), **settings)
    x = torch.rand(2, 2, 32, 32) - 15
    expected = normalized(x, "s1rtc")
    torch.testing.assert_close(task.images({"image": x})["s1rtc"], expected)
    content = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
    other = FineTuneClassification(**settings)
    assert not torch.allclose(other.images({"image": x})["s1rtc"], expected)
    other.on_load_checkpoint(content)
    torch.testing.assert_close(other.images({"image": x})["s1rtc"], expected)
    batch = SensorTransforms({"s1rtc": S1RTC.bands}, "s1rtc", statistics=OWN)({"image": x})
    torch.testing.assert_close(batch["image"], expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"s2l2a": {"mean": [1.0] * 12}}, "as `std` of s2l2a: expected 12 numbers above 0"),
        ({"s1rtc": {"mean": [1.0, 2.0], "std": [1.0, 0.0]}}, "expected 2 numbers above 0, for VV, VH"),
        ({"s1rtc": {"mean": [1.0, float("nan")], "std": [1.0, 1.0]}}, "nan.* as `mean`"),
        ({"s1rtc": {"mean": "ab", "std": [1.0, 1.0]}}, "ab as `mean`"),
        ({"planet": {"mean": [1.0], "std": [1.0]}}, "'planet' is unknown"),
        ({"tiles": 3}, "of no modality"),
        ([1, 2], "holds no statistics"),
        ("x" * 3, "holds no statistics"),
    ],
)
def test_what_is_none_is_one_sentence(content, message, tmp_path):
    path = tmp_path / "stats.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TerraFMError, match=message):
        Normalize(statistics=path)
    if isinstance(content, dict):
        with pytest.raises(TerraFMError, match=message):
            tiny_terrafm(statistics=content)


def test_files_that_are_none_are_one_sentence(tmp_path):
    (tmp_path / "x.json").write_bytes(b"[" * 100_000)
    (tmp_path / "y.json").write_bytes(b"PAR1\xff")
    (tmp_path / "z.safetensors").write_bytes(b"no")
    for name in ("x.json", "y.json", "z.safetensors", "gone.json", "gone.ckpt"):
        with pytest.raises(TerraFMError, match=name):
            find_statistics(tmp_path / name)


def test_a_name_in_a_checkpoint_opens_nothing(trained, tmp_path):
    """A string in a file is no address: only what the user names is opened."""
    content = torch.load(trained / "run.ckpt", weights_only=True)
    content["hyper_parameters"]["statistics"] = str(trained / "encoder.safetensors")
    torch.save(content, tmp_path / "strange.ckpt")
    with pytest.raises(TerraFMError, match="`statistics` is"):
        TerraFM.load_from_checkpoint(tmp_path / "strange.ckpt")
    with pytest.raises(TerraFMError, match="as its statistics"):
        build_encoder("terrafm_tiny", tmp_path / "strange.ckpt")


def test_the_statistics_of_others_stay_the_published_ones():
    assert with_statistics(S2L2A, None) is S2L2A
    assert with_statistics(S2L2A, {"s1rtc": OWN["s1rtc"]}) is S2L2A
    assert with_statistics(S1RTC, OWN).mean == (-11.0, -17.0)


def test_export_of_the_command(trained, tmp_path, capsys):
    main(["export", str(trained / "run.ckpt"), str(tmp_path / "out")])
    assert find_statistics(Path(capsys.readouterr().out.split()[0])) == OWN
