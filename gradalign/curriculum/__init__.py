"""The round: its steps, its state on disk, going on after an interruption."""
