"""Pretrains TerraFM and writes its encoder: `python examples/pretrain.py`.

Without arguments it trains a small model for minutes on the simulated world, which it writes first: nothing is
downloaded. `--major_tom ROOT` trains on Major-TOM instead (`terrafm download` and `terrafm index` make the root).
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from terrafm_tg.callbacks import CollapseMonitor, KNNMonitor, RunSummary
from terrafm_tg.datamodules import MajorTOMDataModule, SimulatedDataModule
from terrafm_tg.models import export_encoder
from terrafm_tg.tasks import TerraFM


def main(arguments: list[str] | None = None) -> Path:
    """Trains, validates by k-NN on held-out cells, and returns the path of the exported encoder."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/example"), help="folder of checkpoints, log and encoder")
    parser.add_argument("--major_tom", type=Path, help="an indexed Major-TOM root; the simulated world without it")
    parser.add_argument("--world", type=Path, default=Path("data/example_world"), help="folder of the simulated world")
    parser.add_argument("--cells", type=int, default=200, help="cells of the simulated world; each holds four tiles")
    parser.add_argument("--cell_size", type=int, default=264, help="pixels of a simulated cell")
    parser.add_argument("--model", default="terrafm_nano", help="name of the encoder")
    parser.add_argument("--crop", type=int, default=96, help="pixels of a global crop; a local one has half")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of training")
    parser.add_argument("--batch_size", type=int, default=16, help="tiles per step")
    parser.add_argument("--workers", type=int, default=2, help="processes that read tiles")
    options = parser.parse_args(arguments)

    loading = {"batch_size": options.batch_size, "num_workers": options.workers}
    if options.major_tom:
        data = MajorTOMDataModule(options.major_tom, **loading)
    else:
        world = {"cells": options.cells, "cell_size": options.cell_size}
        data = SimulatedDataModule(options.world, **world, world_workers=options.workers, **loading)

    # The defaults are the paper's. Small crops, few prototypes and a quick teacher suit a short run on a small world.
    task = TerraFM(
        options.model,
        crops={"global_size": options.crop, "local_size": options.crop // 2, "local_crops": 4},
        head={"prototypes": 2048},
        drop_path=0.0,
        optimizer={"lr": 3e-4, "lr_batch": None},
        schedule={"warmup_epochs": 1, "teacher_temp": (0.04, 0.04), "teacher_momentum": (0.99, 1.0)},
    )
    checkpoints = ModelCheckpoint(options.out / "checkpoints", save_last=True)
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=options.epochs,
        log_every_n_steps=2,
        num_sanity_val_steps=0,
        default_root_dir=options.out,
        logger=CSVLogger(options.out, name="", version=""),
        callbacks=[checkpoints, KNNMonitor(), CollapseMonitor(), RunSummary()],
    )
    trainer.fit(task, data)

    encoder = options.out / "encoder"
    export_encoder(checkpoints.last_model_path, encoder)  # encoder.safetensors and encoder.ckpt
    return encoder.with_suffix(".safetensors")


if __name__ == "__main__":
    print(f"Encoder: {main()}")
