"""How models learn: fits, candidates, the record of a run, the gate before a promotion."""
