"""The door: from the command line and `conf/` to an `Experiment`. Nothing below sees a configuration."""
