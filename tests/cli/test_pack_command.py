"""`terrafm pack` as a person meets it: from real Major-TOM cells to training, and one sentence for each mistake."""

import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
from test_cli import SHORT, fails, losses, tiny_run

from terrafm_tg.cli.main import main
from terrafm_tg.datasets import MajorTOM, PackedTiles
from terrafm_tg.modalities import S2L2A


def test_real_cells_through_index_and_pack_to_fit(tmp_path: Path, real_data: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root, out = tmp_path / "major_tom", tmp_path / "store"
    shutil.copytree(real_data / "major_tom", root)
    main(["index", str(root), "--workers=0", "--figure=false"])
    main(["pack", str(root), str(out), "--workers=0"])
    words = capsys.readouterr().out
    assert "8 tiles of 2 cells" in words
    assert "--config data/packed" in words
    source, packed = MajorTOM(root, harmonize=False, native=True), PackedTiles(out, harmonize=False, native=True)
    assert len(packed) == 8
    for row in range(8):
        expected, groups = source._read(row, S2L2A), packed._read(row, S2L2A)
        for resolution in S2L2A.native:
            np.testing.assert_array_equal(groups[resolution], expected[resolution])
    assert sum(path.stat().st_size for path in out.rglob("*.arrow")) < sum(
        path.stat().st_size for path in root.rglob("part_*.parquet")
    )
    options = ["--data.ambiguous_offset=present", "--model.modalities=[s2l2a]"]
    main(["fit", *tiny_run(tmp_path, "packed", out, *options), *SHORT])
    assert np.isfinite(losses(tmp_path)).tolist() == [True] * 2


def test_a_mistake_gets_one_sentence(tmp_path: Path, small_world: Path, real_data: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("terrafm_tg.utils.parallel._ANSWER", 1)
    out = str(tmp_path / "store")
    assert "is no folder: give one with the data" in fails(capsys, "pack", str(tmp_path / "none"), out)
    assert "lie in each other" in fails(capsys, "pack", str(small_world), str(small_world / "store"))
    assert "use one of s1rtc" in fails(capsys, "pack", str(small_world), out, "--modalities=s3")
    assert "made for tile_size=72, the dataset has 66" in fails(capsys, "pack", str(small_world), out, "--tile_size=66")
    assert "`radar_unit` is no setting" in fails(capsys, "pack", str(small_world), out, "--radar_unit=dB")
    sites = str(real_data / "ssl4eo_s12")
    assert "`tile_size` is no setting" in fails(capsys, "pack", sites, out, "--tile_size=264")
    assert "No Dask scheduler" in fails(capsys, "pack", sites, out, "--scheduler=tcp://127.0.0.1:9")
    main(["pack", sites, str(tmp_path / "sites"), "--workers=0"])
    assert "tiles of 1 cells" in capsys.readouterr().out
    assert "is a packed store already" in fails(capsys, "pack", str(tmp_path / "sites"), out)
    assert "made with tile_size=264, not 72" in fails(capsys, "pack", str(small_world), str(tmp_path / "sites"))
    assert not Path(out, "index.parquet").exists()


def test_no_space_on_the_disk(tmp_path: Path, real_data: Path, capfd) -> None:
    """A process that may write no file beyond 100 kB meets the same error as on a full disk."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            main(["pack", str(real_data / "ssl4eo_s12"), str(tmp_path / "store"), "--workers=0"])
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    words = capfd.readouterr().err
    assert "cannot be written (File too large): mend that and run the same command again" in words
    assert "Traceback" not in words
