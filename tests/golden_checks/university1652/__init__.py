"""University-1652: transforms, networks, losses, optim, evaluation."""
