"""The commands of `tomotrain`, one file each."""
