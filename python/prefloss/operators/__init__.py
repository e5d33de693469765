"""The operators of torch that the package registers: what torch.compile, export, vmap and torch.func see."""
