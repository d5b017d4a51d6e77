"""What carries a schedule out: the bus, the ledger of effects, policies, learning rates, state."""
