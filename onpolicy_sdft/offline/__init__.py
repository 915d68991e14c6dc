"""Offline SDFT: the data set rewritten once by the seed model, screened, and kept as a file to train on."""
