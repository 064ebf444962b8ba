"""What all methods share whose edits are entries of a ledger: constants, switching, forgetting, saving."""
