"""Offline SDFT: the data set rewritten once by the base model, screened, and kept as a file to train on."""
