"""The tile index: where each modality lies, land cover, climate and region."""
