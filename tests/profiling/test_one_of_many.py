"""A configuration of more processes than are here is measured on one, also where a launcher starts just one."""

import logging

import pytest
from test_profile_command import CONF, TINY

from terrafm_tg.cli.main import main

#: An allocation of one task, as `salloc -n1` gives.
SLURM = {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "interactive"}


def test_fsdp_under_slurm_is_measured_on_one_and_said(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    many = [f"--config={CONF / 'hardware' / name}.yaml" for name in ("slurm", "fsdp")]
    here = ["--trainer.accelerator=cpu", "--data.batch_size=4", "--data.num_workers=0"]
    with caplog.at_level(logging.WARNING, "terrafm_tg"):
        main(["profile", *TINY, *many, *here, "--steps=1", "--warmup=1"])
    assert "on 64 processes" in " ".join(capsys.readouterr().out.split())
    (said,) = [record.message for record in caplog.records if "DDP's traffic" in record.message]
    assert "without `ShardingStrategy`" in said
