"""The commands of `torchrl-shm`: what people do with runs, one file each."""
