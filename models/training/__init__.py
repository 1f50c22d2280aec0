"""How models learn: fits, candidates, the record of a run, the gate before a promotion."""

#: What the gate may compare.
METRICS = ("accuracy", "macro_f1", "window_accuracy")
