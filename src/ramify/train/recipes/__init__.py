"""Training recipes, one file each; see ``ramify.train.job``."""
