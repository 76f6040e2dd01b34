"""Fine-tunes the encoder on EuroSAT, a small labeled set: `python examples/finetune.py --download`.

EuroSAT (94 MB zipped) has 27,000 Sentinel-2 L1C images of ten classes. The encoder is the published one, or one of
yours: `--model terrafm_nano --weights runs/example/encoder.safetensors`. Put any dataset of TorchGeo with `split` and
`bands` in EuroSAT's place.
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torchgeo.datasets import EuroSAT

from terrafm_tg.datamodules import SensorDataModule
from terrafm_tg.tasks import FineTuneClassification


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains, keeps the epoch that is best on the validation split, and returns its scores on the test split."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("data/eurosat"), help="folder of EuroSAT")
    parser.add_argument("--download", action="store_true", help="fetch EuroSAT into `--root`")
    parser.add_argument("--out", type=Path, default=Path("runs/example_finetune"), help="folder of the checkpoints")
    parser.add_argument("--model", default="terrafm_base", help="name of the encoder")
    parser.add_argument("--weights", default="terrafm_base", help="a file, a published name, or `none`")
    parser.add_argument("--probe", action="store_true", help="train the classifier only")
    parser.add_argument("--size", type=int, default=224, help="to which the images of 64 px are resized")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of training")
    parser.add_argument("--batch_size", type=int, default=64, help="images per step")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images")
    options = parser.parse_args(arguments)

    data = SensorDataModule(
        {"s2l1c": EuroSAT},  # EuroSAT is L1C; for radar it would be {"s1rtc": ...}, for both a dict of two
        root=options.root,
        size=options.size,
        batch_size=options.batch_size,
        num_workers=options.workers,
        options={"download": options.download},
    )
    task = FineTuneClassification(
        options.model,
        weights=None if options.weights == "none" else options.weights,
        modalities=["s2l1c"],
        num_classes=10,
        warmup_epochs=2,
        freeze_backbone=options.probe,
    )
    best = ModelCheckpoint(options.out / "checkpoints", monitor="val_loss")
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=options.epochs,
        gradient_clip_val=1.0,
        default_root_dir=options.out,
        logger=False,
        callbacks=[best],
    )
    trainer.fit(task, data)
    return trainer.test(task, data, ckpt_path=best.best_model_path)[0]


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:<32}{value:.3f}")
