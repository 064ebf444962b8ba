"""What the methods that change weights have in common: features, networks, changes, fitting."""
