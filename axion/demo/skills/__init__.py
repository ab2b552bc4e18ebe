"""The skills of the demo model, one generator each."""
