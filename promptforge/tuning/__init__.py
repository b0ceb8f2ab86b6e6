"""Tuning: the training loop, what is trained, how it is trained, and the folder of a run."""
