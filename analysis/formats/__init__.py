"""One file a family of checkpoints: its file names, its key names, its scale rule.

Each has `recognises(path)` → bool and `read(path, base=None)` → iterator of entries
(`analysis.update`): an update for each module, Skipped with a reason for each that cannot be
analysed, Other for tensors that are no updates. No linear algebra here. To add a family, copy
the nearest file and put it into the list in `analysis.checkpoint`.
"""
