"""One file per benchmark: speed as a ratio against a floor or a peer in the same run."""
