"""Pretraining: DINO self-distillation with the sensor as the augmentation."""
