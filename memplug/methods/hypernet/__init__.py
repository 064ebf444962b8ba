"""What the methods that change weights have in common: features, networks, fitting, the guard, the ledger."""
