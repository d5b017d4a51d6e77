"""The steps of optimizers: which optimizers there are, and what happens around each of their steps."""
