"""Fine-tuning: classification, segmentation and change detection."""
