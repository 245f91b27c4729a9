"""Training: episodes, supervoxels, synthesis and the trainer."""
