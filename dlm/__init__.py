"""A backbone made a frozen MaskedLM; noise schedules; readout; the environment."""
